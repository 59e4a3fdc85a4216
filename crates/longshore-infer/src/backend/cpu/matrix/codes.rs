//! How quantized weights are kept: what their codes mean, and where the codes and scales of a panel lie.
//!
//! A *unit* is the smallest number of columns of a panel that lies in whole lines:
//!
//! * 8-bit codes: 2 columns in 2 lines. Of each line, 16 bytes are the pairs of rows `4L..4L + 4` (8 bytes) and of rows
//!   `16 + 4L..` (8 bytes), so that interleaving two registers of lower and upper bytes gives two lines of bf16 pairs.
//! * 4-bit codes: 8 columns in 4 lines. A word is a row: its lower half holds the even columns, its upper half the odd ones.
//! * With scales of groups: one line of 64 bytes (a row's scale each), and then the codes of the group's columns.

use super::{LANES, Line, PANEL, WeightType};

/// What a code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    E4m3,
    Int8,
    Int4,
    E2m1,
}

/// A type of scales that lie among the codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GroupScale {
    E4m3,
    E8m0,
}

/// The smallest and the largest byte of an E8M0 scale with which every code is a normal bf16.
const E8M0: std::ops::RangeInclusive<u8> = 10..=246;

impl WeightType {
    /// What the codes mean; `None` for floats.
    pub(super) fn codes(self) -> Option<Codes> {
        match self {
            Self::Float32 | Self::Bfloat16 => None,
            Self::E4m3 | Self::E4m3Squares | Self::Mxfp8 => Some(Codes::E4m3),
            Self::Int8 => Some(Codes::Int8),
            Self::Int4 { .. } => Some(Codes::Int4),
            Self::Nvfp4 { .. } | Self::Mxfp4 => Some(Codes::E2m1),
        }
    }

    /// Columns and type of the scales that lie among the codes.
    pub(super) fn group(self) -> Option<(usize, GroupScale)> {
        match self {
            Self::Nvfp4 { block } => Some((block, GroupScale::E4m3)),
            Self::Mxfp8 | Self::Mxfp4 => Some((32, GroupScale::E8m0)),
            _ => None,
        }
    }

    /// Columns of a block whose sum is scaled in f32.
    pub(super) fn scaled_block(self) -> Option<usize> {
        match self {
            Self::E4m3Squares => Some(SQUARE),
            Self::Int4 { block } => Some(block),
            _ => None,
        }
    }

    /// Columns and lines of a unit.
    pub(super) fn unit(self) -> (usize, usize) {
        let (cols, lines) = match self.codes() {
            None if self == Self::Float32 => (1, 4),
            None => (2, 4),
            Some(Codes::E4m3 | Codes::Int8) => (2, 2),
            Some(Codes::Int4 | Codes::E2m1) => (8, 4),
        };
        self.group().map_or((cols, lines), |(group, _)| (group, group / cols * lines + 1))
    }

    /// Lines of `cols` columns; `None` where there are too many to count.
    pub(super) fn lines(self, cols: usize) -> Option<usize> {
        let (unit, lines) = self.unit();
        cols.div_ceil(unit).checked_mul(lines)
    }

    /// The sum of columns that begins at `begin` ends here at the latest, where a sum has at most `most` columns.
    pub(super) fn end_of_sum(self, begin: usize, most: usize) -> usize {
        let Some(block) = self.scaled_block() else { return begin.saturating_add(most) };
        begin.saturating_add((block - begin % block).min(most))
    }

    /// Whether its block sizes are ones that there are kernels for.
    pub(super) fn is_supported(self) -> bool {
        match self {
            Self::Int4 { block } => block > 0 && block.is_multiple_of(16),
            Self::Nvfp4 { block } => block == 16 || block == 32,
            _ => true,
        }
    }
}

/// Rows and columns of a square of [`WeightType::E4m3Squares`].
pub(super) const SQUARE: usize = 128;

