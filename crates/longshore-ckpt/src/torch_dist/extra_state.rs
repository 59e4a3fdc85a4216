//! The item of an `_extra_state` object that carries something: a list of one tensor of bytes, which are an archive of
//! their own with a pickled dict.
//!
//! That is how ModelOpt stores the state of a module's quantizers in a Megatron checkpoint. Transformer Engine keeps a
//! state of its own under the same names; what is neither is told apart, not refused. Reference: ModelOpt 0.47
//! `torch/opt/plugins/megatron.py`, megatron-core 0.16 `dist_checkpointing/strategies/torch.py`.

use super::item::{self, Frame, LocateError, data_pickle, locate_view, malformed, object_item};
use super::pickle::{Pickle, Plain, View, Writer, dump};
use super::zip::{self, Archive, ReadAt};
use crate::error::ParseError;
use crate::tensor::Dtype;

/// The largest blob that is read. A module of 512 experts with two quantizers each has 1 MiB.
pub const MAX_BLOB: u64 = 4 << 20;

/// What the item of an `_extra_state` holds.
#[derive(Debug)]
pub enum ExtraState {
    /// Nothing: `[None]`, or a tensor without elements.
    Empty,
    /// A pickled value.
    Pickled(Pickle),
    /// Something of another program, in words.
    Unknown(String),
}

/// The item that carries `inner`.
pub fn write(inner: &Plain) -> Vec<u8> {
    let blob = object_item(&dump(inner));
    let mut w = Writer::new();
    w.raw(b"](");
    item::tensor_pickle(&mut w, Dtype::Uint8, &[blob.len() as u64]);
    w.raw(b"e");
    let frame = Frame::around(&w.finish(), blob.len() as u64);
    [&frame.head[..], &blob, &frame.tail(crc32fast::hash(&blob))].concat()
}

/// Reads the item that is `item_len` bytes long. `read` fills the buffer from an offset in the item. Memory is bounded
/// by a multiple of [`MAX_BLOB`]. Errors are of reading and of archives that are damaged, the inner one included.
pub fn read(item_len: u64, read: &mut ReadAt<'_>) -> Result<ExtraState, LocateError> {
    let mut archive = Archive::open(item_len, read)?;
    let pickle = data_pickle(&mut archive, MAX_BLOB)?;
    let mut shards = pickle.root().items().into_iter().flatten();
    let (Some(state), None) = (shards.next(), shards.next()) else {
        return Ok(ExtraState::Unknown(format!("{}, not a list of one item", described(pickle.root()))));
    };
    if state.is_none() {
        return Ok(ExtraState::Empty);
    }
    let found = match locate_view(&mut archive, state) {
        Ok(found) => found,
        Err(LocateError::Unsupported(what)) => return Ok(ExtraState::Unknown(what)),
        Err(error) => return Err(error),
    };
    if found.payload_len == 0 {
        return Ok(ExtraState::Empty);
    }
    if found.dtype != Dtype::Uint8 {
        return Ok(ExtraState::Unknown(format!("a tensor of {}", found.dtype)));
    }
    if found.payload_len > MAX_BLOB {
        return malformed(format!("a state of {} bytes, expected at most {MAX_BLOB}", found.payload_len));
    }
    let blob = archive.bytes(found.payload_offset, found.payload_len)?;
    if !blob.starts_with(&zip::LOCAL.to_le_bytes()) {
        return Ok(ExtraState::Unknown("bytes that are no archive".into()));
    }
    inner_pickle(&blob).map(ExtraState::Pickled).map_err(|error| match error {
        LocateError::Malformed(e) => {
            ParseError::new(found.payload_offset + e.offset, format!("the state inside: {}", e.what)).into()
        }
        other => other,
    })
}

fn inner_pickle(blob: &[u8]) -> Result<Pickle, LocateError> {
    let mut read = |offset: u64, buffer: &mut [u8]| {
        let at = usize::try_from(offset).ok();
        let from = at.and_then(|at| blob.get(at..)?.get(..buffer.len())).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(from);
        Ok(())
    };
    item::object_pickle(blob.len() as u64, MAX_BLOB, &mut read)
}

fn described(view: View<'_>) -> String {
    view.class().unwrap_or_else(|| view.kind().to_owned())
}

#[cfg(test)]
mod tests;
