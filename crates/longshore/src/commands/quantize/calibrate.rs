//! Runs the model on the samples and collects what the config's algorithm asks for.

mod scales;

use crate::calibration::CalibrationSet;
use crate::cli::quantize::QuantizeArgs;
use crate::engine::{Opened, scratch};
use crate::report::{Live, Report};
use crate::units::{count, counted, seconds};
use anyhow::Result;
use longshore_convert::quantized::{Calibrated, QuantLinear, Quantization};
use longshore_infer::calibrate::{CalibrateOptions, Calibration, Calibrator, LayerStats};
use longshore_infer::memory::Demand;
use longshore_infer::site::Site;
use longshore_infer::stats::StatsWanted;
use longshore_infer::sweep::SweepOptions;
use longshore_quant::config::QuantConfig;
use longshore_quant::search::Search;
use scales::{Scaled, Scaling};
use std::collections::BTreeMap;
use std::time::Instant;

/// The magnitudes that were observed. `fc2_weighted`: of routed experts' second inputs, those times the router's weight.
pub(super) fn run(
    opened: Opened,
    args: &QuantizeArgs,
    set: &CalibrationSet,
    quantization: &Quantization,
    config: &QuantConfig,
    fc2_weighted: bool,
    report: &Report,
) -> Result<(Calibrated, Calibration)> {
    report.status("Samples", &set.report.to_string());
    for warning in &set.report.warnings {
        report.note("Warning", warning);
    }
    let started = Instant::now();
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
    let mut scaled = Calibrated::default();
    for layer in 0..layers {
        let linears = Scaled::of(quantization, layer, &scaling);
        let found = linears.search(&mut calibrator, &scaling)?;
        let Some(stats) = calibrator.next_layer()? else { break };
        match &scaling {
            Scaling::None => {}
            Scaling::Awq(awq) => linears.keep(found, stats, awq, &mut scaled),
            Scaling::Smooth { alpha } => linears.smooth(&loaded.model, precision, *alpha, stats, &mut scaled)?,
        }
        show(report, started, layer + 1, layers);
    }
    let calibration = calibrator.finish()?;
    if report.progress() == Live::Redraw {
        report.live("");
    }
    let took = started.elapsed();
    let rate = tokens as u128 * 1000 / took.as_millis().max(1);
    let time = seconds(took.as_secs_f64());
    let text = format!("{} in {time} ({} tokens/s)", counted(layers as u64, "layer"), count(rate as u64));
    report.status("Calibrated", &text);
    let mut calibrated = magnitudes(&calibration, quantization, fc2_weighted);
    calibrated.inputs.append(&mut scaled.inputs);
    let weight_search = Search::of(&config.algorithm);
    Ok((Calibrated { weight_search, inputs: calibrated.inputs, kv: calibrated.kv, ..scaled }, calibration))
}

/// How far it is: redrawn on a terminal, else a line for every tenth.
fn show(report: &Report, started: Instant, done: usize, layers: usize) {
    let left = started.elapsed().as_secs_f64() / done as f64 * (layers - done) as f64;
    let text = format!("layer {done} of {layers}, {} left", seconds(left));
    match report.progress() {
        Live::Redraw => report.live(&format!("Calibrating  {text}")),
        Live::Lines if done * 10 / layers > (done - 1) * 10 / layers => report.status("Calibrating", &text),
        Live::Off | Live::Lines => {}
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
