//! `longshore doctor`: what in the weights makes a model answer at chance.

use super::Answer;
use crate::cli::doctor::DoctorArgs;
use crate::locate;
use crate::options::{Env, threads};
use crate::progress_bar::ProgressBar;
use crate::report::{Report, peak_memory};
use crate::units::{bytes, counted, seconds};
use anyhow::Result;
use longshore_convert::doctor::{Differing, Finding, Severity, doctor};
use serde_json::json;
use std::fmt::Write as _;
use std::time::Instant;

/// Tensors that a finding names without `-v`.
const SHOWN: usize = 4;

pub(super) fn run(args: &DoctorArgs, env: &Env, report: &Report) -> Result<Answer> {
    let started = Instant::now();
    let folder = locate::checkpoint(&args.checkpoint, env)?;
    let against = args.against.as_ref().map(|source| locate::checkpoint(source, env)).transpose()?;
    let progress = ProgressBar::new(report)?;
    let result = progress.finish(doctor(&folder, against.as_deref(), threads(args.threads), &progress))?;
    let took = started.elapsed().as_secs_f64();
    if report.is_json() {
        let fields = json!({
            "sound": result.is_sound(),
            "path": folder,
            "against": against,
            "result": result,
            "timings": {"total_seconds": took},
            "peak_memory": peak_memory(),
        });
        report.json("doctor", &fields)?;
    } else {
        let mut text: String = result.findings.iter().map(|finding| shown(finding, report.verbosity() > 0)).collect();
        text += &explained(&result.differing);
        if result.is_sound() {
            text += "nothing broken or suspicious\n";
        }
        report.data(&text)?;
    }
    for note in &result.notes {
        report.note("Note", note);
    }
    let read = format!("{}, {}  in {}", counted(result.tensors, "tensor"), bytes(result.bytes), seconds(took));
    if result.is_sound() {
        report.status("Sound", &read);
        return Ok(Answer::Yes);
    }
    report.note("Unsound", &format!("{} in {read}", found(&result.findings)));
    Ok(Answer::No)
}

/// `2 broken, 1 suspicious`
fn found(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let said = [Severity::Broken, Severity::Suspicious].map(|severity| (severity, count(severity)));
    let said = said.iter().filter(|(_, n)| *n > 0).map(|(severity, n)| format!("{n} {}", severity.name()));
    said.collect::<Vec<_>>().join(", ")
}

/// A finding as a few lines; all of its tensors if asked for.
fn shown(finding: &Finding, all: bool) -> String {
    let Finding { severity, check, tensors, evidence, cause, remedy } = finding;
    let mut text = format!("{}: {}, {}\n", severity.name(), check.name(), counted(tensors.len() as u64, "tensor"));
    let shown = if all { tensors.len() } else { SHOWN };
    for tensor in tensors.iter().take(shown) {
        let _ = writeln!(text, "  {tensor}");
    }
    if tensors.len() > shown {
        let _ = writeln!(text, "  and {} more (-v lists them)", tensors.len() - shown);
    }
    let _ = writeln!(text, "  evidence: {evidence}\n  likely cause: {cause}\n  what to do: {remedy}\n");
    text
}

/// How many differing tensors each check explains.
fn explained(differing: &[Differing]) -> String {
    let mut checks: Vec<_> = differing.iter().map(|tensor| tensor.explained_by).collect();
    checks.sort_unstable();
    let mut text = String::new();
    for group in checks.chunk_by(|a, b| a == b) {
        let tensors = counted(group.len() as u64, "differing tensor");
        let _ = writeln!(text, "{tensors}: {}", group[0].name());
    }
    text
}
