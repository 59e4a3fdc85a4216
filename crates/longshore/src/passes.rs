//! A pass over a model's layers: progress, and saving in between.

use crate::cli::run::{EngineArgs, SaveArgs};
use crate::engine::{Loaded, scratch};
use crate::report::{Live, Report};
use crate::saving::Saver;
use crate::units::{self, count, counted, seconds};
use anyhow::Result;
use longshore_infer::backend::cpu::Cpu;
use longshore_infer::rate::{self, Estimate};
use longshore_infer::resume::Place;
use longshore_infer::schedule::Schedule;
use longshore_infer::sweep::Sweep;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What the name of an interrupted pass's folder adds to the scratch folder.
const MARK: &str = ".pass-";

/// Sweeps a model over scheduled prompts; `key` identifies the pass, which is saved in the scratch folder. The saver holds it
/// until its result is safe.
pub(crate) fn sweep<'a>(
    loaded: &Loaded,
    (prompts, schedule): (&[Vec<u32>], Schedule),
    (engine, save): (&EngineArgs, &SaveArgs),
    key: &str,
    report: &'a Report,
) -> Result<Pass<'a>> {
    // Each pass has a place of its own: others may be interrupted, and go on later.
    let beside = scratch(engine).join(format!("longshore-eval-{key}"));
    let mut saver = Saver::open(Place { beside: &beside, mark: MARK }, key, save, report)?;
    let (started, rows) = (Instant::now(), schedule.rows());
    let mut sweep = Sweep::over(&loaded.model, prompts, schedule, &scratch(engine))?;
    let layers = loaded.model.n_layers();
    let before = saver.resume(layers, |saved| sweep.resume(saved, |_, (): &()| true))?;
    let progress = Progress::begin("Evaluating", before.len(), layers);
    for layer in before.len()..layers {
        sweep.next_layer(&mut ())?;
        saver.save(|saved| sweep.save(saved, &()));
        progress.show(layer + 1, report);
    }
    progress.end("Evaluated", rows, report);
    Ok(Pass { sweep, saver, tokens: rows, resumed: before.len(), took: started.elapsed() })
}

/// A pass that is done.
pub(crate) struct Pass<'a> {
    pub(crate) sweep: Sweep<Cpu>,
    /// Holds the saved pass until its result is safe.
    pub(crate) saver: Saver<'a>,
    /// Tokens that every layer computed.
    tokens: usize,
    /// Layers that an earlier run had done.
    resumed: usize,
    took: Duration,
}

impl Pass<'_> {
    /// What `--json` says of it.
    pub(crate) fn figures(&self) -> Value {
        json!({"tokens": self.tokens, "resumed_layers": self.resumed, "seconds": self.took.as_secs_f64()})
    }
}

/// What a pass will do, at the rates measured now.
pub(crate) fn estimate(
    loaded: &Loaded,
    (prompts, schedule): (&[Vec<u32>], &Schedule),
    (positions, logits): (usize, usize),
    report: &Report,
) -> Result<Value> {
    let estimate = rate::estimate(&loaded.model, prompts, schedule, positions, logits)?;
    let Estimate { layers, rows, bytes, reading, computing, total } = estimate;
    let text = format!(
        "one pass: {}, {} read once, {}",
        counted(layers as u64, "layer"),
        units::bytes(bytes),
        counted(rows as u64, "token")
    );
    report.status("Plan", &text);
    let time = |time: Duration| seconds(time.as_secs_f64());
    let text = format!("{} (reading {}, computing {})", time(total), time(reading), time(computing));
    report.status("Time", &text);
    Ok(json!({
        "layers": layers, "tokens": rows, "bytes": bytes, "reading_seconds": reading.as_secs_f64(),
        "computing_seconds": computing.as_secs_f64(), "seconds": total.as_secs_f64(),
    }))
}

/// How far a pass is.
pub(crate) struct Progress {
    what: &'static str,
    started: Instant,
    /// Layers that an earlier run had done.
    pub(crate) resumed: usize,
    layers: usize,
}

impl Progress {
    pub(crate) fn begin(what: &'static str, resumed: usize, layers: usize) -> Self {
        Self { what, started: Instant::now(), resumed, layers }
    }

    /// Redrawn on a terminal, else a line for every tenth.
    pub(crate) fn show(&self, done: usize, report: &Report) {
        let per_layer = self.started.elapsed().as_secs_f64() / (done - self.resumed) as f64;
        let text =
            format!("layer {done} of {}, {} left", self.layers, seconds(per_layer * (self.layers - done) as f64));
        match report.progress() {
            Live::Redraw => report.live(&format!("{}  {text}", self.what)),
            Live::Lines if done * 10 / self.layers > (done - 1) * 10 / self.layers => {
                report.status(self.what, &text);
            }
            Live::Off | Live::Lines => {}
        }
    }

    /// After the last layer: tokens a second.
    pub(crate) fn end(&self, done: &str, tokens: usize, report: &Report) -> u64 {
        if report.progress() == Live::Redraw {
            report.live("");
        }
        let (computed, took) = (self.layers - self.resumed, self.started.elapsed());
        let layers = counted(computed as u64, "layer");
        let time = seconds(took.as_secs_f64());
        let all = tokens as u128 * computed as u128 / self.layers.max(1) as u128;
        let rate = (all * 1000 / took.as_millis().max(1)) as u64;
        report.status(done, &format!("{layers} in {time} ({} tokens/s)", count(rate)));
        rate
    }
}
