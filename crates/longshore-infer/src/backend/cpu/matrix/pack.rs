//! Rows of a checkpoint's tensor into panels, and f32 into bf16.

#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use super::{LANES, Line, Matrix, PANEL, WeightType};
use crate::backend::cpu::isa::per_isa;
use half::bf16;

/// Lines between two steps of the same 16 rows.
const STEP_LINES: usize = PANEL / LANES;

pub(super) fn pack_rows(matrix: &mut Matrix, first_row: usize, data: &[u8]) {
    let row_size = matrix.cols.checked_mul(matrix.weight_type.size()).expect("a row fits the address space");
    if row_size == 0 {
        assert!(data.is_empty() && first_row <= matrix.rows, "rows without columns have no data");
        return;
    }
    let rows = data.len() / row_size;
    assert!(
        data.len().is_multiple_of(row_size) && matrix.rows.checked_sub(first_row).is_some_and(|left| rows <= left),
        "{} bytes from row {first_row} of [{}, {}]",
        data.len(),
        matrix.rows,
        matrix.cols
    );
    let panel_lines = matrix.panel_lines();
    let (mut row, mut data) = (first_row, data);
    while !data.is_empty() {
        let lane = row % LANES;
        let n = (LANES - lane).min(data.len() / row_size);
        let (these, rest) = data.split_at(n * row_size);
        let first_line = row / PANEL * panel_lines + row % PANEL / LANES;
        let lines = &mut matrix.lines[first_line..];
        pack_lanes(lines, lane, these, row_size);
        (row, data) = (row + n, rest);
    }
    debug_assert!(matrix.weight_type != WeightType::Float32 || row_size.is_multiple_of(4), "words of f32");
}

/// Rows into the lanes from `first` of every fourth line.
fn pack_lanes(lines: &mut [Line], first: usize, data: &[u8], row_size: usize) {
    // So many words of all the rows at a time that their lines stay in the nearest cache.
    const WORDS: usize = 16;
    for (i, lines) in lines.chunks_mut(WORDS * STEP_LINES).take(row_size.div_ceil(4 * WORDS)).enumerate() {
        let from = i * 4 * WORDS;
        let to = row_size.min(from + 4 * WORDS);
        for (lane, row) in data.chunks_exact(row_size).enumerate() {
            pack_words(lines, first + lane, &row[from..to]);
        }
    }
}

/// Words of one row into one lane; half a word is a lower half.
fn pack_words(lines: &mut [Line], lane: usize, words: &[u8]) {
    let (words, half) = words.as_chunks::<4>();
    for (line, word) in lines.iter_mut().step_by(STEP_LINES).zip(words) {
        line.0[lane] = u32::from_le_bytes(*word);
    }
    if let &[low, high] = half {
        lines[words.len() * STEP_LINES].0[lane] = u32::from(u16::from_le_bytes([low, high]));
    }
}

/// See [`super::to_bf16`]; the rounding is that of `half`.
#[inline(always)]
fn to_bf16_body(x: &[f32], out: &mut [bf16]) {
    for (x, out) in x.iter().zip(out) {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff).wrapping_add(bits >> 16 & 1) >> 16;
        let quiet = bits >> 16 | 0x40;
        *out = bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded } as u16);
    }
}

per_isa! {
    pub(super) fn to_bf16(x: &[f32], out: &mut [bf16]) = to_bf16_body;
}
