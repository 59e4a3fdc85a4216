//! `longshore convert`: to the other format than the source's.

use super::{Answer, write};
use crate::cli::ConvertArgs;
use crate::locate;
use crate::options::{self, Env};
use crate::report::Report;
use anyhow::Result;
use longshore_ckpt::Format;

pub(super) fn run(args: &ConvertArgs, env: &Env, report: &Report) -> Result<Answer> {
    let [source, destination] = options::convert_paths(args, env)?;
    let folder = locate::checkpoint(&source.value, env)?;
    let format = Format::of(&folder)?;
    let target = options::target_format(args, format, &destination);
    let mut options = options::convert(args, env, (&folder, format), target)?;
    locate::base(&mut options, env)?;
    write::run("convert", &write::Paths { source, folder, destination }, &options, report)
}
