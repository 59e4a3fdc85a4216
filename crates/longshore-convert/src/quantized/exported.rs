//! From what every quantizer of a model does to what its export says of itself.

use super::Quantization;
use super::hf_config::{self, Exported, ExportedLinear, KvFormat};
use super::overlay::HfForm;
use crate::error::Problem;
use crate::mapping::Mapping;
use crate::{Error, Result};
use longshore_quant::Scheme;
use serde_json::Value;
use std::collections::BTreeSet;

/// The contents of `hf_quant_config.json` and of config.json's `quantization_config`; nothing where nothing is quantized.
pub fn describe(quantization: &Quantization, mapping: &Mapping, form: HfForm) -> Result<Option<(Value, Value)>> {
    let exported = exported(quantization, mapping)?;
    let (Some(file), Some(config)) = (
        hf_config::hf_quant_config(&exported, form.compat_modelopt)?,
        hf_config::quantization_config(&exported, form.compat_modelopt)?,
    ) else {
        return Ok(None);
    };
    Ok(Some((file, config)))
}

/// The modules of an export.
fn exported(quantization: &Quantization, mapping: &Mapping) -> Result<Exported> {
    let mut linears = Vec::new();
    for q in &quantization.linears {
        for hf in q.linear.hf.iter().filter(|hf| !hf.starts_with("mtp.")) {
            let Some(declared) = mapping.hf.get(&format!("{hf}.weight")) else { continue };
            linears.push(ExportedLinear {
                name: hf.clone(),
                weight: q.weight_schemes.clone(),
                input: q.input_scheme,
                pre_quant_scale: q.has_pre_quant_scale,
                rows: declared.shape[0],
                cols: declared.shape[1],
            });
        }
    }
    let of_linears: BTreeSet<&str> = linears.iter().map(|l| l.name.as_str()).collect();
    // Whatever else has a weight with rows, which no norm has.
    let others = mapping.hf_order.iter().filter(|name| mapping.hf.get(*name).is_some_and(|d| d.shape.len() > 1));
    let others = others
        .filter_map(|name| name.strip_suffix(".weight"))
        .filter(|module| !module.starts_with("mtp.") && !of_linears.contains(module));
    Ok(Exported {
        others: others.map(String::from).collect(),
        kv: kv_format(quantization)?,
        has_mtp: mapping.hf_order.iter().any(|name| name.starts_with("mtp.")),
        linears,
    })
}

/// The format of the cache: one for the whole model, keys and values alike.
fn kv_format(quantization: &Quantization) -> Result<Option<KvFormat>> {
    let mut formats = quantization.kv.iter().flat_map(|kv| [kv.schemes[1], kv.schemes[2]]);
    let Some(first) = formats.next() else { return Ok(None) };
    if formats.any(|format| format != first) {
        let what = "keys and values of all layers must be quantized alike".into();
        return Err(Error::Refused(vec![Problem::Option { option: "--kv-cache".into(), what }]));
    }
    match first {
        None => Ok(None),
        Some(Scheme::Fp8(_)) => Ok(Some(KvFormat::Fp8)),
        Some(Scheme::Nvfp4 { .. }) => Ok(Some(KvFormat::Nvfp4)),
        Some(_) => {
            let what = "no server reads a cache of this format: fp8 or nvfp4".into();
            Err(Error::Refused(vec![Problem::Option { option: "--kv-cache".into(), what }]))
        }
    }
}
