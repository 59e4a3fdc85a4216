//! What configs by name and built-in recipes are put together from.

use super::Entry;
use super::plain::Plain;
use crate::{Attributes, Bias, BlockSizes, NumBits};

/// What a tensor is quantized to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Format {
    Fp8,
    Fp8Channel,
    Fp8Token,
    Fp8Square,
    Int8,
    Int8Channel,
    Int4,
    Nvfp4,
    /// Without the bits that a search for mixed precision counts.
    Nvfp4Uncounted,
    /// With the amax that makes the exported scale 1.
    Nvfp4Unscaled,
    Nvfp4Wide,
    Nvfp4Static,
    Nvfp4FourOverSix,
    Mxfp8,
    Mxfp6,
    Mxfp4,
    Mxint8,
}

/// What inputs are quantized to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input {
    To(Format),
    /// Switched off by an entry of its own.
    Off,
    /// Not named: off by the first entry.
    Unnamed,
}

/// A stretch of a config's entries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// Weights (more than one format: one after the other) and inputs of the modules in `scope`.
    Linears { scope: &'static [&'static str], weight: &'static [Format], input: Input },
    /// Keys and values.
    Cache(Format, Kv),
    /// Quantizers that are switched off.
    Off(&'static [&'static str]),
    /// [`STANDARD_OFF`] and [`CLASSES_OFF`].
    Standard,
    /// Attention itself in FP8.
    Attend,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kv {
    Plain,
    /// An offset besides.
    Affine,
    /// A constant amax.
    Cast,
    /// Queries and keys are rotated.
    Rotate,
}

