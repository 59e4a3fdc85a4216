//! Multi-token prediction: the layers that guess the token after the next one, and greedy decoding that verifies guesses.
//!
//! Position `t` joins the trunk's final-normed state `h_t` with the embedding of token `t + 1` and predicts token `t + 2`
//! (`core/transformer/multi_token_prediction.py` of Megatron-LM; transformers drops these layers). Guesses beyond the
//! first feed the block's own normed output back.

use crate::backend::Backend;
use crate::cache::{LayerState, Sequence};
use crate::error::{Error, Result};
use crate::layers::{Layer, Norm, Span};
use crate::model::{Model, Positions, Run};
use crate::weights::{block_layers, not_stored};
use std::sync::Arc;

/// The prediction layers of a model, in memory.
pub struct Mtp<B: Backend> {
    model: Arc<Model<B>>,
    blocks: Vec<Block<B>>,
    depth: usize,
}

struct Block<B: Backend> {
    enorm: Norm<B>,
    hnorm: Norm<B>,
    eh_proj: B::Matrix,
    layers: Vec<Layer<B>>,
    final_norm: Norm<B>,
}

/// What the prediction layers remember of a sequence, block by block.
pub struct MtpState<B: Backend> {
    blocks: Vec<Sequence<B>>,
}

impl<B: Backend + 'static> Mtp<B> {
    /// Loads the prediction layers. Errors: the model has none.
    pub fn load(model: &Arc<Model<B>>) -> Result<Self> {
        let config = model.config();
        let Some(mtp) = &config.mtp else { return Err(Error::NoMtp) };
        let missing = not_stored(&mtp.layers);
        if !missing.is_empty() {
            return Err(Error::NotStored { path: model.source().catalog.folder.clone(), fields: missing });
        }
        let loader = model.loader();
        let mut blocks = Vec::new();
        for b in 0..mtp.blocks() {
            let name = |rest: &str| format!("mtp.layers.{b}.{rest}");
            let layers = block_layers(mtp, b).map(|(prefix, spec)| loader.layer(&prefix, &spec));
            blocks.push(Block {
                enorm: loader.norm(&name("enorm"))?,
                hnorm: loader.norm(&name("hnorm"))?,
                eh_proj: loader.matrix(&name("eh_proj.weight"))?,
                layers: layers.collect::<Result<_>>()?,
                final_norm: loader.norm(&name("final_layernorm"))?,
            });
        }
        Ok(Self { model: Arc::clone(model), blocks, depth: mtp.depth as usize })
    }

    /// Tokens that it guesses at a time.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Nothing read yet.
    pub fn new_state(&self) -> MtpState<B> {
        MtpState { blocks: self.blocks.iter().map(|_| Sequence::new()).collect() }
    }

    /// Reads rows of final-normed trunk states (or of the depth before) and the tokens that follow each; gives the normed
    /// states whose logits predict the tokens after those.
    pub fn step(&self, state: &mut MtpState<B>, depth: usize, h: &B::Buffer, next: &[u32]) -> Result<B::Buffer> {
        let at = depth.min(self.blocks.len() - 1);
        let (block, sequence) = (&self.blocks[at], &mut state.blocks[at]);
        let (model, backend, rows, width) = (&self.model, self.model.backend(), next.len(), self.model.hidden());
        let options = model.mamba_options();
        let embedded = backend.upload(width, &model.embed(next)?);
        let (mut e, mut g) = (backend.buffer(rows, width), backend.buffer(rows, width));
        backend.rms_norm(&embedded, &block.enorm, &mut e);
        backend.rms_norm(h, &block.hnorm, &mut g);
        let mut v = backend.buffer(rows, width);
        backend.linear(&backend.concatenate(&e, &g), &block.eh_proj, &mut v);
        for (i, layer) in block.layers.iter().enumerate() {
            if sequence.layers.len() == i {
                sequence.layers.push(layer.new_state(backend));
            }
            let span = Span { rows: 0..rows, state: &mut sequence.layers[i], prefill: false, keep_trail: false };
            layer.forward(backend, options, &mut v, (rows, width), &mut [span], &mut ())?;
        }
        sequence.tokens += rows;
        let mut normed = backend.buffer(rows, width);
        backend.rms_norm(&v, &block.final_norm, &mut normed);
        Ok(normed)
    }

    /// Logits of rows that [`Mtp::step`] gave, `[rows, vocab]`.
    pub fn logits(&self, normed: &B::Buffer, rows: usize) -> Result<Vec<f32>> {
        Ok(self.model.logits(&self.model.head()?, normed, rows))
    }

    /// The most likely tokens after `last`, [`Mtp::depth`] of them: the first from row `row` of what the last step gave.
    /// The state is as before.
    fn guess(
        &self,
        state: &mut MtpState<B>,
        normed: &B::Buffer,
        row: usize,
        best: &dyn Fn(&[f32]) -> u32,
    ) -> Result<Vec<u32>> {
        let backend = self.model.backend();
        let marks: Vec<Mark<B>> = state.blocks.iter().map(Mark::of).collect();
        let mut h = backend.upload(self.model.hidden(), &backend.download(normed, row..row + 1));
        let mut guesses = vec![best(&self.logits(&h, 1)?)];
        while guesses.len() < self.depth {
            h = self.step(state, guesses.len(), &h, &guesses[guesses.len() - 1..])?;
            guesses.push(best(&self.logits(&h, 1)?));
        }
        for (sequence, mark) in state.blocks.iter_mut().zip(marks) {
            mark.restore(backend, sequence);
        }
        Ok(guesses)
    }
}

