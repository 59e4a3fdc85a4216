//! The `args` of a Megatron checkpoint (an `argparse.Namespace` in `common.pt`): what to write for a model, and whether
//! what is stored agrees with one. [`read`] makes a model of them, [`hf_json`] a config.json of that.
//!
//! Names and types are those of Megatron-LM main of August 2026 and core 0.16 (`training/checkpointing.py`:
//! `load_args_from_checkpoint`, `check_checkpoint_args`). Nothing here knows pickle: [`Args`] stands between.

pub use crate::config::release::hf_json;
pub use crate::config::stored::read;

use crate::config::{Kinds, ModelConfig, letters, pattern};
use crate::error::Problem;
use crate::options::{Layout, SpecName};
use longshore_ckpt::Dtype;
use longshore_ckpt::torch_dist::pickle::{Plain, View};
use std::collections::BTreeMap;

/// A value of an argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `float`
    Float(f64),
    /// `str`
    Str(String),
    /// `list`, only written
    List(Vec<Arg>),
    /// `torch.bfloat16` and its like
    Dtype(Dtype),
    /// Anything else, only read.
    Opaque,
}

impl Arg {
    fn from_view(view: View<'_>) -> Self {
        if view.is_none() {
            return Self::None;
        }
        let scalar = view.as_bool().map(Self::Bool).or_else(|| view.as_i64().map(Self::Int));
        let scalar = scalar.or_else(|| view.as_f64().map(Self::Float)).or_else(|| view.as_str().map(Self::from));
        if let Some(scalar) = scalar {
            return scalar;
        }
        // Lists too are opaque: no argument that is read is one.
        let torch = view.class_parts().filter(|(module, _)| *module == "torch");
        torch.and_then(|(_, name)| Dtype::from_torch_name(name)).map_or(Self::Opaque, Self::Dtype)
    }

    fn into_plain(self) -> Plain {
        match self {
            Self::None | Self::Opaque => Plain::None,
            Self::Bool(v) => Plain::Bool(v),
            Self::Int(v) => Plain::Int(v),
            Self::Float(v) => Plain::Float(v),
            Self::Str(v) => Plain::Str(v),
            Self::List(v) => Plain::List(v.into_iter().map(Self::into_plain).collect()),
            Self::Dtype(v) => Plain::Global("torch".into(), v.torch_name().into()),
        }
    }
}

impl From<bool> for Arg {
    fn from(v: bool) -> Self {
        Self::Bool(v)
    }
}

impl From<u64> for Arg {
    /// Sizes are below 2^31 where they come from a checked config.
    fn from(v: u64) -> Self {
        i64::try_from(v).map_or(Self::Opaque, Self::Int)
    }
}

impl From<f64> for Arg {
    fn from(v: f64) -> Self {
        Self::Float(v)
    }
}

impl From<&str> for Arg {
    fn from(v: &str) -> Self {
        Self::Str(v.to_owned())
    }
}

impl From<String> for Arg {
    fn from(v: String) -> Self {
        Self::Str(v)
    }
}

impl From<Dtype> for Arg {
    fn from(v: Dtype) -> Self {
        Self::Dtype(v)
    }
}

impl<T: Into<Arg>> From<Option<T>> for Arg {
    fn from(v: Option<T>) -> Self {
        v.map_or(Self::None, Into::into)
    }
}

impl std::fmt::Display for Arg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v:?}"),
            Self::Str(v) => f.write_str(v),
            Self::List(v) => write!(f, "a list of {}", v.len()),
            Self::Dtype(v) => write!(f, "torch.{v}"),
            Self::Opaque => f.write_str("an object"),
        }
    }
}

/// Bytes of names and text that are read: any number of attributes can share one long string. Real ones have a few KB.
const MAX_TEXT: usize = 16 << 20;

/// Stored arguments by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Args {
    /// Where they are stored, for problems.
    pub file: &'static str,
    /// Every attribute of the namespace.
    pub values: BTreeMap<String, Arg>,
}

impl Default for Args {
    fn default() -> Self {
        Self { file: "args", values: BTreeMap::new() }
    }
}

