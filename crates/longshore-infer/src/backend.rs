//! The operations that a model is made of, each large enough to be one kernel or a few.
//!
//! Model code ([`crate::layers`]) names weights, buffers and states by their types here and never looks inside, so that
//! another device needs another `Backend` and nothing else. All activations are rows of tokens, `[tokens, width]`;
//! the rows of several sequences stand one after the other, and [`Segment`]s say which are whose. What a backend computes
//! for a row never depends on which other rows it is given: prompts may be cut and batched at will.

pub mod cpu;

use crate::error::Result;
use crate::layers::{AttentionWeights, MambaWeights, MoeWeights, Norm};
use crate::quantized::InputQuantizer;
use crate::site::Site;
use crate::stats::{InputStats, StatsWanted};
use longshore_ckpt::Dtype;
use longshore_quant::pack::QuantizedRows;
use longshore_quant::{Element, Scheme};
use std::ops::Range;

/// The rows of one sequence in a batch, and what its layer remembers of the tokens before.
pub struct Segment<'a, S> {
    /// Rows of the batch; never empty.
    pub rows: Range<usize>,
    /// The state, which the operation advances past these rows.
    pub state: &'a mut S,
    /// Whether this is prompt and not decoding: the only place where [`MambaOptions::dt_min`] counts.
    pub prefill: bool,
    /// Where to keep a copy of the state after every row but the last, for taking rows back.
    pub trail: Option<&'a mut Vec<S>>,
}

/// What a Mamba operation computes beyond its weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct MambaOptions {
    /// Epsilon of the gated norm.
    pub eps: f32,
    /// Lower bound of the time steps of a prompt, as transformers 5 has it. Megatron, the trainer, has none.
    pub dt_min: Option<f32>,
}

/// Where a MoE layer sent its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// Router logits, `[tokens, experts]`.
    pub logits: Vec<f32>,
    /// Chosen experts in ascending order, `[tokens, top_k]`.
    pub experts: Vec<u32>,
    /// Their weights, scaled, `[tokens, top_k]`.
    pub weights: Vec<f32>,
}

/// How a matrix keeps its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Elements of a float type.
    Float(Dtype),
    /// Codes and their scales.
    Quantized(Scheme),
}

impl From<Dtype> for WeightFormat {
    fn from(dtype: Dtype) -> Self {
        Self::Float(dtype)
    }
}

/// Rows that a linear (all experts' linears of a projection) is about to read, before any quantization.
pub struct Inputs<'a, B: Backend> {
    /// The linear.
    pub site: Site,
    /// The rows. In bfloat16 they are rounded when the product reads them, not here.
    pub rows: &'a B::Buffer,
    /// Number of rows.
    pub count: usize,
    /// Which of them are whose, of routed experts.
    pub experts: Option<ExpertRows<'a>>,
}

/// The rows of each routed expert.
#[derive(Clone, Copy)]
pub struct ExpertRows<'a> {
    /// First of each expert, and the end.
    pub starts: &'a [usize],
    /// Which row of the buffer each is; `None`: the buffer has them in this order.
    pub rows: Option<&'a [usize]>,
    /// Router weight of each; `None` where tokens were sent to experts that they did not choose.
    pub weights: Option<&'a [f32]>,
}

impl ExpertRows<'_> {
    /// Expert and row of the buffer, expert by expert.
    pub fn each(self) -> impl Iterator<Item = (usize, usize)> {
        let experts = self.starts.windows(2).enumerate();
        experts.flat_map(move |(e, w)| (w[0]..w[1]).map(move |i| (e, self.rows.map_or(i, |rows| rows[i]))))
    }
}

/// Sees what the linears of a layer read.
pub trait Probe<B: Backend> {
    /// Whether the inputs of `site` are wanted.
    fn wants(&self, site: Site) -> bool;
    /// Whether routed experts are to be shown all tokens. The layer's result is that of the true routing.
    fn all_experts(&self) -> bool {
        false
    }
    /// The rows that come next: positions of prompts, in order.
    fn batch(&mut self, _: &[(usize, Range<usize>)]) {}
    /// Inputs of a linear. An error ends the pass.
    fn inputs(&mut self, backend: &B, inputs: &Inputs<'_, B>) -> Result<()>;
}

/// Sees nothing.
impl<B: Backend> Probe<B> for () {
    fn wants(&self, _: Site) -> bool {
        false
    }

    fn inputs(&mut self, _: &B, _: &Inputs<'_, B>) -> Result<()> {
        Ok(())
    }
}

/// A device that runs models.
pub trait Backend: Sized + Send + Sync {
    /// A weight matrix `[out, in]`, packed for products.
    type Matrix: Send + Sync;
    /// Parameters of a norm or a scan, in float32.
    type Vector: Send + Sync;
    /// Activations `[tokens, width]`.
    type Buffer: Send;
    /// What a Mamba layer remembers of one sequence.
    type MambaState: Clone + Send;
    /// What an attention layer remembers of one sequence.
    type KvState: Send;

