//! Compared runs as one page.

use super::tables::{difference, figures, flip_rows, subjects};
use super::{Compared, Divergences, Run, facts, farthest_subjects};
use crate::page::plot::{Mark, Rows, Style, legend};
use crate::page::{document, escape, table};
use crate::units::counted;
use longshore_eval::divergence::Mean;
use std::fmt::Write as _;

/// Subjects that are plotted and listed: whoever names a million of them gets a page all the same.
const SUBJECTS: usize = 200;

/// The whole page; at most `flips` questions a run.
pub(super) fn render(compared: &Compared, flips: usize) -> String {
    let names: Vec<String> = compared.runs.iter().enumerate().map(|(i, run)| name(i, run)).collect();
    let title = format!("{} of {}", task(compared.of), counted(compared.runs.len() as u64, "run"));
    let mut page = format!(
        "<h1>{}</h1>\n<p class=\"sub\">Every run is compared with the first; errors are one standard error, \
                            those of differences are paired.</p>\n",
        escape(&title)
    );
    for warning in &compared.warnings {
        let _ = writeln!(page, "<p class=\"note\" role=\"note\">{}</p>", escape(warning));
    }
    let heads: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
    table("Runs", &heads, 1 + names.len(), facts(compared), true, &mut page);
    table("Figures", &heads, 1 + names.len(), figures(compared), true, &mut page);
    let series: Vec<(Style, String)> =
        names.iter().enumerate().map(|(i, name)| (Style::nth(i), name.clone())).collect();
    likelihoods(compared, &series, &mut page);
    if compared.runs.iter().any(|run| run.questions.is_some()) {
        questions(compared, &series, &mut page);
        let rows: Vec<Vec<String>> = subjects(compared).into_iter().take(SUBJECTS).collect();
        let heads: Vec<&str> = std::iter::once("subject (questions)").chain(names.iter().map(String::as_str)).collect();
        table("Accuracy by subject in %, farthest from the first run first", &heads, 1, rows, false, &mut page);
    }
    for (i, run) in compared.runs.iter().enumerate() {
        let Some(difference) = difference(run) else { continue };
        let shown = flips.min(difference.flips.len());
        let title = format!("Run {}: {shown} of {} questions that one answers right", i + 1, difference.flips.len());
        let mut rows = flip_rows(i, &difference.flips[..shown]).into_iter();
        let heads = rows.next().unwrap_or_default();
        let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
        table(&title, &heads, 1, rows.collect(), false, &mut page);
    }
    document(&format!("{title}: comparison"), &page)
}

fn task(task: &str) -> &str {
    match task {
        "mmlu" => "MMLU",
        "ppl" => "Perplexity",
        _ => "Divergence",
    }
}

/// A run's number and what it is of.
fn name(i: usize, run: &Run) -> String {
    let checkpoint = run.provenance.as_ref().and_then(|p| p.checkpoints.last());
    match checkpoint {
        Some(checkpoint) => format!("{}: {}, {}", i + 1, checkpoint.name, checkpoint.precision),
        None => format!("{}: {}", i + 1, run.file),
    }
}

/// A row for each run.
fn by_run(series: &[(Style, String)], of: impl Fn(usize) -> Option<Mean>) -> Vec<(String, Vec<Mark>)> {
    let row = |i: usize| {
        let Mean { mean: value, error } = of(i)?;
        Some((series[i].1.clone(), vec![Mark { series: i, value, error }]))
    };
    (0..series.len()).filter_map(row).collect()
}

fn likelihoods(compared: &Compared, series: &[(Style, String)], page: &mut String) {
    let runs = &compared.runs;
    let exp = |Mean { mean, error }: Mean| Mean { mean: mean.exp(), error: error.map(|e| e * mean.exp()) };
    if runs.iter().any(|run| run.likelihood.is_some()) {
        *page += "<h2>Likelihood</h2>\n";
        let rows = by_run(series, |i| Some(Mean { error: None, ..exp(runs[i].likelihood?.value) }));
        Rows { title: "Perplexity", unit: "", series, bars: true, rows }.draw(page);
        let rows = by_run(series, |i| runs[i].likelihood?.difference);
        Rows { title: "Difference to the first run", unit: "nats a token", series, bars: false, rows }.draw(page);
    }
    if runs.iter().any(|run| run.divergences.is_some()) {
        *page += "<h2>Divergence</h2>\n";
        for (at, title) in Divergences::NAMES.into_iter().enumerate() {
            let rows = by_run(series, |i| Some(runs[i].divergences?.all()[at].value));
            Rows { title, unit: "", series, bars: false, rows }.draw(page);
        }
    }
}

