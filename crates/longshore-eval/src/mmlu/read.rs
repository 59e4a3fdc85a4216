//! Finding and reading the questions, in the forms in which they are published.

mod csv;
mod jsonl;
mod parquet;

use super::{Mmlu, Question};
use crate::{Error, Problems, Result};
use longshore_ckpt::fs;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The largest file that is opened. The largest published one has 7 MB.
const MAX_FILE: u64 = 64 << 20;

/// The text that one data set may hold, uncompressed; the published one has 8 MB. Each row counts [`ROW_COST`] on top, so
/// that rows of nothing end too.
const MAX_TEXT: u64 = 256 << 20;
const ROW_COST: u64 = 64;

/// A form in which the data set is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// `mmlu_test.jsonl` with the fields of cais/mmlu, or gzip.
    Jsonl,
    /// `test/<subject>_test.csv`: Hendrycks' files, without header and with letters, or with both.
    Csv,
    /// `all/test-00000-of-00001.parquet`, or such files in a folder per subject: cais/mmlu.
    Parquet,
    /// The questions that this crate carries.
    Bundled,
}

/// Reads the data set in a folder, whichever of the forms it holds, or the test questions in one file of JSON lines.
/// Without dev questions the result has none. All malformed rows are reported together.
pub fn read(path: &Path) -> Result<Mmlu> {
    let mut rows = Rows::default();
    if !fs::is_dir(path) {
        let test = jsonl::read(path, &mut rows)?;
        return finish(path, Form::Jsonl, Vec::new(), test, rows);
    }
    let found: Vec<(Form, Split, Split)> = [Form::Jsonl, Form::Csv, Form::Parquet]
        .into_iter()
        .filter_map(|form| {
            let split = |name| files(form, path, name);
            let test = match split("test") {
                Ok(test) if test.is_empty() => return None,
                test => test,
            };
            Some(test.and_then(|test| Ok((form, split("dev")?, test))))
        })
        .collect::<Result<_>>()?;
    let [(form, dev, test)] = &found[..] else {
        let what = match found.len() {
            0 => {
                "expected mmlu_test.jsonl or mmlu_test.jsonl.gz, test/<subject>_test.csv, or all/test-*.parquet".into()
            }
            _ => format!("holds several forms of MMLU: {:?}", found.iter().map(|f| f.0).collect::<Vec<_>>()),
        };
        return Err(Error::Unreadable { path: path.to_owned(), what });
    };
    let dev = read_split(*form, dev, &mut rows)?;
    let test = read_split(*form, test, &mut rows)?;
    finish(path, *form, dev, test, rows)
}

/// A few easy questions of our own in six subjects, for demonstrations: no data set to compare models with.
pub fn bundled() -> Result<Mmlu> {
    let mut rows = Rows::default();
    let dev = jsonl::parse(Path::new("mmlu_dev.jsonl"), include_bytes!("../../data/mmlu_dev.jsonl"), &mut rows)?;
    let test = jsonl::parse(Path::new("mmlu_test.jsonl"), include_bytes!("../../data/mmlu_test.jsonl"), &mut rows)?;
    finish(Path::new("data"), Form::Bundled, dev, test, rows)
}

fn finish(path: &Path, form: Form, dev: Vec<Question>, test: Vec<Question>, rows: Rows) -> Result<Mmlu> {
    rows.problems.none()?;
    if test.is_empty() {
        return Err(Error::Unreadable { path: path.to_owned(), what: "no test questions".into() });
    }
    Ok(Mmlu { dev, test, form })
}

/// The files of a split, and the subject of each where the name tells it.
type Split = Vec<(PathBuf, String)>;

