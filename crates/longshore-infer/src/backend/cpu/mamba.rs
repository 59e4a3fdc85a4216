//! The middle of a Mamba-2 mixer: causal convolution, selective scan, gate and group norm (Dao and Gu, "Transformers are
//! SSMs", 2024; `NemotronHMamba2Mixer` of transformers, `mamba_mixer.py` of Megatron-LM).
//!
//! A group of heads shares its B and C and its norm, so one group of one sequence is one task from end to end. The scan is
//! the recurrence, token by token, for prompts too: the chunked form would be faster for long prompts on wide machines,
//! but gives other bits for every cut of the prompt.

use super::isa::{Isa, per_isa};
use super::math::{dot, exp, silu, softplus};
use super::pool::Pool;
use super::tasks::each;
use crate::backend::{MambaOptions, Segment};
use longshore_convert::config::Mamba;

/// Tokens whose intermediate values are in memory at a time: few enough for the second-level cache.
const BLOCK: usize = 32;
/// States of a head that stay in registers over a block of tokens, and channels of them.
const STATES: usize = 4;
const CHANNELS: usize = 32;

/// What a layer remembers of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct MambaState {
    /// The last inputs of the convolution, `[groups, conv_kernel - 1, x | B | C of the group]`.
    conv: Vec<f32>,
    /// `[heads, state, head_dim]`.
    ssm: Vec<f32>,
}

/// Sizes as indices.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    head_dim: usize,
    groups: usize,
    state: usize,
    kernel: usize,
}

impl Sizes {
    fn of(spec: &Mamba) -> Self {
        Self {
            heads: spec.heads as usize,
            head_dim: spec.head_dim as usize,
            groups: spec.groups as usize,
            state: spec.state as usize,
            kernel: spec.conv_kernel as usize,
        }
    }

    fn heads_per_group(&self) -> usize {
        self.heads / self.groups
    }

    /// Channels of x (and z, and y) in a group.
    fn inner(&self) -> usize {
        self.heads_per_group() * self.head_dim
    }

    /// Channels of the convolution in a group.
    fn channels(&self) -> usize {
        self.inner() + 2 * self.state
    }
}

impl MambaState {
    /// Before the first token: zeros.
    pub(super) fn new(spec: &Mamba) -> Self {
        let s = Sizes::of(spec);
        Self {
            conv: vec![0.0; s.groups * (s.kernel - 1) * s.channels()],
            ssm: vec![0.0; s.heads * s.state * s.head_dim],
        }
    }
}

/// The parameters of a layer, see [`crate::layers::MambaWeights`].
pub(super) struct Parameters<'a> {
    pub(super) spec: &'a Mamba,
    pub(super) conv: &'a [f32],
    pub(super) conv_bias: &'a [f32],
    pub(super) a: &'a [f32],
    pub(super) d: &'a [f32],
    pub(super) dt_bias: &'a [f32],
    pub(super) norm: &'a [f32],
}

/// One group of one sequence.
struct Task<'a> {
    sizes: Sizes,
    group: usize,
    eps: f32,
    dt_min: f32,
    /// Rows `[z | x | B | C | dt]` of all groups.
    projected: &'a [f32],
    width: usize,
    /// `[conv_kernel, channels]` and `[channels]`.
    conv: &'a [f32],
    conv_bias: &'a [f32],
    /// One for each head of the group.
    a: &'a [f32],
    d: &'a [f32],
    dt_bias: &'a [f32],
    norm: &'a [f32],
    tail: &'a mut [f32],
    ssm: &'a mut [f32],
    /// The group's channels of each output row.
    out: Vec<&'a mut [f32]>,
}

/// Runs the layer on all segments; `projected` and `out` are the rows of the whole batch.
pub(super) fn run(
    pool: &Pool,
    isa: Isa,
    p: &Parameters<'_>,
    options: &MambaOptions,
    projected: &[f32],
    segments: &mut [Segment<'_, MambaState>],
    out: &mut [f32],
) {
    let s = Sizes::of(p.spec);
    let width = 2 * s.heads * s.head_dim + 2 * s.groups * s.state + s.heads;
    let mut tasks = Vec::new();
    let mut rest = out;
    let mut row = 0;
    for segment in segments {
        let count = segment.rows.len();
        let (_, from) = rest.split_at_mut((segment.rows.start - row) * s.groups * s.inner());
        let (mine, after) = from.split_at_mut(count * s.groups * s.inner());
        (rest, row) = (after, segment.rows.end);
        let rows = &projected[segment.rows.start * width..segment.rows.end * width];
        let dt_min = options.dt_min.filter(|_| segment.prefill).unwrap_or(0.0);
        let batch = Batch { s, p, eps: options.eps, dt_min, width };
        match &mut segment.trail {
            None => tasks.extend(batch.tasks(rows, segment.state, mine)),
            Some(trail) => {
                // The states in between are wanted: one token after the other, which are the same bits.
                let outs = mine.chunks_mut(s.groups * s.inner());
                for (i, (rows, out)) in rows.chunks(width).zip(outs).enumerate() {
                    each(pool, &mut batch.tasks(rows, segment.state, out), |task| group(isa, task));
                    if i + 1 < count {
                        trail.push(segment.state.clone());
                    }
                }
            }
        }
    }
    each(pool, &mut tasks, |task| group(isa, task));
}

/// What the tasks of one segment share.
struct Batch<'a> {
    s: Sizes,
    p: &'a Parameters<'a>,
    eps: f32,
    dt_min: f32,
    width: usize,
}

