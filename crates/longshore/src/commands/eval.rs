//! `longshore eval`: scores of a checkpoint.

mod endpoint;
mod likelihood;
mod mmlu;

use super::Answer;
use crate::cli::eval::{EvalArgs, EvalTask};
use crate::options::{self, Env};
use crate::report::Report;
use anyhow::Result;
use std::path::PathBuf;

pub(super) fn run(args: &EvalArgs, env: &Env, report: &Report) -> Result<Answer> {
    match &args.task {
        EvalTask::Mmlu(args) => mmlu::run(args, env, report),
        EvalTask::Ppl(args) => likelihood::perplexity(args, env, report),
        EvalTask::Kl(args) => likelihood::divergence(args, env, report),
    }
}

/// The checkpoint that is named, by the argument or the environment.
fn checkpoint(given: Option<&PathBuf>, env: &Env) -> Result<PathBuf> {
    Ok(options::path(given, env, &["MLM_MODEL_CKPT", "HF_MODEL_CKPT"], "CKPT")?.value)
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
