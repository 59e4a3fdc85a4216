//! The objects and the folder in which ModelOpt looks for the quantizers of a Megatron checkpoint.

use super::state::{StageState, extra_state, record};
use super::{KvQuantizers, QuantLinear, Quantization};
use crate::mapping::Place;
use crate::resolve::Recipe;
use longshore_ckpt::Dtype;
use longshore_ckpt::torch_dist::extra_state as item;
use longshore_ckpt::torch_dist::pickle::Plain;
use longshore_quant::Attributes;
use longshore_quant::config::{QuantConfig, modelopt_state as state_of};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The version of ModelOpt whose states these are.
const VERSION: &str = "0.47.0";

/// The extra states that are not empty, by the name of their object. `recipes` are all tensors of the checkpoint, and
/// `objects` the extra states of a plain one.
pub fn states(
    quantization: &Quantization,
    recipes: &[Recipe],
    objects: &BTreeMap<String, Place>,
) -> BTreeMap<String, (Place, Arc<[u8]>)> {
    let tensors: BTreeMap<&str, &Recipe> = recipes.iter().map(|r| (r.name.as_str(), r)).collect();
    let seen = params_dtype(recipes);
    let mut out = BTreeMap::new();
    for q in &quantization.linears {
        // Models pop the state of an output layer that is not quantized, and refuse one that says something.
        if q.linear.is_output_layer && !q.is_quantized() {
            continue;
        }
        let name = format!("{}._extra_state/shard_0_1", q.linear.module);
        if let Some(place) = objects.get(&name) {
            let bytes: Arc<[u8]> = item::write(&of_linear(q, quantization, &tensors, seen)).into();
            out.insert(name, (*place, bytes));
        }
    }
    for kv in &quantization.kv {
        let bytes: Arc<[u8]> = item::write(&of_attention(kv, &tensors, seen)).into();
        let Some(place) = tensors.get(kv.qkv_weight().as_str()).map(|r| r.declared.place) else { continue };
        out.insert(format!("{}._extra_state/shard_0_1", kv.module), (place, bytes));
    }
    out
}

/// The folder `modelopt_state/`.
pub fn modelopt_state(config: &QuantConfig) -> Vec<(String, Vec<u8>)> {
    let files = record::files(state_of(config, VERSION));
    files.into_iter().map(|(name, bytes)| (format!("modelopt_state/{name}"), bytes)).collect()
}

/// The element type of most tensors, which is that of the activations.
fn params_dtype(recipes: &[Recipe]) -> Dtype {
    let mut bytes: BTreeMap<Dtype, u64> = BTreeMap::new();
    for recipe in recipes {
        *bytes.entry(recipe.dtype).or_default() += recipe.size();
    }
    bytes.into_iter().max_by_key(|entry| entry.1).map_or(Dtype::Bfloat16, |entry| entry.0)
}

/// The tensors of a quantizer that a checkpoint can have.
const TENSORS: [&str; 3] = ["_amax", "_global_amax", "_pre_quant_scale"];

/// A quantizer's stages with the tensors that the checkpoint has of them.
fn stages<'a>(quantizer: &str, all: &'a [Attributes], tensors: &BTreeMap<&str, &Recipe>) -> Vec<StageState<'a>> {
    let stage = |(at, attributes): (usize, &'a Attributes)| {
        let number = if all.len() == 1 { String::new() } else { format!(".{at}") };
        let found = |tensor: &'static str| {
            let recipe = tensors.get(format!("{quantizer}{number}.{tensor}").as_str())?;
            Some((tensor, recipe.dtype, recipe.shape.clone()))
        };
        StageState { attributes, tensors: TENSORS.into_iter().filter_map(found).collect() }
    };
    all.iter().enumerate().map(stage).collect()
}

fn of_linear(q: &QuantLinear, quantization: &Quantization, tensors: &BTreeMap<&str, &Recipe>, seen: Dtype) -> Plain {
    let module = &q.linear.module;
    let input_module = quantization.input_module(&q.linear);
    let input = stages(&format!("{input_module}.input_quantizer"), &q.input, tensors);
    let weight = stages(&format!("{module}.weight_quantizer"), &q.weight, tensors);
    let output = stages(&format!("{module}.output_quantizer"), &q.output, tensors);
    // A group has a list of weight quantizers, of which ModelOpt reads the first for every expert.
    let weight_name = if input_module == *module { "weight_quantizer" } else { "weight_quantizer.0" };
    let quantizers = [("input_quantizer", &*input), (weight_name, &*weight), ("output_quantizer", &*output)];
    // Of a vocabulary, those that are padding too.
    let padded = tensors.get(format!("{module}.weight").as_str()).filter(|_| q.linear.is_output_layer);
    extra_state(&quantizers, padded.map_or(q.linear.rows, |weight| weight.shape[0]), seen)
}

fn of_attention(kv: &KvQuantizers, tensors: &BTreeMap<&str, &Recipe>, seen: Dtype) -> Plain {
    let names = ["q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer"];
    let of = |i: usize| stages(&format!("{}.{}", kv.module, names[i]), &kv.attributes[i], tensors);
    let [q, k, v] = [of(0), of(1), of(2)];
    extra_state(&[(names[0], &q), (names[1], &k), (names[2], &v)], 0, seen)
}
