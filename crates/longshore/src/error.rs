//! What is wrong with a command line or its environment, before or apart from the library.

use std::path::PathBuf;

/// A mistake in how the program was called. Advice is in [`crate::hint`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    /// Neither the argument nor its variable is there.
    #[error("{argument} is given neither as an argument nor as `${variable}`")]
    Absent { argument: &'static str, variable: &'static str },
    /// No folder, and no name of a repository either.
    #[error("`{}`: no such folder", path.display())]
    NoFolder { path: PathBuf },
    /// A repository id that the Hugging Face cache does not hold.
    #[error("`{repo}` is neither a folder nor in the Hugging Face cache{}", in_cache(.cache.as_ref()))]
    NotCached { repo: String, cache: Option<PathBuf> },
    /// A data set that is nowhere.
    #[error("the data set `{repo}` is neither a folder nor in the Hugging Face cache{}", in_cache(.cache.as_ref()))]
    NoDataset { repo: String, cache: Option<PathBuf> },
    /// A variable with a value that cannot be used.
    #[error("`{name}` is `{value}`: expected {expected}")]
    Value { name: String, value: String, expected: &'static str },
    /// Everything that is wrong with `MLM_EXTRA_ARGS`.
    #[error("in `$MLM_EXTRA_ARGS`:\n  {}", problems.join("\n  "))]
    ExtraArgs { problems: Vec<String> },
    /// Flags that say nothing about the output that is asked for.
    #[error("{} {} no effect on {output} output", options.join(", "), if options.len() == 1 { "has" } else { "have" })]
    NoEffect { options: Vec<String>, output: &'static str },
    /// A script without its first argument.
    #[error("the first argument names the model, e.g. nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")]
    NoLabel,
    /// A rank of a launcher that cannot learn from rank 0 how it ended.
    #[error("rank {rank}: {what} (`{}`)", board.display())]
    Ranks { rank: u64, board: PathBuf, what: &'static str },
    /// A conversion from a format to itself.
    #[error("`{}` is {format} already; rewriting {format} as {format} is not supported", path.display())]
    SameFormat { path: PathBuf, format: &'static str },
    /// No tensor was compared, which proves nothing.
    #[error("no tensor to compare{}", matching(.glob.as_ref()))]
    NothingCompared { glob: Option<String> },
    /// An architecture that is not in the registry.
    #[error("architecture `{name}` is not known")]
    NoArchitecture { name: String, nearest: Option<&'static str> },
    /// The demo's model is not where the repository keeps it.
    #[error("the bundled model `models/{name}` was not found")]
    NoDemoModel { name: &'static str },
    /// A safetensors folder holds no pickle to show.
    #[error("`{}` is safetensors; `--raw` shows the pickle of a torch_dist checkpoint", path.display())]
    NoPickle { path: PathBuf },
    /// As many references as texts are expected.
    #[error("`--references` has {references} texts for {texts} generated ones")]
    References { texts: usize, references: usize },
    /// No prompt by any way.
    #[error("no prompt: expected an argument, --prompt-ids, --prompt-file or text on standard input")]
    NoPrompt,
    /// A file without a line that is not blank.
    #[error("`{}` holds no prompt", path.display())]
    EmptyFile { path: PathBuf },
    /// A line of a file that should hold JSON.
    #[error("column {column}: not JSON: {what}")]
    NotJson { column: usize, what: String },
    /// A prompt file that is not UTF-8.
    #[error("`{}` is not UTF-8 text", path.display())]
    NotText { path: PathBuf },
    /// Text meets a model without tokenizer.
    #[error("there is no `tokenizer.json` in `{}`", path.display())]
    NoTokenizer { path: PathBuf },
    /// A tokenizer with more tokens than the model.
    #[error("the tokenizer in `{}` has {tokens} tokens, the model {vocab}", path.display())]
    TokenizerSize { path: PathBuf, tokens: u64, vocab: u64 },
    /// A text to be cut into windows, which are counted in tokens, and no tokenizer.
    #[error("`{}` is a text; there is no tokenizer to cut it into windows with", path.display())]
    NoTokenizerForText { path: PathBuf },
    /// Flags about a server, and no server.
    #[error("{} {} no effect without --endpoint", options.join(", "), if options.len() == 1 { "has" } else { "have" })]
    NoEndpoint { options: Vec<&'static str> },
    /// A variable that should hold a key.
    #[error("`${variable}` {what}")]
    Key { variable: String, what: &'static str },
    /// A server with no model, or a choice of them.
    #[error("`{url}` lists {}", listed(.models))]
    Models { url: String, models: Vec<String> },
    /// Files that are no saved runs.
    #[error("{}", problems.join("\n"))]
    NoRuns { problems: Vec<String> },
    /// Saved runs that are not of the same questions or windows.
    #[error("the runs cannot be compared with the first:\n  {}", problems.join("\n  "))]
    NotComparable { problems: Vec<String> },
    /// Flags about questions where none are asked.
    #[error("`--style`, `--few-shots`, `--fraction` and `--subjects` are about questions, and `--mmlu` names none")]
    NoQuestions,
    /// Two models whose distributions are over different tokens.
    #[error("the vocabularies have {a} and {b} rows, padding not counted")]
    Vocabularies { a: usize, b: usize },
    /// A field of the config that an option asks for.
    #[error("the config does not say `{field}`")]
    NotInConfig { field: &'static str },
}

fn in_cache(cache: Option<&PathBuf>) -> String {
    cache.map(|path| format!(" (`{}`)", path.display())).unwrap_or_default()
}

fn matching(glob: Option<&String>) -> String {
    glob.map(|glob| format!(": none matches `{glob}`")).unwrap_or_default()
}

/// Names of models, as many as fit a message.
fn listed(models: &[String]) -> String {
    const SHOWN: usize = 20;
    if models.is_empty() {
        return "no model".to_owned();
    }
    let more = if models.len() > SHOWN { ", …" } else { "" };
    let shown: Vec<String> = models.iter().take(SHOWN).map(|name| name.chars().take(100).collect()).collect();
    format!("{} models: {}{more}", models.len(), shown.join(", "))
}

/// A server's failure after some answers.
#[derive(Debug, thiserror::Error)]
#[error("{error}; {saved} of {all} answers are saved")]
pub(crate) struct Unanswered {
    pub(crate) error: longshore_endpoint::Error,
    pub(crate) saved: usize,
    pub(crate) all: usize,
}

/// Whether the reader of stdout went away.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Whether the user stopped the run.
pub(crate) fn is_interrupt(error: &anyhow::Error) -> bool {
    use longshore_convert::Error;
    matches!(error.downcast_ref(), Some(Error::Interrupted { .. } | Error::Stopped))
}
