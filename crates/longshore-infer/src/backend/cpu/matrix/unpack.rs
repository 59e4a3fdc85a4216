//! Quantized weights into the lines of bf16 pairs that the kernels of products read: written plainly, for compilers to
//! vectorize. What is the same with intrinsics is in `fused_x86.rs`.

#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use super::codes::{self, Codes, e2m1, e4m3, int4, int8, scaled};
#[cfg(target_arch = "x86_64")]
use super::fused_x86;
use super::{Isa, LANES, Line, PANEL, WeightType};
use crate::backend::cpu::isa::per_isa;

/// Lines of a pair of columns of bf16.
const PAIR_LINES: usize = PANEL / LANES;

/// The pairs of the first `out.len() / 4` pairs of columns of `units`, which are whole units.
#[inline(always)]
fn unpack_body(weight_type: WeightType, units: &[Line], out: &mut [Line]) {
    let Some(codes) = weight_type.codes() else { return };
    let (unit_cols, unit_lines) = weight_type.unit();
    for (unit, out) in units.chunks_exact(unit_lines).zip(out.chunks_mut(unit_cols.div_ceil(2) * PAIR_LINES)) {
        let (scales, lines) = unit.split_at(usize::from(weight_type.group().is_some()));
        match codes {
            Codes::E4m3 => bytes(lines, out, e4m3),
            Codes::Int8 => bytes(lines, out, int8),
            Codes::Int4 => nibbles(lines, out, int4),
            Codes::E2m1 => nibbles(lines, out, e2m1),
        }
        if let (Some((_, kind)), Some(stored)) = (weight_type.group(), codes::bytes(scales).first_chunk::<PANEL>()) {
            let scales = stored.map(|stored| codes::scale(kind, stored));
            for pairs in out.chunks_exact_mut(PAIR_LINES) {
                for (line, scales) in pairs.iter_mut().zip(scales.chunks_exact(LANES)) {
                    for (word, &scale) in line.0.iter_mut().zip(scales) {
                        let (even, odd) = (scaled(*word as u16, scale), scaled((*word >> 16) as u16, scale));
                        *word = u32::from(even) | u32::from(odd) << 16;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn bytes(lines: &[Line], out: &mut [Line], widen: impl Fn(u8) -> u16) {
    for (lines, out) in codes::bytes(lines).as_chunks::<{ 2 * PANEL }>().0.iter().zip(out.chunks_exact_mut(PAIR_LINES))
    {
        let mut wide = [0; 2 * PANEL];
        for (wide, &code) in wide.iter_mut().zip(lines) {
            *wide = widen(code);
        }
        // Eight codes are four rows; see `byte_of_pair`.
        for (i, wide) in wide.as_chunks::<8>().0.iter().enumerate() {
            let (line, lane) = (i / 8 * 2 + i % 2, i % 8 / 2 * 4);
            for (word, pair) in out[line].0[lane..lane + 4].iter_mut().zip(wide.as_chunks::<2>().0) {
                *word = u32::from(pair[0]) | u32::from(pair[1]) << 16;
            }
        }
    }
}

#[inline(always)]
fn nibbles(lines: &[Line], out: &mut [Line], widen: impl Fn(u8) -> u16) {
    for (lines, out) in lines.chunks_exact(PAIR_LINES).zip(out.chunks_mut(4 * PAIR_LINES)) {
        for (pair, out) in out.chunks_exact_mut(PAIR_LINES).enumerate() {
            for (line, out) in lines.iter().zip(out) {
                for (out, &word) in out.0.iter_mut().zip(&line.0) {
                    let word = word >> (4 * pair);
                    let (even, odd) = (widen((word & 15) as u8), widen((word >> 16 & 15) as u8));
                    *out = u32::from(even) | u32::from(odd) << 16;
                }
            }
        }
    }
}

per_isa! {
    fn unpack_plain(weight_type: WeightType, units: &[Line], out: &mut [Line]) = unpack_body;
}

/// The first `cols` columns of `units`, which are whole units, as lines of bf16 pairs.
pub(super) fn unpack(isa: Isa, weight_type: WeightType, units: &[Line], cols: usize, out: &mut [Line]) {
    let out = &mut out[..cols.div_ceil(2) * PAIR_LINES];
    #[cfg(target_arch = "x86_64")]
    if let Some(unpack) = fused_x86::unpack(isa, weight_type) {
        // SAFETY: it is given only where this processor has its instructions.
        return unsafe { unpack(weight_type, units, cols, out) };
    }
    unpack_plain(isa, weight_type, units, out);
}

/// Row `row` of a panel, before the scales in f32.
pub(super) fn row(weight_type: WeightType, panel: &[Line], row: usize, out: &mut [f32]) {
    let Some(codes) = weight_type.codes() else { return };
    let (unit_cols, unit_lines) = weight_type.unit();
    for (unit, out) in panel.chunks_exact(unit_lines).zip(out.chunks_mut(unit_cols)) {
        let (scales, lines) = unit.split_at(usize::from(weight_type.group().is_some()));
        for (col, out) in out.iter_mut().enumerate() {
            let nibble = || {
                let word = lines[col / 8 * PAIR_LINES + row / LANES].0[row % LANES];
                (word >> (col % 8 / 2 * 4 + col % 2 * 16) & 15) as u8
            };
            let byte = || codes::bytes(lines)[col / 2 * 2 * PANEL + codes::byte_of_pair(row) + col % 2];
            let mut value = match codes {
                Codes::E4m3 => e4m3(byte()),
                Codes::Int8 => int8(byte()),
                Codes::Int4 => int4(nibble()),
                Codes::E2m1 => e2m1(nibble()),
            };
            if let (Some((_, kind)), Some(&stored)) = (weight_type.group(), codes::bytes(scales).get(row)) {
                value = scaled(value, codes::scale(kind, stored));
            }
            *out = f32::from_bits(u32::from(value) << 16);
        }
    }
}
