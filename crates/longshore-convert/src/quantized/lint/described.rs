//! What a quantization config says about a module, read as vLLM reads it.

use super::{Engine, Findings, rule};
use longshore_quant::config::Glob;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// vLLM `QUANT_ALGOS`, without the mixed one.
const VLLM: [&str; 6] = ["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4", "MXFP8"];
/// What vLLM knows inside of a mixed model.
const VLLM_MIXED: [&str; 3] = ["FP8", "NVFP4", "W4A16_NVFP4"];
/// `SGLang`'s `from_config`.
const SGLANG: [&str; 2] = ["FP8", "NVFP4"];
/// TensorRT-LLM's `QuantAlgo`, as far as ModelOpt writes such; `fp8_pb_wo` has an alias there.
const TENSORRT_LLM: [&str; 10] = [
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_PB_WO",
    "NVFP4",
    "W4A16_AWQ",
    "W4A8_AWQ",
    "W4A8_MXFP4_FP8",
    "W4A8_NVFP4_FP8",
    "W8A16",
    "W8A8_SQ_PER_CHANNEL",
];

/// The name of a mixture.
const MIXED: &str = "MIXED_PRECISION";

/// A quantization config in one of its two shapes.
pub(super) struct Described<'a> {
    /// In upper case.
    algo: String,
    /// Columns of a block.
    pub(super) group_size: Option<u64>,
    /// Excluded names and patterns.
    excluded: Vec<Excluded<'a>>,
    /// Format and columns of a block by module, of a mixture.
    layers: BTreeMap<String, (String, Option<u64>)>,
    /// What is said about the cache: a name, or compressed-tensors' words.
    kv: Option<&'a Value>,
    /// The object with the fields; of `hf_quant_config.json`, `quantization`.
    fields: &'a Map<String, Value>,
    /// Whether it is the content of `hf_quant_config.json`.
    is_legacy: bool,
}

/// An entry of the excluded names.
struct Excluded<'a> {
    entry: &'a str,
    /// What vLLM looks for anywhere in a name: it turns `x*` into `x` and `x.*` before it compares.
    part: &'a str,
    pattern: Glob,
}

impl<'a> Excluded<'a> {
    fn new(entry: &'a str) -> Self {
        let part = entry.strip_suffix('*').filter(|part| !part.is_empty() && !part.ends_with('.')).unwrap_or(entry);
        Self { entry, part, pattern: Glob::new(entry) }
    }
}

impl<'a> Described<'a> {
    /// Nothing where `config` is no object.
    pub(super) fn of(config: &'a Value) -> Option<Self> {
        let outer = config.as_object()?;
        let nested = outer.get("quantization").and_then(Value::as_object);
        let fields = nested.unwrap_or(outer);
        let text = |object: &Map<String, Value>, key| object.get(key).and_then(Value::as_str).map(str::to_uppercase);
        let (excluded, kv) =
            if nested.is_some() { ("exclude_modules", "kv_cache_quant_algo") } else { ("ignore", "kv_cache_scheme") };
        let list = fields.get(excluded).and_then(Value::as_array);
        let layers = fields.get("quantized_layers").and_then(Value::as_object);
        let layer = |(name, layer): (&'a String, &'a Value)| {
            let layer = layer.as_object()?;
            let size = layer.get("group_size").and_then(Value::as_u64);
            Some((name.clone(), (text(layer, "quant_algo")?, size)))
        };
        Some(Self {
            algo: text(fields, "quant_algo").unwrap_or_default(),
            group_size: fields.get("group_size").and_then(Value::as_u64),
            excluded: list.into_iter().flatten().filter_map(Value::as_str).map(Excluded::new).collect(),
            layers: layers.into_iter().flatten().filter_map(layer).collect(),
            kv: fields.get(kv).filter(|kv| !kv.is_null()),
            fields,
            is_legacy: nested.is_some(),
        })
    }

    /// Whether every module has its own format.
    pub(super) fn is_mixed(&self) -> bool {
        self.algo == MIXED
    }

    /// Whether the cache is to be FP8.
    pub(super) fn kv_is_fp8(&self) -> bool {
        match self.kv {
            Some(Value::String(name)) => name.eq_ignore_ascii_case("FP8"),
            Some(Value::Object(scheme)) => {
                scheme.get("type").and_then(Value::as_str) == Some("float")
                    && scheme.get("num_bits").and_then(Value::as_u64) == Some(8)
            }
            _ => false,
        }
    }

    /// The format and, where it is said, the columns of a block of a module that is not excluded.
    pub(super) fn format(&self, module: &str) -> Option<(&str, Option<u64>)> {
        if !self.is_mixed() {
            return Some((&self.algo, self.group_size));
        }
        if let Some((algo, size)) = self.layers.get(module) {
            return Some((algo, *size));
        }
        let experts = experts(module)?;
        let child = format!("{experts}.");
        let first_child = self.layers.range(child.clone()..).next().filter(|(name, _)| name.starts_with(&child));
        let (algo, size) = self.layers.get(experts).or(first_child.map(|(_, layer)| layer))?;
        Some((algo, *size))
    }

