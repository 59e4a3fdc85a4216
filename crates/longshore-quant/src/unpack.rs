//! Dequantization: packed weights as values again.
#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use crate::Element;
use crate::blocks::{Blocks, MX_BLOCK};
use crate::isa::{Isa, per_isa};
use crate::number::{Bfloat16, E2m1, E4m3, Minifloat, Rounding, e8m0_decode, with_rounding};

/// How a weight and its scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// E4M3 under one f32 scale.
    Fp8,
    /// E4M3 under an f32 scale per row.
    Fp8Channel,
    /// E4M3 under an f32 scale per rectangle; the last ones of an axis may be smaller.
    Fp8Square {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
    /// The same as `DeepSeek`'s checkpoints name it, `weight_scale_inv`, by the rule of ModelOpt's importer: scale and
    /// product are rounded to bfloat16.
    Fp8ScaleInv {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
    /// Eight-bit integers under an f32 scale per row.
    Int8Channel,
    /// Four-bit integers under an f32 scale per `block` columns, two rows to a byte, the even one in the low nibble.
    Int4 {
        /// Columns.
        block: usize,
    },
    /// E2M1, the even column in the low nibble, under an E4M3 scale per `block` columns and an f32 scale for all.
    Nvfp4 {
        /// Columns.
        block: usize,
    },
    /// E4M3 under a power of two per 32 columns.
    Mxfp8,
    /// E2M1, the even column in the low nibble, under a power of two per 32 columns. The `_blocks` and `_scales` of gpt-oss
    /// are this too, with their last two axes taken as one.
    Mxfp4,
}

impl Encoding {
    /// Rows that must be unpacked together: bands begin at multiples of this.
    pub fn band_rows(self) -> usize {
        match self {
            Self::Fp8Square { rows, .. } | Self::Fp8ScaleInv { rows, .. } => rows,
            Self::Int4 { .. } => 2,
            _ => 1,
        }
    }
}

/// Decodes a band of whole rows of `cols` values from its parts of the weight and of the scales (little endian), rounded to
/// `element`. `scale_2` is NVFP4's scale for all; other encodings ignore it.
///
/// # Panics
///
/// If a slice has not the size that goes with `out`.
pub fn unpack(
    encoding: Encoding,
    element: Element,
    cols: usize,
    weight: &[u8],
    scale: &[u8],
    scale_2: f32,
    out: &mut [f32],
) {
    if !out.is_empty() {
        with_isa(Isa::detect(), encoding, element, cols, (weight, scale, scale_2), out);
    }
}

/// [`unpack`] compiled for `isa`, from (`weight`, `scale`, `scale_2`).
pub(crate) fn with_isa(
    isa: Isa,
    encoding: Encoding,
    element: Element,
    cols: usize,
    (weight, scale, scale_2): (&[u8], &[u8], f32),
    out: &mut [f32],
) {
    let rows = out.len() / cols;
    let (block_rows, block_cols) = match encoding {
        Encoding::Fp8 => (rows, cols),
        Encoding::Fp8Channel | Encoding::Int8Channel => (1, cols),
        Encoding::Fp8Square { rows, cols } | Encoding::Fp8ScaleInv { rows, cols } => (rows, cols),
        Encoding::Int4 { block } | Encoding::Nvfp4 { block } => (1, block),
        Encoding::Mxfp8 | Encoding::Mxfp4 => (1, MX_BLOCK),
    };
    let blocks = Blocks::new(block_rows, block_cols, rows, cols);
    let scales: Vec<f32> = match encoding {
        Encoding::Nvfp4 { .. } => scale.iter().map(|&code| E4m3::decode(code) * scale_2).collect(),
        Encoding::Mxfp8 | Encoding::Mxfp4 => scale.iter().map(|&code| e8m0_decode(code)).collect(),
        _ => scale.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
    };
    assert_eq!(scales.len(), blocks.count(), "a scale for each block");
    let nibbles = matches!(encoding, Encoding::Int4 { .. } | Encoding::Nvfp4 { .. } | Encoding::Mxfp4);
    assert_eq!(weight.len(), if nibbles { out.len() / 2 } else { out.len() }, "bytes of the packed weight");
    with_rounding!(element, R => match encoding {
        Encoding::Fp8 | Encoding::Fp8Channel | Encoding::Fp8Square { .. } | Encoding::Mxfp8 => {
            bytes::<R, E4m3>(isa, weight, cols, blocks, &scales, out);
        }
        Encoding::Fp8ScaleInv { .. } => {
            let scales: Vec<f32> = scales.into_iter().map(Bfloat16::round).collect();
            bytes::<ThroughBfloat16<R>, E4m3>(isa, weight, cols, blocks, &scales, out);
        }
        Encoding::Int8Channel => bytes::<R, Int8>(isa, weight, cols, blocks, &scales, out),
        Encoding::Int4 { .. } => int4::<R>(isa, weight, cols, blocks, &scales, out),
        // ModelOpt's table for NVFP4 has no negative zero, its code for MXFP4 has.
        Encoding::Nvfp4 { .. } => e2m1::<R, UnsignedZero>(isa, weight, blocks.cols, &scales, out),
        Encoding::Mxfp4 => e2m1::<R, E2m1>(isa, weight, blocks.cols, &scales, out),
    });
}

/// Rounded to bfloat16 before it is rounded to `R`.
struct ThroughBfloat16<R>(std::marker::PhantomData<R>);

impl<R: Rounding> Rounding for ThroughBfloat16<R> {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        R::round(Bfloat16::round(x))
    }
}

