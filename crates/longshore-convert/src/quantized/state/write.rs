//! The extra states of modules with quantizers.

use longshore_ckpt::Dtype;
use longshore_ckpt::torch_dist::pickle::Plain;
use longshore_quant::config::{Buffer, Plain as Value, QuantizerState};
use longshore_quant::{Attributes, Granularity, Scheme};

/// One quantizer (one stage of a sequence) of a module and the tensors that the checkpoint has of it.
#[derive(Clone, Debug)]
pub struct StageState<'a> {
    /// What it does.
    pub attributes: &'a Attributes,
    /// Name (`_amax`), element type and shape as stored.
    pub tensors: Vec<(&'static str, Dtype, Vec<u64>)>,
}

/// The names of the stages of a quantizer inside its module: its own, or numbered where there are several.
fn names(quantizer: &str, stages: usize) -> Vec<String> {
    match stages {
        1 => vec![quantizer.to_owned()],
        _ => (0..stages).map(|stage| format!("{quantizer}.{stage}")).collect(),
    }
}

/// What an object `P._extra_state/shard_0_1` carries: the quantizers of the module `P` in order, each a name and its
/// stages. `rows` is the number of output features, `seen` the type of the activations.
///
/// * A linear has `input_quantizer`, `weight_quantizer`, `output_quantizer`.
/// * Grouped experts have a weight quantizer for each, `weight_quantizer.0` and so on.
///   ModelOpt 0.47 takes the state of `weight_quantizer.0` for every expert that has none of its own, so that one is
///   enough, and the object of each expert is that of its whole group.
/// * `core_attention` has `q_bmm_quantizer`, `k_bmm_quantizer`, `v_bmm_quantizer`.
pub fn extra_state(quantizers: &[(&str, &[StageState<'_>])], rows: u64, seen: Dtype) -> Plain {
    let mut states = Vec::new();
    for (quantizer, stages) in quantizers {
        for (name, stage) in names(quantizer, stages.len()).into_iter().zip(*stages) {
            states.push((Plain::Str(name), one(stage, rows, seen)));
        }
    }
    Plain::Dict(vec![
        (text("modelopt_quantizer_state"), Plain::Dict(states)),
        (text("modelopt_real_quantizer_state"), Plain::None),
        (text("modelopt_q_tensor_state"), Plain::None),
    ])
}

fn text(value: &str) -> Plain {
    Plain::Str(value.into())
}

fn one(stage: &StageState<'_>, rows: u64, seen: Dtype) -> Plain {
    let scheme = stage.attributes.scheme().ok().flatten();
    let buffer = |(name, dtype, stored): &(&'static str, Dtype, Vec<u64>)| {
        let shape = if *name == "_amax" { module_shape(scheme, stored) } else { scalar_or(stored) };
        Buffer { name: (*name).into(), shape, dtype: dtype.torch_name().into() }
    };
    let buffers: Vec<Buffer> = stage.tensors.iter().map(buffer).collect();
    // ModelOpt notes the type of what passes only in a quantizer that is off.
    let input_dtype = (!stage.attributes.enable).then(|| seen.torch_name());
    plain(QuantizerState { attributes: stage.attributes, input_dtype, buffers: &buffers, rows }.dump())
}

/// The shape that an amax of the `stored` shape has in its module: a scalar is stored as `[1]`, blocks of a row as
/// `[rows, n]`, squares as `[rows / b, cols / b]`.
fn module_shape(scheme: Option<Scheme>, stored: &[u64]) -> Vec<u64> {
    match (scheme, stored) {
        (Some(Scheme::Int4 { .. } | Scheme::Nvfp4Static { .. }), [rows, blocks]) if rows * blocks > 1 => {
            vec![rows * blocks, 1]
        }
        (Some(Scheme::Fp8(Granularity::Square(_))), [rows, cols]) if rows * cols > 1 => vec![*rows, 1, *cols, 1],
        _ => scalar_or(stored),
    }
}

fn scalar_or(stored: &[u64]) -> Vec<u64> {
    if stored.iter().product::<u64>() == 1 { Vec::new() } else { stored.to_vec() }
}

/// A value of the crate that knows quantizers as one of the crate that knows pickles.
pub(super) fn plain(value: Value) -> Plain {
    match value {
        Value::None => Plain::None,
        Value::Bool(v) => Plain::Bool(v),
        Value::Int(v) => Plain::Int(v),
        Value::Float(v) => Plain::Float(v),
        Value::Str(v) => Plain::Str(v),
        Value::List(items) => Plain::List(items.into_iter().map(plain).collect()),
        Value::Tuple(items) => Plain::Tuple(items.into_iter().map(plain).collect()),
        Value::Dict(entries) => Plain::Dict(entries.into_iter().map(|(k, v)| (plain(k), plain(v))).collect()),
        Value::Size(sizes) => Plain::Size(sizes),
        Value::Dtype(name) => Plain::Global("torch".into(), name),
    }
}
