//! One item of a `.distcp` file (and `common.pt`): the zip archive that `torch.save` makes of a tensor or an object.
//!
//! A tensor item is written front to back: [`Frame::head`], the raw row-major little-endian elements, [`Frame::tail`].
//! Reading needs the ends of an item only, see [`locate`]. Reference: torch 2.11 `torch/serialization.py` and
//! `torch/_utils.py` (`_rebuild_tensor_v2`, `_rebuild_tensor_v3`).

use super::pickle::{Pickle, View, Writer};
use super::zip::{self, Archive, Entry, ReadAt, Sums};
use crate::error::ParseError;
use crate::tensor::{Dtype, element_count};

pub use super::zip::LocateError;

/// The payload of an item begins at a multiple of this from the item's start, as torch aligns it.
pub const ALIGNMENT: u64 = 64;

/// The pickle of a tensor is a few hundred bytes; hooks and wrappers add little.
const MAX_TENSOR_PICKLE: u64 = 64 << 10;
/// `byteorder` holds `little` or `big`.
const MAX_BYTEORDER: u64 = 16;
/// Deepest nesting of parameters around a tensor.
const MAX_WRAPPERS: usize = 4;

/// What surrounds the payload of a tensor item.
#[derive(Clone, Debug)]
pub struct Frame {
    /// All bytes before the payload; their number is a multiple of [`ALIGNMENT`].
    pub head: Vec<u8>,
    /// Bytes of the payload.
    pub payload_len: u64,
    entries: Vec<Entry>,
    tail_len: u64,
}

impl Frame {
    /// The frame of a tensor of `sizes`, contiguous in row-major order. Their product in bytes must be below 2^63; a
    /// [`crate::TensorInfo`] that was checked guarantees it. Types without a legacy storage class are written as torch
    /// does, with `_rebuild_tensor_v3`.
    pub fn tensor(dtype: Dtype, sizes: &[u64]) -> Self {
        let payload_len = element_count(sizes).and_then(|n| n.checked_mul(dtype.size())).unwrap_or(u64::MAX >> 1);
        let mut w = Writer::new();
        tensor_pickle(&mut w, dtype, sizes);
        Self::around(&w.finish(), payload_len)
    }

    /// The frame of an item whose pickle refers to one storage, `0`.
    pub(super) fn around(data_pkl: &[u8], payload_len: u64) -> Self {
        let mut entries = Vec::new();
        let mut head = Vec::new();
        small_record(&mut head, &mut entries, "archive/data.pkl", data_pkl);
        small_record(&mut head, &mut entries, "archive/byteorder", b"little");
        let data = Entry::new("archive/data/0", payload_len, head.len() as u64, Sums::Later);
        data.local(&mut head, Some(ALIGNMENT));
        entries.push(data);
        let mut frame = Self { head, payload_len, entries, tail_len: 0 };
        frame.tail_len = frame.tail(0).len() as u64;
        frame
    }

    /// The length in bytes of [`Frame::tail`], whatever the checksum.
    pub fn tail_len(&self) -> u64 {
        self.tail_len
    }

    /// All bytes after the payload, whose CRC-32 (IEEE) is `payload_crc32`.
    pub fn tail(&self, payload_crc32: u32) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(data) = self.entries.last() {
            data.descriptor(&mut out, payload_crc32);
        }
        let start = self.head.len() as u64 + self.payload_len;
        let mut entries = self.entries.clone();
        small_record_at(&mut out, start, &mut entries, "archive/version", b"3\n");
        zip::finish(&mut out, start, &entries, payload_crc32);
        out
    }

    /// The length in bytes of the whole item.
    pub fn item_len(&self) -> u64 {
        self.head.len() as u64 + self.payload_len + self.tail_len
    }
}

fn small_record(out: &mut Vec<u8>, entries: &mut Vec<Entry>, name: &str, data: &[u8]) {
    small_record_at(out, 0, entries, name, data);
}

/// Appends a record to an archive of which `start + out.len()` bytes are written.
fn small_record_at(out: &mut Vec<u8>, start: u64, entries: &mut Vec<Entry>, name: &str, data: &[u8]) {
    let sums = Sums::Known(crc32fast::hash(data));
    let entry = Entry::new(name, data.len() as u64, start + out.len() as u64, sums);
    entry.local(out, None);
    out.extend_from_slice(data);
    entries.push(entry);
}

/// An item without tensor data: an object, or `common.pt`.
pub fn object_item(data_pkl: &[u8]) -> Vec<u8> {
    let (mut out, mut entries) = (Vec::new(), Vec::new());
    small_record(&mut out, &mut entries, "archive/data.pkl", data_pkl);
    small_record(&mut out, &mut entries, "archive/byteorder", b"little");
    small_record(&mut out, &mut entries, "archive/version", b"3\n");
    zip::finish(&mut out, 0, &entries, 0);
    out
}

