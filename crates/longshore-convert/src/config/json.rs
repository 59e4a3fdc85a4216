//! JSON as Hugging Face's files have it: what Python's `json` writes, which is more than JSON allows.
//!
//! `Infinity`, `-Infinity` and `NaN` outside strings become `{"__float__": "Infinity"}`, the form in which transformers 5
//! saves them and the only one that a [`Value`] can hold; [`number`] reads it back. Stricter than Python in one point: a key
//! that occurs twice is refused, because each program would believe another of the two.

use longshore_ckpt::error::ParseError;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Larger files are no config: 16 MiB.
pub const MAX_SIZE: usize = 16 << 20;

/// The three numbers that Python writes and JSON lacks.
const SPECIAL: [(&str, f64); 3] = [("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY), ("NaN", f64::NAN)];

/// Parses a whole file.
pub fn parse(bytes: &[u8]) -> Result<Value, ParseError> {
    if bytes.len() > MAX_SIZE {
        return Err(ParseError::new(0u64, format!("{} bytes, expected at most {MAX_SIZE}", bytes.len())));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(ParseError::new(0u64, "a UTF-8 byte order mark"));
    }
    let (text, replaced) = tag_special(bytes);
    let mut parser = serde_json::Deserializer::from_slice(&text);
    match Unique::deserialize(&mut parser).and_then(|value| parser.end().map(|()| value.0)) {
        Ok(value) => Ok(value),
        Err(error) => {
            let line_start = text
                .split_inclusive(|&b| b == b'\n')
                .take(error.line().saturating_sub(1))
                .map(<[u8]>::len)
                .sum::<usize>();
            let at = line_start + error.column().saturating_sub(1);
            let grown: usize = replaced.iter().take_while(|r| r.0 < at).map(|r| r.1).sum();
            let what = error.to_string();
            // The message ends with line and column of the replaced text; the offset says it better.
            let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what).to_owned();
            Err(ParseError::new(at.saturating_sub(grown), what))
        }
    }
}

/// A number in any of its forms: JSON's, or the tagged form of [`parse`].
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::Object(object) if object.len() == 1 => {
            let name = object.get("__float__")?.as_str()?;
            SPECIAL.iter().find(|s| s.0 == name).map(|s| s.1)
        }
        _ => None,
    }
}

/// Replaces the special numbers outside strings. Also where each replacement lies in the new text, and by how many bytes
/// it is longer than the original.
fn tag_special(bytes: &[u8]) -> (Vec<u8>, Vec<(usize, usize)>) {
    let (mut text, mut replaced) = (Vec::with_capacity(bytes.len()), Vec::new());
    let (mut i, mut in_string) = (0, false);
    while let Some(&byte) = bytes.get(i) {
        let special = SPECIAL.iter().find(|s| !in_string && is_word(bytes, i, s.0));
        if let Some((name, _)) = special {
            replaced.push((text.len(), TAG.len() - "{}".len()));
            text.extend_from_slice(TAG.replace("{}", name).as_bytes());
            i += name.len();
            continue;
        }
        if in_string && byte == b'\\' {
            text.push(byte);
            i += 1;
        } else if byte == b'"' {
            in_string = !in_string;
        }
        text.extend(bytes.get(i));
        i += 1;
    }
    (text, replaced)
}

const TAG: &str = "{\"__float__\":\"{}\"}";

/// Whether `word` stands at `at`, alone.
fn is_word(bytes: &[u8], at: usize, word: &str) -> bool {
    let part_of_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+' | b'.');
    bytes[at..].starts_with(word.as_bytes())
        && !bytes.get(at + word.len()).is_some_and(part_of_word)
        && !at.checked_sub(1).and_then(|before| bytes.get(before)).is_some_and(part_of_word)
}

/// A value in which no object has a key twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = seq.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(de::Error::custom(format!("the key `{key}` occurs twice")));
            }
            let Unique(value) = entries.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Vec<Option<f64>> {
        parse(text.as_bytes()).unwrap().as_array().unwrap().iter().map(number).collect()
    }

    #[test]
    fn all_forms_of_infinity_are_read() {
        let inf = Some(f64::INFINITY);
        assert_eq!(numbers("[0.0, Infinity]"), [Some(0.0), inf]);
        assert_eq!(
            numbers(r#"[-Infinity,1e+308,{"__float__": "Infinity"}]"#),
            [Some(f64::NEG_INFINITY), Some(1e308), inf]
        );
        assert!(numbers("[NaN]")[0].is_some_and(f64::is_nan));
    }

    #[test]
    fn strings_are_left_alone() {
        let text = r#"{"a": "Infinity", "b\"Infinity": "\\", "c": ["NaN , -Infinity"], "é": NaN}"#;
        let value = parse(text.as_bytes()).unwrap();
        assert_eq!(value["a"], "Infinity");
        assert_eq!(value["b\"Infinity"], "\\");
        assert_eq!(value["c"][0], "NaN , -Infinity");
        assert_eq!(number(&value["a"]), None);
    }

    #[test]
    fn what_python_refuses_is_refused_with_its_place() {
        let error = |text: &[u8]| parse(text).unwrap_err();
        for text in [
            "",
            "{",
            "[1,]",
            "{} x",
            "InfinityX",
            "[1Infinity]",
            "--Infinity",
            "inf",
            "'a'",
            "[\"\u{1}\"]",
            "Infinity NaN",
        ] {
            error(text.as_bytes());
        }
        assert_eq!(error(b"\xef\xbb\xbf{}").what, "a UTF-8 byte order mark");
        assert_eq!(error(b"\"\xff\"").what, "invalid unicode code point");
        assert!(error(&vec![b' '; MAX_SIZE + 1]).what.contains("at most"));
        assert!(error("[".repeat(200).as_bytes()).what.contains("recursion limit"));
        let text = "{\"a\": Infinity,\n \"b\": NaN, \"c\": x}";
        assert_eq!(error(text.as_bytes()).offset, text.find('x').unwrap() as u64);
    }

    #[test]
    fn a_key_that_occurs_twice_is_refused() {
        let error = parse(br#"{"a": 1, "b": {"c": 1, "c": 2}}"#).unwrap_err();
        assert_eq!(error.what, "the key `c` occurs twice");
        assert!((20..29).contains(&error.offset), "{error}");
    }
}
