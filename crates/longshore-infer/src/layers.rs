//! The layer kinds: their weights and their forward pass, `h += mixer(rms_norm(h))`.
//!
//! The formulas are in `docs/engine.md`. Names of weights are Megatron's.

use crate::backend::{Backend, Inputs, MambaOptions, Probe, Routing, Segment};
use crate::cache::LayerState;
use crate::error::Result;
use crate::quantized::InputQuantizer;
use crate::site::Site;
use longshore_convert::config::{Activation, Attention, Mamba, Mlp, Moe};
use std::ops::Range;

/// An RMS norm.
pub struct Norm<B: Backend> {
    /// `[hidden]`.
    pub weight: B::Vector,
    /// Added to the mean of the squares.
    pub eps: f32,
    /// Whether the normalized rows are rounded, where the precision rounds, before they are multiplied by the weight.
    pub rounds_first: bool,
}

/// A linear without bias.
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub matrix: B::Matrix,
    /// What its input goes through first.
    pub input: Option<Box<InputQuantizer>>,
}

impl<B: Backend> Linear<B> {
    /// `out = q(x) W^T`.
    pub fn forward(&self, backend: &B, x: &B::Buffer, out: &mut B::Buffer) {
        match &self.input {
            Some(quantizer) => backend.linear(&backend.fake_quantize(x, quantizer), &self.matrix, out),
            None => backend.linear(x, &self.matrix, out),
        }
    }

    /// The same, with the input shown to the probe first.
    fn shown(
        &self,
        backend: &B,
        site: Site,
        x: &B::Buffer,
        out: &mut B::Buffer,
        rows: usize,
        probe: &mut dyn Probe<B>,
    ) -> Result<()> {
        show(backend, probe, site, x, rows)?;
        self.forward(backend, x, out);
        Ok(())
    }
}

/// The same linear of all routed experts.
pub struct ExpertLinears<B: Backend> {
    /// `[out, in]` of each expert.
    pub matrices: Vec<B::Matrix>,
    /// What the input goes through first: nothing, one quantizer for all experts, or one for each.
    pub inputs: Vec<InputQuantizer>,
}

/// Weights of a Mamba-2 mixer.
pub struct MambaWeights<B: Backend> {
    /// Sizes.
    pub spec: Mamba,
    /// `[z | x | B | C | dt, hidden]`.
    pub in_proj: Linear<B>,
    /// `[hidden, inner]`.
    pub out_proj: Linear<B>,
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
    pub qkv: Linear<B>,
    /// `[hidden, heads * head_dim]`.
    pub proj: Linear<B>,
    /// Frequencies of the rotary embedding, `[head_dim / 2]`, see [`Backend::rotate`].
    pub rotary: Option<B::Vector>,
    /// What queries, keys and values go through before attention and the cache.
    pub operands: [Option<Box<InputQuantizer>>; 3],
}

/// Weights of a dense MLP.
pub struct MlpWeights<B: Backend> {
    /// Sizes.
    pub spec: Mlp,
    /// `[ffn, hidden]`; with a gate `[gate | up, hidden]`.
    pub fc1: Linear<B>,
    /// `[hidden, ffn]`.
    pub fc2: Linear<B>,
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
    pub latent: Option<(Linear<B>, Linear<B>)>,
    /// `[expert_ffn, latent or hidden]` of each expert.
    pub fc1: ExpertLinears<B>,
    /// `[latent or hidden, expert_ffn]` of each expert.
    pub fc2: ExpertLinears<B>,
    /// Whether router weights are multiplied before `fc2` (see [`crate::quantized::RoutedFc2`]).
    pub weight_before_fc2: bool,
    /// `[shared_ffn, hidden]`.
    pub shared_fc1: Linear<B>,
    /// `[hidden, shared_ffn]`.
    pub shared_fc2: Linear<B>,
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
    /// The norm before the mixer.
    pub norm: Norm<B>,
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

