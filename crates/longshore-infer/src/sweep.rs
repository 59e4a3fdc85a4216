//! The layer-major schedule: every layer is read once and works on all tokens of all prompts before the next one is read.
//!
//! Between layers the residual stream lies in [`Activations`], within a budget and on disk beyond it, so a model far
//! larger than memory runs over any number of prompts at the price of one pass over its weights. The bits are those of
//! [`Model::step`], since no row depends on the others it is computed with.

use crate::activations::{Activations, Storage};
use crate::backend::{Backend, Probe};
use crate::cache::{LayerState, Sequence};
use crate::error::Result;
use crate::layers::{Layer, Span};
use crate::model::{LayerStream, Model, Observer, check_ids};
use crate::resume::{Resumed, SavedPass, Saving};
use crate::schedule::Schedule;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to sweep.
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// Rows that a layer works on at a time.
    pub batch_tokens: usize,
    /// Where activations go that do not fit the model's budget.
    pub scratch: PathBuf,
}

/// A pass over a model.
pub struct Sweep<B: Backend> {
    model: Arc<Model<B>>,
    stream: LayerStream<B>,
    schedule: Schedule,
    activations: Activations,
    next: usize,
    /// The next layer, where it was visited and is not resident.
    read: Option<Layer<B>>,
    sequences: Option<Vec<Sequence<B>>>,
}

/// Prompt and position of rows.
pub type RowNames = Vec<(usize, usize)>;

