//! The loops of packing, compiled for each instruction set.
#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use super::MIN_BLOCK_SCALE;
use crate::blocks::{Blocks, MX_BLOCK};
use crate::isa::per_isa;
use crate::number::{E2m1, E4m3, Minifloat, Rounding, max_bits, power_of_two};

/// Adding this leaves a float's nearest integer, ties to even, in the low bits as two's complement.
const TO_INTEGER: f32 = 12_582_912.0;

/// The nearest integer to `x` within `-bound..bound`, in the low bits.
#[inline(always)]
fn integer(x: f32, bound: f32) -> u8 {
    (x.clamp(-bound, bound - 1.0) + TO_INTEGER).to_bits() as u8
}

#[inline(always)]
fn fp8_body<R: Rounding>(values: &[f32], cols: usize, blocks: Blocks, scales: &[f32], weight: &mut [u8]) {
    for (r, (row, weight)) in values.chunks_exact(cols).zip(weight.chunks_exact_mut(cols)).enumerate() {
        let scales = &scales[blocks.in_row(r)];
        for (i, codes) in weight.chunks_exact_mut(blocks.cols).enumerate() {
            let (block, scale) = (&row[i * blocks.cols..][..blocks.cols], scales[i]);
            for (code, &x) in codes.iter_mut().zip(block) {
                *code = E4m3::encode(R::round(x / scale));
            }
        }
    }
}

per_isa! {
    pub(super) fn fp8[R: Rounding][R](
        values: &[f32],
        cols: usize,
        blocks: Blocks,
        scales: &[f32],
        weight: &mut [u8],
    ) = fp8_body;
}

#[inline(always)]
fn int8_body(values: &[f32], cols: usize, blocks: Blocks, scales: &[f32], weight: &mut [u8]) {
    for (r, (row, weight)) in values.chunks_exact(cols).zip(weight.chunks_exact_mut(cols)).enumerate() {
        let scale = scales[blocks.in_row(r).start];
        for (code, &x) in weight.iter_mut().zip(row) {
            *code = integer(x / scale, 128.0);
        }
    }
}

per_isa! {
    pub(super) fn int8[][](values: &[f32], cols: usize, blocks: Blocks, scales: &[f32], weight: &mut [u8]) = int8_body;
}

#[inline(always)]
fn int4_body(values: &[f32], cols: usize, blocks: Blocks, scales: &[f32], weight: &mut [u8]) {
    for (pair, weight) in weight.chunks_exact_mut(cols).enumerate() {
        let (even, odd) = values[pair * 2 * cols..][..2 * cols].split_at(cols);
        let (even_scales, odd_scales) = (&scales[blocks.in_row(2 * pair)], &scales[blocks.in_row(2 * pair + 1)]);
        for (i, codes) in weight.chunks_exact_mut(blocks.cols).enumerate() {
            let start = i * blocks.cols;
            let (even, odd) = (&even[start..][..blocks.cols], &odd[start..][..blocks.cols]);
            let (even_scale, odd_scale) = (even_scales[i], odd_scales[i]);
            for ((code, &low), &high) in codes.iter_mut().zip(even).zip(odd) {
                *code = (integer(low / even_scale, 8.0) & 0xf) | (integer(high / odd_scale, 8.0) << 4);
            }
        }
    }
}

per_isa! {
    pub(super) fn int4[][](values: &[f32], cols: usize, blocks: Blocks, scales: &[f32], weight: &mut [u8]) = int4_body;
}

/// Writes codes of four bits, the even one of a pair in the low nibble.
#[inline(always)]
fn nibbles<const N: usize>(codes: &[u8; N], bytes: &mut [u8]) {
    let pairs = codes.as_chunks::<2>().0;
    let bytes = &mut bytes[..N / 2];
    let mut i = 0;
    while i < N / 2 {
        let pair = u16::from_le_bytes(pairs[i]);
        bytes[i] = (pair | (pair >> 4)) as u8;
        i += 1;
    }
}

/// Encodes a block. The loops here and in [`nibbles`] count because iterators over arrays as short as these are not
/// inlined everywhere, and cost more than the work.
#[inline(always)]
fn four_bits<const N: usize>(block: &[f32; N], encode: impl Fn(f32) -> u8, bytes: &mut [u8]) {
    let mut codes = [0; N];
    let mut i = 0;
    while i < N {
        codes[i] = encode(block[i]);
        i += 1;
    }
    nibbles(&codes, bytes);
}

#[inline(always)]
fn e2m1_block<const N: usize>(block: &[f32; N], scale: f32, bytes: &mut [u8]) {
    let encode = |x: f32| {
        let x = x / scale;
        (E2m1::magnitude_code(x) | (u32::from(x < 0.0) << 3)) as u8
    };
    four_bits(block, encode, bytes);
}

