//! From attributes to what is computed.

use crate::{Attributes, BlockSizes, Error, Granularity, MxElement, NumBits, Result, Scheme};

impl Attributes {
    /// What a quantizer with these attributes does; `None` where it is off. Where its amax comes from is not part of it.
    pub fn scheme(&self) -> Result<Option<Scheme>> {
        let refuse = |what: &str| Err(Error::Unsupported(format!("{what} ({})", self.describe())));
        // A quantizer that is off still rotates.
        if self.rotate {
            return refuse("rotation");
        }
        if !self.enable {
            return Ok(None);
        }
        if self.bias.is_some() {
            return refuse("bias");
        }
        if self.unsigned {
            return refuse("unsigned");
        }
        if self.narrow_range {
            return refuse("narrow_range");
        }
        if self.calibrator != "max" {
            return refuse("this calibrator");
        }
        let scheme = match &self.block_sizes {
            None => self.unblocked(),
            Some(_) if self.axis.is_some() => None,
            Some(blocks) if self.dynamic => self.per_token(blocks),
            Some(blocks) => self.blocked(blocks),
        };
        scheme.map_or_else(|| refuse("this combination"), |scheme| Ok(Some(scheme)))
    }

    /// What the stages of one quantizer do, in order, those that are off left out.
    pub fn schemes(stages: &[Self]) -> Result<Vec<Scheme>> {
        let all = stages.iter().map(Self::scheme).filter_map(Result::transpose).collect::<Result<Vec<_>>>()?;
        match all.as_slice() {
            [] | [_] | [Scheme::Int4 { .. }, Scheme::Fp8(Granularity::Tensor)] => Ok(all),
            _ => Err(Error::Unsupported(format!("the sequence {all:?}"))),
        }
    }

    fn unblocked(&self) -> Option<Scheme> {
        let granularity = match self.axis {
            _ if self.dynamic => return None,
            None => Granularity::Tensor,
            Some(0) => Granularity::Channel,
            Some(_) => return None,
        };
        match self.num_bits {
            NumBits::Float(4, 3) => Some(Scheme::Fp8(granularity)),
            NumBits::Int(8) => Some(Scheme::Int8(granularity)),
            _ => None,
        }
    }

    fn per_token(&self, blocks: &BlockSizes) -> Option<Scheme> {
        if blocks.axes != [(-1, None)] || blocks.scale_bits.is_some() || blocks.dynamic == Some(true) {
            return None;
        }
        match self.num_bits {
            NumBits::Float(4, 3) => Some(Scheme::Fp8(Granularity::Token)),
            NumBits::Int(8) => Some(Scheme::Int8(Granularity::Token)),
            _ => None,
        }
    }

    fn blocked(&self, blocks: &BlockSizes) -> Option<Scheme> {
        let four_over_six = blocks.four_over_six == Some(true);
        let is_nvfp4 = self.num_bits == NumBits::Float(2, 1) && blocks.scale_bits == Some(NumBits::Float(4, 3));
        if four_over_six && !(is_nvfp4 && blocks.dynamic != Some(true)) {
            return None;
        }
        match (blocks.axes.as_slice(), blocks.dynamic == Some(true), blocks.scale_bits) {
            ([(-1, Some(block @ (16 | 32)))], true, _) if is_nvfp4 => Some(Scheme::Nvfp4 { block: *block as usize }),
            ([(-1, Some(16))], false, _) if is_nvfp4 => Some(Scheme::Nvfp4Static { four_over_six }),
            ([(-1, Some(32))], true, Some(NumBits::Float(8, 0))) => mx_element(self.num_bits).map(Scheme::Mx),
            ([(-1, Some(block @ 1..))], false, None) if self.num_bits == NumBits::Int(4) => {
                Some(Scheme::Int4 { block: *block as usize })
            }
            ([(a, Some(block @ 1..)), (b, Some(other))], false, None)
                if self.num_bits == NumBits::Float(4, 3) && block == other && a + b == -3 && (*a == -1 || *a == -2) =>
            {
                Some(Scheme::Fp8(Granularity::Square(*block as usize)))
            }
            _ => None,
        }
    }

    /// The attributes that decide, for an error.
    fn describe(&self) -> String {
        let mut all = vec![format!("num_bits {}", self.num_bits)];
        all.extend(self.axis.map(|axis| format!("axis {axis}")));
        all.extend(self.dynamic.then(|| "type dynamic".to_owned()));
        if let Some(blocks) = &self.block_sizes {
            let size = |block: Option<u32>| block.map_or_else(|| "None".to_owned(), |block| block.to_string());
            let axes = blocks.axes.iter().map(|&(axis, block)| format!("{axis}: {}", size(block)));
            let kind = if blocks.dynamic == Some(true) { "type: dynamic" } else { "type: static" };
            let scale = blocks.scale_bits.map(|bits| format!("scale_bits: {bits}"));
            let inside: Vec<_> = axes.chain([kind.to_owned()]).chain(scale).collect();
            all.push(format!("block_sizes {{{}}}", inside.join(", ")));
        }
        all.join(", ")
    }
}

fn mx_element(num_bits: NumBits) -> Option<MxElement> {
    match num_bits {
        NumBits::Float(4, 3) => Some(MxElement::E4m3),
        NumBits::Float(3, 2) => Some(MxElement::E3m2),
        NumBits::Float(2, 3) => Some(MxElement::E2m3),
        NumBits::Float(2, 1) => Some(MxElement::E2m1),
        NumBits::Int(8) => Some(MxElement::Int8),
        _ => None,
    }
}
