//! The `run_config.yaml` of a Megatron-Bridge checkpoint: its `model` section in the words of Megatron's stored arguments,
//! which such a checkpoint lacks.
//!
//! Reference: Megatron-Bridge main of August 2026, `models/hybrid/hybrid_provider.py` (the fields of `HybridModelProvider`
//! and of core's `TransformerConfig`), `training/utils/checkpoint_utils.py`.

use crate::config::megatron::{Arg, Args};
use crate::error::Problem;
use longshore_ckpt::Dtype;
use longshore_quant::config::ConfigError;
use longshore_quant::config::yaml::{Node, Value, documents};
use std::rc::Rc;

/// The name of the file.
pub(crate) const NAME: &str = "run_config.yaml";
/// Bytes that are read. Real ones have 30 KiB.
pub(crate) const MAX_SIZE: u64 = 1 << 20;

/// Fields that have another name among the arguments.
const RENAMED: [(&str, &str); 4] = [
    ("num_moe_experts", "num_experts"),
    ("gated_linear_unit", "swiglu"),
    ("layernorm_zero_centered_gamma", "apply_layernorm_1p"),
    ("seq_length", "max_position_embeddings"),
];

/// What the file says of the model, and the Hugging Face repository that it came from.
pub fn read(text: &str) -> Result<(Args, Option<String>), Problem> {
    let problem = |field: String, what: String| Problem::Config { file: NAME.to_owned(), field, what };
    let parsed = documents(text, &Rc::from(NAME)).map_err(|error| match error {
        ConfigError::Recipe { line, what, .. } => problem(format!("line {line}"), what),
        other => problem(String::new(), other.to_string()),
    })?;
    let Some(model) = parsed.first().and_then(|document| document.get("model")) else {
        return Err(problem("model".into(), "missing".into()));
    };
    let Value::Map(_) = &model.value else {
        return Err(problem("model".into(), "expected a mapping".into()));
    };
    let mut args = Args { file: NAME, ..Args::default() };
    // Newer configs keep the fields of core's `TransformerConfig` apart.
    for section in model.get("transformer").into_iter().chain([model]) {
        let Value::Map(entries) = &section.value else { continue };
        for (key, value) in entries {
            if let Value::Text(name) = &key.value {
                put(&mut args, name, value);
            }
        }
    }
    let id = |section: &Node| match &section.get("hf_model_id")?.value {
        Value::Text(id) => Some(id.clone()),
        _ => None,
    };
    let id = model.get("extra_checkpoint_metadata").and_then(id).or_else(|| id(model));
    Ok((args, id))
}

fn put(args: &mut Args, name: &str, value: &Node) {
    let (name, value) = match (name, arg(value)) {
        // A function, by its name.
        ("activation_func", _) => {
            ("squared_relu", target(value).map_or(Arg::None, |f| f.ends_with(".squared_relu").into()))
        }
        ("share_embeddings_and_output_weights", Arg::Bool(shared)) => {
            ("untie_embeddings_and_output_weights", Arg::Bool(!shared))
        }
        (_, value) => (RENAMED.iter().find(|(from, _)| *from == name).map_or(name, |(_, to)| to), value),
    };
    args.values.insert(name.to_owned(), value);
}

fn arg(node: &Node) -> Arg {
    match &node.value {
        Value::Null => Arg::None,
        Value::Bool(flag) => Arg::Bool(*flag),
        Value::Int(n) => Arg::Int(*n),
        Value::Float(x) => Arg::Float(*x),
        // YAML 1.1 takes `1e-05` for a text, which is how Python writes small numbers.
        Value::Text(text) => match text.parse::<f64>() {
            Ok(x) if text.starts_with(|c: char| c.is_ascii_digit()) => Arg::Float(x),
            _ => Arg::Str(text.clone()),
        },
        Value::List(_) => Arg::Opaque,
        Value::Map(_) => {
            let dtype = target(node).and_then(|name| name.strip_prefix("torch.")).and_then(Dtype::from_torch_name);
            dtype.map_or(Arg::Opaque, Arg::Dtype)
        }
    }
}

/// The Python object that a mapping with `_target_` stands for.
fn target(node: &Node) -> Option<&str> {
    match &node.get("_target_")?.value {
        Value::Text(name) => Some(name),
        _ => None,
    }
}
