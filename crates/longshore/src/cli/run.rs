//! Flags of the commands that run models.

use crate::units;
use clap::{ArgGroup, Args, ValueEnum};
use std::path::PathBuf;

/// What every command that runs a model takes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Arithmetic: f32 (reference) or bf16 [default: f32 for float32 checkpoints, else bf16]
    #[arg(long, value_enum, value_name = "TYPE", hide_possible_values = true)]
    pub(crate) precision: Option<PrecisionName>,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Memory to use, e.g. 8G; layers that do not fit are read when needed [default: 80 % of what is free]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    pub(crate) memory: Option<u64>,
    /// Folder of activations that do not fit the memory [default: the temporary folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
    /// Folder with config.json, where the checkpoint has none or another is wanted
    #[arg(long, value_name = "DIR")]
    pub(crate) base: Option<PathBuf>,
    /// Folder with the tokenizer [default: that of the checkpoint]
    #[arg(long, value_name = "DIR")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Lower bound of a prompt's Mamba time steps: `config` or a number, as transformers has it [default: none]
    #[arg(long, value_name = "X", value_parser = parse_dt_min)]
    pub(crate) dt_min: Option<DtMin>,
    /// Tokens of prompts computed at a time
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch_tokens: u32,
    /// Weights of a quantized checkpoint: simulated (rounded to the element type as ModelOpt has them) or packed (codes stay in
    /// memory: smaller, faster to decode, as servers compute)
    #[arg(long, value_enum, value_name = "HOW", default_value = "simulated", hide_possible_values = true)]
    pub(crate) weights: QuantizedWeights,
    /// Run although the checkpoint holds tensors that the architecture does not name; each is reported
    #[arg(long)]
    pub(crate) allow_unmapped: bool,
}

/// What every command takes whose pass over a model goes on after an interruption.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct SaveArgs {
    /// Save after a layer, so many seconds after the last time; the same command goes on from there. 0: after every
    /// layer
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    pub(crate) save_every: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionName {
    #[value(alias = "fp32", alias = "float32")]
    F32,
    #[value(alias = "bfloat16")]
    Bf16,
}

/// How quantized weights are computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuantizedWeights {
    #[default]
    #[value(alias = "fake", alias = "reference")]
    Simulated,
    #[value(alias = "real")]
    Packed,
}

/// The value of `--dt-min`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DtMin {
    /// `time_step_min` of the config.
    Config,
    Value(f32),
}

fn parse_dt_min(text: &str) -> Result<DtMin, &'static str> {
    if text == "config" {
        return Ok(DtMin::Config);
    }
    let value = text.parse().ok().filter(|x: &f32| x.is_finite() && *x >= 0.0);
    value.map(DtMin::Value).ok_or("expected `config` or a number such as 0.001")
}

/// Where prompts come from.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Prompt")]
pub(crate) struct PromptArgs {
    /// Read the prompt from a file, without its last line end; `-` is standard input. `.jsonl`: one prompt or
    /// conversation a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_ids"], aliases = ["file", "prompts", "data", "prompts-path"])]
    pub(crate) prompt_file: Option<PathBuf>,
    /// The prompt in token ids, e.g. 1,17,42
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "chat"], value_parser = parse_ids)]
    pub(crate) prompt_ids: Option<Ids>,
    /// Send the prompt as a user's message, in the checkpoint's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// System message before it
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// A variable of the chat template, e.g. enable_thinking=false; the value is JSON, else text
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) template_var: Vec<(String, serde_json::Value)>,
    /// Tokenize prompts without the tokenizer's special tokens (templates bring their own)
    #[arg(long)]
    pub(crate) no_special_tokens: bool,
}

/// Token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ids(pub(crate) Vec<u32>);

fn parse_ids(text: &str) -> Result<Ids, String> {
    let ids = text.split([',', ' ']).filter(|part| !part.is_empty());
    let parse = |part: &str| part.parse().map_err(|_| format!("`{part}` is not a token id"));
    ids.map(parse).collect::<Result<Vec<u32>, String>>().map(Ids)
}

fn parse_variable(text: &str) -> Result<(String, serde_json::Value), &'static str> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let json = serde_json::from_str(value).unwrap_or_else(|_| serde_json::Value::String(value.to_owned()));
    Ok((name.to_owned(), json))
}

