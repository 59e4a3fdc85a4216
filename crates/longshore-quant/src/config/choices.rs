//! The configs that have a name, each put together from shared parts.

use super::algorithm::Algorithm;
use super::plain::Plain;
use super::{ConfigError, Entry, QuantConfig};
use crate::{Attributes, Bias, BlockSizes, NumBits};

/// A config that [`QuantConfig::named`] knows.
#[derive(Debug)]
pub struct Choice {
    /// ModelOpt's name, e.g. `FP8_DEFAULT_CFG`.
    pub name: &'static str,
    /// Other names: those of older scripts.
    pub aliases: &'static [&'static str],
    /// Whether it quantizes only the KV cache, to be added to another config.
    pub kv_cache: bool,
    parts: Parts,
    algorithm: Stated,
}

/// What a tensor is quantized to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Fp8,
    Fp8Channel,
    Fp8Token,
    Fp8Square,
    Int8,
    Int8Channel,
    Int4,
    Nvfp4,
    Nvfp4Wide,
    Nvfp4Static,
    Nvfp4FourOverSix,
    Mxfp8,
    Mxfp6,
    Mxfp4,
    Mxint8,
}

use Format::{
    Fp8, Fp8Channel, Fp8Square, Fp8Token, Int4, Int8, Int8Channel, Mxfp4, Mxfp6, Mxfp8, Mxint8, Nvfp4,
    Nvfp4FourOverSix, Nvfp4Static, Nvfp4Wide,
};

/// What inputs are quantized to.
#[derive(Clone, Copy, Debug)]
enum Input {
    To(Format),
    /// Switched off by an entry of its own.
    Off,
    /// Not named: off by the first entry.
    Unnamed,
}

/// What follows the formats.
#[derive(Clone, Copy, Debug)]
enum Tail {
    /// [`STANDARD_OFF`]
    Standard,
    /// [`ATTENTION_AND_LATENT`]
    Attention,
    /// The projections of Mamba mixers.
    Mixer,
    /// Attention itself in FP8.
    Attend,
}

use Tail::{Attend, Attention, Mixer, Standard};

