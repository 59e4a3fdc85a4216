//! Prompts as users give them: text, token ids, conversations; from an argument, a file or standard input.

use crate::cli::run::PromptArgs;
use crate::error::UsageError;
use anyhow::{Context, Result};
use longshore_infer::chat::{ChatTemplate, conversation_of};
use longshore_infer::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::io::{IsTerminal, Read};
use std::path::Path;

/// The most that a prompt file may hold: a few million tokens.
const MAX_FILE: u64 = 1 << 30;

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    Ids(Vec<u32>),
    Text(String),
    Chat(Conversation),
}

/// A conversation under way: replies that are given are kept, missing ones are generated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conversation {
    messages: Vec<Value>,
    coming: VecDeque<Value>,
    tools: Option<Value>,
}

impl Conversation {
    fn new(messages: Vec<Value>, tools: Option<Value>, system: Option<&String>) -> Self {
        let mut coming: VecDeque<Value> = messages.into();
        if let Some(system) = system {
            coming.push_front(json!({"role": "system", "content": system}));
        }
        // A reply at the end is one to be generated again.
        while coming.len() > 1 && coming.back().is_some_and(|m| m["role"] == "assistant") {
            coming.pop_back();
        }
        Self { messages: Vec::new(), coming, tools }
    }

    /// The messages up to the next missing reply, if there is one more.
    pub(crate) fn next_turn(&mut self) -> bool {
        if self.coming.is_empty() {
            return false;
        }
        while let Some(message) = self.coming.pop_front() {
            let asks = message["role"] == "user";
            self.messages.push(message);
            if asks && self.coming.front().is_none_or(|next| next["role"] == "user") {
                break;
            }
        }
        true
    }

    /// Whether messages are left for another turn.
    pub(crate) fn messages_left(&self) -> usize {
        self.coming.len()
    }

    pub(crate) fn reply(&mut self, text: &str) {
        self.messages.push(json!({"role": "assistant", "content": text}));
    }

    pub(crate) fn render(&self, template: &ChatTemplate, variables: &Map<String, Value>) -> Result<String> {
        Ok(template.render(&self.messages, self.tools.as_ref(), true, variables)?)
    }
}

impl PromptArgs {
    /// The variables of the chat template.
    pub(crate) fn variables(&self) -> Map<String, Value> {
        self.template_var.iter().cloned().collect()
    }

    /// The ids of a text, as the tokenizer's own program gives them.
    pub(crate) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        Ok(tokenizer.encode(text, !self.no_special_tokens)?)
    }

    /// Every prompt that is given: `argument`, ids, a file, or standard input. `None` where there is nothing.
    pub(crate) fn read(&self, argument: Option<&String>) -> Result<Option<Vec<Prompt>>> {
        if let Some(ids) = &self.prompt_ids {
            return Ok(Some(vec![Prompt::Ids(ids.0.clone())]));
        }
        if let Some(text) = argument {
            return Ok(Some(vec![self.prompt(text.clone())]));
        }
        let Some(path) = &self.prompt_file else {
            if std::io::stdin().is_terminal() {
                return Ok(None);
            }
            let text = standard_input()?;
            return Ok((!text.is_empty()).then(|| vec![self.prompt(without_line_end(text))]));
        };
        if path == Path::new("-") {
            return Ok(Some(vec![self.prompt(without_line_end(standard_input()?))]));
        }
        let bytes = longshore_ckpt::fs::read_small(path, MAX_FILE)?;
        let not_text = || UsageError::NotText { path: path.clone() };
        let text = String::from_utf8(bytes).map_err(|_| not_text())?;
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            return Ok(Some(vec![self.prompt(without_line_end(text))]));
        }
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let prompts =
            lines.map(|(i, line)| self.line(line).with_context(|| format!("`{}` line {}", path.display(), i + 1)));
        let prompts = prompts.collect::<Result<Vec<_>>>()?;
        if prompts.is_empty() { Err(UsageError::EmptyFile { path: path.clone() }.into()) } else { Ok(Some(prompts)) }
    }

    fn prompt(&self, text: String) -> Prompt {
        if !self.chat {
            return Prompt::Text(text);
        }
        let user = vec![json!({"role": "user", "content": text})];
        Prompt::Chat(Conversation::new(user, None, self.system.as_ref()))
    }

    /// A line of JSON: token ids, a text, or a conversation.
    fn line(&self, line: &str) -> Result<Prompt> {
        let value = json_line(line)?;
        if let Some(ids) = value.get("input_ids") {
            let ids = serde_json::from_value(ids.clone()).context("`input_ids`")?;
            return Ok(Prompt::Ids(ids));
        }
        let text = value.as_str().or_else(|| value.get("prompt")?.as_str()).or_else(|| value.get("text")?.as_str());
        if let Some(text) = text {
            return Ok(self.prompt(text.to_owned()));
        }
        let conversation = conversation_of(&value)?;
        Ok(Prompt::Chat(Conversation::new(conversation.messages, conversation.tools, self.system.as_ref())))
    }
}

/// The value in a line of a JSON lines file.
pub(crate) fn json_line(line: &str) -> Result<Value, UsageError> {
    serde_json::from_str(line).map_err(|error| {
        // Its own words end with a line's number, which is always 1.
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default().to_owned();
        UsageError::NotJson { column: error.column(), what }
    })
}

fn standard_input() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().take(MAX_FILE).read_to_string(&mut text).context("reading standard input")?;
    Ok(text)
}

/// Editors end the last line; the prompt does not mean it.
fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(messages: &Value, system: Option<&str>) -> Vec<Vec<String>> {
        let system = system.map(str::to_owned);
        let mut c = Conversation::new(messages.as_array().expect("a list").clone(), None, system.as_ref());
        let mut turns = Vec::new();
        while c.next_turn() {
            let text = |m: &Value| format!("{}:{}", m["role"].as_str().unwrap(), m["content"].as_str().unwrap());
            turns.push(c.messages.iter().map(text).collect());
            c.reply("R");
        }
        turns
    }

    #[test]
    fn given_replies_are_kept_and_missing_ones_generated() {
        let user = |text: &str| json!({"role": "user", "content": text});
        let reply = json!({"role": "assistant", "content": "A"});
        let two = json!([user("1"), user("2")]);
        assert_eq!(
            turns(&two, Some("S")),
            [vec!["system:S", "user:1"], vec!["system:S", "user:1", "assistant:R", "user:2"]]
        );
        let history = json!([user("1"), reply, user("2"), reply]);
        assert_eq!(turns(&history, None), [vec!["user:1", "assistant:A", "user:2"]]);
    }

    #[test]
    fn lines_are_ids_texts_or_conversations() {
        let args = PromptArgs::default();
        assert_eq!(args.line(r#"{"input_ids": [1, 2]}"#).unwrap(), Prompt::Ids(vec![1, 2]));
        assert_eq!(args.line(r#"{"prompt": "a"}"#).unwrap(), Prompt::Text("a".into()));
        assert!(matches!(args.line(r#"{"turns": ["a", "b"]}"#).unwrap(), Prompt::Chat(_)));
        assert!(args.line(r#"{"input_ids": [-1]}"#).is_err());
        assert_eq!(without_line_end("a\r\n".into()), "a");
        assert_eq!(without_line_end("a\n\n".into()), "a\n");
    }
}