fn files(form: Form, folder: &Path, split: &str) -> Result<Split> {
    let mut files = Vec::new();
    match form {
        Form::Jsonl => {
            let names = [format!("mmlu_{split}.jsonl"), format!("mmlu_{split}.jsonl.gz")];
            files
                .extend(names.iter().map(|name| folder.join(name)).find(|p| fs::exists(p)).map(|p| (p, String::new())));
        }
        Form::Csv => {
            let folder = folder.join(split);
            let suffix = format!("_{split}.csv");
            let names = if fs::is_dir(&folder) { fs::list(&folder)? } else { Vec::new() };
            let subject = |name: &String| name.strip_suffix(&suffix).map(str::to_owned);
            files.extend(names.iter().filter_map(|name| Some((folder.join(name), subject(name)?))));
            // The order of names differs where one subject's is the beginning of another's.
            files.sort_by(|a, b| a.1.cmp(&b.1));
        }
        Form::Parquet => {
            let all = shards(&folder.join("all"), split)?;
            if !all.is_empty() {
                return Ok(all);
            }
            for name in fs::list(folder)? {
                files.extend(shards(&folder.join(name), split)?);
            }
        }
        Form::Bundled => {}
    }
    Ok(files)
}

/// The parquet files of a split in one folder.
fn shards(folder: &Path, split: &str) -> Result<Split> {
    let names = if fs::is_dir(folder) { fs::list(folder)? } else { Vec::new() };
    let prefix = format!("{split}-");
    let of_split = |name: &&String| name.starts_with(&prefix) && name.ends_with(".parquet");
    Ok(names.iter().filter(of_split).map(|name| (folder.join(name), String::new())).collect())
}

fn read_split(form: Form, split: &Split, rows: &mut Rows) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (path, subject) in split {
        questions.extend(match form {
            Form::Csv => csv::read(path, subject, rows)?,
            Form::Parquet => parquet::read(path, rows)?,
            Form::Jsonl | Form::Bundled => jsonl::read(path, rows)?,
        });
    }
    Ok(questions)
}

/// What the rows of all files share: their problems, and how much text may still come.
struct Rows {
    problems: Problems,
    text_left: u64,
}

impl Default for Rows {
    fn default() -> Self {
        Self { problems: Problems::default(), text_left: MAX_TEXT }
    }
}

impl Rows {
    /// Takes a row's text from what may still come.
    fn spend(&mut self, path: &Path, bytes: usize) -> Result<()> {
        let cost = (bytes as u64).saturating_add(ROW_COST);
        self.text_left = self.text_left.checked_sub(cost).ok_or_else(|| too_much(path))?;
        Ok(())
    }

    /// The question, or a problem at this line.
    fn check(&mut self, path: &Path, line: u64, raw: Raw) -> Option<Question> {
        let mut wrong = Vec::new();
        if raw.subject.trim().is_empty() {
            wrong.push("the subject is empty".to_owned());
        }
        if raw.question.trim().is_empty() {
            wrong.push("the question is empty".to_owned());
        }
        for (choice, letter) in raw.choices.iter().zip('A'..='D') {
            if choice.trim().is_empty() {
                wrong.push(format!("choice {letter} is empty"));
            }
        }
        let choices = raw.choices.try_into().map_err(|choices: Vec<String>| {
            wrong.push(format!("expected 4 choices, found {}", choices.len()));
        });
        let answer = raw.answer.map_err(|what| wrong.push(what));
        match (choices, answer) {
            (Ok(choices), Ok(answer)) if wrong.is_empty() => {
                Some(Question { subject: raw.subject, question: raw.question, choices, answer })
            }
            _ => {
                self.problems.add(path, line, wrong.join("; "));
                None
            }
        }
    }
}

/// A row before it is checked.
struct Raw {
    subject: String,
    question: String,
    choices: Vec<String>,
    answer: Result<u8, String>,
}

fn too_much(path: &Path) -> Error {
    let what = format!("the data set holds more than {} MiB of text", MAX_TEXT >> 20);
    Error::Unreadable { path: path.to_owned(), what }
}

/// An answer key as a number.
fn number(answer: i64) -> Result<u8, String> {
    u8::try_from(answer).ok().filter(|&a| a < 4).ok_or_else(|| format!("expected an answer of 0 to 3, found {answer}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_all_rows_is_bounded_and_empty_rows_count_too() {
        let path = Path::new("p");
        let mut rows = Rows::default();
        rows.spend(path, MAX_TEXT as usize - 3 * ROW_COST as usize).unwrap();
        rows.spend(path, 0).unwrap();
        rows.spend(path, 0).unwrap();
        assert!(rows.spend(path, 0).unwrap_err().to_string().starts_with("p: the data set holds more than 256 MiB"));
        assert!(Rows::default().spend(path, usize::MAX).is_err());
    }
}
