//! Putting a finished folder in its place with one rename, so that a reader sees nothing of it or all of it.

use super::write::with_suffix;
use super::{io_error, parent, sync_dir};
use crate::{Error, Result};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// Moves the folder `from` to `to`, which must be absent or an empty folder: one atomic rename. A `to` that holds
/// something, a file or a link is refused and stays as it is. Both must lie on one filesystem.
pub fn publish_new(from: &Path, to: &Path) -> Result<()> {
    check_folder(from)?;
    match check_folder(to) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    sync_dir(from)?;
    std::fs::rename(from, to).map_err(|e| io_error("publishing to", to, e))?;
    sync_parents(from, to)
}

/// Puts the folder `from` in the place of the folder `to`, atomically where the filesystem can exchange names
/// (`RENAME_EXCHANGE`). Returns where the old folder now lies; the caller removes it last.
///
/// Elsewhere `to` is first renamed to `<to>.replaced-<n>`, and a crash between the two renames leaves the old folder
/// under that name and the new one at `from`.
pub fn publish_over(from: &Path, to: &Path) -> Result<PathBuf> {
    check_folder(from)?;
    check_folder(to)?;
    sync_dir(from)?;
    let old = match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
        Ok(()) => from.to_owned(),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => replace(from, to)?,
        Err(e) => return Err(io_error("publishing to", to, e)),
    };
    sync_parents(from, to)?;
    Ok(old)
}

/// [`publish_over`] in two renames, for filesystems that cannot exchange names. Returns where the old folder lies.
pub(super) fn replace(from: &Path, to: &Path) -> Result<PathBuf> {
    let aside = (0..1000)
        .map(|n| with_suffix(to, &format!(".replaced-{n}")))
        .find(|path| path.symlink_metadata().is_err())
        .ok_or_else(|| io_error("publishing to", to, Errno::EXIST))?;
    std::fs::rename(to, &aside).map_err(|e| io_error("moving aside", to, e))?;
    if let Err(e) = std::fs::rename(from, to) {
        // The old folder goes back; where even that fails, the first error is the one to report.
        let _ = std::fs::rename(&aside, to);
        return Err(io_error("publishing to", to, e));
    }
    Ok(aside)
}

/// Refuses anything but a folder; a link to one counts as something else.
pub(super) fn check_folder(path: &Path) -> Result<()> {
    let meta = std::fs::symlink_metadata(path).map_err(|e| io_error("opening", path, e))?;
    if meta.is_dir() {
        return Ok(());
    }
    let what = if meta.is_symlink() { "expected a folder, found a symbolic link" } else { "expected a folder" };
    Err(io_error("opening", path, io::Error::new(io::ErrorKind::NotADirectory, what)))
}

fn sync_parents(from: &Path, to: &Path) -> Result<()> {
    sync_dir(parent(to))?;
    if parent(from) != parent(to) {
        sync_dir(parent(from))?;
    }
    Ok(())
}
