//! Generation: prompts in, tokens out, by plain decoding or with verified guesses.

use crate::backend::Backend;
use crate::cache::Sequence;
use crate::error::Result;
use crate::model::{Model, Positions, Run, check_ids};
use crate::mtp::{Mtp, Speculation};
use crate::sample::{Sampler, argmax, logprob, top_logprobs};
use crate::sweep::{Sweep, SweepOptions};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// New tokens at most.
    pub max_new: usize,
    /// Tokens that end a text; the last token is then one of them. Empty: only `max_new` ends it.
    pub stop: Vec<u32>,
    /// Tokens of a prompt that are read at a time.
    pub chunk: usize,
    /// Likely alternatives to report for each new token.
    pub top_logprobs: usize,
    /// Where activations go that do not fit memory, for a model whose layers are streamed.
    pub scratch: PathBuf,
    /// Tokens that may be generated: those with ids below this. Rows of the vocabulary beyond the tokenizer's never win.
    pub candidates: usize,
}

/// A new token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of its probability, before temperature and filters.
    pub logprob: f32,
    /// The likeliest tokens and their natural log probabilities.
    pub top: Vec<(u32, f32)>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// With a stop token.
    Stop,
    /// At the largest length.
    Length,
}

/// What was generated, and how fast.
#[derive(Clone, Debug, Default)]
pub struct Generated {
    /// The new tokens of each prompt, and why they end.
    pub texts: Vec<(Vec<Token>, Option<Finish>)>,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Time until all prompts were read.
    pub prefill: Duration,
    /// Time until the first token was known.
    pub first_token: Duration,
    /// Tokens after the first of each prompt.
    pub decoded: usize,
    /// Time that they took.
    pub decode: Duration,
    /// Guesses made and right, with multi-token prediction.
    pub guesses: Option<(u64, u64)>,
}

/// A prompt under way.
struct Text {
    ids: Vec<u32>,
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

impl Text {
    fn push(&mut self, id: u32, logprob: f32, logits: &[f32], options: &GenerateOptions) {
        self.ids.push(id);
        self.tokens.push(Token { id, logprob, top: top_logprobs(logits, options.top_logprobs) });
        if options.stop.contains(&id) {
            self.finish = Some(Finish::Stop);
        } else if self.tokens.len() == options.max_new {
            self.finish = Some(Finish::Length);
        }
    }
}

/// Generates from all `prompts` at once, each with its own sampler, so that its tokens do not depend on the others.
/// `on_token(prompt, token)` sees every token when it is known; it answers whether
/// to go on.
pub fn generate<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    samplers: &mut [Sampler],
    on_token: &mut dyn FnMut(usize, &Token) -> bool,
) -> Result<Generated> {
    let began = Instant::now();
    let mut texts: Vec<Text> =
        prompts.iter().map(|ids| Text { ids: ids.clone(), tokens: Vec::new(), finish: None }).collect();
    let mut out = Generated { prompt_tokens: prompts.iter().map(Vec::len).sum(), ..Generated::default() };
    let (mut sequences, logits) = prefill(model, prompts, options)?;
    out.prefill = began.elapsed();
    let vocab = model.vocab();
    let candidates = options.candidates.min(vocab);
    if options.max_new > 0 {
        for (p, text) in texts.iter_mut().enumerate() {
            let logits = &logits[p * vocab..][..candidates];
            let sampled = samplers[p].sample(logits, &text.ids);
            text.push(sampled.id, sampled.logprob, logits, options);
            out.first_token = if p == 0 { began.elapsed() } else { out.first_token };
            if !on_token(p, &text.tokens[text.tokens.len() - 1]) {
                return Ok(finished(texts, out));
            }
        }
    }
    let decode = Instant::now();
    loop {
        let mut runs = Vec::new();
        let mut running = Vec::new();
        for (p, (text, sequence)) in texts.iter().zip(&mut sequences).enumerate() {
            if text.finish.is_none() && options.max_new > 0 {
                runs.push(Run { sequence, ids: &text.ids[text.ids.len() - 1..], prefill: false, keep_trail: false });
                running.push(p);
            }
        }
        if runs.is_empty() {
            break;
        }
        let step = model.step(&mut runs, Positions::Last)?;
        for (p, logits) in running.into_iter().zip(step.logits.chunks_exact(vocab)) {
            let (text, logits) = (&mut texts[p], &logits[..candidates]);
            let sampled = samplers[p].sample(logits, &text.ids);
            text.push(sampled.id, sampled.logprob, logits, options);
            out.decoded += 1;
            out.decode = decode.elapsed();
            if !on_token(p, &text.tokens[text.tokens.len() - 1]) {
                return Ok(finished(texts, out));
            }
        }
    }
    Ok(finished(texts, out))
}

