//! The jobs of Megatron-LM's post-training scripts, for `scripts/*.sh`: from the model's name and the variables that those
//! scripts read to a command of this program, with their defaults, their exit status (0 or 1) and one run for all ranks.
//!
//! A job is the command that [`line()`] makes of it, run in an environment in which what the script leaves to its model
//! config has a value. Flags behind the script's own arguments go to the command and win.

mod known;
mod ranks;

use crate::cli::script::{ScriptArgs, ScriptName};
use crate::cli::{self, Cli, Given};
use crate::commands::{self, Answer};
use crate::engine::Opened;
use crate::error::{self, UsageError};
use crate::extra_args::{self, Extra, Job};
use crate::options::{self, Env};
use crate::report::Report;
use crate::{cli::run::EngineArgs, locate};
use anyhow::Result;
use longshore_convert::NormKeys;
use longshore_convert::source::Source;
use ranks::{Duty, Leader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The scripts' workspace (`conf/arguments.sh`).
const WORK_DIR: &str = "/tmp/megatron_workspace";
/// The config of `quantize.sh` without a second argument.
const QUANT_CFG: &str = "FP8_DEFAULT_CFG";
/// Calibration as `quantize.py` has it by default.
const CALIB_SIZE: &str = "1024";
const CALIB_SEQ: &str = "4096";
/// What `generate.py` asks where it is given no data.
const CONVERSATION: &str =
    "Write an email to a wine expert, requesting a guest article contribution for your wine blog.";

/// Runs a script's job.
pub(crate) fn main(args: &ScriptArgs, mut env: Env) -> ExitCode {
    let plain = Report::new(&cli::Global::default(), &env);
    let call = match Call::new(args, &mut env) {
        Ok(call) => call,
        Err(Failure::Clap(error)) => {
            let _ = error.print();
            // `--help` is no failure.
            return ExitCode::from(u8::from(error.use_stderr()));
        }
        Err(Failure::Other(error)) => {
            plain.failure("script", &error);
            return ExitCode::FAILURE;
        }
    };
    let report = Report::new(&call.cli.global, &env);
    let done = ranks::duty(&env, &call.subject()).and_then(|duty| match duty {
        Duty::Follow(follower) => follower.wait(&report),
        Duty::Lead(leader) => call.lead(leader, &env, &report),
    });
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            report.failure(call.cli.command.name(), &error);
            ExitCode::FAILURE
        }
    }
}

/// Why there is no call.
enum Failure {
    Clap(clap::Error),
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// A script as it was called.
struct Call {
    script: ScriptName,
    label: String,
    /// Words that mean nothing to the script.
    surplus: Vec<String>,
    cli: Cli,
    /// What is written, if anything.
    destination: Option<PathBuf>,
}

impl Call {
    /// Reads the arguments and completes the environment.
    fn new(args: &ScriptArgs, env: &mut Env) -> Result<Self, Failure> {
        let script = args.name;
        let own = args.rest.iter().take_while(|word| !word.starts_with('-')).count();
        let (own, flags) = args.rest.split_at(own);
        let (own, surplus) = own.split_at(own.len().min(if script == ScriptName::Quantize { 2 } else { 1 }));
        let label = own.first().filter(|label| !label.is_empty()).ok_or(UsageError::NoLabel)?.clone();
        complete(env, script, &label)?;
        let command: &[&str] = match script {
            ScriptName::Convert => &["convert"],
            ScriptName::Quantize => &["quantize"],
            ScriptName::Generate => &["generate"],
            ScriptName::Mmlu => &["eval", "mmlu"],
            ScriptName::Export => &["export"],
        };
        let typed: Vec<String> =
            ["longshore"].iter().chain(command).map(ToString::to_string).chain(flags.iter().cloned()).collect();
        let (_, given) = cli::parse_from(&typed).map_err(Failure::Clap)?;
        let defaults = line(script, own.get(1).map(String::as_str), &given, env)?;
        let (mut cli, _) = cli::parse_from(typed.into_iter().chain(defaults)).map_err(Failure::Clap)?;
        extra_args::apply(&mut cli, &|id| given.has(id), env)?;
        let destination = destination(&cli, env)?;
        Ok(Self { script, label, surplus: surplus.to_vec(), cli, destination })
    }

