//! The tiny model and what ModelOpt made of it.

use crate::shared_data::shared;
use half::bf16;
use longshore_convert::source::Source;
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::memory::Demand;
use longshore_infer::model::{Model, ModelOptions};
use longshore_infer::quantized::QuantState;
use longshore_infer::sweep::{Sweep, SweepOptions};
use safetensors::{Dtype, SafeTensors};
use std::path::Path;
use std::sync::Arc;

/// transformers' clamp of the time steps of prompts.
pub(crate) const TIME_STEP_MIN: f32 = 0.001;

/// A file of tensors.
pub(crate) struct Tensors(Vec<u8>);

impl Tensors {
    pub(crate) fn open(path: &Path) -> Self {
        Self(std::fs::read(path).expect("reference values"))
    }

    /// What ModelOpt calibrated and computed in float32.
    pub(crate) fn float32() -> Self {
        Self::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quantized/modelopt_reference.safetensors"))
    }

    pub(crate) fn get(&self, name: &str) -> Option<Vec<f32>> {
        let file = SafeTensors::deserialize(&self.0).expect("reference values");
        let tensor = file.tensor(name).ok()?;
        let data = tensor.data();
        Some(match tensor.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::BF16 => data.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => panic!("{other:?}"),
        })
    }

    pub(crate) fn values(&self, name: &str) -> Vec<f32> {
        self.get(name).unwrap_or_else(|| panic!("no reference value `{name}`"))
    }
}

/// The prompts that everything was calibrated with, where the shared data is present.
pub(crate) fn prompts() -> Option<Vec<Vec<u32>>> {
    let path = shared("golden/quant/tiny_hf/nemotron_h/reference.safetensors")?;
    let bytes = std::fs::read(path).expect("reference values");
    let file = SafeTensors::deserialize(&bytes).expect("reference values");
    let (tokens, _) = file.tensor("tokens").expect("the prompts").data().as_chunks();
    let tokens = tokens.iter().map(|&b| u32::try_from(i64::from_le_bytes(b)).expect("an id"));
    Some(tokens.collect::<Vec<_>>().chunks(32).map(<[u32]>::to_vec).collect())
}

/// How a model is run.
pub(crate) struct Setup {
    pub(crate) precision: Precision,
    pub(crate) threads: usize,
    pub(crate) dt_min: Option<f32>,
    pub(crate) quant: Option<QuantState>,
    pub(crate) packed: bool,
    pub(crate) memory: Option<(u64, Demand)>,
}

impl Setup {
    /// As transformers computes.
    pub(crate) fn new(precision: Precision) -> Self {
        Self { precision, threads: 2, dt_min: Some(TIME_STEP_MIN), quant: None, packed: false, memory: None }
    }

    pub(crate) fn quantized(precision: Precision, quant: QuantState) -> Self {
        Self { quant: Some(quant), ..Self::new(precision) }
    }

    pub(crate) fn memory(self, memory: Option<(u64, Demand)>) -> Self {
        Self { memory, ..self }
    }

    pub(crate) fn load(self) -> longshore_infer::error::Result<Arc<Model<Cpu>>> {
        let folder = shared("golden/quant/tiny_hf/nemotron_h/base").expect("it was there");
        self.load_from(&folder)
    }

    pub(crate) fn load_from(self, folder: &Path) -> longshore_infer::error::Result<Arc<Model<Cpu>>> {
        let source = Source::open(folder, None, false).expect("the model opens");
        let backend = Cpu::new(self.threads, self.precision).expect("threads start");
        let quant = self.quant.map(Arc::new);
        let Self { dt_min, memory, threads, packed, .. } = self;
        Model::load(source, backend, &ModelOptions { dt_min, memory, threads, quant, packed })
    }
}

pub(crate) fn sweep_options(batch_tokens: usize) -> SweepOptions {
    SweepOptions { batch_tokens, scratch: std::env::temp_dir() }
}

/// Logits of the positions that the reference has: every eighth.
pub(crate) fn logits(model: &Arc<Model<Cpu>>, prompts: &[Vec<u32>], batch_tokens: usize) -> Vec<f32> {
    let mut sweep = Sweep::new(model, prompts, &sweep_options(batch_tokens), false).expect("a sweep");
    sweep.run(&mut ()).expect("all layers");
    let mut out = Vec::new();
    sweep.each_logits(64, |_, position| position % 8 == 7, |_, _, row| out.extend_from_slice(row)).expect("logits");
    out
}

/// The largest difference of two lists.
pub(crate) fn furthest(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most })
}