impl<B: Backend + 'static> Sweep<B> {
    /// Begins a pass: embeds the prompts. With `keep`, every prompt's [`Sequence`] is kept for decoding.
    pub fn new(model: &Arc<Model<B>>, prompts: &[Vec<u32>], options: &SweepOptions, keep: bool) -> Result<Self> {
        let schedule = Schedule::whole(prompts, options.batch_tokens);
        let mut sweep = Self::over(model, prompts, schedule, &options.scratch)?;
        sweep.sequences = keep.then(|| prompts.iter().map(|_| Sequence::new()).collect());
        Ok(sweep)
    }

    /// Begins a pass over these rows of the prompts; activations that do not fit the model's budget go to `scratch`.
    pub fn over(model: &Arc<Model<B>>, prompts: &[Vec<u32>], schedule: Schedule, scratch: &Path) -> Result<Self> {
        for (i, ids) in prompts.iter().enumerate() {
            check_ids(model.config().vocab_size, i, ids)?;
        }
        let sizes: Vec<usize> = schedule.batches.iter().map(|batch| rows(batch) * model.hidden()).collect();
        let storage = Storage::of_size(model.backend().activation_size());
        let mut activations = Activations::new(storage, &sizes, model.activation_budget(), scratch)?;
        for at in 0..sizes.len() {
            let names = schedule.names(at);
            let ids: Vec<u32> = names.iter().flat_map(|(p, range)| &prompts[*p][range.clone()]).copied().collect();
            activations.put(at, &model.embed(&ids)?)?;
        }
        let (stream, model) = (model.stream(), Arc::clone(model));
        Ok(Self { stream, model, schedule, activations, next: 0, read: None, sequences: None })
    }

    /// Computes the next layer for all tokens. False if there was none.
    pub fn next_layer(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        self.next_layer_shown(observer, &mut ())
    }

    /// The same, showing what its linears read.
    pub fn next_layer_shown(&mut self, observer: &mut dyn Observer, probe: &mut dyn Probe<B>) -> Result<bool> {
        let is_layer = self.pass(observer, probe, true)?;
        self.next += usize::from(is_layer);
        Ok(is_layer)
    }

    /// Shows what the linears of the next layer read, for all tokens, and leaves everything as it was: a search may pass
    /// over a layer as often as it likes before it is computed. False if there is none.
    pub fn visit_layer(&mut self, probe: &mut dyn Probe<B>) -> Result<bool> {
        self.pass(&mut (), probe, false)
    }

    /// Goes on after the layers that an earlier process has saved, whose records it gives back; `check` refuses those that
    /// cannot be of their layer. A sweep that keeps sequences begins anew, since these are not saved.
    pub fn resume<T: DeserializeOwned>(
        &mut self,
        saved: &mut SavedPass,
        check: impl Fn(usize, &T) -> bool,
    ) -> Result<Resumed<T>> {
        if self.sequences.is_some() {
            return Ok(Resumed::Nothing);
        }
        let resumed = saved.load(self.model.n_layers(), &mut self.activations, check)?;
        if let Resumed::Layers(records) = &resumed {
            self.next = records.len();
        }
        Ok(resumed)
    }

    /// Takes the record of the layer that was just computed, and saves the pass if it is time.
    pub fn save<T: Serialize>(&self, saved: &mut SavedPass, record: &T) -> Saving {
        saved.add(record, &self.activations)
    }

    fn pass(&mut self, observer: &mut dyn Observer, probe: &mut dyn Probe<B>, keep: bool) -> Result<bool> {
        let model = Arc::clone(&self.model);
        if self.next == model.n_layers() {
            return Ok(false);
        }
        if let Some(layer) = model.resident(self.next) {
            self.layer(layer, observer, probe, keep)?;
        } else {
            let layer = self.read.take().map_or_else(|| self.stream.take(self.next), Ok)?;
            self.layer(&layer, observer, probe, keep)?;
            self.read = (!keep).then_some(layer);
        }
        Ok(true)
    }

    /// Computes all layers that are left.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<()> {
        while self.next_layer(observer)? {}
        Ok(())
    }

    /// Computes a layer; with `keep`, its results take the place of its inputs.
    fn layer(
        &mut self,
        layer: &Layer<B>,
        observer: &mut dyn Observer,
        probe: &mut dyn Probe<B>,
        keep: bool,
    ) -> Result<()> {
        let (model, backend) = (Arc::clone(&self.model), self.model.backend());
        let mut states = States { going_on: None, ends: BTreeMap::new() };
        for (at, batch) in self.schedule.batches.iter().enumerate() {
            let (names, count) = (self.schedule.names(at), rows(batch));
            let mut hidden = backend.upload(model.hidden(), &self.activations.get(at)?);
            let mut mine: Vec<LayerState<B>> = Vec::with_capacity(batch.len());
            for (index, range) in batch {
                let piece = &self.schedule.pieces[*index];
                mine.push(match piece.after {
                    _ if range.start > piece.rows.start => states.take(*index),
                    Some(before) => states.after(backend, before, piece.rows.len()),
                    None => layer.new_state(backend),
                });
            }
            let mut row = 0;
            let mut spans: Vec<Span<'_, B>> = Vec::with_capacity(batch.len());
            for (state, (_, range)) in mine.iter_mut().zip(batch) {
                spans.push(Span { rows: row..row + range.len(), state, prefill: true, keep_trail: false });
                row += range.len();
            }
            let shape = (count, model.hidden());
            probe.batch(&names);
            let routing = layer.forward(backend, model.mamba_options(), &mut hidden, shape, &mut spans, probe)?;
            if let Some(routing) = routing {
                observer.routing(self.next, &names, &routing);
            }
            if keep {
                self.activations.put(at, &backend.download(&hidden, 0..count))?;
            }
            for (state, (index, range)) in mine.into_iter().zip(batch) {
                let piece = &self.schedule.pieces[*index];
                if range.end < piece.rows.end {
                    states.going_on = Some((*index, state));
                } else if piece.continued > 0 {
                    states.ends.insert(*index, (state, piece.continued));
                } else if let (Some(sequences), true) = (&mut self.sequences, keep) {
                    sequences[piece.prompt].tokens = range.end;
                    sequences[piece.prompt].layers.push(state);
                }
            }
        }
        Ok(())
    }

    /// Batches of rows.
    pub fn n_batches(&self) -> usize {
        self.schedule.batches.len()
    }

    /// The residual stream of a batch now: prompt and position of every row, and the rows.
    pub fn hidden(&self, batch: usize) -> Result<(RowNames, Vec<f32>)> {
        let names = self.schedule.names(batch);
        let rows = names.into_iter().flat_map(|(prompt, range)| range.map(move |position| (prompt, position)));
        Ok((rows.collect(), self.activations.get(batch)?))
    }

    /// Logits of the positions that `wanted` names, after the last layer: `take(prompt, position, logits)`, in the order of
    /// the schedule; those of a shared beginning under one prompt's name only.
    /// At most `rows_at_once` rows of the vocabulary's size are in memory at a time.
    pub fn each_logits(
        &self,
        rows_at_once: usize,
        wanted: impl Fn(usize, usize) -> bool,
        mut take: impl FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        let (width, vocab) = (self.model.hidden(), self.model.vocab());
        let head = self.model.head()?;
        let mut names: Vec<(usize, usize)> = Vec::new();
        let mut values: Vec<f32> = Vec::new();
        let mut flush = |names: &mut Vec<(usize, usize)>, values: &mut Vec<f32>| {
            let logits = self.model.logits_of(&head, values);
            for (&(prompt, position), row) in names.iter().zip(logits.chunks_exact(vocab)) {
                take(prompt, position, row);
            }
            names.clear();
            values.clear();
        };
        for at in 0..self.n_batches() {
            let (all, hidden) = self.hidden(at)?;
            for ((prompt, position), row) in all.into_iter().zip(hidden.chunks_exact(width)) {
                if wanted(prompt, position) {
                    names.push((prompt, position));
                    values.extend_from_slice(row);
                }
                if names.len() == rows_at_once.max(1) {
                    flush(&mut names, &mut values);
                }
            }
        }
        flush(&mut names, &mut values);
        Ok(())
    }

    /// Bytes of activations that are on disk.
    pub fn spilled_bytes(&self) -> u64 {
        self.activations.spilled_bytes()
    }

    /// The prompts' sequences, where they were kept.
    pub fn into_sequences(self) -> Vec<Sequence<B>> {
        self.sequences.unwrap_or_default()
    }
}

