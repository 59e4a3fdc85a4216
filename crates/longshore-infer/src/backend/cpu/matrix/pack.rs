//! Rows of a checkpoint's tensor into panels, and f32 into bf16.

#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use super::codes::{self, Codes, STORED_E2M1};
use super::{LANES, Line, Matrix, PANEL, RowScales, WeightType};
use crate::backend::cpu::isa::per_isa;
use half::bf16;

/// Lines between two steps of the same 16 rows.
const STEP_LINES: usize = PANEL / LANES;

pub(super) fn pack_rows(matrix: &mut Matrix, first_row: usize, data: &[u8]) {
    let row_size = matrix.weight_type.row_size(matrix.cols).expect("a row fits the address space");
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
    if let Some(codes) = matrix.weight_type.codes() {
        for (row, data) in (first_row..).zip(data.chunks_exact(row_size)) {
            let panel = &mut matrix.lines[row / PANEL * panel_lines..][..panel_lines];
            let valid = match codes {
                Codes::E4m3 | Codes::Int8 => pack_bytes(matrix.weight_type, panel, row % PANEL, data),
                Codes::Int4 | Codes::E2m1 => pack_nibbles(matrix.weight_type, matrix.cols, panel, row % PANEL, data),
            };
            if !valid {
                matrix.row_scales[row / PANEL][row % PANEL] = f32::NAN;
            }
        }
        return;
    }
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

/// A row of 8-bit codes. False if there is a NaN, for which there is no code here.
fn pack_bytes(weight_type: WeightType, panel: &mut [Line], row: usize, data: &[u8]) -> bool {
    let (unit_cols, unit_lines) = weight_type.unit();
    let head = usize::from(weight_type.group().is_some());
    let at = codes::byte_of_pair(row);
    // Kernels that scale codes in registers know one zero.
    let negative_zero = |code: u8| weight_type == WeightType::Mxfp8 && code == 0x80;
    let not_a_number = |code: u8| weight_type.codes() == Some(Codes::E4m3) && code & 0x7f == 0x7f;
    let mut valid = true;
    for (unit, data) in panel.chunks_exact_mut(unit_lines).zip(data.chunks(unit_cols)) {
        for (lines, data) in unit[head..].chunks_exact_mut(2).zip(data.chunks(2)) {
            for (to, &code) in codes::bytes_mut(lines)[at..].iter_mut().zip(data) {
                let nan = not_a_number(code);
                valid &= !nan;
                *to = if nan || negative_zero(code) { 0 } else { code };
            }
        }
    }
    valid
}

/// A row of 4-bit codes, which are all numbers. What is behind the last of `cols` is not looked at.
fn pack_nibbles(weight_type: WeightType, cols: usize, panel: &mut [Line], row: usize, data: &[u8]) -> bool {
    let (unit_cols, unit_lines) = weight_type.unit();
    let head = usize::from(weight_type.group().is_some());
    let is_e2m1 = weight_type.codes() == Some(Codes::E2m1);
    for (i, (unit, data)) in panel.chunks_exact_mut(unit_lines).zip(data.chunks(unit_cols / 2)).enumerate() {
        for (j, (lines, data)) in unit[head..].chunks_exact_mut(PANEL / LANES).zip(data.chunks(4)).enumerate() {
            let mut word = [0; 4];
            word[..data.len()].copy_from_slice(data);
            let left = (cols - i * unit_cols - j * 8).min(8) as u32;
            let mut word = u32::from_le_bytes(word) & u32::MAX >> (32 - 4 * left);
            if is_e2m1 {
                word = u32::from_le_bytes(word.to_le_bytes().map(|byte| STORED_E2M1[usize::from(byte)]));
            }
            lines[row / LANES].0[row % LANES] = codes::halves_of_nibbles(word);
        }
    }
    true
}

/// See [`Matrix::pack_scales`].
pub(super) fn pack_scales(matrix: &mut Matrix, first_row: usize, scales: RowScales<'_>) {
    let weight_type = matrix.weight_type;
    let rows_each = if weight_type == WeightType::E4m3Squares { codes::SQUARE } else { 1 };
    let (block, given) = match scales {
        RowScales::Float32(scales) => (weight_type.scaled_block(), scales.len()),
        RowScales::Bytes(scales) => (weight_type.group().map(|(cols, _)| cols), scales.len()),
    };
    let block = block.unwrap_or_else(|| panic!("{weight_type:?} has no such scales"));
    let per_row = matrix.cols.div_ceil(block);
    let rows = given.checked_div(per_row).unwrap_or(0);
    assert!(
        rows * per_row == given
            && first_row.is_multiple_of(rows_each)
            && matrix.rows.checked_sub(first_row).is_some_and(|left| rows <= left.div_ceil(rows_each)),
        "{given} scales from row {first_row} of [{}, {}]",
        matrix.rows,
        matrix.cols
    );
    if given == 0 {
        return;
    }
    match scales {
        RowScales::Float32(scales) => {
            for (i, scales) in scales.chunks_exact(per_row).enumerate() {
                let first = first_row + i * rows_each;
                for row in first..matrix.rows.min(first + rows_each) {
                    let of_panel = &mut matrix.block_scales[row / PANEL * per_row..][..per_row];
                    of_panel.iter_mut().zip(scales).for_each(|(to, &scale)| to[row % PANEL] = scale);
                }
            }
        }
        RowScales::Bytes(scales) => {
            let (panel_lines, (_, unit_lines)) = (matrix.panel_lines(), weight_type.unit());
            for (row, scales) in (first_row..).zip(scales.chunks_exact(per_row)) {
                let panel = &mut matrix.lines[row / PANEL * panel_lines..][..panel_lines];
                for (unit, &scale) in panel.chunks_exact_mut(unit_lines).zip(scales) {
                    let stored = weight_type.group().and_then(|(_, kind)| codes::stored_scale(kind, scale));
                    codes::bytes_mut(&mut unit[..1])[row % PANEL] = stored.unwrap_or(0);
                    if stored.is_none() {
                        matrix.row_scales[row / PANEL][row % PANEL] = f32::NAN;
                    }
                }
            }
        }
    }
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
