//! Which parallel layouts of Megatron-Core can load a model on given GPUs, and how many bytes of weights each rank then has.
//!
//! The rules are those of megatron-core 0.16 and of Megatron-LM main of August 2026: `core/parallel_state.py` (sizes of groups),
//! `core/models/hybrid/hybrid_layer_allocation.py` (stages), `core/ssm/mamba_mixer.py`, `core/transformer/attention.py` and
//! `core/transformer/transformer_config.py` (what has to divide what). Bytes are those of the weights, in bfloat16, and of
//! nothing else.

use crate::Result;
use crate::arch::SpecKeys;
use crate::config::ModelConfig;
use crate::error::Problem;
use crate::mapping::{Declared, Place, Precision};
use crate::options::Layout;
use crate::outline::Outline;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// More GPUs than this are a mistake; it also bounds the number of layouts.
pub const MAX_GPUS: u64 = 1 << 12;

/// The GPUs of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gpus {
    /// How many, from 1 to [`MAX_GPUS`].
    pub count: u64,
    /// Bytes of memory of each.
    pub size: u64,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct FitOptions {
    /// The GPUs.
    pub gpus: Gpus,
    /// Percent of a GPU's memory that weights may not take, up to 99.
    pub reserve: u64,
    /// Sizes that are given; the others are searched.
    pub tp: Option<u64>,
    /// Pipeline stages.
    pub pp: Option<u64>,
    /// Expert parallel size.
    pub ep: Option<u64>,
    /// Expert tensor parallel size.
    pub etp: Option<u64>,
    /// Pads the vocabulary to a multiple of this times tp, as a conversion with the option of that name does.
    pub make_vocab_size_divisible_by: Option<u64>,
}

impl FitOptions {
    /// Bytes of a GPU that weights may take.
    pub fn usable(&self) -> u64 {
        let reserved = u128::from(self.gpus.size) * u128::from(self.reserve.min(100)) / 100;
        self.gpus.size.saturating_sub(u64::try_from(reserved).unwrap_or(u64::MAX))
    }
}

/// A layout that can load the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loadable {
    /// The sizes.
    #[serde(flatten)]
    pub layout: Layout,
    /// Copies of the model, but for its experts.
    pub dp: u64,
    /// Bytes of weights of the ranks of each pipeline stage; all ranks of a stage have equally many.
    pub bytes_per_stage: Vec<u64>,
    /// The largest of them.
    pub bytes_per_rank: u64,
    /// Whether that and the reserve fit a GPU.
    pub fits: bool,
}

/// A size that no layout can have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedSize {
    /// Its option.
    pub option: &'static str,
    /// The size.
    pub size: u64,
    /// Why not.
    pub reasons: Vec<String>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// All layouts that can load the model: those that fit first, the least divided one first of all.
    pub layouts: Vec<Loadable>,
    /// Sizes that divide the number of GPUs, or were given, and that the model does not allow.
    pub refused: Vec<RefusedSize>,
}

