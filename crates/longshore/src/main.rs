//! The `longshore` program: the only crate that reads the environment, prints and exits.
//!
//! A run is one line: [`cli`] parses flags, [`options`] turns flags and variables into the library's options, a module
//! of [`commands`] calls the library, [`report`] says what happened. `README.md` shows what users see.

#![forbid(unsafe_code)]

mod calibration;
#[expect(clippy::doc_markdown, reason = "its doc comments are the help, where backticks would be printed")]
mod cli;
mod commands;
mod engine;
mod error;
mod extra_args;
mod hint;
mod locate;
mod model_args;
mod nearest;
mod options;
mod page;
mod passes;
mod progress_bar;
mod prompts;
mod report;
mod saving;
mod script;
mod units;

use options::Env;
use std::process::ExitCode;

fn main() -> ExitCode {
    raise_file_limit();
    hide_decoder_panics();
    let env = Env::from_process();
    let (mut cli, given) = cli::parse();
    if let cli::Command::Script(args) = &cli.command {
        return script::main(args, env);
    }
    let applied = extra_args::apply(&mut cli, &|id| given.has(id), &env);
    let report = report::Report::new(&cli.global, &env);
    let done = applied.map_err(anyhow::Error::from).and_then(|()| commands::run(&cli.command, &env, &report));
    match done {
        Ok(commands::Answer::Yes) => ExitCode::SUCCESS,
        Ok(commands::Answer::No) => ExitCode::from(1),
        // Whoever reads the output has seen enough (`longshore inspect … | head`).
        Err(error) if error::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report.failure(cli.command.name(), &error);
            ExitCode::from(if error::is_interrupt(&error) { 130 } else { 2 })
        }
    }
}

/// Checkpoints of many ranks have thousands of files, all open at once; the usual soft limit is 1,024.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, opening says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// The parquet decoder's asserts are about files: what they say is reported as the file's error.
fn hide_decoder_panics() {
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(longshore_eval::parquet::DECODER_THREAD) {
            shown(panic);
        }
    }));
}
