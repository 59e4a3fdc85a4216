//! `config.json` of Hugging Face folders: what all families share, and who reads which.
//!
//! A field that changes names, shapes or the function in a way that the mapping does not know is refused by its name;
//! fields that the reference never reads are allowed and noted.

pub(crate) mod llama;
pub(crate) mod nemotron_h;

use crate::config::ModelConfig;
use crate::config::json::number;
use crate::error::Problem;
use longshore_ckpt::Dtype;
use serde_json::{Map, Value};

/// A config that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// The model.
    pub config: ModelConfig,
    /// What was inferred or left out of account, a sentence each.
    pub notes: Vec<String>,
}

/// Reads a parsed `config.json` (see [`json::parse`](crate::config::json::parse)); `file` is its name in problems. All
/// problems are found, not only the first.
pub fn read(file: &str, value: &Value) -> Result<Read, Vec<Problem>> {
    let problem =
        |field: &str, what: String| vec![Problem::Config { file: file.to_owned(), field: field.to_owned(), what }];
    let Value::Object(object) = value else {
        return Err(problem("", "expected an object".into()));
    };
    // The fields of another family would only give problems that mean nothing.
    let found = object.get("model_type").unwrap_or(&Value::Null);
    let Some((_, family)) = FAMILIES.iter().find(|(name, _)| found.as_str() == Some(name)) else {
        let known: Vec<_> = FAMILIES.iter().map(|(name, _)| format!("`{name}`")).collect();
        return Err(problem("model_type", format!("expected {}, found `{found}`", known.join(" or "))));
    };
    let mut fields = Fields::new(file, String::new(), object);
    let config = family(&mut fields);
    if fields.problems.is_empty() {
        for (field, what) in config.contradictions() {
            fields.problem(field, what);
        }
    }
    if fields.problems.is_empty() { Ok(Read { config, notes: fields.notes }) } else { Err(fields.problems) }
}

/// What reads the fields of a family. Where it finds problems, its result means nothing.
type Family = fn(&mut Fields<'_>) -> ModelConfig;

/// By `model_type`.
const FAMILIES: [(&str, Family); 2] = [("nemotron_h", nemotron_h::read), ("llama", llama::read)];

/// Sizes from here on are no sizes.
const MAX_SIZE: u64 = 1 << 31;

/// The fields of one object, and what was found wrong with them so far.
struct Fields<'a> {
    file: &'a str,
    /// What their names begin with in problems and notes: nothing, or `rope_scaling.`.
    path: String,
    object: &'a Map<String, Value>,
    problems: Vec<Problem>,
    notes: Vec<String>,
}

impl<'a> Fields<'a> {
    fn new(file: &'a str, path: String, object: &'a Map<String, Value>) -> Self {
        Self { file, path, object, problems: Vec::new(), notes: Vec::new() }
    }

