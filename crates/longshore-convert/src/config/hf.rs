//! `config.json` of `NemotronHForCausalLM` (Nemotron-H and Nemotron-3), in all the forms in which it is found: NVIDIA's
//! releases, what transformers 5 saves, and Megatron's hybrid pattern.
//!
//! Field names, old names and defaults are those of transformers 5.23 `models/nemotron_h/configuration_nemotron_h.py`.
//! A field that changes names, shapes or the function in a way that the mapping does not know is refused by its name;
//! fields that the reference never reads are allowed and noted.

use crate::config::json::number;
use crate::config::pattern::{self, Pattern};
use crate::config::{Attention, Forward, Kinds, Mamba, Mlp, ModelConfig, Moe, Mtp};
use crate::error::Problem;
use longshore_ckpt::Dtype;
use serde_json::{Map, Value};

/// The only architecture of this file.
pub const ARCHITECTURE: &str = "NemotronHForCausalLM";

/// A config that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// The model.
    pub config: ModelConfig,
    /// What was inferred or left out of account, a sentence each.
    pub notes: Vec<String>,
}

/// Reads a parsed `config.json` (see [`json::parse`](crate::config::json::parse)); `file` is its name in problems. All
/// problems are found, not only the first.
pub fn read(file: &str, value: &Value) -> Result<Read, Vec<Problem>> {
    let problem =
        |field: &str, what: String| vec![Problem::Config { file: file.to_owned(), field: field.to_owned(), what }];
    let Value::Object(object) = value else {
        return Err(problem("", "expected an object".into()));
    };
    // The fields of another family would only give problems that mean nothing.
    if object.get("model_type").and_then(Value::as_str) != Some("nemotron_h") {
        let found = object.get("model_type").unwrap_or(&Value::Null);
        return Err(problem("model_type", format!("expected `nemotron_h`, found `{found}`")));
    }
    let mut f = Fields { file, object, problems: Vec::new(), notes: Vec::new() };
    let architecture = f.architecture();
    let (trunk, mtp_pattern) = (f.trunk(), f.mtp());
    let all = trunk.iter().chain(mtp_pattern.iter().map(|(layers, _)| layers)).flat_map(|p| p.chars());
    let kinds = f.kinds(&all.collect::<String>());
    f.refuse_what_is_not_known(kinds.moe.is_some());
    f.note_dead_fields();
    let repeated = f.flag("mtp_use_repeated_layer");
    let config = ModelConfig {
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
    };
    if f.problems.is_empty() {
        for (field, what) in config.contradictions() {
            f.problem(field, what);
        }
    }
    if f.problems.is_empty() { Ok(Read { config, notes: f.notes }) } else { Err(f.problems) }
}

/// Sizes from here on are no sizes.
const MAX_SIZE: u64 = 1 << 31;

/// The fields of one object, and what was found wrong with them so far.
struct Fields<'a> {
    file: &'a str,
    object: &'a Map<String, Value>,
    problems: Vec<Problem>,
    notes: Vec<String>,
}

