//! `longshore eval compare`: saved runs side by side, each against the first with paired errors.

mod page;
mod tables;

use super::provenance::last_component;
use crate::cli::eval::CompareArgs;
use crate::commands::Answer;
use crate::error::UsageError;
use crate::report::Report;
use crate::units::counted;
use anyhow::Result;
use longshore_ckpt::fs;
use longshore_eval::compare::{
    Comparison, Mismatch, compare, compare_divergences, compare_likelihoods, divergences, likelihood, mismatches,
};
use longshore_eval::divergence::Mean;
use longshore_eval::mmlu::{Record, Scores};
use longshore_eval::saved::{self, Outcome, Provenance};
use serde::Serialize;
use std::path::PathBuf;

/// Runs that were compared.
#[derive(Serialize)]
struct Compared {
    /// `compare`, as reports name their task.
    task: &'static str,
    /// The task of the runs.
    of: &'static str,
    runs: Vec<Run>,
    /// What a reader should know before believing the differences.
    warnings: Vec<String>,
}

/// A run, and what separates it from the first.
#[derive(Serialize)]
struct Run {
    /// The file's name.
    file: String,
    provenance: Option<Provenance>,
    /// What the first was asked otherwise.
    mismatches: Vec<Mismatch>,
    /// Answers.
    questions: Option<Questions>,
    /// Nats a token of the true tokens.
    likelihood: Option<Paired>,
    /// How far the run's second checkpoint is from its first.
    divergences: Option<Divergences>,
}

/// The means of a divergence.
#[derive(Clone, Copy, Serialize)]
struct Divergences {
    kl: Paired,
    reverse_kl: Paired,
    same_top: Paired,
    nll_difference: Paired,
}

impl Divergences {
    /// Of means in the order of [`divergences`].
    fn of([kl, reverse_kl, same_top, nll_difference]: [Paired; 4]) -> Self {
        Self { kl, reverse_kl, same_top, nll_difference }
    }

    /// What people call them, in the same order.
    const NAMES: [&str; 4] =
        ["KL(A || B), nats", "KL(B || A), nats", "same most likely token", "nats a token, B less A"];

    fn all(&self) -> [Paired; 4] {
        [self.kl, self.reverse_kl, self.same_top, self.nll_difference]
    }
}

/// Accuracies, and the difference to the first run.
#[derive(Serialize)]
struct Questions {
    scores: Scores,
    /// `None` for the first run.
    difference: Option<Comparison>,
}

/// A figure, and its difference to the first run's.
#[derive(Clone, Copy, Serialize)]
struct Paired {
    value: Mean,
    /// `None` for the first run.
    difference: Option<Mean>,
}

pub(super) fn run(args: &CompareArgs, report: &Report) -> Result<Answer> {
    super::check_outputs(&[args.html.as_ref()])?;
    let (mut runs, mut problems) = (Vec::with_capacity(args.runs.len()), Vec::new());
    for path in &args.runs {
        saved::read(path).map_or_else(|error| problems.push(error.to_string()), |run| runs.push(run));
    }
    if !problems.is_empty() {
        return Err(UsageError::NoRuns { problems }.into());
    }
    let compared = Compared::of(&args.runs, runs)?;
    for warning in &compared.warnings {
        report.note("Warning", warning);
    }
    if let Some(path) = &args.html {
        fs::write_output(path, page::render(&compared, args.flips).as_bytes())?;
        report.status("Page", &path.display().to_string());
    }
    if report.is_json() {
        report.json("eval", &compared)?;
    } else {
        report.data(&tables::render(&compared, args.flips, report.verbosity() > 0))?;
    }
    Ok(Answer::Yes)
}

impl Compared {
    /// Compares all runs with the first. Everything that keeps any of them from being compared is told at once.
    fn of(paths: &[PathBuf], runs: Vec<saved::Run>) -> Result<Self> {
        let Some(first) = runs.first().cloned() else {
            return Err(UsageError::NotComparable { problems: vec!["there is none".to_owned()] }.into());
        };
        let (of, size) = (first.outcome.task(), runs.len());
        let mut out = Self { task: "compare", of, runs: Vec::with_capacity(size), warnings: Vec::new() };
        let mut problems = Vec::new();
        for (i, (run, path)) in runs.into_iter().zip(paths).enumerate() {
            let name = format!("run {} (`{}`)", i + 1, last_component(path));
            let base = (i > 0).then_some(&first);
            let mismatches = base.map(|base| mismatches(base, &run)).unwrap_or_default();
            let text =
                |m: &Mismatch| format!("{name}: {} {}; the first has {}", m.what, shown(&m.second), shown(&m.first));
            let questions = match (answers(&run.outcome), base.map(|base| answers(&base.outcome))) {
                (Some(records), None | Some(None)) => Ok(Some((Scores::of(records), None))),
                (Some(records), Some(Some(of_base))) => {
                    compare(of_base, records).map(|difference| Some((Scores::of(records), Some(difference))))
                }
                (None, _) => Ok(None),
            };
            if questions.is_err() || mismatches.iter().any(|m| m.fatal) {
                problems.extend(mismatches.iter().map(text));
                problems.extend(questions.err().map(|error| format!("{name}: {error}")));
                continue;
            }
            let questions = questions.ok().flatten();
            out.warnings.extend(mismatches.iter().map(text));
            if let Some((_, Some(difference))) = &questions {
                out.warn_of_prompts(&name, difference);
            }
            out.warn_of_silence(&name, &run);
            let pair = |value: Mean, difference: Option<Mean>| Paired { value, difference };
            let (likelihood, divergences) = match (&run.outcome, base.map(|base| &base.outcome)) {
                (Outcome::Perplexity(windows), base) => {
                    let difference = match base {
                        Some(Outcome::Perplexity(base)) => Some(compare_likelihoods(base, windows)),
                        _ => None,
                    };
                    (Some(pair(likelihood(windows), difference)), None)
                }
                (Outcome::Divergence(windows, _), base) => {
                    let differences = match base {
                        Some(Outcome::Divergence(base, _)) => compare_divergences(base, windows).map(Some),
                        _ => [None; 4],
                    };
                    let values = divergences(windows);
                    let all = [0, 1, 2, 3].map(|i| pair(values[i], differences[i]));
                    (None, Some(Divergences::of(all)))
                }
                (Outcome::Mmlu(_), _) => (None, None),
            };
            out.runs.push(Run {
                file: last_component(path),
                provenance: run.provenance,
                mismatches,
                questions: questions.map(|(scores, difference)| Questions { scores, difference }),
                likelihood,
                divergences,
            });
        }
        if problems.is_empty() { Ok(out) } else { Err(UsageError::NotComparable { problems }.into()) }
    }

