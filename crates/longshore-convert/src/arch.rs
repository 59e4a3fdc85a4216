//! The architectures: one file each with its table, one line each in the registry.

pub mod llama;
pub mod nemotron_h;

use crate::config::{Activation, Attention, LayerSpec, Mamba, Mlp, ModelConfig, Moe, Mtp, Rotary, RotaryScaling};
use crate::error::Problem;
use crate::mapping::Mapping;
use crate::options::{ImportOptions, Layout, NormKeys, SpecName};
use crate::structure::{Module, Spec};
use serde::Serialize;
use std::collections::BTreeMap;
use std::panic::Location;

/// What the module layout of the Megatron side decides about keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecKeys {
    /// Names of the pre-norms.
    pub norms: NormKeys,
    /// Whether norm modules have extra states.
    pub norm_states: bool,
    /// Whether attention cores have extra states (megatron-core 0.12 to 0.14).
    pub core_attention_states: bool,
    /// Whether every expert is a tensor of its own (`experts.7.linear_fc1`), as ModelOpt stores sequential experts, and not
    /// a slot of one tensor for all of them.
    pub single_experts: bool,
}

impl SpecKeys {
    /// The keys to write for these options: exactly those that the spec asks for.
    pub fn of(options: &ImportOptions) -> Self {
        Self {
            norms: options.norms,
            norm_states: options.spec == SpecName::Te,
            core_attention_states: options.core_attention_states,
            single_experts: false,
        }
    }

    /// The engine's namespace: norms of their own, experts in one tensor.
    pub const CANONICAL: Self =
        Self { norms: NormKeys::Separate, norm_states: false, core_attention_states: false, single_experts: false };
}

/// A supported architecture.
pub struct Architecture {
    /// Short name, e.g. `nemotron_h`.
    pub name: &'static str,
    /// `architectures[0]` of its config.json.
    pub hf_class: &'static str,
    /// What it is, in one line.
    pub summary: &'static str,
    /// The table: the mapping of a config, for the given keys and number of vocabulary rows on the Megatron side.
    pub mapping: fn(&ModelConfig, &SpecKeys, u64) -> Mapping,
    /// What the Megatron names of layer `i` of the trunk begin with. Layers whose names differ may share it.
    pub layer_prefix: fn(u64) -> String,
    /// The Megatron module of the norm before the output layer.
    pub final_norm: &'static str,
    /// Whether norms round to the type of their input before they multiply by the weight (transformers' `LlamaRMSNorm`),
    /// not after.
    pub norms_round_first: bool,
    /// Parallel sizes that no model of the config can have; `None` where models run but are not converted.
    pub check_layout: Option<fn(&ModelConfig, Layout) -> Vec<Problem>>,
    /// The modules of the model in Megatron; `None` where models run but are not converted.
    pub structure: Option<fn(&ModelConfig, Spec) -> Module>,
    /// A small config that has every layer kind, for printing the table.
    pub example: fn() -> ModelConfig,
}

impl Architecture {
    /// Whether its checkpoints are converted, exported and quantized; all of them run.
    pub fn is_converted(&self) -> bool {
        self.check_layout.is_some()
    }
}

const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        name: "nemotron_h",
        hf_class: "NemotronHForCausalLM",
        summary: "Nemotron-H, Nemotron Nano 2 and Nemotron 3: Mamba-2, attention, MLP and (latent) MoE layers, MTP",
        mapping: nemotron_h::mapping,
        layer_prefix: |i| format!("decoder.layers.{i}."),
        final_norm: "decoder.final_norm",
        norms_round_first: false,
        check_layout: Some(nemotron_h::check_layout),
        structure: Some(nemotron_h::structure),
        example: nemotron_h_example,
    },
    Architecture {
        name: "llama",
        hf_class: "LlamaForCausalLM",
        summary: "Llama 1 to 3: rotary attention and gated MLP; from Hugging Face folders",
        mapping: llama::mapping,
        layer_prefix: llama::prefix,
        final_norm: llama::FINAL_NORM,
        norms_round_first: true,
        check_layout: None,
        structure: None,
        example: llama_example,
    },
];

