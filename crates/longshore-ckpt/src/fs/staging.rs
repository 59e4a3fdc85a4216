//! A folder under construction beside its destination, with a lock against a second run and a journal of what is done.
//!
//! ```text
//! <dst>.partial-<fingerprint>/
//!     lock       held (flock) while a run lasts; the system releases it when the process dies
//!     journal    one JSON value a line, each on the disk before `record` returns
//!     files/     what will be published; NAME.tmp while a file is written, NAME when it is whole
//! ```

use super::locked::{LockedFolder, make_folder, marked_beside, open_inside};
use super::write::with_suffix;
use super::{SeqWriter, io_error, parent, read_small, rename_durable, sync_dir};
use crate::{Error, Result};
use rustix::io::Errno;
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Bytes of journal that are read: far more than a line for each file of any checkpoint.
const JOURNAL_LIMIT: u64 = 256 << 20;

/// What the name of a staging folder adds to the destination's, before the fingerprint.
const MARK: &str = ".partial-";
const JOURNAL: &str = "journal";

/// A locked staging folder. Dropping it releases the lock and keeps the folder, so that a later run goes on from it.
#[derive(Debug)]
pub struct Staging {
    folder: LockedFolder,
    entries: Vec<Value>,
    journal: Mutex<Journal>,
}

/// The journal and the length of its whole lines, in bytes.
#[derive(Debug)]
struct Journal {
    file: File,
    len: u64,
}

impl Staging {
    /// Opens or creates `<dst>.partial-<fingerprint>`, locks it, and reads its journal. The destination's missing parents
    /// are created. A second run on the same folder is refused, as is a link where a folder or file of ours should be.
    /// The fingerprint is letters, digits, `-` and `_`.
    pub fn open(dst: &Path, fingerprint: &str) -> Result<Self> {
        let folder = LockedFolder::open(dst, MARK, fingerprint)?;
        make_folder(&folder.path().join("files"))?;
        let journal_path = folder.path().join(JOURNAL);
        let file = open_inside(&journal_path)?;
        let (entries, len) = read_journal(&journal_path)?;
        sync_dir(folder.path())?;
        Ok(Self { folder, entries, journal: Mutex::new(Journal { file, len }) })
    }

    /// The staging folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder to publish: `<staging>/files`.
    pub fn files(&self) -> PathBuf {
        self.path().join("files")
    }

    /// What earlier runs recorded; what this one records is not added.
    pub fn journal_entries(&self) -> Vec<Value> {
        self.entries.clone()
    }

    /// Appends an entry to the journal and waits until it is on the disk.
    pub fn record(&self, entry: &Value) -> Result<()> {
        let path = self.path().join(JOURNAL);
        let line = format!("{entry}\n");
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, len) = (&journal.file, journal.len);
        // A line that was torn, by a crash or by a full disk, goes before the next one is written.
        file.set_len(len)
            .and_then(|()| file.write_all_at(line.as_bytes(), len))
            .and_then(|()| file.sync_data())
            .map_err(|e| io_error("writing", &path, e))?;
        journal.len = len + line.len() as u64;
        Ok(())
    }

    /// Where the file `name` is written before it is whole. Names are relative, `/` between folders.
    pub fn temp_path(&self, name: &str) -> PathBuf {
        with_suffix(&self.final_path(name), ".tmp")
    }

    /// Where the file `name` lies when it is whole.
    pub fn final_path(&self, name: &str) -> PathBuf {
        self.files().join(name)
    }

    /// Creates the file `name` at its [`Staging::temp_path`] and the folders of its name; what an earlier run left there is
    /// replaced.
    pub fn create_file(&self, name: &str) -> Result<SeqWriter> {
        self.check_name(name)?;
        let mut folder = self.files();
        for part in parent(Path::new(name)).components().filter(|part| *part != Component::CurDir) {
            folder.push(part);
            make_folder(&folder)?;
        }
        SeqWriter::create(&self.temp_path(name))
    }

    /// Gives the written and finished file its final name, durably.
    pub fn commit_file(&self, name: &str) -> Result<()> {
        self.check_name(name)?;
        rename_durable(&self.temp_path(name), &self.final_path(name))
    }

    /// Removes the folder with everything in it: the journal first, which must not outlive its files, and the lock last.
    pub fn discard(self) -> Result<()> {
        self.folder.discard(JOURNAL)
    }

    fn check_name(&self, name: &str) -> Result<()> {
        let path = Path::new(name);
        if !name.is_empty() && path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Ok(());
        }
        Err(io_error("creating", &self.files().join(name), Errno::INVAL))
    }
}

/// The staging folders of other plans or crashed runs beside `dst`: all `<dst>.partial-*`, sorted. An unreadable parent has
/// none.
pub fn stale_stagings(dst: &Path) -> Vec<PathBuf> {
    marked_beside(dst, MARK).into_iter().map(|(_, path)| path).collect()
}

/// The entries of a journal and the length of the lines that hold them. A last line that a crash tore is left out; any other
/// line that is not JSON is [`Error::Malformed`].
fn read_journal(path: &Path) -> Result<(Vec<Value>, u64)> {
    let bytes = read_small(path, JOURNAL_LIMIT)?;
    let (mut entries, mut len) = (Vec::new(), 0);
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let parsed = line.strip_suffix(b"\n").and_then(|text| serde_json::from_slice(text).ok());
        match parsed {
            Some(entry) => entries.push(entry),
            None if len + line.len() == bytes.len() => break,
            None => {
                let what = "expected one JSON value a line".to_owned();
                return Err(Error::Malformed { path: path.to_owned(), offset: len as u64, what });
            }
        }
        len += line.len();
    }
    Ok((entries, len as u64))
}
