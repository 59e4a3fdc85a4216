//! What the true tokens of a text tell: windows over it, and the perplexity of a checkpoint.

use super::provenance::{self, last_component};
use super::{LOGITS, endpoint, with_error};
use crate::cli::eval::{PplArgs, WindowArgs};
use crate::commands::Answer;
use crate::engine::{Loaded, Opened, precision_name, scratch, with_tokenizer};
use crate::error::UsageError;
use crate::locate;
use crate::options::Env;
use crate::passes;
use crate::report::{Report, peak_memory, table};
use crate::units::{count, counted};
use anyhow::Result;
use longshore_eval::perplexity::{Perplexity, WindowSum, Windowing, nll};
use longshore_eval::saved::{Provenance, Scored, windows_sha256};
use longshore_eval::text::{self, Text};
use longshore_infer::model::check_ids;
use longshore_infer::schedule::Schedule;
use longshore_infer::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::{Value, json};
use std::ops::Range;

/// Windows over what is read.
pub(super) struct Cut {
    pub(super) prompts: Vec<Vec<u32>>,
    /// Positions of each that are scored: tokens, whose logits are those of the position before.
    scored: Vec<Range<usize>>,
    pub(super) windowing: Windowing,
    /// SHA-256 of the file, uncompressed.
    data_sha256: String,
    /// Words and bytes of the text, where it is one that is scored whole.
    units: Option<[u64; 2]>,
}

impl Cut {
    pub(super) fn of(args: &WindowArgs, opened: &Opened) -> Result<Self> {
        let check = |line: usize, ids: &[u32]| Ok(opened.check_ids(line, ids)?);
        Self::with(args, opened.tokenizer(), check)
    }

