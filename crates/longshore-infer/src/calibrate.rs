//! Calibration: what the linears of a model read on given prompts, layer by layer.
//!
//! The schedule is the [`Sweep`]'s: weights are read once, memory is bounded by the model's budget. Statistics are of the
//! model as it is loaded, so of the unquantized one where no quantization is simulated, as ModelOpt's calibration is.
//!
//! A calibration that was interrupted goes on at a layer's beginning, where a [`SavedPass`] keeps it.

use crate::backend::{Backend, Inputs, Probe};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::resume::{Resumed, SavedPass, Saving};
use crate::search::{self, Awq, Channels, Found, Targets, Unit};
use crate::site::Site;
use crate::stats::{InputStats, StatsWanted};
use crate::sweep::{Sweep, SweepOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How to calibrate.
#[derive(Clone, Debug)]
pub struct CalibrateOptions {
    /// Batches and scratch.
    pub sweep: SweepOptions,
    /// What is counted beside amax values.
    pub stats: StatsWanted,
    /// Whether the routed experts' statistics are those of all tokens in every expert; what goes on to the next layer is
    /// the true routing's result, and [`InputStats::weighted_amax`] is the true routing's.
    pub all_experts: bool,
    /// Whether queries, keys and values are counted too.
    pub attention: bool,
}

/// The linears of a layer (and its operands of attention) and what they read.
pub type LayerStats = BTreeMap<Site, InputStats>;

/// What the linears of a model read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Layer by layer.
    pub layers: Vec<LayerStats>,
    /// What the output layer reads.
    pub output: InputStats,
}

/// A calibration on its way.
pub struct Calibrator<B: Backend> {
    model: Arc<Model<B>>,
    sweep: Sweep<B>,
    options: CalibrateOptions,
    layers: Vec<LayerStats>,
}

impl<B: Backend + 'static> Calibrator<B> {
    /// Before the first layer.
    pub fn begin(model: &Arc<Model<B>>, prompts: &[Vec<u32>], options: CalibrateOptions) -> Result<Self> {
        let sweep = Sweep::new(model, prompts, &options.sweep, false)?;
        Ok(Self { model: Arc::clone(model), sweep, options, layers: Vec::new() })
    }

    /// Goes on after the layers that an earlier process has saved. Gives back what was found besides their statistics,
    /// which `check` may refuse.
    pub fn resume<T: DeserializeOwned>(
        &mut self,
        saved: &mut SavedPass,
        check: impl Fn(usize, &T) -> bool,
    ) -> Result<Resumed<T>> {
        let finite = |s: &InputStats| s.amax.is_finite() && s.weighted_amax.is_none_or(f32::is_finite);
        let check = |layer, (stats, found): &(LayerStats, T)| stats.values().all(finite) && check(layer, found);
        Ok(match self.sweep.resume(saved, check)? {
            Resumed::Nothing => Resumed::Nothing,
            Resumed::Refused(why) => Resumed::Refused(why),
            Resumed::Layers(records) => {
                let (layers, found) = records.into_iter().unzip();
                self.layers = layers;
                Resumed::Layers(found)
            }
        })
    }

    /// Saves the statistics of the last layer, and what was `found` besides, if it is time.
    pub fn save<T: Serialize>(&self, saved: &mut SavedPass, found: &T) -> Saving {
        self.layers.last().map_or(Saving::Later, |stats| self.sweep.save(saved, &(stats, found)))
    }

    /// What AWQ asks of the inputs of the next layer, which is computed after that as if nothing had been.
    pub fn observe_layer(&mut self, targets: &Targets, awq: &Awq) -> Result<BTreeMap<Unit, Channels>> {
        search::observe(&self.model, &mut self.sweep, self.layers.len(), targets, awq)
    }

    /// Searches the next layer, which is computed after that as if nothing had been.
    pub fn search_layer(&mut self, targets: &Targets, awq: &Awq) -> Result<BTreeMap<Unit, Found>> {
        search::layer(&self.model, &mut self.sweep, self.layers.len(), targets, awq)
    }

    /// Computes the next layer. `None` if there was none.
    pub fn next_layer(&mut self) -> Result<Option<&LayerStats>> {
        let layer = self.layers.len();
        let mut collect = Collect { prefix: self.model.prefix(layer), options: &self.options, stats: BTreeMap::new() };
        if !self.sweep.next_layer_shown(&mut (), &mut collect)? {
            return Ok(None);
        }
        self.layers.push(collect.stats);
        Ok(self.layers.last())
    }

    /// Computes what is left, and the output layer's input.
    pub fn finish(mut self) -> Result<Calibration> {
        while self.next_layer()?.is_some() {}
        let mut collect = Collect { prefix: String::new(), options: &self.options, stats: BTreeMap::new() };
        let (backend, width) = (self.model.backend(), self.model.hidden());
        for batch in 0..self.sweep.n_batches() {
            let (names, hidden) = self.sweep.hidden(batch)?;
            let count = names.len();
            let rows = self.model.final_norm(&backend.upload(width, &hidden), count);
            collect.inputs(backend, &Inputs { site: Site::Output, rows: &rows, count, experts: None })?;
        }
        let output = collect.stats.remove(&Site::Output).unwrap_or_default();
        Ok(Calibration { layers: self.layers, output })
    }
}

