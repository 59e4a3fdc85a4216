//! YAML as Python's `yaml.safe_load` reads it, as a tree whose values know where they stand. The file is not trusted: its size,
//! its depth and what its aliases expand to are bounded.

use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::ConfigError;

/// Bytes of a file. ModelOpt's largest has 8 KiB.
const MAX_BYTES: usize = 1 << 20;
/// Nesting of a file. ModelOpt's deepest has 6.
const MAX_DEPTH: usize = 64;
/// Values of a file, after aliases.
const MAX_VALUES: usize = 100_000;

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// As it was asked for.
    pub file: Rc<str>,
    /// From 1.
    pub line: usize,
}

impl At {
    /// The error `what` here.
    pub fn error(&self, what: impl Into<String>) -> ConfigError {
        ConfigError::Recipe { file: self.file.to_string(), line: self.line, what: what.into() }
    }
}

/// A value of a file.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it stands.
    pub at: At,
    /// What it is.
    pub value: Value,
}

#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the variants are YAML's")]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// Keys are scalars, each there once.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// The value of the key `name` of a mapping.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(key, _)| key.is(name)).map(|(_, value)| value)
    }

    /// Whether it is this text.
    pub fn is(&self, name: &str) -> bool {
        matches!(&self.value, Value::Text(text) if text == name)
    }

    /// How many values it holds, itself included.
    pub fn size(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|(key, value)| key.size() + value.size()).sum(),
            _ => 0,
        }
    }

    fn same_scalar(&self, other: &Self) -> bool {
        match (&self.value, &other.value) {
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Null, Value::Null) => true,
            _ => false,
        }
    }
}

/// The documents of `text`.
pub fn documents(text: &str, file: &Rc<str>) -> Result<Vec<Node>, ConfigError> {
    let start = At { file: file.clone(), line: 1 };
    if text.len() > MAX_BYTES {
        return Err(start.error(format!("{} bytes are too many for a recipe", text.len())));
    }
    let mut tree = Tree { file: file.clone(), open: vec![], anchors: HashMap::new(), values: 0, documents: vec![] };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| {
            At { file: file.clone(), line: e.marker().line() }.error(format!("not valid YAML: {}", e.info()))
        })?;
        tree.event(event, At { file: file.clone(), line: span.start.line() })?;
    }
    Ok(tree.documents)
}

/// A collection whose end has not come yet.
struct Open {
    node: Node,
    anchor: usize,
    /// The key of a mapping whose value comes next.
    key: Option<Node>,
}

struct Tree {
    file: Rc<str>,
    open: Vec<Open>,
    /// Values with an anchor, and the parser's number of it.
    anchors: HashMap<usize, Node>,
    values: usize,
    documents: Vec<Node>,
}

impl Tree {
    fn event(&mut self, event: Event, at: At) -> Result<(), ConfigError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some() {
                    return Err(at.error("tags are not supported"));
                }
                let value = if style == ScalarStyle::Plain { resolve(&text) } else { Value::Text(text.into_owned()) };
                self.add(Node { at, value }, anchor, 1)
            }
            Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                Err(at.error("tags are not supported"))
            }
            Event::SequenceStart(anchor, None) => self.begin(Node { at, value: Value::List(vec![]) }, anchor),
            Event::MappingStart(anchor, None) => self.begin(Node { at, value: Value::Map(vec![]) }, anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { node, anchor, .. }) => self.add(node, anchor, 1),
                None => Ok(()),
            },
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => {
                    let node = node.clone();
                    let size = node.size();
                    self.add(node, 0, size)
                }
                None => Err(at.error("an alias of a value that has not ended")),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, node: Node, anchor: usize) -> Result<(), ConfigError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(node.at.error(format!("nested more than {MAX_DEPTH} deep")));
        }
        self.open.push(Open { node, anchor, key: None });
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), ConfigError> {
        self.values += size;
        if self.values > MAX_VALUES {
            return Err(At { file: self.file.clone(), line: node.at.line }.error("too many values"));
        }
        if anchor != 0 {
            // An anchored value is held twice.
            self.values += node.size();
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        match &mut open.node.value {
            Value::List(items) => items.push(node),
            Value::Map(entries) => match open.key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    if matches!(node.value, Value::List(_) | Value::Map(_)) {
                        return Err(node.at.error("a key must be a text or a number"));
                    }
                    if entries.iter().any(|(key, _)| key.same_scalar(&node)) {
                        return Err(node.at.error("this key is there twice"));
                    }
                    open.key = Some(node);
                }
            },
            _ => {}
        }
        Ok(())
    }
}

/// A plain scalar by the rules of YAML 1.1: `yes` and `off` are booleans, `1e3` is a text, `0x10` and `1_000` are numbers.
fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return Value::Bool(false),
        _ => {}
    }
    number(text).unwrap_or_else(|| Value::Text(text.to_owned()))
}

fn number(text: &str) -> Option<Value> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF") {
        return Some(Value::Float(f64::from(sign) * f64::INFINITY));
    }
    if matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(Value::Float(f64::NAN));
    }
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let bare = digits.replace('_', "");
    let integer = |digits: &str, radix| {
        // No second sign.
        let plain = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
        plain.then(|| i64::from_str_radix(digits, radix).ok()).flatten().map(|n| Value::Int(i64::from(sign) * n))
    };
    if let Some(hex) = bare.strip_prefix("0x") {
        return integer(hex, 16);
    }
    if let Some(binary) = bare.strip_prefix("0b") {
        return integer(binary, 2);
    }
    if let Some(octal) = bare.strip_prefix('0').filter(|rest| !rest.is_empty() && !rest.contains('.')) {
        return integer(octal, 8);
    }
    if !bare.contains('.') {
        return integer(&bare, 10);
    }
    // A float has a point, and a sign in its exponent.
    let (mantissa, exponent) = bare.split_once(['e', 'E']).map_or((bare.as_str(), None), |(m, e)| (m, Some(e)));
    let signed = |e: &str| {
        e.strip_prefix(['+', '-'])
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
    };
    let is_float = mantissa.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && mantissa.bytes().filter(|b| *b == b'.').count() == 1
        && mantissa.len() > 1
        && exponent.is_none_or(signed);
    let value: Option<f64> = is_float.then(|| bare.parse().ok()).flatten();
    value.map(|value| Value::Float(f64::from(sign) * value))
}
