//! Runs the model on the samples and collects what the config's algorithm asks for.

mod kept;
mod scales;

use crate::calibration::CalibrationSet;
use crate::cli::quantize::QuantizeArgs;
use crate::engine::{Opened, scratch};
use crate::report::{Live, Report};
use crate::saving::Saver;
use crate::units::{count, counted, seconds};
use anyhow::Result;
use kept::Kept;
use longshore_convert::quantized::{Calibrated, QuantLinear, Quantization};
use longshore_infer::calibrate::{CalibrateOptions, Calibration, Calibrator, LayerStats};
use longshore_infer::memory::Demand;
use longshore_infer::resume::Place;
use longshore_infer::site::Site;
use longshore_infer::stats::StatsWanted;
use longshore_infer::sweep::SweepOptions;
use longshore_quant::config::QuantConfig;
use longshore_quant::search::Search;
use scales::{Scaled, Scaling};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// What the folder of an interrupted calibration adds to the destination's name.
const MARK: &str = ".calibration-";

/// Where a calibration for this destination is saved.
pub(super) fn place(destination: &Path) -> Place<'_> {
    Place { beside: destination, mark: MARK }
}

/// What was observed.
pub(super) struct Observed<'a> {
    /// What is written.
    pub(super) calibrated: Calibrated,
    /// What the linears have read.
    pub(super) calibration: Calibration,
    /// Layers that an earlier run had observed.
    pub(super) resumed_layers: usize,
    /// How fast the others were.
    pub(super) tokens_per_second: u64,
    /// Holds it all until it is written.
    pub(super) saver: Saver<'a>,
}

/// The magnitudes for the checkpoint at `destination`. `fc2_weighted`: of routed experts' second inputs, those times the
/// router's weight.
#[expect(clippy::too_many_arguments, reason = "each is a decision that the command has made")]
pub(super) fn run<'a>(
    opened: Opened,
    args: &QuantizeArgs,
    set: &CalibrationSet,
    quantization: &Quantization,
    config: &QuantConfig,
    fc2_weighted: bool,
    destination: &Path,
    report: &'a Report,
) -> Result<Observed<'a>> {
    report.status("Samples", &set.report.to_string());
    for warning in &set.report.warnings {
        report.note("Warning", warning);
    }
    let decided = (args.what.all_experts, fc2_weighted, format!("{config:?} {quantization:?}"));
    let key = opened.pass_key(&args.engine, &set.samples, &decided)?;
    // Before weights are read: of two runs one is refused at once.
    let mut saver = Saver::open(place(destination), &key, &args.save, report)?;
    let tokens: usize = set.samples.iter().map(Vec::len).sum();
    let demand = Demand {
        sequences: set.samples.len() as u64,
        tokens: set.samples.iter().map(Vec::len).max().unwrap_or(0) as u64,
        prompt_tokens: tokens as u64,
        batch_tokens: u64::from(args.engine.batch_tokens),
        logits: 0,
        decode: false,
    };
    let precision = opened.precision;
    let scaling = Scaling::of(config, precision, fc2_weighted);
    let loaded = opened.load(&args.engine, demand, 1, report)?;
    let options = CalibrateOptions {
        sweep: SweepOptions { batch_tokens: args.engine.batch_tokens as usize, scratch: scratch(&args.engine) },
        stats: StatsWanted { channel_amax: scaling.needs_channels(), channel_sum: false },
        all_experts: args.what.all_experts,
        attention: !quantization.kv.is_empty(),
    };
    let mut calibrator = Calibrator::begin(&loaded.model, &set.samples, options)?;
    let layers = loaded.model.n_layers();
    let fits = |layer, kept: &Kept| kept.fits(layer, quantization);
    let before = saver.resume(layers, |saved| calibrator.resume(saved, fits))?;
    let progress = Progress { started: Instant::now(), resumed: before.len(), layers };
    let mut scaled = Calibrated::default();
    for kept in before {
        kept.append_to(&mut scaled);
    }
    for layer in progress.resumed..layers {
        let linears = Scaled::of(quantization, layer, &scaling);
        let found = linears.search(&mut calibrator, &scaling)?;
        let Some(stats) = calibrator.next_layer()? else { break };
        let mut of_layer = Calibrated::default();
        match &scaling {
            Scaling::None => {}
            Scaling::Awq(awq) => linears.keep(found, stats, awq, &mut of_layer),
            Scaling::Smooth { alpha } => linears.smooth(&loaded.model, precision, *alpha, stats, &mut of_layer)?,
        }
        let kept = Kept::of(&of_layer);
        saver.save(|saved| calibrator.save(saved, &kept));
        kept.append_to(&mut scaled);
        progress.show(layer + 1, report);
    }
    let calibration = calibrator.finish()?;
    let tokens_per_second = progress.end(tokens, report);
    let mut calibrated = magnitudes(&calibration, quantization, fc2_weighted);
    calibrated.inputs.append(&mut scaled.inputs);
    let weight_search = Search::of(&config.algorithm);
    let calibrated = Calibrated { weight_search, inputs: calibrated.inputs, kv: calibrated.kv, ..scaled };
    Ok(Observed { calibrated, calibration, resumed_layers: progress.resumed, tokens_per_second, saver })
}

