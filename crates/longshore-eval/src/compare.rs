//! Two models on the same questions or windows. The paired difference is several times more certain than the difference of
//! two scores: questions on which both agree say nothing about it.

use crate::divergence::{self, Mean};
use crate::mmlu::{CATEGORIES, Record, category};
use crate::perplexity;
use crate::saved::{Outcome, Run};
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

/// What a part of the questions says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// The subject or category.
    pub name: String,
    /// Questions.
    pub questions: usize,
    /// The first model's accuracy.
    pub first: f64,
    /// The second model's accuracy.
    pub second: f64,
    /// `second - first`.
    pub difference: f64,
    /// Its standard error, as [`Comparison::difference_error`].
    pub difference_error: Option<f64>,
    /// Questions that only the first model answered right.
    pub only_first: usize,
    /// Questions that only the second model answered right.
    pub only_second: usize,
}

impl Part {
    /// Of pairs: whether the first model is right, and the second.
    fn of(name: &str, pairs: &[(bool, bool)]) -> Self {
        let differences: Vec<Cluster> =
            pairs.iter().map(|&(a, b)| Cluster::of([f64::from(i8::from(b) - i8::from(a))])).collect();
        let count = |is: fn(&(bool, bool)) -> bool| pairs.iter().filter(|&pair| is(pair)).count();
        let accuracy = |right: usize| right as f64 / pairs.len() as f64;
        Self {
            name: name.to_owned(),
            questions: pairs.len(),
            first: accuracy(count(|&(a, _)| a)),
            second: accuracy(count(|&(_, b)| b)),
            difference: mean(&differences),
            difference_error: clustered_error(&differences),
            only_first: count(|&(a, b)| a && !b),
            only_second: count(|&(a, b)| b && !a),
        }
    }
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
    /// By category, those with questions; subjects that MMLU does not have are in none.
    pub categories: Vec<Part>,
    /// By subject, sorted.
    pub subjects: Vec<Part>,
}

