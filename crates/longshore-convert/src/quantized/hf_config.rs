//! What a quantized Hugging Face folder says of itself: `hf_quant_config.json` and config.json's `quantization_config`.
//!
//! Formats are named as ModelOpt 0.47 names them, by running it (`fp8_pb_wo` and `mxfp4` are lower case there, and engines
//! know them so). The lists of modules are explicit, as its Megatron export writes them.

mod algo;
mod insert;
mod remove;

pub use algo::{Algo, quant_algo};
pub(in crate::quantized) use insert::KEY;
pub use insert::insert;
pub(crate) use insert::insert_key;
pub use remove::remove;
pub(crate) use remove::remove_key;

use crate::error::Problem;
use crate::{Error, Result};
use longshore_quant::Scheme;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The program and version whose formats these are; engines recognize the config by it.
const PRODUCER: [(&str, &str); 2] = [("name", "modelopt"), ("version", "0.47.0")];

/// A linear of the exported model.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportedLinear {
    /// Its Hugging Face module: `backbone.layers.1.mixer.experts.3.up_proj`.
    pub name: String,
    /// What its weight is stored in; nothing where it is not quantized, two for one after the other.
    pub weight: Vec<Scheme>,
    /// What an engine quantizes its input to.
    pub input: Option<Scheme>,
    /// Whether its input is multiplied by a `pre_quant_scale`, be it stored or folded into the norm before.
    pub pre_quant_scale: bool,
    /// Output features.
    pub rows: u64,
    /// Input features.
    pub cols: u64,
}

/// What keys and values of attention are cached in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// E4M3.
    Fp8,
    /// E2M1 in blocks of 16.
    Nvfp4,
}

impl KvFormat {
    /// As `kv_cache_quant_algo` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp8 => "FP8",
            Self::Nvfp4 => "NVFP4",
        }
    }
}

/// An exported model, as far as its quantization goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exported {
    /// All linears, quantized or not, in the order of the model.
    pub linears: Vec<ExportedLinear>,
    /// Modules that are never quantized: embeddings, conv1d, the router's gate. Norms are no such modules.
    pub others: Vec<String>,
    /// Of keys and values.
    pub kv: Option<KvFormat>,
    /// Whether there are tensors under `mtp.`, which are copied as they were.
    pub has_mtp: bool,
}

/// The content of `hf_quant_config.json`; nothing where the model is not quantized.
///
/// With `compat` also nothing where ModelOpt's Megatron export (`save_pretrained`) writes nothing: if the first quantized
/// linear is neither FP8 (per tensor or in squares) nor NVFP4.
pub fn hf_quant_config(exported: &Exported, compat: bool) -> Result<Option<Value>> {
    let Some(summary) = Summary::of(exported, compat)? else { return Ok(None) };
    let mut quantization = Map::new();
    quantization.insert("quant_algo".into(), summary.name().into());
    quantization.insert("kv_cache_quant_algo".into(), exported.kv.map(KvFormat::name).into());
    match &summary.formats {
        Formats::One(algo) => quantization.extend(algo.entry().into_iter().skip(1)),
        Formats::Mixed(layers) => {
            quantization.insert("quantized_layers".into(), quantized_layers(layers));
        }
    }
    quantization.insert("exclude_modules".into(), summary.excluded.into());
    Ok(Some(json!({ "producer": producer(), "quantization": quantization })))
}

