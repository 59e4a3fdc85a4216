//! The words in which a question is asked: those of lm-evaluation-harness (`lm_eval/tasks/mmlu/default`) and those of
//! ModelOpt (`modelopt/torch/utils/plugins/megatron_mmlu.py`).

use super::{LETTERS, Question, hex};
use crate::{Error, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// Whose words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// lm-evaluation-harness: the question without blanks around it. What published figures use.
    #[default]
    LmEval,
    /// ModelOpt's, with the line end before `Answer:` in the examples too.
    #[serde(rename = "modelopt")]
    ModelOpt,
    /// ModelOpt's to the byte: no line end between an example's last choice and its `Answer:`.
    #[serde(rename = "modelopt-exact")]
    ModelOptExact,
}

impl Style {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::LmEval, Self::ModelOpt, Self::ModelOptExact];

    /// The name that [`FromStr`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::LmEval => "lm-eval",
            Self::ModelOpt => "modelopt",
            Self::ModelOptExact => "modelopt-exact",
        }
    }

    /// The question and its choices, up to the end of the last choice.
    fn body(self, question: &Question) -> String {
        let text = match self {
            Self::LmEval => strip(&question.question),
            Self::ModelOpt | Self::ModelOptExact => &question.question,
        };
        let mut body = text.to_owned();
        for (letter, choice) in LETTERS.iter().zip(&question.choices) {
            body.extend(["\n", letter, ". ", choice]);
        }
        body
    }

    /// A dev question with its answer.
    fn example(self, question: &Question) -> String {
        let line_end = if self == Self::ModelOptExact { "" } else { "\n" };
        let letter = LETTERS[usize::from(question.answer) % LETTERS.len()];
        format!("{}{line_end}Answer: {letter}\n\n", self.body(question))
    }
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Style {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let unknown =
            || Error::Invalid(format!("no style `{name}`; there are {}", Self::ALL.map(Self::name).join(", ")));
        Self::ALL.into_iter().find(|style| style.name() == name).ok_or_else(unknown)
    }
}

/// Python's `str.strip()`: what Unicode calls white space, and the four separators that only Python counts in.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

/// The prompts of one style and number of examples.
#[derive(Clone, Debug)]
pub struct Prompts {
    style: Style,
    prefixes: BTreeMap<String, String>,
}

/// A prompt in two parts. Only their sum may be tokenized: a token may reach across.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt<'a> {
    /// The description and the examples: the same for all questions of a subject.
    pub prefix: &'a str,
    /// The question, ending in `Answer:`.
    pub suffix: String,
}

impl Prompts {
    /// Prepares prompts for these subjects with the first `shots` dev questions of the subject as examples. Subjects with
    /// fewer are an error that names all of them.
    pub fn new<'a>(
        style: Style,
        shots: usize,
        dev: &[Question],
        subjects: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self> {
        let mut prefixes = BTreeMap::new();
        let mut short = Vec::new();
        for subject in subjects.into_iter().collect::<BTreeSet<_>>() {
            let name = subject.replace('_', " ");
            let mut prefix = format!("The following are multiple choice questions (with answers) about {name}.\n\n");
            let examples: Vec<_> = dev.iter().filter(|q| q.subject == subject).take(shots).collect();
            if examples.len() < shots {
                short.push(format!("{subject} has {}", examples.len()));
            }
            prefix.extend(examples.into_iter().map(|question| style.example(question)));
            prefixes.insert(subject.to_owned(), prefix);
        }
        if !short.is_empty() {
            return Err(Error::Invalid(format!("expected {shots} dev questions a subject: {}", short.join(", "))));
        }
        Ok(Self { style, prefixes })
    }

    /// The prompt for a question; an error for a subject that was not prepared.
    pub fn prompt(&self, question: &Question) -> Result<Prompt<'_>> {
        let unknown = || Error::Invalid(format!("no prompt was prepared for subject {}", question.subject));
        let prefix = self.prefixes.get(&question.subject).ok_or_else(unknown)?;
        Ok(Prompt { prefix, suffix: format!("{}\nAnswer:", self.style.body(question)) })
    }
}

impl Prompt<'_> {
    /// The whole text.
    pub fn text(&self) -> String {
        [self.prefix, &self.suffix].concat()
    }

    /// The SHA-256 of the whole text, in hexadecimal.
    pub fn hash(&self) -> String {
        hex(Sha256::new().chain_update(self.prefix).chain_update(&self.suffix))
    }
}
