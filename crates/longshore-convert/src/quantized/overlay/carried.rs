//! Quantizers that a Megatron checkpoint has, as those of another spec or layout: nothing is computed again.
//!
//! Their tensors are copied under the names of the spec that is written, in their dtypes. What the specs hold differently
//! is the experts: the local spec has an input quantizer and a state for each, the Transformer-Engine spec one for all of a
//! layer. One becomes many by copying; many become one where they are equal, which ModelOpt sees to when it calibrates.

use super::megatron::{Form, amax_shape, weights_of_modules};
use crate::error::Problem;
use crate::mapping::{Declared, Mapping};
use crate::quantized::decide::class_of;
use crate::quantized::linear::{Linear, Naming, Role};
use crate::quantized::state::record::RecordedEntry;
use crate::quantized::state::{QuantizerStates, Stage, StoredTensor};
use crate::quantized::stored::StoredQuantizers;
use crate::quantized::{KvQuantizers, QuantLinear, Quantization};
use crate::region::Region;
use crate::resolve::{Part, Recipe};
use longshore_quant::Attributes;
use std::collections::BTreeMap;

/// Adds to the Megatron tensors of a plain checkpoint, which have an expert each, those of the `stored` quantizers under
/// the names of `naming`. Modules that the mapping does not have (MTP that is left out) lose theirs.
pub(crate) fn carried(
    recipes: &mut Vec<Recipe>,
    mapping: &Mapping,
    stored: &StoredQuantizers,
    naming: Naming,
) -> Result<Quantization, Vec<Problem>> {
    let weights = weights_of_modules(recipes, mapping);
    let old = &stored.quantization;
    let is_left_out = |q: &QuantLinear| !weights.contains_key(&q.linear.module) && !q.linear.is_output_layer;
    let linears = old.linears.iter().filter(|q| !is_left_out(q)).cloned().collect();
    let new = Quantization { naming, linears, kv: attention(old, &weights), warnings: Vec::new() };
    let mut carrier = Carrier { old, new: &new, states: &stored.states, added: BTreeMap::new(), problems: Vec::new() };
    carrier.sequences();
    let mut groups: BTreeMap<String, &QuantLinear> = BTreeMap::new();
    for q in &new.linears {
        let Some(parts) = weights.get(&q.linear.module) else {
            if q.is_quantized() {
                carrier.problem(&q.linear.module, "it has no weight of its own (tied embeddings)");
            }
            continue;
        };
        if naming == Naming::MegatronTe && q.linear.expert.is_some() {
            let first = *groups.entry(q.linear.grouped_module()).or_insert(q);
            carrier.same_in_group(first, q);
        }
        let weight = Weight { parts: parts.iter().map(|&i| &recipes[i]).collect() };
        carrier.linear(q, &weight);
    }
    for kv in &new.kv {
        let Some(weight) = recipes.iter().find(|r| r.name == kv.qkv_weight()) else { continue };
        for letter in ["q", "k", "v"] {
            let name = format!("{letter}_bmm_quantizer");
            let quantizer = format!("{}.{name}", kv.module);
            let stages = stored.states.stages(&kv.module, &name);
            carrier.stages(&quantizer, stages, &weight.declared, |_, tensor| Ok(tensor.tensor.shape.clone()));
        }
    }
    let Carrier { added, problems, .. } = carrier;
    recipes.extend(added.into_values());
    if problems.is_empty() { Ok(new) } else { Err(problems) }
}

/// The quantizers of all attention layers: off where the checkpoint has none, whose attention core then was not the
/// Transformer Engine's. Models with that core refuse a checkpoint without its state.
fn attention(old: &Quantization, weights: &BTreeMap<String, Vec<usize>>) -> Vec<KvQuantizers> {
    let mut all = old.kv.clone();
    let index = |module: &String| {
        let layer = module.strip_prefix("decoder.layers.")?.strip_suffix(".self_attention.linear_qkv")?;
        layer.parse::<usize>().ok()
    };
    for index in weights.keys().filter_map(index) {
        let off = [(); 3].map(|()| vec![Attributes { enable: false, ..Attributes::default() }]);
        let kv = KvQuantizers::new(index, off, [None; 3]);
        if !all.iter().any(|other| other.module == kv.module) {
            all.push(kv);
        }
    }
    all
}

/// The tensors of a linear's weight.
struct Weight<'a> {
    parts: Vec<&'a Recipe>,
}

impl Weight<'_> {
    fn rows(&self) -> u64 {
        self.parts.iter().map(|part| part.shape[0]).sum()
    }
}

struct Carrier<'a> {
    old: &'a Quantization,
    new: &'a Quantization,
    states: &'a QuantizerStates,
    /// By name: experts share some.
    added: BTreeMap<String, Recipe>,
    problems: Vec<Problem>,
}

