//! The arguments with which Megatron-LM builds the model of a checkpoint, in three forms: a file for
//! `examples/post_training/modelopt/conf`, one line, and the model section of Megatron-Bridge's `run_config.yaml`.
//!
//! Names and defaults are those of Megatron-LM main of August 2026 (`megatron/training/arguments.py`, the dataclasses that it
//! generates arguments from, and `megatron/post_training/arguments.py`). `docs/commands/args.md` says why each is there.

mod conf;
mod gpt;
mod run_config;

pub use conf::{conf, line};
pub use run_config::run_config;

use crate::config::megatron::{self, Arg};
use crate::error::Problem;
use crate::options::SpecName;
use crate::outline::Outline;
use longshore_ckpt::Dtype;
use serde::Serialize;
use std::collections::BTreeMap;

/// What an argument is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// It describes the model: layers and sizes.
    Model,
    /// It describes the experts of the model.
    Experts,
    /// A run needs it to build and load this model.
    Run,
}

/// One argument of the command line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Argument {
    /// With its dashes.
    pub name: String,
    /// `None` for a flag.
    pub value: Option<String>,
    /// What it is for.
    pub purpose: Purpose,
}

/// How a stored attribute becomes an argument.
#[derive(Clone, Copy)]
enum Form {
    /// `--name value`, unless it is `None`.
    Value,
    /// `--name` where it is true.
    Flag,
    /// Another flag where it is false.
    Unless(&'static str),
}

/// Every attribute that is said, in this order; the others are written into checkpoints for other readers, or are defaults.
const SAID: [(&str, Form, Purpose); 37] = [
    ("num_layers", Form::Value, Purpose::Model),
    ("hybrid_layer_pattern", Form::Value, Purpose::Model),
    ("mtp_num_layers", Form::Value, Purpose::Model),
    ("mtp_use_repeated_layer", Form::Flag, Purpose::Model),
    ("hidden_size", Form::Value, Purpose::Model),
    ("ffn_hidden_size", Form::Value, Purpose::Model),
    ("num_attention_heads", Form::Value, Purpose::Model),
    ("group_query_attention", Form::Flag, Purpose::Model),
    ("num_query_groups", Form::Value, Purpose::Model),
    ("kv_channels", Form::Value, Purpose::Model),
    ("mamba_num_heads", Form::Value, Purpose::Model),
    ("mamba_head_dim", Form::Value, Purpose::Model),
    ("mamba_num_groups", Form::Value, Purpose::Model),
    ("mamba_state_dim", Form::Value, Purpose::Model),
    ("position_embedding_type", Form::Value, Purpose::Model),
    ("rotary_base", Form::Value, Purpose::Model),
    ("rotary_seq_len_interpolation_factor", Form::Value, Purpose::Model),
    ("use_rope_scaling", Form::Flag, Purpose::Model),
    ("rope_scaling_factor", Form::Value, Purpose::Model),
    ("max_position_embeddings", Form::Value, Purpose::Model),
    ("normalization", Form::Value, Purpose::Model),
    ("norm_epsilon", Form::Value, Purpose::Model),
    ("squared_relu", Form::Flag, Purpose::Model),
    ("swiglu", Form::Flag, Purpose::Model),
    ("add_bias_linear", Form::Unless("--disable-bias-linear"), Purpose::Model),
    ("fp32_residual_connection", Form::Flag, Purpose::Model),
    ("untie_embeddings_and_output_weights", Form::Flag, Purpose::Model),
    ("num_experts", Form::Value, Purpose::Experts),
    ("moe_ffn_hidden_size", Form::Value, Purpose::Experts),
    ("moe_shared_expert_intermediate_size", Form::Value, Purpose::Experts),
    ("moe_latent_size", Form::Value, Purpose::Experts),
    ("moe_router_topk", Form::Value, Purpose::Experts),
    ("moe_router_num_groups", Form::Value, Purpose::Experts),
    ("moe_router_group_topk", Form::Value, Purpose::Experts),
    ("moe_router_score_function", Form::Value, Purpose::Experts),
    ("moe_router_enable_expert_bias", Form::Flag, Purpose::Experts),
    ("moe_router_topk_scaling_factor", Form::Value, Purpose::Experts),
];

const NOT_STORED: &str = "not stored, and no tensor shows it; `--base DIR` can supply it";

/// The convolution that Megatron's Mamba mixer has; no argument changes it.
const CONV_KERNEL: u64 = 4;

/// The arguments of a model, or everything that keeps them from being known. `mtp` says the MTP layers too, which NVIDIA's own
/// files leave out.
pub fn arguments(outline: &Outline, mtp: bool) -> Result<Vec<Argument>, Vec<Problem>> {
    let config = &outline.model.config;
    let mut problems = unknown(outline);
    let is_hybrid = is_hybrid(outline);
    let mut said: BTreeMap<&str, Arg> = if is_hybrid {
        megatron::model(config).into_iter().collect()
    } else {
        gpt::model(config, &file(outline), &mut problems).into_iter().collect()
    };
    if !mtp {
        said.retain(|name, _| !name.starts_with("mtp_"));
        if let Some(Arg::Str(pattern)) = said.get_mut("hybrid_layer_pattern") {
            *pattern = config.pattern();
        }
    }
    let kinds = config.kinds();
    if let (None, None, Some(moe)) = (config.intermediate_size, kinds.mlp, kinds.moe) {
        // Megatron's default, four times the hidden size, would be that of no layer.
        said.insert("ffn_hidden_size", moe.expert_ffn.into());
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut out = Vec::new();
    for (attribute, form, purpose) in SAID {
        let Some(value) = said.get(attribute) else { continue };
        let (name, value) = match (form, value) {
            (_, Arg::None) | (Form::Flag, Arg::Bool(false)) | (Form::Unless(_), Arg::Bool(true)) => continue,
            (Form::Unless(flag), _) => (flag.to_owned(), None),
            (Form::Flag, _) => (dashed(attribute), None),
            (Form::Value, value) => (dashed(attribute), Some(value.to_string())),
        };
        out.push(Argument { name, value, purpose });
    }
    out.extend(run(outline, is_hybrid));
    Ok(out)
}

/// What a run has to be told beside the model.
fn run(outline: &Outline, is_hybrid: bool) -> Vec<Argument> {
    let config = &outline.model.config;
    let mut out = Vec::new();
    let mut put = |name: &str, value: Option<String>| {
        out.push(Argument { name: name.to_owned(), value, purpose: Purpose::Run });
    };
    if config.kinds().moe.is_some() {
        put("--moe-router-dtype", Some("fp32".into()));
        put("--moe-token-dispatcher-type", Some("alltoall".into()));
        if outline.spec == SpecName::Te {
            put("--moe-grouped-gemm", None);
        }
    }
    put("--attention-dropout", Some("0.0".into()));
    put("--hidden-dropout", Some("0.0".into()));
    match outline.dtype {
        Some(Dtype::Bfloat16) => put("--bf16", None),
        Some(Dtype::Float16) => put("--fp16", None),
        _ => {}
    }
    put("--padded-vocab-size", Some(outline.vocab_rows.to_string()));
    put("--seq-length", Some(megatron::seq_length(config).to_string()));
    put("--micro-batch-size", Some("1".into()));
    put("--tokenizer-type", Some("HuggingFaceTokenizer".into()));
    put("--export-model-type", Some(if is_hybrid { "HybridModel" } else { "GPTModel" }.into()));
    out
}

/// What decides the function, and is not known or cannot be said.
fn unknown(outline: &Outline) -> Vec<Problem> {
    let config = &outline.model.config;
    let mut problems = Vec::new();
    let mut problem = |field: &str, what: String| {
        problems.push(Problem::Config { file: file(outline), field: field.to_owned(), what });
    };
    let kinds = config.kinds();
    if outline.dtype.is_none() {
        problem("torch_dtype", "missing, and there are no weights that show it".into());
    }
    if kinds.attention.is_none() {
        problem(
            "num_attention_heads",
            "no layer has attention heads, and Megatron does not run without a number".into(),
        );
    }
    if let Some(mamba) = kinds.mamba.filter(|m| m.conv_kernel != CONV_KERNEL) {
        let what = format!("{}: Megatron's Mamba mixer has {CONV_KERNEL}, and no argument for it", mamba.conv_kernel);
        problem("conv_kernel", what);
    }
    if let Some(moe) = kinds.moe {
        if moe.top_k == 0 {
            problem("moe_router_topk", NOT_STORED.into());
        }
        if moe.routed_scaling_factor == 0.0 {
            problem("moe_router_topk_scaling_factor", NOT_STORED.into());
        }
    }
    if config.mtp.as_ref().is_some_and(|mtp| mtp.depth > 1 && mtp.repeated.is_none()) {
        problem("mtp_use_repeated_layer", "missing, and there are no weights that show it".into());
    }
    problems
}

fn is_hybrid(outline: &Outline) -> bool {
    outline.model.architecture.name == "nemotron_h"
}

/// Where the config was read, for problems.
fn file(outline: &Outline) -> String {
    let folder = outline.model.folder.as_ref();
    folder.map_or_else(
        || megatron::Args::default().file.to_owned(),
        |folder| folder.join("config.json").display().to_string(),
    )
}

fn dashed(attribute: &str) -> String {
    format!("--{}", attribute.replace('_', "-"))
}
