//! A [`Sweep`](crate::sweep::Sweep) that outlives its process: after a layer, its residual stream and what the caller found
//! so far go to a folder, from which the same sweep goes on with the same bits.
//!
//! ```text
//! <beside><mark><key>/
//!     lock         held while a run lasts
//!     layers-12    the caller's records of the layers that were finished since the save before, a JSON value a line
//!     stream-12    the residual stream after 12 layers, as the sweep stores it
//!     state.json   which of these count, with their lengths and checksums: written last, so it names whole files only
//! ```
//!
//! The key tells apart whatever gives another result ([`key`]). What is damaged, or of another key, is refused and removed,
//! and the sweep begins anew. Saving costs the disk twice the residual stream; memory holds one batch of it.

use crate::activations::Activations;
use crate::error::{Error, Result};
use crc32fast::Hasher;
use longshore_ckpt::fs::{self, Identity, LockedFolder, ReadFile, SeqWriter};
use longshore_convert::fingerprint::Fingerprint;
use longshore_convert::source::Source;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The version of the files.
const SCHEMA: u64 = 1;
const STATE: &str = "state.json";
const LAYERS: &str = "layers-";
const STREAM: &str = "stream-";
const TEMP: &str = ".tmp";
/// Bytes of `state.json` that are read: a hundred a layer are needed.
const STATE_LIMIT: u64 = 1 << 20;
/// Bytes of one file of records: several times those of the largest layers that are known.
const RECORDS_LIMIT: u64 = 512 << 20;
/// Records in memory beyond which a save is due, whatever the time, in bytes.
const PENDING_LIMIT: usize = 64 << 20;
/// Bytes that are read at a time.
const BAND: usize = 1 << 20;

/// Where a pass is saved.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// What the folder lies beside.
    pub beside: &'a Path,
    /// What its name adds to that, before the key, e.g. `.calibration-`.
    pub mark: &'a str,
}

/// Identifies a pass by everything that decides its result: the program's version, the checkpoint (its config, tensors, and
/// the lengths and times of its files, wherever they lie), the prompts, and whatever the caller adds. Sixteen digits.
pub fn key(source: &Source, prompts: &[Vec<u32>], options: &impl Serialize) -> Result<String> {
    let mut hash = Fingerprint::default();
    hash.add(env!("CARGO_PKG_VERSION").as_bytes());
    hash.add_json(&source.model.config);
    let catalog = &source.catalog;
    for (name, info) in &catalog.tensors {
        hash.add_json(&(name, info.dtype.torch_name(), &info.shape));
    }
    for (index, file) in catalog.files.iter().enumerate() {
        let identity = Identity::of(&catalog.path(index as u32))?;
        hash.add_json(&(&file.name, identity.size, identity.mtime_ns as i64));
    }
    for ids in prompts {
        hash.add_json(ids);
    }
    hash.add_json(options);
    Ok(hash.text())
}

/// What came of an earlier process.
#[derive(Debug, PartialEq)]
pub enum Resumed<T> {
    /// There is none.
    Nothing,
    /// Its state cannot be trusted, for this reason; it is removed.
    Refused(String),
    /// The records of the layers that need not be computed again, from the first on.
    Layers(Vec<T>),
}

/// What came of a layer's record.
#[derive(Debug)]
pub enum Saving {
    /// It is not on the disk yet, or will not be after a failure.
    Later,
    /// Everything up to it is on the disk.
    Saved,
    /// The disk takes no more: the pass goes on and is not saved any more. What was saved before still counts.
    Failed(Error),
}

/// The folder of a pass, locked.
#[derive(Debug)]
pub struct SavedPass {
    folder: LockedFolder,
    key: String,
    every: Duration,
    /// What counts on the disk.
    state: Option<State>,
    /// Finished layers, those included that are not on the disk.
    layers: usize,
    /// The records of the latter.
    pending: Vec<u8>,
    /// When the last save ended.
    since: Instant,
    has_failed: bool,
}

/// The content of `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    schema: u64,
    key: String,
    /// Finished layers.
    layers: usize,
    stream: Part,
    records: Vec<Part>,
}

/// A file, named after the layers that were finished when it was written.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    layers: usize,
    size: u64,
    crc32: u32,
}