/// Every supported architecture.
pub fn list() -> &'static [Architecture] {
    &ARCHITECTURES
}

/// The architecture of this name or Hugging Face class.
pub fn find(name: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.name == name || a.hf_class == name)
}

/// One rule of a table and how many tensors it ties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleRow {
    /// The line of the table, e.g. `arch/nemotron_h.rs:68`.
    pub rule: String,
    /// The word of the vocabulary, e.g. `qkv`.
    pub word: &'static str,
    /// Ties made by it.
    pub count: u64,
    /// Hugging Face name, numbers replaced by `{}`.
    pub hf: String,
    /// Megatron name, numbers replaced by `{}`.
    pub mc: String,
}

/// The rules of an architecture, from its example config.
pub fn rules(name: &str) -> Option<Vec<RuleRow>> {
    let architecture = find(name)?;
    let config = (architecture.example)();
    // What is not converted has the engine's names alone.
    let fused = SpecKeys { norms: NormKeys::Fused, norm_states: true, ..SpecKeys::CANONICAL };
    let keys = if architecture.is_converted() { fused } else { SpecKeys::CANONICAL };
    Some(rule_rows(&(architecture.mapping)(&config, &keys, config.vocab_size)))
}

/// The ties of a mapping, grouped by the line that made them and by name but for numbers.
pub fn rule_rows(mapping: &Mapping) -> Vec<RuleRow> {
    let mut rows: Vec<RuleRow> = Vec::new();
    let mut seen = BTreeMap::new();
    for tie in &mapping.ties {
        let (hf, mc) = (without_numbers(&tie.hf.0), without_numbers(&tie.mc.0));
        let at = *seen.entry((tie.rule.line(), hf.clone(), mc.clone())).or_insert_with(|| {
            rows.push(RuleRow { rule: location(tie.rule), word: tie.word, count: 0, hf, mc });
            rows.len() - 1
        });
        rows[at].count += 1;
    }
    rows
}

/// `arch/nemotron_h.rs:68`, wherever the program was built.
pub fn location(rule: &Location<'_>) -> String {
    let file = rule.file();
    let short = file.rfind("src/").map_or(file, |at| &file[at + 4..]);
    format!("{short}:{}", rule.line())
}

/// Replaces every path component that is a number by `{}`.
pub(crate) fn without_numbers(name: &str) -> String {
    let part = |p| if str::parse::<u64>(p).is_ok() { "{}" } else { p };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

fn nemotron_h_example() -> ModelConfig {
    let attention = LayerSpec::Attention(Attention { heads: 8, kv_heads: 2, head_dim: 4, rotary: None });
    let moe = LayerSpec::Moe(Moe {
        experts: 4,
        top_k: 2,
        expert_ffn: 8,
        shared_ffn: 8,
        latent: Some(4),
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: true,
        routed_scaling_factor: 1.0,
    });
    let mamba = LayerSpec::Mamba(Mamba { heads: 8, head_dim: 4, groups: 8, state: 4, conv_kernel: 4 });
    let base = ModelConfig::minimal("NemotronHForCausalLM", 16, 32);
    let mlp = LayerSpec::Mlp(Mlp { ffn: 8, activation: Activation::ReluSquared });
    ModelConfig {
        layers: vec![mamba, attention, mlp, moe],
        mtp: Some(Mtp { depth: 1, layers: vec![attention, moe], repeated: Some(false) }),
        ..base
    }
}

fn llama_example() -> ModelConfig {
    let rotary = Some(Rotary { theta: 10_000.0, scaling: RotaryScaling::Default });
    let attention = LayerSpec::Attention(Attention { heads: 4, kv_heads: 2, head_dim: 4, rotary });
    let mlp = LayerSpec::Mlp(Mlp { ffn: 8, activation: Activation::SwiGlu });
    ModelConfig { layers: vec![attention, mlp], ..ModelConfig::minimal("LlamaForCausalLM", 16, 32) }
}
