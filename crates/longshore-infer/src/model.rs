//! A model over a checkpoint: which weights stay in memory, and one step of any number of sequences through all layers.

use crate::backend::{Backend, MambaOptions, Routing};
use crate::cache::Sequence;
use crate::error::{Error, Result};
use crate::layers::{Layer, Linear, Norm, Span};
use crate::memory::{self, Demand, Plan, Sizes};
use crate::quantized::QuantState;
use crate::site::{self, Site};
use crate::weights::{EMBEDDING, Loader, block_layers, head_name, not_stored, state_size};
use longshore_ckpt::{Dtype, Rect};
use longshore_convert::config::{LayerSpec, ModelConfig};
use longshore_convert::source::Source;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How to run a model.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Lower bound of the time steps of prompts, see [`MambaOptions::dt_min`].
    pub dt_min: Option<f32>,
    /// Bytes of memory and what they are for; layers that do not fit are read whenever they are needed. `None`: all stay.
    pub memory: Option<(u64, Demand)>,
    /// Threads that read and pack weights.
    pub threads: usize,
    /// Quantization to simulate.
    pub quant: Option<Arc<QuantState>>,
    /// Weights stay quantized in memory where the backend has products of their format: they are those that exporters
    /// write (or stored), code times scale as servers compute, not rounded to the element type as the simulation does.
    pub packed: bool,
}

/// A model ready to run.
pub struct Model<B: Backend> {
    source: Source,
    backend: B,
    options: MambaOptions,
    threads: usize,
    quant: Option<Arc<QuantState>>,
    packed: bool,
    layers: Vec<Slot<B>>,
    final_norm: Norm<B>,
    head: Option<Linear<B>>,
    resident_bytes: u64,
    plan: Plan,
}

/// A layer of the trunk.
struct Slot<B: Backend> {
    prefix: String,
    spec: LayerSpec,
    resident: Option<Layer<B>>,
}

/// New tokens of one sequence.
pub struct Run<'a, B: Backend> {
    /// What was read before.
    pub sequence: &'a mut Sequence<B>,
    /// The new tokens; at least one.
    pub ids: &'a [u32],
    /// Whether they are prompt.
    pub prefill: bool,
    /// Whether some of them may be taken back with [`Model::rewind`].
    pub keep_trail: bool,
}

/// Which positions to compute logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// None: only the state is wanted.
    None,
    /// The last token of each sequence.
    Last,
    /// All tokens.
    All,
}

/// What a step gives.
pub struct StepOutput<B: Backend> {
    /// Final-normed states of all rows, `[tokens, hidden]`.
    pub normed: B::Buffer,
    /// Natural logits, `[positions, vocab]`.
    pub logits: Vec<f32>,
}

/// What decides the function of a model and its checkpoint does not say, by the names of config.json.
pub fn unsaid(config: &ModelConfig) -> Vec<&'static str> {
    not_stored(&config.all_layers().copied().collect::<Vec<_>>())
}

