//! `longshore verify`: whether a checkpoint is what it should be, from the bytes on disk.

use super::Answer;
use crate::cli::VerifyArgs;
use crate::locate;
use crate::options::{Env, threads};
use crate::progress_bar::ProgressBar;
use crate::report::{Report, peak_memory};
use crate::units::{bytes, counted, seconds};
use anyhow::Result;
use longshore_convert::verify::{VerifyOptions, VerifyReport, verify, verify_against};
use serde_json::json;
use std::time::Instant;

pub(super) fn run(args: &VerifyArgs, env: &Env, report: &Report) -> Result<Answer> {
    let started = Instant::now();
    let folder = locate::checkpoint(&args.checkpoint, env)?;
    let against = args.against.as_ref().map(|source| locate::checkpoint(source, env)).transpose()?;
    let options = VerifyOptions { quick: args.quick, threads: threads(args.threads) };
    let progress = ProgressBar::new(report)?;
    let result = progress.finish(match &against {
        Some(source) => verify_against(&folder, source, &options, &progress),
        None => verify(&folder, &options, &progress),
    })?;
    let took = started.elapsed().as_secs_f64();
    if report.is_json() {
        let fields = json!({
            "valid": result.problems.is_empty(),
            "path": folder,
            "against": against,
            "quick": args.quick,
            "result": result,
            "timings": {"total_seconds": took},
            "peak_memory": peak_memory(),
        });
        report.json("verify", &fields)?;
    } else {
        report.data(&result.problems.iter().fold(String::new(), |text, problem| text + &format!("{problem}\n")))?;
    }
    for note in &result.notes {
        report.note("Note", note);
    }
    say(&result, took, report);
    Ok(if result.problems.is_empty() { Answer::Yes } else { Answer::No })
}

/// The last line.
pub(super) fn say(result: &VerifyReport, took: f64, report: &Report) {
    let checked = format!(
        "{}, {}, {}, {}  in {}",
        counted(result.tensors, "tensor"),
        counted(result.chunks, "chunk"),
        counted(result.files, "file"),
        bytes(result.bytes),
        seconds(took)
    );
    match result.problems.len() as u64 {
        0 => report.status("Verified", &checked),
        n => report.note("Failed", &format!("{} in {checked}", counted(n, "problem"))),
    }
}