    /// Adds the layer's output to `hidden`, `[tokens, hidden_size]`. The routing of a MoE layer is returned; the probe sees
    /// what the linears read. Errors are the probe's.
    pub fn forward(
        &self,
        backend: &B,
        options: &MambaOptions,
        hidden: &mut B::Buffer,
        shape: (usize, usize),
        spans: &mut [Span<'_, B>],
        probe: &mut dyn Probe<B>,
    ) -> Result<Option<Routing>> {
        let (rows, width) = shape;
        let mut u = backend.buffer(rows, width);
        backend.rms_norm(hidden, &self.norm, &mut u);
        let mut out = backend.buffer(rows, width);
        let mut routing = None;
        match &self.mixer {
            Mixer::Mamba(w) => {
                let Mamba { heads, head_dim, groups, state, .. } = w.spec;
                let inner = heads * head_dim;
                let mut projected = backend.buffer(rows, (2 * inner + 2 * groups * state + heads) as usize);
                w.in_proj.shown(backend, Site::MambaIn, &u, &mut projected, rows, probe)?;
                let mut mixed = backend.buffer(rows, inner as usize);
                backend.mamba(w, options, &projected, &mut mamba_segments(spans), &mut mixed);
                w.out_proj.shown(backend, Site::MambaOut, &mixed, &mut out, rows, probe)?;
            }
            Mixer::Attention(w) => {
                let Attention { heads, kv_heads, head_dim, .. } = w.spec;
                let mut qkv = backend.buffer(rows, ((heads + 2 * kv_heads) * head_dim) as usize);
                w.qkv.shown(backend, Site::Qkv, &u, &mut qkv, rows, probe)?;
                if let Some(frequencies) = &w.rotary {
                    backend.rotate(w, frequencies, &kv_segments(spans), &mut qkv);
                }
                w.operands(backend, &mut qkv, rows, probe)?;
                let mut mixed = backend.buffer(rows, (heads * head_dim) as usize);
                backend.attention(w, &qkv, &mut kv_segments(spans), &mut mixed);
                w.proj.shown(backend, Site::Proj, &mixed, &mut out, rows, probe)?;
            }
            Mixer::Mlp(w) => {
                let mut inner = backend.buffer(rows, w.spec.fc1_rows() as usize);
                w.fc1.shown(backend, Site::Fc1, &u, &mut inner, rows, probe)?;
                let inner = match w.spec.activation {
                    Activation::ReluSquared => {
                        backend.relu_squared(&mut inner);
                        inner
                    }
                    Activation::SwiGlu => {
                        let mut gated = backend.buffer(rows, w.spec.ffn as usize);
                        backend.swiglu(&inner, &mut gated);
                        gated
                    }
                };
                w.fc2.shown(backend, Site::Fc2, &inner, &mut out, rows, probe)?;
            }
            Mixer::Moe(w) => routing = Some(backend.moe(w, &u, &mut out, probe)?),
        }
        backend.add(&out, hidden);
        Ok(routing)
    }
}

impl<B: Backend> AttentionWeights<B> {
    /// Shows and quantizes queries, keys and values, as attention reads them: rotated.
    fn operands(&self, backend: &B, qkv: &mut B::Buffer, rows: usize, probe: &mut dyn Probe<B>) -> Result<()> {
        let Attention { heads, kv_heads, head_dim, .. } = self.spec;
        let (dim, queries) = (head_dim as usize, (heads / kv_heads * head_dim) as usize);
        let parts = [(Site::Query, 0..queries), (Site::Key, queries..queries + dim)];
        let parts = parts.into_iter().chain([(Site::Value, queries + dim..queries + 2 * dim)]);
        for ((site, part), quantizer) in parts.zip(&self.operands) {
            if quantizer.is_none() && !probe.wants(site) {
                continue;
            }
            let group = |g: usize| g * (queries + 2 * dim);
            let columns: Vec<Range<usize>> =
                (0..kv_heads as usize).map(|g| group(g) + part.start..group(g) + part.end).collect();
            let values = backend.columns(qkv, &columns);
            show(backend, probe, site, &values, rows)?;
            if let Some(quantizer) = quantizer {
                backend.set_columns(qkv, &columns, &backend.fake_quantize(&values, quantizer));
            }
        }
        Ok(())
    }
}

/// Shows the probe rows that all enter `site`.
pub(crate) fn show<B: Backend>(
    backend: &B,
    probe: &mut dyn Probe<B>,
    site: Site,
    rows: &B::Buffer,
    count: usize,
) -> Result<()> {
    if !probe.wants(site) {
        return Ok(());
    }
    probe.inputs(backend, &Inputs { site, rows, count, experts: None })
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