impl Carrier<'_> {
    fn problem(&mut self, tensor: &str, what: impl Into<String>) {
        self.problems.push(Problem::Quantize { tensor: tensor.into(), what: what.into() });
    }

    fn linear(&mut self, q: &QuantLinear, weight: &Weight<'_>) {
        let (linear, first) = (&q.linear, weight.parts[0]);
        if let Some(cast) = weight.parts.iter().find(|part| q.is_quantized() && part.casts()) {
            let what = format!("its quantizers are for weights in {}, not in {}", cast.source_dtype(), cast.dtype);
            self.problem(&cast.name, what);
        }
        // A vocabulary has other rows where it is padded in another way.
        let written = Linear { rows: weight.rows(), ..linear.clone() };
        let reshaped = linear.expert.is_some() && self.new.naming != self.old.naming;
        let form = Form::of(q, self.new);
        for role in Role::ALL {
            let module = if role == Role::Weight { linear.module.clone() } else { self.new.input_module(linear) };
            let quantizer = format!("{module}.{}", role.quantizer());
            let stages = self.states.stages(&linear.module, role.quantizer());
            self.stages(&quantizer, stages, &first.declared, |stage, tensor| {
                let stored = &tensor.tensor.shape;
                let count: u64 = stored.iter().product();
                let scheme = stage.attributes.scheme().ok().flatten().filter(|_| role == Role::Weight && count != 1);
                let Some(scheme) = scheme else { return Ok(stored.clone()) };
                let shape = amax_shape(scheme, &written, form).map_err(|error| error.to_string())?;
                let fits = shape.filter(|shape| shape.iter().product::<u64>() == count);
                let what =
                    || format!("its {count} magnitudes are not those of a weight [{}, {}]", written.rows, written.cols);
                fits.map(|shape| if reshaped { shape } else { stored.clone() }).ok_or_else(what)
            });
        }
    }

    /// The tensors of a quantizer's stages, in the shapes that `shape` gives those of `_amax`.
    fn stages(
        &mut self,
        quantizer: &str,
        stages: &[Stage],
        declared: &Declared,
        shape: impl Fn(&Stage, &StoredTensor) -> Result<Vec<u64>, String>,
    ) {
        for (i, stage) in stages.iter().enumerate() {
            let number = if stages.len() == 1 { String::new() } else { format!(".{i}") };
            for (buffer, tensor) in stage.tensors() {
                let name = format!("{quantizer}{number}.{buffer}");
                let shape = if buffer == "_amax" { shape(stage, tensor) } else { Ok(tensor.tensor.shape.clone()) };
                match shape {
                    Ok(shape) => {
                        self.added.entry(name.clone()).or_insert_with(|| copy(name, tensor, shape, declared));
                    }
                    Err(what) => self.problem(&name, what),
                }
            }
        }
    }

    /// A group of experts has one quantizer for their inputs, and ModelOpt reads one state for all their weights.
    fn same_in_group(&mut self, first: &QuantLinear, q: &QuantLinear) {
        let (a, b) = (&first.linear.module, &q.linear.module);
        for role in Role::ALL {
            let quantizer = role.quantizer();
            let (one, other) = (self.states.stages(a, quantizer), self.states.stages(b, quantizer));
            let attributes =
                |stages: &[Stage]| stages.iter().map(|s| s.attributes.clone()).collect::<Vec<Attributes>>();
            let values = |stages: &[Stage]| {
                let of = |tensor: Option<&StoredTensor>| tensor.and_then(|tensor| tensor.values.clone());
                let all = stages.iter().map(|s| (of(s.amax.as_ref()), of(s.pre_quant_scale.as_ref())));
                all.collect::<Vec<_>>()
            };
            let what = if attributes(one) != attributes(other) {
                "does something else than"
            } else if role != Role::Weight && values(one) != values(other) {
                "has other values than"
            } else {
                continue;
            };
            let text = format!(
                "it {what} that of expert {}, and the Transformer-Engine spec has one for all of them (--spec local)",
                first.linear.expert.unwrap_or(0)
            );
            self.problem(&format!("{b}.{quantizer}"), text);
        }
    }

    /// How many stages a quantizer has is no part of its state: ModelOpt finds it by the patterns of the recorded config,
    /// which must therefore say the same of the names in the new spec.
    fn sequences(&mut self) {
        let Some(record) = self.states.record.as_ref().filter(|_| self.new.naming != self.old.naming) else { return };
        let entries: Vec<_> = record.entries().into_iter().filter(RecordedEntry::sets_attributes).collect();
        if !entries.iter().any(RecordedEntry::is_sequence) {
            return;
        }
        for entry in entries {
            let differs = |linear: &Linear, role: Role| {
                let matches = |naming| {
                    let class = class_of(naming, linear);
                    linear.quantizers(naming, role).iter().any(|name| entry.matches(name, class))
                };
                matches(self.old.naming) != matches(self.new.naming)
            };
            let found = self.new.linears.iter().find(|q| Role::ALL.iter().any(|&role| differs(&q.linear, role)));
            if let Some(q) = found {
                let what = format!(
                    "the recorded config quantizes in sequence, and its pattern `{}` is of one spec only",
                    entry.quantizer_name
                );
                self.problems.push(Problem::Quantize { tensor: q.linear.module.clone(), what });
            }
        }
    }
}

/// A tensor of a quantizer under a name.
fn copy(name: String, stored: &StoredTensor, shape: Vec<u64>, declared: &Declared) -> Recipe {
    let all = Region::all(shape.iter().product());
    Recipe {
        name,
        dtype: stored.tensor.dtype,
        parts: vec![Part { target: all.clone(), source: Some((stored.tensor.clone(), all)) }],
        declared: Declared { shape: shape.clone(), tp_axis: None, experts: false, ..declared.clone() },
        shape,
        computed: None,
    }
}