    /// How the config excludes a module, and by which entry.
    pub(super) fn exclusion(&self, module: &str) -> Option<(&'a str, &'static str)> {
        let experts = experts(module);
        let asked = experts.unwrap_or(module);
        self.excluded.iter().find_map(|Excluded { entry, part, pattern }| {
            let how = if *entry == module {
                "is it"
            } else if asked.contains(part) {
                "occurs in its name"
            } else if pattern.matches(asked) || pattern.matches(module) {
                "matches it"
            } else if experts.is_some_and(|experts| entry.contains(experts)) {
                "is one of its layer's experts, which are excluded together"
            } else {
                return None;
            };
            Some((*entry, how))
        })
    }

    /// What can be said without any tensor.
    pub(super) fn check(&self, found: &mut Findings) {
        self.check_algorithm(found);
        self.check_fields(found);
        let names = self.excluded.iter().map(|excluded| excluded.entry).chain(self.layers.keys().map(String::as_str));
        for name in names.filter(|name| name.contains(char::is_control)) {
            for engine in Engine::ALL {
                found.reject(engine, rule::CONTROL_CHARACTER, name, "has control characters and so names no module");
            }
        }
        let is_scheme = self.kv.is_some() && !self.is_legacy;
        if is_scheme && !self.kv_is_fp8() {
            for engine in [Engine::Vllm, Engine::TensorRtLlm] {
                let text =
                    "this cache format is read from `hf_quant_config.json` only; the cache will not be quantized";
                found.warn(engine, rule::KV_SCHEME, "kv_cache_scheme", text);
            }
        }
    }

    fn check_algorithm(&self, found: &mut Findings) {
        if self.is_mixed() {
            if self.layers.is_empty() {
                found.reject(Engine::Vllm, rule::MIXED_EMPTY, "quantized_layers", "a mixture needs its layers");
            }
            for (name, (algo, _)) in &self.layers {
                if !VLLM_MIXED.contains(&algo.as_str()) {
                    let text = format!("{algo} is not known in a mixture; the layer would be taken for a plain one");
                    found.reject(Engine::Vllm, rule::ALGORITHM, name, text);
                }
                if !TENSORRT_LLM.contains(&algo.as_str()) {
                    let text = format!("{algo} is not known to the source that was read");
                    found.warn(Engine::TensorRtLlm, rule::ALGORITHM, name, text);
                }
            }
            found.warn(
                Engine::Sglang,
                rule::ALGORITHM,
                "quant_algo",
                "mixtures are not known to the source that was read",
            );
            return;
        }
        let algo = self.algo.as_str();
        if !VLLM.contains(&algo) {
            let text = format!("`{algo}` is none of {}, {MIXED}", VLLM.join(", "));
            found.reject(Engine::Vllm, rule::ALGORITHM, "quant_algo", text);
        }
        if !SGLANG.contains(&algo) {
            let text = format!("`{algo}` is not known to the source that was read, which has {}", SGLANG.join(" and "));
            found.warn(Engine::Sglang, rule::ALGORITHM, "quant_algo", text);
        }
        if !TENSORRT_LLM.contains(&algo) {
            let known = TENSORRT_LLM.join(", ");
            let text = format!("`{algo}` is not known to the source that was read, which has {known}, {MIXED}");
            found.warn(Engine::TensorRtLlm, rule::ALGORITHM, "quant_algo", text);
        }
    }

    /// The fields without which `hf_quant_config.json` is refused for NVFP4.
    fn check_fields(&self, found: &mut Findings) {
        if !self.is_legacy || !matches!(self.algo.as_str(), "NVFP4" | "W4A16_NVFP4") {
            return;
        }
        for field in ["group_size", "kv_cache_quant_algo", "exclude_modules"] {
            let value = self.fields.get(field);
            if value.is_none() {
                let text = "is required in `hf_quant_config.json` where config.json has no `quantization_config`";
                found.reject(Engine::Vllm, rule::REQUIRED_FIELD, field, text);
            }
            let is_empty = value.is_none_or(|value| value.as_array().is_some_and(Vec::is_empty));
            if is_empty {
                found.reject(Engine::Sglang, rule::REQUIRED_FIELD, field, "is required in `hf_quant_config.json`");
            }
        }
    }
}

/// The container of an expert: `….experts` of `….experts.3.up_proj`.
pub(super) fn experts(module: &str) -> Option<&str> {
    let (container, rest) = module.split_once(".experts.")?;
    let index = rest.split('.').next()?;
    let is_index = !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
    is_index.then(|| &module[..container.len() + ".experts".len()])
}