/// States between the batches of a layer.
struct States<B: Backend> {
    /// Of the piece whose rows go on in the next batch.
    going_on: Option<(usize, LayerState<B>)>,
    /// Of pieces that others go on from, and how many still will.
    ends: BTreeMap<usize, (LayerState<B>, usize)>,
}

impl<B: Backend> States<B> {
    /// The state of a piece that began in the batch before.
    fn take(&mut self, piece: usize) -> LayerState<B> {
        let (of, state) = self.going_on.take().expect("the last piece of a batch goes on as the first of the next");
        assert_eq!(of, piece, "the piece that goes on");
        state
    }

    /// The state at the end of `piece`, for `tokens` more; the last that asks gets the state itself.
    fn after(&mut self, backend: &B, piece: usize, tokens: usize) -> LayerState<B> {
        let (state, left) =
            self.ends.remove(&piece).expect("a beginning ends in a batch before those that go on from it");
        if left > 1 {
            let copy = state.fork(backend, tokens);
            self.ends.insert(piece, (state, left - 1));
            return copy;
        }
        state
    }
}

fn rows(batch: &[(usize, Range<usize>)]) -> usize {
    batch.iter().map(|(_, range)| range.len()).sum()
}

/// Logits of the positions that `wanted` names of two models that have swept the same prompts in the same batches:
/// `take(prompt, position, logits of a, logits of b)`, in order.
///
/// # Panics
/// For sweeps over other prompts, or in other batches.
pub fn each_pair<B: Backend + 'static>(
    a: &Sweep<B>,
    b: &Sweep<B>,
    rows_at_once: usize,
    wanted: impl Fn(usize, usize) -> bool,
    mut take: impl FnMut(usize, usize, &[f32], &[f32]),
) -> Result<()> {
    assert!(a.schedule == b.schedule, "two sweeps over the same prompts");
    let heads = [a.model.head()?, b.model.head()?];
    for at in 0..a.n_batches() {
        let (names, hidden_a) = a.hidden(at)?;
        let (_, hidden_b) = b.hidden(at)?;
        let rows: Vec<usize> = (0..names.len()).filter(|&row| wanted(names[row].0, names[row].1)).collect();
        for rows in rows.chunks(rows_at_once.max(1)) {
            let of = |sweep: &Sweep<B>, head, hidden: &[f32]| {
                let width = sweep.model.hidden();
                let values: Vec<f32> = rows.iter().flat_map(|&row| &hidden[row * width..][..width]).copied().collect();
                sweep.model.logits_of(head, &values)
            };
            let (a, b) = (of(a, &heads[0], &hidden_a), of(b, &heads[1], &hidden_b));
            let [vocab_a, vocab_b] = [a.len(), b.len()].map(|len| len / rows.len());
            for (i, &row) in rows.iter().enumerate() {
                let (prompt, position) = names[row];
                take(prompt, position, &a[i * vocab_a..][..vocab_a], &b[i * vocab_b..][..vocab_b]);
            }
        }
    }
    Ok(())
}