/// What a byte stands for.
trait Byte {
    /// Its value.
    fn value(code: u8) -> f32;
}

impl Byte for E4m3 {
    #[inline(always)]
    fn value(code: u8) -> f32 {
        Self::decode(code)
    }
}

impl Byte for E2m1 {
    #[inline(always)]
    fn value(code: u8) -> f32 {
        Self::decode(code)
    }
}

/// E2M1 whose zeros have no sign.
struct UnsignedZero;

impl Byte for UnsignedZero {
    #[inline(always)]
    fn value(code: u8) -> f32 {
        E2m1::decode(code) + 0.0
    }
}

/// A signed integer.
struct Int8;

impl Byte for Int8 {
    #[inline(always)]
    fn value(code: u8) -> f32 {
        f32::from(code.cast_signed())
    }
}

#[inline(always)]
fn bytes_body<R: Rounding, B: Byte>(weight: &[u8], cols: usize, blocks: Blocks, scales: &[f32], out: &mut [f32]) {
    for (r, (codes, out)) in weight.chunks_exact(cols).zip(out.chunks_exact_mut(cols)).enumerate() {
        let scales = &scales[blocks.in_row(r)];
        for (i, out) in out.chunks_mut(blocks.cols).enumerate() {
            let (codes, scale) = (&codes[i * blocks.cols..][..out.len()], scales[i]);
            for (x, &code) in out.iter_mut().zip(codes) {
                *x = R::round(B::value(code) * scale);
            }
        }
    }
}

per_isa! {
    fn bytes[R: Rounding, B: Byte][R, B](
        weight: &[u8],
        cols: usize,
        blocks: Blocks,
        scales: &[f32],
        out: &mut [f32],
    ) = bytes_body;
}

#[inline(always)]
fn int4_body<R: Rounding>(weight: &[u8], cols: usize, blocks: Blocks, scales: &[f32], out: &mut [f32]) {
    let pairs = weight.chunks_exact(cols).zip(out.chunks_exact_mut(2 * cols));
    for ((codes, rows), scales) in pairs.zip(scales.chunks_exact(2 * blocks.across)) {
        let (even, odd) = rows.split_at_mut(cols);
        let (even_scales, odd_scales) = scales.split_at(blocks.across);
        for (row, scales, shift) in [(even, even_scales, 4), (odd, odd_scales, 0)] {
            for ((out, codes), &scale) in row.chunks_mut(blocks.cols).zip(codes.chunks(blocks.cols)).zip(scales) {
                for (x, &code) in out.iter_mut().zip(codes) {
                    *x = R::round(f32::from((code << shift).cast_signed() >> 4) * scale);
                }
            }
        }
    }
}

