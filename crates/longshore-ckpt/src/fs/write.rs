//! Writing one file: front to back, and whole or not at all. Nothing here follows a symbolic link at the written path.

use super::{advise, io_error, parent};
use crate::Result;
use rustix::fs::{Advice, FallocateFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Bytes written between two starts of write-back. Large enough for long extents, small beside the kernel's dirty limits.
const WRITE_BACK: u64 = 16 << 20;

/// A new file that is written front to back by one thread.
///
/// Every 16 MiB it starts write-back of what was written since, so that dirty pages do not pile up until
/// [`SeqWriter::finish`]. rustix has no `sync_file_range`; `posix_fadvise(DONTNEED)` starts the same asynchronous
/// write-back of the range on Linux (`mm/fadvise.c`) and drops those of its pages that are already clean.
#[derive(Debug)]
pub struct SeqWriter {
    file: File,
    path: PathBuf,
    position: u64,
    flushed: u64,
    preallocated: u64,
}

impl SeqWriter {
    /// Creates the file; what lies there (also a link) is removed first, never written through. A folder is refused.
    pub fn create(path: &Path) -> Result<Self> {
        remove_file(path)?;
        let file = File::create_new(path).map_err(|e| io_error("creating", path, e))?;
        Ok(Self { file, path: path.to_owned(), position: 0, flushed: 0, preallocated: 0 })
    }

    /// Reserves space for a final length of `len` bytes. A filesystem that cannot is no error; one that is full is.
    pub fn preallocate(&mut self, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        match rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len)) {
            Ok(()) => self.preallocated = len,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(e) => return Err(io_error("reserving space for", &self.path, e)),
        }
        Ok(())
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| io_error("writing", &self.path, e))?;
        self.position += bytes.len() as u64;
        if self.position - self.flushed >= WRITE_BACK {
            advise(&self.file, self.flushed, self.position - self.flushed, Advice::DontNeed);
            self.flushed = self.position;
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The path it was created at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts what was reserved and not written, and waits until everything is on the disk. Errors of earlier write-back
    /// surface here; after a successful fsync, closing has nothing left to fail.
    pub fn finish(self) -> Result<()> {
        if self.preallocated > self.position {
            self.file.set_len(self.position).map_err(|e| io_error("truncating", &self.path, e))?;
        }
        self.file.sync_all().map_err(|e| io_error("syncing", &self.path, e))
    }
}

/// Writes a small file so that `path` holds the old or the new content at any time: `<path>.tmp`, fsync, rename, fsync of
/// the folder.
pub fn write_durable(path: &Path, bytes: &[u8]) -> Result<()> {
    let tmp = with_suffix(path, ".tmp");
    let mut file = SeqWriter::create(&tmp)?;
    file.write(bytes)?;
    file.finish()?;
    rename_durable(&tmp, path)
}

/// [`write_durable`] for what a user names: a pipe or a device, `/dev/stdout` for one, is written into and not replaced.
pub fn write_output(path: &Path, bytes: &[u8]) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() && !meta.is_dir() => {
            std::fs::write(path, bytes).map_err(|e| io_error("writing", path, e))
        }
        _ => write_durable(path, bytes),
    }
}

/// Copies a file of at most `max_bytes` bytes with [`write_durable`]; links are followed at `from`.
pub fn copy_small(from: &Path, to: &Path, max_bytes: u64) -> Result<()> {
    write_durable(to, &super::read_small(from, max_bytes)?)
}

/// Renames, then syncs both folders.
pub fn rename_durable(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|e| io_error("renaming to", to, e))?;
    sync_dir(parent(to))?;
    if parent(from) != parent(to) {
        sync_dir(parent(from))?;
    }
    Ok(())
}

/// Makes the names in a folder durable. A filesystem that cannot sync a folder is no error.
pub fn sync_dir(folder: &Path) -> Result<()> {
    let file = File::open(folder).map_err(|e| io_error("opening", folder, e))?;
    match file.sync_all() {
        Err(e) if !is_unsupported(&e) => Err(io_error("syncing", folder, e)),
        _ => Ok(()),
    }
}

/// Creates a folder and its missing ancestors, durably. A folder that is already there is no error.
pub fn create_dir(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> =
        folder.ancestors().take_while(|p| !p.as_os_str().is_empty() && !super::exists(p)).collect();
    for path in missing.into_iter().rev() {
        match std::fs::create_dir(path) {
            Ok(()) => sync_dir(parent(path))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(e) => return Err(io_error("creating", path, e)),
        }
    }
    if super::is_dir(folder) {
        return Ok(());
    }
    Err(io_error("creating", folder, Errno::NOTDIR))
}

/// Removes a file, a link (not its target) or a folder with everything in it. Nothing there is no error.
pub fn remove_all(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io_error("removing", path, e)),
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path).map_err(|e| io_error("removing", path, e)),
        Ok(_) => remove_file(path),
    }
}

/// Unlinks a file or link; nothing there is no error.
fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("removing", path, e)),
        _ => Ok(()),
    }
}

/// `path` with `suffix` after its last name; a trailing `/` does not count.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Whether the filesystem lacks the operation. `EINVAL` is what several say of fsync of a folder.
fn is_unsupported(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS))
}
