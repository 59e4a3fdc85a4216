//! Flags of `eval`.

use super::run::{EngineArgs, SaveArgs};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `eval`.
#[derive(Clone, Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    pub(crate) task: EvalTask,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum EvalTask {
    /// Answer MMLU's questions by the logits of the four letters
    Mmlu(MmluArgs),
    /// Perplexity of a text or of token ids
    Ppl(PplArgs),
    /// How far the distributions of two checkpoints are apart on a text, and which questions they answer differently
    Kl(KlArgs),
    /// Set saved runs side by side
    Compare(CompareArgs),
}

/// A server that scores in the engine's place.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Endpoint")]
pub(crate) struct EndpointArgs {
    /// Ask a server with OpenAI's completions, e.g. http://host:8000/v1, instead of running the checkpoint; the engine's flags
    /// do not go with it, but for --scratch, where answers are saved
    #[arg(long, value_name = "URL")]
    #[arg(conflicts_with_all = ["precision", "threads", "memory", "base", "dt_min", "batch_tokens", "weights"])]
    #[arg(conflicts_with_all = ["allow_unmapped", "save_every"])]
    pub(crate) endpoint: Option<String>,
    /// The model, as the server names it [default: the only one that it lists]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Requests at a time [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) concurrency: Option<u16>,
    /// Further tries after one that failed for the moment, with growing waits between them [default: 5]
    #[arg(long, value_name = "N")]
    pub(crate) retries: Option<u32>,
    /// Seconds for one try [default: 120]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
    /// Variable with the key for the server [default: OPENAI_API_KEY, where it is set]
    #[arg(long, value_name = "NAME")]
    pub(crate) api_key_env: Option<String>,
}

impl EndpointArgs {
    /// The flags that say nothing without an endpoint. (clap's `requires` forgets them beside a flag that conflicts with it.)
    pub(crate) fn given(&self) -> Vec<&'static str> {
        let all = [
            ("--model", self.model.is_some()),
            ("--concurrency", self.concurrency.is_some()),
            ("--retries", self.retries.is_some()),
            ("--timeout", self.timeout.is_some()),
            ("--api-key-env", self.api_key_env.is_some()),
        ];
        all.into_iter().filter(|&(_, given)| given).map(|(name, _)| name).collect()
    }
}

#[derive(Clone, Debug, Args)]
#[command(mut_arg("tokenizer", |arg| arg.conflicts_with("endpoint")))]
pub(crate) struct MmluArgs {
    /// Checkpoint: a folder, or `org/name` from the Hugging Face cache [env: MLM_MODEL_CKPT, else HF_MODEL_CKPT]
    #[arg(value_name = "CKPT", conflicts_with = "endpoint")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// The data set: a folder with JSON lines, CSV or parquet files as published, a file of JSON lines with the test questions, or
    /// `org/name` from the Hugging Face cache; `bundled` stands for a few easy questions of our own [env: MMLU_DATASET,
    /// default: cais/mmlu]
    #[arg(long, value_name = "DIR", visible_alias = "mmlu-dataset")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// At most so many questions in all, after the fraction
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Exit with status 1 unless the accuracy is above X
    #[arg(long, value_name = "X")]
    pub(crate) lower_bound: Option<f64>,
    /// Write a JSON line for every question
    #[arg(long, value_name = "FILE")]
    pub(crate) per_question: Option<PathBuf>,
    /// Write the prompts' token ids, a JSON line for every question
    #[arg(long, value_name = "FILE", conflicts_with = "endpoint")]
    pub(crate) save_prompts: Option<PathBuf>,
    /// Print what will run and how long it will take, at the rate of one batch through one layer of each kind
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Compute what prompts have in common anew for each: the same answers, later
    #[arg(long)]
    pub(crate) no_prefix_reuse: bool,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Ask for so many of the most likely tokens, less where the server refuses that [default: 20]
    #[arg(long, value_name = "N", help_heading = "Endpoint", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) top_logprobs: Option<u32>,
    #[command(flatten)]
    pub(crate) pass: PassArgs,
}

