//! Prints each pickle named on standard input, one path a line, as one line of JSON: `interop/pickle_differential.py`
//! compares it with what `CPython` makes of the same file.
//!
//! A value is a list that begins with its kind. Lists, dicts and objects are numbered as they are met, so that a second
//! view of one is `["ref", NUMBER]`. Numbers are text, floats are their bits, sets are sorted.

use longshore_ckpt::torch_dist::pickle::{Pickle, View};
use serde_json::{Value, json};
use std::io::{Read, Write};

/// Deeper values are not compared.
const DEPTH: usize = 200;

fn main() -> std::io::Result<()> {
    let mut paths = String::new();
    std::io::stdin().read_to_string(&mut paths)?;
    let mut out = std::io::stdout().lock();
    for path in paths.lines() {
        let line = match Pickle::parse(&std::fs::read(path)?) {
            Ok(pickle) => Printer::default().value(pickle.root(), 0),
            Err(error) => json!(["error", error.to_string()]),
        };
        writeln!(out, "{line}")?;
    }
    Ok(())
}

#[derive(Default)]
struct Printer<'a> {
    met: Vec<View<'a>>,
}

impl<'a> Printer<'a> {
    fn value(&mut self, view: View<'a>, depth: usize) -> Value {
        if depth > DEPTH {
            return json!(["deep"]);
        }
        if let Some(text) = view.as_str() {
            return json!(["str", text]);
        }
        if let Some(bytes) = view.as_bytes() {
            return json!(["bytes", bytes.iter().fold(String::new(), |hex, b| hex + &format!("{b:02x}"))]);
        }
        match view.kind() {
            "None" => json!(["none"]),
            "a bool" => json!(["bool", view.as_bool()]),
            "an integer" => json!(["int", view.to_text()]),
            "a float" => json!(["float", float(view.as_f64().unwrap_or_default())]),
            "a global" => json!(["global", view.class()]),
            "a persistent id" => json!(["persistent", view.persistent().map(|id| self.value(id, depth + 1))]),
            "a tuple" => json!(["tuple", self.items(view, depth)]),
            "a set" => {
                let mut items = self.items(view, depth);
                items.sort_by_key(Value::to_string);
                items.dedup();
                json!(["set", items])
            }
            _ => self.numbered(view, depth),
        }
    }

    fn numbered(&mut self, view: View<'a>, depth: usize) -> Value {
        if let Some(number) = self.met.iter().position(|met| met.same(view)) {
            return json!(["ref", number]);
        }
        let number = self.met.len();
        self.met.push(view);
        match view.kind() {
            "a list" => json!(["list", number, self.items(view, depth)]),
            "a dict" => json!(["dict", number, self.entries(view, depth)]),
            _ => {
                let args = view.args().map(|args| self.value(args, depth + 1));
                let state = view.state().map(|state| self.value(state, depth + 1));
                let items = view.items().map(|_| self.items(view, depth));
                let entries = view.entries().map(|_| self.entries(view, depth));
                json!(["object", number, view.class(), args, state, items, entries])
            }
        }
    }

    fn items(&mut self, view: View<'a>, depth: usize) -> Vec<Value> {
        view.items().into_iter().flatten().map(|item| self.value(item, depth + 1)).collect()
    }

    fn entries(&mut self, view: View<'a>, depth: usize) -> Vec<(Value, Value)> {
        view.entries()
            .into_iter()
            .flatten()
            .map(|(key, value)| (self.value(key, depth + 1), self.value(value, depth + 1)))
            .collect()
    }
}

/// The bits of a number; all NaNs are one.
fn float(value: f64) -> String {
    if value.is_nan() { "nan".to_owned() } else { format!("{:016x}", value.to_bits()) }
}
