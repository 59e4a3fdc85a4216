//! The next token: the most likely one, or one drawn at random from what the options leave.
//!
//! Source of rules and their order: transformers 5.23, `generation/logits_process.py` and `_get_logits_processor` of
//! `generation/utils.py`: repetition penalty, temperature, top-k, top-p, min-p. Random numbers are `ChaCha20`'s (RFC 8439), so
//! that a seed means the same numbers in every version; they are not PyTorch's.
//!
//! A logit that is NaN counts as negative infinity.

use crate::backend::cpu::sum_exp;
use std::cmp::Ordering;

/// How the next token is chosen. The default is the most likely one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Leaves the so many most likely tokens, and those as likely as the last of them; 0 leaves all.
    pub top_k: usize,
    /// Leaves the fewest most likely tokens whose probabilities sum to at least this; 1 leaves all.
    pub top_p: f32,
    /// Leaves the tokens whose probability is at least this share of the most likely one's; 0 leaves all.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens that occurred; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Chooses the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Options that are out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("; "))]
pub struct SampleError {
    /// What each wrong option was expected to be, and is.
    pub problems: Vec<String>,
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub id: u32,
    /// Its natural log probability by the logits as they came, before all options.
    pub logprob: f32,
}

/// Chooses tokens; holds the state of the random numbers.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha,
}

impl Sampler {
    /// A sampler, or all that is wrong with the options.
    pub fn new(sampling: Sampling) -> Result<Self, SampleError> {
        let Sampling { temperature, top_p, min_p, repetition_penalty, .. } = sampling;
        let mut problems = Vec::new();
        let mut expect = |holds: bool, name: &str, range: &str, found: f32| {
            if !holds {
                problems.push(format!("{name}: expected {range}, found {found}"));
            }
        };
        expect(temperature >= 0.0 && temperature.is_finite(), "temperature", "0 or more", temperature);
        expect((0.0..=1.0).contains(&top_p), "top-p", "0 to 1", top_p);
        expect((0.0..=1.0).contains(&min_p), "min-p", "0 to 1", min_p);
        let penalty_holds = repetition_penalty > 0.0 && repetition_penalty.is_finite();
        expect(penalty_holds, "repetition penalty", "more than 0", repetition_penalty);
        if !problems.is_empty() {
            return Err(SampleError { problems });
        }
        Ok(Self { sampling, random: ChaCha::new(sampling.seed) })
    }

    /// The next token. `logits` is `[vocabulary]`, without padding rows; `history` is prompt and generated tokens.
    /// Without any finite logit this is the first token.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Sampled {
        let mut scores = logits.to_vec();
        penalize(&mut scores, history, self.sampling.repetition_penalty);
        let id = if self.sampling.temperature == 0.0 { argmax(&scores) } else { self.draw(scores) };
        Sampled { id, logprob: logprob(logits, id) }
    }

    fn draw(&mut self, mut scores: Vec<f32>) -> u32 {
        // Drawn whatever the logits are, so that token i always uses the i-th number.
        let random = self.random.next_unit();
        let best = argmax(&scores);
        if scores.get(best as usize).is_none_or(|score| !score.is_finite()) {
            return best;
        }
        if self.sampling.temperature != 1.0 {
            for score in &mut scores {
                *score /= self.sampling.temperature;
            }
        }
        let kept = kept(&scores, &self.sampling);
        let weights = weights(&kept);
        let wanted = random * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        for (&(id, _), weight) in kept.iter().zip(&weights) {
            sum += weight;
            if sum > wanted {
                return id;
            }
        }
        best
    }
}

/// The repetition penalty, once for each token that occurred.
fn penalize(scores: &mut [f32], history: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut ids = history.to_vec();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

/// The tokens that top-k, top-p and min-p leave, with their scores, by ascending id.
fn kept(scores: &[f32], sampling: &Sampling) -> Vec<(u32, f32)> {
    let mut kept: Vec<(u32, f32)> =
        (0..).zip(scores.iter().copied()).filter(|(_, score)| *score > f32::NEG_INFINITY).collect();
    if sampling.top_k > 0 && sampling.top_k < kept.len() {
        let mut order: Vec<f32> = kept.iter().map(|&(_, score)| score).collect();
        let (_, &mut least, _) = order.select_nth_unstable_by(sampling.top_k - 1, |a, b| b.total_cmp(a));
        kept.retain(|&(_, score)| score >= least);
    }
    if sampling.top_p < 1.0 {
        keep_top_p(&mut kept, sampling.top_p);
    }
    if sampling.min_p > 0.0 {
        let most = kept.iter().map(|&(_, score)| score).fold(f32::NEG_INFINITY, f32::max);
        kept.retain(|&(_, score)| f64::from(score - most).exp() >= f64::from(sampling.min_p));
    }
    kept
}

/// Removes the least likely tokens while their probabilities sum to at most 1 - `top_p`, but the most likely one. Of equal
/// ones the lower id goes first, as in transformers, whose sort is stable.
fn keep_top_p(kept: &mut Vec<(u32, f32)>, top_p: f32) {
    // `total_cmp` would part the two zeros.
    kept.sort_by(|a, b| a.1.partial_cmp(&b.1).unwrap_or(Ordering::Equal));
    let weights = weights(kept);
    let limit = (1.0 - f64::from(top_p)) * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let removed = weights.iter().take_while(|&weight| {
        sum += weight;
        sum <= limit
    });
    let removed = removed.count().min(kept.len().saturating_sub(1));
    kept.drain(..removed);
    kept.sort_unstable_by_key(|&(id, _)| id);
}

/// Probabilities up to a common factor: the most likely one's is 1.
fn weights(kept: &[(u32, f32)]) -> Vec<f64> {
    let most = kept.iter().map(|&(_, score)| score).fold(f32::NEG_INFINITY, f32::max);
    kept.iter().map(|&(_, score)| (f64::from(score) - f64::from(most)).exp()).collect()
}

/// NaN below all numbers.
fn order(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

/// The id of the greatest logit, the lowest of equal ones; 0 where there is none.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate().skip(1) {
        if order(logit, logits[best]).is_gt() {
            best = id;
        }
    }
    best as u32
}

