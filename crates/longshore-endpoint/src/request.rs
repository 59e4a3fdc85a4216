//! What is asked. Source: OpenAI's API reference, "Create completion".

use serde::Serialize;

/// A prompt.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub enum Prompt<'a> {
    /// A text, which the server tokenizes by its own rules.
    Text(&'a str),
    /// Token ids, to which the server adds nothing.
    Ids(&'a [u32]),
}

/// A request for a completion, the most likely tokens first (temperature 0).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Request<'a> {
    /// The model, as the server names it.
    pub model: &'a str,
    /// The prompt.
    pub prompt: Prompt<'a>,
    /// New tokens at most.
    pub max_tokens: u32,
    /// Always 0.
    temperature: u32,
    /// The log-probabilities of how many tokens are asked for, at each position.
    pub logprobs: u32,
    /// Whether the prompt's tokens are part of the answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub echo: bool,
}

impl<'a> Request<'a> {
    /// The `top` most likely next tokens.
    pub fn next_token(model: &'a str, prompt: Prompt<'a>, top: u32) -> Self {
        Self { model, prompt, max_tokens: 1, temperature: 0, logprobs: top, echo: false }
    }

    /// The likelihood of the prompt itself; `new_tokens` are 0, or 1 for servers that refuse that.
    pub fn echo(model: &'a str, ids: &'a [u32], new_tokens: u32) -> Self {
        Self { model, prompt: Prompt::Ids(ids), max_tokens: new_tokens, temperature: 0, logprobs: 1, echo: true }
    }
}