impl<B: Backend + 'static> Model<B> {
    /// Opens the weights of `source` on `backend`: reads what may stay in memory, the output layer first, then layers in
    /// order.
    pub fn load(source: Source, backend: B, options: &ModelOptions) -> Result<Arc<Self>> {
        let config = &source.model.config;
        let missing = unsaid(config);
        if !missing.is_empty() {
            return Err(Error::NotStored { path: source.catalog.folder.clone(), fields: missing });
        }
        let architecture = source.model.architecture;
        let slot = |(i, &spec)| Slot { prefix: (architecture.layer_prefix)(i), spec, resident: None };
        let layers: Vec<Slot<B>> = (0u64..).zip(&config.layers).map(slot).collect();
        let mamba = MambaOptions { eps: config.norm_eps as f32, dt_min: options.dt_min };
        let threads = options.threads.max(1);
        let quant = options.quant.clone();
        if let Some(quant) = &quant {
            let mtp = config.mtp.iter().flat_map(|mtp| (0..mtp.blocks()).flat_map(|b| block_layers(mtp, b)));
            let trunk = layers.iter().map(|slot| (slot.prefix.clone(), slot.spec));
            quant.check(trunk.chain(mtp))?;
        }
        let packed = options.packed;
        let loader = Loader { source: &source, backend: &backend, threads, quant: quant.as_deref(), packed };
        let final_norm = loader.norm(architecture.final_norm)?;
        let sizes = sizes(&loader, config, &layers);
        let plan = match &options.memory {
            Some((budget, demand)) => memory::plan(&sizes, demand, Some(*budget))?,
            None => Plan { layers: layers.len(), head: true, prefetch: false, activations: u64::MAX, spare: u64::MAX },
        };
        let mut model = Self {
            final_norm,
            options: mamba,
            threads,
            quant,
            packed,
            layers,
            head: None,
            resident_bytes: 0,
            plan,
            source,
            backend,
        };
        if model.plan.head {
            model.head = Some(model.loader().linear("", Site::Output)?);
            model.resident_bytes += sizes.head;
        }
        let layers = model.load_layers(model.plan.layers)?;
        for ((slot, layer), size) in model.layers.iter_mut().zip(layers).zip(&sizes.layers) {
            slot.resident = Some(layer);
            model.resident_bytes += size;
        }
        Ok(Arc::new(model))
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The config.
    pub fn config(&self) -> &ModelConfig {
        &self.source.model.config
    }

    /// The checkpoint.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What the names of a layer's modules begin with; nothing where there is no such layer.
    pub(crate) fn prefix(&self, layer: usize) -> String {
        self.layers.get(layer).map(|slot| slot.prefix.clone()).unwrap_or_default()
    }

    /// Threads to use outside the backend.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    pub(crate) fn mamba_options(&self) -> &MambaOptions {
        &self.options
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        self.config().hidden_size as usize
    }

    /// Tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.config().vocab_size as usize
    }

    /// Bytes of weights that stay in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }

    /// Whether every layer stays in memory.
    pub fn is_resident(&self) -> bool {
        self.layers.iter().all(|slot| slot.resident.is_some())
    }

    /// Linears whose weights are kept in codes (see [`ModelOptions::packed`]), and all linears; experts of a layer count as
    /// one.
    pub fn packed_linears(&self) -> (usize, usize) {
        let loader = self.loader();
        let sites = self
            .layers
            .iter()
            .flat_map(|slot| site::linears(&slot.spec, 0).into_iter().map(|(s, _)| (&*slot.prefix, s)));
        sites.chain([("", Site::Output)]).fold((0, 0), |(packed, all), (prefix, site)| {
            (packed + usize::from(loader.is_packed(prefix, site)), all + 1)
        })
    }

    /// Layers that stay in memory, and all layers.
    pub fn resident_layers(&self) -> (usize, usize) {
        (self.layers.iter().filter(|slot| slot.resident.is_some()).count(), self.layers.len())
    }

    /// Bytes for the residual stream between streamed layers.
    pub fn activation_budget(&self) -> u64 {
        self.plan.activations
    }

    /// Whether a sweep reads a layer while the one before computes.
    pub(crate) fn reads_ahead(&self) -> bool {
        self.plan.prefetch
    }

    /// Bytes that nothing is planned for.
    pub fn spare_memory(&self) -> u64 {
        self.plan.spare
    }

    pub(crate) fn loader(&self) -> Loader<'_, B> {
        let quant = self.quant.as_deref();
        Loader { source: &self.source, backend: &self.backend, threads: self.threads, quant, packed: self.packed }
    }

    /// The first `count` layers, several at a time.
    fn load_layers(&self, count: usize) -> Result<Vec<Layer<B>>> {
        let (next, loaded) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
        std::thread::scope(|scope| {
            for _ in 0..self.threads.min(count) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= count {
                            break;
                        }
                        let loader = Loader { threads: 1, ..self.loader() };
                        let layer = loader.layer(&self.layers[i].prefix, &self.layers[i].spec);
                        loaded.lock().unwrap_or_else(PoisonError::into_inner).push((i, layer));
                    }
                });
            }
        });
        let mut loaded = loaded.into_inner().unwrap_or_else(PoisonError::into_inner);
        loaded.sort_by_key(|(i, _)| *i);
        loaded.into_iter().map(|(_, layer)| layer).collect()
    }

    /// Reads a layer.
    pub(crate) fn load_layer(&self, i: usize) -> Result<Layer<B>> {
        self.loader().layer(&self.layers[i].prefix, &self.layers[i].spec)
    }

    /// Rows of the output layer without the zeros at its end. A Megatron checkpoint that comes without a config does not say
    /// how many rows are padding, and a padded row's logit of 0 may win.
    pub fn trained_rows(&self) -> Result<usize> {
        const ROWS: u64 = 256;
        let name = head_name(&self.source);
        let (hidden, mut end) = (self.config().hidden_size, self.config().vocab_size);
        while end > 0 {
            let start = end.saturating_sub(ROWS);
            let rect = Rect { offsets: vec![start, 0], sizes: vec![end - start, hidden] };
            let values = self.loader().values_of(name, &rect)?;
            let used = values.chunks_exact(hidden as usize).rposition(|row| row.iter().any(|&x| x != 0.0));
            if let Some(last) = used {
                return Ok(start as usize + last + 1);
            }
            end = start;
        }
        Ok(self.vocab())
    }

    /// Rows of the embedding, read from the checkpoint: a few kilobytes a token, so the table never takes memory.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let hidden = self.config().hidden_size;
        // In the type of the activations: rounded where they are.
        let element = self.backend.matrix_type(self.source.tensor(EMBEDDING).1);
        let mut out = vec![0.0; ids.len() * hidden as usize];
        let mut bytes = vec![0; (hidden * element.size()) as usize];
        let mut seen: std::collections::HashMap<u32, usize> = std::collections::HashMap::new();
        for (i, &id) in ids.iter().enumerate() {
            let width = hidden as usize;
            if let Some(&first) = seen.get(&id) {
                out.copy_within(first * width..(first + 1) * width, i * width);
                continue;
            }
            seen.insert(id, i);
            let rect = Rect { offsets: vec![u64::from(id), 0], sizes: vec![1, hidden] };
            self.source.read(EMBEDDING, &rect, element, &mut bytes)?;
            let row = &mut out[i * width..(i + 1) * width];
            if element == Dtype::Bfloat16 {
                for (out, b) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = half::bf16::from_le_bytes(*b).to_f32();
                }
            } else {
                for (out, b) in row.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*b);
                }
            }
        }
        Ok(out)
    }

    /// Final norm of rows of the residual stream.
    pub(crate) fn final_norm(&self, hidden: &B::Buffer, rows: usize) -> B::Buffer {
        let mut normed = self.backend.buffer(rows, self.hidden());
        self.backend.rms_norm(hidden, &self.final_norm, &mut normed);
        normed
    }

    /// The output layer, read where it is not resident.
    pub(crate) fn head(&self) -> Result<Head<'_, B>> {
        Ok(match &self.head {
            Some(head) => Head::Resident(head),
            None => Head::Read(self.loader().linear("", Site::Output)?),
        })
    }

    /// Logits of final-normed rows, `[rows, vocab]`.
    pub(crate) fn logits(&self, head: &Head<'_, B>, normed: &B::Buffer, rows: usize) -> Vec<f32> {
        let mut out = self.backend.buffer(rows, self.vocab());
        match head {
            Head::Resident(head) => head.forward(&self.backend, normed, &mut out),
            Head::Read(head) => head.forward(&self.backend, normed, &mut out),
        }
        self.backend.download(&out, 0..rows)
    }

    /// Logits of rows of the residual stream, `[rows, vocab]`.
    pub(crate) fn logits_of(&self, head: &Head<'_, B>, hidden: &[f32]) -> Vec<f32> {
        let rows = hidden.len() / self.hidden();
        if rows == 0 {
            return Vec::new();
        }
        let normed = self.final_norm(&self.backend.upload(self.hidden(), hidden), rows);
        self.logits(head, &normed, rows)
    }

    /// Reads new tokens of any number of sequences: all layers, one after the other, on all rows at once.
    ///
    /// Errors leave the sequences in no useful state.
    pub fn step(self: &Arc<Self>, runs: &mut [Run<'_, B>], positions: Positions) -> Result<StepOutput<B>> {
        let mut ids = Vec::new();
        for (prompt, run) in runs.iter().enumerate() {
            check_ids(self.config().vocab_size, prompt, run.ids)?;
            ids.extend_from_slice(run.ids);
        }
        let rows = ids.len();
        let mut hidden = self.backend.upload(self.hidden(), &self.embed(&ids)?);
        self.each_layer(|i, layer| {
            let mut row = 0;
            let mut spans = Vec::with_capacity(runs.len());
            for run in &mut *runs {
                if run.sequence.layers.len() == i {
                    run.sequence.layers.push(layer.new_state(&self.backend));
                }
                spans.push(Span {
                    rows: row..row + run.ids.len(),
                    state: &mut run.sequence.layers[i],
                    prefill: run.prefill,
                    keep_trail: run.keep_trail,
                });
                row += run.ids.len();
            }
            layer.forward(&self.backend, &self.options, &mut hidden, (rows, self.hidden()), &mut spans, &mut ())?;
            Ok(())
        })?;
        let mut ends = Vec::with_capacity(runs.len());
        let mut row = 0;
        for run in runs {
            run.sequence.tokens += run.ids.len();
            row += run.ids.len();
            ends.push(row - 1);
        }
        let normed = self.final_norm(&hidden, rows);
        let logits = match positions {
            Positions::None => Vec::new(),
            Positions::All => self.logits(&self.head()?, &normed, rows),
            Positions::Last if ends.len() == rows => self.logits(&self.head()?, &normed, rows),
            Positions::Last => {
                let last: Vec<f32> = ends.iter().flat_map(|&r| self.backend.download(&normed, r..r + 1)).collect();
                self.logits(&self.head()?, &self.backend.upload(self.hidden(), &last), ends.len())
            }
        };
        Ok(StepOutput { normed, logits })
    }

    /// Takes back all but the first `kept` of the `step` tokens that the last step read with `keep_trail`; at least one
    /// is kept.
    pub fn rewind(&self, sequence: &mut Sequence<B>, step: usize, kept: usize) {
        sequence.tokens -= step - kept;
        for layer in &mut sequence.layers {
            layer.rewind(&self.backend, sequence.tokens, step, kept);
        }
    }

    /// Runs `work` on every layer in order; those that are not resident are read while the one before computes.
    fn each_layer(self: &Arc<Self>, mut work: impl FnMut(usize, &Layer<B>) -> Result<()>) -> Result<()> {
        let mut stream = self.stream();
        for i in 0..self.layers.len() {
            match &self.layers[i].resident {
                Some(layer) => work(i, layer)?,
                None => work(i, &stream.take(i)?)?,
            }
        }
        Ok(())
    }

    /// Reads the layers that are not resident, each once, one ahead.
    pub(crate) fn stream(self: &Arc<Self>) -> LayerStream<B> {
        LayerStream { model: Arc::clone(self), pending: None }
    }

    /// The layer, if it is resident.
    pub(crate) fn resident(&self, i: usize) -> Option<&Layer<B>> {
        self.layers[i].resident.as_ref()
    }

    /// Layers of the trunk.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }
}

