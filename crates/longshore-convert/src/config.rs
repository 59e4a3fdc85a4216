//! What decides a model's names, shapes and forward pass, whichever side it was read from.

pub mod hf;
pub mod json;
pub mod megatron;
mod pattern;
pub mod pruned;
pub mod release;
pub mod run_config;
mod stored;
pub(crate) mod text;

use longshore_ckpt::Dtype;
use serde::Serialize;

/// A Mamba-2 mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mamba {
    /// Heads (`mamba_num_heads`).
    pub heads: u64,
    /// Channels of a head.
    pub head_dim: u64,
    /// Groups that share B and C (`n_groups`).
    pub groups: u64,
    /// State size N (`ssm_state_size`).
    pub state: u64,
    /// Width of the causal convolution.
    pub conv_kernel: u64,
}

/// Grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Attention {
    /// Query heads.
    pub heads: u64,
    /// Key/value heads, Megatron's query groups.
    pub kv_heads: u64,
    /// Channels of a head.
    pub head_dim: u64,
    /// Rotary position embedding of queries and keys, over all channels of a head; `None`: positions are not embedded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotary: Option<Rotary>,
}

/// Rotary position embedding (Su et al. 2021): the first half of a head's channels with the second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rotary {
    /// Base of the wavelengths (`rope_theta`), at least 1.
    pub theta: f64,
    /// What longer contexts do to the frequencies.
    pub scaling: RotaryScaling,
}

/// How frequencies are stretched (`rope_type`); every factor is at least 1 but those of Llama 3's two borders.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RotaryScaling {
    /// Not at all.
    Default,
    /// All by the same factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Long wavelengths by the factor, short ones not, those in between by a mixture (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Waves that fit the original context less often than this are long.
        low_freq_factor: f64,
        /// Waves that fit it more often than this are short.
        high_freq_factor: f64,
        /// The original context.
        original_max_position_embeddings: u64,
    },
}

/// A dense MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mlp {
    /// Inner width.
    pub ffn: u64,
    /// What stands between its linears.
    pub activation: Activation,
}

impl Mlp {
    /// Rows of the first linear: with a gate, twice the inner width.
    pub fn fc1_rows(&self) -> u64 {
        match self.activation {
            Activation::ReluSquared => self.ffn,
            Activation::SwiGlu => self.ffn.saturating_mul(2),
        }
    }
}

/// The function between the linears of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `max(x, 0)^2`
    ReluSquared,
    /// `silu(gate) * up`; the first linear has the gate's rows, then those of up.
    SwiGlu,
}

/// A mixture of experts with a shared expert.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Moe {
    /// Routed experts.
    pub experts: u64,
    /// Experts per token; 0 where a Megatron checkpoint does not say, see [`megatron::read`].
    pub top_k: u64,
    /// Inner width of a routed expert.
    pub expert_ffn: u64,
    /// Inner width of the shared expert.
    pub shared_ffn: u64,
    /// Width the routed experts work in, where it is not the hidden size.
    pub latent: Option<u64>,
    /// Groups of the group-limited routing.
    pub n_group: u64,
    /// Groups a token may use.
    pub topk_group: u64,
    /// Whether the chosen scores are divided by their sum.
    pub norm_topk_prob: bool,
    /// Factor on the routed output; 0 where a Megatron checkpoint does not say, see [`megatron::read`].
    pub routed_scaling_factor: f64,
}

/// One layer: its kind and sizes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum LayerSpec {
    /// `M`
    Mamba(Mamba),
    /// `*`
    Attention(Attention),
    /// `-`
    Mlp(Mlp),
    /// `E`
    Moe(Moe),
}

impl LayerSpec {
    /// The letter of Megatron's hybrid pattern.
    pub fn letter(&self) -> char {
        match self {
            Self::Mamba(_) => 'M',
            Self::Attention(_) => '*',
            Self::Mlp(_) => '-',
            Self::Moe(_) => 'E',
        }
    }
}

/// Multi-token prediction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mtp {
    /// Prediction depth (`num_nextn_predict_layers`), at least 1.
    pub depth: u64,
    /// The layers of one block.
    pub layers: Vec<LayerSpec>,
    /// Whether one block is applied `depth` times; `None` where the source does not say and the tensors decide.
    pub repeated: Option<bool>,
}

