//! A `config.json` in the form of NVIDIA's Nemotron-3 releases, rebuilt from a [`ModelConfig`]: for checkpoints that come
//! without one. It is no copy of the original file: fields that only training or remote code reads are not in it.

use crate::config::hf::nemotron_h;
use crate::config::{ModelConfig, letters};
use longshore_ckpt::Dtype;
use serde_json::{Map, Value, json};

/// The config, and the fields whose value nothing in `config` determines, a line each: those that every release has alike
/// are assumed, those that decide the function are left out, see [`megatron::read`](crate::config::megatron::read).
pub fn hf_json(config: &ModelConfig) -> (Value, Vec<String>) {
    let mut out = Fields { entries: Vec::new(), assumed: Vec::new() };
    let (kinds, forward) = (config.kinds(), &config.forward);
    out.put("architectures", json!([nemotron_h::ARCHITECTURE]));
    out.put("model_type", "nemotron_h");
    out.put("hybrid_override_pattern", config.pattern());
    out.put("num_hidden_layers", config.layers.len());
    out.put("hidden_size", config.hidden_size);
    out.put("vocab_size", config.vocab_size);
    out.put("tie_word_embeddings", config.tie_word_embeddings);
    out.put("layer_norm_epsilon", config.norm_eps);
    out.put("norm_eps", config.norm_eps);
    out.put("max_position_embeddings", config.max_position_embeddings);
    out.known("torch_dtype", config.dtype.map(Dtype::torch_name), "bfloat16");
    if let Some(size) = config.intermediate_size.or(kinds.mlp.map(|m| m.ffn)) {
        out.put("intermediate_size", size);
    }
    for (name, value) in FIXED {
        out.put(name, value);
    }
    for (name, value) in
        [("mlp_hidden_act", "relu2"), ("mamba_hidden_act", "silu"), ("mamba_ssm_cache_dtype", "float32")]
    {
        out.put(name, value);
    }
    out.put("sliding_window", Value::Null);
    out.put("num_logits_to_keep", 1);
    if let Some(m) = kinds.mamba {
        out.put("mamba_num_heads", m.heads);
        out.put("mamba_head_dim", m.head_dim);
        out.put("n_groups", m.groups);
        out.put("ssm_state_size", m.state);
        out.put("conv_kernel", m.conv_kernel);
        out.known("chunk_size", forward.chunk_size, 128);
        out.known("time_step_min", forward.time_step_min, 0.001);
        out.known("time_step_max", forward.time_step_max, 0.1);
        out.known("time_step_floor", forward.time_step_floor, 1e-4);
        // Without the field the limit is `[0, infinity]`, which is not JSON.
        if let Some(limit) = forward.time_step_limit.filter(|limit| limit.iter().all(|f| f.is_finite())) {
            out.put("time_step_limit", json!(limit));
        }
    }
    if let Some(a) = kinds.attention {
        out.put("num_attention_heads", a.heads);
        out.put("num_key_value_heads", a.kv_heads);
        out.put("head_dim", a.head_dim);
    }
    if let Some(m) = kinds.moe {
        out.put("n_routed_experts", m.experts);
        out.put("n_shared_experts", 1);
        out.stored("num_experts_per_tok", "moe_router_topk", Some(m.top_k).filter(|&k| k > 0));
        out.put("moe_intermediate_size", m.expert_ffn);
        out.put("moe_shared_expert_intermediate_size", m.shared_ffn);
        out.put("moe_latent_size", m.latent.map_or(Value::Null, Value::from));
        out.put("n_group", m.n_group);
        out.put("topk_group", m.topk_group);
        out.put("norm_topk_prob", m.norm_topk_prob);
        let factor = Some(m.routed_scaling_factor).filter(|&f| f > 0.0);
        out.stored("routed_scaling_factor", "moe_router_topk_scaling_factor", factor);
    }
    if let Some(mtp) = &config.mtp {
        out.put("num_nextn_predict_layers", mtp.depth);
        out.put("mtp_hybrid_override_pattern", letters(&mtp.layers));
        // transformers has no such field; Megatron-Bridge takes true where it is absent.
        if let Some(repeated) = mtp.repeated.filter(|_| mtp.depth > 1) {
            out.put("mtp_use_repeated_layer", repeated);
        }
    }
    out.known("residual_in_fp32", forward.residual_in_fp32, false);
    out.known("bos_token_id", forward.bos_token_id, 1);
    out.known("pad_token_id", forward.pad_token_id, 0);
    let eos = match forward.eos_token_id.as_slice() {
        [] => None,
        [id] => Some(json!(id)),
        ids => Some(json!(ids)),
    };
    out.known("eos_token_id", eos, 2);
    out.entries.sort_by(|a, b| a.0.cmp(b.0));
    let object: Map<String, Value> = out.entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    (Value::Object(object), out.assumed)
}

/// Flags that have the same value in every release, and that the mapping supports with no other.
const FIXED: [(&str, bool); 6] = [
    ("attention_bias", false),
    ("mamba_proj_bias", false),
    ("mlp_bias", false),
    ("use_bias", false),
    ("use_cache", true),
    ("use_conv_bias", true),
];

struct Fields {
    entries: Vec<(&'static str, Value)>,
    assumed: Vec<String>,
}

impl Fields {
    fn put(&mut self, name: &'static str, value: impl Into<Value>) {
        self.entries.push((name, value.into()));
    }

    /// A value that decides the function and may not be stored: then the field is left out, with a line in `assumed`.
    fn stored<T: Into<Value>>(&mut self, name: &'static str, argument: &str, value: Option<T>) {
        match value {
            Some(value) => self.put(name, value),
            None => self.assumed.push(format!(
                "{name} is left out: `{argument}` is not among the stored arguments and no tensor shows it; `--base DIR` can supply it"
            )),
        }
    }

    /// A value that may not be known: then that of the releases, and a line in `assumed`.
    fn known<T: Into<Value>>(&mut self, name: &'static str, value: Option<T>, release: impl Into<Value>) {
        if let Some(value) = value {
            return self.put(name, value);
        }
        let release = release.into();
        self.assumed.push(format!("{name} = {release}"));
        self.put(name, release);
    }
}
