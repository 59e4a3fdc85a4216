//! The file `.metadata`: the pickled table of what a checkpoint holds and where.
//!
//! Reading is tolerant, as other writers add attributes and classes: only what is needed is looked at, and that is
//! checked. Reference: torch 2.11 `torch/distributed/checkpoint/metadata.py` and `filesystem.py`.

use super::item::numbers;
use super::pickle::{Pickle, View, Writer};
use crate::error::ParseError;
use crate::tensor::{Dtype, Rect, element_count};
use std::collections::{BTreeMap, HashMap};

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The data files, as named in the table: relative to its folder.
    pub paths: Vec<String>,
    /// Tensors by key.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// Objects by key (`KEY/shard_o_n`).
    pub objects: BTreeMap<String, StoredAt>,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Element type. Informational: the items say what is stored.
    pub dtype: Dtype,
    /// Global shape, in elements.
    pub shape: Vec<u64>,
    /// The stored pieces, in the order of the table.
    pub chunks: Vec<ChunkEntry>,
}

/// A stored piece of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Which elements; inside the shape.
    pub rect: Rect,
    /// The item.
    pub stored: StoredAt,
}

/// The place of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredAt {
    /// Index into [`Metadata::paths`].
    pub path: u32,
    /// First byte, from the file's start.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Metadata {
    /// The index of a data file, added if new.
    pub fn add_path(&mut self, path: &str) -> u32 {
        let known = self.paths.iter().position(|p| p == path);
        let index = known.unwrap_or_else(|| {
            self.paths.push(path.to_owned());
            self.paths.len() - 1
        });
        index as u32
    }

    /// Adds an object that lies in file `path` at `offset`, `length` bytes long.
    pub fn add_object(&mut self, key: &str, path: u32, offset: u64, length: u64) {
        self.objects.insert(key.to_owned(), StoredAt { path, offset, length });
    }

    /// Adds the piece `rect` of a tensor of `shape`, whose item lies in file `path` at `offset`, `length` bytes long.
    #[expect(clippy::too_many_arguments, reason = "one row of the table")]
    pub fn add_chunk(
        &mut self,
        key: &str,
        dtype: Dtype,
        shape: &[u64],
        rect: Rect,
        path: u32,
        offset: u64,
        length: u64,
    ) {
        if !self.tensors.contains_key(key) {
            self.tensors.insert(key.to_owned(), TensorEntry { dtype, shape: shape.to_vec(), chunks: Vec::new() });
        }
        if let Some(entry) = self.tensors.get_mut(key) {
            entry.chunks.push(ChunkEntry { rect, stored: StoredAt { path, offset, length } });
        }
    }
}

/// Bytes of a key or path. Rows can share one of megabytes, which would be hashed and compared for each.
const MAX_NAME: usize = 4096;

/// Attributes of an object of the table; torch's classes have 6 at most.
const MAX_ATTRIBUTES: usize = 64;

fn fail<T>(what: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError::new(0u64, what))
}

/// Parses the bytes of a `.metadata` file. Every chunk lies inside its tensor and has a place; whether the chunks cover
/// the tensor is not checked here.
pub fn parse(bytes: &[u8]) -> Result<Metadata, ParseError> {
    let pickle = Pickle::parse(bytes)?;
    let root = pickle.root();
    let table = |name: &str| attr(root, name).and_then(View::entries);
    let (Some(entries), Some(storage)) = (table("state_dict_metadata"), table("storage_data")) else {
        return fail(format!("expected an object with state_dict_metadata and storage_data, found {}", root.kind()));
    };
    let mut out = Metadata::default();
    let places = places(storage, &mut out.paths)?;
    for (key, value) in entries {
        let Some(key) = key.as_str() else { return fail(format!("a key is {}, expected a string", key.kind())) };
        if out.objects.contains_key(key) || out.tensors.contains_key(key) {
            return fail(format!("`{key}` is there twice"));
        }
        let stored = &places[places.partition_point(|p| p.key < key)..places.partition_point(|p| p.key <= key)];
        if value.class_parts().is_some_and(|(_, name)| name == "BytesStorageMetadata") {
            let Some(place) = stored.last() else { return fail(format!("`{key}` has no place in storage_data")) };
            out.objects.insert(key.to_owned(), place.stored);
        } else {
            let entry = tensor(value, stored).or_else(|what| fail(format!("`{key}`: {what}")))?;
            out.tensors.insert(key.to_owned(), entry);
        }
    }
    Ok(out)
}

/// A row of `storage_data`.
struct Place<'a> {
    key: &'a str,
    /// A `torch.Size`; objects have none.
    offset: Option<View<'a>>,
    stored: StoredAt,
}

