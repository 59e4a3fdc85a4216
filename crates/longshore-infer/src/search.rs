//! AWQ: scales of input channels and shares of the weight's magnitude that make a linear's output differ least once its
//! weight is quantized.
//!
//! Reference: ModelOpt 0.47 `torch/quantization/model_calib.py` (`awq_lite`, `awq_clip`). Errors and channel means are of a
//! batch of its loops first, then of all batches. Sums are in float64, so that they agree with torch's to a float's rounding.

mod clip;
mod lite;
mod trial;

use crate::backend::{Backend, Inputs, Probe};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::site::Site;
use crate::sweep::Sweep;
use clip::Clipping;
pub use lite::Channels;
use lite::{ActScale, Losses};
use longshore_ckpt::Rect;
use longshore_quant::config::Clip;
use longshore_quant::{Element, Scheme};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use trial::{Candidate, Trial, Weight};

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
    /// Prompts of a batch.
    pub batch: usize,
}

/// The linears of a layer that are searched, with the format of their weights; routed experts each on their own.
pub type Targets = BTreeMap<Site, Scheme>;

/// A linear, or that of one routed expert.
pub type Unit = (Site, Option<usize>);

/// What was found for a linear.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The exponent of the activations, and the error of each that was tried; of `awq_lite`.
    pub alpha: Option<f32>,
    /// Mean squared errors, one for each exponent, summed over batches.
    pub losses: Vec<f64>,
    /// What the input is multiplied with, `[in]`, not rounded to the element type.
    pub pre_quant_scale: Option<Vec<f32>>,
    /// The largest magnitude of the scaled input.
    pub input_amax: Option<f32>,
    /// Shares of the largest magnitude, of `awq_clip`.
    pub clipped: Option<Clipped>,
}

impl Found {
    /// Whether it can be of a weight of this shape and scheme.
    pub fn fits(&self, rows: usize, cols: usize, scheme: Option<&Scheme>) -> bool {
        let clipped = match &self.clipped {
            Some(Clipped::Blocks { shares, index }) => {
                let blocks = if let Some(Scheme::Int4 { block }) = scheme { rows * (cols / block) } else { 0 };
                index.len() == blocks && index.iter().all(|&at| usize::from(at) < shares.len())
            }
            Some(Clipped::Tensor(_)) | None => true,
        };
        clipped && self.pre_quant_scale.as_ref().is_none_or(|scale| scale.len() == cols)
    }
}

/// Shares of the largest magnitudes of a scaled weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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

/// Searches the next layer of a sweep, which stays where it is: [`observe`], [`compare`] and [`clip`] on one model.
pub fn layer<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    sweep: &mut Sweep<B>,
    layer: usize,
    targets: &Targets,
    awq: &Awq,
) -> Result<BTreeMap<Unit, Found>> {
    let observed = observe(model, sweep, layer, targets, awq)?;
    let mut found = compare(model, sweep, layer, targets, awq, &observed)?;
    clip(model, sweep, layer, targets, awq, &mut found)?;
    Ok(found)
}

/// What the linears of the next layer read, as far as `awq_lite` asks for it.
pub fn observe<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    sweep: &mut Sweep<B>,
    layer: usize,
    targets: &Targets,
    awq: &Awq,
) -> Result<BTreeMap<Unit, Channels>> {
    let mut channels: BTreeMap<Unit, Channels> = BTreeMap::new();
    if awq.alpha_step.is_none() || targets.is_empty() {
        return Ok(channels);
    }
    let weights = Weights { model, prefix: model.prefix(layer), element: awq.element };
    for (unit, state) in pass(&weights, sweep, targets, awq, &BTreeMap::new(), Phase::Act)? {
        if let State::Act(act) = state {
            let scale = lite::weight_scale(&weights.get(unit)?, targets[&unit.0], awq.element);
            channels.insert(unit, act.finish(scale));
        }
    }
    // Experts have an input quantizer each, whose magnitudes are those of all of them.
    for site in [Site::ExpertFc1, Site::ExpertFc2] {
        lite::share_amax(channels.iter_mut().filter(|(unit, _)| unit.0 == site).map(|(_, channels)| channels));
    }
    Ok(channels)
}

/// The scales of `awq_lite`, by what they do to the outputs of the next layer's linears. ModelOpt compares with all
/// quantizers on that are not searched, those of fused experts and of keys and values: `model` has these quantized.
pub fn compare<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    sweep: &mut Sweep<B>,
    layer: usize,
    targets: &Targets,
    awq: &Awq,
    observed: &BTreeMap<Unit, Channels>,
) -> Result<BTreeMap<Unit, Found>> {
    let mut found = BTreeMap::new();
    let Some(step) = awq.alpha_step.filter(|_| !observed.is_empty()) else { return Ok(found) };
    let weights = Weights { model, prefix: model.prefix(layer), element: awq.element };
    let trials = observed.iter().map(|(unit, channels)| (*unit, channels.trials(step))).collect();
    for (unit, state) in pass(&weights, sweep, targets, awq, &found, Phase::Losses(&trials))? {
        if let (State::Losses(losses), Some(channels)) = (state, observed.get(&unit)) {
            found.insert(unit, channels.best(step, losses.finish()));
        }
    }
    Ok(found)
}

