//! Rules about which modules are quantized, and the shapes of what they have.

use super::described::experts;
use super::modules::{Module, Stored};
use super::{Described, Engine, Findings, fused, rule};
use std::collections::{BTreeMap, BTreeSet};

/// The only size of NVFP4's blocks that kernels have.
const NVFP4_BLOCK: u64 = 16;

/// Sides of FP8's squares.
const SQUARE: u64 = 128;

/// Packed weights, and nothing says so.
pub(super) fn no_config(modules: &[Module<'_>], found: &mut Findings) {
    for module in modules.iter().filter(|module| module.is_packed()) {
        for engine in Engine::ALL {
            let text = format!("is {}, and there is no quantization config", module.stored.name());
            found.reject(engine, rule::NO_CONFIG, module.name, text);
        }
    }
}

/// All rules of this file.
pub(super) fn check(modules: &[Module<'_>], described: &Described<'_>, found: &mut Findings) {
    for module in modules {
        match (module.is_packed(), described.exclusion(module.name), described.format(module.name)) {
            (true, Some((entry, how)), _) => {
                let text = format!("is {}, but excluded: `{}` {how}", module.stored.name(), entry.escape_debug());
                found.reject(Engine::Vllm, rule::EXCLUDED_QUANTIZED, module.name, text);
            }
            (true, None, None) => {
                let text = format!("is {}, but not in `quantized_layers`", module.stored.name());
                found.reject(Engine::Vllm, rule::MIXED_UNLISTED, module.name, text);
            }
            (true, None, Some((algo, size))) => packed(module, algo, size, found),
            (false, None, Some((algo, _))) => plain(module, algo, found),
            (false, ..) => {}
        }
    }
    fusion_partners(modules, described, found);
    experts_differ(modules, found);
}

/// A weight that is stored plain where the config says that it is quantized.
fn plain(module: &Module<'_>, algo: &str, found: &mut Findings) {
    let text = format!("is not quantized, but the config does not exclude it from {algo}");
    // Main models are loaded without their MTP layers.
    if module.name.starts_with("mtp.") {
        found.warn(Engine::Vllm, rule::NOT_EXCLUDED, module.name, text);
    } else {
        found.reject(Engine::Vllm, rule::NOT_EXCLUDED, module.name, text);
    }
}

/// A packed weight against the format that the config says.
fn packed(module: &Module<'_>, algo: &str, size: Option<u64>, found: &mut Findings) {
    if module.stored == Stored::Unscaled {
        found.reject(Engine::Vllm, rule::MISSING_SCALE, module.name, "has no `weight_scale`");
        return;
    }
    if !module.stored.fits(algo) {
        let text = format!("is {}, but {algo} for the config", module.stored.name());
        found.reject(Engine::Vllm, rule::FORMAT_MISMATCH, module.name, text);
        return;
    }
    if matches!(algo, "FP8" | "NVFP4") && !module.has_input_scale {
        found.reject(
            Engine::Vllm,
            rule::MISSING_SCALE,
            module.name,
            format!("has no `input_scale`, which {algo} needs"),
        );
    }
    if module.stored == Stored::Nvfp4 {
        nvfp4(module, algo, size, found);
    }
    if module.stored == Stored::Fp8Squares {
        fp8_squares(module, found);
    }
}

fn nvfp4(module: &Module<'_>, algo: &str, size: Option<u64>, found: &mut Findings) {
    if !module.has_scale_2 {
        found.reject(Engine::Vllm, rule::MISSING_SCALE, module.name, "has no `weight_scale_2`");
    }
    let columns = module.shape[1].saturating_mul(2);
    if !columns.is_multiple_of(NVFP4_BLOCK) {
        for engine in [Engine::Vllm, Engine::Sglang] {
            let text = format!("{columns} input features are no multiple of {NVFP4_BLOCK}");
            found.reject(engine, rule::NVFP4_COLUMNS, module.name, text);
        }
        return;
    }
    if !matches!(algo, "NVFP4" | "W4A16_NVFP4") {
        return;
    }
    let size = size.unwrap_or(NVFP4_BLOCK);
    let expected = [module.shape[0], columns.div_ceil(size.max(1))];
    if size != NVFP4_BLOCK {
        let text = format!("blocks of {size} columns, where kernels have {NVFP4_BLOCK}");
        found.reject(Engine::Vllm, rule::NVFP4_BLOCK, module.name, text);
    } else if let Some((_, shape)) = module.scale.filter(|(_, shape)| *shape != expected) {
        let text = format!("`weight_scale` has the shape {shape:?}, expected {expected:?}");
        found.reject(Engine::Vllm, rule::NVFP4_BLOCK, module.name, text);
    }
}

fn fp8_squares(module: &Module<'_>, found: &mut Findings) {
    let (rows, columns) = (module.shape[0], module.shape[1]);
    if !rows.is_multiple_of(SQUARE) || !columns.is_multiple_of(SQUARE) {
        let text = format!("{rows}x{columns} is no multiple of {SQUARE}x{SQUARE}");
        found.reject(Engine::Vllm, rule::FP8_SQUARES, module.name, text);
        return;
    }
    let expected = [rows / SQUARE, 1, columns / SQUARE, 1];
    if let Some((_, shape)) = module.scale.filter(|(_, shape)| *shape != expected) {
        let text = format!("`weight_scale` has the shape {shape:?}, expected {expected:?}");
        found.reject(Engine::Vllm, rule::FP8_SQUARES, module.name, text);
    }
}

/// What is computed as one must be quantized as one.
fn fusion_partners(modules: &[Module<'_>], described: &Described<'_>, found: &mut Findings) {
    for (name, members) in fused(modules) {
        let excluded = members.iter().filter(|member| described.exclusion(member.name).is_some()).count();
        let stored = distinct(members.iter().map(|member| member.stored.name()));
        let algos = distinct(members.iter().filter_map(|member| described.format(member.name)).map(|format| format.0));
        let text = if (1..members.len()).contains(&excluded) {
            format!("{excluded} of {} that are computed as one are excluded", members.len())
        } else if stored.len() > 1 {
            format!("computed as one, but stored differently: {}", join(stored))
        } else if excluded == 0 && algos.len() > 1 {
            format!("computed as one, but different for the config: {}", join(algos))
        } else {
            continue;
        };
        found.reject(Engine::Vllm, rule::FUSION_PARTNERS, &name, text);
    }
}

/// All experts of a layer are one kernel.
fn experts_differ(modules: &[Module<'_>], found: &mut Findings) {
    let mut stored: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for module in modules {
        if let Some(container) = experts(module.name) {
            stored.entry(container).or_default().insert(module.stored.name());
        }
    }
    for (container, stored) in stored.into_iter().filter(|(_, stored)| stored.len() > 1) {
        let text = format!("the experts of a layer are one kernel, but stored differently: {}", join(stored));
        found.reject(Engine::Vllm, rule::EXPERTS_DIFFER, container, text);
    }
}

fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    values.collect()
}

fn join(values: BTreeSet<&str>) -> String {
    values.into_iter().collect::<Vec<_>>().join("; ")
}
