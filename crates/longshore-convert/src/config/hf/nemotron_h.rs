//! `config.json` of `NemotronHForCausalLM` (Nemotron-H and Nemotron-3), in all the forms in which it is found: NVIDIA's
//! releases, what transformers 5 saves, and Megatron's hybrid pattern.
//!
//! Field names, old names and defaults are those of transformers 5.23 `models/nemotron_h/configuration_nemotron_h.py`.

use super::Fields;
use crate::config::json::number;
use crate::config::pattern::{self, Pattern};
use crate::config::{Activation, Attention, Forward, Kinds, Mamba, Mlp, ModelConfig, Moe, Mtp};
use serde_json::{Map, Value};

/// `architectures[0]`.
pub(crate) const ARCHITECTURE: &str = "NemotronHForCausalLM";

/// Reads the fields.
pub(super) fn read(f: &mut Fields<'_>) -> ModelConfig {
    let architecture = f.architecture(ARCHITECTURE);
    let (trunk, mtp_pattern) = (f.trunk(), f.mtp());
    let all = trunk.iter().chain(mtp_pattern.iter().map(|(layers, _)| layers)).flat_map(|p| p.chars());
    let kinds = f.kinds(&all.collect::<String>());
    f.refuse(&SUPPORTED_FLAGS, &SUPPORTED_ACTIVATIONS, &REFUSED);
    // transformers ignores the number, vLLM multiplies the width by it: only at 1 do all agree.
    if let Some(found) = f.field("n_shared_experts").filter(|v| kinds.moe.is_some() && v.as_u64() != Some(1)) {
        f.problem("n_shared_experts", format!("expected 1, found {found}: not supported"));
    }
    f.note_dead_fields();
    f.note_unknown(&KNOWN);
    let repeated = f.flag("mtp_use_repeated_layer");
    ModelConfig {
        architecture,
        hidden_size: f.size(&["hidden_size"]),
        vocab_size: f.size(&["vocab_size"]),
        layers: kinds.layers(&trunk.unwrap_or_default()),
        mtp: mtp_pattern.map(|(layers, depth)| Mtp { depth, layers: kinds.layers(&layers), repeated }),
        tie_word_embeddings: f.flag("tie_word_embeddings").unwrap_or(false),
        norm_eps: f
            .positive(&["layer_norm_epsilon", "norm_eps", "rms_norm_eps"])
            .unwrap_or_else(|| f.inferred("layer_norm_epsilon", 1e-5)),
        max_position_embeddings: f
            .optional_size(&["max_position_embeddings"])
            .unwrap_or_else(|| f.inferred("max_position_embeddings", 4096)),
        dtype: f.dtype(),
        intermediate_size: f.optional_size(&["intermediate_size"]),
        forward: f.forward(),
    }
}

/// A model made of parts of another.
pub(crate) struct Reduced<'a> {
    /// What it is.
    pub(crate) config: &'a ModelConfig,
    /// Which layers of the other's trunk it has, in order.
    pub(crate) kept: Vec<usize>,
    /// The sizes of its MoE layers, also where none is kept.
    pub(crate) moe: Option<Moe>,
}

impl<'a> Reduced<'a> {
    /// A model that has no multi-token prediction any more, and else everything.
    pub(crate) fn without_mtp(config: &'a ModelConfig) -> Self {
        Self { config, kept: (0..config.layers.len()).collect(), moe: config.kinds().moe }
    }
}

