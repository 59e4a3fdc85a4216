//! The safetensors format: the header of a file, read and written, and the folders that Hugging Face makes of such files.
//!
//! A file is an 8-byte little-endian length, a JSON header of that length, and the tensors' raw row-major little-endian
//! data, without holes. Reference: <https://github.com/huggingface/safetensors>, crate version 0.8.0, `tensor.rs`. What
//! that crate accepts is accepted here and the other way round, except that this parser refuses
//! - duplicate tensor names and duplicate keys in `__metadata__` (the crate keeps the last one; the format forbids them),
//! - a header that does not begin with `{` (the crate skips white space; the format forbids it),
//! - dtypes that [`Dtype`] lacks: `F4`, `F6_E2M3`, `F6_E3M2`, `F8_E4M3FNUZ`, `F8_E5M2FNUZ`, `C64`,
//! - a dtype spelled as an object, `{"F32":null}` (an accident of the crate's derived parser),
//!
//! and only skims the values of unknown keys in a tensor's entry, which the crate parses before ignoring them too.

mod folder;

pub(crate) use folder::is_marked;
pub use folder::open;

use crate::error::ParseError;
use crate::tensor::{Dtype, element_count};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

/// Bytes before the header: its length.
pub const PREFIX_LEN: u64 = 8;

/// The longest header in bytes, `MAX_HEADER_SIZE` of the safetensors crate.
pub const HEADER_LIMIT: u64 = 100_000_000;

/// The key of the header that is no tensor.
const METADATA: &str = "__metadata__";

/// A parsed header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `__metadata__`; empty also where the header has none.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in the order of their data.
    pub tensors: Vec<TensorEntry>,
    /// Where the data begins, in bytes from the file's start.
    pub data_start: u64,
}

/// A tensor of a [`Header`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape in elements, outermost axis first.
    pub shape: Vec<u64>,
    /// First byte, from [`Header::data_start`].
    pub begin: u64,
    /// The byte after the last, from [`Header::data_start`].
    pub end: u64,
}

/// Why a header is refused: [`parse_header`] makes one kind of both.
enum Refused {
    Malformed(ParseError),
    /// A dtype of another program or version.
    Dtype {
        tensor: String,
        dtype: String,
    },
}

/// The length of the header in bytes, from the first 8 bytes of a file of `file_len` bytes.
pub fn header_len(prefix: [u8; 8], file_len: u64) -> Result<u64, ParseError> {
    let len = u64::from_le_bytes(prefix);
    if len > HEADER_LIMIT {
        return Err(ParseError::new(0u64, format!("expected a header of at most {HEADER_LIMIT} bytes, found {len}")));
    }
    if len > file_len.saturating_sub(PREFIX_LEN) {
        return Err(ParseError::new(0u64, format!("the header of {len} bytes is longer than the file ({file_len})")));
    }
    Ok(len)
}

/// Parses `header`, the bytes after the 8-byte length, of a file of `file_len` bytes. Offsets of errors count from the
/// file's start.
pub fn parse_header(header: &[u8], file_len: u64) -> Result<Header, ParseError> {
    parse(header, file_len).map_err(|refused| match refused {
        Refused::Malformed(e) => e,
        Refused::Dtype { tensor, dtype } => malformed(format!("the dtype `{dtype}` of `{tensor}` is not supported")),
    })
}

fn malformed(what: impl Into<String>) -> ParseError {
    ParseError::new(PREFIX_LEN, what)
}

fn parse(header: &[u8], file_len: u64) -> Result<Header, Refused> {
    let refuse = |what: String| Err(Refused::Malformed(malformed(what)));
    if header.first() != Some(&b'{') {
        return refuse("expected the header to begin with `{`".to_owned());
    }
    let text = std::str::from_utf8(header).map_err(|e| {
        let at = PREFIX_LEN + e.valid_up_to() as u64;
        Refused::Malformed(ParseError::new(at, "expected UTF-8"))
    })?;
    let raw: RawHeader = serde_json::from_str(text).map_err(|e| Refused::Malformed(json_error(text, &e)))?;

    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, entry) in raw.tensors {
        let Some(dtype) = Dtype::from_safetensors_name(&entry.dtype) else {
            return Err(Refused::Dtype { tensor: name, dtype: entry.dtype });
        };
        let (begin, end) = entry.data_offsets;
        tensors.push(TensorEntry { name, dtype, shape: entry.shape, begin, end });
    }
    tensors.sort_by_key(|tensor| (tensor.begin, tensor.end));

    let mut at = 0;
    for TensorEntry { name, dtype, shape, begin, end } in &tensors {
        if *begin != at {
            return refuse(format!("expected the data of `{name}` to begin at {at}, found {begin}"));
        }
        let size = element_count(shape).and_then(|n| n.checked_mul(dtype.size()));
        if size.is_none() || end.checked_sub(*begin) != size {
            return refuse(format!("the bytes {begin}..{end} of `{name}` are not the size of {shape:?} of {dtype}"));
        }
        at = *end;
    }
    let data_start = PREFIX_LEN + header.len() as u64;
    if data_start.checked_add(at) != Some(file_len) {
        return refuse(format!("expected {data_start} bytes of header and {at} of data, found a file of {file_len}"));
    }
    Ok(Header { metadata: raw.metadata, tensors, data_start })
}

