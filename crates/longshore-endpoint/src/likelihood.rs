//! The likelihood of a prompt's own tokens, from a server that echoes them.

use crate::letters::{is_log_prob, shown};
use serde::Deserialize;
use std::ops::Range;

#[derive(Deserialize)]
struct Body {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    logprobs: Option<LogProbs>,
}

#[derive(Deserialize)]
struct LogProbs {
    token_logprobs: Option<Vec<Option<f64>>>,
}

/// Reads the answer to an echoed prompt of so many tokens, to which so many new ones may have been added, and gives the negative
/// log-likelihoods of the tokens that are scored, in nats. The first token of a prompt has none.
pub fn read(body: &[u8], tokens: usize, new_tokens: usize, scored: &Range<usize>) -> Result<Vec<f64>, String> {
    let body: Body = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let choice = body.choices.into_iter().next().ok_or("no choice")?;
    let found = choice.logprobs.and_then(|log_probs| log_probs.token_logprobs).unwrap_or_default();
    if found.len() < tokens {
        return Err(format!(
            "the server does not echo prompts with their log-probabilities: {} for {tokens} tokens",
            found.len()
        ));
    }
    // A new token that ends the text may be left out.
    if found.len() > tokens + new_tokens {
        return Err(format!("{} log-probabilities for {tokens} tokens: the server read another prompt", found.len()));
    }
    let nll = |at: usize| {
        let x = found.get(at).copied().flatten().filter(|&x| at > 0 && is_log_prob(x));
        // Not `-0`, which JSON keeps.
        x.map(|x| 0.0 - x)
            .ok_or_else(|| format!("the log-probability of token {at} is {}", shown(found.get(at).copied().flatten())))
    };
    scored.clone().map(nll).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nlls(found: &str, new_tokens: usize) -> Result<Vec<f64>, String> {
        let body =
            format!(r#"{{"choices": [{{"logprobs": {{"token_logprobs": {found}, "top_logprobs": [null, {{}}]}}}}]}}"#);
        read(body.as_bytes(), 3, new_tokens, &(1..3))
    }

    #[test]
    fn the_first_has_none_and_a_new_token_does_not_count() {
        assert_eq!(nlls("[null, -1.5, 0]", 0), Ok(vec![1.5, 0.0]));
        assert_eq!(nlls("[null, -1.5, -2, -3]", 1), Ok(vec![1.5, 2.0]));
        assert_eq!(nlls("[0.0, -1.5, -2]", 1), Ok(vec![1.5, 2.0]));
    }

    #[test]
    fn no_echo_other_tokens_and_numbers_that_are_none_are_said() {
        for (found, said) in [
            ("[-1]", "does not echo prompts with their log-probabilities: 1 for 3 tokens"),
            ("null", "does not echo"),
            ("[null, -1, -2, -3]", "4 log-probabilities for 3 tokens: the server read another prompt"),
            ("[null, null, -2]", "the log-probability of token 1 is null"),
            ("[null, -1, 2]", "the log-probability of token 2 is 2"),
            ("[null, -1, NaN]", "expected value"),
        ] {
            let error = nlls(found, 0).expect_err(found);
            assert!(error.contains(said), "{found}: {error}");
        }
        assert!(read(br#"{"choices": [{"logprobs": null}]}"#, 3, 0, &(1..3)).is_err());
    }
}
