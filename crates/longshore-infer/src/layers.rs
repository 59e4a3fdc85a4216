//! The layer kinds: their weights and their forward pass, `h += mixer(rms_norm(h))`.
//!
//! The formulas are in `docs/engine.md`. Names of weights are Megatron's.

use crate::backend::{Backend, MambaOptions, Routing, Segment};
use crate::cache::LayerState;
use longshore_convert::config::{Attention, Mamba, Mlp, Moe};
use std::ops::Range;

/// Weights of a Mamba-2 mixer.
pub struct MambaWeights<B: Backend> {
    /// Sizes.
    pub spec: Mamba,
    /// `[z | x | B | C | dt, hidden]`.
    pub in_proj: B::Matrix,
    /// `[hidden, inner]`.
    pub out_proj: B::Matrix,
    /// Kernel of the convolution, `[groups, conv_kernel, x | B | C of the group]`; the last of the kernel is that of the
    /// current token.
    pub conv: B::Vector,
    /// Bias of the convolution, `[groups, x | B | C of the group]`.
    pub conv_bias: B::Vector,
    /// `-exp(A_log)`, `[heads]`.
    pub a: B::Vector,
    /// Skip connection, `[heads]`.
    pub d: B::Vector,
    /// Bias of the time steps, `[heads]`.
    pub dt_bias: B::Vector,
    /// Weight of the gated norm, `[inner]`.
    pub norm: B::Vector,
}

/// Weights of grouped-query attention.
pub struct AttentionWeights<B: Backend> {
    /// Sizes.
    pub spec: Attention,
    /// For each key/value head: its query heads, its key, its value; `[(heads + 2 kv_heads) * head_dim, hidden]`.
    pub qkv: B::Matrix,
    /// `[hidden, heads * head_dim]`.
    pub proj: B::Matrix,
}

/// Weights of a dense MLP.
pub struct MlpWeights<B: Backend> {
    /// Sizes.
    pub spec: Mlp,
    /// `[ffn, hidden]`.
    pub fc1: B::Matrix,
    /// `[hidden, ffn]`.
    pub fc2: B::Matrix,
}

/// Weights of a mixture of experts.
pub struct MoeWeights<B: Backend> {
    /// Sizes.
    pub spec: Moe,
    /// Router, `[experts, hidden]`.
    pub router: B::Matrix,
    /// Added to the scores for the choice of experts alone, `[experts]`.
    pub expert_bias: B::Vector,
    /// Down and up projection around the routed experts, `[latent, hidden]` and `[hidden, latent]`.
    pub latent: Option<(B::Matrix, B::Matrix)>,
    /// `[expert_ffn, latent or hidden]` of each expert.
    pub fc1: Vec<B::Matrix>,
    /// `[latent or hidden, expert_ffn]` of each expert.
    pub fc2: Vec<B::Matrix>,
    /// `[shared_ffn, hidden]`.
    pub shared_fc1: B::Matrix,
    /// `[hidden, shared_ffn]`.
    pub shared_fc2: B::Matrix,
}

/// The mixer of a layer.
pub enum Mixer<B: Backend> {
    /// `M`
    Mamba(MambaWeights<B>),
    /// `*`
    Attention(AttentionWeights<B>),
    /// `-`
    Mlp(MlpWeights<B>),
    /// `E`
    Moe(MoeWeights<B>),
}

/// One layer.
pub struct Layer<B: Backend> {
    /// Weight of the norm before the mixer, `[hidden]`.
    pub norm: B::Vector,
    /// The mixer.
    pub mixer: Mixer<B>,
}

/// Rows of one sequence in a batch, see [`Segment`].
pub struct Span<'a, B: Backend> {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// What the layer remembers of the sequence.
    pub state: &'a mut LayerState<B>,
    /// Whether the rows are prompt.
    pub prefill: bool,
    /// Whether to keep the states between the rows.
    pub keep_trail: bool,
}

impl<B: Backend> Layer<B> {
    /// The state of a sequence before its first token.
    pub fn new_state(&self, backend: &B) -> LayerState<B> {
        match &self.mixer {
            Mixer::Mamba(w) => LayerState::Mamba { state: backend.mamba_state(w), trail: Vec::new() },
            Mixer::Attention(w) => LayerState::Kv(backend.kv_state(w)),
            Mixer::Mlp(_) | Mixer::Moe(_) => LayerState::None,
        }
    }

    /// Adds the layer's output to `hidden`, `[tokens, hidden_size]`. The routing of a MoE layer is returned.
    pub fn forward(
        &self,
        backend: &B,
        options: &MambaOptions,
        hidden: &mut B::Buffer,
        shape: (usize, usize),
        spans: &mut [Span<'_, B>],
    ) -> Option<Routing> {
        let (rows, width) = shape;
        let mut u = backend.buffer(rows, width);
        backend.rms_norm(hidden, &self.norm, options.eps, &mut u);
        let mut out = backend.buffer(rows, width);
        let mut routing = None;
        match &self.mixer {
            Mixer::Mamba(w) => {
                let Mamba { heads, head_dim, groups, state, .. } = w.spec;
                let inner = heads * head_dim;
                let mut projected = backend.buffer(rows, (2 * inner + 2 * groups * state + heads) as usize);
                backend.linear(&u, &w.in_proj, &mut projected);
                let mut mixed = backend.buffer(rows, inner as usize);
                backend.mamba(w, options, &projected, &mut mamba_segments(spans), &mut mixed);
                backend.linear(&mixed, &w.out_proj, &mut out);
            }
            Mixer::Attention(w) => {
                let Attention { heads, kv_heads, head_dim } = w.spec;
                let mut qkv = backend.buffer(rows, ((heads + 2 * kv_heads) * head_dim) as usize);
                backend.linear(&u, &w.qkv, &mut qkv);
                let mut mixed = backend.buffer(rows, (heads * head_dim) as usize);
                backend.attention(w, &qkv, &mut kv_segments(spans), &mut mixed);
                backend.linear(&mixed, &w.proj, &mut out);
            }
            Mixer::Mlp(w) => {
                let mut inner = backend.buffer(rows, w.spec.ffn as usize);
                backend.linear(&u, &w.fc1, &mut inner);
                backend.relu_squared(&mut inner);
                backend.linear(&inner, &w.fc2, &mut out);
            }
            Mixer::Moe(w) => routing = Some(backend.moe(w, &u, &mut out)),
        }
        backend.add(&out, hidden);
        routing
    }
}

fn mamba_segments<'a, B: Backend>(spans: &'a mut [Span<'_, B>]) -> Vec<Segment<'a, B::MambaState>> {
    let segment = |span: &'a mut Span<'_, B>| {
        let LayerState::Mamba { state, trail } = &mut *span.state else { return None };
        trail.clear();
        let trail = span.keep_trail.then_some(trail);
        Some(Segment { rows: span.rows.clone(), state, prefill: span.prefill, trail })
    };
    spans.iter_mut().filter_map(segment).collect()
}

fn kv_segments<'a, B: Backend>(spans: &'a mut [Span<'_, B>]) -> Vec<Segment<'a, B::KvState>> {
    let segment = |span: &'a mut Span<'_, B>| {
        let LayerState::Kv(state) = &mut *span.state else { return None };
        Some(Segment { rows: span.rows.clone(), state, prefill: span.prefill, trail: None })
    };
    spans.iter_mut().filter_map(segment).collect()
}
