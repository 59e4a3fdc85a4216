//! What the files beside a tokenizer say about special tokens.

use super::{Tokenizer, TokenizerError};
use longshore_ckpt::fs;
use longshore_convert::config::json;
use serde_json::{Map, Value};
use std::path::Path;

/// The special tokens of `tokenizer_config.json` in `folder`, else of `special_tokens_map.json`: `bos_token`, `eos_token`
/// and so on, each with its text. Empty where there is neither.
pub fn special_tokens(folder: &Path) -> Result<Map<String, Value>, TokenizerError> {
    let mut found = Map::new();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = folder.join(name);
        if !fs::exists(&path) {
            continue;
        }
        let Value::Object(fields) = read_config(&path)? else {
            return Err(TokenizerError::Malformed { path, what: "expected an object".to_owned() });
        };
        for (key, value) in fields {
            // Also names of a model's own, such as `image_token`; `add_bos_token` and its like are no texts.
            let text = if key.ends_with("_token") { token_text(&value) } else { None };
            if let (Some(text), false) = (text, found.contains_key(&key)) {
                found.insert(key, Value::from(text));
            }
        }
    }
    Ok(found)
}

/// A token is its text, or an object with `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The ids at which generation stops: `eos_token_id` of `generation_config.json`; without one, the id of the
/// `eos_token` of `tokenizer_config.json`; without one, `eos_token_id` of `config.json`. Empty where none is named.
pub fn stop_ids(folder: &Path) -> Result<Vec<u32>, TokenizerError> {
    if let Some(ids) = eos_token_id(&folder.join("generation_config.json"))? {
        return Ok(ids);
    }
    if let Some(Value::String(token)) = special_tokens(folder)?.get("eos_token")
        && let Some(id) = Tokenizer::load(folder)?.and_then(|tokenizer| tokenizer.token_id(token))
    {
        return Ok(vec![id]);
    }
    Ok(eos_token_id(&folder.join("config.json"))?.unwrap_or_default())
}

/// One id or a list of ids; `None` without file, key or ids.
fn eos_token_id(path: &Path) -> Result<Option<Vec<u32>>, TokenizerError> {
    if !fs::exists(path) {
        return Ok(None);
    }
    let config = read_config(path)?;
    let ids = match config.get("eos_token_id") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => list.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let wrong = |id: &Value| TokenizerError::Malformed {
        path: path.to_owned(),
        what: format!("`eos_token_id`: expected an id or a list of ids, found `{id}`"),
    };
    let mut found: Vec<u32> = Vec::new();
    for id in ids {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong(id))?;
        if !found.contains(&id) {
            found.push(id);
        }
    }
    Ok(Some(found).filter(|ids| !ids.is_empty()))
}

/// A JSON file as Python writes them.
pub(crate) fn read_config(path: &Path) -> Result<Value, TokenizerError> {
    let bytes = fs::read_small(path, json::MAX_SIZE as u64)?;
    json::parse(&bytes).map_err(|error| TokenizerError::Malformed { path: path.to_owned(), what: error.to_string() })
}
