//! How long a sweep will take, from one batch through one layer of each kind: read and computed here and now.

use crate::backend::Backend;
use crate::cache::LayerState;
use crate::error::Result;
use crate::layers::Span;
use crate::model::Model;
use crate::schedule::Schedule;
use longshore_convert::config::LayerSpec;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a pass will do and how long that takes at the rates that were measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Layers that are computed.
    pub layers: usize,
    /// Rows that every layer computes.
    pub rows: usize,
    /// Bytes of the checkpoint that are read.
    pub bytes: u64,
    /// Time to read and pack them.
    pub reading: Duration,
    /// Time to compute.
    pub computing: Duration,
    /// Time of the pass: one layer is read while another computes where the memory holds two.
    pub total: Duration,
}

/// What one layer, or the output layer, took.
struct Measured {
    bytes: u64,
    reading: Duration,
    computing: Duration,
}

/// Estimates a sweep over `schedule` that ends with the logits of `positions` rows, `logits` at a time.
///
/// One batch, the middle one, goes through the first layer of each kind. What it holds are the embeddings of `prompts`:
/// time does not depend on values but for the balance of experts.
pub fn estimate<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    prompts: &[Vec<u32>],
    schedule: &Schedule,
    positions: usize,
    logits: usize,
) -> Result<Estimate> {
    let mut kinds: Vec<(LayerSpec, Measured)> = Vec::new();
    let rows = schedule.rows();
    let mut sum = Estimate {
        layers: model.n_layers(),
        rows,
        bytes: 0,
        reading: Duration::ZERO,
        computing: Duration::ZERO,
        total: Duration::ZERO,
    };
    for (at, spec) in model.config().layers.iter().enumerate() {
        if !kinds.iter().any(|(kind, _)| kind == spec) {
            kinds.push((*spec, layer(model, at, prompts, schedule)?));
        }
        let measured = kinds.iter().find(|(kind, _)| kind == spec).map(|(_, measured)| measured);
        if let Some(measured) = measured {
            sum.add(measured, model.reads_ahead());
        }
    }
    sum.add(&head(model, positions, logits)?, false);
    Ok(sum)
}

impl Estimate {
    fn add(&mut self, measured: &Measured, reads_ahead: bool) {
        let Measured { bytes, reading, computing } = *measured;
        self.bytes += bytes;
        self.reading += reading;
        self.computing += computing;
        self.total += if reads_ahead { reading.max(computing) } else { reading + computing };
    }
}

/// One layer on one batch, as if on all rows.
fn layer<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    at: usize,
    prompts: &[Vec<u32>],
    schedule: &Schedule,
) -> Result<Measured> {
    let (before, started) = (model.source().bytes_read(), Instant::now());
    let layer = model.load_layer(at)?;
    let (bytes, reading) = (model.source().bytes_read() - before, started.elapsed());
    let names = schedule.names(schedule.batches.len() / 2);
    let ids: Vec<u32> = names.iter().flat_map(|(p, range)| &prompts[*p][range.clone()]).copied().collect();
    let backend = model.backend();
    let values = model.embed(&ids)?;
    let forward = |states: &mut [LayerState<B>], lengths: &[usize]| -> Result<Duration> {
        let rows: usize = lengths.iter().sum();
        let mut hidden = backend.upload(model.hidden(), &values[..rows * model.hidden()]);
        let mut row = 0;
        let mut spans: Vec<Span<'_, B>> = Vec::with_capacity(lengths.len());
        for (state, length) in states.iter_mut().zip(lengths) {
            spans.push(Span { rows: row..row + length, state, prefill: true, keep_trail: false });
            row += length;
        }
        let started = Instant::now();
        layer.forward(backend, model.mamba_options(), &mut hidden, (rows, model.hidden()), &mut spans, &mut ())?;
        Ok(started.elapsed())
    };
    // Attention takes longer the more came before.
    let mut before = vec![layer.new_state(backend)];
    if matches!(before[0], LayerState::Kv(_)) {
        let mut left = names.iter().map(|(_, range)| range.start).max().unwrap_or(0);
        while left > 0 {
            let rows = left.min(ids.len());
            forward(&mut before, &[rows])?;
            left -= rows;
        }
    }
    let lengths: Vec<usize> = names.iter().map(|(_, range)| range.len()).collect();
    let mut computing = Duration::MAX;
    // The first time warms caches and pages.
    for _ in 0..2 {
        let state = |(_, range): &(usize, Range<usize>)| {
            let mut state = before[0].fork(backend, range.len());
            if let LayerState::Kv(kv) = &mut state {
                backend.truncate_kv(kv, range.start);
            }
            state
        };
        let mut states: Vec<_> = names.iter().map(state).collect();
        computing = computing.min(forward(&mut states, &lengths)?);
    }
    let batches = schedule.rows() as f64 / ids.len().max(1) as f64;
    Ok(Measured { bytes, reading, computing: computing.mul_f64(batches) })
}

/// The output layer on some rows, as if on all of them.
fn head<B: Backend + 'static>(model: &Arc<Model<B>>, positions: usize, logits: usize) -> Result<Measured> {
    let (before, started) = (model.source().bytes_read(), Instant::now());
    let head = model.head()?;
    let (bytes, reading) = (model.source().bytes_read() - before, started.elapsed());
    let rows = positions.min(logits).max(1);
    let hidden = vec![0.5; rows * model.hidden()];
    let started = Instant::now();
    model.logits_of(&head, &hidden);
    let computing = started.elapsed().mul_f64(positions as f64 / rows as f64);
    Ok(Measured { bytes, reading, computing })
}
