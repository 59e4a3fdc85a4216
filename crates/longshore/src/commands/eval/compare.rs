//! placeholder
use crate::cli::eval::CompareArgs;
use crate::commands::Answer;
use crate::report::Report;
use anyhow::Result;
pub(super) fn run(_args: &CompareArgs, _report: &Report) -> Result<Answer> {
    Ok(Answer::Yes)
}
