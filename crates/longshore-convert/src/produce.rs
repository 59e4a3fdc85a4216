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
    /// One tensor after the other: those that are left, the current one and its bytes that are left.
    Join { rest: &'a [Recipe], current: Option<Box<Producer<'a>>>, left: u64 },
}

impl<'a> Producer<'a> {
    /// Begins at the first element of `rect`.
    pub(crate) fn new(recipe: &'a Recipe, rect: &'a Rect) -> Self {
        match &recipe.computed {
            None => Self::Copy(Gather::new(recipe, rect)),
            Some(computed) => Self::computed(computed),
        }
    }

    fn computed(computed: &'a Computed) -> Self {
        match computed {
            Computed::Bytes(bytes) => Self::Bytes(bytes),
            Computed::Encoded(encoding, output) => Self::Encode(Box::new(Encoder::new(encoding, *output))),
            Computed::Joined(each) => Self::Join { rest: each, current: None, left: 0 },
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
            Self::Join { rest, current, left } => {
                let (mut done, mut overflows) = (0, 0);
                while done < out.len() {
                    if *left == 0 {
                        let Some((first, others)) = rest.split_first() else {
                            unreachable!("the shape was planned from the same tensors")
                        };
                        (*left, *rest) = (first.size(), others);
                        *current = first.computed.as_ref().map(|computed| Box::new(Self::computed(computed)));
                    }
                    let n = (out.len() - done).min(*left as usize);
                    if let Some(current) = current {
                        overflows += current.fill(files, &mut out[done..done + n])?;
                    }
                    (done, *left) = (done + n, *left - n as u64);
                }
                Ok(overflows)
            }
        }
    }
}
