//! Runs the model on the samples and collects what the config's algorithm asks for.

mod awq;
mod kept;
mod scales;

use self::awq::{Beside, Run};
use self::scales::{Scaled, Scaling};
use crate::calibration::CalibrationSet;
use crate::cli::quantize::QuantizeArgs;
use crate::engine::{Opened, scratch};
use crate::passes::{self, Progress};
use crate::report::Report;
use crate::saving::Saver;
use anyhow::Result;
use kept::Kept;
use longshore_convert::quantized::{Calibrated, QuantLinear, Quantization};
use longshore_convert::source::Source;
use longshore_infer::calibrate::{CalibrateOptions, Calibration, Calibrator, LayerStats};
use longshore_infer::error::Error as EngineError;
use longshore_infer::resume::Place;
use longshore_infer::schedule::Schedule;
use longshore_infer::search::{Channels, Unit};
use longshore_infer::site::Site;
use longshore_infer::stats::StatsWanted;
use longshore_infer::sweep::SweepOptions;
use longshore_quant::config::QuantConfig;
use longshore_quant::search::Search;
use std::collections::BTreeMap;
use std::path::Path;

/// What the folders of interrupted passes add to the destination's name: of the one that observes, and of AWQ's that compare
/// and clip.
const MARKS: [&str; 3] = [".calibration-", ".comparison-", ".clipping-"];

/// Where the passes for this destination are saved.
pub(super) fn places(destination: &Path) -> [Place<'_>; 3] {
    MARKS.map(|mark| Place { beside: destination, mark })
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
    /// Hold it all until it is written.
    pub(super) savers: Vec<Saver<'a>>,
}

/// Identifies what the magnitudes depend on.
pub(super) fn key(
    opened: &Opened,
    args: &QuantizeArgs,
    set: &CalibrationSet,
    quantization: &Quantization,
    config: &QuantConfig,
) -> Result<String> {
    let decided =
        (args.what.all_experts, args.is_weighted(), args.calib.calib_batch, format!("{config:?} {quantization:?}"));
    Ok(opened.pass_key(&args.engine, &set.samples, &decided)?)
}

/// The magnitudes for the checkpoint at `destination`; `key` is theirs.
#[expect(clippy::too_many_arguments, reason = "each is a decision that the command has made")]
pub(super) fn run<'a>(
    opened: Opened,
    args: &QuantizeArgs,
    set: &CalibrationSet,
    quantization: &Quantization,
    config: &QuantConfig,
    key: &str,
    destination: &Path,
    report: &'a Report,
) -> Result<Observed<'a>> {
    let fc2_weighted = args.is_weighted();
    report.status("Samples", &set.report.to_string());
    for warning in &set.report.warnings {
        report.note("Warning", warning);
    }
    // Before weights are read: of two runs one is refused at once.
    let mut saver = Saver::open(places(destination)[0], key, &args.save, report)?;
    let tokens: usize = set.samples.iter().map(Vec::len).sum();
    let schedule = Schedule::whole(&set.samples, args.engine.batch_tokens as usize);
    let demand = schedule.demand(0);
    let precision = opened.precision;
    let scaling = Scaling::of(config, precision, fc2_weighted, usize::from(args.calib.calib_batch));
    let beside = Beside::of(&scaling, quantization, &opened, args)?;
    let loaded = opened.load(&args.engine, demand.clone(), 1, report)?;
    if args.output.reference_output {
        passes::estimate(&loaded, (&set.samples, &schedule), (1, 1), report)?;
    }
    let sweep = SweepOptions { batch_tokens: args.engine.batch_tokens as usize, scratch: scratch(&args.engine) };
    let options = CalibrateOptions {
        sweep: sweep.clone(),
        stats: StatsWanted { channel_amax: scaling.needs_channels(), channel_sum: false, weighted: fc2_weighted },
        all_experts: args.what.all_experts,
        attention: !quantization.kv.is_empty(),
    };
    let blame = |error| blame_weights(error, loaded.model.source());
    let mut calibrator = Calibrator::begin(&loaded.model, &set.samples, options)?;
    let layers = loaded.model.n_layers();
    let fits = |layer, (kept, observed): &(Kept, Vec<(Unit, Channels)>)| {
        kept.fits(layer, quantization) && Scaled::of(quantization, layer, &scaling).fits(observed)
    };
    let before = saver.resume(layers, |saved| calibrator.resume(saved, fits))?;
    let progress = Progress::begin("Calibrating", before.len(), layers);
    let (mut scaled, mut observed) = (Calibrated::default(), Vec::new());
    for (kept, channels) in before {
        kept.append_to(&mut scaled);
        observed.push(channels.into_iter().collect());
    }
    for layer in progress.resumed..layers {
        let linears = Scaled::of(quantization, layer, &scaling);
        let mut found = BTreeMap::new();
        match &scaling {
            Scaling::Awq(awq) if beside.is_some() => {
                observed.push(calibrator.observe_layer(&linears.targets(), awq).map_err(blame)?);
            }
            Scaling::Awq(awq) => found = calibrator.search_layer(&linears.targets(), awq).map_err(blame)?,
            Scaling::None | Scaling::Smooth { .. } => {}
        }
        let Some(stats) = calibrator.next_layer().map_err(blame)? else { break };
        let mut of_layer = Calibrated::default();
        match &scaling {
            Scaling::Awq(awq) if beside.is_none() => linears.keep(found, stats, awq, &mut of_layer),
            Scaling::Smooth { alpha } => linears.smooth(&loaded.model, precision, *alpha, stats, &mut of_layer)?,
            Scaling::None | Scaling::Awq(_) => {}
        }
        let kept = Kept::of(&of_layer);
        let channels = observed.get(layer).map_or_else(Vec::new, |channels| channels.iter().collect());
        saver.save(|saved| calibrator.save(saved, &(&kept, channels)));
        kept.append_to(&mut scaled);
        progress.show(layer + 1, report);
    }
    let calibration = calibrator.finish().map_err(blame)?;
    let mut calibrated = magnitudes(&calibration, quantization, fc2_weighted);
    let mut savers = vec![saver];
    if let (Scaling::Awq(awq), Some(beside)) = (&scaling, beside) {
        drop(loaded);
        let run = Run { args, samples: &set.samples, demand, precision, sweep, key, destination, report };
        let (found, more) = beside.search(&run, quantization, &calibrated, &observed, awq)?;
        savers.extend(more);
        for (layer, (found, stats)) in found.into_iter().zip(&calibration.layers).enumerate() {
            Scaled::of(quantization, layer, &scaling).keep(found, stats, awq, &mut scaled);
        }
    }
    let tokens_per_second = progress.end("Calibrated", tokens, report);
    calibrated.inputs.append(&mut scaled.inputs);
    let weight_search = Search::of(&config.algorithm);
    let calibrated = Calibrated { weight_search, inputs: calibrated.inputs, kv: calibrated.kv, ..scaled };
    Ok(Observed { calibrated, calibration, resumed_layers: progress.resumed, tokens_per_second, savers })
}

/// What to tell where numbers are not finite: the weights that are not, if there are any.
fn blame_weights(error: EngineError, source: &Source) -> anyhow::Error {
    let is_not_finite = match &error {
        EngineError::NotFinite { .. } => true,
        EngineError::Quantize { error, .. } => matches!(error, longshore_quant::Error::NotFinite { .. }),
        _ => false,
    };
    match is_not_finite.then(|| source.not_finite()) {
        Some(Ok(problems)) if !problems.is_empty() => longshore_convert::Error::Refused(problems).into(),
        _ => error.into(),
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