/// The fields of `object`, the config.json of the model that `reduced` is made from, that say something else of it.
pub(crate) fn reduced_fields(object: &Map<String, Value>, reduced: &Reduced<'_>) -> Vec<(&'static str, Value)> {
    let Reduced { config, kept, moe } = reduced;
    let mut fields = Vec::new();
    for name in TRUNK {
        let value = match object.get(name) {
            // In the words of the list itself, of which there are two generations.
            Some(Value::Array(names)) => kept.iter().filter_map(|&i| names.get(i).cloned()).collect(),
            Some(Value::String(text)) => {
                let (trunk, mtp) = (config.pattern(), text.find('/').filter(|_| config.mtp.is_some()));
                let same = text.split('/').next().is_some_and(|old| old.replace('|', "") == trunk);
                // Cuts of pipeline stages stay with the layers they cut.
                let trunk = if same { text.split('/').next().unwrap_or_default() } else { &trunk };
                Value::from(format!("{trunk}{}", mtp.map_or("", |at| &text[at..])))
            }
            _ => continue,
        };
        fields.push((name, value));
    }
    fields.push(("num_hidden_layers", config.layers.len().into()));
    if let Some(moe) = moe {
        fields.extend(["n_routed_experts", "num_local_experts"].map(|name| (name, moe.experts.into())));
        fields.push(("num_experts_per_tok", moe.top_k.into()));
        fields.push(("n_group", moe.n_group.into()));
        fields.push(("topk_group", moe.topk_group.into()));
    }
    if config.mtp.is_none() {
        fields.push(("num_nextn_predict_layers", 0.into()));
    }
    fields.retain(|(name, value)| object.get(*name).is_some_and(|old| !old.is_null() && old != value));
    fields
}