impl<'a> Batch<'a> {
    /// One task for each group.
    fn tasks<'t>(&self, projected: &'t [f32], state: &'t mut MambaState, out: &'t mut [f32]) -> Vec<Task<'t>>
    where
        'a: 't,
    {
        let (s, p) = (self.s, self.p);
        let mut outs: Vec<Vec<&mut [f32]>> = (0..s.groups).map(|_| Vec::new()).collect();
        for row in out.chunks_mut(s.groups * s.inner()) {
            for (out, part) in outs.iter_mut().zip(row.chunks_mut(s.inner())) {
                out.push(part);
            }
        }
        let heads = s.heads_per_group();
        let mut ssm = state.ssm.chunks_mut(heads * s.state * s.head_dim);
        let mut tail = state.conv.as_mut_slice();
        outs.into_iter()
            .enumerate()
            .map(|(group, out)| {
                let own = |values: &'a [f32], len: usize| &values[group * len..(group + 1) * len];
                let (mine, rest) = std::mem::take(&mut tail).split_at_mut((s.kernel - 1) * s.channels());
                tail = rest;
                Task {
                    sizes: s,
                    group,
                    eps: self.eps,
                    dt_min: self.dt_min,
                    projected,
                    width: self.width,
                    conv: own(p.conv, s.kernel * s.channels()),
                    conv_bias: own(p.conv_bias, s.channels()),
                    a: own(p.a, heads),
                    d: own(p.d, heads),
                    dt_bias: own(p.dt_bias, heads),
                    norm: own(p.norm, s.inner()),
                    tail: mine,
                    ssm: ssm.next().unwrap_or_default(),
                    out,
                }
            })
            .collect()
    }
}