/// The rows of `storage_data` sorted by key, those of one key in the order of the table.
fn places<'a>(
    rows: impl ExactSizeIterator<Item = (View<'a>, View<'a>)>,
    paths: &mut Vec<String>,
) -> Result<Vec<Place<'a>>, ParseError> {
    let mut out = Vec::with_capacity(rows.len());
    let mut known = HashMap::new();
    for (index, info) in rows {
        let Some(key) = attr(index, "fqn").and_then(View::as_str) else {
            return fail(format!("a row of storage_data has {} without a string fqn", index.kind()));
        };
        let number = |name: &str| attr(info, name).and_then(View::as_u64);
        let path = attr(info, "relative_path").and_then(View::as_str);
        let (Some(path), Some(offset), Some(length)) = (path, number("offset"), number("length")) else {
            return fail(format!("`{key}`: expected a relative_path, an offset and a length"));
        };
        if let Some(long) = [key, path].into_iter().find(|name| name.len() > MAX_NAME) {
            return fail(format!("a name of {} bytes, expected at most {MAX_NAME}", long.len()));
        }
        if offset.checked_add(length).is_none() {
            return fail(format!("`{key}`: {length} bytes at {offset} overflow"));
        }
        if let Some(transforms) = attr(info, "transform_descriptors")
            && !transforms.is_none()
            && transforms.items().is_none_or(|items| items.len() > 0)
        {
            return fail(format!("`{key}`: stored through a transform, which is not supported"));
        }
        let path = *known.entry(path).or_insert_with(|| {
            paths.push(path.to_owned());
            paths.len() as u32 - 1
        });
        let at = attr(index, "offset").filter(|v| !v.is_none());
        out.push(Place { key, offset: at, stored: StoredAt { path, offset, length } });
    }
    out.sort_by_key(|place| place.key);
    Ok(out)
}

fn tensor(value: View<'_>, places: &[Place<'_>]) -> Result<TensorEntry, String> {
    let need = |name: &str| attr(value, name).ok_or_else(|| format!("{} has no {name}", class(value)));
    let (properties, size, chunks) = (need("properties")?, need("size")?, need("chunks")?);
    let dtype = dtype(properties)?;
    let shape = numbers(size).ok_or("its size is not made of numbers from 0")?;
    if element_count(&shape).and_then(|n| n.checked_mul(dtype.size())).is_none() {
        return Err(format!("the shape {shape:?} overflows"));
    }
    let rows = chunks.items().ok_or("its chunks are no list")?;
    if rows.len() > places.len() {
        return Err(format!("it has {} chunks, but {} places in storage_data", rows.len(), places.len()));
    }
    let mut stored = HashMap::with_capacity(places.len());
    for place in places {
        let offset = place.offset.and_then(numbers).ok_or("its place in storage_data has no offset")?;
        stored.insert(offset, place.stored);
    }
    let mut out = Vec::with_capacity(rows.len());
    for row in rows {
        let numbers = |name: &str| attr(row, name).and_then(numbers);
        let (Some(offsets), Some(sizes)) = (numbers("offsets"), numbers("sizes")) else {
            return Err("a chunk has no offsets and sizes from 0".into());
        };
        let rect = Rect { offsets, sizes };
        if !rect.fits(&shape) {
            return Err(format!("the chunk at {:?} of {:?} lies outside {shape:?}", rect.offsets, rect.sizes));
        }
        let Some(&stored) = stored.get(&rect.offsets) else {
            return Err(format!("the chunk at {:?} has no place in storage_data", rect.offsets));
        };
        out.push(ChunkEntry { rect, stored });
    }
    Ok(TensorEntry { dtype, shape, chunks: out })
}

/// An attribute of an object that has a sane number of them: many rows may share one state, which is searched each time.
fn attr<'a>(view: View<'a>, name: &str) -> Option<View<'a>> {
    if view.attr_count() > MAX_ATTRIBUTES {
        return None;
    }
    view.attr(name)
}

fn class(view: View<'_>) -> String {
    view.class().map_or_else(|| view.kind().to_owned(), |class| format!("a `{class}`"))
}

/// The dtype of `TensorProperties`, whose state is a tuple that begins with it.
fn dtype(properties: View<'_>) -> Result<Dtype, String> {
    let state = properties.state().ok_or("its properties have no state")?;
    let dtype = attr(properties, "dtype").or_else(|| state.items()?.next()).ok_or("its properties have no dtype")?;
    let name = dtype.class_parts().filter(|(module, _)| *module == "torch").map(|(_, name)| name);
    let name = name.ok_or_else(|| format!("its dtype is {}", class(dtype)))?;
    Dtype::from_torch_name(name).ok_or_else(|| format!("its dtype `torch.{name}` is not supported"))
}

