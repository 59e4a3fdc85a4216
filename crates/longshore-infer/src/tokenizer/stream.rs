//! Text piece by piece while ids come in: what is certain at once, the rest when it is.
//!
//! The pieces together are the text of all ids. What a token adds may depend on others: a character's bytes may be spread
//! over tokens, and some tokenizers cut the blank before the first word. There are two ways:
//! - Where tokens stand for bytes (GPT-2's alphabet, most models), bytes are collected and whole characters passed on.
//! - Elsewhere the text of the last tokens is made with and without the new ones, and the difference is new. Nothing is
//!   passed on inside a run of `SentencePiece`'s byte tokens (`<0xE2>`), whose text depends on the whole run.

use super::{Tokenizer, TokenizerError};
use serde_json::Value;
use std::collections::HashMap;

/// How a tokenizer makes text of tokens.
#[derive(Debug)]
pub(super) enum Joining {
    /// Each character of a token stands for a byte.
    Bytes(HashMap<char, u8>),
    /// By a decoder that sees all tokens. `byte_tokens`: runs of tokens such as `<0xE2>` are characters.
    Other { byte_tokens: bool },
}

impl Joining {
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
        if decoder.get("type").and_then(Value::as_str) == Some("ByteLevel") {
            return Self::Bytes(byte_alphabet());
        }
        Self::Other { byte_tokens: decoder.to_string().contains("\"ByteFallback\"") }
    }
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes in order for U+0100 and on.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    let of_byte = |byte: u8| {
        let itself = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let code = if itself { u32::from(byte) } else { next };
        next += u32::from(!itself);
        (char::from_u32(code).unwrap_or_default(), byte)
    };
    (0..=u8::MAX).map(of_byte).collect()
}

/// The text of ids that come one at a time. Made by [`Tokenizer::stream`].
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// Bytes that do not make a character yet.
    bytes: Vec<u8>,
    /// The last ids: `anchors` ones whose text was passed on, then the others.
    window: Vec<u32>,
    anchors: usize,
}

/// Tokens whose text was passed on that are kept as neighbours of the next.
const ANCHORS: usize = 4;

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, bytes: Vec::new(), window: Vec::new(), anchors: 0 }
    }

    /// Takes the next id. Answers the text that became certain, if any: whole characters only.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        let Some(token) = self.tokenizer.known(id)? else { return Ok(None) };
        if self.skip_special_tokens && self.tokenizer.inner.get_added_vocabulary().is_special_token(&token) {
            return Ok(None);
        }
        match &self.tokenizer.joining {
            Joining::Bytes(alphabet) => {
                let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
                self.bytes.extend(bytes.unwrap_or_else(|| token.into_bytes()));
                Ok(self.whole_characters())
            }
            Joining::Other { byte_tokens } => {
                self.window.push(id);
                if *byte_tokens && is_byte_token(&token) {
                    return Ok(None);
                }
                self.difference()
            }
        }
    }

    /// The text that is left: what never became a character is U+FFFD, as in [`Tokenizer::decode`].
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        if self.window.len() == self.anchors {
            return Ok(String::from_utf8_lossy(&self.bytes).into_owned());
        }
        Ok(self.difference()?.unwrap_or_default())
    }

    /// All bytes but an unfinished character at the end.
    fn whole_characters(&mut self) -> Option<String> {
        let unfinished = match self.bytes.utf8_chunks().last() {
            // Wrong bytes are passed on at once; a chunk that the end cuts short may still become right.
            Some(chunk) if is_unfinished(chunk.invalid()) => chunk.invalid().len(),
            _ => 0,
        };
        let whole = self.bytes.len() - unfinished;
        let text = String::from_utf8_lossy(&self.bytes[..whole]).into_owned();
        self.bytes.drain(..whole);
        Some(text).filter(|text| !text.is_empty())
    }

    /// What the window's last tokens add to the text of its anchors; they then are anchors.
    fn difference(&mut self) -> Result<Option<String>, TokenizerError> {
        let before = self.tokenizer.decode(&self.window[..self.anchors], false)?;
        let after = self.tokenizer.decode(&self.window, false)?;
        // Not so where a token changes the text of those before it, which no known decoder does: wait for more.
        let Some(new) = after.strip_prefix(&before) else { return Ok(None) };
        self.window.drain(..self.window.len().saturating_sub(ANCHORS));
        self.anchors = self.window.len();
        Ok(Some(new.to_owned()).filter(|new| !new.is_empty()))
    }
}

/// Whether `bytes`, which are wrong so far, may begin a character: a first byte and fewer others than it asks for.
fn is_unfinished(bytes: &[u8]) -> bool {
    let asks_for = match bytes.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => return false,
    };
    bytes.len() < asks_for
}

/// `SentencePiece`'s `<0x0A>`.
fn is_byte_token(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>') && u8::from_str_radix(&token[3..5], 16).is_ok()
}
