//! Flags and arguments as the user typed them. [`crate::options`] gives them meaning.
//!
//! Variables are not read by clap: an empty one must count as unset (as `${TP:-1}` does in the scripts), its origin is
//! reported, and `--help` must not depend on the environment. The help names them.

pub(crate) mod calibration;
pub(crate) mod cut;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod launch;
pub(crate) mod quantize;
pub(crate) mod run;
pub(crate) mod script;

use crate::{extra_args, units};
use clap::{ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Convert, verify and run checkpoints of Hugging Face and Megatron-Core
#[derive(Debug, Parser)]
#[command(name = "longshore", version, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "`longshore help env` lists the environment variables and what MLM_EXTRA_ARGS may hold.\n\
    Exit status: 0 done, equal or valid; 1 different, invalid or unsound; 2 error; 130 interrupted.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// What every command takes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Global {
    /// Say more: rules, files, settings that were ignored; in a dry run every tensor
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Write one JSON object to stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to colour
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN", hide_possible_values = true)]
    #[arg(help = "When to colour: auto, always or never")]
    pub(crate) color: Color,
    /// Show no progress
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Convert a checkpoint between Hugging Face safetensors and Megatron torch_dist
    Convert(ConvertArgs),
    /// `convert` to torch_dist
    #[command(hide = true)]
    Import(ConvertArgs),
    /// `convert --dry-run`
    #[command(hide = true)]
    Plan(ConvertArgs),
    /// Quantize a checkpoint of either format
    Quantize(Box<quantize::QuantizeArgs>),
    /// Write a Hugging Face folder from a Megatron checkpoint, its quantizers included
    Export(ExportArgs),
    /// Make a smaller model of the same format: some of the layers, some of the experts
    Cut(Box<cut::CutArgs>),
    /// Complete prompts with the model of a checkpoint
    Generate(Box<run::GenerateArgs>),
    /// Compare the logits of two checkpoints, or of two precisions
    Logits(Box<run::LogitsArgs>),
    /// Score a checkpoint: MMLU, perplexity, or its divergence from another
    Eval(Box<eval::EvalArgs>),
    /// Show format, config and tensors of a checkpoint
    Inspect(InspectArgs),
    /// Print the Megatron arguments of a checkpoint
    Args(launch::ArgumentsArgs),
    /// Show which parallel layouts can load a checkpoint on given GPUs, and the bytes per rank
    Fit(launch::FitArgs),
    /// Say what vLLM, SGLang or TensorRT-LLM would reject in a quantized Hugging Face folder
    Lint(LintArgs),
    /// Check a checkpoint's integrity, or that it equals its source
    Verify(VerifyArgs),
    /// Compare two checkpoints, also across formats
    Diff(DiffArgs),
    /// Find what in the weights makes a model answer at chance
    Doctor(doctor::DoctorArgs),
    /// Show the supported architectures and their tables
    Arch(ArchArgs),
    /// Convert the bundled model there and back, generate from it, and prove that it is the same
    Demo(DemoArgs),
    /// What `scripts/*.sh` run: the job of one of Megatron-LM's post-training scripts
    #[command(hide = true)]
    Script(script::ScriptArgs),
    /// The environment variables and what MLM_EXTRA_ARGS may hold
    #[command(hide = true, name = "env", help_template = "{about}")]
    Env,
}

impl Command {
    /// The name in reports; an alias has the name of what it does.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Convert(_) | Self::Import(_) | Self::Plan(_) => "convert",
            Self::Quantize(_) => "quantize",
            Self::Export(_) => "export",
            Self::Cut(_) => "cut",
            Self::Generate(_) => "generate",
            Self::Logits(_) => "logits",
            Self::Eval(_) => "eval",
            Self::Inspect(_) => "inspect",
            Self::Args(_) => "args",
            Self::Fit(_) => "fit",
            Self::Lint(_) => "lint",
            Self::Verify(_) => "verify",
            Self::Diff(_) => "diff",
            Self::Doctor(_) => "doctor",
            Self::Arch(_) => "arch",
            Self::Demo(_) => "demo",
            Self::Script(_) => "script",
            Self::Env => "env",
        }
    }
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ConvertArgs {
    /// Checkpoint to read: a folder, or `org/name` from the Hugging Face cache [env: MLM_MODEL_CKPT, else HF_MODEL_CKPT]
    #[arg(value_name = "SRC")]
    pub(crate) source: Option<PathBuf>,
    /// Folder to write, absent or empty [env: MLM_MODEL_SAVE]
    #[arg(value_name = "DST")]
    pub(crate) destination: Option<PathBuf>,
    /// Format to write: hf (safetensors) or torch_dist [default: the other one than SRC]
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) to: Option<Target>,
    /// Store packed weights (FP8, NVFP4, MX, INT4, INT8) as the values that they stand for
    #[arg(long)]
    pub(crate) dequantize: bool,
    #[command(flatten)]
    pub(crate) megatron: MegatronArgs,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ExportArgs {
    /// Reproduce known defects of the reference's export of quantized checkpoints: `modelopt`
    #[arg(long, value_enum, value_name = "PROGRAM", hide_possible_values = true)]
    pub(crate) compat: Option<quantize::Compat>,
    /// Megatron checkpoint to read: its root, or one of its release/iter_* folders [env: MLM_MODEL_CKPT]
    #[arg(value_name = "SRC")]
    pub(crate) source: Option<PathBuf>,
    /// Folder to write, absent or empty [env: EXPORT_DIR]
    #[arg(value_name = "DST")]
    pub(crate) destination: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
}