    /// With a tokenizer, or the reason why there is none, and a check of every stream.
    fn with(
        args: &WindowArgs,
        tokenizer: Result<&Tokenizer, UsageError>,
        check: impl Fn(usize, &[u32]) -> Result<()>,
    ) -> Result<Self> {
        let begin_of_text = match &tokenizer {
            Ok(tokenizer) => tokenizer.begin_of_text()?,
            Err(_) => None,
        };
        let file = text::read(&args.data)?;
        let (streams, length) = match file.text {
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
        let data_sha256 = file.sha256;
        let mut cut = Self { prompts: Vec::new(), scored: Vec::new(), windowing, data_sha256, units: None };
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

    pub(super) fn wanted(&self, prompt: usize, position: usize) -> bool {
        self.scored[prompt].contains(&(position + 1))
    }

    /// Tokens that are scored.
    pub(super) fn positions(&self) -> usize {
        self.scored.iter().map(Range::len).sum()
    }

    pub(super) fn say(&self, report: &Report) {
        let tokens = self.positions() as u64;
        let text = format!("{}, {} tokens scored", counted(self.prompts.len() as u64, "window"), count(tokens));
        report.status("Text", &text);
    }

    /// Checks that every token has a row: `rows` may be fewer than the config says.
    pub(super) fn check_rows(&self, rows: usize) -> Result<()> {
        for (prompt, ids) in self.prompts.iter().enumerate() {
            check_ids(rows as u64, prompt, ids)?;
        }
        Ok(())
    }

    /// What a report says of it.
    pub(super) fn scored(&self, args: &WindowArgs) -> Scored {
        let windows = self.prompts.iter().zip(&self.scored).map(|(ids, scored)| (ids.as_slice(), scored));
        Scored {
            data: last_component(&args.data),
            data_sha256: self.data_sha256.clone(),
            windows_sha256: windows_sha256(windows),
            windowing: self.windowing,
            limit: args.limit,
        }
    }
}

/// What only the report has.
#[derive(Serialize)]
struct Kept {
    windows: Vec<WindowSum>,
}

pub(super) fn perplexity(args: &PplArgs, env: &Env, report: &Report) -> Result<Answer> {
    super::check_outputs(&[args.pass.keep.report.as_ref()])?;
    if let Some(url) = endpoint::address(&args.endpoint, &[])? {
        return perplexity_at(url, args, env, report);
    }
    let checkpoint = super::checkpoint(args.checkpoint.as_ref(), env)?;
    let engine = with_tokenizer(&args.pass.engine, &checkpoint, env, report)?;
    let opened = Opened::new(&checkpoint.value, &engine, env, report)?;
    let cut = Cut::of(&args.windows, &opened)?;
    cut.say(report);
    let key = opened.pass_key(&args.pass.engine, &cut.prompts, &"ppl")?;
    let precision = precision_name(opened.precision);
    let mut provenance = None;
    if !args.windows.dry_run {
        let known = provenance::of(&[(&checkpoint.value, &opened)], &args.pass.engine, &args.pass.keep, report)?;
        provenance = known.map(|p| Provenance { text: Some(cut.scored(&args.windows)), ..p });
    }
    let schedule = Schedule::whole(&cut.prompts, args.pass.engine.batch_tokens as usize);
    let loaded = opened.load(&args.pass.engine, schedule.demand(LOGITS), 1, report)?;
    // Padding would take probability. Tokens of the tokenizer are none, trained or not.
    let rows = real_rows(&loaded)?;
    cut.check_rows(rows)?;
    if args.windows.dry_run {
        let plan = passes::estimate(&loaded, (&cut.prompts, &schedule), (cut.positions(), LOGITS), report)?;
        if report.is_json() {
            report.json("eval", &json!({"task": "ppl", "dry_run": true, "windowing": cut.windowing, "plan": plan}))?;
        }
        return Ok(Answer::Yes);
    }
    let how = (&args.pass.engine, &args.pass.save);
    let pass = passes::sweep(&loaded, (&cut.prompts, schedule), how, &key, report)?;
    let mut windows: Vec<Vec<f64>> = vec![Vec::new(); cut.prompts.len()];
    let mut failed = None;
    pass.sweep.each_logits(
        LOGITS,
        |p, at| cut.wanted(p, at),
        |p, at, row| match nll(&row[..rows], cut.prompts[p][at + 1]) {
            Ok(nll) => windows[p].push(nll),
            Err(error) => failed = failed.take().or(Some(error)),
        },
    )?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let by = json!({"precision": precision, "pass": pass.figures()});
    say_perplexity(args, &cut, &windows, (by, provenance.as_ref()), report)?;
    pass.saver.discard();
    Ok(Answer::Yes)
}

/// The same by a server, of whose model at most the tokenizer is here.
fn perplexity_at(url: &str, args: &PplArgs, env: &Env, report: &Report) -> Result<Answer> {
    let engine = &args.pass.engine;
    let cut = match (&engine.tokenizer, &args.checkpoint) {
        (None, Some(checkpoint)) => Cut::of(&args.windows, &Opened::new(checkpoint, engine, env, report)?)?,
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
    let provenance = provenance::of_server(&args.pass.keep, report);
    let provenance = provenance.map(|p| Provenance { text: Some(cut.scored(&args.windows)), ..p });
    let server = endpoint::Server::new(url, &args.endpoint, env, report)?;
    let (windows, told, saver) = endpoint::likelihoods(&server, &cut.prompts, &cut.scored, &scratch(engine))?;
    say_perplexity(args, &cut, &windows, (json!({"endpoint": told}), provenance.as_ref()), report)?;
    saver.discard();
    Ok(Answer::Yes)
}

/// Writes and says what the windows' log-likelihoods come to; `by` says who scored.
fn say_perplexity(
    args: &PplArgs,
    cut: &Cut,
    windows: &[Vec<f64>],
    (by, provenance): (Value, Option<&Provenance>),
    report: &Report,
) -> Result<()> {
    let mut perplexity = Perplexity::default();
    for window in windows {
        perplexity.add_window(window)?;
    }
    let [words, bytes] = cut.units.map_or([None; 2], |units| units.map(Some));
    let figures = perplexity.figures(words, bytes);
    let mut fields =
        json!({"task": "ppl", "windowing": cut.windowing, "figures": figures, "peak_memory": peak_memory()});
    super::extend(&mut fields, by);
    let kept = Kept { windows: perplexity.windows() };
    provenance::write(&fields, provenance, &kept, &args.pass.keep, report)?;
    if report.is_json() {
        provenance::print(&fields, provenance, report)?;
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

/// Rows of the vocabulary that mean a token.
pub(super) fn real_rows(loaded: &Loaded) -> Result<usize> {
    let tokens = loaded.tokenizer.as_ref().map_or(0, Tokenizer::vocab_size);
    Ok(loaded.real_rows()?.max(tokens).min(loaded.model.vocab()))
}
