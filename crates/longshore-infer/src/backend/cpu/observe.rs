//! Statistics of what enters a product.

use super::isa::{Isa, per_isa};
use super::norm::rounded;
use super::pool::Pool;
use super::tasks::each;
use super::{Cpu, Precision, Rows};
use crate::backend::{ExpertRows, Inputs};
use crate::stats::{InputStats, StatsWanted};

/// Values of a task.
const PIECE: usize = 1 << 14;
/// Channels of a task: a few cache lines of every row.
const CHANNELS: usize = 128;

/// Adds the rows to `stats`.
pub(super) fn observe(cpu: &Cpu, inputs: &Inputs<'_, Cpu>, wanted: StatsWanted, stats: &mut InputStats) {
    let Inputs { rows, count, experts, .. } = *inputs;
    let rounds = cpu.precision == Precision::Bfloat16;
    let whole = ExpertRows { starts: &[0, count], rows: None, weights: None };
    let groups = experts.unwrap_or(whole);
    // Weighted rows of tokens that chose their experts are counted apart from those of tokens that did not.
    stats.tokens += groups.starts.last().copied().unwrap_or(0) as u64;
    if experts.is_some() {
        stats.expert_tokens.resize(groups.starts.len() - 1, 0);
        for (tokens, w) in stats.expert_tokens.iter_mut().zip(groups.starts.windows(2)) {
            *tokens += (w[1] - w[0]) as u64;
        }
    }
    // All tokens are sent somewhere, so the largest of the gathered rows is that of the buffer.
    let most = largest(&cpu.pool, cpu.isa, &rows.data);
    stats.amax = larger(stats.amax, if rounds { rounded(most) } else { most });
    if let (Some(weights), None) = (groups.weights, groups.rows) {
        let most = weighted(cpu, rows, weights, rounds);
        stats.weighted_amax = Some(larger(stats.weighted_amax.unwrap_or(0.0), most));
    }
    if wanted.channel_amax || wanted.channel_sum {
        channels(cpu, rows, &groups, wanted, rounds, stats);
    }
}

/// The larger magnitude; NaN above all.
fn larger(a: f32, b: f32) -> f32 {
    f32::from_bits(a.to_bits().max(b.to_bits()))
}

/// The largest magnitude of all values: the largest bits without the sign, so that infinity and NaN win.
fn largest(pool: &Pool, isa: Isa, values: &[f32]) -> f32 {
    let mut pieces: Vec<_> = values.chunks(PIECE).map(|x| (x, 0)).collect();
    each(pool, &mut pieces, |(x, most)| most_bits(isa, x, most));
    f32::from_bits(pieces.iter().map(|p| p.1).max().unwrap_or(0))
}

#[inline(always)]
fn most_bits_body(x: &[f32], most: &mut u32) {
    let (lanes, rest) = x.as_chunks::<16>();
    let mut all = [0u32; 16];
    for lane in lanes {
        for (all, x) in all.iter_mut().zip(lane) {
            *all = (*all).max(x.to_bits() & 0x7fff_ffff);
        }
    }
    *most = rest.iter().map(|x| x.to_bits() & 0x7fff_ffff).chain(all).max().unwrap_or(0);
}

per_isa! {
    fn most_bits(x: &[f32], most: &mut u32) = most_bits_body;
}

/// The largest magnitude of rows times their weights.
fn weighted(cpu: &Cpu, rows: &Rows, weights: &[f32], rounds: bool) -> f32 {
    let per_task = (PIECE / rows.width.max(1)).max(1);
    let pieces = rows.data.chunks(per_task * rows.width).zip(weights.chunks(per_task));
    let mut pieces: Vec<_> = pieces.map(|(x, w)| (x, w, 0.0f32)).collect();
    each(&cpu.pool, &mut pieces, |(x, weights, most)| {
        for (row, weight) in x.chunks_exact(rows.width).zip(*weights) {
            let mut bits = 0;
            most_bits(cpu.isa, row, &mut bits);
            // A rounded product grows with its factor, so the largest factor gives the largest product.
            let x = f32::from_bits(bits);
            let product = (if rounds { rounded(x) } else { x } * weight).abs();
            *most = larger(*most, if rounds { rounded(product) } else { product });
        }
    });
    pieces.iter().fold(0.0, |most, p| larger(most, p.2))
}