/// Finds the layouts.
pub fn fit(outline: &Outline, options: &FitOptions, path: &Path) -> Result<Fit> {
    outline.model.check_converted(path)?;
    let config = &outline.model.config;
    let weights = Weights::of(outline);
    let has_experts = config.kinds().moe.is_some();
    let mut refused = Vec::new();
    let mut sizes = |option, given: Option<u64>| {
        let candidates = given.map_or_else(|| divisors(options.gpus.count), |n| vec![n]);
        let mut allowed = Vec::new();
        for size in candidates {
            let reasons = reasons(outline, options, option, size);
            if reasons.is_empty() {
                allowed.push(size);
            } else {
                refused.push(RefusedSize { option, size, reasons });
            }
        }
        allowed
    };
    let (tps, pps) = (sizes("--tp", options.tp), sizes("--pp", options.pp));
    let (eps, etps) = if has_experts {
        (sizes("--ep", options.ep), sizes("--etp", options.etp))
    } else {
        // Nothing is divided by them, but one that is given is answered.
        (sizes("--ep", options.ep.or(Some(1))), sizes("--etp", options.etp.or(Some(1))))
    };
    let usable = options.usable();
    let divides = |n: u64| options.gpus.count.is_multiple_of(n);
    let mut layouts = Vec::new();
    for &pp in &pps {
        for &tp in tps.iter().filter(|&&tp| divides(tp.saturating_mul(pp))) {
            for &ep in &eps {
                for &etp in etps.iter().filter(|&&etp| divides(ep.saturating_mul(etp).saturating_mul(pp))) {
                    let layout = Layout { tp, pp, ep, etp };
                    let bytes_per_stage = weights.stages(layout, padded(outline, options, tp));
                    let bytes_per_rank = bytes_per_stage.iter().copied().max().unwrap_or(0);
                    let (dp, fits) = (options.gpus.count / (tp * pp), bytes_per_rank <= usable);
                    layouts.push(Loadable { layout, dp, bytes_per_stage, bytes_per_rank, fits });
                }
            }
        }
    }
    // Whatever is divided has to be sent: stages idle, tensor parallel ranks exchange activations in every layer.
    layouts.sort_by_key(|l| {
        let Layout { tp, pp, ep, etp } = l.layout;
        (!l.fits, if l.fits { 0 } else { l.bytes_per_rank }, pp, tp, etp, ep)
    });
    Ok(Fit { layouts, refused })
}

/// Why no layout can have this size.
fn reasons(outline: &Outline, options: &FitOptions, option: &str, size: u64) -> Vec<String> {
    let config = &outline.model.config;
    let mut reasons = Vec::new();
    if !options.gpus.count.is_multiple_of(size) {
        reasons.push(format!("{size} does not divide {} GPUs", options.gpus.count));
    }
    let one = Layout { tp: 1, pp: 1, ep: 1, etp: 1 };
    let layers = config.layers.len() as u64;
    let layout = match option {
        "--tp" => {
            let rows = padded(outline, options, size);
            if !rows.is_multiple_of(size) {
                reasons.push(format!(
                    "{size} does not divide the {rows} rows of the vocabulary; --make-vocab-size-divisible-by pads it"
                ));
            }
            Layout { tp: size, ..one }
        }
        "--pp" => {
            if size <= layers && !layers.is_multiple_of(size) {
                reasons.push(format!(
                    "{layers} layers do not make {size} equal stages; `|` in the pattern could cut others"
                ));
            }
            Layout { pp: size, ..one }
        }
        "--ep" => Layout { ep: size, ..one },
        _ => Layout { etp: size, ..one },
    };
    if size > 1 && matches!(option, "--ep" | "--etp") && config.kinds().moe.is_none() {
        reasons.push("the model has no experts".into());
    }
    let check = outline.model.architecture.check_layout;
    for problem in check.map(|check| check(config, layout)).unwrap_or_default() {
        if let Problem::Option { what, .. } = problem {
            reasons.push(what);
        }
    }
    reasons
}

/// Rows of the vocabulary in a model of that tensor parallel size.
fn padded(outline: &Outline, options: &FitOptions, tp: u64) -> u64 {
    let multiple = options.make_vocab_size_divisible_by.map(|n| n.saturating_mul(tp));
    let rows = outline.vocab_rows;
    multiple.and_then(|multiple| rows.checked_next_multiple_of(multiple)).unwrap_or(rows)
}

fn divisors(n: u64) -> Vec<u64> {
    (1..=n).filter(|d| n.is_multiple_of(*d)).collect()
}

/// Bytes of one place of the model, by what divides them.
#[derive(Clone, Copy, Debug, Default)]
struct Shares {
    /// Every rank has them.
    whole: u64,
    /// Divided by the tensor parallel size.
    by_tp: u64,
    /// Divided by the expert and the expert tensor parallel size.
    by_experts: u64,
}