/// Which questions are asked in which words.
#[derive(Clone, Debug, PartialEq, Args)]
pub(crate) struct AskArgs {
    /// Whose prompts: lm-eval, modelopt, or modelopt-exact, with ModelOpt's missing line ends
    #[arg(long, value_name = "STYLE", default_value = "lm-eval")]
    pub(crate) style: String,
    /// Examples before each question, from the dev questions of its subject
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) few_shots: usize,
    /// Of each subject only the first questions, so much of all
    #[arg(long, value_name = "F", default_value = "1")]
    pub(crate) fraction: f64,
    /// Only subjects that match, e.g. `*_law`; can be repeated
    #[arg(long, value_name = "GLOB")]
    pub(crate) subjects: Vec<String>,
}

impl AskArgs {
    /// Whether any of the flags was given another value than its default.
    pub(crate) fn is_given(&self) -> bool {
        let Self { style, few_shots, fraction, subjects } = self;
        style != "lm-eval" || *few_shots > 0 || *fraction != 1.0 || !subjects.is_empty()
    }
}

/// What every task takes that runs models.
#[derive(Clone, Debug, Args)]
pub(crate) struct PassArgs {
    #[command(flatten)]
    pub(crate) keep: KeepArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) save: SaveArgs,
}

/// What is kept of a run.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeepArgs {
    /// Write the report as JSON, with what `eval compare` needs: every question, or the sums of every window
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Leave out the hash of the weights, which --report and --json take by reading the checkpoint once
    #[arg(long)]
    pub(crate) no_weights_hash: bool,
}

/// How a text becomes windows.
#[derive(Clone, Debug, Args)]
pub(crate) struct WindowArgs {
    /// A text, or JSON lines of token ids, `{"input_ids": [...]}`; also with .gz
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value = "2048")]
    pub(crate) ctx: usize,
    /// Begin a window every N tokens and score what no window before it has [default: windows side by side, each scored
    /// but for its first token, the text's remainder dropped; lines of ids are scored whole]
    #[arg(long, value_name = "N")]
    pub(crate) stride: Option<usize>,
    /// Cut as llama.cpp's `perplexity` does: side by side, the second halves scored
    #[arg(long, conflicts_with = "stride")]
    pub(crate) llama_cpp: bool,
    /// At most so many windows
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Print what will run and how long it will take, at the rate of one batch through one layer of each kind
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct PplArgs {
    /// Checkpoint: a folder, or `org/name` from the Hugging Face cache [env: MLM_MODEL_CKPT, else HF_MODEL_CKPT]; with --endpoint
    /// its tokenizer alone is used
    #[arg(value_name = "CKPT")]
    pub(crate) checkpoint: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) windows: WindowArgs,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    #[command(flatten)]
    pub(crate) pass: PassArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct KlArgs {
    /// The reference: a folder, or `org/name` from the Hugging Face cache
    pub(crate) a: PathBuf,
    /// What is compared with it
    pub(crate) b: PathBuf,
    #[command(flatten)]
    pub(crate) windows: WindowArgs,
    /// Ask both MMLU's questions in the same pass: a data set as for `eval mmlu`, or `bundled`
    #[arg(long, value_name = "DIR")]
    pub(crate) mmlu: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// At most so many questions in all, after the fraction
    #[arg(long, value_name = "N", requires = "mmlu")]
    pub(crate) limit_questions: Option<usize>,
    #[command(flatten)]
    pub(crate) pass: PassArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CompareArgs {
    /// What --report or --per-question wrote; the others are compared with the first
    #[arg(value_name = "RUN", required = true, num_args = 2..)]
    pub(crate) runs: Vec<PathBuf>,
    /// Questions to show that are answered right by one run and wrong by the other
    #[arg(long, value_name = "N", default_value = "10")]
    pub(crate) flips: usize,
    /// Write a page that any browser opens
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}
