//! A key put into config.json without touching what is there.

use crate::config::json;
use longshore_ckpt::error::ParseError;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// The key in config.json.
pub(in crate::quantized) const KEY: &str = "quantization_config";

/// Puts `value` into the text of a config.json as its last key, `quantization_config`, in the file's own indentation.
/// Every other byte stays, also numbers that JSON lacks. Refused is a file that is no object or has the key.
pub fn insert(config_json: &str, value: &Value) -> Result<String, ParseError> {
    insert_key(config_json, KEY, value)
}

/// The same for any key.
pub(crate) fn insert_key(config_json: &str, key: &str, value: &Value) -> Result<String, ParseError> {
    let config = json::parse(config_json.as_bytes())?;
    let config = config.as_object().ok_or_else(|| ParseError::new(0u64, "expected an object"))?;
    if config.contains_key(key) {
        return Err(ParseError::new(0u64, format!("there is a `{key}` already")));
    }
    // What follows an object that parses is white space, so this is its own brace.
    let end = config_json.rfind('}').ok_or_else(|| ParseError::new(0u64, "expected an object"))?;
    let body = config_json[..end].trim_end();
    let indent = indent(config_json);
    let comma = if config.is_empty() { "" } else { "," };
    let value = pretty(value, indent)?;
    let tail = &config_json[end..];
    Ok(match indent {
        Some(indent) => format!("{body}{comma}\n{indent}\"{key}\": {value}\n{tail}"),
        None if config.is_empty() => format!("{body}\"{key}\": {value}{tail}"),
        None => format!("{body}, \"{key}\": {value}{tail}"),
    })
}

/// What stands before the first key on its line; nothing where the file is one line.
fn indent(text: &str) -> Option<&str> {
    let first_key = text.find('"')?;
    let line = text[..first_key].rfind('\n')? + 1;
    let indent = &text[line..first_key];
    indent.chars().all(|c| c == ' ' || c == '\t').then_some(indent)
}

fn pretty(value: &Value, indent: Option<&str>) -> Result<String, ParseError> {
    let Some(indent) = indent else { return Ok(value.to_string()) };
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent.as_bytes()));
    value.serialize(&mut serializer).map_err(|e| ParseError::new(0u64, e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|e| ParseError::new(0u64, e.to_string()))?;
    // No string of JSON holds a line break.
    Ok(text.replace('\n', &format!("\n{indent}")))
}