/// Calibrates on `prompts`; `progress` hears of every finished layer.
pub fn run<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    prompts: &[Vec<u32>],
    options: CalibrateOptions,
    progress: &mut dyn FnMut(usize, &LayerStats),
) -> Result<Calibration> {
    let mut calibrator = Calibrator::begin(model, prompts, options)?;
    let mut layer = 0;
    while let Some(stats) = calibrator.next_layer()? {
        progress(layer, stats);
        layer += 1;
    }
    calibrator.finish()
}

/// Counts what the linears of a layer read.
struct Collect<'a> {
    prefix: String,
    options: &'a CalibrateOptions,
    stats: LayerStats,
}

impl<B: Backend> Probe<B> for Collect<'_> {
    fn wants(&self, site: Site) -> bool {
        self.options.attention || !matches!(site, Site::Query | Site::Key | Site::Value)
    }

    fn all_experts(&self) -> bool {
        self.options.all_experts
    }

    fn inputs(&mut self, backend: &B, inputs: &Inputs<'_, B>) -> Result<()> {
        let stats = self.stats.entry(inputs.site).or_default();
        let chosen = inputs.experts.is_some_and(|experts| experts.weights.is_some());
        let wanted = self.options.stats;
        // Where all experts are shown all tokens, only the rows of the true routing have weights.
        let of_chosen = self.options.all_experts && wanted.weighted && inputs.site == Site::ExpertFc2;
        let channels = |wants: bool| if wants { wanted } else { StatsWanted::default() };
        if self.options.all_experts && chosen {
            // These rows were counted among those of all tokens; their weights are the true ones.
            let mut true_rows = InputStats { weighted_amax: stats.weighted_amax, ..InputStats::default() };
            if of_chosen {
                (true_rows.channel_amax, true_rows.channel_sum) = (stats.channel_amax.take(), stats.channel_sum.take());
            }
            backend.observe(inputs, channels(of_chosen), &mut true_rows);
            stats.weighted_amax = true_rows.weighted_amax;
            if of_chosen {
                (stats.channel_amax, stats.channel_sum) = (true_rows.channel_amax, true_rows.channel_sum);
            }
        } else {
            backend.observe(inputs, channels(!of_chosen), stats);
        }
        if stats.amax.is_finite() && stats.weighted_amax.is_none_or(f32::is_finite) {
            return Ok(());
        }
        Err(Error::NotFinite { module: format!("{}{}", self.prefix, inputs.site.module()) })
    }
}
