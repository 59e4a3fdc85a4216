//! The model section of Megatron-Bridge's `run_config.yaml`, from which its loaders build the model: the fields that its
//! `NemotronHBridge` sets on `HybridModelProvider`, serialised as its `ConfigContainer` does (Megatron-Bridge main of August
//! 2026). What is not there has the provider's default.

use super::{file, is_hybrid, unknown};
use crate::config::letters;
use crate::error::Problem;
use crate::outline::Outline;
use longshore_ckpt::Dtype;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A value of the section.
enum Value {
    Plain(String),
    Text(String),
    /// A function or type, by its path.
    Target(&'static str),
}

impl From<bool> for Value {
    fn from(v: bool) -> Self {
        Self::Plain(v.to_string())
    }
}

impl From<u64> for Value {
    fn from(v: u64) -> Self {
        Self::Plain(v.to_string())
    }
}

impl From<f64> for Value {
    /// With a point: `PyYAML` reads `1e-5` as text.
    fn from(v: f64) -> Self {
        let text = format!("{v:?}");
        let with_point = match text.split_once('e') {
            Some((digits, exponent)) if !digits.contains('.') => format!("{digits}.0e{exponent}"),
            _ => text,
        };
        Self::Plain(with_point)
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Self::Text(v.to_owned())
    }
}

impl From<String> for Value {
    fn from(v: String) -> Self {
        Self::Text(v)
    }
}

/// The section as YAML, keys sorted as Bridge sorts them, or everything that keeps it from being known.
pub fn run_config(outline: &Outline) -> Result<String, Vec<Problem>> {
    let mut problems = unknown(outline);
    if !is_hybrid(outline) {
        let what = format!(
            "the model section is written for `NemotronHForCausalLM`, not for `{}`",
            outline.model.config.architecture
        );
        problems.push(Problem::Config { file: file(outline), field: "architectures".into(), what });
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut text = String::from("model:\n");
    for (name, value) in fields(outline) {
        let _ = match value {
            Value::Plain(value) => writeln!(text, "  {name}: {value}"),
            Value::Text(value) => writeln!(text, "  {name}: {}", scalar(&value)),
            Value::Target(path) => writeln!(text, "  {name}:\n    _call_: false\n    _target_: {path}"),
        };
    }
    Ok(text)
}

/// Fields that Bridge sets for every model of the family, whatever its config says.
const ALWAYS: [(&str, bool); 14] = [
    ("add_bias_linear", false),
    ("add_qkv_bias", false),
    ("apply_query_key_layer_scaling", false),
    ("attention_softmax_in_fp32", false),
    ("first_last_layers_bf16", true),
    ("gated_linear_unit", false),
    ("is_hybrid_model", true),
    ("masked_softmax_fusion", true),
    ("moe_grouped_gemm", true),
    ("moe_permute_fusion", true),
    ("moe_router_enable_expert_bias", true),
    ("persist_layer_norm", true),
    ("should_pad_vocab", false),
    ("qk_layernorm", false),
];

fn fields(outline: &Outline) -> BTreeMap<&'static str, Value> {
    let config = &outline.model.config;
    let kinds = config.kinds();
    let mut out: BTreeMap<&'static str, Value> = ALWAYS.iter().map(|&(name, value)| (name, value.into())).collect();
    let mut put = |name: &'static str, value: Value| _ = out.insert(name, value);
    put("_target_", "megatron.bridge.models.hybrid.hybrid_provider.HybridModelProvider".into());
    put("activation_func", Value::Target("megatron.core.activations.squared_relu"));
    put("attention_dropout", 0.0.into());
    put("hidden_dropout", 0.0.into());
    put("normalization", "RMSNorm".into());
    put("position_embedding_type", "none".into());
    put("moe_aux_loss_coeff", 0.0001.into());
    put("moe_router_dtype", "fp32".into());
    put("moe_router_load_balancing_type", "seq_aux_loss".into());
    put("moe_router_score_function", "sigmoid".into());
    put("moe_token_dispatcher_type", "alltoall".into());
    put("bf16", (outline.dtype == Some(Dtype::Bfloat16)).into());
    put("fp16", (outline.dtype == Some(Dtype::Float16)).into());
    let dtype = match outline.dtype {
        Some(Dtype::Bfloat16) => "torch.bfloat16",
        Some(Dtype::Float16) => "torch.float16",
        _ => "torch.float32",
    };
    put("params_dtype", Value::Target(dtype));
    put("num_layers", (config.layers.len() as u64).into());
    put("hybrid_layer_pattern", config.pattern().into());
    put("hidden_size", config.hidden_size.into());
    if let Some(ffn) = config.intermediate_size.or(kinds.mlp.map(|m| m.ffn)).or(kinds.moe.map(|m| m.expert_ffn)) {
        put("ffn_hidden_size", ffn.into());
    }
    put("fp32_residual_connection", config.forward.residual_in_fp32.unwrap_or(false).into());
    put("layernorm_epsilon", config.norm_eps.into());
    put("seq_length", config.max_position_embeddings.into());
    put("share_embeddings_and_output_weights", config.tie_word_embeddings.into());
    put("vocab_size", outline.vocab_rows.into());
    // The largest power of 2 up to 128 that divides it.
    put("make_vocab_size_divisible_by", (1 << outline.vocab_rows.trailing_zeros().min(7)).into());
    // Read by name where a checkpoint is resumed.
    put("tensor_model_parallel_size", 1.into());
    put("pipeline_model_parallel_size", 1.into());
    if let Some(a) = kinds.attention {
        put("num_attention_heads", a.heads.into());
        put("num_query_groups", a.kv_heads.into());
        put("kv_channels", a.head_dim.into());
    }
    if let Some(m) = kinds.mamba {
        put("mamba_num_heads", m.heads.into());
        put("mamba_head_dim", m.head_dim.into());
        put("mamba_num_groups", m.groups.into());
        put("mamba_state_dim", m.state.into());
        if let Some(chunk_size) = config.forward.chunk_size {
            put("mamba_chunk_size", chunk_size.into());
        }
    }
    if let Some(m) = kinds.moe {
        put("num_moe_experts", m.experts.into());
        put("moe_ffn_hidden_size", m.expert_ffn.into());
        put("moe_shared_expert_intermediate_size", m.shared_ffn.into());
        put("moe_router_topk", m.top_k.into());
        put("moe_router_topk_scaling_factor", m.routed_scaling_factor.into());
        put("moe_router_num_groups", m.n_group.into());
        put("moe_router_group_topk", m.topk_group.into());
        if let Some(latent) = m.latent {
            put("moe_latent_size", latent.into());
        }
    }
    put("mtp_num_layers", config.mtp.as_ref().map_or(0, |mtp| mtp.depth).into());
    if let Some(mtp) = &config.mtp {
        put("mtp_hybrid_override_pattern", letters(&mtp.layers).into());
        // Bridge takes one block of depth 1 for a repeated one, which is the same model.
        put("mtp_use_repeated_layer", (mtp.depth == 1 || mtp.repeated == Some(true)).into());
        put("keep_mtp_spec_in_bf16", true.into());
        put("mtp_loss_scaling_factor", 0.3.into());
    }
    out
}

/// Text as `PyYAML` writes it. A pattern may begin with a character that means something else to YAML.
fn scalar(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic());
    if is_plain { text.to_owned() } else { format!("'{text}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_numbers_to_a_yaml_reader() {
        let plain = |v: f64| if let Value::Plain(text) = v.into() { text } else { String::new() };
        assert_eq!([plain(1e-5), plain(2.5), plain(5.0), plain(1.5e-6)], ["1.0e-5", "2.5", "5.0", "1.5e-6"]);
    }

    #[test]
    fn a_pattern_that_begins_with_a_star_is_no_alias() {
        assert_eq!([scalar("*E"), scalar("-M"), scalar("M*-E")], ["'*E'", "'-M'", "M*-E"]);
    }
}