impl Args {
    /// The `args` of a checkpoint's common state; none where it has none.
    pub fn from_common(common: View<'_>) -> Self {
        let attributes = common.get("args").map(View::attributes).unwrap_or_default();
        let mut text = 0;
        let mut fits = |name: &str, value: View<'_>| {
            text += name.len() + value.as_str().map_or(0, str::len);
            text <= MAX_TEXT
        };
        let mut values = BTreeMap::new();
        for (name, value) in attributes {
            let value = if fits(name, value) { Arg::from_view(value) } else { Arg::Opaque };
            values.insert(String::from(name), value);
        }
        Self { values, ..Self::default() }
    }

    /// The attribute, unless it is absent or `None`.
    pub fn get(&self, name: &str) -> Option<&Arg> {
        self.values.get(name).filter(|v| **v != Arg::None)
    }

    /// A whole number from 0.
    pub fn int(&self, name: &str) -> Option<u64> {
        if let Some(Arg::Int(v)) = self.get(name) { u64::try_from(*v).ok() } else { None }
    }

    /// A number.
    pub fn float(&self, name: &str) -> Option<f64> {
        match self.get(name)? {
            Arg::Float(v) => Some(*v),
            Arg::Int(v) => Some(*v as f64),
            _ => None,
        }
    }

    /// A flag.
    pub fn flag(&self, name: &str) -> Option<bool> {
        if let Some(Arg::Bool(v)) = self.get(name) { Some(*v) } else { None }
    }

    /// A string.
    pub fn text(&self, name: &str) -> Option<&str> {
        if let Some(Arg::Str(v)) = self.get(name) { Some(v) } else { None }
    }
}

impl FromIterator<(String, Arg)> for Args {
    fn from_iter<I: IntoIterator<Item = (String, Arg)>>(entries: I) -> Self {
        Self { values: entries.into_iter().collect(), ..Self::default() }
    }
}

/// The processes of the smallest run with this layout: data parallel size 1 where the experts allow it.
pub fn world_size(layout: Layout) -> u64 {
    let Layout { tp, pp, ep, etp } = layout;
    // Without experts any --ep and --etp pass.
    let expert = ep.saturating_mul(etp);
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    pp.saturating_mul(tp / gcd(tp, expert)).saturating_mul(expert)
}

/// The attributes of the namespace to store for a model. `dtype` is that of the parameters, where they have one;
/// `make_vocab_size_divisible_by` is what `padded_vocab` was padded to, if it was.
pub fn args(
    config: &ModelConfig,
    layout: Layout,
    spec: SpecName,
    padded_vocab: u64,
    dtype: Option<Dtype>,
    make_vocab_size_divisible_by: Option<u64>,
) -> Vec<(String, Plain)> {
    let mut out = Vec::new();
    let mut put = |name: &str, value: Arg| out.push((name.to_owned(), value.into_plain()));
    for (name, value) in model(config) {
        put(name, value);
    }
    put("seq_length", seq_length(config).into());
    put("use_rotary_position_embeddings", false.into());
    put("apply_query_key_layer_scaling", false.into());
    put("attention_dropout", 0.0.into());
    put("hidden_dropout", 0.0.into());
    put("is_hybrid_model", true.into());
    put("export_model_type", "MambaModel".into());
    if spec == SpecName::Te {
        // The old module path: every version from 0.12 to main has it. ModelOpt's local spec is no named object, its
        // builder is chosen by `export_model_type`.
        put("spec", Arg::List(vec!["megatron.core.models.mamba.mamba_layer_specs".into(), "mamba_stack_spec".into()]));
    }
    put("transformer_impl", if spec == SpecName::Te { "transformer_engine" } else { "local" }.into());
    if config.kinds().moe.is_some() {
        put("moe_grouped_gemm", (spec == SpecName::Te).into());
        put("moe_token_dispatcher_type", "alltoall".into());
        put("moe_router_dtype", "fp32".into());
    }
    put("tokenizer_type", "HuggingFaceTokenizer".into());
    put("vocab_size", config.vocab_size.into());
    put("padded_vocab_size", padded_vocab.into());
    // Megatron's default is 128; the value is compared at load where a run gives a vocabulary file.
    let default = if padded_vocab.is_multiple_of(128 * layout.tp) { 128 } else { 1 };
    put("make_vocab_size_divisible_by", make_vocab_size_divisible_by.unwrap_or(default).into());
    if let Some(dtype) = dtype {
        put("params_dtype", dtype.into());
        put("bf16", (dtype == Dtype::Bfloat16).into());
        put("fp16", (dtype == Dtype::Float16).into());
    }
    let world = world_size(layout);
    put("tensor_model_parallel_size", layout.tp.into());
    put("pipeline_model_parallel_size", layout.pp.into());
    put("virtual_pipeline_model_parallel_size", Arg::None);
    put("expert_model_parallel_size", layout.ep.into());
    put("expert_tensor_parallel_size", layout.etp.into());
    put("context_parallel_size", 1u64.into());
    put("world_size", world.into());
    put("data_parallel_size", (world / (layout.tp * layout.pp)).into());
    put("data_parallel_random_init", false.into());
    put("ckpt_format", "torch_dist".into());
    put("no_save_optim", true.into());
    put("no_save_rng", true.into());
    put("async_save", false.into());
    put("ckpt_fully_parallel_save", false.into());
    put("consumed_train_samples", 0u64.into());
    put("skipped_train_samples", 0u64.into());
    put("consumed_valid_samples", 0u64.into());
    out
}