per_isa! {
    fn group(task: &mut Task<'_>) = group_body;
}

#[inline(always)]
fn group_body(task: &mut Task<'_>) {
    let s = task.sizes;
    let (inner, channels, heads, keep) = (s.inner(), s.channels(), s.heads_per_group(), s.kernel - 1);
    let all = s.groups * inner;
    let most = BLOCK.min(task.out.len());
    let mut window = vec![0.0; (keep + most) * channels];
    let mut act = vec![0.0; most * channels];
    let (mut dt, mut da) = (vec![0.0; most * heads], vec![0.0; most * heads]);
    let mut dtx = vec![0.0; most * s.head_dim];
    window[..keep * channels].copy_from_slice(task.tail);
    for (block, outs) in task.out.chunks_mut(BLOCK).enumerate() {
        let tokens = outs.len();
        let rows = &task.projected[block * BLOCK * task.width..][..tokens * task.width];
        for (t, row) in rows.chunks_exact(task.width).enumerate() {
            let input = &mut window[(keep + t) * channels..][..channels];
            let (x, bc) = input.split_at_mut(inner);
            let (b, c) = bc.split_at_mut(s.state);
            x.copy_from_slice(&row[all + task.group * inner..][..inner]);
            b.copy_from_slice(&row[2 * all + task.group * s.state..][..s.state]);
            c.copy_from_slice(&row[2 * all + (s.groups + task.group) * s.state..][..s.state]);
            let steps = &row[2 * all + 2 * s.groups * s.state + task.group * heads..][..heads];
            for h in 0..heads {
                let step = softplus(steps[h] + task.dt_bias[h]);
                let step = if step < task.dt_min { task.dt_min } else { step };
                dt[t * heads + h] = step;
                da[t * heads + h] = exp(step * task.a[h]);
            }
        }
        for t in 0..tokens {
            let act = &mut act[t * channels..][..channels];
            act.copy_from_slice(task.conv_bias);
            for j in 0..s.kernel {
                let input = &window[(t + j) * channels..][..channels];
                let weights = &task.conv[j * channels..][..channels];
                for ((act, &x), &w) in act.iter_mut().zip(input).zip(weights) {
                    *act = w.mul_add(x, *act);
                }
            }
            for act in act {
                *act = silu(*act);
            }
        }
        window.copy_within(tokens * channels..(tokens + keep) * channels, 0);

        for (h, ssm) in task.ssm.chunks_exact_mut(s.state * s.head_dim).enumerate() {
            for (t, out) in outs.iter_mut().enumerate() {
                let x = &act[t * channels + h * s.head_dim..][..s.head_dim];
                for (d, &x) in dtx[t * s.head_dim..][..s.head_dim].iter_mut().zip(x) {
                    *d = dt[t * heads + h] * x;
                }
                out[h * s.head_dim..][..s.head_dim].fill(0.0);
            }
            let head = Head { s, h, inner, channels, heads, dtx: &dtx, da: &da, act: &act };
            scan(&head, ssm, outs);
        }
        for (t, (out, row)) in outs.iter_mut().zip(rows.chunks_exact(task.width)).enumerate() {
            let x = &act[t * channels..][..inner];
            let z = &row[task.group * inner..][..inner];
            for h in 0..heads {
                let (from, to) = (h * s.head_dim, (h + 1) * s.head_dim);
                for ((y, &x), &z) in out[from..to].iter_mut().zip(&x[from..to]).zip(&z[from..to]) {
                    *y = task.d[h].mul_add(x, *y) * silu(z);
                }
            }
            let scale = 1.0 / (dot(out, out) / inner as f32 + task.eps).sqrt();
            for (y, &w) in out.iter_mut().zip(task.norm) {
                *y = w * (*y * scale);
            }
        }
    }
    task.tail.copy_from_slice(&window[..keep * channels]);
}

/// A block of tokens as one head sees it.
struct Head<'a> {
    s: Sizes,
    h: usize,
    inner: usize,
    channels: usize,
    heads: usize,
    /// `dt * x`, `[tokens, head_dim]`.
    dtx: &'a [f32],
    /// `exp(dt * A)`, `[tokens, heads]`.
    da: &'a [f32],
    /// After the convolution, `[tokens, x | B | C]`.
    act: &'a [f32],
}

/// `S = exp(dt A) S + (dt x) B^T; y = S C` for every token. Sums over the states go in ascending order whatever the tiling.
#[inline(always)]
fn scan(head: &Head<'_>, ssm: &mut [f32], outs: &mut [&mut [f32]]) {
    let (states, dim) = (head.s.state, head.s.head_dim);
    let mut n = 0;
    while n + STATES <= states {
        let mut p = 0;
        while p + CHANNELS <= dim {
            tile::<STATES, CHANNELS>(head, ssm, outs, n, p);
            p += CHANNELS;
        }
        while p < dim {
            tile::<STATES, 1>(head, ssm, outs, n, p);
            p += 1;
        }
        n += STATES;
    }
    while n < states {
        for p in 0..dim {
            tile::<1, 1>(head, ssm, outs, n, p);
        }
        n += 1;
    }
}

/// The states `n..n + N` of the channels `p..p + P`, for every token of the block.
#[inline(always)]
fn tile<const N: usize, const P: usize>(head: &Head<'_>, ssm: &mut [f32], outs: &mut [&mut [f32]], n: usize, p: usize) {
    let dim = head.s.head_dim;
    let mut s = [[0.0f32; P]; N];
    for (i, s) in s.iter_mut().enumerate() {
        s.copy_from_slice(&ssm[(n + i) * dim + p..][..P]);
    }
    for (t, out) in outs.iter_mut().enumerate() {
        let act = &head.act[t * head.channels + head.inner..][..2 * head.s.state];
        let (b, c) = act.split_at(head.s.state);
        let (b, c) = (&b[n..n + N], &c[n..n + N]);
        let decay = head.da[t * head.heads + head.h];
        let x = &head.dtx[t * dim + p..][..P];
        let out = &mut out[head.h * dim + p..][..P];
        let mut y = [0.0f32; P];
        y.copy_from_slice(out);
        for i in 0..N {
            for j in 0..P {
                s[i][j] = x[j].mul_add(b[i], decay * s[i][j]);
                y[j] = c[i].mul_add(s[i][j], y[j]);
            }
        }
        out.copy_from_slice(&y);
    }
    for (i, s) in s.iter().enumerate() {
        ssm[(n + i) * dim + p..][..P].copy_from_slice(s);
    }
}
