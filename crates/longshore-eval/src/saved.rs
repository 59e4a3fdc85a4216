//! Runs as their reports hold them: what was scored how, question by question or window by window, so that two of them can
//! be compared with paired errors.

use crate::divergence;
use crate::mmlu::{self, Record};
use crate::perplexity::{self, Windowing};
use crate::{Error, Problems, Result};
use longshore_ckpt::fs;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::Path;

/// Largest file that is read: 14042 records take 4 MB.
const MAX_FILE: u64 = 256 << 20;
/// Tokens of a window at most, so that no sum overflows.
const MAX_TOKENS: usize = 1 << 32;

/// Where a run's figures come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// `longshore` and its version.
    pub program: String,
    /// What was scored; of a divergence the reference, then what is compared with it.
    pub checkpoints: Vec<Checkpoint>,
    /// What made tokens of text; `None` where token ids were given and there is none.
    pub tokenizer: Option<TokenizerFile>,
    /// The questions, where questions were asked.
    pub questions: Option<Asked>,
    /// The text, where a text was scored.
    pub text: Option<Scored>,
}

/// A checkpoint, and how it was computed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last component of its path.
    pub name: String,
    /// `safetensors` or `torch_dist`.
    pub format: String,
    /// The model's Hugging Face class.
    pub architecture: String,
    /// What its weights are; `None` where that was not asked for.
    pub weights: Option<Weights>,
    /// Arithmetic: `f32` or `bf16`.
    pub precision: String,
    /// Lower bound of a prompt's Mamba time steps, if any.
    pub dt_min: Option<f32>,
    /// How quantized weights were computed with, `simulated` or `packed`; `None` for a checkpoint without quantizers.
    pub quantized_weights: Option<String>,
}

/// What tells weights from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// SHA-256 over names, types, shapes and checksums of the stored tensors.
    pub sha256: String,
    /// Whether the checksums are those of the bytes (`data`) or those that a conversion noted (`manifest`).
    pub from: String,
}

/// A tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerFile {
    /// SHA-256 of `tokenizer.json`.
    pub sha256: String,
    /// The token that its own rules put before every text, if any.
    pub begin_of_text: Option<u32>,
}

/// Which questions were asked in which words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The last component of the data set's path.
    pub data: String,
    /// [`mmlu::Mmlu::sha256`] of the data set.
    pub data_sha256: String,
    /// The style's name.
    pub style: String,
    /// Examples before each question.
    pub few_shots: usize,
    /// The fraction of each subject.
    pub fraction: f64,
    /// The patterns of subjects; none is all.
    pub subjects: Vec<String>,
    /// Questions at most.
    pub limit: Option<usize>,
    /// What counts where several letters are the most likely: `first`.
    pub ties: String,
}

/// Which text was scored in which windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The last component of the file's path.
    pub data: String,
    /// SHA-256 of the file's bytes, uncompressed.
    pub data_sha256: String,
    /// [`windows_sha256`] of the windows.
    pub windows_sha256: String,
    /// How it was cut.
    pub windowing: Windowing,
    /// Windows at most.
    pub limit: Option<usize>,
}

/// The SHA-256, in hexadecimal, of a line for each window: `[[ids],[first scored,end]]`, JSON without blanks. Two runs with
/// the same windows have scored the same tokens, whatever file they came from.
pub fn windows_sha256<'a>(windows: impl Iterator<Item = (&'a [u32], &'a Range<usize>)>) -> String {
    let mut hash = Sha256::new();
    for (ids, scored) in windows {
        hash.update(format!("{}\n", serde_json::json!([ids, [scored.start, scored.end]])));
    }
    format!("{:x}", hash.finalize())
}

/// A saved run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Where its figures come from; a list of questions does not say.
    pub provenance: Option<Provenance>,
    /// What was found.
    pub outcome: Outcome,
}

/// What a run has found.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Answers.
    Mmlu(Vec<Record>),
    /// Likelihoods.
    Perplexity(Vec<perplexity::WindowSum>),
    /// Two checkpoints' distributions, and their answers where questions were asked too.
    Divergence(Vec<divergence::WindowSum>, Option<[Vec<Record>; 2]>),
}

impl Run {
    /// The questions that were asked, where that is known.
    pub(crate) fn asked(&self) -> Option<&Asked> {
        self.provenance.as_ref()?.questions.as_ref()
    }
}

impl Outcome {
    /// The task's name.
    pub fn task(&self) -> &'static str {
        match self {
            Self::Mmlu(_) => "mmlu",
            Self::Perplexity(_) => "ppl",
            Self::Divergence(..) => "kl",
        }
    }

    /// Tokens scored in each window; `None` where questions were asked.
    pub(crate) fn window_sizes(&self) -> Option<Vec<usize>> {
        match self {
            Self::Mmlu(_) => None,
            Self::Perplexity(windows) => Some(windows.iter().map(|w| w.tokens).collect()),
            Self::Divergence(windows, _) => Some(windows.iter().map(|w| w.positions).collect()),
        }
    }
}

