//! The letters among the most likely next tokens.
//!
//! The engine compares the last tokens of `" A"` to `" D"`. A server says tokens as text, and in one of two ways: with the blank
//! (`" A"`, also as vocabularies write it, `"ĠA"` or `"▁A"`), or, where the token has none or the server decodes it away, without.
//! Where any answer of a run has a letter with a blank, the bare letters are other tokens and do not count; else they do.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How vocabularies write a blank at a token's begin: as it is, byte-level, `SentencePiece`.
const BLANKS: [char; 3] = [' ', 'Ġ', '▁'];

/// Log-probabilities of the letters after one prompt, in nats. What is not among the tokens that the server named is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Letters {
    /// Of the tokens that begin with a blank.
    pub blank: [Option<f64>; 4],
    /// Of the letters alone.
    pub bare: [Option<f64>; 4],
}

/// Which tokens are the letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spelling {
    /// Those that begin with a blank.
    Blank,
    /// Those that are the letter alone.
    Bare,
}

impl Spelling {
    /// The spelling of a whole run.
    pub fn of<'a>(all: impl IntoIterator<Item = &'a Letters>) -> Self {
        if all.into_iter().any(|letters| letters.blank.iter().any(Option::is_some)) { Self::Blank } else { Self::Bare }
    }
}

impl Letters {
    /// The log-probabilities in one spelling.
    pub fn spelt(&self, spelling: Spelling) -> [Option<f64>; 4] {
        match spelling {
            Spelling::Blank => self.blank,
            Spelling::Bare => self.bare,
        }
    }

    /// Whether these can be log-probabilities.
    pub fn fit(&self) -> bool {
        self.blank.iter().chain(&self.bare).flatten().all(|&x| is_log_prob(x))
    }

    fn add(&mut self, token: &str, log_prob: Option<f64>, names: &[&str; 4]) -> Result<(), String> {
        let (name, place) = match token.strip_prefix(BLANKS) {
            Some(rest) => (rest, &mut self.blank),
            None => (token, &mut self.bare),
        };
        let Some(letter) = names.iter().position(|other| *other == name) else { return Ok(()) };
        let given = log_prob.filter(|&x| is_log_prob(x));
        let given = given.ok_or_else(|| format!("the log-probability of `{token}` is {}", shown(log_prob)))?;
        // Two spellings of the blank in one answer: the more likely token.
        place[letter] = Some(place[letter].map_or(given, |other| other.max(given)));
        Ok(())
    }
}

/// Finite, and not above 0 by more than rounding.
pub(crate) fn is_log_prob(x: f64) -> bool {
    x.is_finite() && x < 1e-2
}

/// A number that is none.
pub(crate) fn shown(x: Option<f64>) -> String {
    x.map_or_else(|| "null".to_owned(), |x| x.to_string())
}

#[derive(Deserialize)]
struct Body {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    logprobs: Option<LogProbs>,
}

/// As OpenAI's completions have it, `top_logprobs`, or as llama.cpp's server answers them, `content`.
#[derive(Deserialize)]
struct LogProbs {
    top_logprobs: Option<Vec<Option<ByToken>>>,
    content: Option<Vec<Position>>,
}

/// Log-probabilities by the tokens' text.
type ByToken = BTreeMap<String, Option<f64>>;

#[derive(Deserialize)]
struct Position {
    top_logprobs: Vec<Token>,
}

#[derive(Deserialize)]
struct Token {
    token: String,
    logprob: Option<f64>,
}

/// Reads the answer to a request for the next token; `names` are those of the letters.
pub fn read(body: &[u8], names: &[&str; 4]) -> Result<Letters, String> {
    let body: Body = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let choice = body.choices.into_iter().next().ok_or("no choice")?;
    let none = "no log-probabilities";
    let LogProbs { top_logprobs, content } = choice.logprobs.ok_or(none)?;
    let mut letters = Letters::default();
    if let Some(top) = top_logprobs.and_then(|all| all.into_iter().next().flatten()) {
        for (token, log_prob) in &top {
            letters.add(token, *log_prob, names)?;
        }
        return if top.is_empty() { Err(none.to_owned()) } else { Ok(letters) };
    }
    let first = content.and_then(|all| all.into_iter().next()).ok_or(none)?;
    for Token { token, logprob } in &first.top_logprobs {
        letters.add(token, *logprob, names)?;
    }
    if first.top_logprobs.is_empty() { Err(none.to_owned()) } else { Ok(letters) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["A", "B", "C", "D"];

    fn letters(top: &str) -> Result<Letters, String> {
        read(
            format!(r#"{{"choices": [{{"logprobs": {{"top_logprobs": [{top}], "tokens": [" A"]}}}}]}}"#).as_bytes(),
            &NAMES,
        )
    }

    #[test]
    fn letters_come_with_a_blank_or_alone_in_three_spellings() {
        let want = Letters { blank: [Some(-1.0), Some(-2.0), Some(-0.5), None], bare: [None, None, None, Some(-4.0)] };
        assert_eq!(
            letters(r#"{" A": -1, "ĠB": -2.0, "▁C": -3, " C": -0.5, "D": -4, " AB": -5, "": -6, "  A": -7}"#),
            Ok(want)
        );
        // One answer with a blank decides for all.
        let alone = Letters { bare: [Some(-0.1); 4], ..Letters::default() };
        assert_eq!(Spelling::of([&alone, &want, &alone]), Spelling::Blank);
        assert_eq!(alone.spelt(Spelling::Blank), [None; 4]);
        assert_eq!(Spelling::of([&alone]), Spelling::Bare);
        assert_eq!(alone.spelt(Spelling::Bare), [Some(-0.1); 4]);
    }

    #[test]
    fn llama_cpp_lists_tokens() {
        let body = r#"{"choices": [{"logprobs": {"content": [{"id": 1, "token": " B", "logprob": -0.2, "top_logprobs":
            [{"id": 1, "token": " B", "bytes": [32, 66], "logprob": -0.2}, {"id": 2, "token": " x", "logprob": null}]}]}}]}"#;
        let found = read(body.as_bytes(), &NAMES).expect("letters");
        assert_eq!(found.blank, [None, Some(-0.2), None, None]);
    }

    #[test]
    fn what_is_no_answer_or_no_number_is_said() {
        for (top, said) in [
            ("", "no log-probabilities"),
            ("null", "no log-probabilities"),
            ("{}", "no log-probabilities"),
            (r#"{" A": null}"#, "the log-probability of ` A` is null"),
            (r#"{" A": 0.5}"#, "is 0.5"),
            (r#"{" A": NaN}"#, "expected value"),
            (r#"{" A": 1e999}"#, "out of range"),
            (r#"{" A": "x"}"#, "invalid type"),
        ] {
            let error = letters(top).expect_err(top);
            assert!(error.contains(said), "{top}: {error}");
        }
        for body in ["", "[]", "{}", r#"{"choices": []}"#, r#"{"choices": [{"logprobs": null}]}"#, "\u{0}"] {
            assert!(read(body.as_bytes(), &NAMES).is_err(), "{body}");
        }
        // Neither where it is looked for nor where it is skipped does depth cost the stack.
        for place in [r#"{"choices": "#, r#"{"other": "#] {
            assert!(read([place, &"[".repeat(1 << 20)].concat().as_bytes(), &NAMES).is_err());
        }
    }
}