/// The value of `quantization_config` in config.json, for the same models as [`hf_quant_config`].
///
/// As ModelOpt derives it (`convert_hf_quant_config_format`), which has no `config_groups`, and so no group size, for a model
/// of one format other than FP8, NVFP4 and `W4A16_NVFP4`.
pub fn quantization_config(exported: &Exported, compat: bool) -> Result<Option<Value>> {
    let Some(summary) = Summary::of(exported, compat)? else { return Ok(None) };
    let mut config = Map::new();
    match &summary.formats {
        Formats::One(algo) if matches!(algo.name, "FP8" | "NVFP4" | "W4A16_NVFP4") => {
            config.insert("config_groups".into(), json!({ "group_0": algo.group(vec!["Linear"]) }));
        }
        Formats::One(_) => {}
        Formats::Mixed(layers) => {
            config.insert("config_groups".into(), config_groups(layers));
            config.insert("quantized_layers".into(), quantized_layers(layers));
        }
    }
    config.insert("ignore".into(), summary.excluded.clone().into());
    config.insert("quant_algo".into(), summary.name().into());
    match exported.kv {
        Some(KvFormat::Fp8) => {
            let scheme = json!({ "dynamic": false, "num_bits": 8, "type": "float" });
            config.insert("kv_cache_scheme".into(), scheme);
        }
        Some(other) => {
            config.insert("kv_cache_scheme".into(), other.name().into());
        }
        None => {}
    }
    config.insert("producer".into(), producer());
    config.insert("quant_method".into(), "modelopt".into());
    Ok(Some(config.into()))
}

/// A quantized model's formats and the modules without one.
struct Summary<'a> {
    formats: Formats<'a>,
    /// Sorted.
    excluded: Vec<&'a str>,
}

enum Formats<'a> {
    One(Algo),
    /// Per module, in ModelOpt's order: by name as if `.quantization` followed.
    Mixed(Vec<(&'a str, Algo)>),
}

impl<'a> Summary<'a> {
    fn of(exported: &'a Exported, compat: bool) -> Result<Option<Self>> {
        let mut excluded: BTreeSet<&str> = exported.others.iter().map(String::as_str).collect();
        let mut quantized = Vec::new();
        let mut problems = Vec::new();
        for linear in &exported.linears {
            match quant_algo(linear) {
                Ok(Some(algo)) => quantized.push((linear.name.as_str(), algo)),
                Ok(None) => {
                    excluded.insert(&linear.name);
                }
                Err(what) => problems.push(Problem::Quantize { tensor: linear.name.clone(), what }),
            }
        }
        if !problems.is_empty() {
            return Err(Error::Refused(problems));
        }
        if exported.has_mtp {
            excluded.insert("mtp*");
        }
        let Some(&(_, first)) = quantized.first() else { return Ok(None) };
        if compat && !matches!(first.name, "FP8" | "NVFP4" | "W4A16_NVFP4" | "fp8_pb_wo") {
            return Ok(None);
        }
        let formats = if quantized.iter().all(|(_, algo)| *algo == first) {
            Formats::One(first)
        } else {
            quantized.sort_by_cached_key(|(name, _)| format!("{name}.quantization"));
            Formats::Mixed(quantized)
        };
        Ok(Some(Self { formats, excluded: excluded.into_iter().collect() }))
    }

    fn name(&self) -> &'static str {
        match &self.formats {
            Formats::One(algo) => algo.name,
            Formats::Mixed(_) => "MIXED_PRECISION",
        }
    }
}

fn producer() -> Value {
    PRODUCER.iter().map(|&(key, value)| (key.to_owned(), value.into())).collect::<Map<_, _>>().into()
}

fn quantized_layers(layers: &[(&str, Algo)]) -> Value {
    layers.iter().map(|(name, algo)| ((*name).to_owned(), algo.entry().into())).collect::<Map<_, _>>().into()
}

/// A group per format, in the order in which they first occur.
fn config_groups(layers: &[(&str, Algo)]) -> Value {
    let mut groups: Vec<(Algo, Vec<&str>)> = Vec::new();
    for (name, algo) in layers {
        match groups.iter_mut().find(|group| group.0 == *algo) {
            Some(group) => group.1.push(name),
            None => groups.push((*algo, vec![name])),
        }
    }
    let mut value = Map::new();
    for (index, (algo, mut names)) in groups.into_iter().enumerate() {
        names.sort_unstable();
        value.insert(format!("group_{index}"), algo.group(names));
    }
    value.into()
}
