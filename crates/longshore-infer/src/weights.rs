//! Weights from a checkpoint to a backend, a layer at a time.
//!
//! Everything is read through [`Source`], by the names of the Megatron side, so one path serves both formats and every
//! architecture with these kinds of layer.

use crate::backend::Backend;
use crate::error::Result;
use crate::layers::{AttentionWeights, Layer, MambaWeights, Mixer, MlpWeights, MoeWeights};
use longshore_ckpt::{Dtype, Rect};
use longshore_convert::config::{Attention, LayerSpec, Mamba, Mlp, Moe};
use longshore_convert::source::Source;
use std::sync::{Mutex, PoisonError};

/// Reads weights of `source` for `backend`.
pub(crate) struct Loader<'a, B> {
    pub(crate) source: &'a Source,
    pub(crate) backend: &'a B,
    pub(crate) threads: usize,
}

/// The name of the embedding.
pub(crate) const EMBEDDING: &str = "embedding.word_embeddings.weight";
/// The name of the output layer, where it is not the embedding.
pub(crate) const OUTPUT_LAYER: &str = "output_layer.weight";
/// The name of the norm before the output layer.
pub(crate) const FINAL_NORM: &str = "decoder.final_norm.weight";

/// Part of a matrix: a tensor, or one expert of it, and the first row it becomes.
struct Piece {
    name: String,
    slot: Option<u64>,
    first_row: u64,
}