#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct GenerateArgs {
    /// Checkpoint: a folder, or `org/name` from the Hugging Face cache [env: MLM_MODEL_CKPT, else HF_MODEL_CKPT]
    #[arg(value_name = "CKPT")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// The prompt [default: standard input]
    pub(crate) prompt: Option<String>,
    /// The prompt, where a variable names the checkpoint
    #[arg(long, value_name = "TEXT", help_heading = "Prompt", conflicts_with_all = ["prompt", "prompt_file", "prompt_ids"])]
    pub(crate) text: Option<String>,
    #[command(flatten)]
    pub(crate) prompts: PromptArgs,
    /// New tokens at most
    #[arg(long, value_name = "N", default_value = "128", help_heading = "Generation")]
    #[arg(aliases = ["osl", "max-new-tokens", "max-tokens", "generate-output-len", "n-predict"])]
    pub(crate) max_new: u32,
    /// Go on after tokens that end a text
    #[arg(long, help_heading = "Generation")]
    pub(crate) ignore_eos: bool,
    /// 0 takes the most likely token
    #[arg(long, value_name = "X", default_value = "0", help_heading = "Generation")]
    pub(crate) temperature: f32,
    /// Draw from the N most likely tokens; 0: from all
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Generation")]
    pub(crate) top_k: u32,
    /// Draw from the fewest tokens whose probabilities sum to X
    #[arg(long, value_name = "X", default_value = "1", help_heading = "Generation")]
    pub(crate) top_p: f32,
    /// Draw from tokens with at least this share of the highest probability
    #[arg(long, value_name = "X", default_value = "0", help_heading = "Generation")]
    pub(crate) min_p: f32,
    /// Make tokens that occurred less likely, above 1
    #[arg(long, value_name = "X", default_value = "1", help_heading = "Generation")]
    pub(crate) repetition_penalty: f32,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", default_value = "0", help_heading = "Generation")]
    pub(crate) seed: u64,
    /// Report the N most likely tokens at every position (with --json)
    #[arg(long, value_name = "N", default_value = "0", requires = "json", help_heading = "Generation")]
    pub(crate) top_logprobs: u32,
    /// Guess ahead with the model's prediction layers and verify: the same tokens in fewer steps
    #[arg(long, help_heading = "Generation", conflicts_with_all = ["top_k", "top_p", "min_p", "temperature"])]
    #[arg(conflicts_with_all = ["repetition_penalty", "batch"])]
    pub(crate) mtp: bool,
    /// Prompts of a file to run at a time
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Generation")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) batch: u16,
    /// Show special tokens in the text
    #[arg(long, help_heading = "Generation")]
    pub(crate) show_special: bool,
    /// Print prompts too, as the model reads them, each before what it is completed to: the output of ModelOpt's generate.py
    #[arg(long, help_heading = "Generation", conflicts_with = "json")]
    pub(crate) reference_output: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("compared").args(["b", "precision_b"]).multiple(true)))]
pub(crate) struct LogitsArgs {
    /// One checkpoint: a folder, or `org/name` from the Hugging Face cache
    pub(crate) a: PathBuf,
    /// The other [default: A, where two precisions are compared]
    pub(crate) b: Option<PathBuf>,
    /// A prompt [default: three built-in prompts of 5, 23 and 40 token ids]
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub(crate) prompt: Option<String>,
    #[command(flatten)]
    pub(crate) prompts: PromptArgs,
    /// Compare the residual stream and the routing after every layer too
    #[arg(long, help_heading = "Comparison", requires = "compared")]
    pub(crate) per_layer: bool,
    /// Exit with status 1 where some logit differs by more than X standard deviations of A's logits
    #[arg(long, value_name = "X", help_heading = "Comparison", requires = "compared")]
    pub(crate) tolerance: Option<f32>,
    /// Write A's logits, residual stream and routing to a safetensors file
    #[arg(long, value_name = "FILE", help_heading = "Comparison")]
    pub(crate) save: Option<PathBuf>,
    /// Arithmetic of B [default: that of A]
    #[arg(long, value_enum, value_name = "TYPE", hide_possible_values = true, help_heading = "Comparison")]
    pub(crate) precision_b: Option<PrecisionName>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}
