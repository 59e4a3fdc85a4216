//! Compared runs on a terminal.

use super::super::with_error;
use super::{Compared, Divergences, Paired, Run, facts, farthest_subjects};
use crate::report::table;
use longshore_eval::compare::{Comparison, Flip, Part};
use longshore_eval::divergence::Mean;
use longshore_eval::mmlu::LETTERS;
use std::fmt::Write as _;

/// Subjects that are shown without `-v`.
const SUBJECTS: usize = 10;

/// All tables; at most `flips` questions a run.
pub(super) fn render(compared: &Compared, flips: usize, all_subjects: bool) -> String {
    let runs = &compared.runs;
    let mut rows = vec![head("run", runs)];
    rows.extend(facts(compared));
    rows.extend(figures(compared));
    let mut text = table(&rows, &[]);
    let subjects = subjects(compared);
    if !subjects.is_empty() {
        let shown = if all_subjects { subjects.len() } else { SUBJECTS.min(subjects.len()) };
        let mut rows = vec![head("subject", runs)];
        rows.extend(subjects[..shown].iter().cloned());
        let _ = write!(
            text,
            "\naccuracy in %, farthest from the first run first, {shown} of {} subjects that differ\n{}",
            subjects.len(),
            table(&rows, &[])
        );
    }
    for (i, run) in runs.iter().enumerate() {
        let Some(difference) = difference(run).filter(|d| flips > 0 && !d.flips.is_empty()) else { continue };
        let shown = flips.min(difference.flips.len());
        let _ = write!(
            text,
            "\nrun {} against run 1, {shown} of {} questions that one answers right\n{}",
            i + 1,
            difference.flips.len(),
            table(&flip_rows(i, &difference.flips[..shown]), &[1])
        );
    }
    text
}

fn head(first: &str, runs: &[Run]) -> Vec<String> {
    std::iter::once(first.to_owned()).chain((1..=runs.len()).map(|i| i.to_string())).collect()
}

pub(super) fn difference(run: &Run) -> Option<&Comparison> {
    run.questions.as_ref()?.difference.as_ref()
}

/// Percents with their error.
pub(super) fn percent(value: f64, error: Option<f64>) -> String {
    with_error(value * 100.0, error.map(|e| e * 100.0), 2)
}

fn signed(value: f64, error: Option<f64>) -> String {
    let sign = if value < 0.0 { "" } else { "+" };
    format!("{sign}{}", percent(value, error))
}

/// The figures, a row each, a value for each run.
pub(super) fn figures(compared: &Compared) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, of: &dyn Fn(&Run) -> Option<String>| {
        let values: Vec<Option<String>> = compared.runs.iter().map(of).collect();
        if values.iter().any(Option::is_some) {
            rows.push(
                std::iter::once(name.to_owned()).chain(values.into_iter().map(Option::unwrap_or_default)).collect(),
            );
        }
    };
    let nats = |Mean { mean, error }: Mean| with_error(mean, error, 6);
    row("nats a token", &|run| Some(nats(run.likelihood?.value)));
    row("  difference", &|run| Some(nats(run.likelihood?.difference?)));
    row("perplexity", &|run| {
        let Mean { mean, error } = run.likelihood?.value;
        Some(with_error(mean.exp(), error.map(|e| e * mean.exp()), 4))
    });
    row("  ratio", &|run| {
        let Mean { mean, error } = run.likelihood?.difference?;
        Some(with_error(mean.exp(), error.map(|e| e * mean.exp()), 5))
    });
    for (i, name) in Divergences::NAMES.into_iter().enumerate() {
        let of = |run: &Run| -> Option<Paired> { Some(run.divergences?.all()[i]) };
        row(name, &|run| Some(nats(of(run)?.value)));
        row("  difference", &|run| Some(nats(of(run)?.difference?)));
    }
    row("questions", &|run| Some(run.questions.as_ref()?.scores.all.total.to_string()));
    row("accuracy, %", &|run| {
        let scores = &run.questions.as_ref()?.scores;
        Some(percent(scores.micro, scores.pooled_error.or(scores.micro_error)))
    });
    row("  difference", &|run| difference(run).map(|d| signed(d.difference, d.difference_error)));
    row("  right -> wrong", &|run| difference(run).map(|d| d.only_first.to_string()));
    row("  wrong -> right", &|run| difference(run).map(|d| d.only_second.to_string()));
    row("  McNemar's p", &|run| difference(run).map(|d| format!("{:.4}", d.p_value)));
    row("  other letters", &|run| difference(run).map(|d| d.other_choices.to_string()));
    let ties = |run: &Run| run.questions.as_ref().map_or(0, |q| q.scores.ties);
    if compared.runs.iter().any(|run| ties(run) > 0) {
        row("  ties", &|run| run.questions.as_ref().map(|_| ties(run).to_string()));
    }
    let categories = compared.runs.iter().filter_map(|run| Some(&run.questions.as_ref()?.scores.categories));
    for category in categories.flatten().map(|c| c.category).collect::<std::collections::BTreeSet<_>>() {
        row(&format!("[{}]", category.name()), &|run| {
            let found = run.questions.as_ref()?.scores.categories.iter().find(|c| c.category == category)?;
            let of_first = percent(found.accuracy, found.pooled_error);
            let part = difference(run).and_then(|d| d.categories.iter().find(|part| part.name == category.name()));
            Some(part.map_or(of_first, with_difference))
        });
    }
    rows
}

/// An accuracy, and how far it is from the first run's, and the flips behind it.
fn with_difference(part: &Part) -> String {
    let flips = match (part.only_first, part.only_second) {
        (0, 0) => String::new(),
        (lost, won) => format!(" -{lost} +{won}"),
    };
    format!("{} ({}){flips}", percent(part.second, None), signed(part.difference, part.difference_error))
}

/// Subjects that differ, farthest first: accuracies of the first run, and of the others with the difference.
pub(super) fn subjects(compared: &Compared) -> Vec<Vec<String>> {
    let part = |run: &'_ Run, subject: &str| -> Option<Part> {
        let parts = &difference(run)?.subjects;
        parts.binary_search_by(|part| part.name.as_str().cmp(subject)).ok().map(|i| parts[i].clone())
    };
    let of = |subject: &str| {
        let parts: Vec<Option<Part>> = compared.runs.iter().map(|run| part(run, subject)).collect();
        let (first, questions) = parts.iter().flatten().next().map_or((0.0, 0), |part| (part.first, part.questions));
        let mut row = vec![format!("{subject} ({questions})")];
        row.extend(parts.iter().map(|part| part.as_ref().map_or_else(|| percent(first, None), with_difference)));
        row
    };
    farthest_subjects(compared).into_iter().map(of).collect()
}

/// Questions that one run answers right and the other does not, with a head.
pub(super) fn flip_rows(run: usize, flips: &[Flip]) -> Vec<Vec<String>> {
    let letter = |choice: u8| LETTERS.get(usize::from(choice)).copied().unwrap_or("?").to_owned();
    let chosen = |choice: Option<u8>| choice.map_or_else(|| "none".to_owned(), letter);
    let mut rows =
        vec![vec!["subject".into(), "index".into(), "right".into(), "run 1".into(), format!("run {}", run + 1)]];
    rows.extend(flips.iter().map(|flip| {
        let (first, second) = (chosen(flip.first), chosen(flip.second));
        vec![flip.subject.clone(), flip.index.to_string(), letter(flip.answer), first, second]
    }));
    rows
}
