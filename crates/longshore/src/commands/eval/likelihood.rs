//! What the true tokens of a text tell: windows over it, and the perplexity of a checkpoint.

use super::provenance::{self, last_component};
use super::{LOGITS, demand, with_error};
use crate::cli::eval::{PplArgs, WindowArgs};
use crate::commands::Answer;
use crate::engine::{Loaded, Opened, precision_name};
use crate::options::Env;
use crate::passes;
use crate::report::{Report, peak_memory, table};
use crate::units::{count, counted};
use anyhow::Result;
use longshore_eval::perplexity::{Perplexity, WindowSum, Windowing, nll};
use longshore_eval::saved::{Scored, windows_sha256};
use longshore_eval::text::{self, Text};
use longshore_infer::model::check_ids;
use longshore_infer::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::json;
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
        let file = text::read(&args.data)?;
        let (streams, length) = match file.text {
            Text::Plain(text) => {
                let units = [text.split_whitespace().count() as u64, text.len() as u64];
                (vec![opened.tokenizer()?.encode(&text, true)?], Some(units))
            }
            Text::Ids(lines) => (lines, None),
        };
        for (line, ids) in streams.iter().enumerate() {
            opened.check_ids(line, ids)?;
        }
        let (ids_given, ctx) = (length.is_none(), args.ctx);
        let windowing = match (args.stride, args.llama_cpp) {
            (Some(stride), _) => Windowing::Strided { length: ctx, stride },
            (None, true) => Windowing::LlamaCpp { length: ctx },
            (None, false) if ids_given => Windowing::Strided { length: ctx, stride: ctx },
            (None, false) => Windowing::Whole { length: ctx },
        };
        let begin_of_text = opened.begin_of_text()?;
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

    pub(super) fn say(&self, report: &Report) {
        let tokens: usize = self.scored.iter().map(Range::len).sum();
        let text = format!("{}, {} tokens scored", counted(self.prompts.len() as u64, "window"), count(tokens as u64));
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
    let checkpoint = super::checkpoint(args.checkpoint.as_ref(), env)?;
    let opened = Opened::new(&checkpoint, &args.pass.engine, env, report)?;
    let cut = Cut::of(&args.windows, &opened)?;
    cut.say(report);
    let mut provenance = provenance::of(&[(&checkpoint, &opened)], &args.pass.engine, &args.pass.keep, report)?;
    if let Some(provenance) = &mut provenance {
        provenance.text = Some(cut.scored(&args.windows));
    }
    let key = opened.pass_key(&args.pass.engine, &cut.prompts, &"ppl")?;
    let precision = precision_name(opened.precision);
    let loaded = opened.load(&args.pass.engine, demand(&cut.prompts, args.pass.engine.batch_tokens), 1, report)?;
    // Padding would take probability. Tokens of the tokenizer are none, trained or not.
    let rows = real_rows(&loaded)?;
    cut.check_rows(rows)?;
    let (sweep, saver) = passes::sweep(&loaded, &cut.prompts, (&args.pass.engine, &args.pass.save), &key, report)?;
    let mut windows: Vec<Vec<f64>> = vec![Vec::new(); cut.prompts.len()];
    let mut failed = None;
    sweep.each_logits(
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
    let mut perplexity = Perplexity::default();
    for window in &windows {
        perplexity.add_window(window)?;
    }
    let [words, bytes] = cut.units.map_or([None; 2], |units| units.map(Some));
    let figures = perplexity.figures(words, bytes);
    let fields = json!({
        "task": "ppl", "windowing": cut.windowing, "precision": precision, "figures": figures, "peak_memory": peak_memory(),
    });
    let kept = Kept { windows: perplexity.windows() };
    provenance::write(&fields, provenance.as_ref(), &kept, &args.pass.keep, report)?;
    saver.discard();
    if report.is_json() {
        provenance::print(&fields, provenance.as_ref(), report)?;
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
    Ok(Answer::Yes)
}

/// Rows of the vocabulary that mean a token.
pub(super) fn real_rows(loaded: &Loaded) -> Result<usize> {
    let tokens = loaded.tokenizer.as_ref().map_or(0, Tokenizer::vocab_size);
    Ok(loaded.real_rows()?.max(tokens).min(loaded.model.vocab()))
}
