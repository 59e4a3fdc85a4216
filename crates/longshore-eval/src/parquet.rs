//! Rows of parquet files, as data sets are published: of the columns that are asked for, whatever their nesting.
//!
//! Columns are read as references into their pages, some rows at a time: a value that a file repeats a million times takes
//! its room once, and becomes text only after [`Row::size`] could be asked. Reference: parquet-format,
//! `LogicalTypes.md` (lists), and the Dremel paper for levels.

mod columns;
mod pages;

use crate::tail::Tail;
use crate::{Error, Result};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{ChunkReader, FileReader, Length, RowGroupReader, SerializedFileReader};
use bytes::Bytes;
pub use columns::Row;
use columns::Table;
use longshore_ckpt::fs::ReadFile;
use std::fmt::Display;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// The name of the thread in which files are decoded. The decoder asserts what a file should hold: a damaged one ends this
/// thread, which is an error like any other; who prints panics may leave out those of this name.
pub const DECODER_THREAD: &str = "parquet";

/// Bytes of a footer: some thousand row groups take some megabytes.
const MAX_FOOTER: u32 = 64 << 20;

/// The deepest column; lists of lists of structs have 8 names.
const DEEPEST: usize = 32;

/// What a file may hold. The columns that are asked for count, each row group for itself.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the file.
    pub file: u64,
    /// Values, nulls included.
    pub values: u64,
    /// Bytes, uncompressed.
    pub size: u64,
}

/// Calls `each` with the rows of the file at `path`, front to back, until it breaks off. A row holds those of `columns`
/// that the file has; one with none of them is refused.
pub fn rows(
    path: &Path,
    limits: &Limits,
    columns: &[&str],
    each: impl FnMut(Row<'_>) -> Result<ControlFlow<()>> + Send,
) -> Result<()> {
    let unreadable = |what: String| Error::Unreadable { path: path.to_owned(), what };
    let file = ReadFile::open(path)?;
    if file.len() > limits.file {
        return Err(unreadable(format!("{} bytes: expected at most {}", file.len(), limits.file)));
    }
    let source = Source(Arc::new(file));
    std::thread::scope(|scope| {
        let decode = || decode(path, &source, limits, columns, each);
        match std::thread::Builder::new().name(DECODER_THREAD.into()).spawn_scoped(scope, decode) {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(damaged(path, &"the decoder gave up"))),
            Err(e) => Err(unreadable(format!("no thread to decode it: {e}"))),
        }
    })
}

fn decode(
    path: &Path,
    source: &Source,
    limits: &Limits,
    columns: &[&str],
    mut each: impl FnMut(Row<'_>) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let failed = |e: ParquetError| damaged(path, &e);
    source.check_footer().map_err(failed)?;
    let reader = SerializedFileReader::new(source.clone()).map_err(failed)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    if schema.columns().iter().any(|column| column.path().parts().len() > DEEPEST) {
        return Err(damaged(path, &format!("a column nested more than {DEEPEST} deep")));
    }
    let mut table = Table::new(schema.root_schema(), columns);
    if table.is_empty() {
        let names: Vec<&str> = schema.root_schema().get_fields().iter().map(|field| field.name()).collect();
        return Err(Error::Unreadable { path: path.to_owned(), what: none_of(columns, &names) });
    }
    for at in 0..reader.num_row_groups() {
        let group = reader.get_row_group(at).map_err(failed)?;
        bounded(path, source, limits, &*group, &table)?;
        table.open(&*group).map_err(failed)?;
        loop {
            let count = table.fill().map_err(failed)?;
            let count = count.ok_or_else(|| damaged(path, &"columns differ in their number of rows"))?;
            if count == 0 {
                break;
            }
            for at in 0..count {
                if each(table.row(at))?.is_break() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Refuses a row group that says of itself that it is too large, before anything is decoded: runs of equal values take no
/// room in the file.
fn bounded(path: &Path, source: &Source, limits: &Limits, group: &dyn RowGroupReader, table: &Table) -> Result<()> {
    let (mut values, mut size) = (0u64, 0u64);
    for column in table.leaves().filter_map(|leaf| group.metadata().columns().get(leaf)) {
        let (start, len) = column.byte_range();
        let no_pages = || damaged(path, &format!("{} is not made of pages", column.column_path()));
        let too_much = |values, size| {
            let place = column.column_path();
            let Limits { values: most, size: room, .. } = limits;
            damaged(path, &format!("{place} claims {values} values in {size} bytes: expected at most {most} in {room}"))
        };
        if len > limits.size {
            return Err(too_much(values, len));
        }
        let chunk = usize::try_from(len).ok().and_then(|len| source.get_bytes(start, len).ok());
        let claims = chunk.and_then(|chunk| pages::claims(&chunk)).ok_or_else(no_pages)?;
        values = values.saturating_add(claims.values.max(column.num_values().unsigned_abs()));
        size = size.saturating_add(claims.size);
        if values > limits.values || size > limits.size {
            return Err(too_much(values, size));
        }
    }
    Ok(())
}

fn none_of(columns: &[&str], found: &[&str]) -> String {
    /// Names that are shown; a file may have any number.
    const SHOWN: usize = 8;
    let list = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let more = if found.len() > SHOWN { ", ..." } else { "" };
    format!("expected a column {}, found {}{more}", list(columns), list(&found[..found.len().min(SHOWN)]))
}

fn damaged(path: &Path, what: &dyn Display) -> Error {
    Error::Unreadable { path: path.to_owned(), what: format!("parquet: {what}") }
}

/// An open file as the decoder wants it.
#[derive(Clone)]
struct Source(Arc<ReadFile>);

impl Source {
    /// Refuses what is no parquet and what has an absurd footer, which the decoder would allocate.
    fn check_footer(&self) -> Result<(), ParquetError> {
        let no_parquet = || ParquetError::General("no footer at the end of the file".to_owned());
        let start = Length::len(self).checked_sub(8).ok_or_else(no_parquet)?;
        let tail = self.get_bytes(start, 8)?;
        let (len, magic) = tail.split_first_chunk::<4>().ok_or_else(no_parquet)?;
        if magic != b"PAR1" {
            return Err(no_parquet());
        }
        let len = u32::from_le_bytes(*len);
        if len > MAX_FOOTER {
            return Err(ParquetError::General(format!("a footer of {len} bytes: expected at most {MAX_FOOTER}")));
        }
        Ok(())
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Source {
    type T = BufReader<Tail>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(Tail { file: Arc::clone(&self.0), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        // Before it is allocated.
        if start.checked_add(length as u64).is_none_or(|end| end > self.0.len()) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are behind the end of the file")));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact_at(start, &mut bytes).map_err(|e| ParquetError::External(Box::new(e)))?;
        Ok(bytes.into())
    }
}
