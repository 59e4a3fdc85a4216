//! Which of the questions are asked.

use super::Question;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// What to take of the test questions.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Of each subject, the rows whose index is less than this fraction of its rows. More than 0, at most 1.
    pub fraction: f64,
    /// Patterns of subjects, in which `*` stands for any characters and `?` for one; none takes all subjects.
    pub subjects: Vec<String>,
    /// At most so many questions in all, after the fraction.
    pub limit: Option<usize>,
}

impl Default for Selection {
    fn default() -> Self {
        Self { fraction: 1.0, subjects: Vec::new(), limit: None }
    }
}

/// A question that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The question.
    pub question: &'a Question,
    /// Its number among the test rows of its subject, from 0.
    pub index: usize,
}

/// The selected questions, in the order of the data set. A pattern that fits no subject is an error.
///
/// The rule is that of ModelOpt's `megatron_mmlu`: row `i` of a subject while `i < fraction * count` in floating point.
pub fn select<'a>(test: &'a [Question], selection: &Selection) -> Result<Vec<Row<'a>>> {
    let Selection { fraction, subjects, limit } = selection;
    if !(*fraction > 0.0 && *fraction <= 1.0) {
        return Err(Error::Invalid(format!("expected a fraction above 0 and at most 1, found {fraction}")));
    }
    let mut counts = BTreeMap::<&str, usize>::new();
    for question in test {
        *counts.entry(&question.subject).or_default() += 1;
    }
    let matching = |pattern: &str| counts.keys().any(|subject| matches(pattern.as_bytes(), subject.as_bytes()));
    let unmatched: Vec<&str> = subjects.iter().map(String::as_str).filter(|pattern| !matching(pattern)).collect();
    if !unmatched.is_empty() {
        return Err(Error::Invalid(format!("no subject matches {}", unmatched.join(", "))));
    }
    let wanted = |subject: &str| {
        subjects.is_empty() || subjects.iter().any(|pattern| matches(pattern.as_bytes(), subject.as_bytes()))
    };
    let mut seen = BTreeMap::<&str, usize>::new();
    let mut rows = Vec::new();
    for question in test {
        let next = seen.entry(&question.subject).or_default();
        let index = *next;
        *next += 1;
        let count = counts.get(question.subject.as_str()).copied().unwrap_or_default();
        if (index as f64) < fraction * count as f64 && wanted(&question.subject) {
            rows.push(Row { question, index });
        }
    }
    rows.truncate(limit.unwrap_or(usize::MAX));
    if rows.is_empty() {
        return Err(Error::Invalid("no question is selected".into()));
    }
    Ok(rows)
}

/// Whether `name` matches `pattern`. The time is at most the product of their lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on if the current try fails: after the last star, one character later in the name.
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, n));
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((after, from)) = retry else { return false };
                retry = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}
