//! A file of ours that grows line by line, and what a killed process left of it.

use super::io_error;
use super::locked::open_inside;
use crate::Result;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file to whose end lines are added. What [`Self::add`] has written survives the end of the process, not that of the system.
#[derive(Debug)]
pub struct LinesFile {
    path: PathBuf,
    file: File,
    /// Bytes that are whole lines.
    len: u64,
}

impl LinesFile {
    /// Opens or creates the file, never through a link, and gives each whole line to `each`, without its end. What follows the
    /// last whole line, or begins with a line longer than `longest`, is cut off.
    pub fn open(path: &Path, longest: u64, mut each: impl FnMut(&[u8])) -> Result<Self> {
        let file = open_inside(path)?;
        let mut reader = BufReader::new(&file);
        let (mut line, mut len) = (Vec::new(), 0);
        loop {
            line.clear();
            let limit = longest.saturating_add(1);
            let read =
                reader.by_ref().take(limit).read_until(b'\n', &mut line).map_err(|e| io_error("reading", path, e))?;
            if line.pop() != Some(b'\n') {
                break;
            }
            len += read as u64;
            each(&line);
        }
        file.set_len(len).map_err(|e| io_error("truncating", path, e))?;
        let mut lines = Self { path: path.to_owned(), file, len };
        lines.rewind()?;
        Ok(lines)
    }

    /// Adds a line; its end is added to it. After an error the file is as before, where the disk lets it.
    pub fn add(&mut self, mut line: Vec<u8>) -> Result<()> {
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            // A partial line would spoil the next; where it cannot be cut off, opening does.
            let _ = self
                .file
                .set_len(self.len)
                .map_err(|e| io_error("truncating", &self.path, e))
                .and_then(|()| self.rewind());
            return Err(io_error("writing", &self.path, error));
        }
        self.len += line.len() as u64;
        Ok(())
    }

    /// To the end of the whole lines.
    fn rewind(&mut self) -> Result<()> {
        self.file.seek(SeekFrom::Start(self.len)).map(drop).map_err(|e| io_error("writing", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path, longest: u64) -> (LinesFile, Vec<String>) {
        let mut found = Vec::new();
        let file = LinesFile::open(path, longest, |line| found.push(String::from_utf8_lossy(line).into_owned()));
        (file.expect("a file"), found)
    }

    #[test]
    fn lines_come_back_and_a_torn_one_is_cut_off() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("lines");
        let (mut file, found) = lines(&path, 10);
        assert!(found.is_empty());
        file.add(b"one".to_vec()).expect("written");
        file.add(b"two".to_vec()).expect("written");
        drop(file);
        std::fs::write(&path, [&std::fs::read(&path).expect("a file")[..], b"thr"].concat()).expect("torn");
        let (mut file, found) = lines(&path, 10);
        assert_eq!(found, ["one", "two"]);
        file.add(b"three".to_vec()).expect("written");
        assert_eq!(lines(&path, 10).1, ["one", "two", "three"]);
        // A line too long ends what is read, and is not kept.
        assert_eq!(lines(&path, 3).1, ["one", "two"]);
        assert_eq!(std::fs::read(&path).expect("a file"), b"one\ntwo\n");
    }

    #[test]
    fn a_link_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("own"), "precious").expect("a file");
        std::os::unix::fs::symlink("own", dir.path().join("lines")).expect("a link");
        assert!(LinesFile::open(&dir.path().join("lines"), 10, |_| ()).is_err());
        assert_eq!(std::fs::read(dir.path().join("own")).expect("a file"), b"precious");
    }
}
