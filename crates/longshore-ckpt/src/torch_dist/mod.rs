//! Megatron-Core distributed checkpoints (`torch_dist`): folder layout, `.metadata`, `.distcp` items, common state.
//!
//! [`metadata`] is the table of what is where; [`item`] is one entry of a data file, a [`zip`] archive around a
//! [`pickle`] and raw elements. [`open`] reads the table and the common state, [`locate_payload`] the ends of one item.
//! Reference: megatron-core 0.12 to main of August 2026, `core/dist_checkpointing`.

pub mod extra_state;
pub(crate) mod folder;
pub mod item;
pub mod metadata;
pub mod pickle;
pub mod zip;

#[cfg(test)]
mod tests;

use crate::catalog::{Catalog, Chunk, DataFile, Extent, Format, TensorInfo};
use crate::error::{Error, ParseError};
use crate::fs::{self, ReadFile};
use crate::other_format::OtherFormat;
use crate::{Dtype, Result};
use extra_state::ExtraState;
pub use folder::inner_folder;
use item::LocateError;
use metadata::{Metadata, StoredAt};
use pickle::Pickle;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The file in the root that names the current inner folder.
pub const TRACKER: &str = "latest_checkpointed_iteration.txt";

/// The file that marks a folder as a distributed checkpoint.
const MARKER: &str = "metadata.json";
/// The table of tensors and objects.
pub(crate) const TABLE: &str = ".metadata";
/// The common state up to megatron-core 0.18.
const COMMON: &str = "common.pt";
/// The common state from megatron-core 0.19.
const COMMON_OBJECT: &str = "common_state/shard_0_1";

/// What NeMo's keys of a model begin with: 2.x, 1.x.
const PREFIXES: [&str; 2] = ["module.", "model."];
/// What keys of training state begin with.
const TRAINING_STATE: [&str; 5] =
    ["optimizer.", "chained_", "opt_param_scheduler", "rng_state", "rerun_state_machine_state"];

/// Four short fields.
const MAX_MARKER: u64 = 1 << 20;
/// About 300 bytes an item at worst, so 850,000 items; a hostile table can take 20 times its size in memory.
pub(crate) const MAX_TABLE: u64 = 256 << 20;
/// Arguments and the groups of an optimizer; the largest known is below 1 MiB.
const MAX_COMMON: u64 = 16 << 20;

/// The bytes of `metadata.json`, in the form that every version of megatron-core accepts.
pub fn metadata_json() -> &'static [u8] {
    br#"{"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}"#
}

/// Whether `path` is the root or the inner folder of a Megatron checkpoint.
pub(crate) fn is_marked(path: &Path) -> bool {
    [MARKER, TRACKER].iter().any(|name| fs::exists(&path.join(name)))
}

/// Opens the checkpoint whose root or inner folder is `path`. Reads the table and the common state and checks that every
/// item lies inside its file; items are not read.
pub fn open(path: &Path) -> Result<Catalog> {
    let folder = inner_folder(path)?;
    check_backend(&folder.join(MARKER))?;
    let table_path = folder.join(TABLE);
    if !fs::exists(&table_path) {
        return Err(Error::NotFound { path: folder, what: format!("there is no `{TABLE}`") });
    }
    let table = metadata::parse(&fs::read_small(&table_path, MAX_TABLE)?).map_err(|e| e.in_file(&table_path, 0))?;
    let (files, indices) = data_files(&folder, &table_path, &table)?;
    let extent = |at: StoredAt| Extent { file: indices[at.path as usize], offset: at.offset, len: at.length };
    let objects: BTreeMap<String, Extent> = table.objects.into_iter().map(|(key, at)| (key, extent(at))).collect();
    let tensors = table.tensors.into_iter().map(|(key, entry)| {
        let chunks = entry.chunks.into_iter().map(|c| Chunk { rect: c.rect, extent: extent(c.stored) }).collect();
        (key, TensorInfo { dtype: entry.dtype, shape: entry.shape, chunks })
    });
    let tensors = tensors.collect();
    let mut catalog =
        Catalog { format: Format::TorchDist, folder, files, tensors, objects, common: None, prefix: None };
    catalog.common = common(&catalog)?;
    take_prefix(&mut catalog);
    Ok(catalog)
}

/// Takes off what NeMo puts before every key. Where a single key of the model lacks it, all keys stay as they are.
fn take_prefix(catalog: &mut Catalog) {
    let mut models = catalog.tensors.keys().filter(|key| !is_training_state(key)).peekable();
    let Some(prefix) = models.peek().and_then(|key| PREFIXES.into_iter().find(|prefix| key.starts_with(prefix))) else {
        return;
    };
    if !models.all(|key| key.starts_with(prefix)) {
        return;
    }
    let short = |key: String| key.strip_prefix(prefix).map(str::to_owned).unwrap_or(key);
    catalog.tensors = std::mem::take(&mut catalog.tensors).into_iter().map(|(key, info)| (short(key), info)).collect();
    catalog.objects = std::mem::take(&mut catalog.objects).into_iter().map(|(key, at)| (short(key), at)).collect();
    catalog.prefix = Some(prefix);
}

/// Whether a key is of training state that no model needs: optimizer, scheduler, RNG, rerun state.
pub fn is_training_state(key: &str) -> bool {
    TRAINING_STATE.iter().any(|prefix| key.starts_with(prefix))
}