/// How far a calibration is.
struct Progress {
    started: Instant,
    /// Layers that an earlier run had done.
    resumed: usize,
    layers: usize,
}

impl Progress {
    /// Redrawn on a terminal, else a line for every tenth.
    fn show(&self, done: usize, report: &Report) {
        let per_layer = self.started.elapsed().as_secs_f64() / (done - self.resumed) as f64;
        let text =
            format!("layer {done} of {}, {} left", self.layers, seconds(per_layer * (self.layers - done) as f64));
        match report.progress() {
            Live::Redraw => report.live(&format!("Calibrating  {text}")),
            Live::Lines if done * 10 / self.layers > (done - 1) * 10 / self.layers => {
                report.status("Calibrating", &text);
            }
            Live::Off | Live::Lines => {}
        }
    }

    /// After the last layer: tokens a second.
    fn end(&self, tokens: usize, report: &Report) -> u64 {
        if report.progress() == Live::Redraw {
            report.live("");
        }
        let (computed, took) = (self.layers - self.resumed, self.started.elapsed());
        let layers = counted(computed as u64, "layer");
        let time = seconds(took.as_secs_f64());
        let all = tokens as u128 * computed as u128 / self.layers.max(1) as u128;
        let rate = (all * 1000 / took.as_millis().max(1)) as u64;
        report.status("Calibrated", &format!("{layers} in {time} ({} tokens/s)", count(rate)));
        rate
    }
}

/// The magnitudes of every linear's input, keys and values.
fn magnitudes(calibration: &Calibration, quantization: &Quantization, fc2_weighted: bool) -> Calibrated {
    let mut by_module: BTreeMap<String, f32> = BTreeMap::new();
    let mut kv: BTreeMap<String, [Option<f32>; 3]> = BTreeMap::new();
    for (layer, stats) in calibration.layers.iter().enumerate() {
        by_module.extend(of_layer(layer, stats, fc2_weighted));
        let operand = |site: Site| stats.get(&site).map(|s| s.amax);
        let operands = [Site::Query, Site::Key, Site::Value].map(operand);
        if operands.iter().any(Option::is_some) {
            kv.insert(format!("decoder.layers.{layer}.self_attention.core_attention"), operands);
        }
    }
    by_module.insert(Site::Output.module().to_owned(), calibration.output.amax);
    let amax = |q: &QuantLinear| Some((q.linear.module.clone(), *by_module.get(&q.linear.shared_module())?));
    let inputs = quantization.linears.iter().filter(|q| q.input_scheme.is_some()).filter_map(amax).collect();
    Calibrated { inputs, kv, ..Calibrated::default() }
}

fn of_layer(layer: usize, stats: &LayerStats, fc2_weighted: bool) -> impl Iterator<Item = (String, f32)> {
    stats.iter().map(move |(site, stats)| {
        let weighted = stats.weighted_amax.filter(|_| fc2_weighted);
        (format!("decoder.layers.{layer}.{}", site.module()), weighted.unwrap_or(stats.amax))
    })
}
