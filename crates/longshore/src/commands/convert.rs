//! `longshore convert`: to the other format than the source's, or a Megatron checkpoint cut or named otherwise.

use super::{Answer, write};
use crate::cli::ConvertArgs;
use crate::locate;
use crate::options::{self, Env, StoredKeys};
use crate::report::Report;
use anyhow::Result;
use longshore_ckpt::{Catalog, Format};

pub(super) fn run(args: &ConvertArgs, env: &Env, report: &Report) -> Result<Answer> {
    let [source, destination] = options::convert_paths(args, env)?;
    let folder = locate::checkpoint(&source.value, env)?;
    let format = Format::of(&folder)?;
    let target = options::target_format(args, format, &destination);
    let stored = match format {
        Format::TorchDist => StoredKeys::of(&Catalog::open(&folder)?),
        Format::Safetensors => None,
    };
    let mut options = options::convert(args, env, (&folder, format), target, stored)?;
    locate::base(&mut options, env)?;
    write::run("convert", &write::Paths { source, folder, destination }, &options, report)
}