/// Megatron refuses a run without sequence length; 8192 is that of ModelOpt's Nemotron scripts. The command line wins.
pub(crate) fn seq_length(config: &ModelConfig) -> u64 {
    config.max_position_embeddings.min(8192)
}

/// The attributes that say what the model is, not how it is run.
pub(crate) fn model(config: &ModelConfig) -> Vec<(&'static str, Arg)> {
    let Kinds { mamba, attention, mlp, moe } = config.kinds();
    let (trunk, mtp) = (config.pattern(), config.mtp.as_ref());
    let mut out: Vec<(&'static str, Arg)> = vec![
        ("num_layers", (config.layers.len() as u64).into()),
        ("hidden_size", config.hidden_size.into()),
        ("ffn_hidden_size", config.intermediate_size.or(mlp.map(|m| m.ffn)).into()),
        ("max_position_embeddings", config.max_position_embeddings.into()),
        ("position_embedding_type", "none".into()),
        ("add_position_embedding", true.into()),
        ("normalization", "RMSNorm".into()),
        // The argument is `--norm-epsilon`; its attribute was renamed when arguments became generated from the config.
        ("norm_epsilon", config.norm_eps.into()),
        ("layernorm_epsilon", config.norm_eps.into()),
        ("apply_layernorm_1p", false.into()),
        ("add_bias_linear", false.into()),
        ("add_qkv_bias", false.into()),
        ("squared_relu", true.into()),
        ("swiglu", false.into()),
        ("fp32_residual_connection", config.forward.residual_in_fp32.unwrap_or(false).into()),
        ("untie_embeddings_and_output_weights", (!config.tie_word_embeddings).into()),
    ];
    if let Some(a) = attention {
        out.push(("num_attention_heads", a.heads.into()));
        out.push(("group_query_attention", true.into()));
        out.push(("num_query_groups", a.kv_heads.into()));
        out.push(("kv_channels", a.head_dim.into()));
    }
    // Two names for two readers. Up to 0.16 `hybrid_override_pattern` is the only one, and its length must be
    // `num_layers`: the trunk alone. From 0.17 on `hybrid_layer_pattern` wins and carries MTP after `/`, once per depth.
    // `mtp_hybrid_override_pattern` is the form in between; Megatron itself sets it to None once `/` is there.
    let unified =
        mtp.map_or(trunk.clone(), |m| (0..m.depth).fold(trunk.clone(), |text, _| text + "/" + &letters(&m.layers)));
    out.push(("hybrid_layer_pattern", unified.into()));
    out.push(("hybrid_override_pattern", trunk.into()));
    out.push(("mtp_hybrid_override_pattern", Arg::None));
    out.push(("mtp_num_layers", mtp.map(|m| m.depth).into()));
    out.push(("mtp_use_repeated_layer", mtp.and_then(|m| m.repeated).unwrap_or(false).into()));
    if let Some(m) = mamba {
        out.push(("mamba_num_heads", m.heads.into()));
        out.push(("mamba_head_dim", m.head_dim.into()));
        out.push(("mamba_num_groups", m.groups.into()));
        out.push(("mamba_state_dim", m.state.into()));
    }
    out.push(("num_experts", moe.map(|m| m.experts).into()));
    if let Some(m) = moe {
        let groups = |n| if m.n_group > 1 { Arg::from(n) } else { Arg::None };
        out.push(("moe_layer_freq", 1u64.into()));
        out.push(("moe_ffn_hidden_size", m.expert_ffn.into()));
        out.push(("moe_shared_expert_intermediate_size", m.shared_ffn.into()));
        out.push(("moe_latent_size", m.latent.into()));
        // Neither is known where a checkpoint did not say it, and `None` would mean something.
        if m.top_k > 0 {
            out.push(("moe_router_topk", m.top_k.into()));
        }
        out.push(("moe_router_num_groups", groups(m.n_group)));
        out.push(("moe_router_group_topk", groups(m.topk_group)));
        out.push(("moe_router_pre_softmax", false.into()));
        out.push(("moe_router_score_function", "sigmoid".into()));
        out.push(("moe_router_enable_expert_bias", true.into()));
        if m.routed_scaling_factor > 0.0 {
            out.push(("moe_router_topk_scaling_factor", m.routed_scaling_factor.into()));
        }
    }
    out
}