impl<'a> Fields<'a> {
    fn problem(&mut self, field: &str, what: impl Into<String>) {
        let problem = Problem::Config { file: self.file.to_owned(), field: field.to_owned(), what: what.into() };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn inferred<T: std::fmt::Display>(&mut self, field: &str, value: T) -> T {
        self.notes.push(format!("`{field}` is not given; transformers' default {value} is assumed"));
        value
    }

    /// The field of that name, where it is not null.
    fn field(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    /// The value that a field has under one of its names. Names that disagree are a problem.
    fn pick(&mut self, names: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        let mut given = names.iter().filter_map(|&name| Some((name, self.field(name)?)));
        let first = given.next()?;
        let same = |a: &Value, b: &Value| a == b || (number(a).is_some() && number(a) == number(b));
        let others: Vec<_> = given.filter(|other| !same(first.1, other.1)).collect();
        for (name, value) in others {
            self.problem(name, format!("{value} contradicts `{}` {}", first.0, first.1));
        }
        Some(first)
    }

    /// A size that must be there. 1 where it is not, and a problem.
    fn size(&mut self, names: &[&'static str]) -> u64 {
        if names.iter().all(|name| self.field(name).is_none()) {
            self.problem(names[0], "missing");
        }
        self.optional_size(names).unwrap_or(1)
    }

    fn optional_size(&mut self, names: &[&'static str]) -> Option<u64> {
        let (name, value) = self.pick(names)?;
        let size = value.as_u64().filter(|n| (1..MAX_SIZE).contains(n));
        match size {
            Some(size) => return Some(size),
            None if value.is_array() => self.problem(name, "one size per layer is not supported"),
            None => self.problem(name, format!("expected a whole number from 1 to 2^31 - 1, found {value}")),
        }
        None
    }

    /// A count: like a size, but absent, null and 0 mean none.
    fn count(&mut self, name: &'static str) -> Option<u64> {
        if self.field(name).and_then(Value::as_u64) == Some(0) { None } else { self.optional_size(&[name]) }
    }

    fn flag(&mut self, name: &'static str) -> Option<bool> {
        let value = self.field(name)?;
        if value.as_bool().is_none() {
            self.problem(name, format!("expected true or false, found {value}"));
        }
        value.as_bool()
    }

    fn float(&mut self, names: &[&'static str]) -> Option<f64> {
        let (name, value) = self.pick(names)?;
        let float = number(value);
        if float.is_none() {
            self.problem(name, format!("expected a number, found {value}"));
        }
        float
    }

    /// A finite number above 0.
    fn positive(&mut self, names: &[&'static str]) -> Option<f64> {
        let float = self.float(names)?;
        if !(float.is_finite() && float > 0.0) {
            self.problem(names[0], format!("expected a number above 0, found {float}"));
        }
        Some(float)
    }

    /// A token id, or a list of them.
    fn tokens(&mut self, name: &'static str) -> Vec<u64> {
        let ids = match self.field(name) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list.iter().map(Value::as_u64).collect(),
            Some(one) => one.as_u64().map(|id| vec![id]),
        };
        if ids.is_none() {
            self.problem(name, "expected token ids");
        }
        ids.unwrap_or_default()
    }

    fn architecture(&mut self) -> String {
        let found = match self.field("architectures") {
            None => return self.inferred("architectures", ARCHITECTURE.to_owned()),
            Some(Value::Array(list)) => list.first().and_then(Value::as_str),
            Some(_) => None,
        };
        match found {
            Some(ARCHITECTURE) => {}
            Some("NemotronHPuzzleForCausalLM") => {
                self.problem("architectures", "`NemotronHPuzzleForCausalLM` (sizes per layer) is not supported");
            }
            _ => self
                .problem("architectures", format!("expected `{ARCHITECTURE}`, found {}", self.object["architectures"])),
        }
        ARCHITECTURE.to_owned()
    }

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
            mlp: has('-').then(|| Mlp { ffn: self.size(&["intermediate_size"]) }),
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
        Attention { heads, kv_heads, head_dim: self.size(&["head_dim", "attention_head_dim"]) }
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

    fn dtype(&mut self) -> Option<Dtype> {
        let (name, value) = self.pick(&["torch_dtype", "dtype"])?;
        let text = value.as_str().unwrap_or_default();
        let dtype = Dtype::from_torch_name(text.strip_prefix("torch.").unwrap_or(text));
        if dtype.is_none() {
            self.problem(name, format!("expected a dtype such as \"bfloat16\", found {value}"));
        }
        dtype
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

    /// Fields that change tensors or the function in ways that no reference was compared with.
    fn refuse_what_is_not_known(&mut self, has_experts: bool) {
        for (name, supported) in SUPPORTED_FLAGS {
            if self.flag(name).is_some_and(|found| found != supported) {
                self.problem(name, format!("expected {supported}, found {}: not supported", !supported));
            }
        }
        for (name, supported) in SUPPORTED_ACTIVATIONS {
            if let Some(found) = self.field(name).filter(|v| v.as_str() != Some(supported)) {
                self.problem(name, format!("expected \"{supported}\", found {found}: not supported"));
            }
        }
        for (name, what) in REFUSED {
            if self.field(name).is_some() {
                self.problem(name, what);
            }
        }
        // transformers ignores the number, vLLM multiplies the width by it: only at 1 do all agree.
        if let Some(found) = self.field("n_shared_experts").filter(|v| has_experts && v.as_u64() != Some(1)) {
            self.problem("n_shared_experts", format!("expected 1, found {found}: not supported"));
        }
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
        let unknown: Vec<_> = self.object.keys().filter(|key| !KNOWN.contains(&key.as_str())).cloned().collect();
        for name in unknown {
            self.notes.push(format!("`{name}` is not known and not taken into account"));
        }
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

#[cfg(test)]
pub(super) mod tests;
