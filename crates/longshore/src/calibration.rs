//! Samples to calibrate quantizers on: rows of token ids, from a file, a bundled text or chance.
//!
//! * A file named `.jsonl` (or `.ndjson`, `.json`) holds one sample a line ([`record`]): `text`, `prompt`, `messages`
//!   (rendered by the checkpoint's chat template) or `input_ids`; other keys mean nothing, blank lines are skipped.
//! * A data set ([`sets`]): a folder in the layout of a repository, a repository in the Hugging Face cache, or a set that
//!   ModelOpt knows by name. Its rows, of parquet or JSON, are the same records.
//! * Any other file is text: paragraphs, which blank lines separate, are gathered into samples of about `--calib-seq`
//!   tokens ([`paragraphs`]).
//! * Without a file it is `calibration/default.jsonl`, which was written for this project. Its conversations become
//!   transcripts (`User: ...`) for models whose tokenizer has no chat template, or one that refuses them.
//!
//! As ModelOpt 0.47 does (`dataset_utils.py`): the first `--calib-size` samples are taken, empty texts among them are
//! left out without replacement, texts get the tokenizer's special tokens, the end of long ones is cut off. With
//! `--pack on`, up to 16 times as many documents, without special tokens and each followed by the token that ends texts,
//! are joined and cut into at most `--calib-size` rows; a plain text's samples are its documents.
//!
//! Otherwise than ModelOpt, no row is ever padded: Megatron's prefill drops the attention mask, so that pad tokens take
//! part in its statistics, which are then partly those of text that no user writes. Rows have different lengths
//! instead, the last packed row too; the engine runs each as it is. Nor does a conversation get two tokens that begin
//! texts, where template and tokenizer both write one ([`encode`]). The date that templates ask for is a fixed one, so
//! that the same command gives the same scales on any day.
//!
//! Files are read line by line, so memory is bounded by the samples that are taken. Lines behind them are only counted
//! and summed up.

mod choice;
mod encode;
mod error;
mod layout;
mod lines;
mod paragraphs;
mod record;
mod registered;
mod report;
mod rows;
mod sets;

pub(crate) use error::CalibrationError;
pub(crate) use report::CalibrationReport;
pub(crate) use sets::{in_place_of_the_gated_set, reference_set};

use crate::cli::calibration::{CalibArgs, Pack};
use crate::engine::Opened;
use crate::options::Env;
use anyhow::Result;
use choice::{Choice, SplitMix64};
use encode::Encoder;
use error::Problems;
use lines::Lines;
use longshore_infer::chat::{ChatError, ChatTemplate};
use longshore_infer::tokenizer::{Tokenizer, special_tokens};
use paragraphs::Paragraphs;
use record::Document;
use std::path::{Path, PathBuf};

/// The text that comes with the program: original prose, code, tables, sums and conversations, in several languages.
const BUNDLED: &str = include_str!("calibration/default.jsonl");

/// Documents that are drawn for each packed row (ModelOpt 0.47, `get_dataset_dataloader`).
const DOCUMENTS_PER_ROW: usize = 16;

/// Random ids are held in memory: 1 GiB of them.
const MAX_RANDOM_IDS: u64 = 1 << 28;

/// The day that chat templates are told.
const TODAY: (i64, u32, u32) = (2026, 1, 1);

/// What samples become ids with.
pub(crate) struct Pieces<'a> {
    /// Rows of the model's embedding: ids are below it.
    pub(crate) vocab: u64,
    /// The folder of the tokenizer, for messages.
    pub(crate) folder: &'a Path,
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    /// A broken template is an error only where a conversation asks for it.
    pub(crate) template: Result<Option<ChatTemplate>, ChatError>,
    /// The token that ends texts, which separates packed ones.
    pub(crate) end: Option<u32>,
}

impl<'a> Pieces<'a> {
    /// The pieces of a checkpoint.
    pub(crate) fn of(opened: &'a Opened) -> Result<Self> {
        let (year, month, day) = TODAY;
        let folder = opened.companions.as_path();
        let vocab = opened.source.model.config.vocab_size;
        let tokenizer = opened.tokenizer.as_ref();
        let template =
            ChatTemplate::load(folder).map(|template| template.map(|template| template.with_today(year, month, day)));
        // The tokenizer's own, as ModelOpt takes it: `generation_config.json` may name the end of a reply first.
        let named = match tokenizer {
            Some(tokenizer) => {
                let special = special_tokens(folder)?;
                special.get("eos_token").and_then(|token| tokenizer.token_id(token.as_str()?))
            }
            None => None,
        };
        let end = match named {
            Some(id) => Some(id),
            None => opened.stop_ids()?.first().copied(),
        };
        Ok(Self { vocab, folder, tokenizer, template, end: end.filter(|&id| u64::from(id) < vocab) })
    }
}

