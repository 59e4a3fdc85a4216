//! The loops of fake quantization, compiled for each instruction set.
#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use crate::blocks::{Blocks, MX_BLOCK, NVFP4_BLOCK};
use crate::isa::per_isa;
use crate::number::{E2m1, E4m3, Minifloat, Rounding, max_bits, power_of_two, select};

/// An amax of at most this (half precision's 0) is taken for zero.
const ZERO_AMAX: f32 = 1.0 / 16_777_216.0;

/// A format whose scale is made of an amax from calibration.
pub(super) trait Scaled {
    /// What values are multiplied by, and what [`Self::apply`] needs to undo it.
    fn scales(amax: f32) -> (f32, f32);
    /// Quantizes and dequantizes.
    fn apply(x: f32, scale: f32, undo: f32) -> f32;
}

/// E4M3: multiplied by 448 times the reciprocal of the amax (torch divides a number by a tensor so), and by the reciprocal
/// of that.
pub(super) struct Fp8;

impl Scaled for Fp8 {
    #[inline(always)]
    fn scales(amax: f32) -> (f32, f32) {
        let scale = 1.0 / if amax <= ZERO_AMAX { 1.0 } else { amax } * 448.0;
        (scale, 1.0 / scale)
    }

    #[inline(always)]
    fn apply(x: f32, scale: f32, undo: f32) -> f32 {
        E4m3::round(x * scale) * undo
    }
}

/// Integers of so many bits, the most negative one included: multiplied by max/amax, and divided by it.
pub(super) struct Int<const BITS: u32>;

impl<const BITS: u32> Scaled for Int<BITS> {
    #[inline(always)]
    fn scales(amax: f32) -> (f32, f32) {
        let bound = ((1u32 << (BITS - 1)) - 1) as f32;
        if amax <= ZERO_AMAX { (0.0, 1.0) } else { (bound / amax, bound / amax) }
    }

    #[inline(always)]
    fn apply(x: f32, scale: f32, undo: f32) -> f32 {
        let bound = (1u32 << (BITS - 1)) as f32;
        (x * scale).clamp(-bound, bound - 1.0).round_ties_even() / undo
    }
}

#[inline(always)]
fn scaled_body<R: Rounding, Q: Scaled>(values: &mut [f32], cols: usize, blocks: Blocks, amax: &[f32]) {
    for (r, row) in values.chunks_exact_mut(cols).enumerate() {
        let amax = &amax[blocks.in_row(r)];
        for (i, block) in row.chunks_mut(blocks.cols).enumerate() {
            let (scale, undo) = Q::scales(amax[i]);
            for x in block {
                *x = R::round(Q::apply(*x, scale, undo));
            }
        }
    }
}

per_isa! {
    pub(super) fn scaled[R: Rounding, Q: Scaled][R, Q](values: &mut [f32], cols: usize, blocks: Blocks, amax: &[f32]) = scaled_body;
}

/// Rounds a block to multiples of E2M1 values under `scale`. Zeros lose their sign, values that become zero do not.
#[inline(always)]
fn e2m1_block<R: Rounding>(block: &mut [f32], scale: f32) {
    for x in block {
        let rounded = R::round(E2m1::round(*x / scale) * scale);
        *x = f32::from_bits(select(*x == 0.0, 0, rounded.to_bits()));
    }
}

#[inline(always)]
fn nvfp4_block<R: Rounding>(block: &mut [f32], scale_2: f32) {
    let largest = f32::from_bits(max_bits(block));
    let scale = E4m3::round(largest / (6.0 * scale_2)) * scale_2;
    // The kernel's rule: a block of tiny values is divided by 1 and becomes zero.
    e2m1_block::<R>(block, if scale >= 1e-5 { scale } else { 1.0 });
}

#[inline(always)]
fn nvfp4_body<R: Rounding>(values: &mut [f32], cols: usize, amax: f32) {
    let scale_2 = amax / (6.0 * 448.0);
    let scale_2 = if scale_2 > 0.0 { scale_2 } else { 1e-12 };
    for row in values.chunks_exact_mut(cols) {
        let (blocks, rest) = row.as_chunks_mut::<NVFP4_BLOCK>();
        for block in blocks {
            nvfp4_block::<R>(block, scale_2);
        }
        nvfp4_block::<R>(rest, scale_2);
    }
}