/// The item of an empty `_extra_state`: the list `[None]`.
pub fn empty_extra_state() -> Vec<u8> {
    object_item(b"\x80\x02]Na.")
}

/// The strides in elements of a contiguous tensor, as torch computes them: an empty axis counts as 1.
fn strides(sizes: &[u64]) -> Vec<u64> {
    let mut out = vec![1; sizes.len()];
    for i in (1..sizes.len()).rev() {
        out[i - 1] = sizes[i].max(1).saturating_mul(out[i]);
    }
    out
}

/// Writes a tensor of the storage `0`.
pub(super) fn tensor_pickle(w: &mut Writer, dtype: Dtype, sizes: &[u64]) {
    let count = element_count(sizes).unwrap_or(0);
    let class = dtype.storage_class();
    w.global("torch._utils", if class.is_some() { "_rebuild_tensor_v2" } else { "_rebuild_tensor_v3" });
    w.mark();
    w.mark();
    w.str("storage");
    match class {
        Some(class) => w.global("torch", class),
        None => w.global("torch.storage", "UntypedStorage"),
    }
    w.str("0");
    w.str("cpu");
    // An untyped storage counts bytes.
    w.uint(if class.is_some() { count } else { count.saturating_mul(dtype.size()) });
    w.tuple();
    w.raw(b"Q");
    w.uint(0);
    for dims in [sizes, &strides(sizes)] {
        w.mark();
        for &n in dims {
            w.uint(n);
        }
        w.tuple();
    }
    w.bool(false);
    w.global("collections", "OrderedDict");
    w.raw(b")R");
    if class.is_none() {
        w.global("torch", dtype.torch_name());
    }
    w.tuple();
    w.raw(b"R");
}

/// The elements of a tensor item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// First byte of the elements, from the item's start.
    pub payload_offset: u64,
    /// Their length in bytes: the product of `sizes` and the element's size.
    pub payload_len: u64,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost axis first; row-major without gaps.
    pub sizes: Vec<u64>,
    /// CRC-32 of the payload; `None` where the archive has none (torch can be told not to compute it), or one of more
    /// than the payload.
    pub crc32: Option<u32>,
}

/// Finds the elements of the tensor item that is `item_len` bytes long, by a few small reads at its ends. `read` fills
/// the buffer from an offset in the item.
pub fn locate(item_len: u64, read: &mut ReadAt<'_>) -> Result<Located, LocateError> {
    let mut archive = Archive::open(item_len, read)?;
    let pickle = data_pickle(&mut archive, MAX_TENSOR_PICKLE)?;
    locate_view(&mut archive, pickle.root())
}

/// Finds the elements of a tensor that the pickle of an opened archive holds.
pub(super) fn locate_view(archive: &mut Archive<'_, '_>, view: View<'_>) -> Result<Located, LocateError> {
    if let Some(order) = archive.read("byteorder", MAX_BYTEORDER)?
        && order != b"little"
    {
        return Err(LocateError::Unsupported(format!("byte order `{}`", order.escape_ascii())));
    }
    let tensor = tensor_of(view)?;
    let name = format!("data/{}", tensor.key);
    let Some(record) = archive.find(&name) else { return malformed(format!("the record `{name}` is missing")) };
    let size = tensor.dtype.size();
    let payload_len = element_count(&tensor.sizes).and_then(|n| n.checked_mul(size));
    let begin = tensor.first.checked_mul(size);
    let end = begin.zip(payload_len).and_then(|(b, len)| b.checked_add(len));
    let (Some(begin), Some(payload_len), Some(end)) = (begin, payload_len, end) else {
        return malformed(format!("the shape {:?} overflows", tensor.sizes));
    };
    if end > record.size || tensor.storage_bytes.is_none_or(|bytes| bytes > record.size) {
        return malformed(format!("expected {end} bytes in `{name}`, found {}", record.size));
    }
    let whole = payload_len == record.size;
    Ok(Located {
        payload_offset: record.data_offset + begin,
        payload_len,
        dtype: tensor.dtype,
        sizes: tensor.sizes,
        crc32: Some(record.crc32).filter(|&crc| whole && crc != 0),
    })
}

/// The pickle of an object item or of `common.pt`, at most `limit` bytes of it. `read` fills the buffer from an offset
/// in the item.
pub fn object_pickle(item_len: u64, limit: u64, read: &mut ReadAt<'_>) -> Result<Pickle, LocateError> {
    data_pickle(&mut Archive::open(item_len, read)?, limit)
}

pub(super) fn malformed<T>(what: impl Into<String>) -> Result<T, LocateError> {
    Err(LocateError::Malformed(ParseError::new(0u64, what)))
}