/// The shares of `awq_clip` of the weights of the next layer, scaled as `found` says.
pub fn clip<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    sweep: &mut Sweep<B>,
    layer: usize,
    targets: &Targets,
    awq: &Awq,
    found: &mut BTreeMap<Unit, Found>,
) -> Result<()> {
    let Some(clip) = awq.clip.as_ref().filter(|_| !targets.is_empty()) else { return Ok(()) };
    let weights = Weights { model, prefix: model.prefix(layer), element: awq.element };
    for (unit, state) in pass(&weights, sweep, targets, awq, found, Phase::Clip(clip))? {
        if let State::Clip(state, amax) = state {
            let scale = found.get(&unit).and_then(|f| f.pre_quant_scale.clone());
            let weight = weights.get(unit)?.scaled_back(scale.as_deref(), awq.element);
            let clipped = state.finish(&weight, targets[&unit.0], awq.element, model.threads());
            let found = found.entry(unit).or_default();
            found.clipped = Some(clipped);
            // The inputs are calibrated anew, behind their scales.
            found.input_amax = found.pre_quant_scale.as_ref().map(|_| amax);
        }
    }
    Ok(())
}

/// Gives all routed experts' linears of a projection the largest scaled input of any, as ModelOpt does once it has clipped;
/// those that no token chose included.
pub fn share_input_amax(found: &mut BTreeMap<Unit, Found>) {
    for site in [Site::ExpertFc1, Site::ExpertFc2] {
        let most = found.iter().filter(|(unit, _)| unit.0 == site).filter_map(|(_, found)| found.input_amax);
        let Some(most) = most.reduce(f32::max) else { continue };
        for (_, found) in found.iter_mut().filter(|(unit, _)| unit.0 == site) {
            found.input_amax = Some(most);
        }
    }
}

/// Passes over the next layer.
fn pass<B: Backend + 'static>(
    weights: &Weights<'_, B>,
    sweep: &mut Sweep<B>,
    targets: &Targets,
    awq: &Awq,
    found: &BTreeMap<Unit, Found>,
    phase: Phase<'_>,
) -> Result<BTreeMap<Unit, State>> {
    let (batches, sent, states, kept) = (Vec::new(), Vec::new(), BTreeMap::new(), BTreeMap::new());
    let spare = weights.model.spare_memory();
    let mut search = Search { weights, targets, awq, found, phase, batches, sent, states, kept, spare };
    sweep.visit_layer(&mut search)?;
    Ok(search.states)
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
        self.element.round_all(&mut values);
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
    /// And the largest magnitude of the scaled input.
    Clip(Clipping, f32),
}

/// A pass over a layer.
struct Search<'a, B: Backend> {
    weights: &'a Weights<'a, B>,
    targets: &'a Targets,
    awq: &'a Awq,
    found: &'a BTreeMap<Unit, Found>,
    phase: Phase<'a>,
    /// The batch of the reference's loops that every row belongs to.
    batches: Vec<usize>,
    /// The rows that were sent to the experts, in the order of their second linears' inputs.
    sent: Vec<usize>,
    states: BTreeMap<Unit, State>,
    /// What is compared, from one batch to the next as far as memory goes.
    kept: BTreeMap<Unit, Vec<Candidate<B>>>,
    /// Bytes that are left for these.
    spare: u64,
}

/// Rows that one linear reads, element-rounded, with their batches.
struct Rows<'a> {
    values: &'a [f32],
    batches: &'a [usize],
    cols: usize,
}