/// The logarithm of the sum of all exponentials: what a logit's log probability is less than the logit.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !most.is_finite() {
        return f64::from(most);
    }
    f64::from(most) + sum_exp(logits, most).ln()
}

/// `infinite` is the number of logits that are positive infinity: they share all probability.
fn log_probability(logit: f32, log_sum: f64, infinite: usize) -> f32 {
    if logit.is_nan() || logit == f32::NEG_INFINITY {
        return f32::NEG_INFINITY;
    }
    if infinite > 0 {
        return if logit == f32::INFINITY { -(infinite as f64).ln() as f32 } else { f32::NEG_INFINITY };
    }
    (f64::from(logit) - log_sum) as f32
}

fn count_infinite(logits: &[f32]) -> usize {
    logits.iter().filter(|&&logit| logit == f32::INFINITY).count()
}

/// The natural log probability of a token by the softmax of all logits. Negative infinity for an id
/// without a logit.
pub fn logprob(logits: &[f32], id: u32) -> f32 {
    match logits.get(id as usize) {
        Some(&logit) => log_probability(logit, log_sum_exp(logits), count_infinite(logits)),
        None => f32::NEG_INFINITY,
    }
}

/// Id and natural log probability of the `n` most likely tokens, the most likely first, equal ones by ascending id.
pub fn top_logprobs(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    if n == 0 {
        return Vec::new();
    }
    let before = |a: &u32, b: &u32| order(logits[*b as usize], logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..).take(logits.len()).collect();
    if n < ids.len() {
        ids.select_nth_unstable_by(n - 1, before);
    }
    ids.truncate(n);
    ids.sort_unstable_by(before);
    let (log_sum, infinite) = (log_sum_exp(logits), count_infinite(logits));
    ids.into_iter().map(|id| (id, log_probability(logits[id as usize], log_sum, infinite))).collect()
}

/// The random numbers of RFC 8439's block function. The key is the seed (little-endian) and zeros, the nonce is zero.
#[derive(Debug)]
struct ChaCha {
    /// Constants, key, block counter and nonce.
    state: [u32; 16],
    block: [u32; 16],
    used: usize,
}

impl ChaCha {
    fn new(seed: u64) -> Self {
        let mut state = [0; 16];
        // "expand 32-byte k"
        state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
        state[4] = seed as u32;
        state[5] = (seed >> 32) as u32;
        Self { state, block: [0; 16], used: 16 }
    }

    fn next_word(&mut self) -> u32 {
        if self.used == self.block.len() {
            self.block = block(&self.state);
            // The counter may grow into the nonce, which is not used.
            let (low, carry) = self.state[12].overflowing_add(1);
            self.state[12] = low;
            self.state[13] = self.state[13].wrapping_add(u32::from(carry));
            self.used = 0;
        }
        let word = self.block[self.used];
        self.used += 1;
        word
    }

    /// A multiple of 2^-53 in [0, 1).
    fn next_unit(&mut self) -> f64 {
        let (low, high) = (u64::from(self.next_word()), u64::from(self.next_word()));
        ((high << 32 | low) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// 20 rounds on columns and diagonals in turn (RFC 8439, section 2.3).
fn block(input: &[u32; 16]) -> [u32; 16] {
    let mut words = *input;
    for _ in 0..10 {
        for i in 0..4 {
            quarter_round(&mut words, [i, i + 4, i + 8, i + 12]);
        }
        for i in 0..4 {
            quarter_round(&mut words, [i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12]);
        }
    }
    std::array::from_fn(|i| words[i].wrapping_add(input[i]))
}

fn quarter_round(words: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    for (to, from, mixed, bits) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        words[to] = words[to].wrapping_add(words[from]);
        words[mixed] = (words[mixed] ^ words[to]).rotate_left(bits);
    }
}

#[cfg(test)]
mod tests;