const MODULE: &str = "torch.distributed.checkpoint.metadata";
const FILESYSTEM: &str = "torch.distributed.checkpoint.filesystem";

/// The bytes of a `.metadata` file. Equal tables give equal bytes.
pub fn write(metadata: &Metadata) -> Vec<u8> {
    let mut w = Writer::new();
    w.new_object(MODULE, "Metadata");
    w.raw(b"}(");
    w.str("state_dict_metadata");
    w.raw(b"}(");
    for (key, entry) in &metadata.tensors {
        w.shared_str(key);
        write_tensor(&mut w, entry);
    }
    for key in metadata.objects.keys() {
        w.shared_str(key);
        w.new_object(MODULE, "BytesStorageMetadata");
        w.raw(b"}b");
    }
    w.raw(b"u");
    w.str("planner_data");
    w.none();
    w.str("storage_data");
    w.raw(b"}(");
    for (key, entry) in &metadata.tensors {
        for chunk in &entry.chunks {
            write_place(&mut w, key, Some(&chunk.rect.offsets), chunk.stored, &metadata.paths);
        }
    }
    for (key, stored) in &metadata.objects {
        write_place(&mut w, key, None, *stored, &metadata.paths);
    }
    w.raw(b"u");
    w.str("storage_meta");
    w.none();
    w.str("version");
    w.str("1.0.0");
    w.raw(b"ub");
    w.finish()
}

fn write_tensor(w: &mut Writer, entry: &TensorEntry) {
    w.new_object(MODULE, "TensorStorageMetadata");
    w.raw(b"}(");
    w.shared_str("properties");
    write_properties(w, entry.dtype);
    w.shared_str("size");
    write_size(w, &entry.shape);
    w.shared_str("chunks");
    w.raw(b"]");
    if !entry.chunks.is_empty() {
        w.mark();
        for chunk in &entry.chunks {
            w.new_object(MODULE, "ChunkStorageMetadata");
            w.raw(b"}(");
            w.shared_str("offsets");
            write_size(w, &chunk.rect.offsets);
            w.shared_str("sizes");
            write_size(w, &chunk.rect.sizes);
            w.raw(b"ub");
        }
        w.raw(b"e");
    }
    w.raw(b"ub");
}

/// dtype, layout, `requires_grad`, memory format, `pin_memory`.
fn write_properties(w: &mut Writer, dtype: Dtype) {
    w.new_object(MODULE, "TensorProperties");
    w.mark();
    w.global("torch", dtype.torch_name());
    w.shared(b"layout", |w| {
        w.global("torch.serialization", "_get_layout");
        w.mark();
        w.str("torch.strided");
        w.tuple();
        w.raw(b"R");
    });
    w.bool(false);
    w.shared(b"memory format", |w| {
        w.global(MODULE, "_MEM_FORMAT_ENCODING");
        w.mark();
        w.uint(0);
        w.tuple();
        w.raw(b"R");
    });
    w.bool(false);
    w.tuple();
    w.raw(b"b");
}

/// A `torch.Size`, shared among equal ones, which are immutable.
fn write_size(w: &mut Writer, size: &[u64]) {
    let mut key = b"size".to_vec();
    for n in size {
        key.extend_from_slice(&n.to_le_bytes());
    }
    w.shared(&key, |w| {
        w.global("torch", "Size");
        w.mark();
        w.mark();
        for &n in size {
            w.uint(n);
        }
        w.tuple();
        w.tuple();
        w.raw(b"R");
    });
}

fn write_place(w: &mut Writer, key: &str, offset: Option<&[u64]>, stored: StoredAt, paths: &[String]) {
    w.new_object(MODULE, "MetadataIndex");
    w.raw(b"}(");
    w.shared_str("fqn");
    w.shared_str(key);
    if let Some(offset) = offset {
        w.shared_str("offset");
        write_size(w, offset);
    }
    w.shared_str("index");
    w.none();
    w.raw(b"ub");
    w.new_object(FILESYSTEM, "_StorageInfo");
    w.raw(b"}(");
    w.shared_str("relative_path");
    w.shared_str(paths.get(stored.path as usize).map_or("", String::as_str));
    w.shared_str("offset");
    w.uint(stored.offset);
    w.shared_str("length");
    w.uint(stored.length);
    w.raw(b"ub");
}

#[cfg(test)]
mod tests;
