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
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
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
    batches: Vec<Batch>,
    activations: Activations,
    next: usize,
    /// The next layer, where it was visited and is not resident.
    read: Option<Layer<B>>,
    sequences: Option<Vec<Sequence<B>>>,
}

/// Prompt and position of rows.
pub type RowNames = Vec<(usize, usize)>;

/// Rows that are computed together: positions of prompts, in order.
type Batch = Vec<(usize, Range<usize>)>;

impl<B: Backend + 'static> Sweep<B> {
    /// Begins a pass: embeds the prompts. With `keep`, every prompt's [`Sequence`] is kept for decoding.
    pub fn new(model: &Arc<Model<B>>, prompts: &[Vec<u32>], options: &SweepOptions, keep: bool) -> Result<Self> {
        for (i, ids) in prompts.iter().enumerate() {
            check_ids(model.config().vocab_size, i, ids)?;
        }
        let batches = batches(prompts, options.batch_tokens.max(1));
        let sizes: Vec<usize> = batches.iter().map(|batch| rows(batch) * model.hidden()).collect();
        let storage = Storage::of_size(model.backend().activation_size());
        let mut activations = Activations::new(storage, &sizes, model.activation_budget(), &options.scratch)?;
        for (i, batch) in batches.iter().enumerate() {
            let ids: Vec<u32> = batch.iter().flat_map(|(p, range)| &prompts[*p][range.clone()]).copied().collect();
            activations.put(i, &model.embed(&ids)?)?;
        }
        let sequences = keep.then(|| prompts.iter().map(|_| Sequence::new()).collect());
        let (stream, model) = (model.stream(), Arc::clone(model));
        Ok(Self { stream, model, batches, activations, next: 0, read: None, sequences })
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
        // States of prompts whose rows go on in the next batch.
        let mut states: BTreeMap<usize, LayerState<B>> = BTreeMap::new();
        for (at, batch) in self.batches.iter().enumerate() {
            let count = rows(batch);
            let mut hidden = backend.upload(model.hidden(), &self.activations.get(at)?);
            let mut mine: Vec<LayerState<B>> = Vec::with_capacity(batch.len());
            for (prompt, _) in batch {
                mine.push(states.remove(prompt).unwrap_or_else(|| layer.new_state(backend)));
            }
            let mut row = 0;
            let mut spans: Vec<Span<'_, B>> = Vec::with_capacity(batch.len());
            for (state, (_, range)) in mine.iter_mut().zip(batch) {
                spans.push(Span { rows: row..row + range.len(), state, prefill: true, keep_trail: false });
                row += range.len();
            }
            let shape = (count, model.hidden());
            probe.batch(batch);
            let routing = layer.forward(backend, model.mamba_options(), &mut hidden, shape, &mut spans, probe)?;
            if let Some(routing) = routing {
                observer.routing(self.next, batch, &routing);
            }
            if keep {
                self.activations.put(at, &backend.download(&hidden, 0..count))?;
            }
            let goes_on = self.batches.get(at + 1).and_then(|next| next.first()).map(|(prompt, _)| *prompt);
            for (state, (prompt, range)) in mine.into_iter().zip(batch) {
                if goes_on == Some(*prompt) {
                    states.insert(*prompt, state);
                } else if let (Some(sequences), true) = (&mut self.sequences, keep) {
                    sequences[*prompt].tokens = range.end;
                    sequences[*prompt].layers.push(state);
                }
            }
        }
        Ok(())
    }

    /// Batches of rows.
    pub fn n_batches(&self) -> usize {
        self.batches.len()
    }

    /// The residual stream of a batch now: prompt and position of every row, and the rows.
    pub fn hidden(&self, batch: usize) -> Result<(RowNames, Vec<f32>)> {
        let rows = self.batches[batch].iter().flat_map(|(prompt, range)| range.clone().map(|p| (*prompt, p)));
        Ok((rows.collect(), self.activations.get(batch)?))
    }

    /// Logits of the positions that `wanted` names, after the last layer: `take(prompt, position, logits)`, in order.
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

fn rows(batch: &Batch) -> usize {
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
    assert!(a.batches == b.batches, "two sweeps over the same prompts");
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

/// Cuts the prompts, one after the other, into batches of at most `limit` rows.
fn batches(prompts: &[Vec<u32>], limit: usize) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut free = 0;
    for (prompt, ids) in prompts.iter().enumerate() {
        let mut done = 0;
        while done < ids.len() {
            if free == 0 {
                batches.push(Vec::new());
                free = limit;
            }
            let count = free.min(ids.len() - done);
            if let Some(batch) = batches.last_mut() {
                batch.push((prompt, done..done + count));
            }
            (done, free) = (done + count, free - count);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_full_and_keep_the_order() {
        let prompts = [vec![0; 5], vec![0; 2], vec![0; 4]];
        let got = batches(&prompts, 4);
        assert_eq!(got, [vec![(0, 0..4)], vec![(0, 4..5), (1, 0..2), (2, 0..1)], vec![(2, 1..4)]]);
    }
}
