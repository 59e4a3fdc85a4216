//! The text of a config.json, changed in single fields: every other byte stays, also numbers that JSON lacks.

use longshore_ckpt::error::ParseError;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};
use std::ops::Range;

/// A key at the top of an object, and where it lies in the text.
pub(crate) struct Entry {
    pub(crate) key: String,
    /// The opening quote of the key.
    pub(crate) begin: usize,
    pub(crate) value: Range<usize>,
}

/// The keys at the top of a text that parses as an object, in order.
pub(crate) fn entries(text: &str) -> Vec<Entry> {
    let bytes = text.as_bytes();
    let mut found: Vec<Entry> = Vec::new();
    let (mut depth, mut at) = (0u32, 0);
    // Where the value begins that is being read.
    let mut open: Option<usize> = None;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                let Some(end) = string_end(bytes, at) else { break };
                if depth == 1 && open.is_none() {
                    let key = serde_json::from_str(&text[at..end]).unwrap_or_default();
                    found.push(Entry { key, begin: at, value: end..end });
                }
                at = end;
                continue;
            }
            b':' if depth == 1 && open.is_none() => open = Some(at + 1),
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' => {
                let ends = depth == 1;
                if *byte != b',' {
                    depth = depth.saturating_sub(1);
                }
                if let (true, Some(from), Some(entry)) = (ends, open, found.last_mut()) {
                    let value = &text[from..at];
                    let begin = from + value.len() - value.trim_start().len();
                    entry.value = begin..begin + value.trim().len();
                    open = None;
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The index after the closing quote of the string that begins at `at`.
fn string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let mut i = at + 1;
    loop {
        match bytes.get(i)? {
            b'\\' => i += 2,
            b'"' => return Some(i + 1),
            _ => i += 1,
        }
    }
}

/// Gives fields at the top other values. A field that is not there stays absent.
pub(crate) fn replace(text: &str, fields: &[(&str, Value)]) -> Result<String, ParseError> {
    let mut out = text.to_owned();
    // From the end, so that places stay right.
    for entry in entries(text).into_iter().rev() {
        if let Some((_, value)) = fields.iter().find(|(name, _)| *name == entry.key) {
            out.replace_range(entry.value, &pretty(value, indent(text))?);
        }
    }
    Ok(out)
}

/// What stands before the first key on its line; nothing where the file is one line.
pub(crate) fn indent(text: &str) -> Option<&str> {
    let first_key = text.find('"')?;
    let line = text[..first_key].rfind('\n')? + 1;
    let indent = &text[line..first_key];
    indent.chars().all(|c| c == ' ' || c == '\t').then_some(indent)
}

/// A value of a top-level key in the file's own indentation.
pub(crate) fn pretty(value: &Value, indent: Option<&str>) -> Result<String, ParseError> {
    let Some(indent) = indent else { return Ok(value.to_string()) };
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent.as_bytes()));
    value.serialize(&mut serializer).map_err(|e| ParseError::new(0u64, e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|e| ParseError::new(0u64, e.to_string()))?;
    // No string of JSON holds a line break.
    Ok(text.replace('\n', &format!("\n{indent}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn entries_are_those_at_the_top() {
        let text = "{ \"a\" : [1, {\"b\": 2}] , \"c\\\"\":\"}, x\",\"n\":{\"a\":1}, \"d\": Infinity\n}\n";
        let found: Vec<_> = entries(text).into_iter().map(|e| (e.key, text[e.value].to_owned())).collect();
        let expected = [("a", "[1, {\"b\": 2}]"), ("c\"", "\"}, x\""), ("n", "{\"a\":1}"), ("d", "Infinity")];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert!(entries("{}").is_empty());
    }

    #[test]
    fn only_the_named_values_change() {
        let text = "{\n  \"n\": 3,\n  \"limit\": [0.0, Infinity],\n  \"layers\": [\n    \"a\",\n    \"b\"\n  ]\n}\n";
        let fields = [("n", json!(1)), ("layers", json!(["a"])), ("absent", json!(1))];
        let expected = "{\n  \"n\": 1,\n  \"limit\": [0.0, Infinity],\n  \"layers\": [\n    \"a\"\n  ]\n}\n";
        assert_eq!(replace(text, &fields).unwrap(), expected);
        assert_eq!(replace("{\"n\":3,\"m\":4}", &fields).unwrap(), "{\"n\":1,\"m\":4}");
    }
}
