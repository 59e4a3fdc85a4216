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

/// What of a continuation is not in its context: the tokens that all four have first, and the one of each letter after them.
///
/// lm-evaluation-harness scores `encode(context + " A")` without `encode(context)`, summed where that is several tokens. Where
/// the four differ in their last token alone, the sums differ by that token's log-probability after the others, so these
/// belong to the prompt. Anything else could not be decided by one pass, and is refused.
pub fn continuations(context: &[u32], whole: [&[u32]; 4]) -> Result<(Vec<u32>, [u32; 4])> {
    let mut found: [&[u32]; 4] = [&[]; 4];
    for (i, tokens) in whole.into_iter().enumerate() {
        let other = || {
            Error::Invalid(format!(
                "the tokens of \"Answer: {letter}\" do not begin with those of \"Answer:\"; --style modelopt does not need that",
                letter = LETTERS[i]
            ))
        };
        found[i] = tokens.strip_prefix(context).ok_or_else(other)?;
    }
    let ids = letter_ids(found)?;
    let common = &found[0][..found[0].len() - 1];
    if let Some(i) = found.iter().position(|tokens| tokens[..tokens.len() - 1] != *common) {
        let (a, b) = (LETTERS[0], LETTERS[i]);
        return Err(Error::Invalid(format!(
            "\" {a}\" and \" {b}\" differ in more than their last token; --style modelopt compares the last ones"
        )));
    }
    Ok((common.to_vec(), ids))
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
