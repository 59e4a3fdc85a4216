//! How surprised a model is by a text: which tokens of a stream are scored in which window, and what their sum means.

use crate::statistics::{Cluster, clustered_error, mean, total};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How a token stream is cut. Perplexities of different windowings are different numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Windowing {
    /// Windows of `length` tokens side by side; all but the first token of each are scored, the remainder of the stream is
    /// dropped. What the papers on quantization do (GPTQ's and AWQ's evaluation code: 2048).
    Whole {
        /// Tokens a window.
        length: usize,
    },
    /// A window of `length` begins every `stride` tokens, and scores the tokens that no window before it has; the last ends
    /// with the stream, which is scored whole but for its first token. With `stride == length`, but for the first of each
    /// window. As in transformers' documentation, "Perplexity of fixed-length models".
    Strided {
        /// Tokens a window.
        length: usize,
        /// Tokens from one window's begin to the next.
        stride: usize,
    },
    /// llama.cpp's `perplexity`: windows of `length` tokens side by side, the first token replaced by the begin-of-text
    /// token if the model has one; only the second half is scored, `length - length / 2 - 1` tokens. The remainder of the
    /// stream is dropped.
    LlamaCpp {
        /// Tokens a window; 512 is llama.cpp's default.
        length: usize,
    },
}

impl Default for Windowing {
    fn default() -> Self {
        Self::Whole { length: 2048 }
    }
}

/// A window over the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens that the model reads.
    pub tokens: Range<usize>,
    /// The tokens that are scored: token `t` by the logits of token `t - 1`, which is in the window.
    pub scored: Range<usize>,
    /// Whether the begin-of-text token, if the model has one, stands in for the first.
    pub begin_of_text: bool,
}

impl Windowing {
    /// The windows over a stream of `tokens`. No window, or one that scores nothing, is an error.
    pub fn windows(self, tokens: usize) -> Result<Vec<Window>> {
        let (Self::Whole { length } | Self::Strided { length, .. } | Self::LlamaCpp { length }) = self;
        let least = if matches!(self, Self::LlamaCpp { .. }) { 3 } else { 2 };
        if length < least {
            return Err(Error::Invalid(format!("a window of {length} tokens scores nothing; it takes {least}")));
        }
        let windows = match self {
            Self::Whole { .. } => side_by_side(tokens, length, 1, false),
            Self::LlamaCpp { .. } => side_by_side(tokens, length, length / 2 + 1, true),
            Self::Strided { stride, .. } if stride == 0 || stride > length => {
                return Err(Error::Invalid(format!("expected a stride of 1 to {length} tokens, found {stride}")));
            }
            Self::Strided { stride, .. } => strided(tokens, length, stride),
        };
        if windows.is_empty() {
            return Err(Error::Invalid(format!("a text of {tokens} tokens is too short for a window of {length}")));
        }
        Ok(windows)
    }
}

fn side_by_side(tokens: usize, length: usize, skip: usize, begin_of_text: bool) -> Vec<Window> {
    let window = |i| {
        let (begin, end) = (i * length, (i + 1) * length);
        Window { tokens: begin..end, scored: begin + skip..end, begin_of_text }
    };
    (0..tokens / length).map(window).collect()
}

fn strided(tokens: usize, length: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut begin, mut scored) = (0usize, 0);
    while scored < tokens {
        let end = tokens.min(begin.saturating_add(length));
        // The first of a window has nothing before it.
        let first = scored.max(begin + 1);
        if first < end {
            windows.push(Window { tokens: begin..end, scored: first..end, begin_of_text: false });
        }
        scored = end;
        begin += stride;
    }
    windows
}

/// Writes the natural logarithms of a row of logits' softmax, computed in f64. The row must be the real vocabulary's:
/// padding takes probability.
pub fn log_probs(logits: &[f32], out: &mut Vec<f64>) {
    let normalizer = log_sum_exp(logits);
    out.clear();
    out.extend(logits.iter().map(|&x| f64::from(x) - normalizer));
}

/// The negative log-likelihood of `target` in nats, computed in f64. A target outside the row is an error, NaN too.
pub fn nll(logits: &[f32], target: u32) -> Result<f64> {
    let logit = logits.get(target as usize).ok_or_else(|| outside(target, logits.len()))?;
    let nll = log_sum_exp(logits) - f64::from(*logit);
    if nll.is_nan() { Err(Error::NotANumber { what: "a log-likelihood".into() }) } else { Ok(nll) }
}

