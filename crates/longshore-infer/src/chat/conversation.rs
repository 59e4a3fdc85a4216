//! The forms in which conversations are stored in JSON lines: `OpenAI`'s messages, `ShareGPT`'s, MT-Bench's turns, a prompt.

use super::ChatError;
use serde_json::{Map, Value, json};

/// A conversation as templates take it.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// Objects with a `role`, in order.
    pub messages: Vec<Value>,
    /// A list of JSON schemas, where tools were given.
    pub tools: Option<Value>,
}

/// The conversation in one JSON value: a list of messages, or an object whose first of `messages`, `conversations`,
/// `prompt` and `turns` that is not null holds messages (`role` and `content`, or `ShareGPT`'s `from` and `value`), or the
/// user's turns as texts, or (for `prompt`) one text; `tools` beside it is taken along.
///
/// Arguments of tool calls that are JSON texts become objects, as transformers' data loaders do, because templates read
/// their keys.
pub fn conversation_of(line: &Value) -> Result<Conversation, ChatError> {
    let (name, turns, tools) = match line {
        Value::Array(_) => ("", line, None),
        Value::Object(fields) => {
            let present = |name: &&str| fields.get(*name).is_some_and(|value| !value.is_null());
            let name = ["messages", "conversations", "prompt", "turns"].into_iter().find(|name| present(name));
            let Some(name) = name else {
                return Err(wrong("expected `messages`, `conversations`, `prompt` or `turns`"));
            };
            (name, &fields[name], fields.get("tools").filter(|tools| !tools.is_null()))
        }
        _ => return Err(wrong("expected a list of messages or an object")),
    };
    let messages = match turns {
        Value::String(text) if name == "prompt" => vec![user(text)],
        Value::Array(list) => {
            list.iter().enumerate().map(|(at, turn)| message(turn, at, name)).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong(&format!("`{name}`: expected a list"))),
    };
    if messages.is_empty() {
        return Err(wrong("expected at least one message"));
    }
    Ok(Conversation { messages, tools: tools.map(tool_list).transpose()? })
}

