//! AWQ: scales of input channels and shares of the weight's magnitude that make a linear's output differ least once its
//! weight is quantized.
//!
//! Reference: ModelOpt 0.47 `torch/quantization/model_calib.py` (`awq_lite`, `awq_clip`). A batch of its loops is a prompt
//! here: errors and channel means are of a prompt first, then of all prompts. Sums are in float64, so that they agree with
//! torch's to a float's rounding. Passes over a layer see what the unquantized model computes.

mod clip;
mod lite;
mod trial;

use crate::backend::{Backend, Inputs, Probe};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::site::Site;
use crate::sweep::Sweep;
use clip::Clipping;
use lite::{ActScale, Channels, Losses};
use longshore_ckpt::Rect;
use longshore_quant::config::Clip;
use longshore_quant::{Element, Scheme};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use trial::{Trial, Weight};

/// What is searched for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Awq {
    /// `awq_lite`: the step between the exponents that are tried.
    pub alpha_step: Option<f64>,
    /// `awq_clip`, after that.
    pub clip: Option<Clip>,
    /// The type of the model's weights and activations.
    pub element: Element,
    /// Whether rows of routed second linears count as multiplied with their router weights, as Megatron's experts read
    /// them.
    pub weighted: bool,
}

/// The linears of a layer that are searched, with the format of their weights; routed experts each on their own.
pub type Targets = BTreeMap<Site, Scheme>;

/// A linear, or that of one routed expert.
pub type Unit = (Site, Option<usize>);

/// What was found for a linear.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The exponent of the activations, and the error of each that was tried; of `awq_lite`.
    pub alpha: Option<f32>,
    /// Mean squared errors, one for each exponent, summed over prompts.
    pub losses: Vec<f64>,
    /// What the input is multiplied with, `[in]`, not rounded to the element type.
    pub pre_quant_scale: Option<Vec<f32>>,
    /// The largest magnitude of the scaled input.
    pub input_amax: Option<f32>,
    /// Shares of the largest magnitude, of `awq_clip`.
    pub clipped: Option<Clipped>,
}

/// Shares of the largest magnitudes of a scaled weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Clipped {
    /// Of all of it: its magnitude is this.
    Tensor(f32),
    /// Block by block, row-major: an index into the shares.
    Blocks {
        /// The shares.
        shares: Vec<f32>,
        /// Which one.
        index: Vec<u8>,
    },
}

/// Searches the next layer of a sweep, which stays where it is.
pub fn layer<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    sweep: &mut Sweep<B>,
    layer: usize,
    targets: &Targets,
    awq: &Awq,
) -> Result<BTreeMap<Unit, Found>> {
    let mut found: BTreeMap<Unit, Found> = BTreeMap::new();
    if targets.is_empty() {
        return Ok(found);
    }
    let weights = Weights { model, prefix: model.prefix(layer), element: awq.element };
    let mut pass = |found: &BTreeMap<Unit, Found>, phase: Phase| -> Result<BTreeMap<Unit, State>> {
        let mut search = Search {
            weights: &weights,
            targets,
            awq,
            found,
            phase,
            prompts: Vec::new(),
            sent: Vec::new(),
            states: BTreeMap::new(),
        };
        sweep.visit_layer(&mut search)?;
        Ok(search.states)
    };
    if let Some(step) = awq.alpha_step {
        let mut acts: BTreeMap<Unit, Channels> = BTreeMap::new();
        for (unit, state) in pass(&found, Phase::Act)? {
            if let State::Act(act) = state {
                let scale = lite::weight_scale(&weights.get(unit)?, targets[&unit.0], awq.element);
                acts.insert(unit, act.finish(scale));
            }
        }
        // Experts have an input quantizer each, whose magnitudes are those of all of them.
        for site in [Site::ExpertFc1, Site::ExpertFc2] {
            lite::share_amax(acts.iter_mut().filter(|(unit, _)| unit.0 == site).map(|(_, act)| act));
        }
        // The trials of every linear, for the pass that compares them.
        let trials = acts.iter().map(|(unit, act)| (*unit, act.trials(step))).collect();
        for (unit, state) in pass(&found, Phase::Losses(&trials))? {
            if let (State::Losses(losses), Some(act)) = (state, acts.get(&unit)) {
                found.insert(unit, act.best(step, losses.finish()));
            }
        }
    }
    if let Some(clip) = &awq.clip {
        for (unit, state) in pass(&found, Phase::Clip(clip))? {
            if let State::Clip(state) = state {
                let scale = found.get(&unit).and_then(|f| f.pre_quant_scale.clone());
                let weight = weights.get(unit)?.scaled_back(scale.as_deref(), awq.element);
                let clipped = state.finish(&weight, targets[&unit.0], awq.element, model.threads());
                found.entry(unit).or_default().clipped = Some(clipped);
            }
        }
    }
    Ok(found)
}

