//! The only module that opens a path: reading files, writing them durably, staging and publishing a folder.
//!
//! Reading is positioned (`pread`) and needs two operations, length and range, so that another kind of storage can take
//! its place. Writing is "create, write forward, commit". Nothing here knows a format. Reads follow symbolic links (the
//! Hugging Face cache is made of them); writes never do.
//!
//! The writing half lives in `write` (one file), `publish` (a folder over another), `locked` (a folder beside a destination),
//! `lines` (a file that grows) and `staging` (one that is under construction, with its journal).

mod lines;
mod locked;
mod publish;
mod scratch;
mod staging;
mod write;

pub use lines::LinesFile;
pub use locked::{LockedFolder, is_held, marked_beside};
pub use publish::{publish_new, publish_over};
pub use scratch::ScratchFile;
pub use staging::{Staging, stale_stagings};
pub use write::{SeqWriter, copy_small, create_dir, remove_all, rename_durable, sync_dir, write_durable, write_output};

use crate::{Error, Result};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Makes an [`Error::Io`] of what the system said.
fn io_error(op: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
    Error::Io { op, path: path.to_owned(), source: source.into() }
}

/// The folder that holds `path`: `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if p.as_os_str().is_empty() => Path::new("."),
        Some(p) => p,
        None => path,
    }
}

/// Whether something lies at `path`, links followed.
pub fn exists(path: &Path) -> bool {
    path.exists()
}

/// Whether a folder lies at `path`, links followed.
pub fn is_dir(path: &Path) -> bool {
    path.is_dir()
}

/// Whether `path` itself is a symbolic link.
pub fn is_link(path: &Path) -> bool {
    path.is_symlink()
}

/// The whole of a file of at most `max_bytes` bytes. A larger one is [`Error::Malformed`]; no more is allocated than
/// the file holds.
pub fn read_small(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let file = ReadFile::open(path)?;
    let limit = usize::try_from(max_bytes).unwrap_or(usize::MAX);
    let len = usize::try_from(file.len()).ok().filter(|&len| len <= limit).ok_or_else(|| Error::Malformed {
        path: path.to_owned(),
        offset: max_bytes,
        what: format!("expected at most {max_bytes} bytes, found {}", file.len()),
    })?;
    let mut bytes = vec![0; len];
    file.read_exact_at(0, &mut bytes)?;
    Ok(bytes)
}

/// The length in bytes of the regular file at `path`, links followed.
pub fn file_len(path: &Path) -> Result<u64> {
    let meta = std::fs::metadata(path).map_err(|e| io_error("reading the length of", path, e))?;
    check_regular(path, &meta)?;
    Ok(meta.len())
}

/// The names in a folder, sorted. A name that is not UTF-8 is [`Error::Unsupported`].
pub fn list(folder: &Path) -> Result<Vec<String>> {
    let failed = |e| io_error("listing", folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.push(name.into_string().map_err(|name| Error::Unsupported {
            path: folder.to_owned(),
            what: format!("the file name `{}`, which is not UTF-8,", name.display()),
        })?);
    }
    names.sort();
    Ok(names)
}

/// The absolute path with all links resolved; the path must exist.
pub fn canonical(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|e| io_error("resolving", path, e))
}

/// Bytes that this user may still write on the filesystem of `path`, or of its nearest ancestor that exists.
pub fn free_space(path: &Path) -> Result<u64> {
    let mut at = path;
    loop {
        let shown = if at.as_os_str().is_empty() { Path::new(".") } else { at };
        match rustix::fs::statvfs(shown) {
            Ok(stat) => return Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) if at.parent().is_some() => {
                at = at.parent().unwrap_or(at);
            }
            Err(e) => return Err(io_error("reading the free space of", shown, e)),
        }
    }
}

fn check_regular(path: &Path, meta: &Metadata) -> Result<()> {
    if meta.is_file() {
        return Ok(());
    }
    let source = io::Error::new(io::ErrorKind::InvalidInput, "expected a regular file");
    Err(io_error("opening", path, source))
}

/// What tells a file from a later one at the same path: a source whose identity changed has to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Length in bytes.
    pub size: u64,
    /// Last modification, in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Inode number.
    pub inode: u64,
    /// Device number.
    pub device: u64,
}

impl Identity {
    /// The identity of what now lies at `path`, links followed.
    pub fn of(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| io_error("reading the identity of", path, e))?;
        Ok(Self::from_metadata(&meta))
    }

    fn from_metadata(meta: &Metadata) -> Self {
        Self {
            size: meta.len(),
            mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            inode: meta.ino(),
            device: meta.dev(),
        }
    }
}

/// A regular file open for positioned reads, from any number of threads.
#[derive(Debug)]
pub struct ReadFile {
    file: File,
    path: PathBuf,
    identity: Identity,
}

impl ReadFile {
    /// Opens a regular file, links followed. Anything else is refused, and a FIFO without a writer does not hang.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| io_error("opening", path, e))?;
        let file = File::from(fd);
        let meta = file.metadata().map_err(|e| io_error("opening", path, e))?;
        check_regular(path, &meta)?;
        Ok(Self { file, path: path.to_owned(), identity: Identity::from_metadata(&meta) })
    }

    /// Fills `buffer` with the bytes from `offset` on. A range that ends after the file is an `UnexpectedEof` error.
    pub fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(self.ends_before(offset, buffer.len()));
        }
        match self.file.read_exact_at(buffer, offset) {
            // The file was truncated since it was opened.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(self.ends_before(offset, buffer.len())),
            other => other.map_err(|e| io_error("reading", &self.path, e)),
        }
    }

    /// Length in bytes when the file was opened.
    #[expect(clippy::len_without_is_empty, reason = "a length in bytes, not a collection")]
    pub fn len(&self) -> u64 {
        self.identity.size
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identity when the file was opened; [`Identity::of`] the path tells whether another one lies there now.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Tells the system that the file will be read front to back. A hint: failure is not reported.
    pub fn advise_sequential(&self) {
        advise(&self.file, 0, 0, rustix::fs::Advice::Sequential);
    }

    /// Tells the system that `len` bytes from `offset` (0: to the end) will not be read again. A hint: failure is not
    /// reported.
    pub fn drop_cache(&self, offset: u64, len: u64) {
        advise(&self.file, offset, len, rustix::fs::Advice::DontNeed);
    }

    fn ends_before(&self, offset: u64, len: usize) -> Error {
        let what = format!("expected {len} bytes at {offset}, but the file ends before");
        io_error("reading", &self.path, io::Error::new(io::ErrorKind::UnexpectedEof, what))
    }
}

/// `posix_fadvise`; `len` 0 reaches to the end of the file.
fn advise(file: &File, offset: u64, len: u64, advice: rustix::fs::Advice) {
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), advice);
}

#[cfg(test)]
mod tests;
