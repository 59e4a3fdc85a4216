//! Grouped-query attention, causal: prompts and decoding alike. Positions are the rotary embedding's matter (`rotary.rs`).
//!
//! Keys are taken in blocks that begin at multiples of [`KEYS`], with the running maximum and sum of Milakov and
//! Gimelshein (2018). The blocks do not depend on where a query or a prompt's cut is, so neither do the bits.

use super::isa::{Isa, per_isa};
use super::math::{self, exp, max};
use super::pool::Pool;
use super::tasks::each;
use super::{Precision, matrix};
use crate::backend::Segment;
use half::bf16;
use longshore_convert::config::Attention;

/// Keys of a block.
const KEYS: usize = 64;
/// Queries (tokens times heads) of a task, at least one token.
const QUERIES: usize = 64;

/// Keys and values of one sequence.
pub struct KvState {
    heads: Vec<KvHead>,
    head_dim: usize,
    tokens: usize,
}

/// Keys and values of one head: keys in blocks `[head_dim, KEYS]`, so that a query meets a block's keys side by side;
/// values `[tokens, head_dim]`.
enum KvHead {
    Float32 { k: Vec<f32>, v: Vec<f32> },
    Bfloat16 { k: Vec<bf16>, v: Vec<bf16> },
}

impl KvState {
    /// Before the first token.
    pub(super) fn new(spec: &Attention, precision: Precision) -> Self {
        let head = |_| match precision {
            Precision::Float32 => KvHead::Float32 { k: Vec::new(), v: Vec::new() },
            Precision::Bfloat16 => KvHead::Bfloat16 { k: Vec::new(), v: Vec::new() },
        };
        Self { heads: (0..spec.kv_heads).map(head).collect(), head_dim: spec.head_dim as usize, tokens: 0 }
    }

    /// A copy with room for `more` tokens, so that it is not copied once more when it grows.
    pub(super) fn fork(&self, more: usize) -> Self {
        let heads = self.heads.iter().map(|head| match head {
            KvHead::Float32 { k, v } => {
                KvHead::Float32 { k: with_room(k, self.room_of_keys(more)), v: with_room(v, more * self.head_dim) }
            }
            KvHead::Bfloat16 { k, v } => {
                KvHead::Bfloat16 { k: with_room(k, self.room_of_keys(more)), v: with_room(v, more * self.head_dim) }
            }
        });
        Self { heads: heads.collect(), head_dim: self.head_dim, tokens: self.tokens }
    }

    /// Elements that the keys of `more` tokens take at most.
    fn room_of_keys(&self, more: usize) -> usize {
        more.next_multiple_of(KEYS) * self.head_dim
    }

    /// Tokens that it holds.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Forgets all but the first `tokens` tokens.
    pub(super) fn truncate(&mut self, tokens: usize) {
        let values = tokens * self.head_dim;
        // What is left of a cut block is overwritten before it is read.
        let keys = tokens.div_ceil(KEYS) * KEYS * self.head_dim;
        for head in &mut self.heads {
            match head {
                KvHead::Float32 { k, v } => (k.truncate(keys), v.truncate(values)),
                KvHead::Bfloat16 { k, v } => (k.truncate(keys), v.truncate(values)),
            };
        }
        self.tokens = tokens;
    }
}

impl KvHead {
    /// Adds the key and the value of the token at `position`.
    fn push(&mut self, isa: Isa, position: usize, key: &[f32], value: &[f32]) {
        match self {
            Self::Float32 { k, v } => {
                place(k, position, key);
                v.extend_from_slice(value);
            }
            Self::Bfloat16 { k, v } => {
                let mut rounded = vec![bf16::ZERO; key.len()];
                matrix::to_bf16(isa, key, &mut rounded);
                place(k, position, &rounded);
                matrix::to_bf16(isa, value, &mut rounded);
                v.extend_from_slice(&rounded);
            }
        }
    }
}

/// A copy with room for `more` elements.
fn with_room<T: Copy>(values: &[T], more: usize) -> Vec<T> {
    let mut copy = Vec::with_capacity(values.len() + more);
    copy.extend_from_slice(values);
    copy
}

/// Writes a key into its column of its block.
fn place<T: Copy + Default>(blocks: &mut Vec<T>, position: usize, key: &[T]) {
    let block = position / KEYS * KEYS * key.len();
    if blocks.len() == block {
        blocks.resize(block + KEYS * key.len(), T::default());
    }
    let column = blocks[block + position % KEYS..].iter_mut().step_by(KEYS);
    for (slot, &x) in column.zip(key) {
        *slot = x;
    }
}

/// Some queries of one key/value head.
struct Task<'a> {
    head_dim: usize,
    /// Position of the first query's token in the sequence.
    position: usize,
    kv: &'a KvHead,
    /// Query heads of the first token, then of the next: slices of `[query heads, head_dim]`.
    queries: Vec<&'a [f32]>,
    out: Vec<&'a mut [f32]>,
}

