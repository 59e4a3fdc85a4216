//! MMLU: one prefill per question, and the letter with the largest logit.

use super::questions::{self, Chosen};
use super::{LOGITS, endpoint, provenance, with_error};
use crate::cli::eval::MmluArgs;
use crate::commands::Answer;
use crate::engine::{Opened, precision_name, scratch, with_tokenizer};
use crate::extra_args::Job;
use crate::options::Env;
use crate::passes;
use crate::report::{Report, peak_memory, table};
use crate::units::{count, counted};
use anyhow::Result;
use longshore_ckpt::fs;
use longshore_eval::mmlu::{self, Record, Scores, Style};
use longshore_eval::saved::Provenance;
use longshore_infer::schedule::Schedule;
use serde::Serialize;
use serde_json::{Value, json};

pub(in crate::commands) fn run(args: &MmluArgs, env: &Env, report: &Report) -> Result<Answer> {
    super::check_outputs(&[args.pass.keep.report.as_ref(), args.per_question.as_ref(), args.save_prompts.as_ref()])?;
    let (data, path) = questions::read(args.data.as_deref(), env)?;
    let chosen = Chosen::new(&data, &args.ask, args.limit)?;
    let with_questions =
        |provenance| Provenance { questions: Some(chosen.asked(&path, &args.ask, args.limit)), ..provenance };
    let top = args.top_logprobs.map(|_| "--top-logprobs");
    if let Some(url) = endpoint::address(&args.endpoint, top.as_slice())? {
        let provenance = provenance::of_server(&args.pass.keep, report).map(with_questions);
        return run_at(url, args, &chosen, provenance.as_ref(), env, report);
    }
    let checkpoint = super::checkpoint(args.checkpoint.as_ref(), env)?;
    let engine = with_tokenizer(&args.pass.engine, &checkpoint, env, report)?;
    let opened = Opened::new(&checkpoint.value, &engine, env, report)?;
    opened.check_arguments(env, Job::Mmlu, report)?;
    let encoded = chosen.encode(opened.tokenizer()?)?;
    if let Some(path) = &args.save_prompts {
        encoded.save(path)?;
    }
    let (ids, tokens) = (&encoded.ids, encoded.tokens());
    let whole = if args.no_prefix_reuse { ids.len() } else { 0 };
    let schedule = Schedule::shared(ids, whole, args.pass.engine.batch_tokens as usize);
    say_plan(args, &chosen, Some((tokens, schedule.rows())), report);
    let key = opened.pass_key(&args.pass.engine, ids, &("mmlu", args.no_prefix_reuse))?;
    let precision = precision_name(opened.precision);
    let mut provenance = None;
    if !args.dry_run {
        let known = provenance::of(&[(&checkpoint.value, &opened)], &args.pass.engine, &args.pass.keep, report)?;
        provenance = known.map(with_questions);
    }
    let loaded = opened.load(&args.pass.engine, schedule.demand(LOGITS), 1, report)?;
    if args.dry_run {
        let plan = passes::estimate(&loaded, (ids, &schedule), (ids.len(), LOGITS), report)?;
        return dry_run(args, &chosen, json!({"tokens": tokens, "plan": plan}), report);
    }
    let pass = passes::sweep(&loaded, (ids, schedule), (&args.pass.engine, &args.pass.save), &key, report)?;
    let mut logits = vec![[f32::NAN; 4]; ids.len()];
    let last = |prompt: usize, position: usize| position + 1 == ids[prompt].len();
    pass.sweep.each_logits(LOGITS, last, |prompt, _, row| {
        logits[prompt] = encoded.of(row);
    })?;
    let records = chosen.records(&encoded.hashes, logits)?;
    let by = json!({"tokens": tokens, "precision": precision, "pass": pass.figures()});
    let answer = score(args, &chosen, &records, (by, provenance.as_ref()), report)?;
    pass.saver.discard();
    Ok(answer)
}

/// The same by a server.
fn run_at(
    url: &str,
    args: &MmluArgs,
    chosen: &Chosen<'_>,
    provenance: Option<&Provenance>,
    env: &Env,
    report: &Report,
) -> Result<Answer> {
    let (texts, hashes) = chosen.texts()?;
    say_plan(args, chosen, None, report);
    if args.dry_run {
        return dry_run(args, chosen, json!({}), report);
    }
    let server = endpoint::Server::new(url, &args.endpoint, env, report)?;
    let (given, told, saver) =
        endpoint::letters(&server, &texts, args.top_logprobs.unwrap_or(20), &scratch(&args.pass.engine))?;
    let records = chosen.records(&hashes, given)?;
    let answer = score(args, chosen, &records, (json!({"endpoint": told}), provenance), report)?;
    saver.discard();
    Ok(answer)
}

/// What only the report has.
#[derive(Serialize)]
struct Kept<'a> {
    records: &'a [Record],
}

/// Scores the answers, writes them and says what they come to; `by` says who answered.
fn score(
    args: &MmluArgs,
    chosen: &Chosen<'_>,
    records: &[Record],
    (by, provenance): (Value, Option<&Provenance>),
    report: &Report,
) -> Result<Answer> {
    if let Some(path) = &args.per_question {
        let lines = records.iter().map(mmlu::write_record).collect::<longshore_eval::Result<String>>()?;
        fs::write_output(path, lines.as_bytes())?;
    }
    let scores = Scores::of(records);
    let mut fields = asked(args, chosen);
    super::extend(&mut fields, by);
    super::extend(&mut fields, json!({"scores": scores, "peak_memory": peak_memory()}));
    provenance::write(&fields, provenance, &Kept { records }, &args.pass.keep, report)?;
    if report.is_json() {
        provenance::print(&fields, provenance, report)?;
    } else if chosen.style == Style::ModelOptExact {
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

/// The questions, as `--json` has them.
fn asked(args: &MmluArgs, chosen: &Chosen<'_>) -> Value {
    json!({
        "task": "mmlu", "style": chosen.style, "few_shots": args.ask.few_shots, "fraction": args.ask.fraction,
        "questions": chosen.rows.len(), "data_sha256": chosen.data.sha256(),
    })
}

fn say_plan(args: &MmluArgs, chosen: &Chosen<'_>, tokens: Option<(usize, usize)>, report: &Report) {
    let tokens = tokens.map_or_else(String::new, |(all, computed)| {
        format!(", {} tokens, {} to compute", count(all as u64), count(computed as u64))
    });
    let questions = counted(chosen.rows.len() as u64, "question");
    let shots = counted(args.ask.few_shots as u64, "shot");
    report.status("MMLU", &format!("{questions} ({}, {shots}){tokens}", chosen.style));
    for unusual in chosen.data.unusual() {
        report.note("Note", &unusual.to_string());
    }
}

/// Prints `plan`, where it was not said in words.
fn dry_run(args: &MmluArgs, chosen: &Chosen<'_>, plan: Value, report: &Report) -> Result<Answer> {
    if report.is_json() {
        let mut fields = asked(args, chosen);
        super::extend(&mut fields, json!({"dry_run": true}));
        super::extend(&mut fields, plan);
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