/// What every report begins with.
#[derive(Deserialize)]
struct Head {
    schema: u64,
    command: String,
    task: String,
    provenance: Option<Provenance>,
}

/// What only some reports have.
#[derive(Deserialize)]
struct Records {
    records: Option<Vec<Record>>,
}

#[derive(Deserialize)]
struct Windows<W> {
    windows: Option<Vec<W>>,
    mmlu: Option<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    records: Option<[Vec<Record>; 2]>,
}

/// Reads a run: a report of `eval mmlu`, `eval ppl` or `eval kl`, or the records of `eval mmlu` as JSON lines. What
/// contradicts itself is refused, all of it together.
pub fn read(path: &Path) -> Result<Run> {
    /// What tells a record from a report.
    #[derive(Deserialize)]
    struct Line {
        subject: Option<IgnoredAny>,
    }
    let bytes = fs::read_small(path, MAX_FILE)?;
    // A report begins with a line of `{` or is one line; a record is a line.
    let first = bytes.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    // What is derived reads a list too, as if it were the fields.
    let is_object = first.trim_ascii_start().starts_with(b"{");
    let is_records = is_object && serde_json::from_slice::<Line>(first).is_ok_and(|line| line.subject.is_some());
    if is_records || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl")) {
        let records = mmlu::parse_records(path, &bytes)?;
        return Ok(Run { provenance: None, outcome: Outcome::Mmlu(some(path, records, "questions")?) });
    }
    let head: Head = parse(path, &bytes)?;
    if (head.schema, head.command.as_str()) != (1, "eval") {
        let what = format!("expected a report of `eval` of schema 1, found `{}` of {}", head.command, head.schema);
        return Err(Error::Unreadable { path: path.to_owned(), what });
    }
    let outcome = match head.task.as_str() {
        "mmlu" => {
            let Records { records } = parse(path, &bytes)?;
            Outcome::Mmlu(checked(path, kept(path, records, "records")?)?)
        }
        "ppl" => {
            let Windows { windows, .. } = parse(path, &bytes)?;
            let windows: Vec<perplexity::WindowSum> = kept(path, windows, "windows")?;
            check_windows(path, windows.iter().map(|w| (w.tokens, [w.nll, 0.0, 0.0, 0.0])))?;
            Outcome::Perplexity(some(path, windows, "windows")?)
        }
        "kl" => {
            let Windows { windows, mmlu } = parse(path, &bytes)?;
            let windows: Vec<divergence::WindowSum> = kept(path, windows, "windows")?;
            check_windows(path, windows.iter().map(|w| (w.positions, w.sums())))?;
            let mut records = None;
            if let Some(Pair { records: both }) = mmlu {
                let [a, b] = kept(path, both, "mmlu.records")?;
                records = Some([checked(path, a)?, checked(path, b)?]);
            }
            Outcome::Divergence(some(path, windows, "windows")?, records)
        }
        task => {
            let what = format!("expected a report of mmlu, ppl or kl, found one of `{task}`");
            return Err(Error::Unreadable { path: path.to_owned(), what });
        }
    };
    Ok(Run { provenance: head.provenance, outcome })
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Unreadable {
        path: path.to_owned(),
        what: format!("expected a report of `eval`, or its questions as JSON lines: {e}"),
    })
}

/// What a report has, and the same run's `--json` output has not.
fn kept<T>(path: &Path, found: Option<T>, what: &str) -> Result<T> {
    found.ok_or_else(|| Error::Unreadable {
        path: path.to_owned(),
        what: format!("there is no `{what}`, which `--report` writes and `--json` does not"),
    })
}

fn some<T>(path: &Path, found: Vec<T>, what: &str) -> Result<Vec<T>> {
    if found.is_empty() {
        return Err(Error::Unreadable { path: path.to_owned(), what: format!("there are no {what}") });
    }
    Ok(found)
}

fn checked(path: &Path, records: Vec<Record>) -> Result<Vec<Record>> {
    let mut checked = mmlu::Checked::default();
    for (number, record) in (1..).zip(records) {
        checked.add(path, number, record);
    }
    some(path, checked.finish()?, "questions")
}

fn check_windows(path: &Path, windows: impl Iterator<Item = (usize, [f64; 4])>) -> Result<()> {
    let mut problems = Problems::default();
    for (number, (tokens, sums)) in (1..).zip(windows) {
        if tokens == 0 || tokens > MAX_TOKENS {
            problems.add(path, number, format!("a window of {tokens} tokens"));
        // A billion nats a token: far beyond what a model gives, and far from what overflows.
        } else if let Some(sum) = sums.iter().find(|sum| sum.abs() > 1e9 * tokens as f64) {
            problems.add(path, number, format!("{sum:e} over {tokens} tokens"));
        }
    }
    problems.none()
}