/// Places what `serde_json` says by line and column.
fn json_error(text: &str, e: &serde_json::Error) -> ParseError {
    let before: usize = text.split_inclusive('\n').take(e.line().saturating_sub(1)).map(str::len).sum();
    let at = (before + e.column().saturating_sub(1)).min(text.len());
    // The message ends in the line and column, which the offset says better.
    let message = e.to_string();
    let what = message.rfind(" at line ").map_or(message.as_str(), |end| &message[..end]);
    ParseError::new(PREFIX_LEN + at as u64, what)
}

/// A header as the JSON says it.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawEntry)>,
}

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut raw = RawHeader { metadata: BTreeMap::new(), tensors: Vec::new() };
                let mut seen = BTreeSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("duplicate key `{name}`")));
                    }
                    if name == METADATA {
                        raw.metadata = map.next_value::<Option<UniqueMap<String>>>()?.map(|m| m.0).unwrap_or_default();
                    } else {
                        raw.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A JSON object whose keys differ; serde's own maps keep the last of equal ones.
struct UniqueMap<V>(BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<V>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format!("duplicate key `{key}`")));
                    }
                    entries.insert(key, value);
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Keys(PhantomData))
    }
}

/// The head of a file that holds `tensors` (name, dtype, shape) in this order: the 8-byte length and the header, padded
/// with spaces so that the data begins at a multiple of 8. `__metadata__` comes first and says `"format":"pt"`, without
/// which transformers refuses a file, unless `metadata` has another `format`.
///
/// # Panics
///
/// If the size of a tensor or of all together overflows, or the header exceeds [`HEADER_LIMIT`]: the tensors of a checked
/// plan do neither.
pub fn header_bytes(tensors: &[(&str, Dtype, &[u64])], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut metadata = metadata.clone();
    metadata.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
    let mut json = format!("{{{}:{}", quoted(METADATA), serde_json::json!(metadata));
    let mut at = 0u64;
    for &(name, dtype, shape) in tensors {
        let size = element_count(shape).and_then(|n| n.checked_mul(dtype.size()));
        let end = size.and_then(|size| at.checked_add(size)).expect("the sizes of planned tensors were checked");
        let entry = format!(
            ",{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{at},{end}]}}",
            quoted(name),
            dtype.safetensors_name(),
            serde_json::json!(shape),
        );
        json.push_str(&entry);
        at = end;
    }
    json.push('}');

    let len = json.len().next_multiple_of(8) as u64;
    assert!(len <= HEADER_LIMIT, "a planned file has a header of at most {HEADER_LIMIT} bytes, not {len}");
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(8 + json.len().next_multiple_of(8), b' ');
    bytes
}

/// `model.safetensors.index.json` as transformers writes it (`json.dumps(index, indent=2, sort_keys=True) + "\n"`):
/// `total_size` in bytes of all tensors, `weight_map` from tensor to file name.
pub fn index_json(total_size: u64, weight_map: &BTreeMap<String, String>) -> Vec<u8> {
    let index = serde_json::json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    let mut bytes = Vec::new();
    // Python escapes what is not ASCII, which only strings hold.
    for c in format!("{index:#}\n").chars() {
        if c.is_ascii() {
            bytes.push(c as u8);
        } else {
            bytes.extend(c.encode_utf16(&mut [0; 2]).iter().flat_map(|unit| format!("\\u{unit:04x}").into_bytes()));
        }
    }
    bytes
}

/// `text` as a JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests;
