//! A key put into config.json without touching what is there.

use crate::config::json;
use crate::config::text::{indent, pretty};
use longshore_ckpt::error::ParseError;
use serde_json::Value;

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
