//! From columns back to rows: the definition level of a value says how deep its path is there, the repetition level which
//! list goes on.

use ::parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{ByteArray, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::RowGroupReader;
use ::parquet::schema::types::Type;
use serde_json::{Map, Value};

/// Rows that are held at a time: a page of long texts has about as many.
const BATCH: usize = 64;

/// A field of the schema that leads to at least one column of a type that JSON has.
struct Field {
    name: String,
    /// The first of its columns, in [`Table::columns`], and the one behind its last.
    columns: (usize, usize),
    /// The levels of what is there.
    def: i16,
    rep: i16,
    repetition: Repetition,
    shape: Shape,
}

enum Shape {
    Value,
    Struct(Vec<Field>),
    /// A level that the format needs and the data has not: `list` around `element`, and what is around `list`.
    Wrapper(Box<Field>),
}

/// The columns that are asked for.
pub(super) struct Table {
    fields: Vec<Field>,
    columns: Vec<Column>,
    /// Rows before the batch.
    before: u64,
    rows: usize,
}

/// A column: where it is in the file, and its values in the batch.
struct Column {
    leaf: usize,
    def: i16,
    reader: Option<ColumnReader>,
    /// Where each row begins.
    starts: Vec<usize>,
    entries: Vec<Entry>,
}

struct Entry {
    def: i16,
    rep: i16,
    value: Option<Scalar>,
}

enum Scalar {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(ByteArray),
}

impl Table {
    pub(super) fn new(root: &Type, wanted: &[&str]) -> Self {
        let mut table = Self { fields: Vec::new(), columns: Vec::new(), before: 0, rows: 0 };
        let mut leaf = 0;
        for field in root.get_fields() {
            let is_wanted = wanted.contains(&field.name());
            let found = table.field(field, (0, 0), &mut leaf, is_wanted);
            table.fields.extend(found);
        }
        table
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The places of the columns among those of the file.
    pub(super) fn leaves(&self) -> impl Iterator<Item = usize> {
        self.columns.iter().map(|column| column.leaf)
    }

    /// Adds the columns under `schema`; `leaf` counts all columns of the file.
    fn field(&mut self, schema: &Type, (def, rep): (i16, i16), leaf: &mut usize, is_wanted: bool) -> Option<Field> {
        let info = schema.get_basic_info();
        let repetition = info.repetition();
        let def = def + i16::from(repetition != Repetition::REQUIRED);
        let rep = rep + i16::from(repetition == Repetition::REPEATED);
        let first = self.columns.len();
        let shape = if schema.is_primitive() {
            let known = !matches!(schema.get_physical_type(), Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY);
            if is_wanted && known {
                self.columns.push(Column { leaf: *leaf, def, reader: None, starts: Vec::new(), entries: Vec::new() });
            }
            *leaf += 1;
            Shape::Value
        } else {
            let of = |field| self.field(field, (def, rep), leaf, is_wanted);
            let fields: Vec<Field> = schema.get_fields().iter().map(AsRef::as_ref).filter_map(of).collect();
            let is_list = info.converted_type() == ConvertedType::LIST
                || matches!(info.logical_type_ref(), Some(LogicalType::List));
            shape(fields, is_list)
        };
        let columns = (first, self.columns.len());
        let name = schema.name().to_owned();
        (columns.1 > first).then_some(Field { name, columns, def, rep, repetition, shape })
    }

    /// Goes on with a row group.
    pub(super) fn open(&mut self, group: &dyn RowGroupReader) -> Result<(), ParquetError> {
        for column in &mut self.columns {
            column.reader = Some(group.get_column_reader(column.leaf)?);
        }
        Ok(())
    }

    /// Reads the next rows of the row group. `None` where columns have different numbers of them.
    pub(super) fn fill(&mut self) -> Result<Option<usize>, ParquetError> {
        self.before += self.rows as u64;
        self.rows = 0;
        let mut counts = Vec::with_capacity(self.columns.len());
        for column in &mut self.columns {
            column.fill()?;
            counts.push(column.starts.len());
        }
        self.rows = counts.first().copied().unwrap_or(0);
        Ok(counts.iter().all(|&count| count == self.rows).then_some(self.rows))
    }

    /// A row of the batch.
    pub(super) fn row(&self, at: usize) -> Row<'_> {
        Row { table: self, at }
    }
}

/// What a group of these fields is. `list`, its only field, may have any name; if that is a struct of one field, it is there
/// for the sake of the format, unless its name says that it is of the data.
fn shape(mut fields: Vec<Field>, is_list: bool) -> Shape {
    if !is_list || fields.len() != 1 || fields[0].repetition != Repetition::REPEATED {
        return Shape::Struct(fields);
    }
    let mut list = fields.remove(0);
    if let Shape::Struct(inner) = &mut list.shape
        && inner.len() == 1
        && list.name != "array"
        && !list.name.ends_with("_tuple")
    {
        list.shape = Shape::Wrapper(Box::new(inner.remove(0)));
    }
    Shape::Wrapper(Box::new(list))
}

impl Column {
    fn fill(&mut self) -> Result<(), ParquetError> {
        self.starts.clear();
        self.entries.clear();
        match self.reader.take() {
            Some(ColumnReader::BoolColumnReader(reader)) => {
                self.read(reader, Scalar::Bool, ColumnReader::BoolColumnReader)
            }
            Some(ColumnReader::Int32ColumnReader(reader)) => {
                self.read(reader, |value| Scalar::Int(value.into()), ColumnReader::Int32ColumnReader)
            }
            Some(ColumnReader::Int64ColumnReader(reader)) => {
                self.read(reader, Scalar::Int, ColumnReader::Int64ColumnReader)
            }
            Some(ColumnReader::FloatColumnReader(reader)) => {
                self.read(reader, |value| Scalar::Float(value.into()), ColumnReader::FloatColumnReader)
            }
            Some(ColumnReader::DoubleColumnReader(reader)) => {
                self.read(reader, Scalar::Float, ColumnReader::DoubleColumnReader)
            }
            Some(ColumnReader::ByteArrayColumnReader(reader)) => {
                self.read(reader, Scalar::Text, ColumnReader::ByteArrayColumnReader)
            }
            _ => Ok(()),
        }
    }

    fn read<D: DataType>(
        &mut self,
        mut reader: ColumnReaderImpl<D>,
        scalar: impl Fn(D::T) -> Scalar,
        back: impl Fn(ColumnReaderImpl<D>) -> ColumnReader,
    ) -> Result<(), ParquetError> {
        while self.starts.len() < BATCH {
            let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
            let most = BATCH - self.starts.len();
            let (rows, _, levels) = reader.read_records(most, Some(&mut defined), Some(&mut repeated), &mut values)?;
            if rows == 0 {
                break;
            }
            let mut values = values.into_iter();
            // Where all values are there, or each is a row, the levels are left out.
            for at in 0..levels.max(values.len()) {
                let def = defined.get(at).copied().unwrap_or(self.def);
                let rep = repeated.get(at).copied().unwrap_or(0);
                if rep == 0 {
                    self.starts.push(self.entries.len());
                }
                let value = if def == self.def { values.next().map(&scalar) } else { None };
                self.entries.push(Entry { def, rep, value });
            }
        }
        self.reader = Some(back(reader));
        Ok(())
    }

    fn row(&self, row: usize) -> &[Entry] {
        let end = self.starts.get(row + 1).copied().unwrap_or(self.entries.len());
        self.starts.get(row).map_or(&[], |&start| &self.entries[start..end])
    }
}

/// One row.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    table: &'a Table,
    at: usize,
}