/// Format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    Hf,
    #[value(name = "torch_dist")]
    TorchDist,
}

/// What only a Megatron output has.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Megatron output")]
pub(crate) struct MegatronArgs {
    /// Module layout: te (full Transformer Engine) or local (ModelOpt) [default: te]
    #[arg(long, value_enum, value_name = "SPEC", hide_possible_values = true)]
    pub(crate) spec: Option<Spec>,
    /// The same as `--spec te`
    #[arg(long, alias = "export-default-te-spec", hide = true, conflicts_with = "spec")]
    pub(crate) full_te_spec: bool,
    /// Where pre-norms live: fused (into the next linear) or separate [default: fused for te, separate for local]
    #[arg(long, value_enum, value_name = "WHERE", hide_possible_values = true)]
    pub(crate) norms: Option<Norms>,
    /// The same as `--norms fused`
    #[arg(long, hide = true, conflicts_with = "norms")]
    pub(crate) export_te_mcore_model: bool,
    /// Tensor parallel size: cuts the tensors; any layout can load the result [env: TP] [default: 1]
    #[arg(long, value_name = "N", value_parser = positive(), aliases = ["tensor-model-parallel-size", "tp-size", "tp_size"])]
    pub(crate) tp: Option<u64>,
    /// Pipeline parallel size, stored in the arguments; groups files [env: PP] [default: 1]
    #[arg(long, value_name = "N", value_parser = positive(), aliases = ["pipeline-model-parallel-size", "pp-size", "pp_size"])]
    pub(crate) pp: Option<u64>,
    /// Expert parallel size, stored in the arguments; groups files [env: EP] [default: 1]
    #[arg(long, value_name = "N", value_parser = positive(), aliases = ["expert-model-parallel-size", "ep-size", "ep_size"])]
    pub(crate) ep: Option<u64>,
    /// Expert tensor parallel size, stored in the arguments [env: ETP] [default: the tensor parallel size]
    #[arg(long, value_name = "N", value_parser = positive(), aliases = ["expert-tensor-parallel-size", "etp-size", "etp_size"])]
    pub(crate) etp: Option<u64>,
    /// Lower sizes that the model's heads, groups or experts do not allow to the largest that they do, each with a warning
    #[arg(long)]
    pub(crate) lower_layout: bool,
    /// Pad the vocabulary with zero rows to a multiple of N times TP [default: no padding]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) make_vocab_size_divisible_by: Option<u64>,
    /// Write iter_N instead of release
    #[arg(long, value_name = "N")]
    pub(crate) iteration: Option<u64>,
    /// Megatron-Core version that will load it; 0.12 to 0.14 ask for extra states of the attention core
    #[arg(long, value_name = "VERSION")]
    pub(crate) mcore: Option<String>,
}

