//! MMLU: one prefill per question, and the letter with the largest logit.

use super::{LOGITS, endpoint, with_error};
use crate::cli::eval::MmluArgs;
use crate::commands::Answer;
use crate::engine::{Opened, precision_name, scratch};
use crate::locate;
use crate::options::Env;
use crate::passes;
use crate::report::{Report, peak_memory, table};
use crate::units::{count, counted};
use anyhow::{Context, Result};
use longshore_eval::mmlu::{self, Given, LETTERS, Mmlu, Prompts, Record, Row, Scores, Selection, Style};
use longshore_infer::schedule::Schedule;
use longshore_infer::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::path::Path;

pub(in crate::commands) fn run(args: &MmluArgs, env: &Env, report: &Report) -> Result<Answer> {
    let style: Style = args.style.parse()?;
    let data = match args.data.as_deref() {
        Some(name) if name == Path::new("bundled") => mmlu::bundled()?,
        given => mmlu::read(&locate::mmlu(given, env)?)?,
    };
    let selection = Selection { fraction: args.fraction, subjects: args.subjects.clone(), limit: args.limit };
    let rows = mmlu::select(&data.test, &selection)?;
    let subjects = rows.iter().map(|row| row.question.subject.as_str());
    let prompts = Prompts::new(style, args.few_shots, &data.dev, subjects)?;
    let top = args.top_logprobs.map(|_| "--top-logprobs");
    if let Some(url) = endpoint::address(&args.endpoint, top.as_slice())? {
        return run_at(url, args, style, &data, (&rows, &prompts), env, report);
    }
    let checkpoint = super::checkpoint(args.checkpoint.as_ref(), env)?;
    let opened = Opened::new(&checkpoint, &args.engine, env, report)?;
    let tokenizer = opened.tokenizer()?;
    let letters = letters(tokenizer)?;
    let (mut ids, mut hashes) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
    for row in &rows {
        let prompt = prompts.prompt(row.question)?;
        // Special tokens as the tokenizer's own rules have them: a begin-of-text token if it adds one.
        ids.push(tokenizer.encode(&prompt.text(), true)?);
        hashes.push(prompt.hash());
    }
    let batch_tokens = args.engine.batch_tokens as usize;
    let schedule =
        if args.no_prefix_reuse { Schedule::whole(&ids, batch_tokens) } else { Schedule::shared(&ids, batch_tokens) };
    let tokens: usize = ids.iter().map(Vec::len).sum();
    say_plan(args, style, &data, rows.len(), Some((tokens, schedule.rows())), report);
    let key = opened.pass_key(&args.engine, &ids, &("mmlu", args.no_prefix_reuse))?;
    let precision = precision_name(opened.precision);
    let loaded = opened.load(&args.engine, schedule.demand(LOGITS), 1, report)?;
    if args.dry_run {
        let plan = passes::estimate(&loaded, (&ids, &schedule), (ids.len(), LOGITS), report)?;
        if report.is_json() {
            let fields = json!({
                "task": "mmlu", "dry_run": true, "style": style, "few_shots": args.few_shots, "questions": rows.len(),
                "tokens": tokens, "data_sha256": data.sha256(), "plan": plan,
            });
            report.json("eval", &fields)?;
        }
        return Ok(Answer::Yes);
    }
    let (sweep, saver) = passes::sweep(&loaded, (&ids, schedule), (&args.engine, &args.save), &key, report)?;
    let mut logits = vec![[f32::NAN; 4]; ids.len()];
    let last = |prompt: usize, position: usize| position + 1 == ids[prompt].len();
    sweep.each_logits(LOGITS, last, |prompt, _, row| {
        logits[prompt] = letters.map(|id| row[id as usize]);
    })?;
    let given = logits.into_iter().map(Given::Logits);
    let by = By { tokens: Some(tokens), precision: Some(precision), endpoint: None };
    let answer = score(args, style, &data, rows.iter().zip(hashes).zip(given), &by, report)?;
    saver.discard();
    Ok(answer)
}

/// The same by a server.
fn run_at(
    url: &str,
    args: &MmluArgs,
    style: Style,
    data: &Mmlu,
    (rows, prompts): (&[Row<'_>], &Prompts),
    env: &Env,
    report: &Report,
) -> Result<Answer> {
    let (mut texts, mut hashes) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
    for row in rows {
        let prompt = prompts.prompt(row.question)?;
        texts.push(prompt.text());
        hashes.push(prompt.hash());
    }
    say_plan(args, style, data, rows.len(), None, report);
    if args.dry_run {
        if report.is_json() {
            let fields = json!({
                "task": "mmlu", "dry_run": true, "style": style, "few_shots": args.few_shots, "questions": rows.len(),
                "data_sha256": data.sha256(),
            });
            report.json("eval", &fields)?;
        }
        return Ok(Answer::Yes);
    }
    let server = endpoint::Server::new(url, &args.endpoint, env, report)?;
    let (given, told, saver) =
        endpoint::letters(&server, &texts, args.top_logprobs.unwrap_or(20), &scratch(&args.engine))?;
    let by = By { tokens: None, precision: None, endpoint: Some(told) };
    let answer = score(args, style, data, rows.iter().zip(hashes).zip(given), &by, report)?;
    saver.discard();
    Ok(answer)
}

/// Who answered: the engine, or a server, of which nothing else is known.
struct By {
    tokens: Option<usize>,
    precision: Option<&'static str>,
    endpoint: Option<Value>,
}

/// Scores the answers, writes them and says what they come to.
fn score<'a>(
    args: &MmluArgs,
    style: Style,
    data: &Mmlu,
    answers: impl Iterator<Item = ((&'a Row<'a>, String), Given)>,
    by: &By,
    report: &Report,
) -> Result<Answer> {
    let records = answers.map(|((row, hash), given)| Record::new(*row, hash, given));
    let records = records.collect::<longshore_eval::Result<Vec<Record>>>()?;
    if let Some(path) = &args.per_question {
        let lines = records.iter().map(mmlu::write_record).collect::<longshore_eval::Result<String>>()?;
        std::fs::write(path, lines).with_context(|| format!("writing `{}`", path.display()))?;
    }
    let scores = Scores::of(&records);
    if report.is_json() {
        let fields = json!({
            "task": "mmlu", "style": style, "few_shots": args.few_shots, "fraction": args.fraction, "questions": records.len(),
            "tokens": by.tokens, "data_sha256": data.sha256(), "precision": by.precision, "endpoint": by.endpoint, "scores": scores,
            "peak_memory": peak_memory(),
        });
        report.json("eval", &fields)?;
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

/// The tokens of the four letters.
fn letters(tokenizer: &Tokenizer) -> Result<[u32; 4]> {
    let mut encoded = Vec::with_capacity(4);
    for letter in LETTERS {
        encoded.push(tokenizer.encode(&format!(" {letter}"), false)?);
    }
    Ok(mmlu::letter_ids([0, 1, 2, 3].map(|i| encoded[i].as_slice()))?)
}

fn say_plan(
    args: &MmluArgs,
    style: Style,
    data: &Mmlu,
    questions: usize,
    tokens: Option<(usize, usize)>,
    report: &Report,
) {
    let tokens = tokens.map_or_else(String::new, |(all, computed)| {
        format!(", {} tokens, {} to compute", count(all as u64), count(computed as u64))
    });
    let (questions, shots) = (counted(questions as u64, "question"), counted(args.few_shots as u64, "shot"));
    let text = format!("{questions} ({style}, {shots}){tokens}");
    report.status("MMLU", &text);
    for unusual in data.unusual() {
        report.note("Note", &unusual.to_string());
    }
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