fn finished(texts: Vec<Text>, mut out: Generated) -> Generated {
    out.texts = texts.into_iter().map(|text| (text.tokens, text.finish)).collect();
    out
}

/// Reads the prompts: their sequences and the logits after each of them. Layer by layer where layers are streamed, so
/// that each is read once.
fn prefill<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
) -> Result<(Vec<Sequence<B>>, Vec<f32>)> {
    let mut logits = Vec::new();
    if !model.is_resident() {
        let sweep = SweepOptions { batch_tokens: options.chunk, scratch: options.scratch.clone() };
        let mut sweep = Sweep::new(model, prompts, &sweep, true)?;
        sweep.run(&mut ())?;
        let last = |prompt: usize, position: usize| position + 1 == prompts[prompt].len();
        sweep.each_logits(prompts.len(), last, |_, _, row| logits.extend_from_slice(row))?;
        return Ok((sweep.into_sequences(), logits));
    }
    let mut sequences = Vec::with_capacity(prompts.len());
    for (p, prompt) in prompts.iter().enumerate() {
        check_ids(model.config().vocab_size, p, prompt)?;
        let mut sequence = Sequence::new();
        let chunks = prompt.chunks(options.chunk.max(1));
        let last = chunks.len() - 1;
        for (i, ids) in chunks.enumerate() {
            let positions = if i == last { Positions::Last } else { Positions::None };
            let run = Run { sequence: &mut sequence, ids, prefill: true, keep_trail: false };
            logits.extend(model.step(&mut [run], positions)?.logits);
        }
        sequences.push(sequence);
    }
    Ok((sequences, logits))
}

/// Greedy generation from one prompt in which the model's own prediction layers guess ahead: the same tokens as
/// [`generate`] gives, in fewer steps.
pub fn generate_with_guesses<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    mtp: &Mtp<B>,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(usize, &Token) -> bool,
) -> Result<Generated> {
    let began = Instant::now();
    check_ids(model.config().vocab_size, 0, prompt)?;
    let mut out = Generated { prompt_tokens: prompt.len(), ..Generated::default() };
    let mut text = Text { ids: prompt.to_vec(), tokens: Vec::new(), finish: None };
    let mut sequence = Sequence::new();
    let mut speculation = Speculation::new(mtp);
    let candidates = options.candidates.min(model.vocab());
    let best: &dyn Fn(&[f32]) -> u32 = &|logits| argmax(&logits[..candidates]);
    let mut read = 0;
    for ids in prompt.chunks(options.chunk.max(1)) {
        read += ids.len();
        let run = Run { sequence: &mut sequence, ids, prefill: true, keep_trail: false };
        let step = model.step(&mut [run], Positions::Last)?;
        if read < prompt.len() {
            speculation.read_prompt(&step.normed, &prompt[read + 1 - ids.len()..=read])?;
            continue;
        }
        out.prefill = began.elapsed();
        if options.max_new == 0 {
            break;
        }
        let logits = &step.logits[..candidates];
        let id = argmax(logits);
        text.push(id, logprob(logits, id), logits, options);
        out.first_token = began.elapsed();
        if !on_token(0, &text.tokens[0]) {
            return Ok(finished(vec![text], out));
        }
        if text.finish.is_none() {
            speculation.read(&step.normed, &text.ids[read + 1 - ids.len()..], best)?;
        }
    }
    let decode = Instant::now();
    while text.finish.is_none() && options.max_new > 0 {
        for (id, logits) in speculation.advance(&mut sequence, text.ids[text.ids.len() - 1], best)? {
            let logits = &logits[..candidates];
            text.push(id, logprob(logits, id), logits, options);
            out.decoded += 1;
            out.decode = decode.elapsed();
            let go_on = on_token(0, &text.tokens[text.tokens.len() - 1]);
            if !go_on || text.finish.is_some() {
                out.guesses = Some((speculation.guessed, speculation.right));
                return Ok(finished(vec![text], out));
            }
        }
    }
    out.guesses = Some((speculation.guessed, speculation.right));
    Ok(finished(vec![text], out))
}