    fn warn_of_prompts(&mut self, name: &str, difference: &Comparison) {
        if difference.other_prompts > 0 {
            let all = counted(difference.questions as u64, "question");
            self.warnings.push(format!("{name}: {} of {all} were asked in other words", difference.other_prompts));
        }
    }

    /// What a run does not say, so that nothing is known to differ.
    fn warn_of_silence(&mut self, name: &str, run: &saved::Run) {
        let Some(provenance) = &run.provenance else {
            let what = "does not say with which checkpoint, data and tokenizer it was made";
            return self.warnings.push(format!("{name} {what}"));
        };
        if self.of == "kl" && provenance.checkpoints.first().is_none_or(|reference| reference.weights.is_none()) {
            self.warnings.push(format!("{name} does not say which weights its reference has"));
        }
    }
}

/// The answers that a run has; of a divergence those of its second checkpoint.
fn answers(outcome: &Outcome) -> Option<&[Record]> {
    match outcome {
        Outcome::Mmlu(records) | Outcome::Divergence(_, Some([_, records])) => Some(records),
        Outcome::Perplexity(_) | Outcome::Divergence(_, None) => None,
    }
}

/// A hash is told by its begin, and nothing as a word.
fn shown(value: &str) -> &str {
    let is_hash = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
    match value {
        "" => "all",
        hash if is_hash => &hash[..12],
        other => other,
    }
}

/// Facts about the runs, a row each: a name, then a value for each run.
fn facts(compared: &Compared) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = |name: &str, of: &dyn Fn(&Run) -> Option<String>| {
        let values: Vec<Option<String>> = compared.runs.iter().map(of).collect();
        if values.iter().any(Option::is_some) {
            let cells = values.into_iter().map(Option::unwrap_or_default);
            rows.push(std::iter::once(name.to_owned()).chain(cells).collect());
        }
    };
    row("file", &|run| Some(run.file.clone()));
    let each = |run: &Run, of: &dyn Fn(&saved::Checkpoint) -> Option<String>| {
        let found: Vec<String> = run.provenance.as_ref()?.checkpoints.iter().filter_map(of).collect();
        (!found.is_empty()).then(|| found.join(" || "))
    };
    row("checkpoint", &|run| each(run, &|c| Some(c.name.clone())));
    row("format", &|run| each(run, &|c| Some(c.format.clone())));
    row("arithmetic", &|run| each(run, &|c| Some(c.precision.clone())));
    row("time steps from", &|run| each(run, &|c| c.dt_min.map(|x| x.to_string())));
    row("quantized weights", &|run| each(run, &|c| c.quantized_weights.clone()));
    row("weights' hash", &|run| each(run, &|c| Some(shown(&c.weights.as_ref()?.sha256).to_owned())));
    let asked = |run: &Run| run.provenance.as_ref()?.questions.clone();
    row("style, examples", &|run| asked(run).map(|asked| format!("{}, {}", asked.style, asked.few_shots)));
    row("text", &|run| Some(run.provenance.as_ref()?.text.as_ref()?.data.clone()));
    rows
}

/// The parts by how far any run is from the first, the farthest first.
fn farthest_subjects(compared: &Compared) -> Vec<&str> {
    let mut largest: std::collections::BTreeMap<&str, f64> = std::collections::BTreeMap::new();
    let differences = compared.runs.iter().filter_map(|run| run.questions.as_ref()?.difference.as_ref());
    for part in differences.flat_map(|difference| &difference.subjects) {
        let far = largest.entry(&part.name).or_default();
        *far = far.max(part.difference.abs());
    }
    let mut subjects: Vec<(&str, f64)> = largest.into_iter().filter(|(_, far)| *far > 0.0).collect();
    subjects.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    subjects.into_iter().map(|(subject, _)| subject).collect()
}

#[cfg(test)]
mod tests;
