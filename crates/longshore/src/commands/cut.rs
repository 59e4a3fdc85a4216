//! `longshore cut`: a smaller model from a larger one.

use super::{Answer, write};
use crate::cli::cut::CutArgs;
use crate::locate;
use crate::options::{self, Env, Given, Origin};
use crate::report::Report;
use anyhow::Result;
use longshore_convert::plan_cut;
use std::time::Instant;

pub(super) fn run(args: &CutArgs, env: &Env, report: &Report) -> Result<Answer> {
    let started = Instant::now();
    let given = |path: &std::path::PathBuf| Given { value: path.clone(), origin: Origin::Flag };
    let [source, destination] = [&args.source, &args.destination].map(given);
    let folder = locate::checkpoint(&source.value, env)?;
    let options = options::cut(args, env);
    let plan = plan_cut(&folder, &destination.value, &options.direction)?;
    write::planned("cut", &write::Paths { source, folder, destination }, &plan, &options, started, report)
}