per_isa! {
    fn int4[R: Rounding][R](weight: &[u8], cols: usize, blocks: Blocks, scales: &[f32], out: &mut [f32]) = int4_body;
}

#[inline(always)]
fn e2m1_body<R: Rounding, B: Byte>(weight: &[u8], block: usize, scales: &[f32], out: &mut [f32]) {
    for (i, out) in out.chunks_exact_mut(block).enumerate() {
        let (codes, scale) = (&weight[i * block / 2..][..block / 2], scales[i]);
        for (pair, &code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *pair = [R::round(B::value(code & 0xf) * scale), R::round(B::value(code >> 4) * scale)];
        }
    }
}

per_isa! {
    fn e2m1[R: Rounding, B: Byte][R, B](weight: &[u8], block: usize, scales: &[f32], out: &mut [f32]) = e2m1_body;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_inv_rounds_scale_and_product_to_bfloat16() {
        // 1.0035 rounds to 1, 1 + 2^-7 stays.
        let scales: Vec<u8> = [1.0035f32, 1.0 + 2f32.powi(-7)].iter().flat_map(|x| x.to_le_bytes()).collect();
        // 1.75 in E4M3, in two columns of blocks of 2 by 2, the last of which is narrower.
        let weight = [0x3e; 6];
        let encoding = Encoding::Fp8ScaleInv { rows: 2, cols: 2 };
        let mut out = [0.0; 6];
        unpack(encoding, Element::Float32, 3, &weight, &scales, 0.0, &mut out);
        // 1.75 * (1 + 2^-7) = 1.763671875, between the bfloat16 values 1.7578125 and 1.765625.
        assert_eq!(out, [1.75, 1.75, 1.765_625, 1.75, 1.75, 1.765_625]);
        unpack(Encoding::Fp8Square { rows: 2, cols: 2 }, Element::Float32, 3, &weight, &scales, 0.0, &mut out);
        assert_eq!(out[0], 1.75 * 1.0035);
    }

    #[test]
    fn nibbles_are_even_columns_first_and_even_rows_first() {
        let mut out = [0.0; 32];
        let mut weight = [0u8; 16];
        weight[0] = 0xf1;
        unpack(Encoding::Mxfp4, Element::Float32, 32, &weight, &[128], 0.0, &mut out);
        assert_eq!(out[..3], [1.0, -12.0, 0.0]);
        let mut out = [0.0; 4];
        let scales: Vec<u8> = [1.0f32, 0.5].iter().flat_map(|x| x.to_le_bytes()).collect();
        unpack(Encoding::Int4 { block: 2 }, Element::Float32, 2, &[0x8f, 0x71], &scales, 0.0, &mut out);
        assert_eq!(out, [-1.0, 1.0, -4.0, 3.5]);
    }

    #[test]
    fn bands_begin_where_rows_share_bytes_or_scales() {
        assert_eq!(Encoding::Int4 { block: 128 }.band_rows(), 2);
        assert_eq!(Encoding::Fp8ScaleInv { rows: 128, cols: 128 }.band_rows(), 128);
        assert_eq!(Encoding::Mxfp4.band_rows(), 1);
    }

    #[test]
    fn negative_zero_survives_in_mxfp4_only() {
        let bits = |encoding, scale: &[u8]| {
            let mut out = [1.0; 32];
            unpack(encoding, Element::Bfloat16, 32, &[0x88; 16], scale, 1.0, &mut out);
            out[0].to_bits()
        };
        assert_eq!(bits(Encoding::Mxfp4, &[127]), (-0.0f32).to_bits());
        assert_eq!(bits(Encoding::Nvfp4 { block: 32 }, &[0x38]), 0);
    }
}
