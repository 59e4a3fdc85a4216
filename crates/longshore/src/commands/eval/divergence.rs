//! How far two checkpoints are apart: their distributions over the next token of a text, and their answers to questions.

use super::likelihood::{Cut, real_rows};
use super::provenance;
use super::questions::{self, Chosen, Encoded};
use super::{LOGITS, with_error};
use crate::cli::eval::KlArgs;
use crate::commands::Answer;
use crate::engine::{Loaded, Opened, precision_name};
use crate::error::UsageError;
use crate::options::Env;
use crate::passes;
use crate::report::{Report, peak_memory, table};
use crate::units::{count, counted};
use anyhow::Result;
use longshore_eval::compare::{Comparison, compare};
use longshore_eval::divergence::{Divergence, Mean, Position, Summary, WindowSum};
use longshore_eval::mmlu::{Record, Scores};
use longshore_eval::perplexity::log_probs;
use longshore_infer::schedule::Schedule;
use longshore_infer::sweep::each_pair;
use serde::Serialize;
use serde_json::json;

/// What the report has beside what `--json` prints.
#[derive(Serialize)]
struct Kept<'a> {
    windows: Vec<WindowSum>,
    mmlu: Option<Answers<'a>>,
}

/// Both checkpoints' answers.
#[derive(Serialize)]
struct Answers<'a> {
    records: &'a [Vec<Record>; 2],
}

pub(super) fn run(args: &KlArgs, env: &Env, report: &Report) -> Result<Answer> {
    if args.mmlu.is_none() && args.ask.is_given() {
        return Err(UsageError::NoQuestions.into());
    }
    super::check_outputs(&[args.pass.keep.report.as_ref()])?;
    let read = args.mmlu.as_deref().map(|data| questions::read(Some(data), env)).transpose()?;
    let chosen = read.as_ref().map(|(data, _)| Chosen::new(data, &args.ask, args.limit_questions)).transpose()?;
    let a = Opened::new(&args.a, &args.pass.engine, env, report)?;
    let b = Opened::new(&args.b, &args.pass.engine, env, report)?;
    let cut = Cut::of(&args.windows, &a)?;
    cut.say(report);
    let encoded = match &chosen {
        Some(chosen) => Some(chosen.encode(a.tokenizer()?)?),
        None => None,
    };
    if let (Some(chosen), Some(encoded)) = (&chosen, &encoded) {
        let questions = counted(chosen.rows.len() as u64, "question");
        report.status("MMLU", &format!("{questions} ({}), {} tokens", chosen.style, count(encoded.tokens() as u64)));
    }
    let opened = [(args.a.as_path(), &a), (args.b.as_path(), &b)];
    let mut provenance = None;
    if !args.windows.dry_run {
        provenance = provenance::of(&opened, &args.pass.engine, &args.pass.keep, report)?;
    }
    if let Some(provenance) = &mut provenance {
        provenance.text = Some(cut.scored(&args.windows));
        let asked = chosen.as_ref().zip(read.as_ref());
        provenance.questions = asked.map(|(chosen, (_, path))| chosen.asked(path, &args.ask, args.limit_questions));
    }
    // Windows first, then questions: one pass over each model.
    let mut prompts = cut.prompts.clone();
    prompts.extend(encoded.iter().flat_map(|encoded| encoded.ids.iter().cloned()));
    // The two may be one checkpoint.
    let keys = [a.pass_key(&args.pass.engine, &prompts, &"kl a")?, b.pass_key(&args.pass.engine, &prompts, &"kl b")?];
    let precision = precision_name(a.precision);
    // One after the other, but the residual streams of both are kept to the end.
    let schedule = Schedule::shared(&prompts, cut.prompts.len(), args.pass.engine.batch_tokens as usize);
    let load = |opened: Opened| opened.load(&args.pass.engine, schedule.demand(LOGITS), 2, report);
    let (a, b) = (load(a)?, load(b)?);
    let rows = common_rows(&a, &b)?;
    cut.check_rows(rows)?;
    let windows = cut.prompts.len();
    if args.windows.dry_run {
        let positions = cut.positions() + prompts.len() - windows;
        let plan = |loaded| passes::estimate(loaded, (&prompts, &schedule), (positions, LOGITS), report);
        let plans = [plan(&a)?, plan(&b)?];
        if report.is_json() {
            report.json("eval", &json!({"task": "kl", "dry_run": true, "windowing": cut.windowing, "plan": plans}))?;
        }
        return Ok(Answer::Yes);
    }
    let how = (&args.pass.engine, &args.pass.save);
    let pass_a = passes::sweep(&a, (&prompts, schedule.clone()), how, &keys[0], report)?;
    let pass_b = passes::sweep(&b, (&prompts, schedule), how, &keys[1], report)?;
    let mut positions: Vec<Vec<Position>> = vec![Vec::new(); windows];
    let mut logits = [vec![[f32::NAN; 4]; prompts.len() - windows], vec![[f32::NAN; 4]; prompts.len() - windows]];
    let (mut failed, mut base, mut other) = (None, Vec::new(), Vec::new());
    each_pair(
        &pass_a.sweep,
        &pass_b.sweep,
        LOGITS,
        |p, at| if p < windows { cut.wanted(p, at) } else { at + 1 == prompts[p].len() },
        |p, at, row_a, row_b| {
            if let (Some(question), Some(encoded)) = (p.checked_sub(windows), &encoded) {
                for (logits, row) in logits.iter_mut().zip([row_a, row_b]) {
                    logits[question] = encoded.of(row);
                }
                return;
            }
            log_probs(&row_a[..rows], &mut base);
            log_probs(&row_b[..rows], &mut other);
            match Position::of(&base, &other, prompts[p][at + 1]) {
                Ok(position) => positions[p].push(position),
                Err(error) => failed = failed.take().or(Some(error)),
            }
        },
    )?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let mut divergence = Divergence::default();
    for window in &positions {
        divergence.add_window(window);
    }
    let summary = divergence.summary();
    let records = match (&chosen, &encoded) {
        (Some(chosen), Some(encoded)) => Some(answers(chosen, encoded, logits)?),
        _ => None,
    };
    let compared = records.as_ref().map(|[a, b]| compare(a, b)).transpose()?;
    let fields = json!({
        "task": "kl", "windowing": cut.windowing, "precision": precision, "summary": summary, "questions": compared,
        "peak_memory": peak_memory(),
    });
    let kept = Kept { windows: divergence.windows(), mmlu: records.as_ref().map(|records| Answers { records }) };
    provenance::write(&fields, provenance.as_ref(), &kept, &args.pass.keep, report)?;
    pass_a.saver.discard();
    pass_b.saver.discard();
    if report.is_json() {
        provenance::print(&fields, provenance.as_ref(), report)?;
    } else {
        report.data(&shown(summary.as_ref(), records.as_ref().zip(compared.as_ref())))?;
    }
    Ok(Answer::Yes)
}

