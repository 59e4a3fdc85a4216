//! What the true tokens of a text and the distributions over the next one tell: perplexity of one checkpoint, divergence of two.

use super::{LOGITS, endpoint, with_error};
use crate::cli::eval::{KlArgs, PplArgs, WindowArgs};
use crate::commands::Answer;
use crate::engine::{Opened, precision_name, scratch};
use crate::error::UsageError;
use crate::locate;
use crate::options::Env;
use crate::passes;
use crate::report::{Report, peak_memory, table};
use crate::units::{count, counted};
use anyhow::Result;
use longshore_eval::divergence::{Divergence, Mean, Position};
use longshore_eval::perplexity::{Perplexity, Windowing, log_probs, nll};
use longshore_eval::text::{self, Text};
use longshore_infer::schedule::Schedule;
use longshore_infer::sweep::each_pair;
use longshore_infer::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::ops::Range;

/// Windows over what is read.
struct Cut {
    prompts: Vec<Vec<u32>>,
    /// Positions of each that are scored: tokens, whose logits are those of the position before.
    scored: Vec<Range<usize>>,
    windowing: Windowing,
    /// Words and bytes of the text, where it is one that is scored whole.
    units: Option<[u64; 2]>,
}

impl Cut {
    fn of(args: &WindowArgs, opened: &Opened) -> Result<Self> {
        let check = |line: usize, ids: &[u32]| Ok(opened.check_ids(line, ids)?);
        Self::with(args, opened.tokenizer(), check)
    }

    /// With a tokenizer, or the reason why there is none, and a check of every stream.
    fn with(
        args: &WindowArgs,
        tokenizer: Result<&Tokenizer, UsageError>,
        check: impl Fn(usize, &[u32]) -> Result<()>,
    ) -> Result<Self> {
        // What the tokenizer's own rules put before any text.
        let begin_of_text = match &tokenizer {
            Ok(tokenizer) => tokenizer.encode("", true)?.first().copied(),
            Err(_) => None,
        };
        let (streams, length) = match text::read(&args.data)? {
            Text::Plain(text) => {
                let units = [text.split_whitespace().count() as u64, text.len() as u64];
                (vec![tokenizer?.encode(&text, true)?], Some(units))
            }
            Text::Ids(lines) => (lines, None),
        };
        for (line, ids) in streams.iter().enumerate() {
            check(line, ids)?;
        }
        let (ids_given, ctx) = (length.is_none(), args.ctx);
        let windowing = match (args.stride, args.llama_cpp) {
            (Some(stride), _) => Windowing::Strided { length: ctx, stride },
            (None, true) => Windowing::LlamaCpp { length: ctx },
            (None, false) if ids_given => Windowing::Strided { length: ctx, stride: ctx },
            (None, false) => Windowing::Whole { length: ctx },
        };
        let mut cut = Self { prompts: Vec::new(), scored: Vec::new(), windowing, units: None };
        let (mut scored, mut tokens) = (0, 0);
        'streams: for stream in &streams {
            tokens += stream.len();
            for window in windowing.windows(stream.len())? {
                if args.limit.is_some_and(|limit| cut.prompts.len() >= limit) {
                    break 'streams;
                }
                let begin = window.tokens.start;
                let mut ids = stream[window.tokens.clone()].to_vec();
                if let (true, Some(first)) = (window.begin_of_text, begin_of_text) {
                    ids[0] = first;
                }
                scored += window.scored.len();
                cut.scored.push(window.scored.start - begin..window.scored.end - begin);
                cut.prompts.push(ids);
            }
        }
        // A share of the text's words and bytes as large as that of its tokens.
        cut.units = length.map(|units| units.map(|n| n * scored as u64 / tokens.max(1) as u64));
        Ok(cut)
    }

    fn wanted(&self, prompt: usize, position: usize) -> bool {
        self.scored[prompt].contains(&(position + 1))
    }

    /// Tokens that are scored.
    fn positions(&self) -> usize {
        self.scored.iter().map(Range::len).sum()
    }

    fn say(&self, report: &Report) {
        let tokens = self.positions() as u64;
        let text = format!("{}, {} tokens scored", counted(self.prompts.len() as u64, "window"), count(tokens));
        report.status("Text", &text);
    }
}