fn wrong(what: &str) -> ChatError {
    ChatError::Conversation { what: what.to_owned() }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn message(turn: &Value, at: usize, name: &str) -> Result<Value, ChatError> {
    let fields = match turn {
        Value::String(text) if matches!(name, "prompt" | "turns") => return Ok(user(text)),
        Value::Object(fields) => fields,
        _ => return Err(wrong(&format!("message {at}: expected an object"))),
    };
    let mut fields = if fields.contains_key("role") { fields.clone() } else { from_sharegpt(fields, at)? };
    if !fields.get("role").is_some_and(Value::is_string) {
        return Err(wrong(&format!("message {at}: expected `role` to be text")));
    }
    if let Some(Value::Array(calls)) = fields.get_mut("tool_calls") {
        for call in calls {
            parse_arguments(call, at)?;
        }
    }
    Ok(Value::Object(fields))
}

/// `from` and `value` as `role` and `content`; other fields stay.
fn from_sharegpt(fields: &Map<String, Value>, at: usize) -> Result<Map<String, Value>, ChatError> {
    let (Some(Value::String(from)), Some(value)) = (fields.get("from"), fields.get("value")) else {
        return Err(wrong(&format!("message {at}: expected `role`, or `from` and `value`")));
    };
    let role = match from.as_str() {
        "human" | "user" => "user",
        "gpt" | "chatgpt" | "assistant" => "assistant",
        "tool" | "observation" => "tool",
        "system" => "system",
        other => return Err(wrong(&format!("message {at}: the unknown speaker `{other}`"))),
    };
    let mut message = Map::new();
    message.insert("role".to_owned(), Value::from(role));
    message.insert("content".to_owned(), value.clone());
    let others = fields.iter().filter(|(key, _)| !matches!(key.as_str(), "from" | "value"));
    message.extend(others.map(|(key, value)| (key.clone(), value.clone())));
    Ok(message)
}

/// A call is `{"function": {"arguments": ..}}`, or the function itself.
fn parse_arguments(call: &mut Value, at: usize) -> Result<(), ChatError> {
    let function = match call {
        Value::Object(fields) if fields.contains_key("function") => &mut fields["function"],
        other => other,
    };
    let Some(arguments) = function.get_mut("arguments") else { return Ok(()) };
    let Value::String(text) = arguments else { return Ok(()) };
    let parsed = serde_json::from_str(text)
        .map_err(|error| wrong(&format!("message {at}: arguments of a tool call are not JSON: {error}")))?;
    *arguments = parsed;
    Ok(())
}

/// Tools are a list, in some files as JSON text.
fn tool_list(tools: &Value) -> Result<Value, ChatError> {
    let list = match tools {
        Value::String(text) => {
            serde_json::from_str(text).map_err(|error| wrong(&format!("`tools`: not JSON: {error}")))?
        }
        other => other.clone(),
    };
    if list.is_array() { Ok(list) } else { Err(wrong("`tools`: expected a list")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(line: &Value) -> Vec<(String, String)> {
        let text = |message: &Value, key: &str| message[key].as_str().unwrap().to_owned();
        conversation_of(line).unwrap().messages.iter().map(|m| (text(m, "role"), text(m, "content"))).collect()
    }

    fn pair(role: &str, content: &str) -> (String, String) {
        (role.to_owned(), content.to_owned())
    }

    #[test]
    fn messages_are_taken_from_every_form() {
        let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        let expected = [pair("user", "a"), pair("assistant", "b")];
        assert_eq!(roles(&messages), expected);
        assert_eq!(roles(&json!({"messages": messages, "prompt": "x"})), expected);
        assert_eq!(roles(&json!({"messages": null, "conversations": messages})), expected);
        assert_eq!(roles(&json!({"prompt": messages})), expected);
        let sharegpt = json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]});
        assert_eq!(roles(&sharegpt), expected);
        assert_eq!(roles(&json!({"prompt": ["a", "b"]})), [pair("user", "a"), pair("user", "b")]);
        assert_eq!(roles(&json!({"question_id": 81, "turns": ["a"]})), [pair("user", "a")]);
        assert_eq!(roles(&json!({"prompt": "a"})), [pair("user", "a")]);
    }

    #[test]
    fn arguments_and_tools_that_are_json_texts_become_values() {
        let call = json!({"type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2]}"}});
        let flat = json!({"name": "f", "arguments": "{}"});
        let line = json!({
            "messages": [{"role": "assistant", "content": "", "tool_calls": [call, flat]}],
            "tools": "[{\"type\": \"function\"}]",
        });
        let conversation = conversation_of(&line).unwrap();
        let calls = &conversation.messages[0]["tool_calls"];
        assert_eq!(calls[0]["function"]["arguments"].to_string(), r#"{"b":1,"a":[2]}"#);
        assert_eq!(calls[1]["arguments"], json!({}));
        assert_eq!(conversation.tools, Some(json!([{"type": "function"}])));
    }

    #[test]
    fn what_is_no_conversation_is_refused_with_the_reason() {
        let error = |line: Value| conversation_of(&line).unwrap_err().to_string();
        assert_eq!(error(json!(1)), "not a conversation: expected a list of messages or an object");
        assert_eq!(
            error(json!({"text": "a"})),
            "not a conversation: expected `messages`, `conversations`, `prompt` or `turns`"
        );
        assert_eq!(error(json!([])), "not a conversation: expected at least one message");
        assert_eq!(error(json!({"messages": "a"})), "not a conversation: `messages`: expected a list");
        assert_eq!(error(json!(["a"])), "not a conversation: message 0: expected an object");
        assert_eq!(error(json!([{"role": 1}])), "not a conversation: message 0: expected `role` to be text");
        let speaker = json!([{"from": "cat", "value": "a"}]);
        assert_eq!(error(speaker), "not a conversation: message 0: the unknown speaker `cat`");
        let call = json!([{"role": "assistant", "tool_calls": [{"arguments": "{"}]}]);
        assert!(error(call).starts_with("not a conversation: message 0: arguments of a tool call are not JSON: "));
        assert_eq!(error(json!({"prompt": "a", "tools": "{}"})), "not a conversation: `tools`: expected a list");
    }
}