impl Row<'_> {
    /// Its number in the file, from 1.
    pub fn number(&self) -> u64 {
        self.table.before + self.at as u64 + 1
    }

    /// Bytes that it will take as text; any value counts as one at least.
    pub fn size(&self) -> usize {
        let of = |entry: &Entry| match &entry.value {
            Some(Scalar::Text(text)) => text.len() + 1,
            _ => 1,
        };
        self.table.columns.iter().flat_map(|column| column.row(self.at)).map(of).sum()
    }

    /// Its fields, nulls included; or what is wrong with it.
    pub fn value(&self) -> Result<Map<String, Value>, String> {
        let entries: Vec<&[Entry]> = self.table.columns.iter().map(|column| column.row(self.at)).collect();
        let mut cursor = Cursor { left: entries };
        let mut fields = Map::new();
        for field in &self.table.fields {
            fields.insert(field.name.clone(), cursor.field(field)?);
        }
        if cursor.left.iter().any(|left| !left.is_empty()) { Err(disagree()) } else { Ok(fields) }
    }
}

/// What is left of each column's entries for a row.
struct Cursor<'a> {
    left: Vec<&'a [Entry]>,
}

impl Cursor<'_> {
    fn field(&mut self, field: &Field) -> Result<Value, String> {
        let is_list = field.repetition == Repetition::REPEATED;
        let first = field.columns.0;
        if self.next(first).ok_or_else(disagree)?.def < field.def {
            for left in &mut self.left[first..field.columns.1] {
                *left = left.split_first().ok_or_else(disagree)?.1;
            }
            return Ok(if is_list { Value::Array(Vec::new()) } else { Value::Null });
        }
        if !is_list {
            return self.content(field);
        }
        let mut items = Vec::new();
        loop {
            items.push(self.content(field)?);
            if self.next(first).is_none_or(|next| next.rep != field.rep) {
                return Ok(Value::Array(items));
            }
        }
    }

    /// One value of a field that is there.
    fn content(&mut self, field: &Field) -> Result<Value, String> {
        match &field.shape {
            Shape::Wrapper(inner) => self.field(inner),
            Shape::Struct(fields) => fields.iter().map(|field| Ok((field.name.clone(), self.field(field)?))).collect(),
            Shape::Value => {
                let left = &mut self.left[field.columns.0];
                let (entry, rest) = left.split_first().ok_or_else(disagree)?;
                *left = rest;
                match &entry.value {
                    None => Err(disagree()),
                    Some(Scalar::Bool(value)) => Ok(Value::from(*value)),
                    Some(Scalar::Int(value)) => Ok(Value::from(*value)),
                    Some(Scalar::Float(value)) => Ok(Value::from(*value)),
                    Some(Scalar::Text(text)) => match std::str::from_utf8(text.data()) {
                        Ok(text) => Ok(Value::from(text)),
                        Err(_) => Err(format!("`{}`: not UTF-8 text", field.name)),
                    },
                }
            }
        }
    }

    fn next(&self, column: usize) -> Option<&Entry> {
        self.left.get(column)?.first()
    }
}

fn disagree() -> String {
    "the columns of a list or struct disagree".to_owned()
}
