//! Production: the bytes of an output tensor, copied, known or computed, front to back.

use crate::Result;
use crate::gather::Gather;
use crate::quantized::encode::Encoder;
use crate::resolve::{Computed, Recipe};
use longshore_ckpt::Rect;
use longshore_ckpt::fs::ReadFile;

/// Fills buffers with one box of an output tensor. Computed tensors have one box, the whole.
pub(crate) enum Producer<'a> {
    /// From the source, cast where the recipe says so.
    Copy(Gather<'a>),
    /// From memory.
    Bytes(&'a [u8]),
    /// From a weight.
    Encode(Box<Encoder<'a>>),
}

impl<'a> Producer<'a> {
    /// Begins at the first element of `rect`.
    pub(crate) fn new(recipe: &'a Recipe, rect: &'a Rect) -> Self {
        match &recipe.computed {
            None => Self::Copy(Gather::new(recipe, rect)),
            Some(Computed::Bytes(bytes)) => Self::Bytes(bytes),
            Some(Computed::Encoded(encoding, output)) => Self::Encode(Box::new(Encoder::new(encoding, *output))),
        }
    }

    /// Fills `out` with the next bytes; the number of values that a cast made infinite.
    pub(crate) fn fill(&mut self, files: &[ReadFile], out: &mut [u8]) -> Result<u64> {
        match self {
            Self::Copy(gather) => Ok(gather.fill(files, out)?),
            Self::Bytes(bytes) => {
                let (now, rest) = bytes.split_at(out.len());
                out.copy_from_slice(now);
                *bytes = rest;
                Ok(0)
            }
            Self::Encode(encoder) => encoder.fill(files, out).map(|()| 0),
        }
    }
}
