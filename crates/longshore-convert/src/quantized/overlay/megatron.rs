//! The Megatron side.

use super::{bytes_of, constant, is_whole, searched, stages};
use crate::error::Problem;
use crate::mapping::Mapping;
use crate::quantized::encode::{Encoding, Output, SharedAmax, Weight};
use crate::quantized::linear::{Linear, Naming};
use crate::quantized::{Calibrated, QuantLinear, Quantization};
use crate::resolve::{Computed, Recipe};
use longshore_ckpt::Dtype;
use longshore_quant::search::keeps_element;
use longshore_quant::{Granularity, Scheme, amax, pack};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Adds to the Megatron tensors of a plain checkpoint, which have an expert each, those of its quantizers.
pub fn megatron(
    recipes: &mut Vec<Recipe>,
    mapping: &Mapping,
    quantization: &Quantization,
    calibrated: &Calibrated,
) -> Result<(), Vec<Problem>> {
    let mut problems = Vec::new();
    let weights = weights_of_modules(recipes, mapping);
    let mut added: Vec<Recipe> = Vec::new();
    let mut shared = BTreeSet::new();
    for q in &quantization.linears {
        let Some(parts) = weights.get(&q.linear.module) else {
            if q.is_quantized() {
                let what = "it has no weight of its own (tied embeddings)".into();
                problems.push(Problem::Quantize { tensor: q.linear.module.clone(), what });
            }
            continue;
        };
        let sources = parts.iter().map(|&i| Arc::new(recipes[i].clone())).collect();
        let linear = Stored { q, form: Form::of(q, quantization), sources, calibrated };
        match linear.weight_tensors() {
            Ok(tensors) => added.extend(tensors),
            Err(problem) => problems.push(problem),
        }
        let input = quantization.input_module(&q.linear);
        if shared.insert(input.clone()) {
            added.extend(linear.input_tensors(&input));
        }
        if let Some(columns) = calibrated.columns(&q.linear.module) {
            for (&i, source) in parts.iter().zip(&linear.sources) {
                let weight = Arc::new(Weight::of(&[Arc::clone(source)]).scaled(Some(Arc::clone(&columns))));
                let shared = Arc::new(SharedAmax::known(0.0));
                let scaled = Encoding { weight, stages: Vec::new(), shared };
                recipes[i].computed = Some(Computed::Encoded(Arc::new(scaled), Output::Scaled));
            }
        }
    }
    for kv in &quantization.kv {
        let declared = recipes.iter().find(|r| r.name == kv.qkv_weight()).map(|r| (r.declared.clone(), r.dtype));
        let Some((declared, dtype)) = declared else { continue };
        for (of, letter) in ["q", "k", "v"].into_iter().enumerate() {
            if let Some(amax) = kv.amax(calibrated, of) {
                let bytes = bytes_of(dtype, &[amax]);
                let name = format!("{}.{letter}_bmm_quantizer._amax", kv.module);
                added.push(constant(name, dtype, &[], &bytes, &declared));
            }
        }
    }
    recipes.extend(added);
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// The weights of every module, in the order of its rows: an input projection is stored in parts.
pub(super) fn weights_of_modules(recipes: &[Recipe], mapping: &Mapping) -> BTreeMap<String, Vec<usize>> {
    let first_row: BTreeMap<&str, u64> = mapping.ties.iter().map(|t| (t.mc.0.as_str(), t.hf.1.at(0).0)).collect();
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, recipe) in recipes.iter().enumerate() {
        if let Some(at) = recipe.name.rfind(".weight") {
            found.entry(recipe.name[..at].into()).or_default().push(i);
        }
    }
    for parts in found.values_mut() {
        parts.sort_by_key(|&i| first_row.get(recipes[i].name.as_str()));
    }
    found
}

/// How ModelOpt's plugin for a class of modules shapes magnitudes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Column and row parallel linears: a scalar is `[1]`, others are `[rows, n]`.
    Parallel,
    /// Grouped experts: a scalar is `[1]`, others are as in the module.
    Grouped,
    /// Linears that are not cut (latent projections): all are as in the module.
    Whole,
}

impl Form {
    pub(super) fn of(q: &QuantLinear, quantization: &Quantization) -> Self {
        if quantization.naming == Naming::MegatronTe && q.linear.expert.is_some() {
            Self::Grouped
        } else if q.linear.tp_axis.is_none() && !q.linear.is_output_layer {
            Self::Whole
        } else {
            Self::Parallel
        }
    }

    fn scalar(self) -> &'static [u64] {
        if self == Self::Whole { &[] } else { &[1] }
    }
}

/// A linear and the tensors of its weight.
struct Stored<'a> {
    q: &'a QuantLinear,
    form: Form,
    sources: Vec<Arc<Recipe>>,
    calibrated: &'a Calibrated,
}