/// A sequence as it was.
struct Mark<B: Backend> {
    tokens: usize,
    mamba: Vec<Option<B::MambaState>>,
}

impl<B: Backend> Mark<B> {
    fn of(sequence: &Sequence<B>) -> Self {
        let state = |layer: &LayerState<B>| match layer {
            LayerState::Mamba { state, .. } => Some(state.clone()),
            _ => None,
        };
        Self { tokens: sequence.tokens, mamba: sequence.layers.iter().map(state).collect() }
    }

    fn restore(self, backend: &B, sequence: &mut Sequence<B>) {
        sequence.tokens = self.tokens;
        sequence.layers.truncate(self.mamba.len());
        for (layer, saved) in sequence.layers.iter_mut().zip(self.mamba) {
            match (layer, saved) {
                (LayerState::Mamba { state, .. }, Some(saved)) => *state = saved,
                (LayerState::Kv(kv), _) => backend.truncate_kv(kv, self.tokens),
                _ => {}
            }
        }
    }
}

/// A sequence that is decoded with guesses.
pub struct Speculation<'a, B: Backend> {
    mtp: &'a Mtp<B>,
    state: MtpState<B>,
    guesses: Vec<u32>,
    /// Guesses made, and how many were right.
    pub guessed: u64,
    /// How many of them were right.
    pub right: u64,
}

impl<'a, B: Backend + 'static> Speculation<'a, B> {
    /// Before the first token.
    pub fn new(mtp: &'a Mtp<B>) -> Self {
        Self { mtp, state: mtp.new_state(), guesses: Vec::new(), guessed: 0, right: 0 }
    }

    /// Takes note of rows of the trunk and the tokens that follow them.
    pub fn read(&mut self, normed: &B::Buffer, next: &[u32], best: &dyn Fn(&[f32]) -> u32) -> Result<()> {
        let out = self.mtp.step(&mut self.state, 0, normed, next)?;
        self.guesses = self.mtp.guess(&mut self.state, &out, next.len() - 1, best)?;
        Ok(())
    }

    /// Takes note of rows of a prompt whose end is yet to come: nothing is guessed.
    pub fn read_prompt(&mut self, normed: &B::Buffer, next: &[u32]) -> Result<()> {
        self.mtp.step(&mut self.state, 0, normed, next).map(|_| ())
    }

    /// One step after `last`, a token that the trunk has not read: the tokens that follow with their logits, one more
    /// than guesses were right. They are those of plain greedy decoding.
    pub fn advance(
        &mut self,
        sequence: &mut Sequence<B>,
        last: u32,
        best: &dyn Fn(&[f32]) -> u32,
    ) -> Result<Vec<(u32, Vec<f32>)>> {
        let model = Arc::clone(&self.mtp.model);
        let mut ids = vec![last];
        ids.extend(&self.guesses);
        let run = Run { sequence, ids: &ids, prefill: false, keep_trail: true };
        let out = model.step(&mut [run], Positions::All)?;
        let mut tokens = Vec::new();
        for (row, logits) in out.logits.chunks_exact(model.vocab()).enumerate() {
            let token = best(logits);
            tokens.push((token, logits.to_vec()));
            if self.guesses.get(row) != Some(&token) {
                break;
            }
        }
        self.guessed += self.guesses.len() as u64;
        self.right += tokens.len() as u64 - 1;
        model.rewind(sequence, ids.len(), tokens.len());
        let backend = model.backend();
        let kept = backend.upload(model.hidden(), &backend.download(&out.normed, 0..tokens.len()));
        let next: Vec<u32> = tokens.iter().map(|t| t.0).collect();
        self.read(&kept, &next, best)?;
        Ok(tokens)
    }
}
