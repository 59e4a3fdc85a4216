//! Accuracies and their errors, by subject, category and in all.

use super::{CATEGORIES, Category, Record};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Right answers of so many. All accuracies are fractions of 1, and all errors one standard error in the same unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    /// Questions answered right.
    pub correct: usize,
    /// Questions.
    pub total: usize,
}

impl Score {
    /// `correct / total`; NaN without questions.
    pub fn accuracy(self) -> f64 {
        self.correct as f64 / self.total as f64
    }

    /// The standard error of the accuracy, from the sample standard deviation: `sqrt(p (1 - p) / (n - 1))`, as
    /// lm-evaluation-harness' `mean_stderr`. `None` below two questions.
    pub fn standard_error(self) -> Option<f64> {
        let p = self.accuracy();
        (self.total > 1).then(|| (p * (1.0 - p) / (self.total - 1) as f64).sqrt())
    }

    fn add(&mut self, correct: bool) {
        self.correct += usize::from(correct);
        self.total += 1;
    }
}

/// One subject's score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubjectScore {
    /// The subject.
    pub subject: String,
    /// Its score.
    pub score: Score,
    /// Its accuracy.
    pub accuracy: f64,
    /// Its standard error, from two questions on.
    pub standard_error: Option<f64>,
}

/// One category's score, over its questions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CategoryScore {
    /// The category.
    pub category: Category,
    /// Its score.
    pub score: Score,
    /// Right answers by questions.
    pub accuracy: f64,
    /// The pooled standard error of its subjects; see [`Scores::pooled_error`].
    pub pooled_error: Option<f64>,
}

/// All scores of a list of records.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Over all questions.
    pub all: Score,
    /// Micro average: right answers by questions. What MMLU means where nothing else is said.
    pub micro: f64,
    /// The standard error of `micro` as if all questions were of one subject.
    pub micro_error: Option<f64>,
    /// The standard error of `micro` pooled over subjects, as lm-evaluation-harness' `pooled_sample_stderr` has it:
    /// `sqrt(sum((n_i - 1) e_i^2 n_i) / (N - K) / N)`, where `e_i` are the errors of `K` subjects with `n_i` questions.
    pub pooled_error: Option<f64>,
    /// Macro average: the mean of the subjects' accuracies.
    pub macro_average: f64,
    /// Its standard error, `sqrt(sum(e_i^2)) / K`; `None` if a subject has one question.
    pub macro_error: Option<f64>,
    /// Questions where several letters had the largest logit; the first counted.
    pub ties: usize,
    /// By subject, sorted.
    pub subjects: Vec<SubjectScore>,
    /// By category, those with questions; subjects that MMLU does not have are in none.
    pub categories: Vec<CategoryScore>,
}

impl Scores {
    /// Adds up the records.
    pub fn of(records: &[Record]) -> Self {
        let mut by_subject = BTreeMap::<&str, Score>::new();
        let mut all = Score::default();
        for record in records {
            by_subject.entry(&record.subject).or_default().add(record.correct);
            all.add(record.correct);
        }
        let scores: Vec<Score> = by_subject.values().copied().collect();
        let k = scores.len() as f64;
        let variances = scores.iter().map(|score| Some(score.standard_error()?.powi(2))).sum::<Option<f64>>();
        Self {
            all,
            micro: all.accuracy(),
            micro_error: all.standard_error(),
            pooled_error: pooled_error(&scores),
            macro_average: scores.iter().map(|score| score.accuracy()).sum::<f64>() / k,
            macro_error: variances.filter(|_| !scores.is_empty()).map(|sum| sum.sqrt() / k),
            ties: records.iter().filter(|record| record.tied()).count(),
            categories: CATEGORIES.iter().filter_map(|(c, subjects)| of_category(*c, subjects, &by_subject)).collect(),
            subjects: by_subject
                .into_iter()
                .map(|(subject, score)| SubjectScore {
                    subject: subject.to_owned(),
                    score,
                    accuracy: score.accuracy(),
                    standard_error: score.standard_error(),
                })
                .collect(),
        }
    }

    /// The table that ModelOpt's `megatron_mmlu` prints: one line a subject, the micro average last.
    pub fn reference_table(&self) -> String {
        let mut table = String::new();
        let subjects = self.subjects.iter().map(|s| (s.subject.as_str(), s.score));
        for (name, score) in subjects.chain([("average", self.all)]) {
            let Score { correct, total } = score;
            // Writing to a string does not fail.
            let _ = writeln!(table, "{name:48} | {:.3} | {correct:5}/{total:5}", score.accuracy());
        }
        table
    }
}

fn of_category(category: Category, subjects: &[&str], scores: &BTreeMap<&str, Score>) -> Option<CategoryScore> {
    let scores: Vec<Score> = subjects.iter().filter_map(|subject| scores.get(subject).copied()).collect();
    let sum = |count: fn(&Score) -> usize| scores.iter().map(count).sum();
    let score = Score { correct: sum(|s| s.correct), total: sum(|s| s.total) };
    let accuracy = score.accuracy();
    (score.total > 0).then(|| CategoryScore { category, score, accuracy, pooled_error: pooled_error(&scores) })
}

fn pooled_error(scores: &[Score]) -> Option<f64> {
    let rows: usize = scores.iter().map(|score| score.total).sum();
    let weighted = |score: &Score| {
        // One question has no error, and the weight zero.
        score.standard_error().map_or(0.0, |e| (score.total - 1) as f64 * e * e * score.total as f64)
    };
    let sum: f64 = scores.iter().map(weighted).sum();
    (rows > scores.len()).then(|| (sum / (rows - scores.len()) as f64 / rows as f64).sqrt())
}