/// Statistics per channel. A task has some channels of all rows: sums grow row by row, whatever the batches are.
fn channels(
    cpu: &Cpu,
    rows: &Rows,
    groups: &ExpertRows<'_>,
    wanted: StatsWanted,
    rounds: bool,
    stats: &mut InputStats,
) {
    let (width, experts) = (rows.width, groups.starts.len() - 1);
    let weights = groups.weights.filter(|_| wanted.weighted);
    let mut amax = wanted.channel_amax.then(|| stats.channel_amax.take().unwrap_or_default());
    let mut sum = wanted.channel_sum.then(|| stats.channel_sum.take().unwrap_or_default());
    if let Some(amax) = &mut amax {
        amax.resize(experts * width, 0.0);
    }
    if let Some(sum) = &mut sum {
        sum.resize(experts * width, 0.0);
    }
    // Of every task, one piece for each expert.
    let tasks = width.div_ceil(CHANNELS);
    let mut pieces: Vec<Task<'_>> = (0..tasks).map(|t| Task { first: t * CHANNELS, ..Task::default() }).collect();
    for row in amax.iter_mut().flat_map(|amax| amax.chunks_mut(width)) {
        for (task, part) in pieces.iter_mut().zip(row.chunks_mut(CHANNELS)) {
            task.amax.push(part);
        }
    }
    for row in sum.iter_mut().flat_map(|sum| sum.chunks_mut(width)) {
        for (task, part) in pieces.iter_mut().zip(row.chunks_mut(CHANNELS)) {
            task.sum.push(part);
        }
    }
    each(&cpu.pool, &mut pieces, |task| {
        let end = (task.first + CHANNELS).min(width);
        for (at, (e, row)) in groups.each().enumerate() {
            let weight = weights.map_or(1.0, |weights| weights[at]);
            let x = &rows.data[row * width..][task.first..end];
            if let Some(amax) = task.amax.get_mut(e) {
                add_largest(cpu.isa, x, weight, rounds, amax);
            }
            if let Some(sum) = task.sum.get_mut(e) {
                add_magnitudes(cpu.isa, x, weight, rounds, sum);
            }
        }
    });
    stats.channel_amax = amax;
    stats.channel_sum = sum;
}

/// Some channels, expert by expert.
#[derive(Default)]
struct Task<'a> {
    first: usize,
    amax: Vec<&'a mut [f32]>,
    sum: Vec<&'a mut [f64]>,
}

/// A magnitude as the product reads it: times a weight, where there is one, and 1 where not.
#[inline(always)]
fn magnitude(x: f32, weight: f32, rounds: bool) -> f32 {
    if rounds { rounded(rounded(x) * weight) } else { x * weight }.abs()
}

#[inline(always)]
fn add_largest_body(x: &[f32], weight: f32, rounds: bool, amax: &mut [f32]) {
    for (most, &x) in amax.iter_mut().zip(x) {
        *most = larger(*most, magnitude(x, weight, rounds));
    }
}

#[inline(always)]
fn add_magnitudes_body(x: &[f32], weight: f32, rounds: bool, sum: &mut [f64]) {
    for (sum, &x) in sum.iter_mut().zip(x) {
        *sum += f64::from(magnitude(x, weight, rounds));
    }
}

per_isa! {
    fn add_largest(x: &[f32], weight: f32, rounds: bool, amax: &mut [f32]) = add_largest_body;
}

per_isa! {
    fn add_magnitudes(x: &[f32], weight: f32, rounds: bool, sum: &mut [f64]) = add_magnitudes_body;
}

/// The sums of as many rows' squared differences as there are sums. Four rows go side by side: each sum waits for the one
/// before.
pub(super) fn squared_differences(a: &[f32], b: &[f32], sums: &mut [f64]) {
    let width = a.len() / sums.len().max(1);
    let square = |a: f32, b: f32| f64::from((a - b) * (a - b));
    let rows = a.chunks(4 * width).zip(b.chunks(4 * width));
    for ((a, b), sums) in rows.zip(sums.chunks_mut(4)) {
        if let [s0, s1, s2, s3] = sums {
            for i in 0..width {
                let at = |row: usize| square(a[row * width + i], b[row * width + i]);
                *s0 += at(0);
                *s1 += at(1);
                *s2 += at(2);
                *s3 += at(3);
            }
        } else {
            for ((a, b), sum) in a.chunks(width).zip(b.chunks(width)).zip(sums) {
                *sum = a.iter().zip(b).map(|(a, b)| square(*a, *b)).sum();
            }
        }
    }
}
