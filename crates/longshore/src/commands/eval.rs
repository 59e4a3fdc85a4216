//! `longshore eval`: scores of a checkpoint.

mod compare;
mod divergence;
mod endpoint;
mod likelihood;
mod mmlu;
mod provenance;
mod questions;

use super::Answer;
use crate::cli::eval::{EvalArgs, EvalTask};
use crate::error::UsageError;
use crate::options::{self, Env, Given};
use crate::report::Report;
use anyhow::Result;
use longshore_ckpt::fs;
use serde_json::Value;
use std::path::{Path, PathBuf};

pub(super) fn run(args: &EvalArgs, env: &Env, report: &Report) -> Result<Answer> {
    match &args.task {
        EvalTask::Mmlu(args) => mmlu::run(args, env, report),
        EvalTask::Ppl(args) => likelihood::perplexity(args, env, report),
        EvalTask::Kl(args) => divergence::run(args, env, report),
        EvalTask::Compare(args) => compare::run(args, report),
    }
}

/// The checkpoint that is named, by the argument or the environment.
fn checkpoint(given: Option<&PathBuf>, env: &Env) -> Result<Given<PathBuf>> {
    Ok(options::path(given, env, &["MLM_MODEL_CKPT", "HF_MODEL_CKPT"], "CKPT")?)
}

/// Checks that there are folders for what will be written: a pass may take hours.
fn check_outputs(files: &[Option<&PathBuf>]) -> Result<()> {
    for file in files.iter().flatten() {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !fs::is_dir(folder) {
            return Err(UsageError::NoFolder { path: folder.to_owned() }.into());
        }
    }
    Ok(())
}

/// Adds the fields of `more` to those of an object.
fn extend(fields: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (fields, more) {
        fields.extend(more);
    }
}

/// Rows of logits in memory at a time.
const LOGITS: usize = 32;

/// A figure with its standard error.
fn with_error(value: f64, error: Option<f64>, digits: usize) -> String {
    match error {
        Some(error) => format!("{value:.digits$} ± {error:.digits$}"),
        None => format!("{value:.digits$}"),
    }
}