/// The `algorithm` of a config, as it is written there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stated {
    None,
    Name(&'static str),
    Settings(&'static str, &'static [(&'static str, Setting)]),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Setting {
    Float(f64),
    Int(i64),
    Bool(bool),
    Text(&'static str),
    Map(&'static [(&'static str, Setting)]),
}

pub(super) const MAX: Stated = Stated::Name("max");
/// The search between the ranges 4 and 6 of a block.
pub(super) const FOUR_OVER_SIX: Stated = Stated::Settings(
    "mse",
    &[
        ("fp8_scale_sweep", Setting::Bool(false)),
        ("start_multiplier", Setting::Float(1.0)),
        ("stop_multiplier", Setting::Float(1.5)),
        ("step_size", Setting::Float(0.5)),
    ],
);

/// Every module.
pub(super) const ALL: &[&str] = &["*"];
/// MLPs that are not named as in Nemotron-H.
pub(super) const DENSE: &[&str] = &["*mlp*", "*block_sparse_moe*"];
/// MLPs and experts.
pub(super) const MLP: &[&str] =
    &["*mlp*", "*.mixer.up_proj.", "*.mixer.down_proj.", "*block_sparse_moe*", "*.experts.*"];

/// Modules that no config but those for attention quantizes: routers, gates, convolutions, heads, vision.
const STANDARD_OFF: &[&str] = &[
    "*block_sparse_moe.gate*",
    "*linear_attn.conv1d*",
    "*self_attention.conv1d*",
    "*linear_attn.in_proj_a*",
    "*linear_attn.in_proj_b*",
    "*lm_head*",
    "*mixer.conv1d*",
    "*mlp.gate.*",
    "*mlp.shared_expert_gate.*",
    "*output_layer*",
    "*proj_out.*",
    "*router*",
    "mtp.*",
    "output.*",
    "*embed_vision*",
    "*vision_tower*",
    "*visual*",
    "*vision_model*",
    "*multi_modal_projector*",
];

/// Classes of modules that are never quantized.
const CLASSES_OFF: &[&str] = &["nn.BatchNorm1d", "nn.BatchNorm2d", "nn.BatchNorm3d", "nn.LeakyReLU", "nn.Embedding"];

/// Attention and latent projections of Mamba-MoE models.
pub(super) const ATTENTION_AND_LATENT: &[&str] = &[
    "*fc1_latent_proj*",
    "*fc2_latent_proj*",
    "*q_proj*",
    "*k_proj*",
    "*v_proj*",
    "*o_proj*",
    "*self_attention.linear_qkv*",
    "*self_attention.linear_proj*",
];

/// The projections of Mamba mixers.
pub(super) const MIXER: &[&str] = &["*mixer.in_proj*", "*mixer.out_proj*"];

impl Part {
    /// Its entries.
    pub(super) fn entries(self) -> Vec<Entry> {
        match self {
            Self::Linears { scope, weight, input } => {
                let weight: Vec<_> = weight.iter().map(|format| format.attributes()).collect();
                let of = |modules: &&str| {
                    let inputs = format!("{modules}input_quantizer");
                    let inputs = match input {
                        Input::To(format) => Some(Entry::on(inputs, vec![format.attributes()])),
                        Input::Off => Some(Entry::off(inputs)),
                        Input::Unnamed => None,
                    };
                    [Some(Entry::on(format!("{modules}weight_quantizer"), weight.clone())), inputs]
                };
                scope.iter().flat_map(of).flatten().collect()
            }
            Self::Cache(format, kind) => kind.entries(&format.attributes()),
            Self::Off(globs) => globs.iter().map(|glob| Entry::off(*glob)).collect(),
            Self::Standard => standard_off(),
            Self::Attend => {
                let fp8 = |glob: &str| Entry::on(glob, vec![Format::Fp8.attributes()]);
                let attended = ["*[qkv]_bmm_quantizer", "*softmax_quantizer", "*p_bmm_quantizer"];
                let outputs = "transformer_blocks*bmm2_output_quantizer";
                let off = [Entry::off("*output_quantizer")];
                off.into_iter().chain(attended.map(fp8)).chain([fp8(outputs)]).collect()
            }
        }
    }
}

/// The entries that end most configs.
fn standard_off() -> Vec<Entry> {
    let names = STANDARD_OFF.iter().map(|glob| Entry::off(*glob));
    names
        .chain(CLASSES_OFF.iter().map(|class| Entry { parent_class: Some((*class).into()), ..Entry::off("*") }))
        .collect()
}

/// Whether `entry` is one of those that switch off what few models have, so that it may well match nothing.
pub(super) fn is_routine(entry: &Entry) -> bool {
    let name = entry.quantizer_name.as_str();
    let listed = [STANDARD_OFF, ATTENTION_AND_LATENT, MIXER].iter().any(|list| list.contains(&name));
    entry.cfg.is_empty() && !entry.enable && (listed || entry.parent_class.is_some())
}

impl Kv {
    fn entries(self, attributes: &Attributes) -> Vec<Entry> {
        let cache = |attributes: Attributes| Entry::on("*[kv]_bmm_quantizer", vec![attributes]);
        let attributes = attributes.clone();
        match self {
            Self::Plain => vec![cache(attributes)],
            Self::Cast => vec![cache(Attributes { use_constant_amax: true, ..attributes })],
            Self::Affine => {
                let bias = Bias { axes: vec![-2, -4], dynamic: Some(false), method: None };
                vec![cache(attributes.clone()), cache(Attributes { bias: Some(bias), ..attributes })]
            }
            Self::Rotate => {
                let queries = Attributes { rotate: true, ..Attributes::default() };
                let keys = Attributes { rotate: true, ..attributes.clone() };
                vec![
                    Entry { enable: false, ..Entry::on("*q_bmm_quantizer", vec![queries]) },
                    Entry::on("*k_bmm_quantizer", vec![keys]),
                    Entry::on("*v_bmm_quantizer", vec![attributes]),
                ]
            }
        }
    }
}

impl Stated {
    pub(super) fn plain(self) -> Plain {
        match self {
            Self::None => Plain::None,
            Self::Name(name) => Plain::str(name),
            Self::Settings(method, settings) => {
                let settings = settings.iter().map(|&(name, setting)| (name, setting.plain()));
                Plain::dict([("method", Plain::str(method))].into_iter().chain(settings))
            }
        }
    }
}

impl Setting {
    fn plain(self) -> Plain {
        match self {
            Self::Float(value) => Plain::Float(value),
            Self::Int(value) => Plain::Int(value),
            Self::Bool(value) => Plain::Bool(value),
            Self::Text(value) => Plain::str(value),
            Self::Map(settings) => Plain::dict(settings.iter().map(|&(name, setting)| (name, setting.plain()))),
        }
    }
}

impl Format {
    fn attributes(self) -> Attributes {
        let bits = |num_bits| Attributes { num_bits, ..Attributes::default() };
        let float = |exponent, mantissa| bits(NumBits::Float(exponent, mantissa));
        let last = |block, dynamic, scale_bits| BlockSizes {
            axes: vec![(-1, Some(block))],
            dynamic: Some(dynamic),
            scale_bits,
            four_over_six: None,
        };
        let mx = |attributes: Attributes| Attributes {
            block_sizes: Some(last(32, true, Some(NumBits::Float(8, 0)))),
            ..attributes
        };
        let nvfp4 = |block, dynamic| Attributes {
            block_sizes: Some(last(block, dynamic, Some(NumBits::Float(4, 3)))),
            ..float(2, 1)
        };
        match self {
            Self::Fp8 => float(4, 3),
            Self::Fp8Channel => Attributes { axis: Some(0), ..float(4, 3) },
            Self::Fp8Token => {
                let rows = BlockSizes { axes: vec![(-1, None)], ..BlockSizes::default() };
                Attributes { dynamic: true, block_sizes: Some(rows), ..float(4, 3) }
            }
            Self::Fp8Square => {
                let squares = BlockSizes { axes: vec![(-1, Some(128)), (-2, Some(128))], ..BlockSizes::default() };
                Attributes { block_sizes: Some(squares), ..float(4, 3) }
            }
            Self::Int8 => bits(NumBits::Int(8)),
            Self::Int8Channel => Attributes { axis: Some(0), ..bits(NumBits::Int(8)) },
            Self::Int4 => Attributes { block_sizes: Some(last(128, false, None)), ..bits(NumBits::Int(4)) },
            // The bits that only the search for mixed precision reads are stated for blocks of 16 with dynamic scales.
            Self::Nvfp4 => Attributes { effective_bits: Some(4.5), ..nvfp4(16, true) },
            Self::Nvfp4Uncounted => nvfp4(16, true),
            // 6 * 448, the largest magnitudes of elements and scales.
            Self::Nvfp4Unscaled => Attributes { constant_amax: Some(2688.0), ..Self::Nvfp4.attributes() },
            Self::Nvfp4Wide => nvfp4(32, true),
            Self::Nvfp4Static => nvfp4(16, false),
            Self::Nvfp4FourOverSix => {
                let mut attributes = nvfp4(16, false);
                if let Some(blocks) = &mut attributes.block_sizes {
                    blocks.four_over_six = Some(true);
                }
                attributes
            }
            Self::Mxfp8 => mx(float(4, 3)),
            Self::Mxfp6 => mx(float(3, 2)),
            Self::Mxfp4 => mx(float(2, 1)),
            Self::Mxint8 => mx(bits(NumBits::Int(8))),
        }
    }
}