/// The pickle of an opened archive, at most `limit` bytes of it.
pub(super) fn data_pickle(archive: &mut Archive<'_, '_>, limit: u64) -> Result<Pickle, LocateError> {
    let Some(bytes) = archive.read("data.pkl", limit)? else { return malformed("the record `data.pkl` is missing") };
    let at = archive.find("data.pkl").map_or(0, |r| r.data_offset);
    Pickle::parse(&bytes)
        .map_err(|e| LocateError::Malformed(ParseError::new(at + e.offset, format!("data.pkl: {}", e.what))))
}

/// A tensor as its pickle describes it.
struct Tensor<'a> {
    dtype: Dtype,
    /// Name of the storage.
    key: &'a str,
    /// Length of the storage in bytes; `None` where it overflows.
    storage_bytes: Option<u64>,
    /// Index of the first element in the storage.
    first: u64,
    sizes: Vec<u64>,
}

/// The tensor that a rebuilding call makes.
fn tensor_of(mut view: View<'_>) -> Result<Tensor<'_>, LocateError> {
    for _ in 0..MAX_WRAPPERS {
        let args: Vec<View<'_>> = view.args().and_then(View::items).into_iter().flatten().collect();
        match (view.class_parts(), &args[..]) {
            (Some(("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")), [inner, ..]) => {
                view = *inner;
            }
            (Some(("torch._utils", "_rebuild_tensor_v2")), [storage, first, sizes, stride, ..]) => {
                return rebuild(*storage, None, [*first, *sizes, *stride]);
            }
            (Some(("torch._utils", "_rebuild_tensor_v3")), [storage, first, sizes, stride, _, _, dtype, ..]) => {
                return rebuild(*storage, Some(*dtype), [*first, *sizes, *stride]);
            }
            _ => return Err(LocateError::Unsupported(format!("an item that is {}", describe(view)))),
        }
    }
    malformed("a parameter is nested too deeply")
}

fn describe(view: View<'_>) -> String {
    view.class().map_or_else(|| view.kind().to_owned(), |class| format!("`{class}`"))
}

fn rebuild<'a>(
    storage: View<'a>,
    dtype: Option<View<'a>>,
    [first, sizes, stride]: [View<'a>; 3],
) -> Result<Tensor<'a>, LocateError> {
    let id: Vec<View<'a>> = storage.persistent().and_then(View::items).into_iter().flatten().collect();
    let [tag, class, key, _device, count, ..] = id[..] else { return malformed("a tensor has no storage") };
    let (Some("storage"), Some(key), Some(count)) = (tag.as_str(), key.as_str(), count.as_u64()) else {
        return malformed("the storage of a tensor is not named correctly");
    };
    let (dtype, unit) = match (class.class_parts(), dtype) {
        (Some(("torch", name)), None) => {
            let known = Dtype::from_storage_class(name);
            let Some(known) = known else { return Err(LocateError::Unsupported(format!("a `torch.{name}`"))) };
            (known, known.size())
        }
        (Some(("torch.storage", "UntypedStorage")), Some(dtype)) => {
            let known = dtype.class_parts().filter(|c| c.0 == "torch").and_then(|c| Dtype::from_torch_name(c.1));
            let Some(known) = known else {
                return Err(LocateError::Unsupported(format!("the type {}", describe(dtype))));
            };
            (known, 1)
        }
        _ => return Err(LocateError::Unsupported(format!("a tensor in {}", describe(class)))),
    };
    let (Some(first), Some(sizes), Some(stride)) = (first.as_u64(), numbers(sizes), numbers(stride)) else {
        return malformed("the place of a tensor in its storage is not made of numbers");
    };
    if sizes.len() != stride.len() {
        return malformed(format!("a tensor has {} sizes and {} strides", sizes.len(), stride.len()));
    }
    // The stride of an axis of length 1 says nothing, nor do any where there are no elements.
    let contiguous = sizes.contains(&0)
        || strides(&sizes).iter().zip(&stride).zip(&sizes).all(|((want, found), &size)| size == 1 || want == found);
    if !contiguous {
        return Err(LocateError::Unsupported(format!("a tensor of {sizes:?} with the strides {stride:?}")));
    }
    Ok(Tensor { dtype, key, storage_bytes: count.checked_mul(unit), first, sizes })
}

/// A tuple of sizes, also as a `torch.Size`, of at most [`MAX_RANK`].
pub(super) fn numbers(view: View<'_>) -> Option<Vec<u64>> {
    let view = if view.class_parts() == Some(("torch", "Size")) { view.args()?.items()?.next()? } else { view };
    let items = view.items().filter(|items| items.len() <= MAX_RANK)?;
    items.map(View::as_u64).collect()
}

/// Most axes of a tensor. Megatron's have 3; a bound keeps a hostile table, which can name one long shape many times,
/// from becoming far larger than its file.
const MAX_RANK: usize = 16;

#[cfg(test)]
mod tests;
