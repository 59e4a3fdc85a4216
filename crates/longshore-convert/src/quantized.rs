//! Quantized checkpoints: which linears get what, and how their weights and states are stored on both sides.
//!
//! A [`Quantization`] says what every quantizer of a model does: decided by a config, or read from a checkpoint that has
//! quantizers. [`Calibrated`] holds the magnitudes that were observed. Together they turn the tensors of a plain checkpoint
//! into those of a quantized one ([`overlay`]), band by band while they are written ([`encode`]).

mod decide;
pub mod encode;
pub mod exported;
pub mod hf_config;
pub mod linear;
pub mod lint;
pub mod objects;
pub mod overlay;
pub mod packed;
pub mod state;
pub mod stored;

use crate::resolve::SourceTensor;
use linear::{Linear, Naming};
use longshore_quant::search::Search;
use longshore_quant::{Attributes, Granularity, Scheme};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A linear and its quantizers.
#[derive(Clone, Debug)]
pub struct QuantLinear {
    /// The linear.
    pub linear: Linear,
    /// Attributes of its input quantizer.
    pub input: Vec<Attributes>,
    /// Attributes of its weight quantizer, several where it quantizes in sequence.
    pub weight: Vec<Attributes>,
    /// Attributes of its output quantizer, which is never enabled.
    pub output: Vec<Attributes>,
    /// What happens to the input, if anything.
    pub input_scheme: Option<Scheme>,
    /// What happens to the weight; empty: nothing.
    pub weight_schemes: Vec<Scheme>,
    /// Whether its input is multiplied by a scale per column before it is quantized.
    pub has_pre_quant_scale: bool,
}

impl QuantLinear {
    /// Whether anything happens to it.
    pub fn is_quantized(&self) -> bool {
        self.input_scheme.is_some() || !self.weight_schemes.is_empty()
    }
}

/// The quantizers of the queries, keys and values of an attention layer.
#[derive(Clone, Debug)]
pub struct KvQuantizers {
    /// `decoder.layers.5.self_attention.core_attention`
    pub module: String,
    /// The Hugging Face module of the keys, `backbone.layers.5.mixer.k_proj`.
    pub hf_k: String,
    /// The Hugging Face module of the values.
    pub hf_v: String,
    /// Attributes of queries, keys and values.
    pub attributes: [Vec<Attributes>; 3],
    /// What happens to queries, keys and values.
    pub schemes: [Option<Scheme>; 3],
}

impl KvQuantizers {
    /// Those of the attention layer `index`.
    fn new(index: usize, attributes: [Vec<Attributes>; 3], schemes: [Option<Scheme>; 3]) -> Self {
        let hf = |p: &str| format!("backbone.layers.{index}.mixer.{p}");
        let module = format!("decoder.layers.{index}.self_attention.core_attention");
        Self { module, hf_k: hf("k_proj"), hf_v: hf("v_proj"), attributes, schemes }
    }

    /// The weight of the linear that makes them.
    fn qkv_weight(&self) -> String {
        self.module.replace(".core_attention", ".linear_qkv.weight")
    }

    /// The observed or constant magnitude of queries (0), keys (1) or values (2), where one is stored.
    fn amax(&self, calibrated: &Calibrated, of: usize) -> Option<f32> {
        self.schemes[of]?;
        if self.attributes[of].iter().any(|a| a.use_constant_amax) {
            return None;
        }
        calibrated.kv.get(&self.module).and_then(|all| all[of])
    }

    /// The magnitude that queries, keys or values are quantized by, a constant included (448, whatever the format).
    pub fn amax_in_use(&self, calibrated: &Calibrated, of: usize) -> Option<f32> {
        let constant = self.attributes[of].iter().any(|a| a.use_constant_amax);
        if constant { self.schemes[of].map(|_| 448.0) } else { self.amax(calibrated, of) }
    }

    /// What a magnitude is divided by for the scale that servers read.
    fn max_value(&self, of: usize) -> f32 {
        match self.schemes[of] {
            Some(Scheme::Nvfp4 { .. } | Scheme::Nvfp4Static { .. }) => 6.0 * 448.0,
            Some(Scheme::Int8(_)) => 127.0,
            _ => 448.0,
        }
    }
}

