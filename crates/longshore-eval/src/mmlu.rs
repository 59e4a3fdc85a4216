//! MMLU (Hendrycks et al. 2021, arXiv 2009.03300): multiple-choice questions with four answers in 57 subjects.

mod categories;
mod prompt;
mod read;
mod record;
mod score;
mod select;
mod tokens;

pub use categories::{CATEGORIES, Category, category};
pub use prompt::{Prompt, Prompts, Style};
pub use read::{Form, bundled, read};
pub(crate) use record::{Checked, parse_records};
pub use record::{Given, Record, read_records, write_record};
pub use score::{CategoryScore, Score, Scores, SubjectScore};
pub use select::{Row, Selection, select};
pub use tokens::{Choice, LETTERS, choose, choose_present, continuations, letter_ids};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt;

/// A question with its four answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Its subject, e.g. `abstract_algebra`.
    pub subject: String,
    /// The question, as it stands in the data, blanks and line ends included.
    pub question: String,
    /// The answers A, B, C and D.
    pub choices: [String; 4],
    /// The right one, 0 to 3.
    pub answer: u8,
}

/// The questions of one data set.
#[derive(Clone, Debug)]
pub struct Mmlu {
    /// The examples for prompts, in the order of the data set.
    pub dev: Vec<Question>,
    /// The questions that are scored, in the order of the data set.
    pub test: Vec<Question>,
    /// In which form they were found.
    pub form: Form,
}

/// A count that differs from that of the published data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Unusual {
    /// What is counted.
    pub what: &'static str,
    /// How many the published data set has.
    pub published: usize,
    /// How many there are.
    pub found: usize,
}

impl fmt::Display for Unusual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; the published MMLU has {}", self.found, self.what, self.published)
    }
}

impl Mmlu {
    /// The SHA-256 of the rows, in hexadecimal, whatever form they were found in: each row is the line
    /// `["dev",subject,question,A,B,C,D,answer]` of JSON without blanks (`test` for the others), dev rows first.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for (split, rows) in [("dev", &self.dev), ("test", &self.test)] {
            for Question { subject, question, choices: [a, b, c, d], answer } in rows {
                let row = serde_json::json!([split, subject, question, a, b, c, d, answer]);
                hash.update(format!("{row}\n"));
            }
        }
        hex(hash)
    }

    /// The counts that differ from the published 14042 test rows and 285 dev rows of 57 subjects.
    pub fn unusual(&self) -> Vec<Unusual> {
        let subjects = self.test.iter().map(|q| &q.subject).collect::<BTreeSet<_>>().len();
        [("test questions", 14042, self.test.len()), ("dev questions", 285, self.dev.len()), ("subjects", 57, subjects)]
            .into_iter()
            .filter(|&(_, published, found)| published != found)
            .map(|(what, published, found)| Unusual { what, published, found })
            .collect()
    }
}

fn hex(hash: Sha256) -> String {
    format!("{:x}", hash.finalize())
}
