//! What was answered to each question, in JSON lines: enough for another program to compute the scores again.

use super::{Choice, LETTERS, Row, choose, choose_present};
use crate::{Error, Problems, Result};
use longshore_ckpt::fs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// One question's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The subject.
    pub subject: String,
    /// The number among the test rows of the subject, from 0.
    pub index: usize,
    /// The SHA-256 of the prompt's text.
    pub prompt_hash: String,
    /// What the letters got.
    #[serde(flatten)]
    pub given: Given,
    /// The choice, 0 to 3; a letter in files. `None` where no letter got anything, which is a wrong answer.
    #[serde(with = "choice")]
    pub choice: Option<u8>,
    /// The right answer, a letter too.
    #[serde(with = "letter")]
    pub answer: u8,
    /// Whether they are the same.
    pub correct: bool,
}

/// What A, B, C and D got: a field of its name in files.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Given {
    /// Logits: of a model whose whole output is known.
    Logits([f32; 4]),
    /// Log-probabilities in nats: of a server that names the most likely tokens. A letter that is not among them is `None`,
    /// `null` in files.
    LogProbs([Option<f64>; 4]),
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Logits(logits) => write!(f, "the logits {logits:?}"),
            Self::LogProbs(log_probs) => {
                let shown = log_probs.map(|x| x.map_or_else(|| "null".to_owned(), |x| x.to_string()));
                write!(f, "the log-probabilities [{}]", shown.join(", "))
            }
        }
    }
}

impl From<[f32; 4]> for Given {
    fn from(logits: [f32; 4]) -> Self {
        Self::Logits(logits)
    }
}

impl Given {
    /// The choice among what is there.
    fn choose(&self) -> Result<Option<Choice>> {
        match self {
            Self::Logits(logits) => choose(*logits).map(Some),
            Self::LogProbs(log_probs) => choose_present(*log_probs),
        }
    }

    /// Letters of which nothing is known.
    pub fn absent(&self) -> usize {
        match self {
            Self::Logits(_) => 0,
            Self::LogProbs(log_probs) => log_probs.iter().filter(|x| x.is_none()).count(),
        }
    }
}

impl Record {
    /// Scores what the letters of a question got.
    pub fn new(row: Row<'_>, prompt_hash: String, given: impl Into<Given>) -> Result<Self> {
        let given = given.into();
        let choice = given.choose()?.map(|choice| choice.choice);
        let answer = row.question.answer;
        let subject = row.question.subject.clone();
        Ok(Self { subject, index: row.index, prompt_hash, given, choice, answer, correct: choice == Some(answer) })
    }

    /// What of it contradicts the rest.
    fn contradiction(&self) -> Option<String> {
        if !self.given.choose().is_ok_and(|c| c.map(|c| c.choice) == self.choice) {
            let choice = self.choice.map_or("null", name);
            return Some(format!("choice {choice} is not that of {}", self.given));
        }
        (self.correct != (self.choice == Some(self.answer))).then(|| {
            let (choice, answer) = (self.choice.map_or("none", name), name(self.answer));
            format!("`correct` is {}, but {choice} was chosen and {answer} is right", self.correct)
        })
    }

    /// Whether several letters got the most.
    pub(super) fn tied(&self) -> bool {
        self.given.choose().is_ok_and(|choice| choice.is_some_and(|choice| choice.tied))
    }
}

/// The letter of a choice.
fn name(choice: u8) -> &'static str {
    LETTERS[usize::from(choice) % LETTERS.len()]
}

/// Choices that may be none, as letters or null.
mod choice {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Letter(#[serde(with = "super::letter")] u8);

    #[expect(clippy::ref_option, reason = "what serde calls")]
    pub(super) fn serialize<S: Serializer>(choice: &Option<u8>, serializer: S) -> Result<S::Ok, S::Error> {
        choice.map(Letter).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
        Ok(Option::<Letter>::deserialize(deserializer)?.map(|Letter(choice)| choice))
    }
}

/// Choices as letters.
mod letter {
    use super::super::LETTERS;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(choice: &u8, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(super::name(*choice))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = LETTERS.iter().position(|letter| *letter == text);
        let expected = || D::Error::custom(format!("expected a letter from A to D, found `{text}`"));
        found.map(|choice| choice as u8).ok_or_else(expected)
    }
}

/// The record as a line of JSON, line end included.
pub fn write_record(record: &Record) -> Result<String> {
    let line = serde_json::to_string(record).map_err(|e| Error::Invalid(e.to_string()))?;
    Ok(line + "\n")
}

/// Reads records back. All malformed lines are reported together, those that contradict themselves or others too.
pub fn read_records(path: &Path) -> Result<Vec<Record>> {
    /// 14042 records take 3 MB.
    const MAX_FILE: u64 = 256 << 20;
    parse_records(path, &fs::read_small(path, MAX_FILE)?)
}

/// The records of these lines; `path` is named in errors.
pub(crate) fn parse_records(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    let mut records = Checked::default();
    for (line, text) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        if text.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Record>(text) {
            Ok(record) => records.add(path, line, record),
            Err(e) => records.problems.add_json(path, line, &e),
        }
    }
    records.finish()
}

/// Records as they come in: choices that are not those of the logits are wrong, and questions that are there twice.
#[derive(Default)]
pub(crate) struct Checked {
    records: Vec<Record>,
    /// The line of each question.
    lines: BTreeMap<(String, usize), u64>,
    problems: Problems,
}

impl Checked {
    pub(crate) fn add(&mut self, path: &Path, line: u64, record: Record) {
        let (subject, index) = (record.subject.clone(), record.index);
        if let Some(what) = record.contradiction() {
            self.problems.add(path, line, what);
        } else if let Some(first) = self.lines.get(&(subject.clone(), index)) {
            self.problems.add(path, line, format!("{subject} {index} is in line {first} too"));
        } else {
            self.lines.insert((subject, index), line);
            self.records.push(record);
        }
    }

    /// The records, if nothing is wrong with any.
    pub(crate) fn finish(self) -> Result<Vec<Record>> {
        self.problems.none()?;
        Ok(self.records)
    }
}
