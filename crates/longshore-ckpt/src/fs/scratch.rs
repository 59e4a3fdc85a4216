//! A nameless file for what does not fit memory: gone with the process, however it ends.

use super::io_error;
use crate::Result;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file without a name.
#[derive(Debug)]
pub struct ScratchFile {
    file: File,
    folder: PathBuf,
}

impl ScratchFile {
    /// Creates one on the file system of `folder`.
    pub fn create(folder: &Path) -> Result<Self> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = match rustix::fs::open(folder, flags, mode) {
            Ok(fd) => File::from(fd),
            // Not every file system knows nameless files: create one and take its name away.
            Err(_) => {
                let path = folder.join(format!(".longshore-scratch-{}", std::process::id()));
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::open(&path, flags, mode).map_err(|e| io_error("creating", &path, e))?;
                std::fs::remove_file(&path).map_err(|e| io_error("removing", &path, e))?;
                File::from(fd)
            }
        };
        Ok(Self { file, folder: folder.to_owned() })
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| io_error("writing a scratch file in", &self.folder, e))
    }

    /// Fills `bytes` from `offset` on.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|e| io_error("reading a scratch file in", &self.folder, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_file_has_no_name_and_keeps_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = ScratchFile::create(folder.path()).unwrap();
        file.write_at(7, b"abc").unwrap();
        let mut back = [0; 3];
        file.read_at(7, &mut back).unwrap();
        assert_eq!(&back, b"abc");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(file.read_at(9, &mut back).is_err());
    }
}