/// The upper half of an f32 whose lower half is zero.
const fn half(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

/// E4M3 (not NaN) as bf16.
#[inline(always)]
pub(super) const fn e4m3(code: u8) -> u16 {
    let magnitude = (code & 0x7f) as u16;
    let sign = ((code & 0x80) as u16) << 8;
    // Below 8 there is no hidden bit: multiples of 2^-9.
    let small = half(magnitude as f32 * (1.0 / 512.0));
    let normal = (magnitude << 4) + ((127 - 7) << 7);
    sign | if magnitude < 8 { small } else { normal }
}

/// A signed byte as bf16.
#[inline(always)]
pub(super) const fn int8(code: u8) -> u16 {
    half(code.cast_signed() as f32)
}

/// A nibble in two's complement as bf16.
#[inline(always)]
pub(super) const fn int4(code: u8) -> u16 {
    half(((code << 4).cast_signed() >> 4) as f32)
}

/// A nibble as [`stored_e2m1`] gives it, as bf16.
#[inline(always)]
pub(super) const fn e2m1(stored: u8) -> u16 {
    let (sign, power) = (((stored & 8) as u16) << 12, (((stored >> 1) & 3) as u16 + 126) << 7);
    // 2^-1 to 2^2, or 1.5 times that, or zero.
    if stored & 7 == 1 { 0 } else { sign | power | ((stored & 1) as u16) << 6 }
}

/// An E2M1 nibble so that the lowest bit says whether it is 1.5 times a power of two, or zero (of which there is one); else
/// it is a power of two. The two bits in the middle are the exponent.
const fn stored_e2m1(code: u8) -> u8 {
    // Zero and 0.5 change places.
    match code & 7 {
        0 => 1,
        1 => code & 8,
        _ => code,
    }
}

/// [`stored_e2m1`] of both nibbles of a byte.
pub(super) const STORED_E2M1: [u8; 256] = {
    let mut table = [0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = stored_e2m1(code as u8 & 15) | stored_e2m1(code as u8 >> 4) << 4;
        code += 1;
    }
    table
};

/// The byte that is kept for a scale: zero where the weights are below 2^-108. `None`: negative, NaN, or infinite.
pub(super) fn stored_scale(kind: GroupScale, byte: u8) -> Option<u8> {
    match kind {
        GroupScale::E4m3 if byte == 0x80 => Some(0),
        GroupScale::E4m3 => (byte < 0x7f).then_some(byte),
        GroupScale::E8m0 if byte < *E8M0.start() => Some(0),
        GroupScale::E8m0 => E8M0.contains(&byte).then_some(byte),
    }
}

/// A scale that is kept, as f32.
pub(super) fn scale(kind: GroupScale, stored: u8) -> f32 {
    f32::from_bits(match kind {
        GroupScale::E4m3 => u32::from(e4m3(stored)) << 16,
        GroupScale::E8m0 => u32::from(stored) << 23,
    })
}

/// A code times its scale, exactly. Zeros are positive.
#[inline(always)]
pub(super) fn scaled(code: u16, scale: f32) -> u16 {
    let product = half(f32::from_bits(u32::from(code) << 16) * scale);
    if product << 1 == 0 { 0 } else { product }
}

/// The place of the pair of row `row` of a panel among the 128 bytes of two columns of 8-bit codes.
pub(super) const fn byte_of_pair(row: usize) -> usize {
    let (line, upper, row) = (row / 32, row % 32 / 16, row % 16);
    line * 64 + row / 4 * 16 + upper * 8 + row % 4 * 2
}

/// Eight nibbles of a row so that the even ones are in the lower half.
pub(super) const fn halves_of_nibbles(word: u32) -> u32 {
    const fn even(word: u32) -> u32 {
        let x = word & 0x0f0f_0f0f;
        let x = (x | x >> 4) & 0x00ff_00ff;
        (x | x >> 8) & 0xffff
    }
    even(word) | even(word >> 4) << 16
}

/// Lines as bytes.
pub(super) fn bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: a line is 64 initialized bytes, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

/// Lines as bytes.
pub(super) fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as in `bytes`; any bytes are a line.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

const _: () = assert!(PANEL == LANES * 4, "a line of scales has one for each row of a panel");