    fn problem(&mut self, field: &str, what: impl Into<String>) {
        let field = format!("{}{field}", self.path);
        let problem = Problem::Config { file: self.file.to_owned(), field, what: what.into() };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn inferred<T: std::fmt::Display>(&mut self, field: &str, value: T) -> T {
        self.notes.push(format!("`{}{field}` is not given; transformers' default {value} is assumed", self.path));
        value
    }

    /// The field of that name, where it is not null.
    fn field(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    /// The value that a field has under one of its names. Names that disagree are a problem.
    fn pick(&mut self, names: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        let mut given = names.iter().filter_map(|&name| Some((name, self.field(name)?)));
        let first = given.next()?;
        let same = |a: &Value, b: &Value| a == b || (number(a).is_some() && number(a) == number(b));
        let others: Vec<_> = given.filter(|other| !same(first.1, other.1)).collect();
        for (name, value) in others {
            self.problem(name, format!("{value} contradicts `{}` {}", first.0, first.1));
        }
        Some(first)
    }

    /// A size that must be there. 1 where it is not, and a problem.
    fn size(&mut self, names: &[&'static str]) -> u64 {
        if names.iter().all(|name| self.field(name).is_none()) {
            self.problem(names[0], "missing");
        }
        self.optional_size(names).unwrap_or(1)
    }

    fn optional_size(&mut self, names: &[&'static str]) -> Option<u64> {
        let (name, value) = self.pick(names)?;
        let size = value.as_u64().filter(|n| (1..MAX_SIZE).contains(n));
        match size {
            Some(size) => return Some(size),
            None if value.is_array() => self.problem(name, "one size per layer is not supported"),
            None => self.problem(name, format!("expected a whole number from 1 to 2^31 - 1, found {value}")),
        }
        None
    }

    /// A count: like a size, but absent, null and 0 mean none.
    fn count(&mut self, name: &'static str) -> Option<u64> {
        if self.field(name).and_then(Value::as_u64) == Some(0) { None } else { self.optional_size(&[name]) }
    }

    fn flag(&mut self, name: &'static str) -> Option<bool> {
        let value = self.field(name)?;
        if value.as_bool().is_none() {
            self.problem(name, format!("expected true or false, found {value}"));
        }
        value.as_bool()
    }

    fn float(&mut self, names: &[&'static str]) -> Option<f64> {
        let (name, value) = self.pick(names)?;
        let float = number(value);
        if float.is_none() {
            self.problem(name, format!("expected a number, found {value}"));
        }
        float
    }

    /// A finite number above 0.
    fn positive(&mut self, names: &[&'static str]) -> Option<f64> {
        let float = self.float(names)?;
        if !(float.is_finite() && float > 0.0) {
            self.problem(names[0], format!("expected a number above 0, found {float}"));
        }
        Some(float)
    }

    /// A token id, or a list of them.
    fn tokens(&mut self, name: &'static str) -> Vec<u64> {
        let ids = match self.field(name) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list.iter().map(Value::as_u64).collect(),
            Some(one) => one.as_u64().map(|id| vec![id]),
        };
        if ids.is_none() {
            self.problem(name, "expected token ids");
        }
        ids.unwrap_or_default()
    }

    /// The first of the names in `architectures`, which must be `expected`; where there are none it is inferred.
    fn architecture(&mut self, expected: &str) -> String {
        let first = |value: &Value| value.as_array()?.first()?.as_str().map(str::to_owned);
        match self.field("architectures") {
            None => return self.inferred("architectures", expected.to_owned()),
            Some(value) if first(value).as_deref() == Some(expected) => {}
            Some(value) => self.problem("architectures", format!("expected `{expected}`, found {value}")),
        }
        expected.to_owned()
    }

    fn dtype(&mut self) -> Option<Dtype> {
        let (name, value) = self.pick(&["torch_dtype", "dtype"])?;
        let text = value.as_str().unwrap_or_default();
        let dtype = Dtype::from_torch_name(text.strip_prefix("torch.").unwrap_or(text));
        if dtype.is_none() {
            self.problem(name, format!("expected a dtype such as \"bfloat16\", found {value}"));
        }
        dtype
    }

    /// Fields that change tensors or the function in ways that no reference was compared with: flags and names of functions
    /// with the only value that is known, and fields that must not be there, with the reason.
    fn refuse(&mut self, flags: &[(&'static str, bool)], functions: &[(&str, &str)], absent: &[(&str, &str)]) {
        for &(name, supported) in flags {
            if self.flag(name).is_some_and(|found| found != supported) {
                self.problem(name, format!("expected {supported}, found {}: not supported", !supported));
            }
        }
        for &(name, supported) in functions {
            if let Some(found) = self.field(name).filter(|v| v.as_str() != Some(supported)) {
                self.problem(name, format!("expected \"{supported}\", found {found}: not supported"));
            }
        }
        for &(name, what) in absent {
            if self.field(name).is_some() {
                self.problem(name, what);
            }
        }
    }

    /// Notes every field that is not `known`.
    fn note_unknown(&mut self, known: &[&str]) {
        let unknown: Vec<_> = self.object.keys().filter(|key| !known.contains(&key.as_str())).cloned().collect();
        for name in unknown {
            self.notes.push(format!("`{}{name}` is not known and not taken into account", self.path));
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