impl Mtp {
    /// Blocks with weights of their own.
    pub fn blocks(&self) -> u64 {
        if self.repeated == Some(true) { 1 } else { self.depth }
    }
}

/// What only the forward pass or the tokenizer reads: no tensor shows it. `None` (or empty) where the source does not say.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Forward {
    /// Tokens of a chunk of the state-space scan. Any value gives the same function, it only changes rounding.
    pub chunk_size: Option<u64>,
    /// Lower end of the initial time steps; transformers 5 also clamps with it at prefill.
    pub time_step_min: Option<f64>,
    /// Upper end of the initial time steps.
    pub time_step_max: Option<f64>,
    /// Floor of the initial time steps.
    pub time_step_floor: Option<f64>,
    /// Clamp of the time steps, `[0, infinity]` in every release.
    pub time_step_limit: Option<[f64; 2]>,
    /// Whether the residual stream is float32.
    pub residual_in_fp32: Option<bool>,
    /// Token that begins a text.
    pub bos_token_id: Option<u64>,
    /// Tokens that end a text.
    pub eos_token_id: Vec<u64>,
    /// Token that fills a batch.
    pub pad_token_id: Option<u64>,
}

/// The fields that decide names, shapes and the forward pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// `architectures[0]` of config.json, e.g. `NemotronHForCausalLM`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Rows of the embedding that mean a token.
    pub vocab_size: u64,
    /// The trunk.
    pub layers: Vec<LayerSpec>,
    /// Multi-token prediction, where the model has it.
    pub mtp: Option<Mtp>,
    /// Whether the output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// Epsilon of all RMS norms.
    pub norm_eps: f64,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: u64,
    /// The dtype the config names, if any.
    pub dtype: Option<Dtype>,
    /// `intermediate_size`, stored even where no layer uses it.
    pub intermediate_size: Option<u64>,
    /// What no tensor shows.
    pub forward: Forward,
}

impl ModelConfig {
    /// A model without layers: what examples and tests build on.
    pub fn minimal(architecture: &str, hidden_size: u64, vocab_size: u64) -> Self {
        Self {
            architecture: architecture.to_owned(),
            hidden_size,
            vocab_size,
            layers: Vec::new(),
            mtp: None,
            tie_word_embeddings: false,
            norm_eps: 1e-5,
            max_position_embeddings: 4096,
            dtype: None,
            intermediate_size: None,
            forward: Forward::default(),
        }
    }

    /// The pattern of the trunk in Megatron's letters.
    pub fn pattern(&self) -> String {
        letters(&self.layers)
    }

    /// The trunk's layers, then those of one MTP block.
    pub fn all_layers(&self) -> impl Iterator<Item = &LayerSpec> {
        self.layers.iter().chain(self.mtp.iter().flat_map(|mtp| &mtp.layers))
    }

    /// The sizes of the first layer of each kind.
    pub(crate) fn kinds(&self) -> Kinds {
        let mut kinds = Kinds::default();
        for layer in self.all_layers() {
            match *layer {
                LayerSpec::Mamba(m) => _ = kinds.mamba.get_or_insert(m),
                LayerSpec::Attention(a) => _ = kinds.attention.get_or_insert(a),
                LayerSpec::Mlp(m) => _ = kinds.mlp.get_or_insert(m),
                LayerSpec::Moe(m) => _ = kinds.moe.get_or_insert(m),
            }
        }
        kinds
    }

