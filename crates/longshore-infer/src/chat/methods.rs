//! Python's methods of texts, lists and dictionaries, where `minijinja-contrib` lacks them or differs from Python.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Where `strip` works.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
    Both,
}

/// Calls `value.method(*args)`.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if let Some(result) = of_text(state, text, method, args) {
            return result;
        }
    } else if matches!(value.kind(), ValueKind::Seq) && method == "index" {
        let (wanted,): (&Value,) = from_args(args)?;
        for (index, item) in value.try_iter()?.checked().enumerate() {
            state.consume_fuel(1)?;
            if item? == *wanted {
                return Ok(Value::from(index));
            }
        }
        return Err(Error::new(ErrorKind::InvalidOperation, "list.index(x): x not in list"));
    } else if matches!(value.kind(), ValueKind::Seq | ValueKind::Map) && method == "copy" {
        let () = from_args(args)?;
        return Ok(value.clone());
    }
    unknown_method_callback(state, value, method, args)
}

fn of_text(state: &State, text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let strip_side = |side| {
        let (chars,): (Option<&str>,) = from_args(args)?;
        Ok(Value::from(strip(text, chars, side)))
    };
    Some(match method {
        "strip" => strip_side(Side::Both),
        "lstrip" => strip_side(Side::Left),
        "rstrip" => strip_side(Side::Right),
        "split" => split(state, text, args, Side::Left),
        "rsplit" => split(state, text, args, Side::Right),
        "splitlines" => split_lines(state, text, args),
        "partition" => partition(text, args, Side::Left),
        "rpartition" => partition(text, args, Side::Right),
        "removeprefix" => one_text(args).map(|prefix| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => one_text(args).map(|suffix| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "join" => join(state, text, args),
        "index" => one_text(args).and_then(|part| match text.find(part) {
            Some(at) => Ok(Value::from(text[..at].chars().count())),
            None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
        }),
        "swapcase" | "casefold" | "zfill" | "ljust" | "rjust" | "center" | "expandtabs" | "translate" => {
            Err(Error::new(ErrorKind::UnknownMethod, format!("the text method `{method}` is not supported")))
        }
        _ => return None,
    })
}

/// Python's `join`, which takes texts only.
fn join(state: &State, separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (items,): (&Value,) = from_args(args)?;
    let mut joined = String::new();
    for (index, item) in items.try_iter()?.checked().enumerate() {
        let item = item?;
        let wrong = || Error::new(ErrorKind::InvalidOperation, format!("join: item {index}: expected a text"));
        let text = item.as_str().ok_or_else(wrong)?;
        if index > 0 {
            joined.push_str(separator);
        }
        joined.push_str(text);
        state.consume_fuel((separator.len() + text.len()) as u64 / 64 + 1)?;
    }
    Ok(Value::from(joined))
}

fn one_text(args: &[Value]) -> Result<&str, Error> {
    let (text,): (&str,) = from_args(args)?;
    Ok(text)
}

/// Python's `str.isspace`: Unicode's white space and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Python's `str.strip`.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, side: Side) -> &'a str {
    let is_cut = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    match side {
        Side::Left => text.trim_start_matches(is_cut),
        Side::Right => text.trim_end_matches(is_cut),
        Side::Both => text.trim_matches(is_cut),
    }
}

/// Python's `split` (from the left) and `rsplit`.
fn split(state: &State, text: &str, args: &[Value], from: Side) -> Result<Value, Error> {
    let (separator, most) = split_options(args)?;
    let most = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    state.consume_fuel(text.len() as u64 / 64)?;
    let mut parts: Vec<&str> = match (separator.as_deref(), from) {
        (Some(""), _) => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        (Some(separator), Side::Right) => text.rsplitn(most, separator).collect(),
        (Some(separator), _) => text.splitn(most, separator).collect(),
        (None, from) => split_at_spaces(text, most, from),
    };
    if from == Side::Right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// `sep` and `maxsplit`, by position or name.
fn split_options(args: &[Value]) -> Result<(Option<String>, Option<i64>), Error> {
    let (separator, most, options): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.map(str::to_owned).or(options.get("sep")?);
    let most = most.or(options.get("maxsplit")?);
    options.assert_all_used()?;
    Ok((separator, most))
}

/// Without a separator runs of white space part, and there are no empty parts. From the right the last is first.
fn split_at_spaces(text: &str, most: usize, from: Side) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None, from);
    while !rest.is_empty() {
        let cut = match from {
            Side::Right => rest.rfind(is_space).map(|at| {
                let space = rest[at..].chars().next().map_or(0, char::len_utf8);
                (&rest[at + space..], &rest[..at])
            }),
            _ => rest.find(is_space).map(|at| (&rest[..at], &rest[at..])),
        };
        match cut {
            Some((part, others)) if parts.len() + 1 < most => {
                parts.push(part);
                rest = strip(others, None, from);
            }
            _ => {
                parts.push(rest);
                break;
            }
        }
    }
    parts
}

/// Python's line ends: `\r\n` is one.
fn split_lines(state: &State, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep,): (Option<bool>,) = from_args(args)?;
    state.consume_fuel(text.len() as u64 / 64)?;
    let is_end =
        |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(is_end).unwrap_or(rest.len());
        let end_len = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            other => other.map_or(0, char::len_utf8),
        };
        lines.push(Value::from(&rest[..if keep.unwrap_or(false) { end + end_len } else { end }]));
        rest = &rest[end + end_len..];
    }
    Ok(Value::from(lines))
}

fn partition(text: &str, args: &[Value], from: Side) -> Result<Value, Error> {
    let separator = one_text(args)?;
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let parts = match from {
        Side::Right => text.rsplit_once(separator).map_or(["", "", text], |(a, b)| [a, separator, b]),
        _ => text.split_once(separator).map_or([text, "", ""], |(a, b)| [a, separator, b]),
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}