/// Checks that a prompt has tokens, and that all of them are below `vocab`.
pub fn check_ids(vocab: u64, prompt: usize, ids: &[u32]) -> Result<()> {
    match ids.iter().position(|&id| u64::from(id) >= vocab) {
        Some(position) => Err(Error::Token { prompt, position, id: ids[position], vocab }),
        None if ids.is_empty() => Err(Error::EmptyPrompt { prompt }),
        None => Ok(()),
    }
}

/// What the parts of a model take.
fn sizes<B: Backend>(loader: &Loader<'_, B>, config: &ModelConfig, layers: &[Slot<B>]) -> Sizes {
    let hidden = config.hidden_size;
    let width = |slot: &Slot<B>| match slot.spec {
        LayerSpec::Mamba(m) => 4 * m.heads * m.head_dim + 2 * m.groups * m.state + m.heads,
        LayerSpec::Attention(a) => (2 * a.heads + 2 * a.kv_heads) * a.head_dim,
        LayerSpec::Mlp(m) => m.fc1_rows() + m.ffn,
        LayerSpec::Moe(m) => {
            let latent = m.latent.unwrap_or(hidden);
            m.experts + 2 * m.shared_ffn + m.top_k * (2 * m.expert_ffn + 2 * latent) + 2 * latent
        }
    };
    let element = loader.backend.activation_size();
    Sizes {
        layers: layers.iter().map(|slot| loader.layer_size(&slot.prefix, &slot.spec)).collect(),
        head: loader.linear_size("", Site::Output),
        states: layers.iter().map(|slot| state_size(&slot.spec, element)).collect(),
        // Float32 buffers: hidden, normed and output rows beside those of the layer; half as much again for copies.
        working: (layers.iter().map(width).max().unwrap_or(0) + 4 * hidden) * 6,
        row: hidden * element,
        logits: config.vocab_size * 8,
    }
}