fn check_backend(path: &Path) -> Result<()> {
    let bytes = fs::read_small(path, MAX_MARKER)?;
    let malformed = |what: String| Error::Malformed { path: path.to_owned(), offset: 0, what };
    let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    match json.get("sharded_backend").and_then(serde_json::Value::as_str) {
        Some("torch_dist") => Ok(()),
        Some("zarr") => Err(OtherFormat::Zarr.refused(path.parent().unwrap_or(path))),
        Some(other) => {
            Err(Error::Unsupported { path: path.to_owned(), what: format!("the backend `{}`", other.escape_debug()) })
        }
        None => Err(malformed("there is no `sharded_backend`".into())),
    }
}

/// The data files sorted by name, and for each path of the table its index among them. A file that is missing, or
/// shorter than an item in it says, is reported together with all others.
fn data_files(folder: &Path, table_path: &Path, table: &Metadata) -> Result<(Vec<DataFile>, Vec<u32>)> {
    let mut needed = vec![0; table.paths.len()];
    let places = table.tensors.values().flat_map(|t| t.chunks.iter().map(|c| c.stored));
    for at in places.chain(table.objects.values().copied()) {
        let end = &mut needed[at.path as usize];
        *end = at.offset.saturating_add(at.length).max(*end);
    }
    let mut order: Vec<usize> = (0..needed.len()).collect();
    order.sort_by_key(|&i| &table.paths[i]);
    let (mut files, mut indices, mut bad) = (Vec::new(), vec![0; needed.len()], Vec::new());
    for i in order {
        let name = &table.paths[i];
        if !is_plain(name) {
            let what = format!("the data file `{}` is not a plain name inside the folder", name.escape_debug());
            return Err(ParseError::new(0u64, what).in_file(table_path, 0));
        }
        let path = folder.join(name);
        let size = if fs::exists(&path) { Some(fs::file_len(&path)?) } else { None };
        match size {
            None => bad.push(format!("`{name}` is missing")),
            Some(size) if size < needed[i] => bad.push(format!("`{name}` has {size} of at least {} bytes", needed[i])),
            Some(size) => {
                indices[i] = files.len() as u32;
                files.push(DataFile { name: name.clone(), size });
            }
        }
    }
    if bad.is_empty() {
        return Ok((files, indices));
    }
    let what = format!("data files are missing or too short: {}", bad.join(", "));
    Err(Error::NotFound { path: folder.to_owned(), what })
}

/// Whether a name leads nowhere but into the folder.
fn is_plain(name: &str) -> bool {
    !name.contains(['\\', '\0']) && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The common state, wherever this version of megatron-core put it.
fn common(catalog: &Catalog) -> Result<Option<Pickle>> {
    let path = catalog.folder.join(COMMON);
    if fs::exists(&path) {
        let file = ReadFile::open(&path)?;
        let extent = Extent { file: 0, offset: 0, len: file.len() };
        return object_pickle(&file, extent).map(Some);
    }
    let Some(&extent) = catalog.objects.get(COMMON_OBJECT) else { return Ok(None) };
    let path = catalog.path(extent.file);
    let pickle = object_pickle(&ReadFile::open(&path)?, extent)?;
    // The shards of an object are saved as a list.
    let state = pickle.into_single_item();
    let what = format!("expected a list of one item in `{COMMON_OBJECT}`");
    state.map(Some).ok_or(Error::Malformed { path, offset: extent.offset, what })
}

/// The pickle of an object item, at most 64 MiB of it.
pub fn object_pickle(file: &ReadFile, extent: Extent) -> Result<Pickle> {
    let mut read = |offset: u64, buffer: &mut [u8]| read_at(file, extent.offset, offset, buffer);
    item::object_pickle(extent.len, MAX_COMMON, &mut read).map_err(|e| e.in_file(file.path(), extent.offset))
}

/// What the item of an `_extra_state` object holds.
pub fn read_extra_state(file: &ReadFile, extent: Extent) -> Result<ExtraState> {
    let mut read = |offset: u64, buffer: &mut [u8]| read_at(file, extent.offset, offset, buffer);
    extra_state::read(extent.len, &mut read).map_err(|e| e.in_file(file.path(), extent.offset))
}

/// Finds the raw elements of a chunk in its file: their extent, and their CRC-32 where the item has it. An item of
/// another type or shape than the table says is an error.
pub fn locate_payload(file: &ReadFile, info: &TensorInfo, chunk: &Chunk) -> Result<(Extent, Option<u32>)> {
    let Extent { file: index, offset, len } = chunk.extent;
    let mut read = |at: u64, buffer: &mut [u8]| read_at(file, offset, at, buffer);
    let found = item::locate(len, &mut read).and_then(|found| {
        check_item(info.dtype, &chunk.rect.sizes, &found)?;
        Ok(found)
    });
    let found = found.map_err(|e| e.in_file(file.path(), offset))?;
    Ok((Extent { file: index, offset: offset + found.payload_offset, len: found.payload_len }, found.crc32))
}

fn check_item(dtype: Dtype, sizes: &[u64], found: &item::Located) -> std::result::Result<(), LocateError> {
    if found.dtype == dtype && found.sizes == sizes {
        return Ok(());
    }
    let what = format!("expected {dtype} {sizes:?}, found {} {:?}", found.dtype, found.sizes);
    Err(LocateError::Malformed(ParseError::new(0u64, what)))
}

fn read_at(file: &ReadFile, base: u64, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let at = base.checked_add(offset).ok_or(io::ErrorKind::InvalidInput)?;
    file.read_exact_at(at, buffer).map_err(|error| match error {
        Error::Io { source, .. } => source,
        other => io::Error::other(other.to_string()),
    })
}
