//! Chat templates: a conversation becomes the prompt text that the model was trained on.
//!
//! The text equals what transformers 5.23 renders (`utils/chat_template_utils.py`: Jinja2 in its sandbox with trimmed
//! blocks, its own `tojson`, `raise_exception`, `strftime_now` and `{% generation %}`). Templates are programs from
//! strangers: the work of one rendering is bounded, and they reach nothing but the conversation.
//!
//! The rendered text holds the special tokens already; it is tokenized without adding any.
//!
//! The language is in `environment`, Python's way to write values in `python`, dates in `calendar`, the forms in which
//! conversations are stored in `conversation`.

mod calendar;
mod conversation;
mod environment;
mod methods;
mod python;

pub use conversation::{Conversation, conversation_of};

use crate::tokenizer::special_tokens;
use longshore_ckpt::fs;
use minijinja::Environment;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Larger files are no template: 16 MiB.
const MAX_SIZE: u64 = 16 << 20;

/// Units of work (about one instruction, or 64 bytes of text) of one rendering, however short the conversation.
/// The longest template seen needs some thousands for a short conversation.
const BASE_FUEL: u64 = 4_000_000;

/// Units of work added for each byte of the conversation.
const FUEL_PER_BYTE: u64 = 8;

/// No rendering gets more, however long the conversation: some ten MB of text.
const MAX_FUEL: u64 = 20_000_000;

/// Bytes of stack of the thread that renders. A template may put lists into each other until its work is used up (six
/// units a level), and they are freed by recursion: about 80 bytes a level (measured 2026-11-23). Only used pages count.
const STACK: usize = 512 << 20;

/// The names under which a message's reasoning is passed; templates read the first (transformers' `_REASONING_FIELDS`).
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What is wrong with a template, or with a conversation for it.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A conversation must be rendered and the model has no template.
    #[error("{}: no chat template: expected `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`", folder.display())]
    NoTemplate {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// There are several templates and none of them applies.
    #[error("{file}: expected a chat template named `default`, found {names:?}")]
    NoDefault {
        /// The file that holds them.
        file: String,
        /// Their names.
        names: Vec<String>,
    },
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] longshore_ckpt::Error),
    /// A file beside the template whose content is not as expected.
    #[error("{}: {what}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The template is not Jinja.
    #[error("{file}{}: {what}", line_text(*line))]
    Syntax {
        /// The file.
        file: String,
        /// The template's line, from 1, where known.
        line: Option<usize>,
        /// What the parser says.
        what: String,
    },
    /// The template refuses the conversation (`raise_exception`).
    #[error("{file}{}: the template refuses the conversation: {message}", line_text(*line))]
    Raised {
        /// The file.
        file: String,
        /// The template's line, from 1, where known.
        line: Option<usize>,
        /// The template's own words.
        message: String,
    },
    /// The template fails on the conversation.
    #[error("{file}{}: {what}", line_text(*line))]
    Render {
        /// The file.
        file: String,
        /// The template's line, from 1, where known.
        line: Option<usize>,
        /// What failed.
        what: String,
    },
    /// The template does far more work, or makes far more text, than the conversation explains.
    #[error("{file}{}: expected at most {limit} units of work, found more", line_text(*line))]
    TooMuchWork {
        /// The file.
        file: String,
        /// The template's line, from 1, where known.
        line: Option<usize>,
        /// The bound: a unit is about one instruction, or 64 bytes of text.
        limit: u64,
    },
    /// What was given is no conversation.
    #[error("not a conversation: {what}")]
    Conversation {
        /// What is wrong with it.
        what: String,
    },
}

fn line_text(line: Option<usize>) -> String {
    line.map(|line| format!(":{line}")).unwrap_or_default()
}

/// The chat template, or templates, of one model.
#[derive(Debug)]
pub struct ChatTemplate {
    /// What errors call it.
    file: String,
    /// The names of the templates in `environment`, all different.
    names: Vec<String>,
    environment: Environment<'static>,
    special: Map<String, Value>,
}

/// The name of a template that stands alone.
const DEFAULT: &str = "default";

