//! Recipes of ModelOpt 0.47 by name: what its `load_recipe` gives, put together from the parts of our own configs.
//!
//! These are the general ones for PTQ and those of Nemotron-3 models. Files go before them: see [`super::recipe`].

use super::parts::Format::{
    Fp8, Int4, Mxfp4, Nvfp4, Nvfp4FourOverSix, Nvfp4Static, Nvfp4Uncounted, Nvfp4Unscaled, Nvfp4Wide,
};
use super::parts::Part::{Cache, Off, Standard};
use super::parts::{ALL, DENSE, FOUR_OVER_SIX, Format, Input, Kv, MAX, MLP, Part, Setting, Stated};
use super::{ConfigError, Entry, QuantConfig, folded};

/// A recipe that needs no file.
#[derive(Debug)]
pub struct BuiltIn {
    /// ModelOpt's name of it: the path below `modelopt_recipes`, without `.yaml`.
    pub name: &'static str,
    /// What releases before 0.47 called it.
    pub older: &'static [&'static str],
    parts: &'static [Part],
    algorithm: Stated,
}

const fn recipe(name: &'static str, parts: &'static [Part], algorithm: Stated) -> BuiltIn {
    BuiltIn { name, older: &[], parts, algorithm }
}

impl BuiltIn {
    const fn formerly(self, older: &'static [&'static str]) -> Self {
        Self { older, ..self }
    }

    /// The recipe called `name`, with or without `.yaml`, in any case, `-` and `_` alike.
    pub(super) fn named(name: &str) -> Result<&'static Self, ConfigError> {
        let wanted = folded(name.trim_end_matches(".yaml").trim_end_matches(".yml"));
        // ModelOpt 0.46 kept the models' recipes there; 0.47 still takes such names.
        let wanted = wanted.strip_prefix("huggingface/").filter(|rest| rest.starts_with("models/")).unwrap_or(&wanted);
        let is = |known: &str| folded(known) == wanted;
        if let Some(found) = BUILT_INS.iter().find(|recipe| is(recipe.name) || recipe.older.iter().any(|name| is(name)))
        {
            return Ok(found);
        }
        match OTHERS.iter().find(|(_, names)| names.iter().any(|name| is(name))) {
            Some((why, _)) => Err(ConfigError::NotBuiltIn(name.to_owned(), why)),
            None => Err(ConfigError::NoRecipe(name.to_owned())),
        }
    }

    /// The config.
    pub fn config(&self) -> Result<QuantConfig, ConfigError> {
        let parts = self.parts.iter().copied().flat_map(Part::entries);
        QuantConfig::stated(self.name, [Entry::off("*")].into_iter().chain(parts).collect(), self.algorithm)
    }
}

/// Every recipe that is built in.
pub fn built_ins() -> &'static [BuiltIn] {
    BUILT_INS
}

const fn linears(scope: &'static [&'static str], weight: &'static [Format], input: Input) -> Part {
    Part::Linears { scope, weight, input }
}

const W4A4: Part = linears(ALL, &[Nvfp4], Input::To(Nvfp4));
const W4A16: Part = linears(ALL, &[Nvfp4], Input::Unnamed);
const W8A8: Part = linears(ALL, &[Fp8], Input::To(Fp8));

const EXPERTS: &[&str] = &["*.experts.*", "*block_sparse_moe*"];
const MLP_AND_OUTPUT: &[&str] = &["*mlp*", "*.mixer.up_proj.", "*.mixer.down_proj.", "*block_sparse_moe*", "*o_proj*"];

const EXPERTS_W4A4: Part = linears(EXPERTS, &[Nvfp4], Input::To(Nvfp4));
const MLP_W4A4: Part = linears(MLP, &[Nvfp4], Input::To(Nvfp4));
const MLP_AND_OUTPUT_W4A4: Part = linears(MLP_AND_OUTPUT, &[Nvfp4], Input::To(Nvfp4));

const KV_FP8: Part = Cache(Fp8, Kv::Plain);
const KV_FP8_CAST: Part = Cache(Fp8, Kv::Cast);
const KV_NVFP4_CAST: Part = Cache(Nvfp4, Kv::Cast);

const AT_ONCE: (&str, Setting) = ("layerwise", Setting::Map(&[("enable", Setting::Bool(false))]));
const SWEEP: (&str, Setting) = ("fp8_scale_sweep", Setting::Bool(true));
const MAX_AT_ONCE: Stated = Stated::Settings("max", &[AT_ONCE]);
const MSE_AT_ONCE: Stated = Stated::Settings("mse", &[SWEEP, AT_ONCE]);