/// Largest magnitude of every column of a weight, in its element type.
pub fn column_amax<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    layer: usize,
    unit: Unit,
    element: Element,
) -> Result<Vec<f32>> {
    let weight = Weights { model, prefix: model.prefix(layer), element }.get(unit)?;
    let mut most = vec![0.0f32; weight.cols];
    for row in weight.values.chunks_exact(weight.cols) {
        for (most, x) in most.iter_mut().zip(row) {
            *most = most.max(x.abs());
        }
    }
    Ok(most)
}

/// Reads weights of a layer.
struct Weights<'a, B: Backend> {
    model: &'a Arc<Model<B>>,
    prefix: String,
    element: Element,
}

impl<B: Backend + 'static> Weights<'_, B> {
    fn get(&self, (site, expert): Unit) -> Result<Weight> {
        let loader = self.model.loader();
        let (mut values, mut cols) = (Vec::new(), 0);
        for name in loader.tensors(&self.prefix, site) {
            let mut rect = Rect::whole(loader.source.tensor(&name).0);
            if let Some(e) = expert {
                (rect.offsets[0], rect.sizes[0]) = (e as u64, 1);
            }
            cols = rect.sizes.last().copied().unwrap_or(1) as usize;
            values.append(&mut loader.values_of(&name, &rect)?);
        }
        for x in &mut values {
            *x = self.element.round(*x);
        }
        Ok(Weight { values, cols })
    }
}

/// What a pass is for.
#[derive(Clone, Copy)]
enum Phase<'a> {
    Act,
    Losses(&'a BTreeMap<Unit, Vec<Trial>>),
    Clip(&'a Clip),
}

/// What a pass knows of a linear so far.
enum State {
    Act(ActScale),
    Losses(Losses),
    Clip(Clipping),
}

/// A pass over a layer.
struct Search<'a, B: Backend> {
    weights: &'a Weights<'a, B>,
    targets: &'a Targets,
    awq: &'a Awq,
    found: &'a BTreeMap<Unit, Found>,
    phase: Phase<'a>,
    /// The prompt of every row of the batch.
    prompts: Vec<usize>,
    /// The rows that were sent to the experts, in the order of their second linears' inputs.
    sent: Vec<usize>,
    states: BTreeMap<Unit, State>,
}

/// Rows that one linear reads, element-rounded, with their prompts.
struct Rows<'a> {
    values: &'a [f32],
    prompts: &'a [usize],
    cols: usize,
}