/// The name of the one that is taken when there are tools.
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// The template of the tokenizer in `folder`: `chat_template.jinja` (and `additional_chat_templates/tool_use.jinja`),
    /// else `chat_template` of `tokenizer_config.json`: one text, or a list of `{name, template}`. `None` where there is
    /// none.
    pub fn load(folder: &Path) -> Result<Option<Self>, ChatError> {
        let special = special_tokens(folder).map_err(|error| ChatError::Config {
            path: folder.join("tokenizer_config.json"),
            what: error.to_string(),
        })?;
        let path = folder.join("chat_template.jinja");
        if fs::exists(&path) {
            let mut sources = vec![(DEFAULT.to_owned(), read_text(&path)?)];
            let more = folder.join("additional_chat_templates/tool_use.jinja");
            if fs::exists(&more) {
                sources.push((TOOL_USE.to_owned(), read_text(&more)?));
            }
            return Self::from_sources(&path.display().to_string(), &sources, special).map(Some);
        }
        let path = folder.join("tokenizer_config.json");
        if !fs::exists(&path) {
            return Ok(None);
        }
        let config = crate::tokenizer::read_config(&path)
            .map_err(|error| ChatError::Config { path: path.clone(), what: error.to_string() })?;
        let sources = match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(source)) => vec![(DEFAULT.to_owned(), source.clone())],
            Some(Value::Array(list)) => {
                let named = |item: &Value| {
                    Some((item.get("name")?.as_str()?.to_owned(), item.get("template")?.as_str()?.to_owned()))
                };
                list.iter().map(named).collect::<Option<Vec<_>>>().ok_or_else(|| ChatError::Config {
                    path: path.clone(),
                    what: "`chat_template`: expected a list of `name` and `template`".to_owned(),
                })?
            }
            Some(other) => {
                let what = format!("`chat_template`: expected text or a list, found `{other}`");
                return Err(ChatError::Config { path, what });
            }
        };
        Self::from_sources(&path.display().to_string(), &sources, special).map(Some)
    }

    /// A template from its text. `name` is what errors call it; `special` maps `bos_token`, `eos_token`, ... to text.
    pub fn from_source(name: &str, source: &str, special: Map<String, Value>) -> Result<Self, ChatError> {
        Self::from_sources(name, &[(DEFAULT.to_owned(), source.to_owned())], special)
    }

    fn from_sources(file: &str, sources: &[(String, String)], special: Map<String, Value>) -> Result<Self, ChatError> {
        let mut environment = environment::new();
        let mut names: Vec<String> = Vec::new();
        for (name, source) in sources {
            environment::add(&mut environment, name, source).map_err(|error| ChatError::Syntax {
                file: file.to_owned(),
                line: error.line(),
                what: environment::message(&error),
            })?;
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        Ok(Self { file: file.to_owned(), names, environment, special })
    }

    /// The date that `strftime_now` answers, at 00:00, in place of today's in UTC.
    pub fn with_today(mut self, year: i64, month: u32, day: u32) -> Self {
        environment::set_today(&mut self.environment, year, month, day);
        self
    }

    /// The text of a conversation.
    ///
    /// `tools` is a list of JSON schemas. `context` holds further variables (`enable_thinking`, ...), which win over the
    /// special tokens. A conversation that the template does not support is [`ChatError::Raised`] or
    /// [`ChatError::Render`].
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
        context: &Map<String, Value>,
    ) -> Result<String, ChatError> {
        let tools = tools.filter(|tools| !tools.is_null());
        check(messages, tools)?;
        let wanted = [TOOL_USE, DEFAULT].into_iter().skip(usize::from(tools.is_none()));
        let name = wanted.into_iter().find(|&name| self.names.iter().any(|n| n == name));
        let name = name.ok_or_else(|| ChatError::NoDefault { file: self.file.clone(), names: self.names.clone() })?;

        let mut variables = self.special.clone();
        variables.extend(context.clone());
        variables.insert("messages".to_owned(), messages.iter().map(with_reasoning_aliases).collect());
        variables.insert("tools".to_owned(), tools.cloned().unwrap_or_default());
        variables.entry("documents").or_insert(Value::Null);
        variables.insert("add_generation_prompt".to_owned(), Value::Bool(add_generation_prompt));
        let variables = Value::Object(variables);

        let work = BASE_FUEL.saturating_add(text_size(&variables).saturating_mul(FUEL_PER_BYTE));
        let limit = work.min(MAX_FUEL);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(limit));
        // The error is looked at in the thread, too: it may hold values of the template.
        let render = || {
            let template = environment.get_template(name).map_err(|error| self.failure(&error, limit))?;
            template.render(environment::value_of(&variables)).map_err(|error| self.failure(&error, limit))
        };
        let failed = |what: String| ChatError::Render { file: self.file.clone(), line: None, what };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, render);
            let thread = thread.map_err(|error| failed(format!("starting a thread: {error}")))?;
            thread.join().unwrap_or_else(|_| Err(failed("the template engine failed".to_owned())))
        })
    }

    fn failure(&self, error: &minijinja::Error, limit: u64) -> ChatError {
        let (file, line) = (self.file.clone(), error.line());
        if environment::ran_out(error) {
            return ChatError::TooMuchWork { file, line, limit };
        }
        match environment::raised(error) {
            Some(message) => ChatError::Raised { file, line, message },
            None => ChatError::Render { file, line, what: environment::message(error) },
        }
    }
}

fn read_text(path: &Path) -> Result<String, ChatError> {
    String::from_utf8(fs::read_small(path, MAX_SIZE)?)
        .map_err(|error| ChatError::Config { path: path.to_owned(), what: format!("not UTF-8: {error}") })
}

/// What transformers checks before it renders.
fn check(messages: &[Value], tools: Option<&Value>) -> Result<(), ChatError> {
    if let Some(index) = messages.iter().position(|message| !message.is_object()) {
        let what = format!("message {index}: expected an object, found `{}`", messages[index]);
        return Err(ChatError::Conversation { what });
    }
    match tools {
        None => Ok(()),
        Some(Value::Array(list)) if list.iter().all(Value::is_object) => Ok(()),
        Some(other) => {
            let what = format!("tools: expected a list of objects, found `{other}`");
            Err(ChatError::Conversation { what })
        }
    }
}

/// transformers' `_alias_reasoning_fields`: the first reasoning that is not null stands under `reasoning_content`, and
/// under `thinking` where that is absent (gpt-oss reads it), which then is the first key.
fn with_reasoning_aliases(message: &Value) -> Value {
    let reasoning = REASONING.iter().filter_map(|&name| message.get(name)).find(|value| !value.is_null());
    let (Some(reasoning), Value::Object(fields)) = (reasoning, message) else { return message.clone() };
    let mut aliased = Map::new();
    aliased.insert("thinking".to_owned(), reasoning.clone());
    aliased.extend(fields.clone());
    aliased.insert("reasoning_content".to_owned(), reasoning.clone());
    Value::Object(aliased)
}

/// About the bytes of a value's text.
fn text_size(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64 + 2,
        Value::Array(list) => list.iter().map(text_size).sum::<u64>() + 2,
        Value::Object(map) => map.iter().map(|(key, value)| key.len() as u64 + 4 + text_size(value)).sum::<u64>() + 2,
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}