// Nemotron-3: each module by its name in transformers and in Megatron.
const ROUTED: &[&str] = &["*mixer.experts.*", "*mlp.experts*"];
const SHARED: &[&str] = &["*mixer.shared_experts.*", "*mlp.shared_experts*"];
const MAMBA: &[&str] = &["*mixer.in_proj*", "*mixer.out_proj*"];
const SHARED_W8A8: Part = linears(SHARED, &[Fp8], Input::To(Fp8));
const MAMBA_W8A8: Part = linears(MAMBA, &[Fp8], Input::To(Fp8));

const BUILT_INS: &[BuiltIn] = &[
    recipe("general/ptq/fp8_default-kv_fp8", &[W8A8, KV_FP8, Standard], MAX)
        .formerly(&["general/ptq/fp8_default-fp8_kv"]),
    recipe("general/ptq/fp8_default-kv_fp8_cast", &[W8A8, KV_FP8_CAST, Standard], MAX),
    recipe("general/ptq/int4_blockwise_weight_only", &[linears(ALL, &[Int4], Input::Off), Standard], MAX),
    recipe("general/ptq/mxfp4_mlp_weight_only", &[linears(DENSE, &[Mxfp4], Input::Unnamed), Standard], Stated::None),
    recipe(
        "general/ptq/nvfp4_act_headroom-kv_fp8_cast",
        &[W4A4, KV_FP8_CAST, Standard],
        Stated::Settings(
            "nvfp4_act_headroom",
            &[
                ("anchor_percentile", Setting::Int(1)),
                ("upper_percentile", Setting::Float(99.99)),
                ("rho", Setting::Int(16384)),
                ("weight_scale_algorithm", Setting::Map(&[("method", Setting::Text("max"))])),
            ],
        ),
    ),
    recipe("general/ptq/nvfp4_default-kv_fp8", &[W4A4, KV_FP8, Standard], MAX)
        .formerly(&["general/ptq/nvfp4_default-fp8_kv"]),
    recipe("general/ptq/nvfp4_default-kv_fp8_cast", &[W4A4, KV_FP8_CAST, Standard], MAX),
    recipe(
        "general/ptq/nvfp4_default-kv_none-gptq",
        &[linears(ALL, &[Nvfp4Static], Input::To(Nvfp4)), Off(&["*[kv]_bmm_quantizer"]), Standard],
        Stated::Settings(
            "gptq",
            &[(
                "layerwise",
                Setting::Map(&[
                    ("enable", Setting::Bool(true)),
                    ("checkpoint_dir", Setting::Text("output/layerwise_ckpts/")),
                ]),
            )],
        ),
    )
    .formerly(&["general/ptq/nvfp4_default-none_kv_gptq"]),
    recipe("general/ptq/nvfp4_default-kv_nvfp4_cast", &[W4A4, KV_NVFP4_CAST, Standard], MAX),
    recipe("general/ptq/nvfp4_experts_only-kv_fp8", &[EXPERTS_W4A4, KV_FP8, Standard], MAX_AT_ONCE)
        .formerly(&["general/ptq/nvfp4_experts_only-fp8_kv"]),
    recipe("general/ptq/nvfp4_experts_only-kv_fp8_cast", &[EXPERTS_W4A4, KV_FP8_CAST, Standard], MAX_AT_ONCE),
    recipe(
        "general/ptq/nvfp4_experts_only-kv_fp8_layerwise",
        &[EXPERTS_W4A4, KV_FP8, Standard],
        Stated::Settings("max", &[("layerwise", Setting::Map(&[("enable", Setting::Bool(true))]))]),
    ),
    recipe(
        "general/ptq/nvfp4_experts_only-kv_fp8_layerwise_offload",
        &[EXPERTS_W4A4, KV_FP8, Standard],
        Stated::Settings(
            "max",
            &[(
                "layerwise",
                Setting::Map(&[("enable", Setting::Bool(true)), ("calib_mutates_weights", Setting::Bool(false))]),
            )],
        ),
    ),
    recipe(
        "general/ptq/nvfp4_experts_only_input_scale1-kv_fp8_cast",
        &[linears(EXPERTS, &[Nvfp4], Input::To(Nvfp4Unscaled)), KV_FP8_CAST, Standard],
        Stated::Settings("max", &[AT_ONCE, ("skip_forward_without_activation_calib", Setting::Bool(true))]),
    ),
    recipe(
        "general/ptq/nvfp4_experts_only_mse-kv_fp8_cast",
        &[linears(EXPERTS, &[Nvfp4Static], Input::To(Nvfp4)), KV_FP8_CAST, Standard],
        MSE_AT_ONCE,
    ),
    recipe("general/ptq/nvfp4_mlp_only-kv_fp8", &[MLP_W4A4, KV_FP8, Standard], MAX)
        .formerly(&["general/ptq/nvfp4_mlp_only-fp8_kv"]),
    recipe("general/ptq/nvfp4_mlp_only-kv_fp8_cast", &[MLP_W4A4, KV_FP8_CAST, Standard], MAX),
    recipe(
        "general/ptq/nvfp4_mlp_only-novit-kv_fp8",
        &[MLP_W4A4, KV_FP8, Standard, Off(&["*visual*", "*vision_tower*"])],
        MAX,
    ),
    recipe(
        "general/ptq/nvfp4_mlp_only_mse-kv_fp8_cast",
        &[linears(MLP, &[Nvfp4Static], Input::To(Nvfp4)), KV_FP8_CAST, Standard],
        MSE_AT_ONCE,
    ),
    recipe("general/ptq/nvfp4_mlp_weight_only", &[linears(DENSE, &[Nvfp4Wide], Input::Unnamed), Standard], MAX),
    recipe("general/ptq/nvfp4_omlp_only-kv_fp8", &[MLP_AND_OUTPUT_W4A4, KV_FP8, Standard], MAX)
        .formerly(&["general/ptq/nvfp4_omlp_only-fp8_kv"]),
    recipe("general/ptq/nvfp4_omlp_only-kv_fp8_cast", &[MLP_AND_OUTPUT_W4A4, KV_FP8_CAST, Standard], MAX),
    recipe("general/ptq/nvfp4_weight_only-kv_fp16", &[W4A16, Standard], MAX),
    recipe("general/ptq/nvfp4_weight_only-kv_fp8_cast", &[W4A16, KV_FP8_CAST, Standard], MAX),
    recipe(
        "models/nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16/ptq/nvfp4_w4a16",
        &[
            W4A4,
            linears(
                &[
                    "*layers.1.mixer.down_proj*",
                    "*layers.3.mixer.down_proj*",
                    "*layers.5.mixer.down_proj*",
                    "*layers.8.mixer.down_proj*",
                    "*layers.10.mixer.down_proj*",
                    "*layers.18.mixer.down_proj*",
                    "*layers.25.mixer.down_proj*",
                    "*layers.33.mixer.down_proj*",
                    "*layers.41.mixer.down_proj*",
                ],
                &[Fp8],
                Input::To(Fp8),
            ),
            Standard,
            linears(&["*lm_head*"], &[Fp8], Input::Unnamed),
            linears(&["*embeddings*"], &[Nvfp4], Input::Unnamed),
        ],
        MAX,
    )
    .formerly(&[
        "models/Nemotron-H/Nemotron-3-Nano-4B/nvfp4_w4a16",
        "models/nvidia/Nemotron-3-Nano-4B-BF16/ptq/nvfp4_w4a16",
    ]),
    recipe(
        "models/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16/ptq/nvfp4-max-calib",
        &[linears(ROUTED, &[Nvfp4Uncounted], Input::To(Nvfp4Uncounted)), SHARED_W8A8, MAMBA_W8A8, KV_FP8],
        Stated::Settings("max", &[]),
    )
    .formerly(&[
        "models/Nemotron-3-Super-120B-A12B/super-nvfp4-max-calib",
        "models/nvidia/Nemotron-3-Super-120B-A12B-BF16/ptq/nvfp4-max-calib",
    ]),
    recipe(
        "models/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16/ptq/nvfp4-mse",
        &[linears(ROUTED, &[Nvfp4Static], Input::To(Nvfp4Uncounted)), SHARED_W8A8, MAMBA_W8A8, KV_FP8],
        Stated::Settings("mse", &[SWEEP]),
    )
    .formerly(&[
        "models/Nemotron-3-Super-120B-A12B/super-nvfp4",
        "models/nvidia/Nemotron-3-Super-120B-A12B-BF16/ptq/nvfp4-mse",
    ]),
    recipe(
        "models/nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16/ptq/nvfp4-4o6",
        &[linears(ROUTED, &[Nvfp4FourOverSix], Input::To(Nvfp4)), SHARED_W8A8, MAMBA_W8A8, KV_FP8],
        FOUR_OVER_SIX,
    )
    .formerly(&["models/nvidia/Nemotron-3-Ultra-550B-A55B-BF16/ptq/nvfp4-4o6"]),
    recipe(
        "models/nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16/ptq/w4a16_nvfp4_4o6",
        &[
            linears(
                &["*mixer.experts*", "*mixer.shared_experts*", "*mlp.experts*", "*mlp.shared_experts*"],
                &[Nvfp4FourOverSix],
                Input::Unnamed,
            ),
            MAMBA_W8A8,
            KV_FP8,
            linears(&["output_layer.", "lm_head."], &[Nvfp4FourOverSix], Input::Unnamed),
            Off(&["mtp.*"]),
        ],
        FOUR_OVER_SIX,
    )
    .formerly(&["models/nvidia/Nemotron-3.5-Lightning-30B-A3B-BF16/ptq/w4a16_nvfp4_4o6"]),
];