impl Stored<'_> {
    fn encoding(&self) -> Arc<Encoding> {
        let (q, calibrated) = (self.q, self.calibrated);
        let weight = Arc::new(Weight::of(&self.sources).scaled(calibrated.columns(&q.linear.module)));
        let shared = Arc::new(match calibrated.weight_amax(&q.linear.module) {
            Some(value) => SharedAmax::known(value),
            None => searched(SharedAmax::new(vec![Arc::clone(&weight)]), q, calibrated),
        });
        // Magnitudes are stored in the order of the module's rows.
        let stages = stages(q, calibrated, &weight, None);
        Arc::new(Encoding { weight, stages, shared })
    }

    /// The magnitudes of its weight.
    fn weight_tensors(&self) -> Result<Vec<Recipe>, Problem> {
        let (q, declared, dtype) = (self.q, &self.sources[0].declared, self.sources[0].dtype);
        let module = &q.linear.module;
        let encoding = self.encoding();
        // A vocabulary may be padded.
        let written = Linear { rows: encoding.weight.rows(), ..q.linear.clone() };
        if written.rows != q.linear.rows && self.calibrated.clipped.contains_key(module) {
            let what = format!("clipped magnitudes of {} rows for {} (padded)", q.linear.rows, written.rows);
            return Err(Problem::Quantize { tensor: module.clone(), what });
        }
        let mut tensors = Vec::new();
        for (stage, &scheme) in q.weight_schemes.iter().enumerate() {
            let number = if q.weight_schemes.len() > 1 { format!(".{stage}") } else { String::new() };
            let quantizer = format!("{module}.weight_quantizer{number}");
            let shape = amax_shape(scheme, &written, self.form)
                .map_err(|e| Problem::Quantize { tensor: module.clone(), what: e.to_string() })?;
            let Some(shape) = shape else { continue };
            let computed = |name: String, dtype, shape: &[u64], output| Recipe {
                computed: Some(Computed::Encoded(Arc::clone(&encoding), output)),
                ..constant(name, dtype, shape, &[], declared)
            };
            let stored = if keeps_element(scheme) { dtype } else { Dtype::Float32 };
            tensors.push(computed(format!("{quantizer}._amax"), stored, &shape, Output::Amax(stage, stored)));
            if matches!(scheme, Scheme::Nvfp4Static { .. }) {
                tensors.push(computed(format!("{quantizer}._global_amax"), Dtype::Float32, &[1], Output::GlobalAmax));
            }
        }
        Ok(tensors)
    }

    /// The magnitude of its input and what that is multiplied by, as tensors of `module`.
    fn input_tensors(&self, module: &str) -> Vec<Recipe> {
        let (q, declared, dtype) = (self.q, &self.sources[0].declared, self.sources[0].dtype);
        let mut tensors = Vec::new();
        let amax = self.calibrated.inputs.get(&q.linear.module);
        if let (Some(scheme), Some(&amax)) = (q.input_scheme, amax)
            && pack::input_scale(scheme, amax).is_some()
        {
            let name = format!("{module}.input_quantizer._amax");
            tensors.push(constant(name, dtype, self.form.scalar(), &bytes_of(dtype, &[amax]), declared));
        }
        if let Some(scale) = self.calibrated.pre_quant_scales.get(&q.linear.module) {
            let name = format!("{module}.input_quantizer._pre_quant_scale");
            tensors.push(constant(name, dtype, &[scale.len() as u64], &bytes_of(dtype, scale), declared));
        }
        tensors
    }
}

/// The shape in which Megatron stores the magnitudes of a weight; `None` where there are none.
pub(super) fn amax_shape(scheme: Scheme, linear: &Linear, form: Form) -> longshore_quant::Result<Option<Vec<u64>>> {
    let (rows, cols) = (linear.rows, linear.cols);
    let count = amax::count(scheme, rows as usize, cols as usize)? as u64;
    let as_in_module = form != Form::Parallel && count > 1;
    Ok(match scheme {
        Scheme::Mx(_) | Scheme::Fp8(Granularity::Token) | Scheme::Int8(Granularity::Token) => None,
        _ if is_whole(scheme) => Some(form.scalar().to_vec()),
        Scheme::Fp8(Granularity::Square(n)) | Scheme::Int8(Granularity::Square(n)) => {
            let (high, wide) = (rows / n as u64, cols / n as u64);
            Some(if as_in_module { vec![high, 1, wide, 1] } else { vec![high, wide] })
        }
        Scheme::Int4 { .. } | Scheme::Nvfp4Static { .. } if as_in_module => Some(vec![count, 1]),
        _ => Some(vec![rows, count / rows.max(1)]),
    })
}
