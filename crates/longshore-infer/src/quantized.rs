//! Simulated quantization: which linears compute as if their weights and inputs were quantized.
//!
//! The order of operations is ModelOpt's: an input is multiplied by `pre_quant_scale`, rounded to the element type, then
//! quantized and dequantized; a weight is quantized and dequantized when it is loaded. The products are those of the
//! precision. In `f32` and with [`Element::Float32`] this is ModelOpt on a float32 model. With
//! [`crate::model::ModelOptions::packed`] weights are the codes that exporters write, and only inputs are simulated.

mod stored;
mod weight;

pub(crate) use weight::WeightBands;

use crate::error::{Error, Result};
use crate::site::{self, Site};
use longshore_convert::config::LayerSpec;
use longshore_quant::fake::fake_quantize;
use longshore_quant::{Amax, Element, Granularity, Scheme};
use std::collections::{BTreeMap, BTreeSet};

/// One step of a weight's quantization.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightStage {
    /// What it does.
    pub scheme: Scheme,
    /// The amax of the whole weight; `None`: what the weight's values say (before the first stage), found while it is
    /// loaded. Blocks of large models would not fit memory.
    pub amax: Option<Amax>,
}

/// The steps of a linear's weights, one after the other ([`WeightStage`]).
#[derive(Clone, Debug, PartialEq)]
pub enum WeightQuant {
    /// Of the weight, or of every expert's.
    Same(Vec<WeightStage>),
    /// Expert by expert.
    PerExpert(Vec<Vec<WeightStage>>),
}

impl Default for WeightQuant {
    fn default() -> Self {
        Self::Same(Vec::new())
    }
}

impl WeightQuant {
    /// The steps of one expert, or of a weight that stands alone (`expert` 0).
    pub fn stages(&self, expert: usize) -> &[WeightStage] {
        match self {
            Self::Same(stages) => stages,
            Self::PerExpert(experts) => experts.get(expert).map_or(&[], Vec::as_slice),
        }
    }
}

/// What quantization does to a linear.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinearQuant {
    /// To its weight.
    pub weight: WeightQuant,
    /// What the weight's columns are multiplied with before that, `[in]`: the inverse of `pre_quant_scale`, where the
    /// checkpoint's weight does not have it yet.
    pub weight_scale: Option<Vec<f32>>,
    /// To its input. Amax values are needed where the scheme has them.
    pub input: Option<(Scheme, Amax)>,
    /// What its input is multiplied with before that, `[in]`, also where the input is not quantized.
    pub pre_quant_scale: Option<Vec<f32>>,
    /// Of routed experts whose inputs are treated differently, `input` and `pre_quant_scale` of each; else empty.
    pub expert_inputs: Vec<ExpertInput>,
}

/// What quantization does to the input of one routed expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertInput {
    /// As [`LinearQuant::input`].
    pub input: Option<(Scheme, Amax)>,
    /// As [`LinearQuant::pre_quant_scale`].
    pub pre_quant_scale: Option<Vec<f32>>,
}

impl LinearQuant {
    /// Whether the weight is another than the checkpoint's.
    pub(crate) fn changes_weight(&self) -> bool {
        let stages = match &self.weight {
            WeightQuant::Same(stages) => !stages.is_empty(),
            WeightQuant::PerExpert(experts) => experts.iter().any(|stages| !stages.is_empty()),
        };
        stages || self.weight_scale.is_some()
    }
}

/// When the router weight is multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoutedFc2 {
    /// After the second linear, whose input is quantized unscaled (transformers, vLLM).
    #[default]
    WeightAfter,
    /// Before the second linear's input is quantized (Megatron).
    WeightBefore,
}

/// A model's quantization.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantState {
    /// What values are rounded to in between: the dtype of the model whose quantization is simulated. A backend that
    /// computes in bfloat16 rounds the results to it anyway.
    pub element: Element,
    /// By module path, e.g. `decoder.layers.0.mixer.in_proj`, `decoder.layers.1.mlp.experts.linear_fc1`.
    pub linears: BTreeMap<String, LinearQuant>,
    /// Operands of attention, by quantizer path: `decoder.layers.2.self_attention.core_attention.k_bmm_quantizer`.
    pub attention: BTreeMap<String, (Scheme, Amax)>,
    /// Where the router weight is multiplied.
    pub routed_fc2: RoutedFc2,
}

impl QuantState {
    /// Nothing quantized.
    pub fn new(element: Element) -> Self {
        let (linears, attention) = (BTreeMap::new(), BTreeMap::new());
        Self { element, linears, attention, routed_fc2: RoutedFc2::default() }
    }

