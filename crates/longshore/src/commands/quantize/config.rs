//! From flags to the config: a name or a recipe, and what is added to it.

use crate::cli::quantize::WhatArgs;
use crate::error::UsageError;
use crate::options::Env;
use anyhow::{Context, Result};
use longshore_quant::config::QuantConfig;
use longshore_quant::config::recipe::Library;
use std::path::Path;

/// Largest file of a recipe: they are a few kilobytes.
const MAX_RECIPE: u64 = 1 << 20;

/// The config that the flags describe. Errors: a name that no config has, one that is not implemented, a broken recipe.
pub(super) fn read(args: &WhatArgs, env: &Env) -> Result<QuantConfig> {
    let name = match &args.quant_cfg {
        Some(name) => name.as_str(),
        None => env.text("QUANT_CFG")?.ok_or(UsageError::Absent { argument: "--quant-cfg", variable: "QUANT_CFG" })?,
    };
    let is_file = name.contains('/') || [".yaml", ".yml"].iter().any(|ending| name.ends_with(ending));
    let mut config = if is_file { recipe(name, args.recipe_dir.as_deref())? } else { QuantConfig::named(name)? };
    if args.weight_only {
        config = config.weight_only();
    }
    if args.disable_qkv_quant {
        config = config.disable_qkv_quant();
    }
    if let Some(kv_cache) = &args.kv_cache {
        config = config.with_kv_cache(kv_cache)?;
    }
    for glob in &args.exclude {
        config = config.exclude(glob);
    }
    config.implemented()?;
    Ok(config)
}

fn recipe(path: &str, folder: Option<&Path>) -> Result<QuantConfig> {
    let read = |path: &str| {
        let length = std::fs::metadata(path)?.len();
        if length > MAX_RECIPE {
            return Err(std::io::Error::other(format!("{length} bytes are too many for a recipe")));
        }
        std::fs::read_to_string(path)
    };
    let dirs = folder.map(|folder| folder.display().to_string()).into_iter().collect();
    let recipe = Library { read: &read, dirs }.load(path).with_context(|| format!("recipe `{path}`"))?;
    Ok(recipe.config)
}
