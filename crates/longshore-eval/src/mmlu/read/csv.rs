//! Hendrycks' files: question, four choices, answer; without header and with letters, or with a header (`question,
//! choice0, ..., answer`) and numbers, as copies of the data set have it.

use super::super::{LETTERS, Question};
use super::{MAX_FILE, Raw, Rows, number};
use crate::Result;
use longshore_ckpt::fs;
use std::path::Path;

pub(super) fn read(path: &Path, subject: &str, rows: &mut Rows) -> Result<Vec<Question>> {
    let text = fs::read_small(path, MAX_FILE)?;
    let mut questions = Vec::new();
    let mut reader = ::csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&text[..]);
    let mut record = ::csv::ByteRecord::new();
    let mut header = None;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(questions),
            Err(e) => {
                rows.problems.add(path, reader.position().line(), e.to_string());
                return Ok(questions);
            }
        }
        rows.spend(path, record.as_slice().len())?;
        if header.is_none() {
            header = Some(is_header(&record));
            if header == Some(true) {
                continue;
            }
        }
        let line = record.position().map_or(0, ::csv::Position::line);
        let Ok(fields) = record.iter().map(std::str::from_utf8).collect::<Result<Vec<_>, _>>() else {
            rows.problems.add(path, line, "not UTF-8");
            continue;
        };
        let [question, choices @ .., answer] = &fields[..] else {
            rows.problems.add(path, line, format!("expected 6 fields, found {}", fields.len()));
            continue;
        };
        let answer = if header == Some(true) { numbered(answer) } else { lettered(answer) };
        let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
        let raw = Raw { subject: subject.to_owned(), question: (*question).to_owned(), choices, answer };
        questions.extend(rows.check(path, line, raw));
    }
}

/// Whether a file's first row names its columns.
fn is_header(record: &::csv::ByteRecord) -> bool {
    let named = |field: Option<&[u8]>, name: &str| field.is_some_and(|f| f.eq_ignore_ascii_case(name.as_bytes()));
    named(record.get(0), "question") && named(record.iter().next_back(), "answer")
}

fn numbered(answer: &str) -> Result<u8, String> {
    let wrong = || format!("expected an answer of 0 to 3, as the file has a header, found `{answer}`");
    answer.parse().ok().and_then(|answer| number(answer).ok()).ok_or_else(wrong)
}

fn lettered(answer: &str) -> Result<u8, String> {
    let wrong = || format!("expected an answer of A to D, as the file has no header, found `{answer}`");
    LETTERS.iter().position(|&letter| letter == answer).map(|i| i as u8).ok_or_else(wrong)
}
