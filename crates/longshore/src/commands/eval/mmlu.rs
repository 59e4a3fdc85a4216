//! MMLU: one prefill per question, and the letter with the largest logit.

use super::questions::{self, Chosen};
use super::{LOGITS, demand, provenance, with_error};
use crate::cli::eval::MmluArgs;
use crate::commands::Answer;
use crate::engine::{Opened, precision_name};
use crate::options::Env;
use crate::passes;
use crate::report::{Report, peak_memory, table};
use crate::units::{count, counted};
use anyhow::Result;
use longshore_ckpt::fs;
use longshore_eval::mmlu::{self, Mmlu, Record, Scores, Style};
use serde::Serialize;
use serde_json::json;

pub(in crate::commands) fn run(args: &MmluArgs, env: &Env, report: &Report) -> Result<Answer> {
    super::check_outputs(&[args.pass.keep.report.as_ref(), args.per_question.as_ref()])?;
    let data = questions::read(&args.data)?;
    let chosen = Chosen::new(&data, &args.ask, args.limit)?;
    let (style, rows) = (chosen.style, &chosen.rows);
    let checkpoint = super::checkpoint(args.checkpoint.as_ref(), env)?;
    let opened = Opened::new(&checkpoint, &args.pass.engine, env, report)?;
    let encoded = chosen.encode(opened.tokenizer()?)?;
    let (ids, tokens) = (&encoded.ids, encoded.tokens());
    say_plan(args, style, &data, rows.len(), tokens, report);
    if args.dry_run {
        return dry_run(args, style, &data, (rows.len(), tokens), report);
    }
    let mut provenance = provenance::of(&[(&checkpoint, &opened)], &args.pass.engine, &args.pass.keep, report)?;
    if let Some(provenance) = &mut provenance {
        provenance.questions = Some(chosen.asked(&args.data, &args.ask, args.limit));
    }
    let key = opened.pass_key(&args.pass.engine, ids, &"mmlu")?;
    let precision = precision_name(opened.precision);
    let loaded = opened.load(&args.pass.engine, demand(ids, args.pass.engine.batch_tokens), 1, report)?;
    let (sweep, saver) = passes::sweep(&loaded, ids, (&args.pass.engine, &args.pass.save), &key, report)?;
    let mut logits = vec![[f32::NAN; 4]; ids.len()];
    let last = |prompt: usize, position: usize| position + 1 == ids[prompt].len();
    sweep.each_logits(LOGITS, last, |prompt, _, row| {
        logits[prompt] = encoded.of(row);
    })?;
    let records = chosen.records(&encoded.hashes, &logits)?;
    if let Some(path) = &args.per_question {
        let lines = records.iter().map(mmlu::write_record).collect::<longshore_eval::Result<String>>()?;
        fs::write_output(path, lines.as_bytes())?;
    }
    let scores = Scores::of(&records);
    let fields = json!({
        "task": "mmlu", "style": style, "few_shots": args.ask.few_shots, "fraction": args.ask.fraction,
        "questions": records.len(), "tokens": tokens, "data_sha256": data.sha256(), "precision": precision, "scores": scores,
        "peak_memory": peak_memory(),
    });
    provenance::write(&fields, provenance.as_ref(), &Kept { records: &records }, &args.pass.keep, report)?;
    saver.discard();
    if report.is_json() {
        provenance::print(&fields, provenance.as_ref(), report)?;
    } else if style == Style::ModelOptExact {
        report.data(&scores.reference_table())?;
    } else {
        report.data(&shown(&scores))?;
    }
    let passed = args.lower_bound.is_none_or(|bound| scores.micro > bound);
    if !passed {
        report.note("Failed", &format!("the accuracy is not above {}", args.lower_bound.unwrap_or_default()));
    }
    Ok(if passed { Answer::Yes } else { Answer::No })
}

/// What only the report has.
#[derive(Serialize)]
struct Kept<'a> {
    records: &'a [Record],
}

fn say_plan(args: &MmluArgs, style: Style, data: &Mmlu, questions: usize, tokens: usize, report: &Report) {
    let text = format!(
        "{} ({style}, {}), {} tokens",
        counted(questions as u64, "question"),
        counted(args.ask.few_shots as u64, "shot"),
        count(tokens as u64)
    );
    report.status("MMLU", &text);
    for unusual in data.unusual() {
        report.note("Note", &unusual.to_string());
    }
}

fn dry_run(
    args: &MmluArgs,
    style: Style,
    data: &Mmlu,
    (questions, tokens): (usize, usize),
    report: &Report,
) -> Result<Answer> {
    if report.is_json() {
        let fields = json!({
            "task": "mmlu", "dry_run": true, "style": style, "few_shots": args.ask.few_shots, "questions": questions, "tokens": tokens,
            "data_sha256": data.sha256(),
        });
        report.json("eval", &fields)?;
    }
    Ok(Answer::Yes)
}

/// The table by subject and category.
fn shown(scores: &Scores) -> String {
    let row = |name: &str, total: usize, accuracy: f64, error: Option<f64>| {
        vec![name.to_owned(), total.to_string(), with_error(accuracy * 100.0, error.map(|e| e * 100.0), 2)]
    };
    let mut rows = vec![["subject", "questions", "accuracy %"].map(str::to_owned).to_vec()];
    for s in &scores.subjects {
        rows.push(row(&s.subject, s.score.total, s.accuracy, s.standard_error));
    }
    for c in &scores.categories {
        rows.push(row(&format!("[{}]", c.category.name()), c.score.total, c.accuracy, c.pooled_error));
    }
    let all = scores.all.total;
    rows.push(row("macro average", all, scores.macro_average, scores.macro_error));
    rows.push(row("micro average", all, scores.micro, scores.pooled_error.or(scores.micro_error)));
    let ties = match scores.ties {
        0 => String::new(),
        ties => format!("{} with several largest logits; the first letter counted\n", counted(ties as u64, "question")),
    };
    table(&rows, &[1, 2]) + &ties
}