impl Fields<'_> {
    /// The layer pattern in one of its forms, with the name of its field: a string of letters or a list of names.
    fn pattern(&mut self, name: &'static str) -> Option<Pattern> {
        let parsed = match self.field(name)? {
            Value::String(text) => pattern::parse(text),
            Value::Array(names) => pattern::from_names(names).map(|trunk| Pattern { trunk, mtp: None }),
            other => Err(format!("expected a pattern or a list of layers, found {other}")),
        };
        parsed.map_err(|what| self.problem(name, what)).ok()
    }

    /// The trunk in Megatron's letters. Every form that is given must say the same, and `num_hidden_layers` too.
    fn trunk(&mut self) -> Option<String> {
        let given: Vec<_> = TRUNK.iter().filter_map(|&name| Some((name, self.pattern(name)?))).collect();
        let Some((first, Pattern { trunk, .. })) = given.first() else {
            if TRUNK.iter().all(|name| self.field(name).is_none()) {
                self.problem(TRUNK[0], "missing, and no `layers_block_type` either");
            }
            return None;
        };
        for (name, other) in &given[1..] {
            if &other.trunk != trunk {
                self.problem(name, format!("`{}` contradicts `{first}` `{trunk}`", other.trunk));
            }
        }
        let layers = trunk.len() as u64;
        if self.optional_size(&["num_hidden_layers"]).is_some_and(|n| n != layers) {
            let what =
                format!("expected {layers}, the layers of `{first}`, found {}", self.object["num_hidden_layers"]);
            self.problem("num_hidden_layers", what);
        }
        Some(trunk.clone())
    }

    /// The letters of one MTP block and the depth.
    fn mtp(&mut self) -> Option<(String, u64)> {
        // Patterns after a `/` in a trunk field say both letters and depth.
        let slashed: Vec<_> =
            TRUNK.iter().filter_map(|&n| Some((n, pattern::parse(self.field(n)?.as_str()?).ok()?.mtp?))).collect();
        let own: Vec<_> = MTP.iter().filter_map(|&name| Some((name, self.pattern(name)?))).collect();
        let stated = self.count("num_nextn_predict_layers");
        let absent = self.field("num_nextn_predict_layers").is_none();
        let depth = stated.or_else(|| slashed.first().filter(|_| absent).map(|s| s.1.1));
        for (name, (_, parts)) in &slashed {
            if depth != Some(*parts) {
                let what = format!("{parts} MTP patterns contradict `num_nextn_predict_layers` {}", depth.unwrap_or(0));
                self.problem(name, what);
            }
        }
        let depth = depth?;
        let mut layers: Vec<(&str, String)> = slashed.into_iter().map(|(name, (layers, _))| (name, layers)).collect();
        layers.extend(own.into_iter().map(|(name, pattern)| (name, pattern.trunk)));
        let Some((first, letters)) = layers.first().cloned() else {
            if MTP.iter().any(|name| self.field(name).is_some()) {
                return None;
            }
            return Some((self.inferred(MTP[0], "*E".to_owned()), depth));
        };
        for (name, other) in &layers[1..] {
            if *other != letters {
                self.problem(name, format!("`{other}` contradicts `{first}` `{letters}`"));
            }
        }
        Some((letters, depth))
    }

    /// The sizes of the kinds of layer that occur among `letters`.
    fn kinds(&mut self, letters: &str) -> Kinds {
        let has = |letter| letters.contains(letter);
        Kinds {
            mamba: has('M').then(|| self.mamba()),
            attention: has('*').then(|| self.attention()),
            mlp: has('-').then(|| Mlp { ffn: self.size(&["intermediate_size"]), activation: Activation::ReluSquared }),
            moe: has('E').then(|| self.moe()),
        }
    }

    fn mamba(&mut self) -> Mamba {
        Mamba {
            heads: self.size(&["mamba_num_heads"]),
            head_dim: self.size(&["mamba_head_dim"]),
            groups: self.size(&["n_groups", "mamba_n_groups"]),
            state: self.size(&["ssm_state_size"]),
            conv_kernel: self.size(&["conv_kernel", "mamba_d_conv"]),
        }
    }

    fn attention(&mut self) -> Attention {
        let heads = self.size(&["num_attention_heads"]);
        // Null means no grouping in transformers; absent means 8, which nobody relies on.
        let ungrouped = self.object.get("num_key_value_heads").is_some_and(Value::is_null);
        let kv_heads = if ungrouped { heads } else { self.size(&["num_key_value_heads"]) };
        Attention { heads, kv_heads, head_dim: self.size(&["head_dim", "attention_head_dim"]), rotary: None }
    }

    fn moe(&mut self) -> Moe {
        let moe = Moe {
            experts: self.size(&["n_routed_experts", "num_local_experts"]),
            top_k: self.size(&["num_experts_per_tok"]),
            expert_ffn: self.size(&["moe_intermediate_size"]),
            shared_ffn: self.size(&["moe_shared_expert_intermediate_size"]),
            latent: self.optional_size(&["moe_latent_size"]),
            n_group: self.optional_size(&["n_group"]).unwrap_or_else(|| self.inferred("n_group", 1)),
            topk_group: self.optional_size(&["topk_group"]).unwrap_or_else(|| self.inferred("topk_group", 1)),
            norm_topk_prob: self.flag("norm_topk_prob").unwrap_or_else(|| self.inferred("norm_topk_prob", true)),
            routed_scaling_factor: self
                .positive(&["routed_scaling_factor"])
                .unwrap_or_else(|| self.inferred("routed_scaling_factor", 1.0)),
        };
        // Megatron's `topk_softmax_with_capacity`: the scores are divided by their sum exactly when k > 1.
        if moe.norm_topk_prob != (moe.top_k > 1) {
            let does = if moe.top_k > 1 {
                "always divides the scores of several experts by their sum"
            } else {
                "never divides the score of one expert"
            };
            self.notes.push(format!(
                "`norm_topk_prob` is {}, but Megatron {does}: it computes another function",
                moe.norm_topk_prob
            ));
        }
        if moe.n_group > 1 && moe.top_k != 2 * moe.topk_group {
            self.notes.push("`n_group` is above 1: transformers scores a group by its best 2 experts, Megatron by its best `num_experts_per_tok / topk_group`".into());
        }
        moe
    }

    fn forward(&mut self) -> Forward {
        Forward {
            chunk_size: self.optional_size(&["chunk_size", "mamba_chunk_size"]),
            time_step_min: self.float(&["time_step_min", "mamba_dt_min"]),
            time_step_max: self.float(&["time_step_max", "mamba_dt_max"]),
            time_step_floor: self.float(&["time_step_floor", "mamba_dt_init_floor"]),
            time_step_limit: self.time_step_limit(),
            residual_in_fp32: self.flag("residual_in_fp32"),
            bos_token_id: self.tokens("bos_token_id").first().copied(),
            eos_token_id: self.tokens("eos_token_id"),
            pad_token_id: self.tokens("pad_token_id").first().copied(),
        }
    }

    fn time_step_limit(&mut self) -> Option<[f64; 2]> {
        let (name, value) = self.pick(&["time_step_limit", "mamba_dt_limit"])?;
        let pair = value.as_array().map(Vec::as_slice);
        let Some([low, high]) = pair.and_then(|p| if let [a, b] = p { Some([number(a)?, number(b)?]) } else { None })
        else {
            self.problem(name, format!("expected two numbers, found {value}"));
            return None;
        };
        if low > 0.0 || high < 1e30 {
            self.notes
                .push(format!("`{name}` {value} clamps the time steps; Megatron and transformers do not read it"));
        }
        Some([low, high])
    }

    fn note_dead_fields(&mut self) {
        for name in ["attention_bias", "mamba_proj_bias"] {
            if self.flag(name) == Some(true) {
                self.notes.push(format!("`{name}` is true, but no implementation reads it: there are no such tensors"));
            }
        }
        if self.flag("residual_in_fp32") == Some(true) {
            self.notes.push(
                "`residual_in_fp32` is true: transformers ignores it, Megatron is told `fp32_residual_connection`"
                    .into(),
            );
        }
    }
}

