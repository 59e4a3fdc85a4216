//! `longshore lint`: what inference servers would reject in a quantized Hugging Face folder.

use super::Answer;
use crate::cli::LintArgs;
use crate::locate;
use crate::options::Env;
use crate::report::Report;
use anyhow::Result;
use longshore_convert::quantized::lint::{Finding, Severity, lint_folder, table};
use serde_json::json;
use std::path::Path;

pub(super) fn run(args: &LintArgs, env: &Env, report: &Report) -> Result<Answer> {
    let folder = locate::checkpoint(&args.checkpoint, env)?;
    let findings = lint_folder(&folder)?;
    let answer = answer(&findings);
    if report.is_json() {
        report.json("lint", &json!({ "findings": findings, "accepted": answer == Answer::Yes }))?;
    } else if findings.is_empty() {
        report.data("nothing to object to\n")?;
    } else {
        report.data(&table(&findings))?;
    }
    Ok(answer)
}

fn answer(findings: &[Finding]) -> Answer {
    if findings.iter().any(|finding| finding.severity == Severity::Reject) { Answer::No } else { Answer::Yes }
}

/// Lints what was just written, and says what was found.
pub(super) fn written(folder: &Path, report: &Report) -> Result<Vec<Finding>> {
    let findings = lint_folder(folder)?;
    for line in table(&findings).lines().filter(|_| !findings.is_empty()) {
        report.note("Lint", line);
    }
    Ok(findings)
}