    /// What ranks agree on, and where they can.
    fn subject(&self) -> ranks::Subject {
        let name = format!("{:?} {} {:?}", self.script, self.label, self.destination);
        ranks::Subject { name, beside: self.destination.clone() }
    }

    /// Runs the command for all ranks, one process at a time for each destination.
    fn lead(&self, leader: Option<Leader>, env: &Env, report: &Report) -> Result<u8> {
        let result = self.run(env, report);
        let status = match &result {
            Ok(Answer::Yes) => 0,
            Err(error) if error::is_broken_pipe(error) => 0,
            Ok(Answer::No) | Err(_) => 1,
        };
        if let Some(leader) = leader {
            leader.tell(status)?;
        }
        result.or_else(|error| if status == 0 { Ok(Answer::Yes) } else { Err(error) })?;
        Ok(status)
    }

    fn run(&self, env: &Env, report: &Report) -> Result<Answer> {
        let _lock = self.destination.as_deref().map(|path| ranks::lock(path, report)).transpose()?;
        self.warn(env, report)?;
        commands::run(&self.cli.command, env, report)
    }

    /// What is odd about the call and no reason to stop.
    fn warn(&self, env: &Env, report: &Report) -> Result<()> {
        let extra = Extra::of(env, job(self.script))?;
        if !self.surplus.is_empty() {
            report.note("Ignored", &format!("{}: the script takes no such argument", self.surplus.join(" ")));
        }
        if extra.spec.is_some() && extra.norms == Some(NormKeys::Fused) {
            report.note("Note", "the Transformer-Engine spec wins over `--export-te-mcore-model`");
        }
        let source = ["MLM_MODEL_CKPT", "HF_MODEL_CKPT"].into_iter().find_map(|name| env.path(name));
        let source = source.and_then(|path| locate::checkpoint(&path, env).ok());
        // What cannot be opened is the command's to tell.
        if let Some(source) = source.and_then(|folder| Source::open(&folder, None, true).ok())
            && let Some(what) = known::contradiction(&self.label, &source.model.config)
        {
            report.note("Warning", &what);
        }
        Ok(())
    }
}

fn job(script: ScriptName) -> Job {
    match script {
        ScriptName::Convert => Job::Convert,
        ScriptName::Quantize => Job::Quantize,
        ScriptName::Generate => Job::Generate,
        ScriptName::Mmlu => Job::Mmlu,
        ScriptName::Export => Job::Export,
    }
}

/// Gives variables a value that a script or the config of its model would give them.
fn complete(env: &mut Env, script: ScriptName, label: &str) -> Result<(), UsageError> {
    env.set("MLM_MODEL_CFG", label);
    if !env.has("MLM_WORK_DIR") {
        env.set("MLM_WORK_DIR", WORK_DIR);
    }
    if !env.has("HF_MODEL_CKPT") {
        // The configs name the repository, which is a source, or the base of a Megatron checkpoint if it is here at all.
        let is_source = script != ScriptName::Export && !env.has("MLM_MODEL_CKPT");
        if is_source || locate::checkpoint(Path::new(label), env).is_ok() {
            env.set("HF_MODEL_CKPT", label);
        }
    }
    if script == ScriptName::Generate
        && let Some(length) = env.text("DRAFT_LEN")?.filter(|&length| length != "0")
    {
        let (name, value) = ("$DRAFT_LEN".to_owned(), length.to_owned());
        return Err(UsageError::Value { name, value, expected: "0: speculative decoding is not supported" });
    }
    Ok(())
}

/// The script's defaults as flags, without those that the command line or `MLM_EXTRA_ARGS` has.
fn line(script: ScriptName, quant_cfg: Option<&str>, given: &Given, env: &Env) -> Result<Vec<String>> {
    let extra = Extra::of(env, job(script))?;
    let mut line = Vec::new();
    let mut add = |id: &str, words: &[&str]| {
        if !given.has(id) {
            line.extend(words.iter().map(ToString::to_string));
        }
    };
    let from_megatron = env.has("MLM_MODEL_CKPT");
    // The local spec with fused names is what `--export-te-mcore-model`, the scripts' default, means.
    let local = |line: &mut dyn FnMut(&str, &[&str])| {
        if extra.spec.is_none() && !given.has("full_te_spec") && !given.has("spec") {
            line("spec", &["--spec", "local"]);
            if extra.norms.is_none() && !given.has("export_te_mcore_model") {
                line("norms", &["--norms", "fused"]);
            }
        }
    };
    match script {
        ScriptName::Convert => {
            add("to", &["--to", "torch_dist"]);
            add("force", &["--force"]);
            // Ranks that do not exist need no model that can be cut for them.
            add("lower_layout", &["--lower-layout"]);
            local(&mut add);
            if extra.dtype.is_none() {
                add("dtype", &["--dtype", "bf16"]);
            }
        }
        ScriptName::Quantize => {
            let config = match quant_cfg {
                Some(config) => config,
                None => env.text("QUANT_CFG")?.unwrap_or(QUANT_CFG),
            };
            if ["auto", "AUTO", "auto_quantize"].contains(&config) {
                let value = config.to_owned();
                let expected = "a config or a recipe: AutoQuantize is not supported";
                return Err(UsageError::Value { name: "QUANT_CFG".to_owned(), value, expected }.into());
            }
            add("quant_cfg", &["--quant-cfg", config]);
            add("calib_size", &["--calib-size", CALIB_SIZE]);
            add("calib_seq", &["--calib-seq", CALIB_SEQ]);
            add("force", &["--force"]);
            add("lower_layout", &["--lower-layout"]);
            add("reference_output", &["--reference-output"]);
            // The layout of a Megatron source is read from its keys.
            if !from_megatron {
                local(&mut add);
            }
            let skips = given.has("skip_generate") || extra.has_skip_generate();
            for (variable, id, flag) in
                [("MLM_PROMPTS", "prompts", "--prompts"), ("MLM_REF_LABEL", "references", "--references")]
            {
                if let Some(text) = env.text(variable)?.filter(|_| !skips) {
                    add(id, &[flag, text]);
                }
            }
        }
        ScriptName::Generate => {
            add("reference_output", &["--reference-output"]);
            match env.text("PROMPTS_PATH")? {
                Some(path) => add("prompt_file", &["--prompt-file", path]),
                None if given.has("prompt_file") || given.has("prompt_ids") => {}
                None => {
                    if has_template(env) {
                        add("chat", &["--chat"]);
                    }
                    // Behind the checkpoint, which a variable names.
                    add("prompt", &["--text", CONVERSATION]);
                }
            }
        }
        ScriptName::Mmlu => add("style", &["--style", "modelopt-exact"]),
        ScriptName::Export => add("force", &["--force"]),
    }
    Ok(line)
}

/// Whether conversations can be written for the model; where nothing can be opened the command says why.
fn has_template(env: &Env) -> bool {
    let Ok(checkpoint) = options::path(None, env, &["MLM_MODEL_CKPT", "HF_MODEL_CKPT"], "CKPT") else { return true };
    let quiet = Report::new(&cli::Global::default(), env).quietly();
    let Ok(engine) = crate::engine::with_tokenizer(&EngineArgs::default(), &checkpoint, env, &quiet) else {
        return true;
    };
    Opened::new(&checkpoint.value, &engine, env, &quiet).is_ok_and(|opened| opened.template().is_ok())
}

/// Where the command writes a checkpoint.
fn destination(cli: &Cli, env: &Env) -> Result<Option<PathBuf>, UsageError> {
    Ok(match &cli.command {
        cli::Command::Convert(args) => Some(options::convert_paths(args, env)?[1].value.clone()),
        cli::Command::Quantize(args) => Some(options::quantize_paths(args, env)?[1].value.clone()),
        cli::Command::Export(args) => Some(options::export_paths(args, env)?[1].value.clone()),
        _ => None,
    })
}