impl<B: Backend> Loader<'_, B> {
    /// The layer whose tensors begin with `prefix`, e.g. `decoder.layers.3.`.
    pub(crate) fn layer(&self, prefix: &str, spec: &LayerSpec) -> Result<Layer<B>> {
        let name = |rest: &str| format!("{prefix}{rest}");
        let (norm, mixer) = match *spec {
            LayerSpec::Mamba(spec) => ("norm.weight", Mixer::Mamba(self.mamba(prefix, spec)?)),
            LayerSpec::Attention(spec) => {
                let weights = AttentionWeights {
                    spec,
                    qkv: self.matrix(&name("self_attention.linear_qkv.weight"))?,
                    proj: self.matrix(&name("self_attention.linear_proj.weight"))?,
                };
                ("input_layernorm.weight", Mixer::Attention(weights))
            }
            LayerSpec::Mlp(spec) => {
                let (fc1, fc2) = (name("mlp.linear_fc1.weight"), name("mlp.linear_fc2.weight"));
                let weights = MlpWeights { spec, fc1: self.matrix(&fc1)?, fc2: self.matrix(&fc2)? };
                ("pre_mlp_layernorm.weight", Mixer::Mlp(weights))
            }
            LayerSpec::Moe(spec) => ("pre_mlp_layernorm.weight", Mixer::Moe(self.moe(prefix, spec)?)),
        };
        Ok(Layer { norm: self.vector(&name(norm))?, mixer })
    }

    /// Bytes of the packed matrices of a layer.
    pub(crate) fn layer_size(&self, prefix: &str, spec: &LayerSpec) -> u64 {
        let size = |rest: &str| self.matrix_size(&format!("{prefix}{rest}"));
        match *spec {
            LayerSpec::Mamba(_) => {
                let parts = ["z", "x", "B", "C", "dt"].map(|p| size(&format!("mixer.in_proj.weight.{p}")));
                parts.iter().sum::<u64>() + size("mixer.out_proj.weight")
            }
            LayerSpec::Attention(_) => {
                size("self_attention.linear_qkv.weight") + size("self_attention.linear_proj.weight")
            }
            LayerSpec::Mlp(_) => size("mlp.linear_fc1.weight") + size("mlp.linear_fc2.weight"),
            LayerSpec::Moe(moe) => {
                let latent = ["mlp.fc1_latent_proj.weight", "mlp.fc2_latent_proj.weight"];
                let shared = ["mlp.shared_experts.linear_fc1.weight", "mlp.shared_experts.linear_fc2.weight"];
                let experts = ["mlp.experts.experts.linear_fc1.weight", "mlp.experts.experts.linear_fc2.weight"];
                let latent: u64 = if moe.latent.is_some() { latent.map(size).iter().sum() } else { 0 };
                latent
                    + shared.map(size).iter().sum::<u64>()
                    + experts.map(size).iter().sum::<u64>()
                    + size("mlp.router.weight")
            }
        }
    }

    /// Bytes of a packed matrix, or of all matrices that a stacked tensor becomes.
    pub(crate) fn matrix_size(&self, name: &str) -> u64 {
        let (shape, dtype) = self.source.tensor(name);
        let (stack, shape) = shape.split_at(shape.len() - 2);
        let element = self.backend.matrix_type(dtype);
        stack.iter().product::<u64>() * self.backend.matrix_size(shape[0], shape[1], element)
    }

    /// A whole tensor `[out, in]` as a matrix.
    pub(crate) fn matrix(&self, name: &str) -> Result<B::Matrix> {
        self.matrix_of(&[Piece { name: name.to_owned(), slot: None, first_row: 0 }])
    }

    /// A tensor as float32 values.
    pub(crate) fn values(&self, name: &str) -> Result<Vec<f32>> {
        let (shape, _) = self.source.tensor(name);
        self.values_of(name, &Rect::whole(shape))
    }

    /// A box of a tensor as float32 values.
    pub(crate) fn values_of(&self, name: &str, rect: &Rect) -> Result<Vec<f32>> {
        let mut bytes = vec![0; rect.len() as usize * 4];
        self.source.read(name, rect, Dtype::Float32, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    pub(crate) fn vector(&self, name: &str) -> Result<B::Vector> {
        Ok(self.backend.vector(self.values(name)?))
    }

    fn mamba(&self, prefix: &str, spec: Mamba) -> Result<MambaWeights<B>> {
        let name = |rest: &str| format!("{prefix}mixer.{rest}");
        let mut pieces = Vec::new();
        let mut first_row = 0;
        for part in ["z", "x", "B", "C", "dt"] {
            let name = name(&format!("in_proj.weight.{part}"));
            let rows = self.source.tensor(&name).0[0];
            pieces.push(Piece { name, slot: None, first_row });
            first_row += rows;
        }
        let mut conv = Vec::new();
        let mut conv_bias = Vec::new();
        for part in ["x", "B", "C"] {
            conv.push(self.values(&name(&format!("conv1d.weight.{part}")))?);
            conv_bias.push(self.values(&name(&format!("conv1d.bias.{part}")))?);
        }
        let groups = spec.groups as usize;
        let a = self.values(&name("A_log"))?.iter().map(|x| -x.exp()).collect();
        Ok(MambaWeights {
            spec,
            in_proj: self.matrix_of(&pieces)?,
            out_proj: self.matrix(&name("out_proj.weight"))?,
            conv: self.backend.vector(by_group(&conv, groups, spec.conv_kernel as usize)),
            conv_bias: self.backend.vector(by_group(&conv_bias, groups, 1)),
            a: self.backend.vector(a),
            d: self.vector(&name("D"))?,
            dt_bias: self.vector(&name("dt_bias"))?,
            norm: self.vector(&name("norm.weight"))?,
        })
    }

    fn moe(&self, prefix: &str, spec: Moe) -> Result<MoeWeights<B>> {
        let name = |rest: &str| format!("{prefix}mlp.{rest}");
        let latent = if spec.latent.is_some() {
            let down = self.matrix(&name("fc1_latent_proj.weight"))?;
            Some((down, self.matrix(&name("fc2_latent_proj.weight"))?))
        } else {
            None
        };
        Ok(MoeWeights {
            spec,
            router: self.exact_matrix(&name("router.weight"))?,
            expert_bias: self.vector(&name("router.expert_bias"))?,
            latent,
            fc1: self.experts(&name("experts.experts.linear_fc1.weight"), spec.experts)?,
            fc2: self.experts(&name("experts.experts.linear_fc2.weight"), spec.experts)?,
            shared_fc1: self.matrix(&name("shared_experts.linear_fc1.weight"))?,
            shared_fc2: self.matrix(&name("shared_experts.linear_fc2.weight"))?,
        })
    }

    /// The matrices of a tensor `[experts, out, in]`, several at a time.
    fn experts(&self, name: &str, experts: u64) -> Result<Vec<B::Matrix>> {
        let results: Mutex<Vec<(u64, Result<B::Matrix>)>> = Mutex::new(Vec::new());
        let next = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.threads.clamp(1, experts.max(1) as usize) {
                scope.spawn(|| {
                    loop {
                        let e = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if e >= experts {
                            break;
                        }
                        let matrix = self.matrix_of(&[Piece { name: name.to_owned(), slot: Some(e), first_row: 0 }]);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((e, matrix));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|r| r.0);
        results.into_iter().map(|r| r.1).collect()
    }

    /// The router's matrix, which is used in float32 in every precision.
    fn exact_matrix(&self, name: &str) -> Result<B::Matrix> {
        let dtype = self.source.tensor(name).1;
        let element = if dtype == Dtype::Bfloat16 { dtype } else { Dtype::Float32 };
        self.pack(&[Piece { name: name.to_owned(), slot: None, first_row: 0 }], element)
    }

    fn matrix_of(&self, pieces: &[Piece]) -> Result<B::Matrix> {
        // One type for all pieces: the one that loses nothing.
        let types: Vec<Dtype> =
            pieces.iter().map(|p| self.backend.matrix_type(self.source.tensor(&p.name).1)).collect();
        let element = if types.iter().all(|&t| t == types[0]) { types[0] } else { Dtype::Float32 };
        self.pack(pieces, element)
    }

    fn pack(&self, pieces: &[Piece], element: Dtype) -> Result<B::Matrix> {
        let mut rows = 0;
        let mut cols = 0;
        for piece in pieces {
            let shape = self.source.tensor(&piece.name).0;
            rows += shape[shape.len() - 2];
            cols = shape[shape.len() - 1];
        }
        let mut matrix = self.backend.matrix(rows as usize, cols as usize, element);
        for piece in pieces {
            let mut rect = Rect::whole(self.source.tensor(&piece.name).0);
            if let Some(slot) = piece.slot {
                (rect.offsets[0], rect.sizes[0]) = (slot, 1);
            }
            self.source.read_rows(&piece.name, &rect, element, cols, |row, bytes| {
                self.backend.pack(&mut matrix, piece.first_row as usize + row, bytes);
            })?;
        }
        Ok(matrix)
    }
}

/// `[groups, kernel, x | B | C of the group]` from the parts x, B and C, each `[channels, kernel]`.
fn by_group(parts: &[Vec<f32>], groups: usize, kernel: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(parts.iter().map(Vec::len).sum());
    for group in 0..groups {
        for j in 0..kernel {
            for part in parts {
                let len = part.len() / groups;
                out.extend(part[group * len..(group + 1) * len].iter().skip(j).step_by(kernel));
            }
        }
    }
    out
}

/// Fields of a Megatron checkpoint that decide the function and that neither its arguments nor its tensors say.
pub(crate) fn not_stored(layers: &[LayerSpec]) -> Vec<&'static str> {
    let mut fields = Vec::new();
    for layer in layers {
        if let LayerSpec::Moe(moe) = layer {
            fields.extend((moe.top_k == 0).then_some("num_experts_per_tok"));
            fields.extend((moe.routed_scaling_factor == 0.0).then_some("routed_scaling_factor"));
        }
    }
    fields.sort_unstable();
    fields.dedup();
    fields
}

/// Bytes that a sequence's state takes in a layer: what is fixed, and what every token adds.
pub(crate) fn state_size(spec: &LayerSpec, kv_element: u64) -> (u64, u64) {
    match *spec {
        LayerSpec::Mamba(Mamba { heads, head_dim, groups, state, conv_kernel }) => {
            let channels = heads * head_dim + 2 * groups * state;
            (4 * (heads * head_dim * state + (conv_kernel - 1) * channels), 0)
        }
        LayerSpec::Attention(Attention { kv_heads, head_dim, .. }) => (0, 2 * kv_heads * head_dim * kv_element),
        LayerSpec::Mlp(Mlp { .. }) | LayerSpec::Moe(_) => (0, 0),
    }
}
