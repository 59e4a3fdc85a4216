//! A folder of ours beside a destination, `<dst><mark><id>`, with a lock against a second run.

use super::publish::check_folder;
use super::write::with_suffix;
use super::{create_dir, io_error, parent, remove_all, sync_dir};
use crate::{Error, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The lock's name. It is held (flock) while a run lasts; the system releases it when the process dies.
const LOCK: &str = "lock";

/// A locked folder. Dropping it releases the lock and keeps what it holds, so that a later run goes on from it; an empty one
/// is removed.
#[derive(Debug)]
pub struct LockedFolder {
    path: PathBuf,
    /// Its open file description holds the lock.
    _lock: File,
}

impl LockedFolder {
    /// Opens or creates `<dst><mark><id>` and locks it. The destination's missing parents are created. A second run on the
    /// same folder is refused ([`is_held`]), as is a link where the folder or its lock should be. The id is letters,
    /// digits, `-` and `_`.
    pub fn open(dst: &Path, mark: &str, id: &str) -> Result<Self> {
        let plain = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if !plain || dst.file_name().is_none() {
            return Err(io_error("naming a folder beside", dst, Errno::INVAL));
        }
        let path = with_suffix(dst, &format!("{mark}{id}"));
        create_dir(parent(&path))?;
        let lock = lock(&path)?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What lies in the folder beside the lock.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = super::list(&self.path)?;
        names.retain(|name| name != LOCK);
        Ok(names)
    }

    /// Removes the folder with everything in it: `first` first, which must not outlive the rest, and the lock last.
    pub fn discard(self, first: &str) -> Result<()> {
        remove_all(&self.path.join(first))?;
        sync_dir(&self.path)?;
        for entry in std::fs::read_dir(&self.path).map_err(|e| io_error("removing", &self.path, e))? {
            let entry = entry.map_err(|e| io_error("removing", &self.path, e))?;
            if entry.file_name() != LOCK {
                remove_all(&entry.path())?;
            }
        }
        remove_all(&self.path.join(LOCK))?;
        match std::fs::remove_dir(&self.path) {
            // Another run has made its own lock in the meantime, or has already discarded the folder after that.
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {}
            other => other.map_err(|e| io_error("removing", &self.path, e))?,
        }
        sync_dir(parent(&self.path))
    }
}

impl Drop for LockedFolder {
    fn drop(&mut self) {
        if self.names().is_ok_and(|names| names.is_empty()) {
            // What fails here costs no more than an empty folder.
            let _ = remove_all(&self.path.join(LOCK));
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// All `<dst><mark><id>` by id, sorted. An unreadable parent has none.
pub fn marked_beside(dst: &Path, mark: &str) -> Vec<(String, PathBuf)> {
    let Some(name) = dst.file_name() else { return Vec::new() };
    let prefix = [name.as_encoded_bytes(), mark.as_bytes()].concat();
    let Ok(entries) = std::fs::read_dir(parent(dst)) else { return Vec::new() };
    let found = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let id = String::from_utf8_lossy(name.as_encoded_bytes().strip_prefix(&prefix[..])?).into_owned();
        Some((id, parent(dst).join(name)))
    });
    let mut found: Vec<_> = found.collect();
    found.sort();
    found
}

/// Whether [`LockedFolder::open`] failed because another run holds the folder.
pub fn is_held(error: &Error) -> bool {
    matches!(error, Error::Io { op: LOCKING, source, .. } if source.kind() == io::ErrorKind::WouldBlock)
}

const LOCKING: &str = "locking";

/// Creates one folder, or checks that it is one and no link.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => sync_dir(parent(path)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => check_folder(path),
        Err(e) => Err(io_error("creating", path, e)),
    }
}

/// Opens or creates a regular file for reading and writing, never through a link.
pub(super) fn open_inside(path: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o666)).map_err(|e| io_error("opening", path, e))?;
    let file = File::from(fd);
    let meta = file.metadata().map_err(|e| io_error("opening", path, e))?;
    super::check_regular(path, &meta)?;
    Ok(file)
}

/// Makes the folder and takes its lock.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    for _ in 0..10 {
        make_folder(folder)?;
        let file = match open_inside(&path) {
            // The run that held the folder has just discarded it.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(io_error(LOCKING, &path, held(folder))),
            Err(e) => return Err(io_error(LOCKING, &path, e)),
        }
        // A run that ended between the two calls has removed the file that is now locked; then another one counts.
        let ours = file.metadata().map_err(|e| io_error(LOCKING, &path, e))?;
        if std::fs::symlink_metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
    Err(io_error(LOCKING, &path, held(folder)))
}

fn held(folder: &Path) -> io::Error {
    let what = format!("another run holds `{}`", folder.display());
    io::Error::new(io::ErrorKind::WouldBlock, what)
}