/// The other names under which a field of the releases may stand in a config.
pub(crate) fn names(field: &str) -> &'static [&'static str] {
    match field {
        "hybrid_override_pattern" => &TRUNK,
        "mtp_hybrid_override_pattern" => &MTP,
        "n_groups" => &["mamba_n_groups"],
        "conv_kernel" => &["mamba_d_conv"],
        "head_dim" => &["attention_head_dim"],
        "n_routed_experts" => &["num_local_experts"],
        _ => &[],
    }
}

/// Where the trunk is described, first the form of most releases. transformers knows `layer_types` as another name.
const TRUNK: [&str; 4] = ["hybrid_override_pattern", "layers_block_type", "layer_types", "hybrid_layer_pattern"];
/// Where an MTP block is described.
const MTP: [&str; 2] = ["mtp_hybrid_override_pattern", "mtp_layers_block_type"];

const SUPPORTED_FLAGS: [(&str, bool); 4] =
    [("use_bias", false), ("mlp_bias", false), ("use_conv_bias", true), ("mamba_conv_bias", true)];

const SUPPORTED_ACTIVATIONS: [(&str, &str); 2] = [("mlp_hidden_act", "relu2"), ("mamba_hidden_act", "silu")];

const REFUSED: [(&str, &str); 2] = [
    ("block_configs", "sizes per layer (Puzzle) are not supported"),
    ("sliding_window", "attention inside a window is not supported"),
];

/// Every field that releases carry: read above, or without any influence on the converted weights.
#[rustfmt::skip]
const KNOWN: [&str; 91] = [
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_bias", "attention_dropout",
    "attention_head_dim", "attn_implementation", "auto_map", "block_configs", "bos_token_id", "chunk_size",
    "conv_kernel", "dtype", "eos_token_id", "expand", "head_dim", "hidden_dropout", "hidden_size",
    "hybrid_layer_pattern", "hybrid_override_pattern", "initializer_range", "intermediate_size", "layer_norm_epsilon",
    "layer_types", "layers_block_type", "mamba_chunk_size", "mamba_conv_bias", "mamba_d_conv", "mamba_dt_init_floor",
    "mamba_dt_limit", "mamba_dt_max", "mamba_dt_min", "mamba_expand", "mamba_head_dim", "mamba_hidden_act",
    "mamba_n_groups", "mamba_num_heads", "mamba_proj_bias", "mamba_ssm_cache_dtype", "max_position_embeddings",
    "mlp_bias", "mlp_hidden_act", "model_type", "moe_intermediate_size", "moe_latent_size",
    "moe_shared_expert_intermediate_size", "moe_shared_expert_overlap", "mtp_hybrid_override_pattern",
    "mtp_layers_block_type", "mtp_use_repeated_layer", "n_group", "n_groups", "n_routed_experts", "n_shared_experts",
    "norm_eps", "norm_topk_prob", "num_attention_heads", "num_experts_per_tok", "num_hidden_layers",
    "num_key_value_heads", "num_local_experts", "num_logits_to_keep", "num_nextn_predict_layers",
    "output_router_logits", "pad_token_id", "partial_rotary_factor", "quantization_config", "rescale_prenorm_residual",
    "residual_in_fp32", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "routed_scaling_factor",
    "sep_token_id", "sliding_window", "ssm_state_size", "tie_word_embeddings", "time_step_floor", "time_step_limit",
    "time_step_max", "time_step_min", "time_step_rank", "topk_group", "torch_dtype", "transformers_version", "use_bias",
    "use_cache", "use_conv_bias", "use_mamba_kernels", "vocab_size",
];