fn questions(compared: &Compared, series: &[(Style, String)], page: &mut String) {
    let runs = &compared.runs;
    *page += "<h2>Accuracy</h2>\n";
    legend(series.iter().map(|(style, name)| (*style, name.as_str())), page);
    let of_all = |i: usize, run: &Run| {
        let scores = &run.questions.as_ref()?.scores;
        let error = scores.pooled_error.or(scores.micro_error).map(|e| e * 100.0);
        Some(Mark { series: i, value: scores.micro * 100.0, error })
    };
    let mut rows = vec![("all".to_owned(), marks(runs, of_all))];
    let categories = runs.iter().filter_map(|run| Some(&run.questions.as_ref()?.scores.categories)).flatten();
    for category in categories.map(|c| c.category).collect::<std::collections::BTreeSet<_>>() {
        let of = |i: usize, run: &Run| {
            let found = run.questions.as_ref()?.scores.categories.iter().find(|c| c.category == category)?;
            Some(Mark { series: i, value: found.accuracy * 100.0, error: found.pooled_error.map(|e| e * 100.0) })
        };
        rows.push((category.name().to_owned(), marks(runs, of)));
    }
    Rows { title: "Accuracy by category", unit: "%", series, bars: false, rows }.draw(page);
    *page += "<h2>Differences</h2>\n";
    legend(series[1..].iter().map(|(style, name)| (*style, name.as_str())), page);
    let of_all = |i: usize, run: &Run| {
        let d = difference(run)?;
        Some(Mark { series: i, value: d.difference * 100.0, error: d.difference_error.map(|e| e * 100.0) })
    };
    let mut rows = vec![("all".to_owned(), marks(runs, of_all))];
    let subjects = farthest_subjects(compared);
    for subject in subjects.iter().take(SUBJECTS) {
        let of = |i: usize, run: &Run| {
            let parts = &difference(run)?.subjects;
            let part = parts.binary_search_by(|part| part.name.as_str().cmp(subject)).ok().map(|at| &parts[at])?;
            Some(Mark { series: i, value: part.difference * 100.0, error: part.difference_error.map(|e| e * 100.0) })
        };
        rows.push(((*subject).to_owned(), marks(runs, of)));
    }
    // One scale from the most lost to the most won, by the run that differs most.
    rows[1..].sort_by(|a, b| extreme(&a.1).total_cmp(&extreme(&b.1)));
    let left = subjects.len().saturating_sub(SUBJECTS);
    if left > 0 {
        let _ = writeln!(page, "<p>{} with smaller differences are left out.</p>", counted(left as u64, "subject"));
    }
    Rows {
        title: "Difference to the first run by subject; the others do not differ",
        unit: "points",
        series,
        bars: false,
        rows,
    }
    .draw(page);
    flips(compared, page);
}

/// Questions lost to the left, won to the right.
fn flips(compared: &Compared, page: &mut String) {
    let series = [
        (Style { color: 1, shape: 0 }, "right -> wrong".to_owned()),
        (Style { color: 2, shape: 1 }, "wrong -> right".to_owned()),
    ];
    for (i, run) in compared.runs.iter().enumerate() {
        let Some(d) = difference(run) else { continue };
        let of = |name: &str, lost: usize, won: usize| {
            let lost = Mark { series: 0, value: -(lost as f64), error: None };
            (name.to_owned(), vec![lost, Mark { series: 1, value: won as f64, error: None }])
        };
        let mut rows = vec![of("all", d.only_first, d.only_second)];
        rows.extend(d.categories.iter().map(|part| of(&part.name, part.only_first, part.only_second)));
        if i == 1 {
            *page += "<h2>Flips</h2>\n";
            legend(series.iter().map(|(style, name)| (*style, name.as_str())), page);
        }
        let title = format!("Questions that run {} answers otherwise than the first", i + 1);
        Rows {
            title: &title,
            unit: "questions; lost to the left, won to the right",
            series: &series,
            bars: true,
            rows,
        }
        .draw(page);
    }
}

fn marks(runs: &[Run], of: impl Fn(usize, &Run) -> Option<Mark>) -> Vec<Mark> {
    runs.iter().enumerate().filter_map(|(i, run)| of(i, run)).collect()
}

/// The value farthest from zero.
fn extreme(marks: &[Mark]) -> f64 {
    marks.iter().map(|mark| mark.value).max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0)
}
