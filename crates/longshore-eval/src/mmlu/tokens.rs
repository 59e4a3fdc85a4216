//! From token ids and logits to a letter.

use crate::{Error, Result};

/// The names of the choices.
pub const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// What four logits say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The largest one's number, 0 to 3; the first of several.
    pub choice: u8,
    /// Whether several were the largest. Logits of a 16-bit model do tie.
    pub tied: bool,
}

/// The tokens whose logits are compared: the last of each letter's, encoded as `" A"` without special tokens. ModelOpt's
/// rule: for byte-level vocabularies it is the only one, for `SentencePiece` it leaves out a lone blank. Letters that share
/// a token cannot be told apart, and are refused.
pub fn letter_ids(encoded: [&[u32]; 4]) -> Result<[u32; 4]> {
    let mut ids = [0; 4];
    for (i, tokens) in encoded.into_iter().enumerate() {
        let none = || Error::Invalid(format!("\" {}\" has no token", LETTERS[i]));
        ids[i] = *tokens.last().ok_or_else(none)?;
        if let Some(same) = ids[..i].iter().position(|&id| id == ids[i]) {
            let (a, b, id) = (LETTERS[same], LETTERS[i], ids[i]);
            return Err(Error::Invalid(format!(
                "\" {a}\" and \" {b}\" both end in token {id}: the score would mean nothing"
            )));
        }
    }
    Ok(ids)
}

/// The choice among the logits of A, B, C and D. What is not finite is refused: no model in order says so, and JSON has no
/// word for it.
pub fn choose(logits: [f32; 4]) -> Result<Choice> {
    if let Some((letter, x)) = LETTERS.iter().zip(logits).find(|(_, x)| !x.is_finite()) {
        return Err(Error::Invalid(format!("the logit of {letter} is {x}")));
    }
    let none = || Error::Invalid("there are no logits".into());
    largest(logits.map(|x| Some(f64::from(x)))).ok_or_else(none)
}

/// The choice among the log-probabilities of those letters that have one; none if no letter has. What is not finite is refused.
pub fn choose_present(log_probs: [Option<f64>; 4]) -> Result<Option<Choice>> {
    if let Some((letter, Some(x))) = LETTERS.iter().zip(log_probs).find(|(_, x)| x.is_some_and(|x| !x.is_finite())) {
        return Err(Error::Invalid(format!("the log-probability of {letter} is {x}")));
    }
    Ok(largest(log_probs))
}

fn largest(scores: [Option<f64>; 4]) -> Option<Choice> {
    let largest = scores.into_iter().flatten().reduce(f64::max)?;
    let mut best = (0..4u8).zip(scores).filter(|&(_, x)| x == Some(largest)).map(|(i, _)| i);
    Some(Choice { choice: best.next()?, tied: best.next().is_some() })
}
