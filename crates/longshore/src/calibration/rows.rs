//! The rows of a data set's file as lines of JSON, front to back in bounded memory.

use super::layout::Form;
use super::lines::{Lines, MAX_LINE};
use anyhow::Result;
use longshore_ckpt::fs;
use longshore_eval::parquet::{self, Limits};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;

/// Row groups of published sets have some thousand rows; a file may have any number of them.
const LIMITS: Limits = Limits { file: u64::MAX, values: 1 << 24, size: 1 << 30 };

/// Larger files of JSON are lines.
const MAX_ARRAY: u64 = 64 << 20;

/// Calls `each` with the number of a row, from 1, and the row, or what is wrong with it, until it breaks off. Of parquet
/// `columns` are read.
pub(super) fn read(
    path: &Path,
    form: Form,
    columns: &[&str],
    mut each: impl FnMut(u64, Result<String, String>) -> ControlFlow<()> + Send,
) -> Result<()> {
    let is_gzip = match form {
        Form::Parquet => {
            parquet::rows(path, &LIMITS, columns, |row| {
                let size = row.size();
                let text = if size > MAX_LINE {
                    Err(format!("{size} bytes: expected at most {MAX_LINE} in a row"))
                } else {
                    row.value().map(|fields| Value::Object(fields).to_string())
                };
                Ok(each(row.number(), text))
            })?;
            return Ok(());
        }
        Form::Json { is_gzip } => is_gzip,
    };
    if let Some(rows) = array(path, is_gzip)? {
        for (number, row) in (1..).zip(rows) {
            if each(number, Ok(row.to_string())).is_break() {
                break;
            }
        }
        return Ok(());
    }
    let mut lines = Lines::of_set(path, is_gzip)?;
    while let Some(line) = lines.next()? {
        let is_blank = line.text.as_ref().is_ok_and(|text| text.trim().is_empty());
        if !is_blank && each(line.number, line.text).is_break() {
            break;
        }
    }
    Ok(())
}

/// The rows of a `.json` file that is one array of objects.
fn array(path: &Path, is_gzip: bool) -> Result<Option<Vec<Value>>> {
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    if is_gzip || !is_json || fs::file_len(path)? > MAX_ARRAY {
        return Ok(None);
    }
    let bytes = fs::read_small(path, MAX_ARRAY)?;
    if bytes.trim_ascii_start().first() != Some(&b'[') {
        return Ok(None);
    }
    // What is no array as a whole may be one a line.
    Ok(serde_json::from_slice::<Vec<Value>>(&bytes).ok().filter(|rows| rows.iter().all(Value::is_object)))
}