/// Stored arguments that contradict `config`: for a conversion that takes its config from elsewhere (`--base`). Shapes
/// alone do not tell, e.g., 4 heads of 32 from 8 of 16.
pub fn contradictions(stored: &Args, config: &ModelConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    let ungrouped = stored.flag("group_query_attention") == Some(false);
    let has_mlp = config.kinds().mlp.is_some();
    for (name, expected) in model(config) {
        let skipped = match name {
            "num_query_groups" | "group_query_attention" => ungrouped,
            // Used by dense layers only; the default of `--ffn-hidden-size` is otherwise stored.
            "ffn_hidden_size" => !has_mlp,
            // How a run is set up, not what the weights are.
            "max_position_embeddings"
            | "position_embedding_type"
            | "add_position_embedding"
            | "moe_layer_freq"
            | "moe_router_pre_softmax"
            | "fp32_residual_connection"
            | "mtp_use_repeated_layer"
            | "mtp_num_layers"
            | "mtp_hybrid_override_pattern" => true,
            _ => false,
        };
        let found = match stored.values.get(name) {
            // No factor is a factor of 1; any other `None` is a default that says nothing.
            Some(Arg::None) if name == "moe_router_topk_scaling_factor" => &Arg::Float(1.0),
            None | Some(Arg::None) => continue,
            Some(found) => found,
        };
        if !skipped && !same(name, &expected, found) {
            let what = format!("expected {expected}, as the config says, found {found}");
            problems.push(Problem::Config { file: stored.file.to_owned(), field: name.to_owned(), what });
        }
    }
    problems
}

fn same(name: &str, expected: &Arg, found: &Arg) -> bool {
    match (expected, found) {
        // Stored patterns may have pipeline cuts, and MTP blocks in one form or the other.
        (Arg::Str(a), Arg::Str(b)) if name.starts_with("hybrid_") => {
            pattern::parse(a).map(|p| p.trunk) == pattern::parse(b).map(|p| p.trunk)
        }
        // One group is no grouping.
        (Arg::None, Arg::Int(1)) => matches!(name, "moe_router_num_groups" | "moe_router_group_topk"),
        (Arg::Float(_), Arg::Int(b)) => *expected == Arg::Float(*b as f64),
        _ => expected == found,
    }
}

#[cfg(test)]
mod tests;
