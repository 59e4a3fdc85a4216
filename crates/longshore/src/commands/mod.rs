//! One module per command: thin calls into the library, and what to say about the result.

mod arch;
mod args;
mod convert;
mod cut;
mod demo;
mod diff;
mod doctor;
mod eval;
mod export;
mod fit;
mod generate;
mod inspect;
mod lint;
mod logits;
mod quantize;
mod verify;
mod write;

use crate::cli::{Command, Target};
use crate::extra_args;
use crate::options::Env;
use crate::report::Report;
use anyhow::Result;

/// What a command answers; exit status 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Done, equal, valid.
    Yes,
    /// Different, invalid.
    No,
}

/// Runs one command.
pub(crate) fn run(command: &Command, env: &Env, report: &Report) -> Result<Answer> {
    match command {
        Command::Convert(args) => convert::run(args, env, report),
        Command::Import(args) => {
            let mut args = args.clone();
            args.to = args.to.or(Some(Target::TorchDist));
            convert::run(&args, env, report)
        }
        Command::Plan(args) => {
            let mut args = args.clone();
            args.write.output.dry_run = true;
            convert::run(&args, env, report)
        }
        Command::Quantize(args) => quantize::run(args, env, report),
        Command::Export(args) => export::run(args, env, report),
        Command::Cut(args) => cut::run(args, env, report),
        Command::Generate(args) => generate::run(args, env, report),
        Command::Logits(args) => logits::run(args, env, report),
        Command::Eval(args) => eval::run(args, env, report),
        Command::Inspect(args) => inspect::run(args, env, report),
        Command::Args(args) => args::run(args, env, report),
        Command::Fit(args) => fit::run(args, env, report),
        Command::Lint(args) => lint::run(args, env, report),
        Command::Verify(args) => verify::run(args, env, report),
        Command::Diff(args) => diff::run(args, env, report),
        Command::Doctor(args) => doctor::run(args, env, report),
        Command::Arch(args) => arch::run(&args.what, report),
        Command::Demo(args) => demo::run(args, report),
        // `main` has run it.
        Command::Script(_) => Ok(Answer::Yes),
        Command::Env => {
            report.data(&(extra_args::help() + "\n"))?;
            Ok(Answer::Yes)
        }
    }
}
