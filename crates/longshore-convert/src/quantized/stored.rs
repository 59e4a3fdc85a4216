//! The quantization of a checkpoint that has quantizers.

use super::linear::{Linear, Naming, Role, linears};
use super::state::{QuantizerStates, Stage};
use super::{Calibrated, KvQuantizers, QuantLinear, Quantization, WeightAmax, encode};
use crate::config::LayerSpec;
use crate::error::Problem;
use crate::model::{Model, spec};
use crate::plan::{Note, NoteKind};
use crate::resolve::SourceTensor;
use crate::{Error, Result};
use longshore_ckpt::Catalog;
use longshore_quant::{Attributes, Scheme};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The quantizers of a torch_dist checkpoint, and what stores them.
pub(crate) struct StoredQuantizers {
    /// What they do.
    pub quantization: Quantization,
    /// Their magnitudes.
    pub calibrated: Calibrated,
    /// The same as stored.
    pub states: QuantizerStates,
}

impl StoredQuantizers {
    /// What tells two checkpoints apart whose weights are equal.
    pub(crate) fn fingerprint(&self) -> String {
        format!("{:?} {:?}", self.quantization, self.calibrated)
    }
}

/// The quantizers of a torch_dist checkpoint, taken out of its catalog; `None` where it has none.
pub(crate) fn read(catalog: &mut Catalog, model: &mut Model) -> Result<Option<StoredQuantizers>> {
    let naming = Naming::of(spec(catalog));
    let Some(states) = QuantizerStates::read(catalog)? else { return Ok(None) };
    let (quantization, calibrated) = quantization(model, &states, naming).map_err(Error::Refused)?;
    if let Some(record) = &states.record {
        let count = quantization.linears.iter().filter(|q| q.is_quantized()).count();
        let text = format!("{count} quantized linears (ModelOpt {})", record.version);
        model.notes.push(Note::new(NoteKind::Inferred, text));
    }
    Ok(Some(StoredQuantizers { quantization, calibrated, states }))
}

/// What the quantizers of a checkpoint do, and their magnitudes. Refused are, all together, quantizers that nothing here
/// computes, and those of modules that the model has not.
fn quantization(
    model: &Model,
    states: &QuantizerStates,
    naming: Naming,
) -> std::result::Result<(Quantization, Calibrated), Vec<Problem>> {
    let mut reader = Reader { states, seen: BTreeSet::new(), problems: Vec::new(), calibrated: Calibrated::default() };
    reader.calibrated.weights_are_scaled = true;
    let linears = linears(model.architecture, &model.config).into_iter().map(|l| reader.linear(l)).collect();
    let mut kv = Vec::new();
    for (index, spec) in model.config.layers.iter().enumerate() {
        if matches!(spec, LayerSpec::Attention(_)) {
            kv.extend(reader.attention(index));
        }
    }
    reader.others();
    let Reader { problems, calibrated, .. } = reader;
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok((Quantization { naming, linears, kv, warnings: Vec::new() }, calibrated))
}

struct Reader<'a> {
    states: &'a QuantizerStates,
    /// Modules whose quantizers were read.
    seen: BTreeSet<String>,
    problems: Vec<Problem>,
    calibrated: Calibrated,
}