/// The output layer.
pub(crate) enum Head<'a, B: Backend> {
    /// In memory anyway.
    Resident(&'a Linear<B>),
    /// Read for this use.
    Read(Linear<B>),
}

/// Layers on their way from the checkpoint.
pub(crate) struct LayerStream<B: Backend> {
    model: Arc<Model<B>>,
    pending: Option<(usize, JoinHandle<Result<Layer<B>>>)>,
}

impl<B: Backend + 'static> LayerStream<B> {
    /// Layer `i`; the next one that is not resident begins to be read.
    pub(crate) fn take(&mut self, i: usize) -> Result<Layer<B>> {
        let layer = match self.pending.take() {
            Some((at, thread)) if at == i => match thread.join() {
                Ok(layer) => layer?,
                Err(panic) => std::panic::resume_unwind(panic),
            },
            _ => self.model.load_layer(i)?,
        };
        let next = (i + 1..self.model.n_layers()).find(|&j| self.model.resident(j).is_none());
        if let Some(next) = next.filter(|_| self.model.plan.prefetch) {
            let model = Arc::clone(&self.model);
            self.pending = Some((next, std::thread::spawn(move || model.load_layer(next))));
        }
        Ok(layer)
    }
}

/// What a model's run shows besides its results. All methods do nothing by default.
pub trait Observer {
    /// Where a MoE layer sent rows of a prompt; `first` is the position of the first of them.
    fn routing(&mut self, _layer: usize, _rows: &[(usize, std::ops::Range<usize>)], _routing: &Routing) {}
}

/// Sees nothing.
impl Observer for () {}