per_isa! { pub(super) fn nvfp4[R: Rounding][R](values: &mut [f32], cols: usize, amax: f32) = nvfp4_body; }

#[inline(always)]
fn nvfp4_static_body<R: Rounding>(
    values: &mut [f32],
    cols: usize,
    blocks: Blocks,
    amax: &[f32],
    global: f32,
    largest_scale: f32,
) {
    // The scales are themselves fake quantized, as E4M3 under the largest of them.
    let scales_amax = global * (448.0 / largest_scale) / 6.0;
    let (up, down) = Fp8::scales(scales_amax);
    for (r, row) in values.chunks_exact_mut(cols).enumerate() {
        let amax = &amax[blocks.in_row(r)];
        for (i, block) in row.chunks_mut(blocks.cols).enumerate() {
            let scale = Fp8::apply(amax[i] / 6.0, up, down);
            if scale == 0.0 {
                block.fill(0.0);
            } else if let Some(block) = block.as_mut_array::<NVFP4_BLOCK>() {
                e2m1_block::<R>(block, scale);
            } else {
                e2m1_block::<R>(block, scale);
            }
        }
    }
}

per_isa! {
    pub(super) fn nvfp4_static[R: Rounding][R](
        values: &mut [f32],
        cols: usize,
        blocks: Blocks,
        amax: &[f32],
        global: f32,
        largest_scale: f32,
    ) = nvfp4_static_body;
}

/// What the values of an MX block are rounded to.
pub(super) trait Steps {
    /// The largest one.
    const LARGEST: f32;
    /// The nearest one, saturating.
    fn nearest(x: f32) -> f32;
}

impl<F: Minifloat> Steps for F {
    const LARGEST: f32 = F::MAX;

    #[inline(always)]
    fn nearest(x: f32) -> f32 {
        F::round(x)
    }
}

/// Integers up to 127 either way.
pub(super) struct Int8Steps;

impl Steps for Int8Steps {
    const LARGEST: f32 = 127.0;

    #[inline(always)]
    fn nearest(x: f32) -> f32 {
        x.clamp(-127.0, 127.0).round_ties_even()
    }
}

/// The exponent of the smallest power of two that is not below `ratio`, found by looking at its bits.
#[inline(always)]
fn exponent_above(ratio: f32) -> i32 {
    let (exponent, mantissa) = (ratio.to_bits() >> 23, ratio.to_bits() & 0x7f_ffff);
    // Subnormal up to 2^-127, which is E8M0's smallest.
    let lowest = exponent == 0 && mantissa <= 0x40_0000;
    let up = mantissa > 0 && exponent != 0xfe && !lowest;
    exponent.cast_signed() - 127 + i32::from(up)
}

#[inline(always)]
fn mx_block<R: Rounding, S: Steps>(block: &mut [f32]) {
    // Infinity counts as the largest float, NaN as nothing.
    let largest = block.iter().fold(0, |max: u32, x| {
        let a = x.abs().to_bits();
        max.max(select(a > f32::INFINITY.to_bits(), 0, a.min(f32::MAX.to_bits())))
    });
    let exponent = if largest == 0 { 0 } else { exponent_above(f32::from_bits(largest) / S::LARGEST) };
    let (down, up) = (power_of_two(-exponent), power_of_two(exponent));
    for x in block {
        let rounded = R::round(S::nearest(*x * down) * up);
        *x = f32::from_bits(select(*x == 0.0, 0, rounded.to_bits()));
    }
}

#[inline(always)]
fn mx_body<R: Rounding, S: Steps>(values: &mut [f32], cols: usize) {
    for row in values.chunks_exact_mut(cols) {
        let (blocks, rest) = row.as_chunks_mut::<MX_BLOCK>();
        for block in blocks {
            mx_block::<R, S>(block);
        }
        mx_block::<R, S>(rest);
    }
}

per_isa! { pub(super) fn mx[R: Rounding, S: Steps][R, S](values: &mut [f32], cols: usize) = mx_body; }
