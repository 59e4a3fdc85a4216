//! `longshore export`: a Hugging Face folder from a Megatron checkpoint.

use super::{Answer, write};
use crate::cli::ExportArgs;
use crate::locate;
use crate::options::{self, Env};
use crate::report::Report;
use anyhow::Result;
use longshore_ckpt::Format;

pub(super) fn run(args: &ExportArgs, env: &Env, report: &Report) -> Result<Answer> {
    let [source, destination] = options::export_paths(args, env)?;
    let folder = locate::checkpoint(&source.value, env)?;
    let mut options = options::export(args, env, (&folder, Format::of(&folder)?))?;
    locate::base(&mut options, env)?;
    write::run("export", &write::Paths { source, folder, destination }, &options, report)
}