#[inline(always)]
fn e2m1_body<const N: usize>(values: &[f32], scale_2: f32, weight: &mut [u8], scales: &[u8]) {
    for (i, block) in values.as_chunks::<N>().0.iter().enumerate() {
        e2m1_block(block, E4m3::decode(scales[i]) * scale_2, &mut weight[i * N / 2..][..N / 2]);
    }
}

per_isa! {
    pub(super) fn e2m1[const N: usize][N](values: &[f32], scale_2: f32, weight: &mut [u8], scales: &[u8]) = e2m1_body;
}

#[inline(always)]
fn nvfp4_body<const N: usize>(values: &[f32], scale_2: f32, weight: &mut [u8], scales: &mut [u8]) {
    for (i, block) in values.as_chunks::<N>().0.iter().enumerate() {
        let scale = f32::from_bits(max_bits(block)) / (6.0 * scale_2);
        let scale = if scale == 0.0 { 1.0 } else { scale };
        let code = E4m3::encode(scale.clamp(MIN_BLOCK_SCALE, 448.0));
        scales[i] = code;
        e2m1_block(block, E4m3::decode(code) * scale_2, &mut weight[i * N / 2..][..N / 2]);
    }
}

per_isa! {
    pub(super) fn nvfp4[const N: usize][N](values: &[f32], scale_2: f32, weight: &mut [u8], scales: &mut [u8]) = nvfp4_body;
}

/// The E8M0 code of ceil(log2(`ratio`)), at least 0, where the logarithm is rounded to single precision before it is
/// rounded up: a ratio that exceeds a power of two by too little for its logarithm to show counts as that power.
#[inline(always)]
pub(super) fn e8m0_above(ratio: f32) -> u8 {
    let bits = ratio.to_bits();
    let (code, mantissa) = (bits >> 23, bits & 0x7f_ffff);
    if code == 0 {
        // Subnormal: up to 2^-127, and 11 steps more that its logarithm does not show.
        return u8::from(mantissa > 0x40_0000 + HIDDEN[5]);
    }
    let exponent = code.cast_signed() - 127;
    // The spacing of floats above the exponent as a number, as a power of two: below zero they get denser, not sparser.
    let spacing = (exponent ^ (exponent >> 31)).cast_unsigned();
    let up = mantissa > HIDDEN[(32 - spacing.leading_zeros()) as usize];
    (code + u32::from(up)).min(254) as u8
}

/// floor(2^(n-2) ln 2): how many steps of the mantissa above a power of two change its logarithm by no more than half the
/// spacing of floats there, by the number of bits of the exponent.
const HIDDEN: [u32; 8] = [0, 0, 0, 1, 2, 5, 11, 22];

#[inline(always)]
fn mxfp8_body(values: &[f32], weight: &mut [u8], scales: &mut [u8]) {
    let blocks = values.as_chunks::<MX_BLOCK>().0;
    for (i, codes) in weight.as_chunks_mut::<MX_BLOCK>().0.iter_mut().enumerate() {
        let block = &blocks[i];
        scales[i] = e8m0_above(f32::from_bits(max_bits(block)) / E4m3::MAX);
        let up = power_of_two(127 - i32::from(scales[i]));
        for (code, &x) in codes.iter_mut().zip(block) {
            *code = E4m3::encode(x * up);
        }
    }
}

per_isa! { pub(super) fn mxfp8[][](values: &[f32], weight: &mut [u8], scales: &mut [u8]) = mxfp8_body; }

/// E2M1 with ties towards zero, and with a sign for zero.
#[inline(always)]
fn e2m1_ties_down(x: f32) -> u8 {
    let exceeds = |bound: f32| u32::from(x.abs() > bound);
    let below_2 = exceeds(0.25) + exceeds(0.75) + exceeds(1.25) + exceeds(1.75);
    let magnitude = below_2 + exceeds(2.5) + exceeds(3.5) + exceeds(5.0);
    (magnitude | (u32::from(x <= 0.0) << 3)) as u8
}

#[inline(always)]
fn mxfp4_body(values: &[f32], weight: &mut [u8], scales: &mut [u8]) {
    let blocks = values.as_chunks::<MX_BLOCK>().0;
    for (i, bytes) in weight.as_chunks_mut::<{ MX_BLOCK / 2 }>().0.iter_mut().enumerate() {
        let block = &blocks[i];
        scales[i] = e8m0_above(f32::from_bits(max_bits(block)) / E2m1::MAX);
        let up = power_of_two(127 - i32::from(scales[i]));
        four_bits(block, |x| e2m1_ties_down(x * up), bytes);
    }
}

per_isa! { pub(super) fn mxfp4[][](values: &[f32], weight: &mut [u8], scales: &mut [u8]) = mxfp4_body; }
