//! The parquet files of cais/mmlu: columns `question`, `subject`, `choices` (a list of strings), `answer` (an integer).

use super::super::Question;
use super::{MAX_FILE, MAX_TEXT, Raw, Rows, number};
use crate::Result;
use crate::parquet::{Limits, rows as each_row};
use serde_json::{Map, Value};
use std::ops::ControlFlow;
use std::path::Path;

/// `values`: several times those of the published files.
const LIMITS: Limits = Limits { file: MAX_FILE, values: 1 << 20, size: MAX_TEXT };

pub(super) fn read(path: &Path, rows: &mut Rows) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    each_row(path, &LIMITS, &["question", "subject", "choices", "answer"], |row| {
        rows.spend(path, row.size())?;
        match row.value().and_then(|fields| raw(&fields)) {
            Ok(raw) => questions.extend(rows.check(path, row.number(), raw)),
            Err(what) => rows.problems.add(path, row.number(), what),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(questions)
}

fn raw(fields: &Map<String, Value>) -> Result<Raw, String> {
    let missing = |name: &str, of: &str| format!("`{name}` is missing, null or not {of}");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let one = |name: &str| fields.get(name).and_then(text).ok_or_else(|| missing(name, "a string"));
    let list = fields.get("choices").and_then(Value::as_array).and_then(|list| list.iter().map(text).collect());
    let key = fields.get("answer").and_then(Value::as_i64);
    Ok(Raw {
        subject: one("subject")?,
        question: one("question")?,
        choices: list.ok_or_else(|| missing("choices", "a list of strings"))?,
        answer: number(key.ok_or_else(|| missing("answer", "an integer"))?),
    })
}
