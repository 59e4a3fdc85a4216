//! What one line of a JSON lines file holds.

use crate::prompts::json_line;
use longshore_infer::chat::{Conversation, conversation_of};
use serde_json::{Map, Value};

/// A piece of the source that becomes a sample: a line of JSON, or some paragraphs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document {
    /// The place of its file among those that are read.
    pub(super) file: usize,
    /// Where it begins, from 1.
    pub(super) line: u64,
    pub(super) text: String,
}

/// A sample as it is given.
#[derive(Debug, PartialEq)]
pub(super) enum Record {
    Ids(Vec<u32>),
    Text(String),
    Chat(Conversation),
}

/// The keys that are looked for, in this order; the first that is not null counts.
const KEYS: [&str; 7] = ["input_ids", "messages", "conversations", "prompt", "text", "input", "turns"];

/// All columns that decide what a record is.
pub(super) const COLUMNS: [&str; 11] = [
    "input_ids",
    "messages",
    "conversations",
    "prompt",
    "text",
    "input",
    "turns",
    "completion",
    "response",
    "output",
    "tools",
];

impl Record {
    /// The record of a line: an object with one of [`KEYS`], a list of messages, or a text.
    ///
    /// The columns and their order are those of ModelOpt 0.47 (`dataset_utils.py`, JSON lines), with `input_ids` before
    /// and the further forms of conversations that `generate` takes. Texts in `completion`, `response` and `output`
    /// belong to a `prompt`, one in `output` to an `input`, each on a line of its own. Other keys mean nothing here.
    pub(super) fn of(line: &str) -> Result<Self, String> {
        let value = json_line(line).map_err(|error| error.to_string())?;
        let chat = |value: &Value| conversation_of(value).map(Self::Chat).map_err(|error| error.to_string());
        let fields = match &value {
            Value::String(text) => return Ok(Self::Text(text.clone())),
            Value::Array(_) => return chat(&value),
            Value::Object(fields) => fields,
            other => return Err(format!("expected an object, found `{other}`")),
        };
        let Some(key) = KEYS.into_iter().find(|key| is_given(fields, key)) else {
            return Err(no_key(fields));
        };
        match key {
            "input_ids" => ids(&fields[key]).map(Self::Ids),
            "text" => texts(fields, &["text"]).map(Self::Text),
            "input" => texts(fields, &["input", "output"]).map(Self::Text),
            "prompt" if fields[key].is_string() => {
                texts(fields, &["prompt", "completion", "response", "output"]).map(Self::Text)
            }
            _ => chat(&value),
        }
    }
}

fn is_given(fields: &Map<String, Value>, key: &str) -> bool {
    fields.get(key).is_some_and(|value| !value.is_null())
}

fn no_key(fields: &Map<String, Value>) -> String {
    /// Names that are shown; a line may have any number.
    const SHOWN: usize = 8;
    let names: Vec<String> = fields.keys().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = if fields.len() > SHOWN { ", ..." } else { "" };
    let found = if names.is_empty() { "an empty object".to_owned() } else { names.join(", ") };
    format!("expected `text`, `prompt`, `messages` or `input_ids`, found {found}{more}")
}

fn ids(value: &Value) -> Result<Vec<u32>, String> {
    let list = value.as_array().ok_or("`input_ids`: expected a list of token ids")?;
    if list.is_empty() {
        return Err("`input_ids`: expected at least one token id".to_owned());
    }
    let id = |(at, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("`input_ids`, item {at}: expected a token id, found `{value}`"))
    };
    list.iter().enumerate().map(id).collect()
}

/// The texts of `keys` that are given, the first of which is.
fn texts(fields: &Map<String, Value>, keys: &[&str]) -> Result<String, String> {
    let given = keys.iter().filter(|key| is_given(fields, key));
    let text = |key: &&str| fields[*key].as_str().ok_or_else(|| format!("`{key}`: expected text"));
    Ok(given.map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &str) -> String {
        match Record::of(line) {
            Ok(Record::Text(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn error(line: &str) -> String {
        Record::of(line).unwrap_err()
    }

    #[test]
    fn the_first_known_key_that_is_not_null_counts() {
        assert_eq!(text(r#"{"text": "a", "source": 7}"#), "a");
        assert_eq!(text(r#"{"text": "a", "prompt": "b"}"#), "b");
        assert_eq!(text(r#"{"text": "a", "prompt": null}"#), "a");
        assert_eq!(text(r#"{"input": "a", "text": "b"}"#), "b");
        assert_eq!(Record::of(r#"{"text": "a", "input_ids": [3, 4]}"#), Ok(Record::Ids(vec![3, 4])));
        let chat = Record::of(r#"{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}"#);
        assert!(matches!(chat, Ok(Record::Chat(c)) if c.messages.len() == 1));
    }

    #[test]
    fn answers_follow_what_they_answer_on_their_own_lines() {
        assert_eq!(text(r#"{"response": "c", "prompt": "a", "completion": "b"}"#), "a\nb\nc");
        assert_eq!(text(r#"{"input": "a", "output": "b", "response": "c"}"#), "a\nb");
        assert_eq!(text(r#"{"prompt": "a", "output": null}"#), "a");
        assert_eq!(text(r#"{"text": "a", "output": "b"}"#), "a");
        assert_eq!(text(r#""a""#), "a");
    }

    #[test]
    fn conversations_come_in_every_form_that_generate_takes() {
        for line in [
            r#"{"conversations": [{"from": "human", "value": "a"}]}"#,
            r#"{"prompt": [{"role": "user", "content": "a"}]}"#,
            r#"[{"role": "user", "content": "a"}]"#,
            r#"{"turns": ["a"]}"#,
        ] {
            assert!(matches!(Record::of(line), Ok(Record::Chat(_))), "{line}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused_with_the_reason() {
        assert!(error(r#"{"text": }"#).starts_with("column 10: not JSON: "));
        assert_eq!(error("7"), "expected an object, found `7`");
        assert_eq!(
            error(r#"{"txt": "a", "id": 1}"#),
            "expected `text`, `prompt`, `messages` or `input_ids`, found `txt`, `id`"
        );
        assert!(error(r#"{"text": null}"#).ends_with("found `text`"));
        assert!(error("{}").ends_with("found an empty object"));
        assert_eq!(error(r#"{"text": ["a"]}"#), "`text`: expected text");
        assert_eq!(error(r#"{"prompt": "a", "output": 1}"#), "`output`: expected text");
        assert_eq!(error(r#"{"input_ids": "1,2"}"#), "`input_ids`: expected a list of token ids");
        assert_eq!(error(r#"{"input_ids": []}"#), "`input_ids`: expected at least one token id");
        for bad in ["-1", "1.5", "4294967296", "[1]", r#""1""#] {
            let line = format!(r#"{{"input_ids": [0, {bad}]}}"#);
            assert_eq!(error(&line), format!("`input_ids`, item 1: expected a token id, found `{bad}`"));
        }
        assert!(error(r#"{"messages": "a"}"#).starts_with("not a conversation: "));
    }
}
