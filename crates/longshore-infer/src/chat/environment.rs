//! The Jinja environment of transformers 5.23 (`_cached_compile_jinja_template`) in minijinja: syntax, filters, tests,
//! functions, and how values are printed.

use super::calendar::Moment;
use super::{methods, python};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use std::fmt;

/// Statements, loops and calls within each other; the engine's own maximum is 500.
const MAX_RECURSION: usize = 300;

/// The environment without templates.
pub(super) fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax());
    environment.set_recursion_limit(MAX_RECURSION);
    // Errors are the same in every build, and hold no copies of the template and its values.
    environment.set_debug(false);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(|out, state, value| {
        let written = match value.as_str() {
            Some(text) => out.write_str(text),
            None => out.write_str(&python::text(state, value)?),
        };
        written.map_err(Error::from)
    });
    environment.set_unknown_method_callback(methods::call);
    environment.remove_global("debug");
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |state: &State, value: Value| python::text(state, &value));
    environment.add_filter("trim", trim);
    environment.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: Value| {
        // A slice of a list is an iterable.
        matches!(
            value.kind(),
            ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map
        )
    });
    environment.add_function("raise_exception", |state: &State, message: Value| -> Result<Value, Error> {
        let message = python::text(state, &message)?;
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: &str| Moment::now().format(format));
    environment
}

fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("the delimiters are the default ones")
}

/// Compiles a template.
pub(super) fn add(environment: &mut Environment<'static>, name: &str, source: &str) -> Result<(), Error> {
    environment.add_template_owned(name.to_owned(), without_generation_tags(&with_unix_lines(source)))
}

/// Fixes the date that `strftime_now` answers.
pub(super) fn set_today(environment: &mut Environment<'static>, year: i64, month: u32, day: u32) {
    let today = Moment { year, month, day, seconds: 0 };
    environment.add_function("strftime_now", move |format: &str| today.format(format));
}

/// A JSON value as templates see it; the order of keys is kept.
pub(super) fn value_of(value: &serde_json::Value) -> Value {
    Value::from(Serde(value))
}

/// What `raise_exception` was called with.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The first of an error and its causes for which `find` answers.
fn find_cause<T>(error: &Error, find: impl Fn(&(dyn std::error::Error + 'static)) -> Option<T>) -> Option<T> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = find(error) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The message of `raise_exception`, where that is what failed.
pub(super) fn raised(error: &Error) -> Option<String> {
    find_cause(error, |cause| cause.downcast_ref::<Raised>().map(|raised| raised.0.clone()))
}

/// Whether the bound of work was met.
pub(super) fn ran_out(error: &Error) -> bool {
    let out = |cause: &Error| cause.kind() == ErrorKind::OutOfFuel;
    find_cause(error, |cause| cause.downcast_ref::<Error>().filter(|cause| out(cause)).map(|_| ())).is_some()
}

/// What the engine says, without file and line.
pub(super) fn message(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the engine passes keyword arguments by value")]
fn to_json(state: &State, value: &Value, ensure_ascii: Option<bool>, options: Kwargs) -> Result<String, Error> {
    let ensure_ascii = ensure_ascii.or(options.get("ensure_ascii")?).unwrap_or(false);
    let indent = options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none());
    let indent = match indent {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(i64::try_from(indent)?.clamp(0, MAX_INDENT)).unwrap_or(0)),
        }),
    };
    let separators = match options.get::<Option<Value>>("separators")?.filter(|pair| !pair.is_none()) {
        None => None,
        Some(pair) => {
            let text = |index| -> Result<String, Error> {
                let item = pair.get_item_by_index(index)?;
                let wrong = || Error::new(ErrorKind::InvalidOperation, "tojson: expected two texts as `separators`");
                item.as_str().map(str::to_owned).ok_or_else(wrong)
            };
            Some((text(0)?, text(1)?))
        }
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    python::json(state, value, &python::JsonStyle { ensure_ascii, indent, separators, sort_keys })
}

/// Wider indents are cut.
const MAX_INDENT: i64 = 1 << 10;

/// Jinja's `trim`: Python's `strip` of the value's text.
fn trim(state: &State, value: &Value, chars: Option<&str>) -> Result<String, Error> {
    let text = python::text(state, value)?;
    Ok(methods::strip(&text, chars, methods::Side::Both).to_owned())
}

/// Jinja reads every line end as `\n`.
fn with_unix_lines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// The template with `{% generation %}` and `{% endgeneration %}` as `{% with %}` and `{% endwith %}`, which have the same
/// effect on text: a scope of their own. Texts in expressions, comments and raw blocks are left alone.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let len = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => tag_len(tag, "}}"),
            Some(b'%') => {
                let len = tag_len(tag, "%}");
                let word = tag_word(&tag[..len]);
                match word {
                    "raw" => end_of_raw(tag, len),
                    "generation" | "endgeneration" => {
                        let new = if word == "generation" { "with" } else { "endwith" };
                        out.push_str(&tag[..len].replacen(word, new, 1));
                        rest = &tag[len..];
                        continue;
                    }
                    _ => len,
                }
            }
            _ => 1,
        };
        out.push_str(&tag[..len]);
        rest = &tag[len..];
    }
    out.push_str(rest);
    out
}

/// The only word of a tag `{% word %}`, empty where there are several.
fn tag_word(tag: &str) -> &str {
    let inner = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")).unwrap_or_default();
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner).trim();
    if inner.chars().all(char::is_alphanumeric) { inner } else { "" }
}

/// The length of the tag that begins `text` and ends with `end` outside quotes.
fn tag_len(text: &str, end: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut quote) = (2, None);
    while let Some(&byte) = bytes.get(at) {
        match quote {
            Some(_) if byte == b'\\' => at += 1,
            Some(open) if byte == open => quote = None,
            None if bytes[at..].starts_with(end.as_bytes()) => return at + end.len(),
            None if matches!(byte, b'"' | b'\'') => quote = Some(byte),
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// The length of the raw block whose first tag has `first` bytes.
fn end_of_raw(text: &str, first: usize) -> usize {
    let mut at = first;
    while let Some(found) = text[at..].find("{%") {
        let start = at + found;
        let len = tag_len(&text[start..], "%}");
        if tag_word(&text[start..start + len]) == "endraw" {
            return start + len;
        }
        at = start + 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_generation_tags_are_replaced() {
        let source = "a{% generation %}b{%- endgeneration -%}c{%+generation%}{%endgeneration+%} {";
        let expected = "a{% with %}b{%- endwith -%}c{%+with%}{%endwith+%} {";
        assert_eq!(without_generation_tags(source), expected);
        for untouched in [
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% raw %}{{ '{% raw %}{% generation %}",
            "{{ '{% generation %}' }}",
            r#"{{ "\"{% generation %}" }}"#,
            "{% set generation = 1 %}",
            "{% if generation %}{% generation_of %}",
            "{% generation",
            "{",
        ] {
            assert_eq!(without_generation_tags(untouched), untouched);
        }
    }
}