impl Reader<'_> {
    fn problem(&mut self, tensor: String, what: impl Into<String>) {
        self.problems.push(Problem::Quantize { tensor, what: what.into() });
    }

    fn schemes(&mut self, quantizer: &str, stages: &[Stage]) -> Vec<Scheme> {
        let mut schemes = Vec::new();
        for stage in stages {
            match stage.attributes.scheme() {
                Ok(scheme) => schemes.extend(scheme),
                Err(error) => self.problem(quantizer.to_owned(), error.to_string()),
            }
        }
        schemes
    }

    fn linear(&mut self, linear: Linear) -> QuantLinear {
        let module = linear.module.clone();
        self.seen.insert(module.clone());
        let of = |role: Role| self.states.stages(&module, role.quantizer());
        let [input, weight, output] = Role::ALL.map(of);
        let name = |role: Role| format!("{module}.{}", role.quantizer());
        let input_schemes = self.schemes(&name(Role::Input), input);
        let weight_schemes = self.schemes(&name(Role::Weight), weight);
        if !self.schemes(&name(Role::Output), output).is_empty() {
            self.problem(name(Role::Output), "quantized outputs are not implemented");
        }
        if input_schemes.len() > 1 {
            self.problem(name(Role::Input), "an input that is quantized twice is not implemented");
        }
        if let Some(amax) = input.iter().find_map(first_amax) {
            self.calibrated.inputs.insert(module.clone(), amax);
        }
        let scale = input.iter().find_map(|stage| stage.pre_quant_scale.as_ref()?.values.clone());
        let has_pre_quant_scale = scale.is_some();
        if let Some(scale) = scale {
            self.calibrated.pre_quant_scales.insert(module.clone(), scale);
        }
        let enabled = weight.iter().filter(|stage| stage.attributes.enable);
        for (i, (stage, &scheme)) in enabled.zip(&weight_schemes).enumerate() {
            let amax = weight_amax(stage, scheme);
            if let Some(WeightAmax::Rows(tensor) | WeightAmax::Blocks { blocks: tensor, .. }) = &amax
                && let Some(what) = wrong_count(tensor, scheme, &linear)
            {
                self.problem(tensor.name.clone(), what);
                continue;
            }
            if let Some(amax) = amax {
                self.calibrated.weights.insert((module.clone(), i), amax);
            }
        }
        let attributes = |stages: &[Stage]| stages.iter().map(|stage| stage.attributes.clone()).collect::<Vec<_>>();
        let (input, weight, output) = (attributes(input), attributes(weight), attributes(output));
        let input_scheme = input_schemes.first().copied();
        QuantLinear { linear, input, weight, output, input_scheme, weight_schemes, has_pre_quant_scale }
    }

    fn attention(&mut self, index: usize) -> Option<KvQuantizers> {
        let module = format!("decoder.layers.{index}.self_attention.core_attention");
        self.seen.insert(module.clone());
        let names = ["q", "k", "v"].map(|letter| format!("{letter}_bmm_quantizer"));
        let stages = names.each_ref().map(|name| self.states.stages(&module, name));
        let mut schemes = [None; 3];
        for ((scheme, name), stages) in schemes.iter_mut().zip(&names).zip(stages) {
            *scheme = self.schemes(&format!("{module}.{name}"), stages).first().copied();
        }
        // The attention core of the Transformer Engine has a state even where nothing of it is quantized.
        if stages.iter().all(|stages| stages.is_empty()) {
            return None;
        }
        let amax = stages.map(|stages| stages.iter().find_map(first_amax));
        if amax.iter().any(Option::is_some) {
            self.calibrated.kv.insert(module, amax);
        }
        let of = |stages: &[Stage]| -> Vec<Attributes> { stages.iter().map(|s| s.attributes.clone()).collect() };
        Some(KvQuantizers::new(index, stages.map(of), schemes))
    }

    /// Quantizers of other modules: whoever reads the checkpoint would leave out what they do.
    fn others(&mut self) {
        for (module, quantizers) in self.states.modules.iter().filter(|(module, _)| !self.seen.contains(*module)) {
            for (name, stages) in quantizers {
                if stages.iter().any(|stage| stage.attributes.enable) {
                    let what = "it is enabled, and the model has no linear of this name".into();
                    self.problems.push(Problem::Quantize { tensor: format!("{module}.{name}"), what });
                }
            }
        }
    }
}

/// What is wrong with the number of the magnitudes of rows or blocks. A vocabulary may have more rows than tokens.
fn wrong_count(tensor: &SourceTensor, scheme: Scheme, linear: &Linear) -> Option<String> {
    let found: u64 = tensor.shape.iter().product();
    let height = encode::rows_in_one(scheme);
    let rows = match tensor.shape.first() {
        Some(&stored) if linear.is_output_layer => stored.saturating_mul(height).max(linear.rows),
        _ => linear.rows,
    };
    match longshore_quant::amax::count(scheme, rows as usize, linear.cols as usize) {
        Ok(expected) if expected as u64 == found => None,
        Ok(expected) => Some(format!("{found} magnitudes, expected {expected}")),
        Err(error) => Some(error.to_string()),
    }
}

fn first_amax(stage: &Stage) -> Option<f32> {
    stage.amax.as_ref()?.values.as_ref()?.first().copied()
}

fn weight_amax(stage: &Stage, scheme: Scheme) -> Option<WeightAmax> {
    if matches!(scheme, Scheme::Nvfp4Static { .. }) {
        let global = stage.global_amax.as_ref()?.values.as_ref()?.first().copied()?;
        return Some(WeightAmax::Blocks { blocks: Arc::clone(&stage.amax.as_ref()?.tensor), global });
    }
    if encode::is_shared(scheme) {
        return first_amax(stage).map(WeightAmax::Tensor);
    }
    Some(WeightAmax::Rows(Arc::clone(&stage.amax.as_ref()?.tensor)))
}
