//! Where a run's figures come from: the program, the checkpoints and their weights, the tokenizer.

use crate::cli::eval::KeepArgs;
use crate::cli::run::{EngineArgs, QuantizedWeights};
use crate::engine::{Opened, dt_min, precision_name};
use crate::options::threads;
use crate::progress_bar::ProgressBar;
use crate::report::{Report, object};
use crate::units::{bytes, rate, seconds};
use anyhow::Result;
use longshore_ckpt::{Format, fs};
use longshore_convert::content::content_hash;
use longshore_eval::saved::{Checkpoint, Provenance, TokenizerFile, Weights};
use longshore_infer::tokenizer;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Instant;

/// What is known before the run, where a report of it is asked for: the hash of the weights costs one reading of them. The
/// first checkpoint's tokenizer is that of the run.
pub(super) fn of(
    opened: &[(&Path, &Opened)],
    engine: &EngineArgs,
    keep: &KeepArgs,
    report: &Report,
) -> Result<Option<Provenance>> {
    let Some(mut provenance) = of_server(keep, report) else { return Ok(None) };
    let mut checkpoints = Vec::with_capacity(opened.len());
    for (given, opened) in opened {
        let source = &opened.source;
        let format = match source.catalog.format {
            Format::Safetensors => "safetensors",
            Format::TorchDist => "torch_dist",
        };
        let how = match engine.weights {
            QuantizedWeights::Simulated => "simulated",
            QuantizedWeights::Packed => "packed",
        };
        checkpoints.push(Checkpoint {
            name: last_component(given),
            format: format.to_owned(),
            architecture: source.model.config.architecture.clone(),
            weights: if keep.no_weights_hash { None } else { Some(weights(opened, engine, report)?) },
            precision: precision_name(opened.precision).to_owned(),
            dt_min: dt_min(source, engine)?,
            quantized_weights: source.quantized.as_ref().map(|_| how.to_owned()),
        });
    }
    provenance.checkpoints = checkpoints;
    provenance.tokenizer = match opened.first() {
        Some((_, first)) if first.tokenizer.is_some() => {
            let bytes = fs::read_small(&first.companions.join(tokenizer::NAME), tokenizer::MAX_SIZE)?;
            let sha256 = format!("{:x}", Sha256::digest(bytes));
            Some(TokenizerFile { sha256, begin_of_text: first.begin_of_text()? })
        }
        _ => None,
    };
    Ok(Some(provenance))
}

/// What is known of a server's run, where a report of it is asked for: neither weights nor tokenizer.
pub(super) fn of_server(keep: &KeepArgs, report: &Report) -> Option<Provenance> {
    let program = format!("longshore {}", env!("CARGO_PKG_VERSION"));
    (keep.report.is_some() || report.is_json()).then(|| Provenance { program, ..Provenance::default() })
}

fn weights(opened: &Opened, engine: &EngineArgs, report: &Report) -> Result<Weights> {
    let started = Instant::now();
    let progress = ProgressBar::deaf(report);
    let hash = progress.finish(content_hash(opened.folder(), threads(engine.threads), &progress))?;
    let took = started.elapsed().as_secs_f64();
    let text = if hash.from_manifest {
        "the weights by their manifest".to_owned()
    } else {
        format!("{} of weights in {} ({})", bytes(hash.bytes), seconds(took), rate(hash.bytes, took))
    };
    report.status("Hashed", &text);
    let from = if hash.from_manifest { "manifest" } else { "data" };
    Ok(Weights { sha256: hash.sha256, from: from.to_owned() })
}

/// Reports are passed on; whole paths are their writer's business only.
pub(super) fn last_component(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let resolved = || name(&fs::canonical(path).ok()?);
    name(path).or_else(resolved).unwrap_or_else(|| path.display().to_string())
}

/// A run's report, or what `--json` prints of it: without what is kept for comparisons.
#[derive(Serialize)]
struct Published<'a, K> {
    #[serde(flatten)]
    fields: &'a Value,
    provenance: Option<&'a Provenance>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    kept: Option<&'a K>,
}

/// Writes the report where one is wanted. What `--json` prints follows with [`print()`], once the report is safe.
pub(super) fn write<K: Serialize>(
    fields: &Value,
    provenance: Option<&Provenance>,
    kept: &K,
    keep: &KeepArgs,
    report: &Report,
) -> Result<()> {
    let Some(path) = &keep.report else { return Ok(()) };
    let text = object("eval", &Published { fields, provenance, kept: Some(kept) })?;
    fs::write_output(path, text.as_bytes())?;
    report.status("Report", &path.display().to_string());
    Ok(())
}

/// Prints the object of `--json`.
pub(super) fn print(fields: &Value, provenance: Option<&Provenance>, report: &Report) -> Result<()> {
    Ok(report.json("eval", &Published { fields, provenance, kept: None::<&Value> })?)
}