#[derive(Clone, Copy, Debug)]
enum Parts {
    /// All off, then weights (more than one format: one after the other) and inputs of the modules in `scope`, then `tail`.
    Model { scope: &'static [&'static str], weight: &'static [Format], input: Input, tail: &'static [Tail] },
    /// Keys and values.
    Kv(Format, Kv),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kv {
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
enum Stated {
    None,
    Name(&'static str),
    Settings(&'static str, &'static [(&'static str, Number)]),
}

#[derive(Clone, Copy, Debug)]
enum Number {
    Float(f64),
    Int(i64),
    Bool(bool),
}

const MAX: Stated = Stated::Name("max");
const ALL: &[&str] = &["*"];
const DENSE: &[&str] = &["*mlp*", "*block_sparse_moe*"];

/// Modules that no config but those for attention quantizes: routers, gates, convolutions, heads, vision.
pub(super) const STANDARD_OFF: &[&str] = &[
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
const ATTENTION_AND_LATENT: &[&str] = &[
    "*fc1_latent_proj*",
    "*fc2_latent_proj*",
    "*q_proj*",
    "*k_proj*",
    "*v_proj*",
    "*o_proj*",
    "*self_attention.linear_qkv*",
    "*self_attention.linear_proj*",
];

const MIXER: &[&str] = &["*mixer.in_proj*", "*mixer.out_proj*"];

const fn model(
    name: &'static str,
    aliases: &'static [&'static str],
    weight: &'static [Format],
    input: Input,
    algorithm: Stated,
) -> Choice {
    scoped(name, aliases, ALL, weight, input, &[Standard], algorithm)
}

const fn scoped(
    name: &'static str,
    aliases: &'static [&'static str],
    scope: &'static [&'static str],
    weight: &'static [Format],
    input: Input,
    tail: &'static [Tail],
    algorithm: Stated,
) -> Choice {
    Choice { name, aliases, kv_cache: false, parts: Parts::Model { scope, weight, input, tail }, algorithm }
}

const fn kv(name: &'static str, aliases: &'static [&'static str], format: Format, kind: Kv) -> Choice {
    Choice { name, aliases, kv_cache: true, parts: Parts::Kv(format, kind), algorithm: MAX }
}

/// The 39 configs of ModelOpt's `mtq.config.choices`, and the two KV caches with a constant amax.
const CHOICES: &[Choice] = &[
    model("FP8_DEFAULT_CFG", &[], &[Fp8], Input::To(Fp8), MAX),
    model("FP8_PER_CHANNEL_PER_TOKEN_CFG", &["fp8_pc_pt"], &[Fp8Channel], Input::To(Fp8Token), MAX),
    model("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", &["fp8_pb_wo"], &[Fp8Square], Input::Off, MAX),
    model("INT8_DEFAULT_CFG", &[], &[Int8Channel], Input::To(Int8), MAX),
    model("INT8_SMOOTHQUANT_CFG", &["int8_sq"], &[Int8Channel], Input::To(Int8), Stated::Name("smoothquant")),
    model("INT8_WEIGHT_ONLY_CFG", &["int8_wo"], &[Int8Channel], Input::Off, MAX),
    model("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", &["int4_wo"], &[Int4], Input::Off, MAX),
    model(
        "INT4_AWQ_CFG",
        &[],
        &[Int4],
        Input::Off,
        Stated::Settings("awq_lite", &[("alpha_step", Number::Float(0.1))]),
    ),
    model("W4A8_AWQ_BETA_CFG", &["w4a8_awq"], &[Int4, Fp8], Input::To(Fp8), Stated::Name("awq_lite")),
    model("NVFP4_DEFAULT_CFG", &[], &[Nvfp4], Input::To(Nvfp4), MAX),
    model("NVFP4_AWQ_LITE_CFG", &["nvfp4_awq"], &[Nvfp4], Input::To(Nvfp4), Stated::Name("awq_lite")),
    model("NVFP4_AWQ_CLIP_CFG", &[], &[Nvfp4], Input::To(Nvfp4), Stated::Settings("awq_clip", &[])),
    model(
        "NVFP4_AWQ_FULL_CFG",
        &[],
        &[Nvfp4],
        Input::To(Nvfp4),
        Stated::Settings("awq_full", &[("alpha_step", Number::Float(0.1))]),
    ),
    model(
        "NVFP4_SVDQUANT_DEFAULT_CFG",
        &[],
        &[Nvfp4],
        Input::To(Nvfp4),
        Stated::Settings("svdquant", &[("lowrank", Number::Int(32))]),
    ),
    model(
        "NVFP4_FOUR_OVER_SIX_CFG",
        &["nvfp4_4o6"],
        &[Nvfp4FourOverSix],
        Input::To(Nvfp4),
        Stated::Settings(
            "mse",
            &[
                ("fp8_scale_sweep", Number::Bool(false)),
                ("start_multiplier", Number::Float(1.0)),
                ("stop_multiplier", Number::Float(1.5)),
                ("step_size", Number::Float(0.5)),
            ],
        ),
    ),
    model(
        "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG",
        &["nvfp4_mse"],
        &[Nvfp4Static],
        Input::To(Nvfp4),
        Stated::Settings("mse", &[("fp8_scale_sweep", Number::Bool(true))]),
    ),
    model(
        "NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG",
        &["nvfp4_local_hessian"],
        &[Nvfp4Static],
        Input::To(Nvfp4),
        Stated::Settings("local_hessian", &[("fp8_scale_sweep", Number::Bool(true))]),
    ),
    model("W4A16_NVFP4_CFG", &[], &[Nvfp4], Input::Unnamed, MAX),
    model("W4A8_NVFP4_FP8_CFG", &[], &[Nvfp4Wide], Input::To(Fp8), MAX),
    scoped("NVFP4_FP8_MHA_CONFIG", &[], ALL, &[Nvfp4], Input::To(Nvfp4), &[Attend], MAX),
    scoped(
        "NVFP4_MLP_ONLY_CFG",
        &[],
        &["*mlp*", "*.mixer.up_proj.", "*.mixer.down_proj.", "*block_sparse_moe*", "*.experts.*"],
        &[Nvfp4],
        Input::To(Nvfp4),
        &[Standard],
        MAX,
    ),
    scoped(
        "NVFP4_EXPERTS_ONLY_CFG",
        &[],
        &["*block_sparse_moe*", "*.experts.*"],
        &[Nvfp4],
        Input::To(Nvfp4),
        &[Standard],
        MAX,
    ),
    scoped(
        "NVFP4_OMLP_ONLY_CFG",
        &[],
        &["*o_proj*", "*mlp*", "*.mixer.up_proj.", "*.mixer.down_proj.", "*block_sparse_moe*"],
        &[Nvfp4],
        Input::To(Nvfp4),
        &[Standard],
        MAX,
    ),
    scoped("NVFP4_MLP_WEIGHT_ONLY_CFG", &[], DENSE, &[Nvfp4Wide], Input::Unnamed, &[Standard], MAX),
    model("MXFP8_DEFAULT_CFG", &[], &[Mxfp8], Input::To(Mxfp8), Stated::None),
    model("MXFP6_DEFAULT_CFG", &[], &[Mxfp6], Input::To(Mxfp6), Stated::None),
    model("MXFP4_DEFAULT_CFG", &[], &[Mxfp4], Input::To(Mxfp4), Stated::None),
    model("MXINT8_DEFAULT_CFG", &[], &[Mxint8], Input::To(Mxint8), Stated::None),
    model("W4A8_MXFP4_FP8_CFG", &[], &[Mxfp4], Input::To(Fp8), Stated::None),
    scoped("MXFP4_MLP_WEIGHT_ONLY_CFG", &[], DENSE, &[Mxfp4], Input::Unnamed, &[Standard], Stated::None),
    scoped("MAMBA_MOE_FP8_AGGRESSIVE_CFG", &[], ALL, &[Fp8], Input::To(Fp8), &[Standard, Attention], MAX),
    scoped("MAMBA_MOE_FP8_CONSERVATIVE_CFG", &[], ALL, &[Fp8], Input::To(Fp8), &[Standard, Attention, Mixer], MAX),
    scoped("MAMBA_MOE_NVFP4_AGGRESSIVE_CFG", &[], ALL, &[Nvfp4], Input::To(Nvfp4), &[Standard, Attention], MAX),
    scoped(
        "MAMBA_MOE_NVFP4_CONSERVATIVE_CFG",
        &[],
        ALL,
        &[Nvfp4],
        Input::To(Nvfp4),
        &[Standard, Attention, Mixer],
        MAX,
    ),
    kv("FP8_KV_CFG", &[], Fp8, Kv::Plain),
    kv("FP8_AFFINE_KV_CFG", &[], Fp8, Kv::Affine),
    kv("NVFP4_KV_CFG", &[], Nvfp4, Kv::Plain),
    kv("NVFP4_AFFINE_KV_CFG", &[], Nvfp4, Kv::Affine),
    kv("NVFP4_KV_ROTATE_CFG", &["nvfp4_rotate_kv"], Nvfp4, Kv::Rotate),
    kv("FP8_CAST_KV_CFG", &[], Fp8, Kv::Cast),
    kv("NVFP4_CAST_KV_CFG", &[], Nvfp4, Kv::Cast),
];

/// Every config that has a name, those for the KV cache last.
pub fn choices() -> &'static [Choice] {
    CHOICES
}

impl Choice {
    /// The name users type: ModelOpt's in lower case, without `_default` and `_cfg` at its end.
    pub fn short(&self) -> String {
        let name = self.name.trim_end_matches("_CFG").trim_end_matches("_CONFIG");
        name.trim_end_matches("_DEFAULT").to_ascii_lowercase()
    }

    /// The name for `--kv-cache`: `fp8`, `nvfp4_rotate`; `None` where the config is for weights.
    pub fn kv_short(&self) -> Option<String> {
        self.kv_cache.then(|| self.short().replace("_kv", ""))
    }

    /// The config.
    pub fn config(&self) -> Result<QuantConfig, ConfigError> {
        let stated = self.algorithm.plain();
        let algorithm = Algorithm::list(&stated)?;
        Ok(QuantConfig {
            name: self.name.to_owned(),
            entries: self.entries(),
            algorithm,
            stated_algorithm: stated,
            effective_bits: None,
        })
    }

    /// The entries of the config.
    pub fn entries(&self) -> Vec<Entry> {
        let (scope, weight, input, tail) = match self.parts {
            Parts::Kv(format, kind) => return kind.entries(&format.attributes()),
            Parts::Model { scope, weight, input, tail } => (scope, weight, input, tail),
        };
        let mut entries = vec![Entry::off("*")];
        for modules in scope {
            let weight = weight.iter().map(|format| format.attributes()).collect();
            entries.push(Entry::on(format!("{modules}weight_quantizer"), weight));
            let inputs = format!("{modules}input_quantizer");
            match input {
                Input::To(format) => entries.push(Entry::on(inputs, vec![format.attributes()])),
                Input::Off => entries.push(Entry::off(inputs)),
                Input::Unnamed => {}
            }
        }
        entries.extend(tail.iter().flat_map(|tail| tail.entries()));
        entries
    }
}

impl Tail {
    fn entries(self) -> Vec<Entry> {
        match self {
            Self::Standard => standard_off(),
            Self::Attention => ATTENTION_AND_LATENT.iter().map(|glob| Entry::off(*glob)).collect(),
            Self::Mixer => MIXER.iter().map(|glob| Entry::off(*glob)).collect(),
            Self::Attend => {
                let fp8 = |glob: &str| Entry::on(glob, vec![Fp8.attributes()]);
                let attended = ["*[qkv]_bmm_quantizer", "*softmax_quantizer", "*p_bmm_quantizer"];
                let outputs = "transformer_blocks*bmm2_output_quantizer";
                let off = [Entry::off("*output_quantizer")];
                off.into_iter().chain(attended.map(fp8)).chain([fp8(outputs)]).collect()
            }
        }
    }
}

/// The entries that end most configs.
pub(super) fn standard_off() -> Vec<Entry> {
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
    fn plain(self) -> Plain {
        match self {
            Self::None => Plain::None,
            Self::Name(name) => Plain::str(name),
            Self::Settings(method, settings) => {
                let settings = settings.iter().map(|&(name, number)| match number {
                    Number::Float(value) => (name, Plain::Float(value)),
                    Number::Int(value) => (name, Plain::Int(value)),
                    Number::Bool(value) => (name, Plain::Bool(value)),
                });
                Plain::dict([("method", Plain::str(method))].into_iter().chain(settings))
            }
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
