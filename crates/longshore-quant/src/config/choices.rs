//! The configs that have a name, each put together from shared parts.

use super::parts::Format::{
    Fp8, Fp8Channel, Fp8Square, Fp8Token, Int4, Int8, Int8Channel, Mxfp4, Mxfp6, Mxfp8, Mxint8, Nvfp4,
    Nvfp4FourOverSix, Nvfp4Static, Nvfp4Wide,
};
use super::parts::Part::{Attend, Standard};
use super::parts::{
    ALL, ATTENTION_AND_LATENT, DENSE, FOUR_OVER_SIX, Format, Input, Kv, MAX, MIXER, MLP, Part, Setting, Stated,
};
use super::{ConfigError, Entry, QuantConfig};

/// A config that [`QuantConfig::named`] knows.
#[derive(Debug)]
pub struct Choice {
    /// ModelOpt's name, e.g. `FP8_DEFAULT_CFG`.
    pub name: &'static str,
    /// Other names: those of older scripts.
    pub aliases: &'static [&'static str],
    /// Whether it quantizes only the KV cache, to be added to another config.
    pub kv_cache: bool,
    first: Part,
    rest: &'static [Part],
    algorithm: Stated,
}

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
    rest: &'static [Part],
    algorithm: Stated,
) -> Choice {
    let first = Part::Linears { scope, weight, input };
    Choice { name, aliases, kv_cache: false, first, rest, algorithm }
}

const fn kv(name: &'static str, aliases: &'static [&'static str], format: Format, kind: Kv) -> Choice {
    Choice { name, aliases, kv_cache: true, first: Part::Cache(format, kind), rest: &[], algorithm: MAX }
}

const ATTENTION: Part = Part::Off(ATTENTION_AND_LATENT);
const MAMBA: Part = Part::Off(MIXER);

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
        Stated::Settings("awq_lite", &[("alpha_step", Setting::Float(0.1))]),
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
        Stated::Settings("awq_full", &[("alpha_step", Setting::Float(0.1))]),
    ),
    model(
        "NVFP4_SVDQUANT_DEFAULT_CFG",
        &[],
        &[Nvfp4],
        Input::To(Nvfp4),
        Stated::Settings("svdquant", &[("lowrank", Setting::Int(32))]),
    ),
    model("NVFP4_FOUR_OVER_SIX_CFG", &["nvfp4_4o6"], &[Nvfp4FourOverSix], Input::To(Nvfp4), FOUR_OVER_SIX),
    model(
        "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG",
        &["nvfp4_mse"],
        &[Nvfp4Static],
        Input::To(Nvfp4),
        Stated::Settings("mse", &[("fp8_scale_sweep", Setting::Bool(true))]),
    ),
    model(
        "NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG",
        &["nvfp4_local_hessian"],
        &[Nvfp4Static],
        Input::To(Nvfp4),
        Stated::Settings("local_hessian", &[("fp8_scale_sweep", Setting::Bool(true))]),
    ),
    model("W4A16_NVFP4_CFG", &[], &[Nvfp4], Input::Unnamed, MAX),
    model("W4A8_NVFP4_FP8_CFG", &[], &[Nvfp4Wide], Input::To(Fp8), MAX),
    scoped("NVFP4_FP8_MHA_CONFIG", &[], ALL, &[Nvfp4], Input::To(Nvfp4), &[Attend], MAX),
    scoped("NVFP4_MLP_ONLY_CFG", &[], MLP, &[Nvfp4], Input::To(Nvfp4), &[Standard], MAX),
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
    scoped("MAMBA_MOE_FP8_AGGRESSIVE_CFG", &[], ALL, &[Fp8], Input::To(Fp8), &[Standard, ATTENTION], MAX),
    scoped("MAMBA_MOE_FP8_CONSERVATIVE_CFG", &[], ALL, &[Fp8], Input::To(Fp8), &[Standard, ATTENTION, MAMBA], MAX),
    scoped("MAMBA_MOE_NVFP4_AGGRESSIVE_CFG", &[], ALL, &[Nvfp4], Input::To(Nvfp4), &[Standard, ATTENTION], MAX),
    scoped(
        "MAMBA_MOE_NVFP4_CONSERVATIVE_CFG",
        &[],
        ALL,
        &[Nvfp4],
        Input::To(Nvfp4),
        &[Standard, ATTENTION, MAMBA],
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
        QuantConfig::stated(self.name, self.entries(), self.algorithm)
    }

    /// The entries of the config.
    pub fn entries(&self) -> Vec<Entry> {
        let off = (!self.kv_cache).then(|| Entry::off("*"));
        let parts = [self.first].into_iter().chain(self.rest.iter().copied());
        off.into_iter().chain(parts.flat_map(Part::entries)).collect()
    }
}