impl Shares {
    /// Saturating, as everywhere here: sizes are claims of a file, and what is too large for a number fits no GPU.
    fn plus(self, other: Self) -> Self {
        Self {
            whole: self.whole.saturating_add(other.whole),
            by_tp: self.by_tp.saturating_add(other.by_tp),
            by_experts: self.by_experts.saturating_add(other.by_experts),
        }
    }

    fn of(declared: &Declared) -> Self {
        // The router keeps its bias in float32; everything else is cast with the module.
        let size = if declared.precision == Precision::Float32 { 4 } else { PARAMETER };
        let bytes = declared.shape.iter().fold(size, |n, &axis| n.saturating_mul(axis));
        match declared {
            Declared { experts: true, .. } => Self { by_experts: bytes, ..Self::default() },
            Declared { tp_axis: Some(_), .. } => Self { by_tp: bytes, ..Self::default() },
            _ => Self { whole: bytes, ..Self::default() },
        }
    }

    fn on_a_rank(self, layout: Layout) -> u64 {
        let experts = self.by_experts / layout.ep.saturating_mul(layout.etp);
        self.whole.saturating_add(self.by_tp / layout.tp).saturating_add(experts)
    }
}

/// Bytes of a parameter in bfloat16.
const PARAMETER: u64 = 2;
const EMBEDDING: &str = "embedding.word_embeddings.weight";
const OUTPUT: &str = "output_layer.weight";

/// The weights of a model, as its architecture's table declares them on the Megatron side.
struct Weights<'a> {
    config: &'a ModelConfig,
    /// By layer of the trunk.
    layers: Vec<Shares>,
    /// Before and behind the layers, but for the vocabulary.
    first: Shares,
    last: Shares,
}

impl<'a> Weights<'a> {
    fn of(outline: &'a Outline) -> Self {
        let config = &outline.model.config;
        let mapping = (outline.model.architecture.mapping)(config, &SpecKeys::CANONICAL, outline.vocab_rows);
        let mut places: BTreeMap<Place, Shares> = BTreeMap::new();
        for (_, declared) in mapping.mc.iter().filter(|(name, _)| !matches!(name.as_str(), EMBEDDING | OUTPUT)) {
            let shares = places.entry(declared.place).or_default();
            *shares = shares.plus(Shares::of(declared));
        }
        let mut take = |place| places.remove(&place).unwrap_or_default();
        let (first, last) = (take(Place::First), take(Place::Last));
        let layers = (0..config.layers.len() as u64).map(|layer| take(Place::Layer(layer))).collect();
        Self { config, layers, first, last }
    }

    /// Bytes of a rank of each stage. `pp` divides the layers, the other sizes what they divide.
    fn stages(&self, layout: Layout, vocab_rows: u64) -> Vec<u64> {
        let stages = usize::try_from(layout.pp).unwrap_or(1).clamp(1, self.layers.len().max(1));
        let table = vocab_rows.saturating_mul(self.config.hidden_size).saturating_mul(PARAMETER) / layout.tp;
        let sum = |layers: &[Shares]| layers.iter().fold(Shares::default(), |sum, &layer| sum.plus(layer));
        let per_stage = (self.layers.len() / stages).max(1);
        let mut bytes: Vec<u64> = self.layers.chunks(per_stage).map(|layers| sum(layers).on_a_rank(layout)).collect();
        if bytes.is_empty() {
            bytes.push(0);
        }
        let last = bytes.len() - 1;
        let mut add = |stage: usize, more: u64| bytes[stage] = bytes[stage].saturating_add(more);
        add(0, self.first.on_a_rank(layout));
        add(0, table);
        add(last, self.last.on_a_rank(layout));
        // The output layer is the embedding only where both are on one rank; MTP embeds again where it stands.
        if !self.config.tie_word_embeddings || last > 0 {
            add(last, table);
        }
        if self.config.mtp.is_some() && last > 0 {
            add(last, table);
        }
        bytes
    }
}