/// ModelOpt 0.47's other recipes, and why they are not built in.
const OTHERS: &[(&str, &[&str])] = &[
    (
        "it searches for mixed precision (auto_quantize), which is not implemented",
        &[
            "general/auto_quantize/nvfp4_fp8_at_5p4bits",
            "general/auto_quantize/nvfp4_fp8_kl_div_at_5p4bits",
            "general/auto_quantize/nvfp4_mse_fp8_at_6p0bits",
            "general/auto_quantize/w4a16_nvfp4_fp8_at_6p0bits-active_moe",
            "general/auto_quantize/w4a8_awq_beta_fp8_at_6p0bits",
            "huggingface/qwen3_6_moe/auto_quantize/w4a16_nvfp4_fp8_at_6p0bits-active_moe",
            "huggingface/qwen3_6_moe/auto_quantize/w4a16_nvfp4_fp8_module_spaces_at_6p0bits-active_moe",
            "models/meta-models/Muse-Glimmer-30B/auto_quantize/w4a16_nvfp4_4o6_mixed",
        ],
    ),
    (
        "it is for quantization-aware distillation (QAD), which is not implemented",
        &[
            "general/qad/nvfp4_default-kv_fp8",
            "general/qad/nvfp4_dual_lsq-mse_init-fp8_kv",
            "general/qad/nvfp4_lsq-mse_init-fp8_kv",
        ],
    ),
    ("it distills a diffusion model, which is not implemented", &["general/distillation/dmd2_qwen_image"]),
    (
        "it is part of configs for diffusion models, which are not implemented",
        &[
            "configs/ptq/presets/diffusers/fp8",
            "configs/ptq/presets/diffusers/int8",
            "configs/ptq/presets/diffusers/nvfp4",
            "configs/ptq/presets/diffusers/nvfp4_fp8_conv",
            "configs/ptq/presets/diffusers/nvfp4_fp8_mha",
        ],
    ),
    (
        "it trains a draft model for speculative decoding, which is not implemented",
        &[
            "general/speculative_decoding/dflash",
            "general/speculative_decoding/domino",
            "general/speculative_decoding/dspark",
            "general/speculative_decoding/eagle3",
            "models/nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16/speculative_decoding/dspark_warmstart",
        ],
    ),
    (
        "it is for models of another architecture, and not built in",
        &[
            "huggingface/diffusion_gemma/ptq/nvfp4_experts_only",
            "huggingface/gemma/ptq/int8_sq-kv_fp8_cast",
            "huggingface/gemma/ptq/w4a8_awq-kv_fp8_cast",
            "huggingface/gemma4/ptq/w4a8_awq-kv_fp8_cast",
            "huggingface/minimax_m3_vl/ptq/mxfp8_nvfp4_experts",
            "huggingface/minimax_m3_vl/ptq/nvfp4_experts_only",
            "huggingface/mpt/ptq/w4a8_awq-kv_fp8_cast",
            "huggingface/nemotron_llama/ptq/fp8_output_quant_proj",
            "huggingface/nemotron_llama/ptq/nvfp4_output_quant_proj",
            "huggingface/nemotron_vl/ptq/nvfp4-kv_fp8_cast",
            "huggingface/qwen3_5/ptq/w4a16_nvfp4-fp8_attn-kv_fp8_cast",
            "huggingface/qwen3_5/ptq/w4a16_nvfp4_mse-fp8_attn-kv_fp8_cast",
            "huggingface/qwen3_5_moe/ptq/nvfp4_experts_mse-fp8_rest-kv_fp8",
            "huggingface/qwen3_5_moe/ptq/w4a16_nvfp4-fp8_attn-kv_fp8_cast",
            "huggingface/qwen3_5_moe/ptq/w4a16_nvfp4_mse-fp8_attn-kv_fp8_cast",
            "huggingface/step3p7/ptq/nvfp4_experts_only-kv_fp8_cast",
            "huggingface/step3p7/ptq/nvfp4_mlp_only-kv_fp8",
            "huggingface/vit/ptq/fp8",
            "models/deepseek-ai/DeepSeek-V4-Pro-0813/ptq/nvfp4_experts_only",
            "models/mistralai/Mistral-Medium-3.5-128B/ptq/nvfp4-max-calib",
            "models/moonshotai/Kimi-K3/ptq/nvfp4_experts-fp8_pb_attention",
            "models/stepfun-ai/Step-3.5-Flash/ptq/nvfp4-mlp-only",
        ],
    ),
];
