//! A Hugging Face checkpoint as a catalog: one file, or an index and its shards, which must agree.

use super::{Header, PREFIX_LEN, Refused, TensorEntry, UniqueMap, header_len, json_error, parse};
use crate::catalog::{Catalog, Chunk, DataFile, Extent, Format, TensorInfo};
use crate::fs::{self, ReadFile};
use crate::tensor::Rect;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The file of a checkpoint in one piece.
const SINGLE: &str = "model.safetensors";

/// The index of a checkpoint in shards.
const INDEX: &str = "model.safetensors.index.json";

/// What older checkpoints are kept in.
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Bytes of index that are read: as many as of a header, which says more about each tensor.
const INDEX_LIMIT: u64 = super::HEADER_LIMIT;

/// How many problems an error lists before it counts the rest.
const LISTED: usize = 50;

/// Whether `path` holds the files of such a checkpoint.
pub(crate) fn is_marked(path: &Path) -> bool {
    [SINGLE, INDEX].iter().any(|name| fs::exists(&path.join(name)))
}

/// Opens the checkpoint at `path`: a single `.safetensors` file, or a folder with `model.safetensors` or
/// `model.safetensors.index.json` (in this order, as transformers looks). Reads the headers only; links are followed.
///
/// The index and the headers of its shards must name the same tensors in the same files.
pub fn open(path: &Path) -> Result<Catalog> {
    if !fs::exists(path) {
        return Err(Error::NotFound { path: path.to_owned(), what: "no such file or folder".to_owned() });
    }
    if !fs::is_dir(path) {
        return open_file(path);
    }
    if fs::exists(&path.join(SINGLE)) {
        return open_file(&path.join(SINGLE));
    }
    if fs::exists(&path.join(INDEX)) {
        return open_sharded(path);
    }
    if let Some(found) = PICKLES.iter().find(|name| fs::exists(&path.join(name))) {
        let what = format!("a checkpoint in `{found}`, which has to be converted to safetensors first,");
        return Err(Error::Unsupported { path: path.to_owned(), what });
    }
    Err(Error::NotFound { path: path.to_owned(), what: format!("expected `{SINGLE}` or `{INDEX}`, found neither") })
}

fn open_file(path: &Path) -> Result<Catalog> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".safetensors"));
    let Some(name) = name else {
        let what = "a file whose name does not end in `.safetensors`".to_owned();
        return Err(Error::Unsupported { path: path.to_owned(), what });
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let (header, size) = read_header(path)?;
    let mut tensors = BTreeMap::new();
    for entry in header.tensors {
        tensors.insert(entry.name.clone(), tensor_info(entry, 0, header.data_start));
    }
    Ok(catalog(folder, vec![DataFile { name: name.to_owned(), size }], tensors))
}

fn open_sharded(folder: &Path) -> Result<Catalog> {
    let index_path = folder.join(INDEX);
    let weight_map = read_index(&index_path)?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    check_shard_names(folder, &index_path, &names)?;

    let mut files = Vec::with_capacity(names.len());
    let mut tensors = BTreeMap::new();
    let mut problems = Vec::new();
    for (file, name) in (0..).zip(names) {
        let (header, size) = read_header(&folder.join(name))?;
        files.push(DataFile { name: name.clone(), size });
        for entry in header.tensors {
            let tensor = entry.name.clone();
            match weight_map.get(&tensor) {
                Some(place) if place == name => {
                    tensors.insert(tensor, tensor_info(entry, file, header.data_start));
                }
                Some(place) => problems.push(format!("`{tensor}` is in `{name}`, but `{place}` in the index")),
                None => problems.push(format!("`{tensor}` is in `{name}`, but not in the index")),
            }
        }
    }
    let lost = weight_map.iter().filter(|(tensor, _)| !tensors.contains_key(*tensor));
    problems.extend(lost.map(|(tensor, name)| format!("`{tensor}` is in the index, but not in its shard `{name}`")));
    if !problems.is_empty() {
        return Err(Error::Malformed { path: index_path, offset: 0, what: listed(&problems) });
    }
    Ok(catalog(folder.to_owned(), files, tensors))
}

/// The `weight_map` of an index.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: UniqueMap<String>,
    }
    let bytes = fs::read_small(path, INDEX_LIMIT)?;
    let malformed = |offset, what| Error::Malformed { path: path.to_owned(), offset, what };
    let text =
        std::str::from_utf8(&bytes).map_err(|e| malformed(e.valid_up_to() as u64, "expected UTF-8".to_owned()))?;
    let index: Index = serde_json::from_str(text).map_err(|e| {
        let place = json_error(text, &e);
        malformed(place.offset - PREFIX_LEN, place.what)
    })?;
    Ok(index.weight_map.0)
}

/// Every shard must be a plain name, so that nothing outside the folder is read, and be there.
fn check_shard_names(folder: &Path, index_path: &Path, names: &BTreeSet<&String>) -> Result<()> {
    if let Some(name) = names.iter().find(|name| !is_plain(name)) {
        let what = format!("expected the name of a file in the folder, found `{name}`");
        return Err(Error::Malformed { path: index_path.to_owned(), offset: 0, what });
    }
    let missing: Vec<String> =
        names.iter().filter(|name| !fs::exists(&folder.join(name))).map(|name| format!("`{name}`")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let what = format!("{} of {} shards are missing: {}", missing.len(), names.len(), listed(&missing));
    Err(Error::NotFound { path: folder.to_owned(), what })
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// The header and the length in bytes of the file at `path`.
fn read_header(path: &Path) -> Result<(Header, u64)> {
    let file = ReadFile::open(path)?;
    let mut prefix = [0; 8];
    if file.len() < PREFIX_LEN {
        let what = format!("expected at least {PREFIX_LEN} bytes, found {}", file.len());
        return Err(Error::Malformed { path: path.to_owned(), offset: 0, what });
    }
    file.read_exact_at(0, &mut prefix)?;
    let len = header_len(prefix, file.len()).map_err(|e| e.in_file(path, 0))?;
    // At most `HEADER_LIMIT`, and no longer than the file.
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(PREFIX_LEN, &mut bytes)?;
    match parse(&bytes, file.len()) {
        Ok(header) => Ok((header, file.len())),
        Err(Refused::Malformed(e)) => Err(e.in_file(path, 0)),
        Err(Refused::Dtype { tensor, dtype }) => {
            Err(Error::Unsupported { path: path.to_owned(), what: format!("the dtype `{dtype}` of `{tensor}`") })
        }
    }
}

fn tensor_info(entry: TensorEntry, file: u32, data_start: u64) -> TensorInfo {
    let extent = Extent { file, offset: data_start + entry.begin, len: entry.end - entry.begin };
    let chunk = Chunk { rect: Rect::whole(&entry.shape), extent };
    TensorInfo { dtype: entry.dtype, shape: entry.shape, chunks: vec![chunk] }
}

fn catalog(folder: PathBuf, files: Vec<DataFile>, tensors: BTreeMap<String, TensorInfo>) -> Catalog {
    Catalog {
        format: Format::Safetensors,
        folder,
        files,
        tensors,
        objects: BTreeMap::new(),
        common: None,
        prefix: None,
    }
}

/// The problems in one line: the first [`LISTED`], then how many more.
fn listed(problems: &[String]) -> String {
    let text = problems.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(LISTED) {
        0 => text,
        more => format!("{text}; and {more} more"),
    }
}
