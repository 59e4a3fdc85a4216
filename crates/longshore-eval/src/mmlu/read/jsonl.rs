//! JSON lines with the fields of cais/mmlu: `question`, `subject`, `choices`, `answer`; plain or gzip.

use super::super::Question;
use super::{MAX_FILE, Raw, Rows, number, too_much};
use crate::{Error, Result};
use longshore_ckpt::fs;
use serde::Deserialize;
use std::io::Read;
use std::path::Path;

#[derive(Deserialize)]
struct Line {
    question: String,
    subject: String,
    choices: Vec<String>,
    answer: i64,
}

pub(super) fn read(path: &Path, rows: &mut Rows) -> Result<Vec<Question>> {
    let bytes = fs::read_small(path, MAX_FILE)?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return parse(path, &bytes, rows);
    }
    let mut text = Vec::new();
    // One byte more than may come, so that a longer file is noticed.
    let mut limited = flate2::read::MultiGzDecoder::new(&bytes[..]).take(rows.text_left.saturating_add(1));
    let damaged = |e: std::io::Error| Error::Unreadable { path: path.to_owned(), what: format!("gzip: {e}") };
    limited.read_to_end(&mut text).map_err(damaged)?;
    if text.len() as u64 > rows.text_left {
        return Err(too_much(path));
    }
    parse(path, &text, rows)
}

pub(super) fn parse(path: &Path, text: &[u8], rows: &mut Rows) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (line, text) in (1..).zip(text.split(|&byte| byte == b'\n')) {
        if text.trim_ascii().is_empty() {
            continue;
        }
        rows.spend(path, text.len())?;
        match serde_json::from_slice::<Line>(text) {
            Ok(Line { question, subject, choices, answer }) => {
                let raw = Raw { subject, question, choices, answer: number(answer) };
                questions.extend(rows.check(path, line, raw));
            }
            Err(e) => rows.problems.add_json(path, line, &e),
        }
    }
    Ok(questions)
}