    /// The element type in which a matrix with a source of type `stored` should be handed to [`Backend::pack`].
    fn matrix_type(&self, stored: Dtype) -> Dtype;
    /// Whether there are matrices of [`WeightFormat::Quantized`] with this scheme.
    fn has_quantized(&self, scheme: Scheme) -> bool;
    /// An empty matrix; elements are those of [`Backend::matrix_type`], schemes those of [`Backend::has_quantized`].
    fn matrix(&self, rows: usize, cols: usize, format: impl Into<WeightFormat>) -> Self::Matrix;
    /// Packs whole rows of elements, row-major and little-endian, from `first_row` on.
    fn pack(&self, matrix: &mut Self::Matrix, first_row: usize, rows: &[u8]);
    /// Packs whole rows of codes from `first_row` on, which is a multiple of [`longshore_quant::pack::band_rows`].
    fn pack_quantized(&self, matrix: &mut Self::Matrix, first_row: usize, rows: &QuantizedRows);
    /// Bytes that a matrix of this shape takes.
    fn matrix_size(&self, rows: u64, cols: u64, format: WeightFormat) -> u64;
    /// Bytes of an element of the residual stream and of the key/value cache, as the precision has them.
    fn activation_size(&self) -> u64;
    /// A vector.
    fn vector(&self, values: Vec<f32>) -> Self::Vector;

    /// A buffer of any content.
    fn buffer(&self, rows: usize, width: usize) -> Self::Buffer;
    /// A buffer with these rows.
    fn upload(&self, width: usize, values: &[f32]) -> Self::Buffer;
    /// The elements of `rows` of a buffer.
    fn download(&self, buffer: &Self::Buffer, rows: Range<usize>) -> Vec<f32>;

    /// The state before the first token.
    fn mamba_state(&self, weights: &MambaWeights<Self>) -> Self::MambaState;
    /// The state before the first token.
    fn kv_state(&self, weights: &AttentionWeights<Self>) -> Self::KvState;
    /// A copy with room for about `tokens` more.
    fn fork_kv(&self, state: &Self::KvState, tokens: usize) -> Self::KvState;
    /// Forgets all but the first `tokens` tokens.
    fn truncate_kv(&self, state: &mut Self::KvState, tokens: usize);

    /// `out = rms_norm(x) * weight`.
    fn rms_norm(&self, x: &Self::Buffer, norm: &Norm<Self>, out: &mut Self::Buffer);
    /// `out = x W^T`.
    fn linear(&self, x: &Self::Buffer, weight: &Self::Matrix, out: &mut Self::Buffer);
    /// `residual += x`, rounded as the precision asks.
    fn add(&self, x: &Self::Buffer, residual: &mut Self::Buffer);
    /// Quantized and dequantized rows.
    fn fake_quantize(&self, x: &Self::Buffer, quantizer: &InputQuantizer) -> Self::Buffer;
    /// Rows of this element type, column by column times a scale.
    fn scaled(&self, x: &Self::Buffer, scale: &[f32], element: Element) -> Self::Buffer;
    /// Row by row the squared differences, each a float32, summed up in float64 in the order of the columns.
    fn squared_differences(&self, a: &Self::Buffer, b: &Self::Buffer) -> Vec<f64>;
    /// Adds rows to the statistics of a linear's input, as the product will read them. A value that is not finite makes
    /// `amax` not finite.
    fn observe(&self, inputs: &Inputs<'_, Self>, wanted: StatsWanted, stats: &mut InputStats);
    /// Some columns of all rows, side by side.
    fn columns(&self, x: &Self::Buffer, columns: &[Range<usize>]) -> Self::Buffer;
    /// Puts back what [`Backend::columns`] took.
    fn set_columns(&self, x: &mut Self::Buffer, columns: &[Range<usize>], values: &Self::Buffer);
    /// `[a | b]`, row by row.
    fn concatenate(&self, a: &Self::Buffer, b: &Self::Buffer) -> Self::Buffer;
    /// `max(x, 0)^2` in place.
    fn relu_squared(&self, x: &mut Self::Buffer);
    /// `out = silu(gate) * up` from rows of `[gate | up]`.
    fn swiglu(&self, x: &Self::Buffer, out: &mut Self::Buffer);
    /// From the input projection `[tokens, z | x | B | C | dt]` to the input of the output projection: causal
    /// convolution, scan, gate and group norm.
    fn mamba(
        &self,
        weights: &MambaWeights<Self>,
        options: &MambaOptions,
        projected: &Self::Buffer,
        segments: &mut [Segment<'_, Self::MambaState>],
        out: &mut Self::Buffer,
    );
    /// Rotates the queries and keys of `[tokens, groups of (queries, key, value)]`, which come after the tokens that the
    /// states know, by the angles of their positions. `frequencies`: the angle from one token to the next of every pair of
    /// channels, of which a head's first half has the one and its second half the other.
    fn rotate(
        &self,
        weights: &AttentionWeights<Self>,
        frequencies: &Self::Vector,
        segments: &[Segment<'_, Self::KvState>],
        qkv: &mut Self::Buffer,
    );
    /// Causal attention over all tokens so far, from `[tokens, groups of (queries, key, value)]`.
    fn attention(
        &self,
        weights: &AttentionWeights<Self>,
        qkv: &Self::Buffer,
        segments: &mut [Segment<'_, Self::KvState>],
        out: &mut Self::Buffer,
    );
    /// The whole mixture of experts: router, experts, shared expert. Errors are the probe's.
    fn moe(
        &self,
        weights: &MoeWeights<Self>,
        u: &Self::Buffer,
        out: &mut Self::Buffer,
        probe: &mut dyn Probe<Self>,
    ) -> Result<Routing>;
}