pub(super) fn perplexity(args: &PplArgs, env: &Env, report: &Report) -> Result<Answer> {
    if let Some(url) = endpoint::address(&args.endpoint, &[])? {
        return perplexity_at(url, args, env, report);
    }
    let checkpoint = super::checkpoint(args.checkpoint.as_ref(), env)?;
    let opened = Opened::new(&checkpoint, &args.engine, env, report)?;
    let cut = Cut::of(&args.windows, &opened)?;
    cut.say(report);
    let key = opened.pass_key(&args.engine, &cut.prompts, &"ppl")?;
    let precision = precision_name(opened.precision);
    let schedule = Schedule::whole(&cut.prompts, args.engine.batch_tokens as usize);
    let loaded = opened.load(&args.engine, schedule.demand(LOGITS), 1, report)?;
    if args.windows.dry_run {
        let plan = passes::estimate(&loaded, (&cut.prompts, &schedule), (cut.positions(), LOGITS), report)?;
        if report.is_json() {
            report.json("eval", &json!({"task": "ppl", "dry_run": true, "windowing": cut.windowing, "plan": plan}))?;
        }
        return Ok(Answer::Yes);
    }
    let (sweep, saver) = passes::sweep(&loaded, (&cut.prompts, schedule), (&args.engine, &args.save), &key, report)?;
    let mut windows: Vec<Vec<f64>> = vec![Vec::new(); cut.prompts.len()];
    let mut failed = None;
    sweep.each_logits(
        LOGITS,
        |p, at| cut.wanted(p, at),
        |p, at, row| match nll(row, cut.prompts[p][at + 1]) {
            Ok(nll) => windows[p].push(nll),
            Err(error) => failed = failed.take().or(Some(error)),
        },
    )?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    say_perplexity(&cut, &windows, (Some(precision), None), report)?;
    saver.discard();
    Ok(Answer::Yes)
}

/// The same by a server, of whose model at most the tokenizer is here.
fn perplexity_at(url: &str, args: &PplArgs, env: &Env, report: &Report) -> Result<Answer> {
    let cut = match (&args.engine.tokenizer, &args.checkpoint) {
        (None, Some(checkpoint)) => Cut::of(&args.windows, &Opened::new(checkpoint, &args.engine, env, report)?)?,
        (folder, _) => {
            let folder = folder.as_ref().map(|folder| locate::checkpoint(folder, env)).transpose()?;
            let tokenizer = folder.as_ref().map_or(Ok(None), |folder| Tokenizer::load(folder))?;
            if let (Some(path), None) = (folder, &tokenizer) {
                return Err(UsageError::NoTokenizer { path }.into());
            }
            let none = || UsageError::NoTokenizerForText { path: args.windows.data.clone() };
            Cut::with(&args.windows, tokenizer.as_ref().ok_or_else(none), |_, _| Ok(()))?
        }
    };
    cut.say(report);
    let server = endpoint::Server::new(url, &args.endpoint, env, report)?;
    let (windows, told, saver) = endpoint::likelihoods(&server, &cut.prompts, &cut.scored, &scratch(&args.engine))?;
    say_perplexity(&cut, &windows, (None, Some(told)), report)?;
    saver.discard();
    Ok(Answer::Yes)
}

/// What the windows' log-likelihoods come to; `by` are the engine's precision or the server.
fn say_perplexity(
    cut: &Cut,
    windows: &[Vec<f64>],
    (precision, endpoint): (Option<&str>, Option<Value>),
    report: &Report,
) -> Result<()> {
    let mut perplexity = Perplexity::default();
    for window in windows {
        perplexity.add_window(window)?;
    }
    let [words, bytes] = cut.units.map_or([None; 2], |units| units.map(Some));
    let figures = perplexity.figures(words, bytes);
    if report.is_json() {
        let fields = json!({
            "task": "ppl", "windowing": cut.windowing, "precision": precision, "endpoint": endpoint, "figures": figures,
            "peak_memory": peak_memory(),
        });
        report.json("eval", &fields)?;
    } else if let Some(f) = figures {
        let mut rows = vec![
            vec!["tokens scored".to_owned(), f.tokens.to_string()],
            vec!["nats a token".to_owned(), with_error(f.nll, f.nll_error, 5)],
            vec!["perplexity".to_owned(), with_error(f.perplexity, f.perplexity_error, 4)],
        ];
        rows.extend(f.word_perplexity.map(|x| vec!["perplexity a word".to_owned(), format!("{x:.4}")]));
        rows.extend(f.byte_perplexity.map(|x| vec!["perplexity a byte".to_owned(), format!("{x:.5}")]));
        rows.extend(f.bits_per_byte.map(|x| vec!["bits a byte".to_owned(), with_error(x, f.bits_per_byte_error, 5)]));
        report.data(&table(&rows, &[]))?;
    }
    Ok(())
}

