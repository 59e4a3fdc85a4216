//! The operations that a model is made of, each large enough to be one kernel or a few.
//!
//! Model code ([`crate::layers`]) names weights, buffers and states by their types here and never looks inside, so that
//! another device needs another `Backend` and nothing else. All activations are rows of tokens, `[tokens, width]`;
//! the rows of several sequences stand one after the other, and [`Segment`]s say which are whose. What a backend computes
//! for a row never depends on which other rows it is given: prompts may be cut and batched at will.

pub mod cpu;

use crate::layers::{AttentionWeights, MambaWeights, MoeWeights};
use longshore_ckpt::Dtype;
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
    /// An empty matrix for elements of [`Backend::matrix_type`].
    fn matrix(&self, rows: usize, cols: usize, element: Dtype) -> Self::Matrix;
    /// Packs whole rows, row-major and little-endian, from `first_row` on.
    fn pack(&self, matrix: &mut Self::Matrix, first_row: usize, rows: &[u8]);
    /// Bytes that a matrix of this shape takes.
    fn matrix_size(&self, rows: u64, cols: u64, element: Dtype) -> u64;
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
    /// Forgets all but the first `tokens` tokens.
    fn truncate_kv(&self, state: &mut Self::KvState, tokens: usize);

    /// `out = rms_norm(x) * weight`.
    fn rms_norm(&self, x: &Self::Buffer, weight: &Self::Vector, eps: f32, out: &mut Self::Buffer);
    /// `out = x W^T`.
    fn linear(&self, x: &Self::Buffer, weight: &Self::Matrix, out: &mut Self::Buffer);
    /// `residual += x`, rounded as the precision asks.
    fn add(&self, x: &Self::Buffer, residual: &mut Self::Buffer);
    /// `[a | b]`, row by row.
    fn concatenate(&self, a: &Self::Buffer, b: &Self::Buffer) -> Self::Buffer;
    /// `max(x, 0)^2` in place.
    fn relu_squared(&self, x: &mut Self::Buffer);
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
    /// Causal attention over all tokens so far, from `[tokens, groups of (queries, key, value)]`.
    fn attention(
        &self,
        weights: &AttentionWeights<Self>,
        qkv: &Self::Buffer,
        segments: &mut [Segment<'_, Self::KvState>],
        out: &mut Self::Buffer,
    );
    /// The whole mixture of experts: router, experts, shared expert.
    fn moe(&self, weights: &MoeWeights<Self>, u: &Self::Buffer, out: &mut Self::Buffer) -> Routing;
}