impl<B: Backend + 'static> Search<'_, B> {
    fn add(&mut self, unit: Unit, rows: &Rows<'_>, backend: &B) -> Result<()> {
        let (scheme, element) = (self.targets[&unit.0], self.awq.element);
        match self.phase {
            Phase::Act => {
                let state = self.states.entry(unit).or_insert_with(|| State::Act(ActScale::default()));
                if let State::Act(act) = state {
                    act.add(rows);
                }
            }
            Phase::Losses(trials) => {
                let Some(trials) = trials.get(&unit) else { return Ok(()) };
                let (errors, out) = self.errors(unit, trials, rows, backend)?;
                let state = self.states.entry(unit).or_insert_with(|| State::Losses(Losses::new(trials.len())));
                if let State::Losses(losses) = state {
                    losses.add(rows.batches, &errors, out);
                }
            }
            Phase::Clip(clip) => {
                let scale = self.found.get(&unit).and_then(|f| f.pre_quant_scale.as_deref());
                let scaled = scale.map(|scale| trial::scaled_rows(rows, scale, element));
                let rows = Rows { values: scaled.as_deref().unwrap_or(rows.values), ..*rows };
                let begin = || State::Clip(Clipping::new(clip, scheme, rows.cols), 0.0);
                let State::Clip(state, most) = self.states.entry(unit).or_insert_with(begin) else { return Ok(()) };
                *most = rows.values.iter().fold(*most, |most, x| most.max(x.abs()));
                let Some(shares) = state.shares_of_tensor() else {
                    state.add_rows(&rows);
                    return Ok(());
                };
                let trials: Vec<Trial> = shares.iter().map(|&share| Trial { scale: None, share }).collect();
                let (errors, out) = self.errors(unit, &trials, &rows, backend)?;
                if let Some(State::Clip(state, _)) = self.states.get_mut(&unit) {
                    state.add_errors(rows.batches, &errors, out);
                }
            }
        }
        Ok(())
    }

    /// Squared differences of the outputs, row by row, trial by trial `[trials][rows]`, and the outputs of a row. In a
    /// clipping pass the weight is the scaled one.
    fn errors(&mut self, unit: Unit, trials: &[Trial], rows: &Rows<'_>, backend: &B) -> Result<(Vec<Vec<f64>>, usize)> {
        if let Some(kept) = self.kept.get(&unit) {
            return trial::errors(backend, kept.iter().map(Ok), rows, self.awq.element);
        }
        let (scheme, element) = (self.targets[&unit.0], self.awq.element);
        let scale = match self.phase {
            Phase::Clip(_) => self.found.get(&unit).and_then(|f| f.pre_quant_scale.as_deref()),
            Phase::Act | Phase::Losses(_) => None,
        };
        let weight = self.weights.get(unit)?.scaled_back(scale, element);
        let threads = self.weights.model.threads();
        let module = || format!("{}{}", self.weights.prefix, unit.0.module());
        let candidate = |trial: &Trial| {
            let made = Candidate::quantized(backend, &weight, scheme, element, trial, threads);
            made.map_err(|error| Error::Quantize { module: module(), error })
        };
        let exact = std::iter::once_with(|| Ok(Candidate::exact(backend, &weight, element)));
        let all = exact.chain(trials.iter().map(candidate));
        let size = Candidate::size(backend, &weight, element) * (trials.len() as u64 + 1);
        // Beside the values that they are made of.
        if size + weight.values.len() as u64 * 12 > self.spare {
            return trial::errors(backend, all, rows, element);
        }
        let all = all.collect::<Result<Vec<_>>>()?;
        self.spare -= size;
        let errors = trial::errors(backend, all.iter().map(Ok), rows, element);
        self.kept.insert(unit, all);
        errors
    }
}

impl<B: Backend + 'static> Probe<B> for Search<'_, B> {
    fn wants(&self, site: Site) -> bool {
        self.targets.contains_key(&site) || (site == Site::ExpertFc1 && self.targets.contains_key(&Site::ExpertFc2))
    }

    fn batch(&mut self, rows: &[(usize, Range<usize>)]) {
        let batch = |prompt: usize| prompt / self.awq.batch.max(1);
        self.batches = rows.iter().flat_map(|(prompt, range)| range.clone().map(|_| batch(*prompt))).collect();
    }

    fn inputs(&mut self, backend: &B, inputs: &Inputs<'_, B>) -> Result<()> {
        let values = backend.download(inputs.rows, 0..inputs.count);
        let cols = values.len() / inputs.count.max(1);
        let Some(experts) = inputs.experts else {
            if !self.targets.contains_key(&inputs.site) {
                return Ok(());
            }
            let mut rounded = values;
            self.awq.element.round_all(&mut rounded);
            let batches = std::mem::take(&mut self.batches);
            let result = self.add((inputs.site, None), &Rows { values: &rounded, batches: &batches, cols }, backend);
            self.batches = batches;
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
            let (values_of, batches) = each.entry(e).or_default();
            let first = values_of.len();
            values_of.extend_from_slice(&values[row * cols..][..cols]);
            if let Some(weights) = experts.weights.filter(|_| self.awq.weighted) {
                self.awq.element.round_all(&mut values_of[first..]);
                values_of[first..].iter_mut().for_each(|x| *x *= weights[at]);
            }
            self.awq.element.round_all(&mut values_of[first..]);
            batches.push(self.batches[token(at, row)]);
        }
        for (e, (values, batches)) in each {
            self.add((inputs.site, Some(e)), &Rows { values: &values, batches: &batches, cols }, backend)?;
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