    /// Errors: linears or operands of attention that a model of these layers (each with the prefix of its names) lacks, and
    /// as many experts as it has not.
    pub(crate) fn check(&self, layers: impl Iterator<Item = (String, LayerSpec)>) -> Result<()> {
        let mut linears = BTreeMap::from([(Site::Output.module().to_owned(), 1)]);
        let mut operands = BTreeSet::new();
        for (prefix, spec) in layers {
            let experts = if let LayerSpec::Moe(moe) = &spec { moe.experts } else { 1 };
            for (site, _) in site::linears(&spec, 0) {
                linears.insert(format!("{prefix}{}", site.module()), if site.is_routed() { experts } else { 1 });
            }
            if matches!(spec, LayerSpec::Attention(_)) {
                operands.extend([Site::Query, Site::Key, Site::Value].map(|s| format!("{prefix}{}", s.module())));
            }
        }
        let error = |module: &str, what: &str| Error::QuantState { module: module.to_owned(), what: what.to_owned() };
        for (module, linear) in &self.linears {
            let Some(&experts) = linears.get(module) else { return Err(error(module, "the model has no such linear")) };
            if let WeightQuant::PerExpert(stages) = &linear.weight
                && stages.len() as u64 != experts
            {
                return Err(error(module, &format!("{} weights, expected {experts}", stages.len())));
            }
            let inputs = linear.expert_inputs.len();
            if inputs > 0 && inputs as u64 != experts {
                return Err(error(module, &format!("{inputs} inputs, expected {experts}")));
            }
        }
        match self.attention.keys().find(|module| !operands.contains(*module)) {
            Some(module) => Err(error(module, "the model has no such operand of attention")),
            None => Ok(()),
        }
    }

    /// The input quantizer of the linear `module` with `cols` channels.
    pub(crate) fn input(&self, module: &str, cols: usize) -> Result<Option<Box<InputQuantizer>>> {
        let Some(linear) = self.linears.get(module) else { return Ok(None) };
        if linear.input.is_none() && linear.pre_quant_scale.is_none() {
            return Ok(None);
        }
        let (scale, quant) = (linear.pre_quant_scale.clone(), linear.input.clone());
        InputQuantizer::new(module, self.element, quant, scale, cols).map(|q| Some(Box::new(q)))
    }

    /// The input quantizers of the routed experts' linears `module`: none, one for all of them, or one for each.
    pub(crate) fn expert_inputs(&self, module: &str, cols: usize) -> Result<Vec<InputQuantizer>> {
        let each = self.linears.get(module).map_or(&[][..], |linear| &linear.expert_inputs);
        if each.is_empty() {
            return Ok(self.input(module, cols)?.map(|quantizer| *quantizer).into_iter().collect());
        }
        let of = |expert: &ExpertInput| {
            let (scale, quant) = (expert.pre_quant_scale.clone(), expert.input.clone());
            InputQuantizer::new(module, self.element, quant, scale, cols)
        };
        each.iter().map(of).collect()
    }

    /// The quantizer of an operand of attention.
    pub(crate) fn operand(&self, module: &str, head_dim: usize) -> Result<Option<Box<InputQuantizer>>> {
        let Some(quant) = self.attention.get(module) else { return Ok(None) };
        InputQuantizer::new(module, self.element, Some(quant.clone()), None, head_dim).map(|q| Some(Box::new(q)))
    }
}

/// Quantizes and dequantizes rows of activations.
#[derive(Clone, Debug, PartialEq)]
pub struct InputQuantizer {
    element: Element,
    quant: Option<(Scheme, Amax)>,
    pre_quant_scale: Option<Vec<f32>>,
    cols: usize,
}

impl InputQuantizer {
    fn new(
        module: &str,
        element: Element,
        quant: Option<(Scheme, Amax)>,
        pre_quant_scale: Option<Vec<f32>>,
        cols: usize,
    ) -> Result<Self> {
        let pre_quant_scale: Option<Vec<f32>> =
            pre_quant_scale.map(|scale| scale.iter().map(|&s| element.round(s)).collect());
        let wrong = |what: String| Err(Error::QuantState { module: module.to_owned(), what });
        if pre_quant_scale.as_ref().is_some_and(|s| s.len() != cols) {
            return wrong(format!("`pre_quant_scale` has not {cols} values"));
        }
        if let Some((scheme, amax)) = &quant {
            let token = matches!(scheme, Scheme::Fp8(Granularity::Token) | Scheme::Int8(Granularity::Token));
            if !weight::is_whole(*scheme) && !token && !matches!(scheme, Scheme::Mx(_)) {
                return wrong(format!("{scheme:?} is not for activations"));
            }
            let count = longshore_quant::amax::count(*scheme, 1, cols)
                .map_err(|error| Error::Quantize { module: module.to_owned(), error })?;
            // One that is found while quantizing would depend on what else is in the batch.
            if amax.values.len() != count {
                return wrong(format!("the input has {} amax values, expected {count}", amax.values.len()));
            }
        }
        Ok(Self { element, quant, pre_quant_scale, cols })
    }

    /// Channels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Replaces whole rows of `cols` values by what they are after quantization. A row's result depends on no other row.
    pub fn apply(&self, rows: &mut [f32]) {
        match &self.pre_quant_scale {
            Some(scale) => self.element.scale_rows(scale, rows),
            None if self.element != Element::Float32 => self.element.round_all(rows),
            None => {}
        }
        if let Some((scheme, amax)) = &self.quant {
            fake_quantize(*scheme, self.element, amax, self.cols, rows);
        }
    }
}
