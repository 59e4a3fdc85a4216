//! Reading, selecting, asking and scoring questions.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says what it skips")]

mod prompts;
mod reading;
mod scoring;
mod selecting;
#[path = "../../../longshore-convert/tests/convert/shared_data.rs"]
mod shared_data;

use longshore_eval::mmlu::{self, Mmlu, Question};
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The published data set, where the shared data holds it.
fn published() -> Option<Mmlu> {
    Some(mmlu::read(&shared_data::shared("data/mmlu")?).unwrap())
}

/// What Python made of a data set.
fn golden(set: &str) -> serde_json::Value {
    let text = std::fs::read(fixture("golden.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()[set].take()
}

fn question(subject: &str, question: &str, choices: [&str; 4], answer: u8) -> Question {
    Question { subject: subject.into(), question: question.into(), choices: choices.map(str::to_owned), answer }
}