    /// Sizes that contradict each other, or that no computer holds: the field in Hugging Face's words, and why.
    pub(crate) fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut need = |field, ok: bool, what: String| {
            if !ok {
                found.push((field, what));
            }
        };
        let (h, kinds) = (self.hidden_size, self.kinds());
        need("vocab_size", fits(&[self.vocab_size, h]), too_large("embedding"));
        let (count, mtp) = (self.layers.len() as u64, self.mtp.as_ref());
        need("num_hidden_layers", count <= MAX_LAYERS, format!("{count} layers, expected at most {MAX_LAYERS}"));
        let depth = mtp.map_or(0, |m| m.depth);
        let mtp_layers = mtp.map_or(0, |m| depth.saturating_mul(m.layers.len() as u64));
        need(
            "num_nextn_predict_layers",
            mtp_layers <= MAX_LAYERS,
            format!("{mtp_layers} layers, expected at most {MAX_LAYERS}"),
        );
        if let Some(Mamba { heads, head_dim, groups, state, conv_kernel }) = kinds.mamba {
            let whole = heads.is_multiple_of(groups);
            need("n_groups", whole, format!("{groups} groups do not divide {heads} mamba heads"));
            let (inner, bc) = (heads.saturating_mul(head_dim), groups.saturating_mul(state));
            let rows = inner.saturating_add(bc).saturating_mul(2).saturating_add(heads);
            need("mamba_num_heads", fits(&[rows, h]) && fits(&[rows, conv_kernel]), too_large("Mamba projection"));
        }
        if let Some(Attention { heads, kv_heads, head_dim, rotary }) = kinds.attention {
            let whole = heads.is_multiple_of(kv_heads);
            need("num_key_value_heads", whole, format!("{kv_heads} do not divide {heads} attention heads"));
            let rows = heads.saturating_add(kv_heads.saturating_mul(2)).saturating_mul(head_dim);
            need("num_attention_heads", fits(&[rows, h]), too_large("attention projection"));
            let halves = rotary.is_none() || head_dim.is_multiple_of(2);
            need("head_dim", halves, format!("rotary embedding needs an even number of channels, found {head_dim}"));
        }
        if let Some(mlp) = kinds.mlp {
            need("intermediate_size", fits(&[mlp.fc1_rows(), h]), too_large("MLP"));
        }
        if let Some(m) = kinds.moe {
            let e = m.experts;
            need("num_experts_per_tok", m.top_k <= e, format!("{} of {e} experts", m.top_k));
            need("n_group", e.is_multiple_of(m.n_group), format!("{} groups do not divide {e} experts", m.n_group));
            need("topk_group", m.topk_group <= m.n_group, format!("{} of {} groups", m.topk_group, m.n_group));
            let width = m.latent.unwrap_or(h).max(h);
            need("moe_intermediate_size", fits(&[e, m.expert_ffn, width]), too_large("experts"));
            need("moe_shared_expert_intermediate_size", fits(&[m.shared_ffn, width]), too_large("shared expert"));
            let moe_layers = self.layers.iter().filter(|l| l.letter() == 'E').count() as u64 + mtp_layers;
            let experts = moe_layers.saturating_mul(e);
            need(
                "n_routed_experts",
                experts <= MAX_EXPERTS,
                format!("{experts} in all layers, expected at most {MAX_EXPERTS}"),
            );
        }
        found
    }
}

/// More layers or experts than this are a damaged file: every one of them becomes names in memory.
pub(crate) const MAX_LAYERS: u64 = 1 << 13;
const MAX_EXPERTS: u64 = 1 << 18;

fn too_large(what: &str) -> String {
    format!("the {what} would be larger than any file")
}

/// Whether a tensor of these sizes has fewer than 2^60 elements, so that no number of bytes overflows 63 bits.
fn fits(sizes: &[u64]) -> bool {
    sizes.iter().try_fold(1u64, |n, &size| n.checked_mul(size)).is_some_and(|n| n < 1 << 60)
}

/// The layers in Megatron's letters.
pub(crate) fn letters(layers: &[LayerSpec]) -> String {
    layers.iter().map(LayerSpec::letter).collect()
}

/// The sizes of each kind of layer, where there is one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kinds {
    pub(crate) mamba: Option<Mamba>,
    pub(crate) attention: Option<Attention>,
    pub(crate) mlp: Option<Mlp>,
    pub(crate) moe: Option<Moe>,
}

impl Kinds {
    /// The layers of a checked pattern; a letter whose kind is not known is left out (it has a problem of its own).
    pub(crate) fn layers(&self, pattern: &str) -> Vec<LayerSpec> {
        let layer = |letter| match letter {
            'M' => self.mamba.map(LayerSpec::Mamba),
            '*' => self.attention.map(LayerSpec::Attention),
            '-' => self.mlp.map(LayerSpec::Mlp),
            _ => self.moe.map(LayerSpec::Moe),
        };
        pattern.chars().filter_map(layer).collect()
    }
}