/// Sets two lists side by side, which must hold the same questions with the same right answers, in any order.
pub fn compare(first: &[Record], second: &[Record]) -> Result<Comparison> {
    let mut others = by_question(second)?;
    by_question(first)?;
    let mut by_subject: BTreeMap<&str, Vec<(bool, bool)>> = BTreeMap::new();
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
        by_subject.entry(&a.subject).or_default().push((a.correct, b.correct));
        if a.correct != b.correct {
            let (subject, index, answer) = (a.subject.clone(), a.index, a.answer);
            flips.push(Flip { subject, index, answer, first: a.choice, second: b.choice });
        }
    }
    unpaired.extend(others.keys().map(|(subject, index)| format!("{subject} {index} is only in the second list")));
    if !unpaired.is_empty() {
        return Err(different(&unpaired));
    }
    let all = Part::of("", &by_subject.values().flatten().copied().collect::<Vec<_>>());
    if all.questions == 0 {
        return Err(Error::Invalid("no questions to compare".into()));
    }
    let mut categories = Vec::with_capacity(CATEGORIES.len());
    for (wanted, _) in CATEGORIES {
        let subjects = by_subject.iter().filter(|(subject, _)| category(subject) == Some(wanted));
        let pairs: Vec<(bool, bool)> = subjects.flat_map(|(_, pairs)| pairs).copied().collect();
        if !pairs.is_empty() {
            categories.push(Part::of(wanted.name(), &pairs));
        }
    }
    Ok(Comparison {
        questions: all.questions,
        other_prompts,
        first: all.first,
        second: all.second,
        difference: all.difference,
        difference_error: all.difference_error,
        only_first: all.only_first,
        only_second: all.only_second,
        other_choices,
        p_value: mcnemar(all.only_first, all.only_second),
        flips,
        categories,
        subjects: by_subject.iter().map(|(subject, pairs)| Part::of(subject, pairs)).collect(),
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

/// The mean over windows with these sums of so many values, and its error, clustered by window.
fn of_windows(windows: impl Iterator<Item = (f64, usize)>) -> Mean {
    let clusters: Vec<Cluster> = windows.map(|(sum, count)| Cluster { sum, count }).collect();
    Mean { mean: mean(&clusters), error: clustered_error(&clusters) }
}

/// The mean negative log-likelihood of a perplexity run, in nats a token.
pub fn likelihood(windows: &[perplexity::WindowSum]) -> Mean {
    of_windows(windows.iter().map(|w| (w.nll, w.tokens)))
}

/// The difference of two perplexity runs over the same windows, second less first, in nats a token: the logarithm of the
/// ratio of the perplexities. Its error is that of the windows' differences.
pub fn compare_likelihoods(first: &[perplexity::WindowSum], second: &[perplexity::WindowSum]) -> Mean {
    of_windows(first.iter().zip(second).map(|(a, b)| (b.nll - a.nll, a.tokens)))
}

/// The means of a divergence run, in the order of [`divergence::WindowSum`]'s sums.
pub fn divergences(windows: &[divergence::WindowSum]) -> [Mean; 4] {
    [0, 1, 2, 3].map(|i| of_windows(windows.iter().map(|w| (w.sums()[i], w.positions))))
}

/// The differences of two divergence runs over the same windows, second less first, likewise.
pub fn compare_divergences(first: &[divergence::WindowSum], second: &[divergence::WindowSum]) -> [Mean; 4] {
    let pairs = || first.iter().zip(second);
    [0, 1, 2, 3].map(|i| of_windows(pairs().map(|(a, b)| (b.sums()[i] - a.sums()[i], a.positions))))
}

/// How a second run differs from a first in what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// What differs.
    pub what: &'static str,
    /// What the first has.
    pub first: String,
    /// What the second has.
    pub second: String,
    /// Whether no figure of the two can be compared.
    pub fatal: bool,
}

/// Something that a run says of what was asked: its name, and how to find it.
type Fact = (&'static str, fn(&Run) -> Option<String>);

/// What decides which windows were scored.
const OF_WINDOWS: [Fact; 5] = [
    ("data (SHA-256)", |run| Some(run.provenance.as_ref()?.text.as_ref()?.data_sha256.clone())),
    ("windowing", |run| serde_json::to_string(&run.provenance.as_ref()?.text.as_ref()?.windowing).ok()),
    ("tokenizer (SHA-256)", |run| Some(run.provenance.as_ref()?.tokenizer.as_ref()?.sha256.clone())),
    ("number of windows", |run| Some(run.outcome.window_sizes()?.len().to_string())),
    ("tokens scored", |run| Some(run.outcome.window_sizes()?.iter().sum::<usize>().to_string())),
];

/// What may differ between runs whose figures can be compared, and is to be known.
const OF_PROMPTS: [Fact; 8] = [
    ("tokenizer (SHA-256)", |run| Some(run.provenance.as_ref()?.tokenizer.as_ref()?.sha256.clone())),
    ("token put first", |run| {
        let id = run.provenance.as_ref()?.tokenizer.as_ref()?.begin_of_text;
        Some(id.map_or_else(none, |id| id.to_string()))
    }),
    ("questions (SHA-256)", |run| Some(run.asked()?.data_sha256.clone())),
    ("style", |run| Some(run.asked()?.style.clone())),
    ("examples", |run| Some(run.asked()?.few_shots.to_string())),
    ("fraction", |run| Some(run.asked()?.fraction.to_string())),
    ("subjects", |run| Some(run.asked()?.subjects.join(" "))),
    ("limit", |run| Some(run.asked()?.limit.map_or_else(none, |limit| limit.to_string()))),
];

const REFERENCE: Fact = ("reference's weights (SHA-256)", |run| {
    Some(run.provenance.as_ref()?.checkpoints.first()?.weights.as_ref()?.sha256.clone())
});

fn none() -> String {
    "none".to_owned()
}

/// Everything that differs between what two runs were asked. Where a run does not say, nothing is known to differ.
pub fn mismatches(first: &Run, second: &Run) -> Vec<Mismatch> {
    let differ = |(what, of): Fact, fatal| {
        let (first, second) = (of(first)?, of(second)?);
        (first != second).then_some(Mismatch { what, first, second, fatal })
    };
    if let Some(mismatch) = differ(("task", |run| Some(run.outcome.task().to_owned())), true) {
        return vec![mismatch];
    }
    let mut found = Vec::new();
    if let Outcome::Divergence(..) = first.outcome {
        found.extend(differ(REFERENCE, true));
    }
    // The windows themselves say more than the names of files, which tell why they differ.
    let windows: Fact =
        ("windows (SHA-256)", |run| Some(run.provenance.as_ref()?.text.as_ref()?.windows_sha256.clone()));
    let other_windows = differ(windows, true);
    if other_windows.is_some() || first.outcome.window_sizes() != second.outcome.window_sizes() {
        let why: Vec<Mismatch> = OF_WINDOWS.into_iter().filter_map(|fact| differ(fact, true)).collect();
        if why.is_empty() {
            let [a, b] = [first, second].map(|run| run.outcome.window_sizes().unwrap_or_default());
            let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or_default();
            let size = |sizes: &[usize]| format!("{} tokens in window {}", sizes.get(at).unwrap_or(&0), at + 1);
            let by_size = || Mismatch { what: "windows", first: size(&a), second: size(&b), fatal: true };
            found.push(other_windows.unwrap_or_else(by_size));
        }
        found.extend(why);
    }
    let told = |found: &[Mismatch], what| found.iter().any(|m: &Mismatch| m.what == what);
    for fact in OF_PROMPTS {
        if !told(&found, fact.0) {
            found.extend(differ(fact, false));
        }
    }
    found
}