impl SavedPass {
    /// Opens or creates the folder of the pass `key`, which is saved after every layer that ends `every` after the last save
    /// or later. Folders of other keys at the same place, which nobody will go on with, are removed; those are returned
    /// that held a state. A run that holds any of them is an error ([`fs::is_held`]).
    pub fn open(place: Place<'_>, key: &str, every: Duration) -> Result<(Self, Vec<PathBuf>)> {
        let folder = LockedFolder::open(place.beside, place.mark, key)?;
        let removed = match remove_others(place, Some(key)) {
            Ok(removed) => removed,
            Err(error) => {
                if folder.names()?.is_empty() {
                    folder.discard(STATE)?;
                }
                return Err(error);
            }
        };
        let saved = Self {
            folder,
            key: key.to_owned(),
            every,
            state: None,
            layers: 0,
            pending: Vec::new(),
            since: Instant::now(),
            has_failed: false,
        };
        Ok((saved, removed))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes the folder: its result is safe elsewhere.
    pub fn discard(self) -> Result<()> {
        Ok(self.folder.discard(STATE)?)
    }

    /// Puts the saved residual stream into `activations`, which must hold those of the sweep's beginning, and gives back the
    /// records. Nothing is changed where any of it is refused.
    pub(crate) fn load<T: DeserializeOwned>(
        &mut self,
        n_layers: usize,
        activations: &mut Activations,
        check: impl Fn(usize, &T) -> bool,
    ) -> Result<Resumed<T>> {
        let (state, resumed) = if fs::exists(&self.path().join(STATE)) {
            match self.read(n_layers, activations, check) {
                Ok((state, records)) => {
                    self.read_stream(&state, activations)?;
                    (Some(state), Resumed::Layers(records))
                }
                Err(why) => (None, Resumed::Refused(why)),
            }
        } else {
            (None, Resumed::Nothing)
        };
        self.layers = state.as_ref().map_or(0, |state| state.layers);
        self.state = state;
        self.remove_leftovers();
        Ok(resumed)
    }

    /// The state and the records, after checking every file; or what is wrong.
    fn read<T: DeserializeOwned>(
        &self,
        n_layers: usize,
        activations: &Activations,
        check: impl Fn(usize, &T) -> bool,
    ) -> std::result::Result<(State, Vec<T>), String> {
        let damaged = |name: &str| format!("`{name}` is damaged");
        let bytes = fs::read_small(&self.path().join(STATE), STATE_LIMIT).map_err(|e| e.to_string())?;
        let state: State = serde_json::from_slice(&bytes).map_err(|_| damaged(STATE))?;
        if state.schema != SCHEMA || state.key != self.key {
            return Err(format!("`{STATE}` is of another version or another run"));
        }
        let ends = [Some(state.stream.layers), state.records.last().map(|part| part.layers)];
        if state.layers > n_layers || state.stream.size != stream_size(activations) || ends != [Some(state.layers); 2] {
            return Err(damaged(STATE));
        }
        let stream = name(STREAM, state.layers);
        if !self.is_whole(&stream, state.stream).unwrap_or(false) {
            return Err(damaged(&stream));
        }
        let mut records: Vec<T> = Vec::new();
        for &part in &state.records {
            let name = name(LAYERS, part.layers);
            let bytes = fs::read_small(&self.path().join(&name), part.size.min(RECORDS_LIMIT))
                .ok()
                .filter(|bytes| bytes.len() as u64 == part.size && crc32fast::hash(bytes) == part.crc32)
                .ok_or_else(|| damaged(&name))?;
            for line in bytes.split_inclusive(|&b| b == b'\n') {
                let record = serde_json::from_slice(line).ok().filter(|record| check(records.len(), record));
                records.push(record.ok_or_else(|| damaged(&name))?);
            }
            if records.len() != part.layers {
                return Err(damaged(&name));
            }
        }
        Ok((state, records))
    }

    /// Whether a file has its length and its checksum.
    fn is_whole(&self, name: &str, part: Part) -> Result<bool> {
        let file = ReadFile::open(&self.path().join(name))?;
        if file.len() != part.size {
            return Ok(false);
        }
        let (mut band, mut hasher, mut at) = (vec![0; BAND], Hasher::new(), 0);
        while at < part.size {
            let band = &mut band[..(part.size - at).min(BAND as u64) as usize];
            file.read_exact_at(at, band)?;
            hasher.update(band);
            at += band.len() as u64;
        }
        Ok(hasher.finalize() == part.crc32)
    }

    /// Batch by batch.
    fn read_stream(&self, state: &State, activations: &mut Activations) -> Result<()> {
        let file = ReadFile::open(&self.path().join(name(STREAM, state.layers)))?;
        let mut offset = 0;
        for at in 0..activations.len() {
            let mut bytes = vec![0; activations.stored_size(at) as usize];
            file.read_exact_at(offset, &mut bytes)?;
            activations.put_stored(at, &bytes)?;
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    /// Takes the record of the next layer, and saves if it is time; `activations` are those after it.
    pub(crate) fn add<T: Serialize>(&mut self, record: &T, activations: &Activations) -> Saving {
        if self.has_failed {
            return Saving::Later;
        }
        match self.try_add(record, activations) {
            Ok(false) => Saving::Later,
            Ok(true) => Saving::Saved,
            Err(error) => {
                (self.has_failed, self.pending) = (true, Vec::new());
                self.remove_leftovers();
                Saving::Failed(error)
            }
        }
    }

    fn try_add<T: Serialize>(&mut self, record: &T, activations: &Activations) -> Result<bool> {
        let not_saved = |what: String| Error::NotSaved { path: self.folder.path().to_owned(), what };
        serde_json::to_writer(&mut self.pending, record).map_err(|error| not_saved(error.to_string()))?;
        self.pending.push(b'\n');
        self.layers += 1;
        if self.since.elapsed() < self.every && self.pending.len() < PENDING_LIMIT {
            return Ok(false);
        }
        if self.pending.len() as u64 > RECORDS_LIMIT {
            return Err(not_saved(format!("{} bytes of statistics are too many", self.pending.len())));
        }
        let mut writer = PartWriter::create(self.path(), &name(LAYERS, self.layers))?;
        writer.write(&self.pending)?;
        let records = writer.finish(self.layers)?;
        let mut writer = PartWriter::create(self.path(), &name(STREAM, self.layers))?;
        writer.file.preallocate(stream_size(activations))?;
        for at in 0..activations.len() {
            writer.write(&activations.stored(at)?)?;
        }
        let stream = writer.finish(self.layers)?;
        let mut state =
            State { schema: SCHEMA, key: self.key.clone(), layers: self.layers, stream, records: Vec::new() };
        state.records.extend(self.state.iter().flat_map(|before| &before.records));
        state.records.push(records);
        fs::write_durable(&self.path().join(STATE), &serde_json::to_vec(&state).unwrap_or_default())?;
        self.state = Some(state);
        self.pending.clear();
        self.remove_leftovers();
        self.since = Instant::now();
        Ok(true)
    }

    /// Removes what the state does not name.
    fn remove_leftovers(&self) {
        let mut wanted: Vec<String> = Vec::new();
        if let Some(state) = &self.state {
            wanted.extend([STATE.to_owned(), name(STREAM, state.layers)]);
            wanted.extend(state.records.iter().map(|part| name(LAYERS, part.layers)));
        }
        for name in self.folder.names().unwrap_or_default() {
            if !wanted.contains(&name) {
                // What cannot be removed now goes with the folder; it is not read, or replaced by the next save.
                let _ = fs::remove_all(&self.path().join(name));
            }
        }
    }
}

/// Removes the saved passes at a place, all but that of `key`. Gives back the folders that held a state.
pub fn remove_others(place: Place<'_>, key: Option<&str>) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for (id, path) in fs::marked_beside(place.beside, place.mark) {
        if Some(id.as_str()) == key || !is_ours(&id, &path) {
            continue;
        }
        let had_state = fs::exists(&path.join(STATE));
        LockedFolder::open(place.beside, place.mark, &id)?.discard(STATE)?;
        if had_state {
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Whether a folder is one of a saved pass, by all the names that there are: nothing else may be removed.
fn is_ours(id: &str, path: &Path) -> bool {
    let digits = id.len() == 16 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let numbered = |name: &str, kind| name.strip_prefix(kind).is_some_and(|n: &str| n.parse::<usize>().is_ok());
    let known = |name: &String| {
        let name = name.strip_suffix(TEMP).unwrap_or(name);
        matches!(name, "lock" | STATE) || numbered(name, LAYERS) || numbered(name, STREAM)
    };
    digits && !fs::is_link(path) && fs::list(path).is_ok_and(|names| names.iter().all(known))
}

fn stream_size(activations: &Activations) -> u64 {
    (0..activations.len()).map(|at| activations.stored_size(at)).sum()
}

fn name(kind: &str, layers: usize) -> String {
    format!("{kind}{layers}")
}

/// A file that gets its name once it is whole.
struct PartWriter {
    file: SeqWriter,
    path: PathBuf,
    hasher: Hasher,
}

impl PartWriter {
    fn create(folder: &Path, name: &str) -> Result<Self> {
        let file = SeqWriter::create(&folder.join(format!("{name}{TEMP}")))?;
        Ok(Self { file, path: folder.join(name), hasher: Hasher::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        Ok(self.file.write(bytes)?)
    }

    fn finish(self, layers: usize) -> Result<Part> {
        let (temp, size) = (self.file.path().to_owned(), self.file.position());
        self.file.finish()?;
        fs::rename_durable(&temp, &self.path)?;
        Ok(Part { layers, size, crc32: self.hasher.finalize() })
    }
}

#[cfg(test)]
mod tests;
