//! Rules about the values of scales.

use super::described::experts;
use super::modules::{Module, Stored};
use super::{Described, Engine, Findings, ReadScalar, Tensors, fused, rule};
use crate::Result;
use longshore_ckpt::Dtype;
use std::collections::BTreeMap;

/// All rules of this file.
pub(super) fn check(
    modules: &[Module<'_>],
    tensors: &Tensors,
    read: &mut ReadScalar<'_>,
    described: &Described<'_>,
    found: &mut Findings,
) -> Result<()> {
    let mut scales = Scales { tensors, read, known: BTreeMap::new() };
    for module in modules.iter().filter(|module| module.is_packed()) {
        for suffix in ["weight_scale", "weight_scale_2", "input_scale"] {
            let is_bad = |scale: f32| !(scale.is_finite() && scale > 0.0);
            if let Some(scale) = scales.get(module.name, suffix)?.filter(|&scale| is_bad(scale)) {
                for engine in Engine::ALL {
                    let text = format!("`{suffix}` is {scale}, expected a positive number");
                    found.reject(engine, rule::BAD_SCALE, module.name, text);
                }
            }
        }
    }
    for (name, members) in fused(modules) {
        fused_scales(&name, &members, &mut scales, found)?;
    }
    experts_inputs(modules, &mut scales, found)?;
    if described.kv_is_fp8() {
        kv_scales(tensors, &mut scales, found)?;
    }
    Ok(())
}

/// The scales of one element, each read once.
struct Scales<'a, 'r> {
    tensors: &'a Tensors,
    read: &'a mut ReadScalar<'r>,
    known: BTreeMap<String, f32>,
}

impl Scales<'_, '_> {
    /// Nothing where there is no such scale, or one of several elements, or one that is no plain number.
    fn get(&mut self, module: &str, suffix: &str) -> Result<Option<f32>> {
        let name = format!("{module}.{suffix}");
        if let Some(&scale) = self.known.get(&name) {
            return Ok(Some(scale));
        }
        let is_scalar = |(dtype, shape): &(Dtype, Vec<u64>)| {
            let is_float = matches!(dtype, Dtype::Float32 | Dtype::Bfloat16 | Dtype::Float16);
            is_float && shape.iter().all(|&size| size == 1)
        };
        if !self.tensors.get(&name).is_some_and(is_scalar) {
            return Ok(None);
        }
        let scale = (self.read)(&name)?;
        self.known.insert(name, scale);
        Ok(Some(scale))
    }

    /// Whether the modules that have this scale have different ones.
    fn differ(&mut self, modules: &[&Module<'_>], suffix: &str) -> Result<bool> {
        let mut first = None;
        for module in modules {
            match (first, self.get(module.name, suffix)?) {
                (None, scale) => first = scale,
                (Some(first), Some(scale)) if first != scale => return Ok(true),
                _ => {}
            }
        }
        Ok(false)
    }
}

fn fused_scales(name: &str, members: &[&Module<'_>], scales: &mut Scales<'_, '_>, found: &mut Findings) -> Result<()> {
    let all = |stored| members.iter().all(|member| member.stored == stored);
    if all(Stored::Fp8) && scales.differ(members, "weight_scale")? {
        let text = "computed as one with different `weight_scale`s: quantized again with the largest";
        for engine in [Engine::Vllm, Engine::Sglang] {
            found.warn(engine, rule::FUSED_WEIGHT_SCALES, name, text);
        }
    }
    let is_nvfp4 = all(Stored::Nvfp4);
    if is_nvfp4 && scales.differ(members, "weight_scale_2")? {
        let taken = if experts(name).is_some() { "the gate's" } else { "the largest" };
        let text =
            format!("computed as one with different `weight_scale_2`s: {taken} is used, the other weights are wrong");
        found.reject(Engine::Vllm, rule::FUSED_WEIGHT_SCALES, name, text);
        let text = "computed as one with different `weight_scale_2`s";
        found.reject(Engine::TensorRtLlm, rule::FUSED_WEIGHT_SCALES, name, text);
    }
    if scales.differ(members, "input_scale")? {
        let text = "computed as one with different `input_scale`s: the largest is used";
        for engine in [Engine::Vllm, Engine::Sglang] {
            found.warn(engine, rule::FUSED_INPUT_SCALES, name, text);
        }
        if is_nvfp4 {
            let text = "computed as one with different `input_scale`s";
            found.reject(Engine::TensorRtLlm, rule::FUSED_INPUT_SCALES, name, text);
        }
    }
    Ok(())
}

fn experts_inputs(modules: &[Module<'_>], scales: &mut Scales<'_, '_>, found: &mut Findings) -> Result<()> {
    let mut projections: BTreeMap<(&str, &str), Vec<&Module<'_>>> = BTreeMap::new();
    for module in modules {
        let last = module.name.rsplit('.').next().unwrap_or_default();
        if let Some(container) = experts(module.name) {
            projections.entry((container, last)).or_default().push(module);
        }
    }
    for ((container, last), members) in projections {
        if scales.differ(&members, "input_scale")? {
            let text = "the experts of a layer have different `input_scale`s: the largest is used";
            found.warn(Engine::Vllm, rule::EXPERTS_INPUT_SCALES, &format!("{container}.*.{last}"), text);
        }
    }
    Ok(())
}

fn kv_scales(tensors: &Tensors, scales: &mut Scales<'_, '_>, found: &mut Findings) -> Result<()> {
    for (linear, suffix) in [("k_proj", "k_scale"), ("v_proj", "v_scale")] {
        let weight = format!(".{linear}.weight");
        for module in
            tensors.keys().filter(|name| name.ends_with(&weight)).map(|name| &name[..name.len() - ".weight".len()])
        {
            let attention = module.rsplit_once('.').map_or("", |(attention, _)| attention);
            let scale = match scales.get(module, suffix)? {
                Some(scale) => Some(scale),
                None => scales.get(attention, suffix)?,
            };
            match scale {
                None => {
                    let text = format!("the cache is FP8, but there is no `{suffix}`: 1 is used");
                    found.warn(Engine::Vllm, rule::KV_SCALE, module, text);
                }
                Some(scale) if !(scale.is_finite() && scale > 0.0) => {
                    let text = format!("`{suffix}` is no positive number: 1 is used");
                    found.warn(Engine::Vllm, rule::KV_SCALE, module, text);
                }
                Some(scale) if scale < 1.0 => {
                    let text = format!("`{suffix}` is below 1, to which ModelOpt's Megatron export raises it");
                    found.warn(Engine::Vllm, rule::KV_SCALE_SMALL, module, text);
                }
                Some(_) => {}
            }
        }
    }
    Ok(())
}