pub(crate) fn outside(target: u32, vocabulary: usize) -> Error {
    Error::Invalid(format!("token {target} is outside the vocabulary of {vocabulary}"))
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

/// The negative log-likelihoods of a text, window by window.
#[derive(Clone, Debug, Default)]
pub struct Perplexity {
    windows: Vec<Cluster>,
    // Welford's running mean and sum of squares: the plain sum of squares would cancel.
    count: f64,
    mean: f64,
    squares: f64,
}

/// What is kept of a window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowSum {
    /// The sum of its negative log-likelihoods, in nats.
    pub nll: f64,
    /// Tokens scored.
    pub tokens: usize,
}

/// What a text's likelihood comes to. Errors are one standard error, in the unit of what they belong to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Tokens scored.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
    /// Mean negative log-likelihood, nats a token.
    pub nll: f64,
    /// Its error, clustered by window: tokens of one window are not independent. `None` for one window.
    pub nll_error: Option<f64>,
    /// `exp(nll)`, a token.
    pub perplexity: f64,
    /// `perplexity * nll_error`, to first order.
    pub perplexity_error: Option<f64>,
    /// The error of the perplexity as if all tokens were independent: what llama.cpp prints.
    pub perplexity_error_by_token: Option<f64>,
    /// `exp(total / words)`, the total over the scored tokens in nats; words as lm-evaluation-harness counts them.
    pub word_perplexity: Option<f64>,
    /// `exp(total / bytes)`.
    pub byte_perplexity: Option<f64>,
    /// `total / (bytes * ln 2)`: comparable between tokenizers.
    pub bits_per_byte: Option<f64>,
    /// Its error, clustered by window; the bytes are taken as known.
    pub bits_per_byte_error: Option<f64>,
}

impl Perplexity {
    /// Adds a window's negative log-likelihoods, in nats. NaN is refused.
    pub fn add_window(&mut self, nlls: &[f64]) -> Result<()> {
        if nlls.iter().any(|x| x.is_nan()) {
            return Err(Error::NotANumber { what: format!("a log-likelihood of window {}", self.windows.len()) });
        }
        for &nll in nlls {
            self.count += 1.0;
            let off = nll - self.mean;
            self.mean += off / self.count;
            self.squares += off * (nll - self.mean);
        }
        if !nlls.is_empty() {
            self.windows.push(Cluster::of(nlls.iter().copied()));
        }
        Ok(())
    }

    /// The sums, window by window, without those that score nothing.
    pub fn windows(&self) -> Vec<WindowSum> {
        self.windows.iter().map(|window| WindowSum { nll: window.sum, tokens: window.count }).collect()
    }

    /// The figures, where `words` and `bytes` count the scored tokens' text. `None` without tokens.
    pub fn figures(&self, words: Option<u64>, bytes: Option<u64>) -> Option<Figures> {
        if self.windows.is_empty() {
            return None;
        }
        let nll = mean(&self.windows);
        let nll_error = clustered_error(&self.windows);
        let perplexity = nll.exp();
        let by_token = (self.count > 1.0).then(|| (self.squares / (self.count - 1.0) / self.count).sqrt());
        let per = |units: Option<u64>| units.filter(|&n| n > 0).map(|n| self.count / n as f64);
        let bits = |nll: f64, per_byte: f64| nll * per_byte / std::f64::consts::LN_2;
        Some(Figures {
            tokens: total(&self.windows).count,
            windows: self.windows.len(),
            nll,
            nll_error,
            perplexity,
            perplexity_error: nll_error.map(|e| perplexity * e),
            perplexity_error_by_token: by_token.map(|e| perplexity * e),
            word_perplexity: per(words).map(|per_word| (nll * per_word).exp()),
            byte_perplexity: per(bytes).map(|per_byte| (nll * per_byte).exp()),
            bits_per_byte: per(bytes).map(|per_byte| bits(nll, per_byte)),
            bits_per_byte_error: per(bytes).zip(nll_error).map(|(per_byte, e)| bits(e, per_byte)),
        })
    }
}