pub(super) fn divergence(args: &KlArgs, env: &Env, report: &Report) -> Result<Answer> {
    let a = Opened::new(&args.a, &args.engine, env, report)?;
    let b = Opened::new(&args.b, &args.engine, env, report)?;
    let cut = Cut::of(&args.windows, &a)?;
    cut.say(report);
    // The two may be one checkpoint.
    let keys = [a.pass_key(&args.engine, &cut.prompts, &"kl a")?, b.pass_key(&args.engine, &cut.prompts, &"kl b")?];
    let precision = precision_name(a.precision);
    // One after the other, but the residual streams of both are kept to the end.
    let schedule = Schedule::whole(&cut.prompts, args.engine.batch_tokens as usize);
    let load = |opened: Opened| opened.load(&args.engine, schedule.demand(LOGITS), 2, report);
    let (a, b) = (load(a)?, load(b)?);
    if args.windows.dry_run {
        let plan = |loaded| passes::estimate(loaded, (&cut.prompts, &schedule), (cut.positions(), LOGITS), report);
        let plans = [plan(&a)?, plan(&b)?];
        if report.is_json() {
            report.json("eval", &json!({"task": "kl", "dry_run": true, "windowing": cut.windowing, "plan": plans}))?;
        }
        return Ok(Answer::Yes);
    }
    let how = (&args.engine, &args.save);
    let (sweep_a, saver_a) = passes::sweep(&a, (&cut.prompts, schedule.clone()), how, &keys[0], report)?;
    let (sweep_b, saver_b) = passes::sweep(&b, (&cut.prompts, schedule), how, &keys[1], report)?;
    let mut windows: Vec<Vec<Position>> = vec![Vec::new(); cut.prompts.len()];
    let (mut failed, mut base, mut other) = (None, Vec::new(), Vec::new());
    each_pair(
        &sweep_a,
        &sweep_b,
        LOGITS,
        |p, at| cut.wanted(p, at),
        |p, at, row_a, row_b| {
            log_probs(row_a, &mut base);
            log_probs(row_b, &mut other);
            match Position::of(&base, &other, cut.prompts[p][at + 1]) {
                Ok(position) => windows[p].push(position),
                Err(error) => failed = failed.take().or(Some(error)),
            }
        },
    )?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    saver_a.discard();
    saver_b.discard();
    let mut divergence = Divergence::default();
    for window in &windows {
        divergence.add_window(window);
    }
    let summary = divergence.summary();
    if report.is_json() {
        let fields = json!({
            "task": "kl", "windowing": cut.windowing, "precision": precision, "summary": summary, "peak_memory": peak_memory(),
        });
        report.json("eval", &fields)?;
    } else if let Some(s) = summary {
        let mean = |name: &str, Mean { mean, error }: Mean| vec![name.to_owned(), with_error(mean, error, 6)];
        let rows = [
            vec!["positions".to_owned(), s.positions.to_string()],
            mean("KL(A || B), nats", s.kl),
            vec![
                "  median, 99 %, 99.9 %, largest".to_owned(),
                format!("{:.6}, {:.6}, {:.6}, {:.6}", s.kl_median, s.kl_p99, s.kl_p999, s.kl_max),
            ],
            mean("KL(B || A), nats", s.reverse_kl),
            mean("same most likely token", s.same_top),
            mean("nats a token, B less A", s.nll_difference),
        ];
        report.data(&table(&rows, &[]))?;
    }
    Ok(Answer::Yes)
}
