//! What was answered to each question, in JSON lines: enough for another program to compute the scores again.

use super::{LETTERS, Row, choose};
use crate::{Error, Problems, Result};
use longshore_ckpt::fs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
    /// The logits of A, B, C and D.
    pub logits: [f32; 4],
    /// The choice, 0 to 3; a letter in files.
    #[serde(with = "letter")]
    pub choice: u8,
    /// The right answer, likewise.
    #[serde(with = "letter")]
    pub answer: u8,
    /// Whether they are the same.
    pub correct: bool,
}

impl Record {
    /// Scores the logits that a question got.
    pub fn new(row: Row<'_>, prompt_hash: String, logits: [f32; 4]) -> Result<Self> {
        let choice = choose(logits)?.choice;
        let answer = row.question.answer;
        let subject = row.question.subject.clone();
        Ok(Self { subject, index: row.index, prompt_hash, logits, choice, answer, correct: choice == answer })
    }

    /// What of it contradicts the rest.
    fn contradiction(&self) -> Option<String> {
        if !choose(self.logits).is_ok_and(|c| c.choice == self.choice) {
            return Some(format!("choice {} is not that of the logits {:?}", name(self.choice), self.logits));
        }
        (self.correct != (self.choice == self.answer)).then(|| {
            let (choice, answer) = (name(self.choice), name(self.answer));
            format!("`correct` is {}, but {choice} was chosen and {answer} is right", self.correct)
        })
    }

    /// Whether several logits were the largest.
    pub(super) fn tied(&self) -> bool {
        choose(self.logits).is_ok_and(|choice| choice.tied)
    }
}

/// The letter of a choice.
fn name(choice: u8) -> &'static str {
    LETTERS[usize::from(choice) % LETTERS.len()]
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
