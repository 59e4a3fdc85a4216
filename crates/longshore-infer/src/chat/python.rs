//! Values as Python writes them: `str`, `repr` and `json.dumps`.
//!
//! Source: `CPython`'s `repr` of `float` (shortest digits, exponent below 1e-4 and from 1e16), of `str` (quotes chosen by
//! content, unprintable characters escaped), and `json/encoder.py`.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use std::fmt::Write as _;

/// Deeper values are refused; Python's own limit is about this.
const MAX_DEPTH: usize = 200;

/// Bytes of text for one unit of work: walking a value is slower than copying text. The engine charges the same.
const BYTES_PER_UNIT: usize = 4;

/// Text that pays for its length: a value may contain one list many times over.
struct Text<'a, 'b, 'c> {
    out: String,
    /// Bytes of `out` that are not yet paid.
    unpaid: usize,
    state: &'a State<'b, 'c>,
}

impl<'a, 'b, 'c> Text<'a, 'b, 'c> {
    fn new(state: &'a State<'b, 'c>) -> Self {
        Self { out: String::new(), unpaid: 0, state }
    }

    fn push(&mut self, piece: &str) -> Result<(), Error> {
        self.out.push_str(piece);
        self.unpaid += piece.len();
        if self.unpaid >= BYTES_PER_UNIT {
            self.state.consume_fuel((self.unpaid / BYTES_PER_UNIT) as u64)?;
            self.unpaid %= BYTES_PER_UNIT;
        }
        Ok(())
    }
}

/// Python's `str(value)`; nothing for an undefined value, as Jinja prints it.
pub(super) fn text(state: &State, value: &Value) -> Result<String, Error> {
    if value.is_undefined() {
        return Ok(String::new());
    }
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let mut text = Text::new(state);
    repr(&mut text, value, 0)?;
    Ok(text.out)
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth <= MAX_DEPTH {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("expected at most {MAX_DEPTH} levels of nesting, found more")))
}

fn repr(text: &mut Text, value: &Value, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::Undefined => text.push("Undefined"),
        ValueKind::None => text.push("None"),
        ValueKind::Bool => text.push(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => text.push(&number(value, ["nan", "inf", "-inf"])),
        ValueKind::String => text.push(&quoted(value.as_str().unwrap_or_default())),
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.is_tuple();
            text.push(if tuple { "(" } else { "[" })?;
            let mut count = 0;
            for item in value.try_iter()?.checked() {
                if count > 0 {
                    text.push(", ")?;
                }
                count += 1;
                repr(text, &item?, depth + 1)?;
            }
            if tuple && count == 1 {
                text.push(",")?;
            }
            text.push(if tuple { ")" } else { "]" })
        }
        ValueKind::Map => {
            text.push("{")?;
            for (index, key) in value.try_iter()?.checked().enumerate() {
                let key = key?;
                if index > 0 {
                    text.push(", ")?;
                }
                repr(text, &key, depth + 1)?;
                text.push(": ")?;
                repr(text, &value.get_item(&key)?, depth + 1)?;
            }
            text.push("}")
        }
        _ => text.push(&value.to_string()),
    }
}

/// A number in Python's form; `special` are NaN, infinity and its negative.
fn number(value: &Value, special: [&str; 3]) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), |x| float(x, special))
}

/// Python's `float.__repr__`.
fn float(x: f64, special: [&str; 3]) -> String {
    if x.is_nan() {
        return special[0].to_owned();
    }
    if x.is_infinite() {
        return special[if x > 0.0 { 1 } else { 2 }].to_owned();
    }
    // Rust's shortest digits are Python's: `-d.ddde-N`.
    let shortest = format!("{x:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// Python's `str.__repr__`.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                let _ = match code {
                    0..0x100 => write!(out, "\\x{code:02x}"),
                    0x100..0x1_0000 => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
    out
}

/// Python's `str.isprintable`: no control, format, surrogate, private or unassigned character and no separator but the
/// blank. Rust's `Debug` escapes the same categories; behind a letter it leaves combining characters alone.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let mut buffer = [b'a'; 5];
    let len = 1 + c.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..len]).is_ok_and(|text| text.escape_debug().nth(1) == Some(c))
}

/// The keyword arguments of transformers' `tojson`.
pub(super) struct JsonStyle {
    pub(super) ensure_ascii: bool,
    /// The text of one level; `None` writes one line.
    pub(super) indent: Option<String>,
    pub(super) separators: Option<(String, String)>,
    pub(super) sort_keys: bool,
}

/// Python's `json.dumps`.
pub(super) fn json(state: &State, value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.clone(), key.clone()),
        None => (if style.indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let mut writer = JsonWriter { text: Text::new(state), style, item, key };
    writer.value(value, 0)?;
    Ok(writer.text.out)
}

struct JsonWriter<'a, 'b, 'c> {
    text: Text<'a, 'b, 'c>,
    style: &'a JsonStyle,
    /// Between two items.
    item: String,
    /// Between key and value.
    key: String,
}

impl JsonWriter<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::None => self.text.push("null"),
            ValueKind::Bool => self.text.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text.push(&number(value, ["NaN", "Infinity", "-Infinity"])),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            // A slice of a list is an iterable; of a generator it cannot be told.
            ValueKind::Seq | ValueKind::Iterable => {
                self.text.push("[")?;
                let mut empty = true;
                for item in value.try_iter()?.checked() {
                    let item = item?;
                    self.begin_item(empty, depth + 1)?;
                    empty = false;
                    self.value(&item, depth + 1)?;
                }
                self.end(empty, depth, "]")
            }
            ValueKind::Map => {
                self.text.push("{")?;
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                if self.style.sort_keys {
                    keys.sort();
                }
                for (index, key) in keys.iter().enumerate() {
                    self.begin_item(index == 0, depth + 1)?;
                    self.key(key)?;
                    let separator = std::mem::take(&mut self.key);
                    self.text.push(&separator)?;
                    self.key = separator;
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.end(keys.is_empty(), depth, "}")
            }
            kind => Err(not_json(&format!("value of type {kind}"))),
        }
    }

    fn begin_item(&mut self, first: bool, depth: usize) -> Result<(), Error> {
        if !first {
            let separator = std::mem::take(&mut self.item);
            self.text.push(&separator)?;
            self.item = separator;
        }
        self.new_line(depth)
    }

    fn end(&mut self, empty: bool, depth: usize, bracket: &str) -> Result<(), Error> {
        if !empty {
            self.new_line(depth)?;
        }
        self.text.push(bracket)
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.style.indent else { return Ok(()) };
        self.text.push("\n")?;
        for _ in 0..depth {
            self.text.push(indent)?;
        }
        Ok(())
    }

    /// Keys that are no texts are written as ones.
    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None => self.text.push("\"null\""),
            ValueKind::Bool => self.text.push(if key.is_true() { "\"true\"" } else { "\"false\"" }),
            ValueKind::Number => {
                let number = number(key, ["NaN", "Infinity", "-Infinity"]);
                self.text.push(&format!("\"{number}\""))
            }
            kind => Err(not_json(&format!("key of type {kind}"))),
        }
    }

    fn string(&mut self, string: &str) -> Result<(), Error> {
        let mut out = String::with_capacity(string.len() + 2);
        out.push('"');
        for c in string.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..' ' => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                // Python's pattern for ASCII output is `[^ -~]`, which includes the delete character.
                c if self.style.ensure_ascii && !(' '..='~').contains(&c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
        self.text.push(&out)
    }
}

fn not_json(what: &str) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("tojson: a {what} is not JSON serializable"))
}
