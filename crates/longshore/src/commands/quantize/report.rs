//! What quantization did to a model: errors of weights and outputs, sizes, what calibration saw; as a table, JSON, a page.
//!
//! The weights cost one reading of the source, the outputs one pass of both models over the held-out text. So the report is
//! made where it was asked for (`--report`, `-v`, `--json`) and for models small enough that nobody waits for it.

mod calibration;
mod outputs;
mod page;
mod tables;
mod weights;

use crate::cli::quantize::QuantizeArgs;
use crate::cli::run::{EngineArgs, PrecisionName};
use crate::engine::Opened;
use crate::options::{Env, threads};
use crate::report::Report;
use anyhow::Result;
use calibration::{ExpertTokens, InputRow};
use longshore_ckpt::fs;
use longshore_convert::config::LayerSpec;
use longshore_convert::quantized::{Calibrated, Quantization};
use longshore_infer::backend::cpu::Precision;
use longshore_infer::calibrate::Calibration;
use outputs::Outputs;
use serde::Serialize;
use std::path::Path;
use weights::{KindRow, WeightRow};

/// Bytes of a source that is measured without being asked: a matter of seconds.
const SMALL: u64 = 2_000_000_000;

/// Whether a report is to be made.
pub(super) fn is_wanted(args: &QuantizeArgs, source_bytes: u64, report: &Report) -> bool {
    let asked = args.output.report.is_some() || report.verbosity() > 0 || report.is_json();
    !args.output.skip_report && (asked || source_bytes < SMALL)
}

/// What is reported on.
pub(super) struct Subject<'a> {
    /// The source, as it was opened to be quantized.
    pub(super) source: &'a Path,
    /// The result: what was published.
    pub(super) result: &'a Path,
    /// Bytes of the data files of both.
    pub(super) bytes: [u64; 2],
    /// The config's name.
    pub(super) config: &'a str,
    pub(super) engine: &'a EngineArgs,
    pub(super) quantization: &'a Quantization,
    pub(super) calibrated: &'a Calibrated,
    /// What was observed, if the model ran.
    pub(super) observed: Option<&'a Calibration>,
}

/// What quantization did to a model. Ratios are in decibels; `null` where nothing was lost or a number is not finite.
#[derive(Debug, Default, Serialize)]
pub(super) struct QuantReport {
    /// The config's name.
    config: String,
    /// The model's Hugging Face class.
    architecture: String,
    /// Names of the folders.
    folders: [String; 2],
    /// Labels of the layers, the prediction blocks' and the output layer behind those of the trunk.
    #[serde(skip)]
    axis: Vec<String>,
    /// The letters of the trunk's layers in Megatron's pattern.
    pattern: Vec<char>,
    /// Bytes of the data files, before and after.
    bytes: [u64; 2],
    /// Bits that a quantized weight takes in an exported checkpoint, scales included.
    bits_per_weight: Option<f64>,
    /// By kind of linear.
    kinds: Vec<KindRow>,
    /// By layer and kind.
    weights: Vec<WeightRow>,
    /// On the held-out text.
    outputs: Option<Outputs>,
    /// What the linears read while calibrating.
    inputs: Vec<InputRow>,
    /// What the routed experts saw while calibrating.
    experts: Vec<ExpertTokens>,
    /// What could not be measured, and other things worth knowing.
    notes: Vec<String>,
}

/// Measures. What cannot be measured becomes a note: the checkpoint is written by now.
pub(super) fn build(subject: &Subject<'_>, env: &Env, report: &Report) -> Result<QuantReport> {
    // The command has said everything about these checkpoints.
    let silent = Report::new(&crate::cli::Global { quiet: true, ..Default::default() }, env);
    let source = Opened::new(subject.source, subject.engine, env, &silent)?;
    let config = &source.source.model.config;
    let mut axis: Vec<String> = (0..config.layers.len()).map(|layer| layer.to_string()).collect();
    let mut out = QuantReport {
        config: subject.config.to_owned(),
        architecture: config.architecture.clone(),
        folders: [subject.source, subject.result].map(folder_name),
        pattern: config.layers.iter().map(LayerSpec::letter).collect(),
        bytes: subject.bytes,
        ..QuantReport::default()
    };
    report.detail("Report", "measuring the weights");
    let (of, calibrated) = (subject.quantization, subject.calibrated);
    let measured = weights::measure(&source.source, of, calibrated, threads(subject.engine.threads), report);
    out.notes.extend(measured.notes());
    out.bits_per_weight = measured.bits_per_weight();
    (out.weights, out.kinds) = (measured.rows(&mut axis), measured.kinds());
    out.axis = axis;
    if let Some(observed) = subject.observed {
        out.inputs = calibration::inputs(observed);
        out.experts = calibration::experts(observed);
    }
    out.notes.extend(calibration::warning(&out.experts));
    let precision = source.precision;
    let engine = EngineArgs { precision: Some(name(precision)), ..subject.engine.clone() };
    report.detail("Report", "comparing the outputs");
    let compared = Opened::new(subject.result, &EngineArgs { base: None, ..engine.clone() }, env, &silent)
        .and_then(|result| outputs::compare(source, result, &engine, report, &silent));
    match compared {
        Ok(outputs) => out.outputs = Some(outputs),
        Err(error) => out.notes.push(format!("the outputs were not compared: {error:#}")),
    }
    Ok(out)
}

impl QuantReport {
    /// Says what was found: warnings, the table unless JSON is the output, and the page where one is wanted.
    pub(super) fn publish(&self, page: Option<&Path>, report: &Report) -> Result<()> {
        for note in &self.notes {
            report.note("Warning", note);
        }
        if !report.is_json() {
            report.data(&tables::render(self, report.verbosity() > 0))?;
        }
        if let Some(path) = page {
            fs::write_output(path, page::render(self).as_bytes())?;
            report.status("Report", &path.display().to_string());
        }
        Ok(())
    }
}

fn name(precision: Precision) -> PrecisionName {
    match precision {
        Precision::Float32 => PrecisionName::F32,
        Precision::Bfloat16 => PrecisionName::Bf16,
    }
}

/// A page is passed on; whole paths are its reader's business only.
fn folder_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Decibels for people.
fn decibels(sqnr: Option<f64>) -> String {
    match sqnr {
        None => "exact".to_owned(),
        Some(x) if x.is_finite() => format!("{x:.1}"),
        Some(_) => "lost".to_owned(),
    }
}

#[cfg(test)]
mod tests;
