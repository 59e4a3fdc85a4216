//! A folder on disk for the lint.

use super::{Engine, Finding, Findings, ReadScalar, Tensors, lint, rule};
use crate::config::json;
use crate::quantized::hf_config::KEY;
use crate::{Error, Result};
use half::{bf16, f16};
use longshore_ckpt::fs::{self, ReadFile};
use longshore_ckpt::{Catalog, Dtype, Format};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The config that engines read where config.json says nothing.
const LEGACY: &str = "hf_quant_config.json";

/// All findings about a Hugging Face folder. Reads headers, configs and scales of one element.
pub fn lint_folder(path: &Path) -> Result<Vec<Finding>> {
    let catalog = Catalog::open(path)?;
    if catalog.format != Format::Safetensors {
        let what = "a Megatron checkpoint, expected a Hugging Face folder".to_owned();
        return Err(Error::Model { path: path.to_owned(), what });
    }
    let inline = read(&catalog.folder.join("config.json"))?.and_then(|mut config| config.get_mut(KEY).map(Value::take));
    let legacy = read(&catalog.folder.join(LEGACY))?;
    let config = inline.as_ref().or(legacy.as_ref()).unwrap_or(&Value::Null);

    let tensors: Tensors =
        catalog.tensors.iter().map(|(name, info)| (name.clone(), (info.dtype, info.shape.clone()))).collect();
    let mut files = BTreeMap::new();
    let mut read_scalar = |name: &str| scalar(&catalog, &mut files, name);
    let read_scalar: &mut ReadScalar<'_> = &mut read_scalar;
    let mut findings = lint(&tensors, read_scalar, config)?;
    if let (Some(inline), Some(legacy)) = (&inline, &legacy) {
        findings.extend(disagreements(inline, legacy));
        findings.sort();
    }
    Ok(findings)
}

/// A JSON file, where there is one.
fn read(path: &Path) -> Result<Option<Value>> {
    if !fs::exists(path) {
        return Ok(None);
    }
    let bytes = fs::read_small(path, json::MAX_SIZE as u64)?;
    Ok(Some(json::parse(&bytes).map_err(|e| e.in_file(path, 0))?))
}

/// The only element of a tensor; the caller knows that there is one.
fn scalar(catalog: &Catalog, files: &mut BTreeMap<u32, ReadFile>, name: &str) -> Result<f32> {
    let missing = |what: &str| Error::Model { path: catalog.folder.clone(), what: format!("`{name}`: {what}") };
    let info = catalog.tensors.get(name).ok_or_else(|| missing("no such tensor"))?;
    let chunk = info.chunks.first().ok_or_else(|| missing("no data"))?;
    let file = match files.entry(chunk.extent.file) {
        std::collections::btree_map::Entry::Occupied(open) => open.into_mut(),
        std::collections::btree_map::Entry::Vacant(closed) => {
            closed.insert(ReadFile::open(&catalog.path(chunk.extent.file))?)
        }
    };
    let mut bytes = [0; 8];
    let size = usize::try_from(info.dtype.size()).unwrap_or(0).min(bytes.len());
    file.read_exact_at(chunk.extent.offset, &mut bytes[..size])?;
    let [b0, b1, b2, b3, ..] = bytes;
    match info.dtype {
        Dtype::Float32 => Ok(f32::from_le_bytes([b0, b1, b2, b3])),
        Dtype::Bfloat16 => Ok(bf16::from_le_bytes([b0, b1]).to_f32()),
        Dtype::Float16 => Ok(f16::from_le_bytes([b0, b1]).to_f32()),
        dtype => Err(missing(&format!("a scale of dtype {dtype}"))),
    }
}

/// What the two configs say differently.
fn disagreements(inline: &Value, legacy: &Value) -> Vec<Finding> {
    let mut found = Findings::default();
    let legacy = legacy.get("quantization").unwrap_or(legacy);
    let upper = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_uppercase);
    let names = |value: Option<&Value>| {
        let mut names: Vec<&str> =
            value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        names.sort_unstable();
        names.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let differing = [
        ("quant_algo", upper(inline.get("quant_algo")) != upper(legacy.get("quant_algo"))),
        ("exclude_modules", names(inline.get("ignore")) != names(legacy.get("exclude_modules"))),
        ("quantized_layers", inline.get("quantized_layers") != legacy.get("quantized_layers")),
    ];
    for (field, _) in differing.into_iter().filter(|field| field.1) {
        let text = format!("config.json and `{LEGACY}` differ; it believes `{LEGACY}`");
        found.warn(Engine::TensorRtLlm, rule::CONFIGS_DISAGREE, field, text);
        found.warn(
            Engine::Vllm,
            rule::CONFIGS_DISAGREE,
            field,
            format!("config.json and `{LEGACY}` differ; it believes config.json"),
        );
    }
    found.sorted()
}
