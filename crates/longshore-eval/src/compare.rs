//! Two models' answers to the same questions. The paired difference is several times more certain than the difference of
//! two accuracies: questions on which both agree say nothing about it.

use crate::mmlu::Record;
use crate::statistics::{Cluster, clustered_error, mean};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;

/// A question that one model answered right and the other wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flip {
    /// The subject.
    pub subject: String,
    /// The number among the test rows of the subject, from 0.
    pub index: usize,
    /// The right answer, 0 to 3.
    pub answer: u8,
    /// The first model's choice; `None` where it made none.
    pub first: Option<u8>,
    /// The second model's choice, likewise.
    pub second: Option<u8>,
}

/// What two lists of answers have in common, and what not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Questions.
    pub questions: usize,
    /// Questions that were asked in different words.
    pub other_prompts: usize,
    /// The first model's accuracy.
    pub first: f64,
    /// The second model's accuracy.
    pub second: f64,
    /// `second - first`.
    pub difference: f64,
    /// The standard error of the difference, from the sample deviation of the questions' -1, 0 and 1. `None` for one
    /// question.
    pub difference_error: Option<f64>,
    /// Questions that only the first model answered right.
    pub only_first: usize,
    /// Questions that only the second model answered right.
    pub only_second: usize,
    /// Questions where the choices differ, be they right or wrong.
    pub other_choices: usize,
    /// McNemar's test; see [`mcnemar`].
    pub p_value: f64,
    /// The questions behind `only_first` and `only_second`, in the order of the first list.
    pub flips: Vec<Flip>,
}

/// Sets two lists side by side, which must hold the same questions with the same right answers, in any order.
pub fn compare(first: &[Record], second: &[Record]) -> Result<Comparison> {
    let mut others = by_question(second)?;
    by_question(first)?;
    let mut differences = Vec::with_capacity(first.len());
    let (mut flips, mut other_prompts, mut other_choices) = (Vec::new(), 0, 0);
    let mut unpaired = Vec::new();
    for a in first {
        let Some(b) = others.remove(&(a.subject.as_str(), a.index)) else {
            unpaired.push(format!("{} {} is only in the first list", a.subject, a.index));
            continue;
        };
        if a.answer != b.answer {
            unpaired.push(format!("{} {} has different right answers", a.subject, a.index));
        }
        other_prompts += usize::from(a.prompt_hash != b.prompt_hash);
        other_choices += usize::from(a.choice != b.choice);
        differences.push(Cluster::of([f64::from(i8::from(b.correct) - i8::from(a.correct))]));
        if a.correct != b.correct {
            let (subject, index, answer) = (a.subject.clone(), a.index, a.answer);
            flips.push(Flip { subject, index, answer, first: a.choice, second: b.choice });
        }
    }
    unpaired.extend(others.keys().map(|(subject, index)| format!("{subject} {index} is only in the second list")));
    if !unpaired.is_empty() {
        return Err(different(&unpaired));
    }
    if differences.is_empty() {
        return Err(Error::Invalid("no questions to compare".into()));
    }
    let accuracy = |records: &[Record]| records.iter().filter(|r| r.correct).count() as f64 / records.len() as f64;
    let only_second = flips.iter().filter(|flip| flip.second == Some(flip.answer)).count();
    let only_first = flips.len() - only_second;
    Ok(Comparison {
        questions: differences.len(),
        other_prompts,
        first: accuracy(first),
        second: accuracy(second),
        difference: mean(&differences),
        difference_error: clustered_error(&differences),
        only_first,
        only_second,
        other_choices,
        p_value: mcnemar(only_first, only_second),
        flips,
    })
}

fn by_question(records: &[Record]) -> Result<BTreeMap<(&str, usize), &Record>> {
    let mut questions = BTreeMap::new();
    for record in records {
        if questions.insert((record.subject.as_str(), record.index), record).is_some() {
            return Err(Error::Invalid(format!("{} {} is twice in one list", record.subject, record.index)));
        }
    }
    Ok(questions)
}

/// The lists are of different questions: the first few, and how many.
fn different(unpaired: &[String]) -> Error {
    const SHOWN: usize = 5;
    let shown = unpaired.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = match unpaired.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Error::Invalid(format!("the lists do not hold the same questions: {shown}{more}"))
}

/// The two-sided p-value of McNemar's test (Psychometrika 12, 1947) for so many flips one way and the other: how often a
/// fair coin, tossed once a flip, falls at least as unevenly. The exact binomial sum, for any number of flips:
/// `min(1, 2 sum(C(n, k), k = 0..=min) / 2^n)`.
pub fn mcnemar(one_way: usize, other_way: usize) -> f64 {
    let n = (one_way + other_way) as f64;
    // Logarithms: 2^-n underflows from 1075 flips on.
    let mut term = -n * std::f64::consts::LN_2;
    let mut sum = term.exp();
    for k in 0..one_way.min(other_way) {
        term += (n - k as f64).ln() - (k as f64 + 1.0).ln();
        sum += term.exp();
    }
    (2.0 * sum).min(1.0)
}