impl<B: Backend + 'static> Search<'_, B> {
    fn add(&mut self, unit: Unit, rows: &Rows<'_>, backend: &B) -> Result<()> {
        let (scheme, element) = (self.targets[&unit.0], self.awq.element);
        let error = |error| Error::Quantize { module: format!("{}{}", self.weights.prefix, unit.0.module()), error };
        match self.phase {
            Phase::Act => {
                let state = self.states.entry(unit).or_insert_with(|| State::Act(ActScale::default()));
                if let State::Act(act) = state {
                    act.add(rows);
                }
            }
            Phase::Losses(trials) => {
                let Some(trials) = trials.get(&unit) else { return Ok(()) };
                let weight = self.weights.get(unit)?;
                let errors = trial::errors(self.weights.model, backend, &weight, scheme, element, trials, rows)
                    .map_err(error)?;
                let state = self.states.entry(unit).or_insert_with(|| State::Losses(Losses::new(trials.len())));
                if let State::Losses(losses) = state {
                    losses.add(rows.prompts, &errors, weight.values.len() / weight.cols);
                }
            }
            Phase::Clip(clip) => {
                let scale = self.found.get(&unit).and_then(|f| f.pre_quant_scale.as_deref());
                let scaled = scale.map(|scale| trial::scaled_rows(rows, scale, element));
                let rows = Rows { values: scaled.as_deref().unwrap_or(rows.values), ..*rows };
                let state =
                    self.states.entry(unit).or_insert_with(|| State::Clip(Clipping::new(clip, scheme, rows.cols)));
                if let State::Clip(state) = state {
                    if let Some(shares) = state.shares_of_tensor() {
                        let weight = self.weights.get(unit)?.scaled_back(scale, element);
                        let trials: Vec<Trial> = shares.iter().map(|&share| Trial { scale: None, share }).collect();
                        let errors =
                            trial::errors(self.weights.model, backend, &weight, scheme, element, &trials, &rows)
                                .map_err(error)?;
                        state.add_errors(rows.prompts, &errors, weight.values.len() / weight.cols);
                    } else {
                        state.add_rows(&rows);
                    }
                }
            }
        }
        Ok(())
    }
}

impl<B: Backend + 'static> Probe<B> for Search<'_, B> {
    fn wants(&self, site: Site) -> bool {
        self.targets.contains_key(&site) || (site == Site::ExpertFc1 && self.targets.contains_key(&Site::ExpertFc2))
    }

    fn batch(&mut self, rows: &[(usize, Range<usize>)]) {
        self.prompts = rows.iter().flat_map(|(prompt, range)| range.clone().map(|_| *prompt)).collect();
    }

    fn inputs(&mut self, backend: &B, inputs: &Inputs<'_, B>) -> Result<()> {
        let values = backend.download(inputs.rows, 0..inputs.count);
        let cols = values.len() / inputs.count.max(1);
        let Some(experts) = inputs.experts else {
            if !self.targets.contains_key(&inputs.site) {
                return Ok(());
            }
            let rounded: Vec<f32> = values.iter().map(|&x| self.awq.element.round(x)).collect();
            let prompts = std::mem::take(&mut self.prompts);
            let result = self.add((inputs.site, None), &Rows { values: &rounded, prompts: &prompts, cols }, backend);
            self.prompts = prompts;
            return result;
        };
        if inputs.site == Site::ExpertFc1 {
            self.sent = experts.each().map(|(_, row)| row).collect();
        }
        if !self.targets.contains_key(&inputs.site) {
            return Ok(());
        }
        // Rows of second linears stand in the order in which they were sent.
        let token = |at: usize, row: usize| if inputs.site == Site::ExpertFc2 { self.sent[at] } else { row };
        let mut each: BTreeMap<usize, (Vec<f32>, Vec<usize>)> = BTreeMap::new();
        for (at, (e, row)) in experts.each().enumerate() {
            let weight = experts.weights.filter(|_| self.awq.weighted).map_or(1.0, |weights| weights[at]);
            let (values_of, prompts) = each.entry(e).or_default();
            let element = self.awq.element;
            values_of.extend(values[row * cols..][..cols].iter().map(|&x| element.round(element.round(x) * weight)));
            prompts.push(self.prompts[token(at, row)]);
        }
        for (e, (values, prompts)) in each {
            self.add((inputs.site, Some(e)), &Rows { values: &values, prompts: &prompts, cols }, backend)?;
        }
        Ok(())
    }
}

/// The index of the first of the smallest.
fn first_least(losses: &[f64]) -> usize {
    let mut best = 0;
    for (i, loss) in losses.iter().enumerate() {
        if *loss < losses[best] {
            best = i;
        }
    }
    best
}
