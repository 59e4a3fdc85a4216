//! Rotary position embedding: the first half of a head's channels with the second (`apply_rotary_pos_emb` of transformers).

use super::ROWS_PER_TASK;
use super::attention::KvState;
use super::isa::{Isa, per_isa};
use super::math::sin_cos;
use super::norm::rounded;
use super::pool::Pool;
use super::tasks::row_blocks;
use crate::backend::Segment;
use longshore_convert::config::Attention;

/// Rotates the queries and keys of all segments; `qkv` are the rows of the whole batch. With `rounds`, sines and cosines are
/// those of bfloat16, as transformers has them.
pub(super) fn run(
    pool: &Pool,
    isa: Isa,
    spec: &Attention,
    frequencies: &[f32],
    rounds: bool,
    segments: &[Segment<'_, KvState>],
    qkv: &mut [f32],
) {
    let (dim, groups) = (spec.head_dim as usize, spec.kv_heads as usize);
    let rotated = (spec.heads as usize / groups + 1) * dim;
    let group_width = rotated + dim;
    let mut positions = vec![0; qkv.len() / (groups * group_width)];
    for segment in segments {
        for (position, slot) in (segment.state.tokens()..).zip(&mut positions[segment.rows.clone()]) {
            *slot = position;
        }
    }
    row_blocks(pool, qkv, groups * group_width, ROWS_PER_TASK, |first, rows| {
        let (mut sin, mut cos) = (vec![0.0; dim / 2], vec![0.0; dim / 2]);
        for (row, &position) in rows.chunks_exact_mut(groups * group_width).zip(&positions[first..]) {
            angles(isa, position as f32, frequencies, rounds, &mut sin, &mut cos);
            for group in row.chunks_exact_mut(group_width) {
                rotate(isa, &sin, &cos, &mut group[..rotated]);
            }
        }
    });
}

#[inline(always)]
fn angles_body(position: f32, frequencies: &[f32], rounds: bool, sin: &mut [f32], cos: &mut [f32]) {
    for ((sin, cos), &frequency) in sin.iter_mut().zip(cos).zip(frequencies) {
        let (s, c) = sin_cos(position * frequency);
        (*sin, *cos) = if rounds { (rounded(s), rounded(c)) } else { (s, c) };
    }
}

per_isa! {
    /// Sines and cosines of a position's angles.
    fn angles(position: f32, frequencies: &[f32], rounds: bool, sin: &mut [f32], cos: &mut [f32]) = angles_body;
}

#[inline(always)]
fn rotate_body(sin: &[f32], cos: &[f32], heads: &mut [f32]) {
    let half = sin.len();
    for head in heads.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for (((a, b), &sin), &cos) in first.iter_mut().zip(second).zip(sin).zip(cos) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

per_isa! {
    /// Rotates whole heads.
    fn rotate(sin: &[f32], cos: &[f32], heads: &mut [f32]) = rotate_body;
}

#[cfg(test)]
mod tests {
    use super::super::Precision;
    use super::*;

    const SPEC: Attention = Attention { heads: 6, kv_heads: 2, head_dim: 10, rotary: None };
    const WIDTH: usize = 100;
    const FREQUENCIES: [f32; 5] = [1.0, 0.3, 0.05, 0.002, 0.0];

    /// Rows of two sequences that hold 5 and 1,000,000 tokens, rotated.
    fn rotated(isa: Isa, threads: usize, rounds: bool, x: &[f32]) -> Vec<f32> {
        let pool = Pool::new(threads).expect("threads start");
        let mut states = [5, 1_000_000].map(|tokens| {
            let mut state = KvState::new(&SPEC, Precision::Float32);
            state.truncate(tokens);
            state
        });
        let [first, second] = &mut states;
        let segments =
            [(0..17, first), (17..40, second)].map(|(rows, state)| Segment { rows, state, prefill: true, trail: None });
        let mut out = x.to_vec();
        run(&pool, isa, &SPEC, &FREQUENCIES, rounds, &segments, &mut out);
        out
    }

    #[test]
    fn queries_and_keys_turn_by_their_position_and_values_stay() {
        let x: Vec<f32> = (0..40 * WIDTH).map(|i| ((i * 37) as f32 * 0.11).sin()).collect();
        for rounds in [false, true] {
            let want = rotated(Isa::Scalar, 1, rounds, &x);
            for isa in Isa::available() {
                let got = rotated(isa, 3, rounds, &x);
                assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}");
            }
            for (row, (x, got)) in x.chunks(WIDTH).zip(want.chunks(WIDTH)).enumerate() {
                let position = if row < 17 { 5 + row } else { 1_000_000 + row - 17 };
                for (i, (&before, &after)) in x.iter().zip(got).enumerate() {
                    let (head, channel) = (i / 10, i % 10);
                    if head % 5 == 4 {
                        assert_eq!(before.to_bits(), after.to_bits(), "a value");
                        continue;
                    }
                    let angle = f64::from(position as f32 * FREQUENCIES[channel % 5]);
                    let turn = |x: f64| if rounds { rounded(x as f32) } else { x as f32 };
                    let (cos, sin) = (turn(angle.cos()), turn(angle.sin()));
                    let other = if channel < 5 { -x[i + 5] } else { x[i - 5] };
                    let want = before * cos + other * sin;
                    assert!((after - want).abs() <= 2e-7, "row {row}, {i}: {after} instead of {want}");
                }
            }
        }
    }
}