/// The answers of both.
fn answers(chosen: &Chosen<'_>, encoded: &Encoded, [a, b]: [Vec<[f32; 4]>; 2]) -> Result<[Vec<Record>; 2]> {
    Ok([chosen.records(&encoded.hashes, a)?, chosen.records(&encoded.hashes, b)?])
}

/// Rows of the vocabulary that both models have: padding has no part in a distribution. A checkpoint without a config does
/// not say how many of its rows are padding, so those of the other count, if they can.
fn common_rows(a: &Loaded, b: &Loaded) -> Result<usize> {
    let [rows_a, rows_b] = [real_rows(a)?, real_rows(b)?];
    let could_be = |loaded: &Loaded, found: usize, rows: usize| {
        loaded.may_be_padded() && found <= rows && rows <= loaded.model.vocab()
    };
    if rows_a == rows_b || could_be(b, rows_b, rows_a) && !a.may_be_padded() {
        return Ok(rows_a);
    }
    if could_be(a, rows_a, rows_b) && !b.may_be_padded() {
        return Ok(rows_b);
    }
    Err(UsageError::Vocabularies { a: rows_a, b: rows_b }.into())
}

fn shown(summary: Option<&Summary>, questions: Option<(&[Vec<Record>; 2], &Comparison)>) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    if let Some(s) = summary {
        let of = |Mean { mean, error }: Mean| with_error(mean, error, 6);
        row("positions", s.positions.to_string());
        row("KL(A || B), nats", of(s.kl));
        let quantiles = [s.kl_median, s.kl_p99, s.kl_p999, s.kl_max].map(|x| format!("{x:.6}"));
        row("  median, 99 %, 99.9 %, largest", quantiles.join(", "));
        row("KL(B || A), nats", of(s.reverse_kl));
        row("same most likely token", of(s.same_top));
        row("nats a token, B less A", of(s.nll_difference));
    }
    if let Some((records, c)) = questions {
        let percent = |x: f64, error: Option<f64>| with_error(x * 100.0, error.map(|e| e * 100.0), 2);
        row("questions", c.questions.to_string());
        for (name, records) in ["accuracy of A, %", "accuracy of B, %"].into_iter().zip(records) {
            let scores = Scores::of(records);
            row(name, percent(scores.micro, scores.pooled_error.or(scores.micro_error)));
        }
        row("accuracy, B less A, points", percent(c.difference, c.difference_error));
        row("right -> wrong, wrong -> right", format!("{}, {}", c.only_first, c.only_second));
        row("McNemar's p", format!("{:.4}", c.p_value));
        row("other letters chosen", c.other_choices.to_string());
    }
    table(&rows, &[])
}