/// Samples, and what they were made of.
#[derive(Debug)]
pub(crate) struct CalibrationSet {
    /// Rows of ids, all below the vocabulary; none is empty or longer than `--calib-seq`.
    pub(crate) samples: Vec<Vec<u32>>,
    pub(crate) report: CalibrationReport,
}

/// Reads the samples that `args` ask for. Everything that is wrong with a file is one error.
pub(crate) fn load(args: &CalibArgs, pieces: &Pieces, env: &Env) -> Result<CalibrationSet> {
    match &args.calib {
        Some(path) if path == Path::new("random") => Ok(random(args, pieces.vocab)?),
        Some(path) if sets::are_named(path) => from_sets(args, pieces, path, env),
        path => from_text(args, pieces, path.as_deref()),
    }
}

/// Ids of which each is as likely as any other.
fn random(args: &CalibArgs, vocab: u64) -> Result<CalibrationSet, CalibrationError> {
    let (size, seq) = (args.calib_size, args.calib_seq);
    if u64::from(size) * u64::from(seq) > MAX_RANDOM_IDS {
        return Err(CalibrationError::TooManyIds { size, seq, limit: MAX_RANDOM_IDS });
    }
    let mut generator = SplitMix64::new(args.seed);
    let mut row = || (0..seq).map(|_| generator.below(vocab) as u32).collect();
    let samples: Vec<Vec<u32>> = (0..size).map(|_| row()).collect();
    let mut report = report_of(args, format!("random ids with seed {}", args.seed), &samples);
    report.packed = false;
    report.warnings.push(
        "scales that are calibrated on random ids are for smoke tests only: no text has such activations".to_owned(),
    );
    Ok(CalibrationSet { samples, report })
}

fn report_of(args: &CalibArgs, source: String, samples: &[Vec<u32>]) -> CalibrationReport {
    let lengths = samples.iter().map(|row| row.len() as u64);
    CalibrationReport {
        source,
        splits: Vec::new(),
        crc32: None,
        bytes: None,
        available: None,
        samples: samples.len() as u64,
        tokens: lengths.clone().sum(),
        longest: lengths.max().unwrap_or(0),
        truncated: 0,
        skipped: 0,
        packed: args.pack == Pack::On,
        seed: args.seed,
        warnings: Vec::new(),
    }
}

/// Samples of the file at `path`, or of the bundled text.
fn from_text(args: &CalibArgs, pieces: &Pieces, path: Option<&Path>) -> Result<CalibrationSet> {
    let json = path.is_none_or(is_json_lines);
    let source = path.map_or_else(|| "the bundled text".to_owned(), |path| format!("`{}`", path.display()));
    // Lines of JSON may be ids.
    if pieces.tokenizer.is_none() && (path.is_none() || !json) {
        let folder = pieces.folder.to_owned();
        return Err(CalibrationError::NoTokenizer { source_name: source, folder }.into());
    }
    let lines = path.map_or_else(|| Ok(Lines::of_bundled(BUNDLED)), Lines::open)?;
    let mut problems = vec![Problems::default()];
    let chosen = choose(args, pieces, json, lines, &mut problems[0])?;
    let encoder = Encoder::new(pieces, json, path.is_none(), limit(args));
    let rows = Rows::of(&chosen.documents, &encoder, args, pieces.end, &mut problems);
    if let Some(path) = path {
        refuse(vec![path.to_owned()], problems)?;
    } else if !problems[0].is_empty() {
        return Err(CalibrationError::Bundled(problems.remove(0)).into());
    }
    let mut report = report_of(args, source, &rows.rows);
    if let Some(path) = path {
        warn_of_few(args, path, &mut report)?;
    }
    report.crc32 = Some(chosen.crc32);
    report.bytes = Some(chosen.bytes);
    report.available = chosen.available;
    Ok(finish(args, pieces, rows, report))
}

/// Samples of the data sets that `given` names.
fn from_sets(args: &CalibArgs, pieces: &Pieces, given: &Path, env: &Env) -> Result<CalibrationSet> {
    let times = if args.pack == Pack::On { DOCUMENTS_PER_ROW } else { 1 };
    let mut taken = sets::take(given, args.calib_size as usize, times, args.seed, env)?;
    let encoder = Encoder::new(pieces, true, false, limit(args));
    let rows = Rows::of(&taken.documents, &encoder, args, pieces.end, &mut taken.problems);
    let mut report = report_of(args, taken.source(), &rows.rows);
    refuse(taken.files, taken.problems)?;
    warn_of_few(args, given, &mut report)?;
    report.crc32 = Some(taken.crc32);
    report.bytes = Some(taken.bytes);
    report.available = taken.available;
    report.splits = taken.splits;
    report.warnings.extend(taken.warnings);
    Ok(finish(args, pieces, rows, report))
}