/// What every quantizer of a model does.
#[derive(Clone, Debug)]
pub struct Quantization {
    /// The names that decided it.
    pub naming: Naming,
    /// All linears that could be quantized, in the order of the layers.
    pub linears: Vec<QuantLinear>,
    /// The attention layers whose queries, keys and values have quantizers, be they on or off.
    pub kv: Vec<KvQuantizers>,
    /// Patterns that matched nothing, and other things worth knowing.
    pub warnings: Vec<String>,
}

impl Quantization {
    /// The module whose input quantizer a linear has: grouped experts share one.
    pub fn input_module(&self, linear: &Linear) -> String {
        if self.naming == Naming::MegatronTe { linear.grouped_module() } else { linear.module.clone() }
    }

    /// Whether something must be observed while the model runs.
    pub fn needs_activations(&self) -> bool {
        let is_static = |scheme: Scheme| !matches!(scheme, Scheme::Mx(_) | Scheme::Fp8(Granularity::Token));
        let inputs = self.linears.iter().any(|q| {
            let constant = q.input.iter().all(|a| a.constant_amax.is_some() || a.use_constant_amax);
            q.input_scheme.is_some_and(is_static) && !constant
        });
        let kv = |kv: &KvQuantizers| {
            kv.schemes.iter().zip(&kv.attributes).any(|(scheme, attributes)| {
                scheme.is_some_and(is_static) && !attributes.iter().any(|a| a.use_constant_amax)
            })
        };
        inputs || self.kv.iter().any(kv)
    }
}

/// The magnitudes of a model, observed or read from a checkpoint. Modules are [`Linear::module`].
#[derive(Clone, Debug, Default)]
pub struct Calibrated {
    /// The input's, by module.
    pub inputs: BTreeMap<String, f32>,
    /// What the input is multiplied by, per column, by module.
    pub pre_quant_scales: BTreeMap<String, Arc<[f32]>>,
    /// Whether the weights are already divided by `pre_quant_scales` in the source.
    pub weights_are_scaled: bool,
    /// Whether the source's weights are packed: their values are already what quantization makes of them.
    pub weights_are_values: bool,
    /// The weight's, by module and stage, where they are not those of the weight itself.
    pub weights: BTreeMap<(String, usize), WeightAmax>,
    /// What is tried for those that are not in `weights`; `None`: only the largest magnitude.
    pub weight_search: Option<Search>,
    /// Shares of the largest magnitudes of a weight's blocks, by module; of the first stage.
    pub clipped: BTreeMap<String, BlockShares>,
    /// Queries, keys, values, by `….core_attention`.
    pub kv: BTreeMap<String, [Option<f32>; 3]>,
}

/// Shares of the largest magnitudes of blocks.
#[derive(Clone, Debug)]
pub struct BlockShares {
    /// The shares.
    pub shares: Arc<[f32]>,
    /// Which one every block has, `[rows, n]` in the order of the Megatron side.
    pub index: Arc<[u8]>,
}

/// The magnitude of a weight.
#[derive(Clone, Debug)]
pub enum WeightAmax {
    /// Of all of it.
    Tensor(f32),
    /// Of its rows or blocks, `[rows / r, n]` in the order of the Megatron side, in the source.
    Rows(Arc<SourceTensor>),
    /// Of its blocks, as `Rows`, and of all of it.
    Blocks {
        /// `[rows, cols / 16]`
        blocks: Arc<SourceTensor>,
        /// What the scales of the blocks are relative to.
        global: f32,
    },
}

impl Calibrated {
    /// What the columns of a weight are multiplied by.
    fn columns(&self, module: &str) -> Option<Arc<[f32]>> {
        if self.weights_are_scaled {
            return None;
        }
        let scale = self.pre_quant_scales.get(module)?;
        Some(scale.iter().map(|s| 1.0 / s).collect())
    }

    /// The known magnitude of a whole weight.
    fn weight_amax(&self, module: &str) -> Option<f32> {
        let key = |stage| (module.to_string(), stage);
        (0..2).find_map(|stage| match self.weights.get(&key(stage)) {
            Some(WeightAmax::Tensor(value) | WeightAmax::Blocks { global: value, .. }) => Some(*value),
            _ => None,
        })
    }

    /// The stored magnitudes of the rows or blocks of a weight.
    fn stored_amax(&self, module: &str, stage: usize) -> Option<&Arc<SourceTensor>> {
        match self.weights.get(&(module.to_string(), stage)) {
            Some(WeightAmax::Rows(tensor) | WeightAmax::Blocks { blocks: tensor, .. }) => Some(tensor),
            _ => None,
        }
    }
}
