//! The parquet files of cais/mmlu: columns `question`, `subject`, `choices` (a list of strings), `answer` (int64), snappy.
//!
//! Columns are read as references into their pages: a value that a file repeats a million times takes its room once, and
//! becomes text only after it was counted.

mod pages;

use super::super::Question;
use super::{MAX_FILE, MAX_TEXT, Raw, Rows, number};
use crate::{Error, Result};
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{ByteArray, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::RowGroupMetaData;
use ::parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use bytes::Bytes;
use longshore_ckpt::fs;
use std::path::Path;

/// Values of a column: several times those of the published files.
const MAX_VALUES: u64 = 1 << 20;

/// The name of the thread in which files are decoded. The decoder asserts what a file should hold: a damaged one ends this
/// thread, which is an error like any other; who prints panics may leave out those of this name.
pub const DECODER_THREAD: &str = "parquet";

pub(super) fn read(path: &Path, rows: &mut Rows) -> Result<Vec<Question>> {
    let bytes = Bytes::from(fs::read_small(path, MAX_FILE)?);
    std::thread::scope(|scope| {
        let decode = || parse(path, &bytes, rows);
        match std::thread::Builder::new().name(DECODER_THREAD.into()).spawn_scoped(scope, decode) {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(damaged(path, &"the decoder gave up"))),
            Err(e) => Err(Error::Unreadable { path: path.to_owned(), what: format!("no thread to decode it: {e}") }),
        }
    })
}

fn parse(path: &Path, bytes: &Bytes, rows: &mut Rows) -> Result<Vec<Question>> {
    let failed = |e: ParquetError| damaged(path, &e);
    let reader = SerializedFileReader::new(bytes.clone()).map_err(failed)?;
    bounded(path, bytes, &reader)?;
    let mut questions = Vec::new();
    let mut row = 0;
    for at in 0..reader.num_row_groups() {
        let group = reader.get_row_group(at).map_err(failed)?;
        let columns = Columns::read(&*group).map_err(failed)?;
        let count = columns.rows().ok_or_else(|| damaged(path, &"columns differ in their number of rows"))?;
        for at in 0..count {
            row += 1;
            rows.spend(path, columns.bytes(at))?;
            match columns.raw(at) {
                Ok(raw) => questions.extend(rows.check(path, row, raw)),
                Err(what) => rows.problems.add(path, row, what),
            }
        }
    }
    Ok(questions)
}

/// Refuses a file that says of itself that it is too large, before anything is decoded: runs of equal values take no room
/// in the file.
fn bounded(path: &Path, bytes: &[u8], reader: &SerializedFileReader<Bytes>) -> Result<()> {
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

/// The columns of a row group; those that are missing or of another type are `None`.
#[derive(Default)]
struct Columns {
    subject: Option<Column<ByteArray>>,
    question: Option<Column<ByteArray>>,
    choices: Option<Column<ByteArray>>,
    answer: Option<Column<i64>>,
}

impl Columns {
    fn read(group: &dyn RowGroupReader) -> Result<Self, ParquetError> {
        let mut columns = Self::default();
        for at in 0..group.num_columns() {
            let meta = group.metadata().column(at).column_descr_ptr();
            let levels = (meta.max_def_level(), meta.max_rep_level());
            let name = meta.path().parts().first().map_or("", String::as_str);
            // Lists are lists of one level, everything else is none.
            let is_list = match (name, levels.1) {
                ("choices", 1) => true,
                ("subject" | "question" | "answer", 0) => false,
                _ => continue,
            };
            let wide = |value: i32| i64::from(value);
            match group.get_column_reader(at)? {
                ColumnReader::ByteArrayColumnReader(reader) => {
                    let column = Column::read(reader, levels, |value| value)?;
                    match name {
                        "subject" => columns.subject = Some(column),
                        "question" => columns.question = Some(column),
                        _ if is_list => columns.choices = Some(column),
                        _ => {}
                    }
                }
                ColumnReader::Int64ColumnReader(reader) if name == "answer" => {
                    columns.answer = Some(Column::read(reader, levels, |value| value)?);
                }
                ColumnReader::Int32ColumnReader(reader) if name == "answer" => {
                    columns.answer = Some(Column::read(reader, levels, wide)?);
                }
                _ => {}
            }
        }
        Ok(columns)
    }

    /// The number of rows, if the columns agree.
    fn rows(&self) -> Option<usize> {
        let texts = [&self.subject, &self.question, &self.choices].into_iter().flatten().map(|c| c.starts.len());
        let mut counts = texts.chain(self.answer.as_ref().map(|c| c.starts.len()));
        let first = counts.next()?;
        counts.all(|count| count == first).then_some(first)
    }

    /// Bytes that a row will take as text; a value of a list counts as one at least.
    fn bytes(&self, row: usize) -> usize {
        let of = |column: &Option<Column<ByteArray>>| -> usize {
            let values = column.iter().flat_map(|column| column.row(row));
            values.map(|value| value.as_ref().map_or(0, ByteArray::len) + 1).sum()
        };
        of(&self.subject) + of(&self.question) + of(&self.choices)
    }

    fn raw(&self, row: usize) -> Result<Raw, String> {
        let missing = |name: &str, of: &str| format!("`{name}` is missing, null or not {of}");
        let texts = |column: &Option<Column<ByteArray>>| -> Option<Vec<String>> {
            let text = |value: &Option<ByteArray>| Some(value.as_ref()?.as_utf8().ok()?.to_owned());
            column.as_ref()?.row(row).iter().map(text).collect()
        };
        let one = |column, name| texts(column).and_then(|mut t| t.pop()).ok_or_else(|| missing(name, "a string"));
        let key = self.answer.as_ref().and_then(|column| *column.row(row).first()?);
        Ok(Raw {
            subject: one(&self.subject, "subject")?,
            question: one(&self.question, "question")?,
            choices: texts(&self.choices).ok_or_else(|| missing("choices", "a list of strings"))?,
            answer: number(key.ok_or_else(|| missing("answer", "an integer"))?),
        })
    }
}

/// A column: its values, or nulls (an empty list is one null), and where each row's begin.
struct Column<T> {
    starts: Vec<usize>,
    values: Vec<Option<T>>,
}

impl<T> Column<T> {
    fn read<D: DataType>(
        mut reader: ColumnReaderImpl<D>,
        (def_level, rep_level): (i16, i16),
        convert: impl Fn(D::T) -> T,
    ) -> Result<Self, ParquetError> {
        const BATCH: usize = 1024;
        let mut column = Self { starts: Vec::new(), values: Vec::new() };
        loop {
            let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
            let (rows, _, levels) = reader.read_records(BATCH, Some(&mut defined), Some(&mut repeated), &mut values)?;
            if rows == 0 {
                return Ok(column);
            }
            let mut values = values.into_iter();
            // Where all values are there, or each is a row, the levels are left out.
            for at in 0..levels.max(values.len()) {
                if rep_level == 0 || repeated.get(at).is_none_or(|&level| level == 0) {
                    column.starts.push(column.values.len());
                }
                let is_there = def_level == 0 || defined.get(at).is_none_or(|&level| level == def_level);
                column.values.push(if is_there { values.next().map(&convert) } else { None });
            }
        }
    }

    fn row(&self, row: usize) -> &[Option<T>] {
        let end = self.starts.get(row + 1).copied().unwrap_or(self.values.len());
        self.starts.get(row).map_or(&[], |&start| &self.values[start..end])
    }
}

fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::Unreadable { path: path.to_owned(), what: format!("parquet: {what}") }
}