/// Tokens of a sample at most; documents that are joined have no limit.
fn limit(args: &CalibArgs) -> Option<usize> {
    (args.pack == Pack::Off).then_some(args.calib_seq as usize)
}

/// An error of all problems, if there are any.
fn refuse(files: Vec<PathBuf>, problems: Vec<Problems>) -> Result<(), CalibrationError> {
    let wrong: Vec<_> = files.into_iter().zip(problems).filter(|(_, problems)| !problems.is_empty()).collect();
    if wrong.is_empty() { Ok(()) } else { Err(CalibrationError::Lines(wrong)) }
}

/// Samples that a source lacks are a warning; all of them, an error.
fn warn_of_few(args: &CalibArgs, path: &Path, report: &mut CalibrationReport) -> Result<(), CalibrationError> {
    if report.samples == 0 {
        return Err(CalibrationError::NoSample { path: path.to_owned() });
    }
    if report.samples < u64::from(args.calib_size) {
        let missing =
            format!("{} gives {} of the {} samples of --calib-size", report.source, report.samples, args.calib_size);
        report.warnings.push(missing);
    }
    Ok(())
}

fn finish(args: &CalibArgs, pieces: &Pieces, rows: Rows, mut report: CalibrationReport) -> CalibrationSet {
    if args.pack == Pack::On && pieces.end.is_none() {
        report.warnings.push("no token that ends texts is named: packed samples follow without one".to_owned());
    }
    report.truncated = rows.truncated;
    report.skipped = rows.skipped;
    CalibrationSet { samples: rows.rows, report }
}

/// Whether a file has one JSON value a line. `.json` too: its syntax is no text to calibrate on.
fn is_json_lines(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|name| ["jsonl", "ndjson", "json"].iter().any(|known| name.eq_ignore_ascii_case(known)))
}

struct Chosen {
    documents: Vec<Document>,
    available: Option<u64>,
    crc32: u32,
    bytes: u64,
}

/// The documents to use, in order.
fn choose(args: &CalibArgs, pieces: &Pieces, json: bool, mut lines: Lines, problems: &mut Problems) -> Result<Chosen> {
    let size = args.calib_size as usize;
    let limit = if args.pack == Pack::On { size * DOCUMENTS_PER_ROW } else { size };
    let mut choice = Choice::new(limit, args.seed);
    let mut paragraphs = match pieces.tokenizer.filter(|_| !json) {
        Some(tokenizer) => {
            let special = tokenizer.encode("", args.pack == Pack::Off)?.len();
            Some(Paragraphs::new(tokenizer, (args.calib_seq as usize).saturating_sub(special)))
        }
        None => None,
    };
    let mut all = true;
    while let Some(line) = lines.next()? {
        let text = match line.text {
            Ok(text) => text,
            Err(what) => {
                problems.add(line.number, what);
                continue;
            }
        };
        match &mut paragraphs {
            Some(_) if choice.is_settled() => {
                // Counting the rest would mean to tokenize it.
                all = false;
                break;
            }
            Some(paragraphs) => paragraphs.line(line.number, text, &mut choice)?,
            None if text.trim().is_empty() => {}
            None => choice.offer(Document { file: 0, line: line.number, text }),
        }
    }
    if let Some(paragraphs) = paragraphs {
        paragraphs.finish(&mut choice);
    }
    let bytes = lines.len();
    let crc32 = lines.finish()?;
    Ok(Chosen { available: all.then_some(choice.offered()), documents: choice.finish(), crc32, bytes })
}

/// Rows for the engine.
#[derive(Default)]
struct Rows {
    rows: Vec<Vec<u32>>,
    truncated: u64,
    skipped: u64,
}

impl Rows {
    fn of(
        documents: &[Document],
        encoder: &Encoder,
        args: &CalibArgs,
        end: Option<u32>,
        problems: &mut [Problems],
    ) -> Self {
        let mut rows = Self::default();
        let (size, seq) = (args.calib_size as usize, args.calib_seq as usize);
        let mut joined: Vec<u32> = Vec::new();
        for document in documents {
            if joined.len() >= size * seq {
                break;
            }
            match encoder.encode(document) {
                Err(what) => problems[document.file].add(document.line, what),
                Ok(None) => rows.skipped += 1,
                Ok(Some(encoded)) if args.pack == Pack::On => {
                    joined.extend(encoded.ids);
                    joined.extend(end);
                }
                Ok(Some(encoded)) => {
                    rows.truncated += u64::from(encoded.truncated);
                    rows.rows.push(encoded.ids);
                }
            }
        }
        rows.rows.extend(joined.chunks(seq).take(size).map(<[u32]>::to_vec));
        rows
    }
}

#[cfg(test)]
mod tests;