/// Runs attention on all segments; `qkv` and `out` are the rows of the whole batch.
pub(super) fn run(
    pool: &Pool,
    isa: Isa,
    spec: &Attention,
    qkv: &[f32],
    segments: &mut [Segment<'_, KvState>],
    out: &mut [f32],
) {
    let (dim, groups) = (spec.head_dim as usize, spec.kv_heads as usize);
    let per_group = spec.heads as usize / groups;
    let (group_width, out_width) = ((per_group + 2) * dim, spec.heads as usize * dim);
    let width = groups * group_width;
    for segment in &mut *segments {
        for row in qkv[segment.rows.start * width..segment.rows.end * width].chunks_exact(width) {
            for (head, part) in segment.state.heads.iter_mut().zip(row.chunks_exact(group_width)) {
                let (k, v) = part[per_group * dim..].split_at(dim);
                head.push(isa, segment.state.tokens, k, v);
            }
            segment.state.tokens += 1;
        }
    }
    let tokens_per_task = (QUERIES / per_group).max(1);
    let mut tasks: Vec<Task<'_>> = Vec::new();
    let mut outs: Vec<_> = out.chunks_mut(out_width).map(Some).collect();
    for segment in &*segments {
        let first = segment.state.tokens - segment.rows.len();
        for start in segment.rows.clone().step_by(tokens_per_task) {
            let begin = tasks.len();
            let position = first + start - segment.rows.start;
            tasks.extend(segment.state.heads.iter().map(|kv| {
                let (queries, out) = (Vec::new(), Vec::new());
                Task { head_dim: dim, position, kv, queries, out }
            }));
            let rows = start..(start + tokens_per_task).min(segment.rows.end);
            for row in rows {
                let parts = qkv[row * width..][..width].chunks_exact(group_width);
                let outs = outs[row].take().unwrap_or_default().chunks_mut(per_group * dim);
                for ((task, part), out) in tasks[begin..].iter_mut().zip(parts).zip(outs) {
                    task.queries.push(&part[..per_group * dim]);
                    task.out.push(out);
                }
            }
        }
    }
    each(pool, &mut tasks, |task| attend(isa, task));
}

per_isa! {
    fn attend(task: &mut Task<'_>) = attend_body;
}

#[inline(always)]
fn attend_body(task: &mut Task<'_>) {
    let dim = task.head_dim;
    let scale = 1.0 / (dim as f32).sqrt();
    let queries: usize = task.queries.iter().map(|q| q.len() / dim).sum();
    // Maximum and sum so far of every query; the weighted values grow in `out`.
    let mut running = vec![(f32::NEG_INFINITY, 0.0f32); queries];
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for out in &mut task.out {
        out.fill(0.0);
    }
    let last = task.position + task.queries.len();
    for begin in (0..last).step_by(KEYS) {
        let end = (begin + KEYS).min(last);
        let k = block(task.kv.keys(), begin * dim..(begin + KEYS) * dim, &mut keys);
        let v = block(task.kv.values(), begin * dim..end * dim, &mut values);
        let mut running = running.iter_mut();
        for (t, (queries, out)) in task.queries.iter().zip(&mut task.out).enumerate() {
            let visible = (task.position + t + 1).min(end).saturating_sub(begin);
            for (q, out) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                let Some((highest, sum)) = running.next() else { break };
                if visible == 0 {
                    continue;
                }
                let mut scores = [0.0f32; KEYS];
                add_rows(q, k, KEYS, &mut scores);
                for (j, score) in scores.iter_mut().enumerate() {
                    *score = if j < visible { *score * scale } else { f32::NEG_INFINITY };
                }
                let top = max(&scores).max(*highest);
                let shrink = exp(*highest - top);
                for score in &mut scores {
                    *score = exp(*score - top);
                }
                *highest = top;
                *sum = sum.mul_add(shrink, math::sum(&scores));
                for out in &mut *out {
                    *out *= shrink;
                }
                add_rows(&scores[..visible], v, dim, out);
            }
        }
    }
    let mut running = running.iter();
    for out in task.out.iter_mut().flat_map(|out| out.chunks_exact_mut(dim)) {
        let Some((_, sum)) = running.next() else { break };
        for out in out {
            *out /= sum;
        }
    }
}

/// `out += sum_i factors[i] rows[i]` in the order of i, rows of `width` elements; four at a time, so that `out` is read and
/// written less often.
#[inline(always)]
fn add_rows(factors: &[f32], rows: &[f32], width: usize, out: &mut [f32]) {
    let (fours, rest) = factors.as_chunks::<4>();
    for (f, rows) in fours.iter().zip(rows.chunks_exact(4 * width)) {
        let (first, second) = rows.split_at(2 * width);
        let ((a, b), (c, d)) = (first.split_at(width), second.split_at(width));
        for ((((out, &a), &b), &c), &d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *out = f[3].mul_add(d, f[2].mul_add(c, f[1].mul_add(b, f[0].mul_add(a, *out))));
        }
    }
    for (f, row) in rest.iter().zip(rows[fours.len() * 4 * width..].chunks_exact(width)) {
        for (out, &x) in out.iter_mut().zip(row) {
            *out = f.mul_add(x, *out);
        }
    }
}

/// Keys or values as they are stored.
#[derive(Clone, Copy)]
enum Stored<'a> {
    Float32(&'a [f32]),
    Bfloat16(&'a [bf16]),
}

impl KvHead {
    fn keys(&self) -> Stored<'_> {
        match self {
            Self::Float32 { k, .. } => Stored::Float32(k),
            Self::Bfloat16 { k, .. } => Stored::Bfloat16(k),
        }
    }

    fn values(&self) -> Stored<'_> {
        match self {
            Self::Float32 { v, .. } => Stored::Float32(v),
            Self::Bfloat16 { v, .. } => Stored::Bfloat16(v),
        }
    }
}

/// A range of keys or values as float32; `wide` holds them where they are not.
#[inline(always)]
fn block<'a>(stored: Stored<'a>, range: std::ops::Range<usize>, wide: &'a mut Vec<f32>) -> &'a [f32] {
    match stored {
        Stored::Float32(all) => &all[range],
        Stored::Bfloat16(all) => {
            wide.resize(range.len(), 0.0);
            for (wide, x) in wide.iter_mut().zip(&all[range]) {
                *wide = f32::from_bits(u32::from(x.to_bits()) << 16);
            }
            wide
        }
    }
}