/// What every writing command takes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Writing")]
pub(crate) struct WriteArgs {
    /// Hugging Face folder that supplies config, tokenizer and other files [export: env HF_MODEL_CKPT]
    #[arg(long, value_name = "DIR")]
    pub(crate) base: Option<PathBuf>,
    /// Element type: keep, bf16, fp16 or fp32; parameters that must stay float32 do [default: keep]
    #[arg(long, value_enum, value_name = "TYPE", hide_possible_values = true)]
    pub(crate) dtype: Option<DtypeName>,
    #[command(flatten)]
    pub(crate) prediction: MtpArgs,
    /// Rows of the vocabulary of a Hugging Face output, where a padded checkpoint does not say
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) vocab_size: Option<u64>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// How a result is written, whatever it is.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct OutputArgs {
    /// Largest data file, e.g. 5GB or 4GiB [default: 5GB for safetensors, by the model's size for torch_dist]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    pub(crate) max_file_size: Option<u64>,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Leave out tensors that the architecture does not name; each is reported
    #[arg(long)]
    pub(crate) allow_unmapped: bool,
    /// Replace what the destination holds, once the new is complete
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the plan and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What becomes of multi-token prediction.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct MtpArgs {
    /// Multi-token prediction: keep (as the source has it) or drop [default: keep]
    #[arg(long, value_enum, value_name = "WHAT", hide_possible_values = true)]
    pub(crate) mtp: Option<MtpArg>,
    /// Copy the MTP tensors of --base, for a Megatron checkpoint without them
    #[arg(long, conflicts_with = "mtp")]
    pub(crate) mtp_from_base: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MtpArg {
    Keep,
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Spec {
    Te,
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Norms {
    Fused,
    Separate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeName {
    Keep,
    Bf16,
    Fp16,
    Fp32,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Checkpoint: a folder, or `org/name` from the Hugging Face cache
    #[arg(value_name = "CKPT")]
    pub(crate) checkpoint: PathBuf,
    /// Show only tensors whose whole name matches; `*` is any text, `?` one character
    pub(crate) glob: Option<String>,
    /// List the data files instead of the tensors
    #[arg(long)]
    pub(crate) files: bool,
    /// Show the modules of the model as Megatron builds it, with its classes; layers that are alike once
    #[arg(long, conflicts_with_all = ["files", "glob", "raw"])]
    pub(crate) structure: bool,
    /// Show the pickle of the common state as text; nothing in it is executed
    #[arg(long, conflicts_with_all = ["files", "glob", "json"])]
    pub(crate) raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LintArgs {
    /// Quantized checkpoint: a Hugging Face folder, or `org/name` from the Hugging Face cache
    #[arg(value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Checkpoint: a folder, or `org/name` from the Hugging Face cache
    #[arg(value_name = "CKPT")]
    pub(crate) checkpoint: PathBuf,
    /// Prove that every element equals this checkpoint's, in either format
    #[arg(long, value_name = "SRC")]
    pub(crate) against: Option<PathBuf>,
    /// Check structure, coverage and lengths, but read no data
    #[arg(long)]
    pub(crate) quick: bool,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// One checkpoint
    pub(crate) a: PathBuf,
    /// The other
    pub(crate) b: PathBuf,
    /// Compare only tensors whose whole name matches; `*` is any text, `?` one character
    pub(crate) glob: Option<String>,
    /// `bits` for identical elements, or the largest relative difference that counts as equal, e.g. 1e-3
    #[arg(long, default_value = "bits", value_name = "bits|REL", value_parser = parse_tolerance)]
    pub(crate) tolerance: Tolerance,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
}

/// The value of `diff --tolerance`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tolerance {
    Bits,
    Relative(f64),
}

fn parse_tolerance(text: &str) -> Result<Tolerance, &'static str> {
    if text == "bits" {
        return Ok(Tolerance::Bits);
    }
    let relative = text.parse().ok().filter(|r: &f64| r.is_finite() && *r >= 0.0);
    relative.map(Tolerance::Relative).ok_or("expected `bits` or a number such as 1e-3")
}

#[derive(Debug, Args)]
pub(crate) struct ArchArgs {
    #[command(subcommand)]
    pub(crate) what: ArchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ArchCommand {
    /// The supported architectures
    List,
    /// What one architecture is
    Show { name: String },
    /// The table that conversions of an architecture use
    Rules { name: String },
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Keep the checkpoints in this folder, absent or empty [default: a temporary folder, removed at the end]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
}

fn positive() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..)
}

/// The command line as clap knows it, with the generated help of `env`.
fn command() -> clap::Command {
    Cli::command().mut_subcommand("env", |env| env.about(extra_args::help()))
}

/// The ids of the arguments that a command line has, of the command itself.
pub(crate) struct Given(ArgMatches);

impl Given {
    pub(crate) fn has(&self, id: &str) -> bool {
        let is_there = |m: &ArgMatches| {
            m.try_contains_id(id).is_ok() && m.value_source(id) == Some(clap::parser::ValueSource::CommandLine)
        };
        let mut matches = &self.0;
        loop {
            if is_there(matches) {
                return true;
            }
            match matches.subcommand() {
                Some((_, inner)) => matches = inner,
                None => return false,
            }
        }
    }
}

/// Parses the process's arguments; on a mistake, `--help` or `--version` prints and ends the process.
pub(crate) fn parse() -> (Cli, Given) {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Parses a command line, the program's name first.
pub(crate) fn parse_from<T: Into<OsString> + Clone>(
    line: impl IntoIterator<Item = T>,
) -> Result<(Cli, Given), clap::Error> {
    let matches = command().try_get_matches_from(line)?;
    Ok((Cli::from_arg_matches(&matches)?, Given(matches)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn clap_finds_no_fault_in_the_definition() {
        super::command().debug_assert();
    }
}
