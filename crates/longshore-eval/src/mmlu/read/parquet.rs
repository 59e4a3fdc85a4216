//! The parquet files of cais/mmlu: columns `question`, `subject`, `choices` (a list of strings), `answer` (int64), snappy.

mod pages;

use super::super::Question;
use super::{MAX_FILE, MAX_TEXT, Raw, Rows, number};
use crate::{Error, Result};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::RowGroupMetaData;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::{Field, Row};
use bytes::Bytes;
use longshore_ckpt::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

pub(super) fn read(path: &Path, rows: &mut Rows) -> Result<Vec<Question>> {
    let bytes = Bytes::from(fs::read_small(path, MAX_FILE)?);
    // The decoder's asserts are about what a file says: a damaged one must be an error, not the program's end.
    let parsed = catch_unwind(AssertUnwindSafe(|| parse(path, &bytes, rows)));
    parsed.unwrap_or_else(|_| Err(damaged(path, &"the decoder gave up")))
}

fn parse(path: &Path, bytes: &Bytes, rows: &mut Rows) -> Result<Vec<Question>> {
    let failed = |e: ParquetError| damaged(path, &e);
    let reader = SerializedFileReader::new(bytes.clone()).map_err(failed)?;
    bounded(path, bytes, &reader)?;
    let mut questions = Vec::new();
    for (row, fields) in (1..).zip(reader.get_row_iter(None).map_err(failed)?) {
        match raw(fields.map_err(failed)?) {
            Ok(raw) => {
                let text = raw.choices.iter().chain([&raw.subject, &raw.question]).map(String::len).sum();
                rows.spend(path, text)?;
                questions.extend(rows.check(path, row, raw));
            }
            Err(what) => {
                rows.spend(path, 0)?;
                rows.problems.add(path, row, what);
            }
        }
    }
    Ok(questions)
}

/// Refuses a file that says of itself that it is too large, before anything is decoded: runs of equal values take no room
/// in the file.
fn bounded(path: &Path, bytes: &[u8], reader: &SerializedFileReader<Bytes>) -> Result<()> {
    const MAX_VALUES: u64 = 4 << 20;
    for column in reader.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let (start, len) = column.byte_range();
        let end = start.checked_add(len).and_then(|end| usize::try_from(end).ok());
        let chunk = end.and_then(|end| bytes.get(usize::try_from(start).ok()?..end));
        let no_pages = || damaged(path, &format!("{} is not made of pages", column.column_path()));
        let pages = chunk.and_then(pages::claims).ok_or_else(no_pages)?;
        let (values, size) = (pages.values.max(column.num_values().unsigned_abs()), pages.size);
        if values > MAX_VALUES || size > MAX_TEXT {
            return Err(damaged(path, &format!("{} claims {values} values in {size} bytes", column.column_path())));
        }
    }
    Ok(())
}

fn raw(row: Row) -> Result<Raw, String> {
    let (mut subject, mut question, mut choices, mut answer) = (None, None, None, None);
    for (name, field) in row.into_columns() {
        match (name.as_str(), field) {
            ("subject", Field::Str(text)) => subject = Some(text),
            ("question", Field::Str(text)) => question = Some(text),
            ("choices", Field::ListInternal(list)) => {
                let text = |field: &Field| match field {
                    Field::Str(text) => Some(text.clone()),
                    _ => None,
                };
                choices = list.elements().iter().map(text).collect();
            }
            ("answer", Field::Long(key)) => answer = Some(key),
            ("answer", Field::Int(key)) => answer = Some(key.into()),
            _ => {}
        }
    }
    let missing = |name: &str, of: &str| format!("`{name}` is missing, null or not {of}");
    Ok(Raw {
        subject: subject.ok_or_else(|| missing("subject", "a string"))?,
        question: question.ok_or_else(|| missing("question", "a string"))?,
        choices: choices.ok_or_else(|| missing("choices", "a list of strings"))?,
        answer: number(answer.ok_or_else(|| missing("answer", "an integer"))?),
    })
}

fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::Unreadable { path: path.to_owned(), what: format!("parquet: {what}") }
}
