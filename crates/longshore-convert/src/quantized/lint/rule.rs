//! The rules, and the public sources that they were read from.
//!
//! Sources, as of 2026: `vllm-project/vllm`, `vllm/model_executor/layers/quantization/modelopt.py` ("vLLM" below);
//! `sgl-project/sglang`, `python/sglang/srt/layers/quantization/modelopt_quant.py` (as of mid-2025);
//! `NVIDIA/TensorRT-LLM`, `tensorrt_llm/quantization/{modelopt_config,mode}.py` and `tensorrt_llm/_torch/modules/linear.py`.

/// Packed weights without any quantization config: every engine takes them for plain ones and fails on their shapes.
/// ModelOpt's Megatron export does so for all formats but FP8 and NVFP4 (`unified_export_megatron.py`, `save_pretrained`).
pub const NO_CONFIG: &str = "no-config";

/// A `quant_algo` that the engine does not know. vLLM: `QUANT_ALGOS`, and for layers of mixed models
/// `ModelOptMixedPrecisionConfig.get_quant_method`; `SGLang`: `from_config` of its two configs;
/// TensorRT-LLM: `QuantAlgo`. The last two only warn, because newer versions may know more.
pub const ALGORITHM: &str = "algorithm";

/// `MIXED_PRECISION` without layers. vLLM: `ModelOptMixedPrecisionConfig._from_config`.
pub const MIXED_EMPTY: &str = "mixed-empty";

/// A field that is required where config.json has no `quantization_config`. vLLM: `ModelOptNvFp4Config._from_config`;
/// `SGLang`: `ModelOptFp4Config.from_config`, which also refuses empty ones.
pub const REQUIRED_FIELD: &str = "required-field";

/// A name in the config with control characters, which matches no module. ModelOpt 0.47 writes such
/// (`….\0backbone.pt_name_sentinel`) when it reverts the renaming of transformers 5.
pub const CONTROL_CHARACTER: &str = "control-character";

/// A cache format that config.json cannot say: vLLM (`from_config`) and TensorRT-LLM (`_kv_cache_scheme_to_algo`) take any
/// `kv_cache_scheme` but eight-bit floats for no quantization.
pub const KV_SCHEME: &str = "kv-scheme";

/// config.json and `hf_quant_config.json` disagree: vLLM believes the first (`from_config` sees it if present),
/// TensorRT-LLM the second (`warn_if_inline_quant_config_differs`).
pub const CONFIGS_DISAGREE: &str = "configs-disagree";

/// A packed weight that the config excludes. vLLM `is_layer_excluded`: equal, by pattern, and also where the excluded name
/// occurs anywhere in the module's (`model.layers.1` in `model.layers.12.…`).
pub const EXCLUDED_QUANTIZED: &str = "excluded-quantized";

/// A plain weight that the config does not exclude. vLLM: `get_quant_method` makes a quantized linear of it. Embeddings,
/// routers and convolutions take no quantization.
pub const NOT_EXCLUDED: &str = "not-excluded";

/// A packed weight without entry in `quantized_layers`. vLLM: `ModelOptMixedPrecisionConfig.get_quant_method`.
pub const MIXED_UNLISTED: &str = "mixed-unlisted";

/// A weight stored in another format than the config says; the loader's parameters have other shapes or dtypes.
/// vLLM: the `create_weights` of each method.
pub const FORMAT_MISMATCH: &str = "format-mismatch";

/// A packed weight without a scale that its format needs. vLLM: the `create_weights` of each method; a scale that is not
/// loaded keeps a filler value (`ModelOptFp8LinearMethod`: the smallest float32; experts: 1).
pub const MISSING_SCALE: &str = "missing-scale";

/// Linears that are computed as one, of which only some are excluded, or which differ in format. vLLM: `is_layer_skipped`
/// (`quant_utils.py`) and `ModelOptMixedPrecisionConfig._resolve_quant_algo` raise.
pub const FUSION_PARTNERS: &str = "fusion-partners";

/// Experts of a layer with different formats: they are one kernel. vLLM: `RoutedExperts` gets one method.
pub const EXPERTS_DIFFER: &str = "experts-differ";

/// NVFP4 with input features that are no multiple of 16. vLLM: `ModelOptNvFp4LinearMethod.create_weights`; `SGLang`:
/// `ModelOptFp4LinearMethod.create_weights`.
pub const NVFP4_COLUMNS: &str = "nvfp4-columns";

/// NVFP4 in blocks of another size than the config says, or without group size than 16. vLLM:
/// `ModelOptNvFp4LinearMethod.create_weights`, the shape of `weight_scale`.
pub const NVFP4_BLOCK: &str = "nvfp4-block";

/// FP8 in squares whose weight is no multiple of 128x128, or whose scale is not `[rows/128, 1, columns/128, 1]`. vLLM:
/// `ModelOptFp8PbWoLinearMethod.create_weights`.
pub const FP8_SQUARES: &str = "fp8-squares";

/// Linears that are computed as one with different scales of their weights. FP8: quantized again with the largest (vLLM
/// `requantize_with_max_scale`). NVFP4: TensorRT-LLM asserts (`load_weight_scales`); vLLM takes the largest and leaves the
/// blocks as they are, for experts the gate's (`process_weights_after_loading`), so the others' weights are wrong.
pub const FUSED_WEIGHT_SCALES: &str = "fused-weight-scales";

/// Linears that are computed as one with different scales of their input: vLLM and `SGLang` take the largest; TensorRT-LLM
/// asserts for NVFP4 (`load_weight_scales`).
pub const FUSED_INPUT_SCALES: &str = "fused-input-scales";

/// Experts with different scales of their input: the largest is taken. vLLM: `process_fp8_input_tensor_strategy_moe`.
pub const EXPERTS_INPUT_SCALES: &str = "experts-input-scales";

/// A scale of a weight or input that is not a positive finite number.
pub const BAD_SCALE: &str = "bad-scale";

/// The cache is to be FP8, and a layer has no `k_scale` or `v_scale`: 1 is used. vLLM: `BaseKVCacheMethod`
/// (`kv_cache.py`), which also takes scales that are not positive for absent ones.
pub const KV_SCALE: &str = "kv-scale";

/// A `k_scale` or `v_scale` below 1. ModelOpt's Megatron export raises them to 1 (`get_kv_cache_scaling_factor`), its
/// Hugging Face export does not.
pub const KV_SCALE_SMALL: &str = "kv-scale-small";
