//! From flags to the config: a name or a recipe, and what is added to it.

use crate::cli::quantize::WhatArgs;
use crate::error::UsageError;
use crate::options::Env;
use anyhow::{Context, Result};
use longshore_quant::config::QuantConfig;
use longshore_quant::config::recipe::{Library, Recipe};
use serde::Serialize;
use std::path::Path;

/// Largest file of a recipe: they are a few kilobytes.
const MAX_RECIPE: u64 = 1 << 20;

/// What the flags describe.
pub(super) struct Chosen {
    pub(super) config: QuantConfig,
    /// The recipe it began with, if it was one.
    pub(super) recipe: Option<Origin>,
}

/// Where a recipe is from.
#[derive(Serialize)]
pub(super) struct Origin {
    /// ModelOpt's name of what is built in, or the file.
    name: String,
    built_in: bool,
}

impl Origin {
    /// In words.
    pub(super) fn describe(&self) -> String {
        if self.built_in { format!("built-in equivalent of ModelOpt's {}", self.name) } else { self.name.clone() }
    }
}

/// The config that the flags describe. Errors: a name that no config has, one that is not implemented, a broken recipe.
pub(super) fn read(args: &WhatArgs, env: &Env) -> Result<Chosen> {
    let name = match &args.quant_cfg {
        Some(name) => name.as_str(),
        None => env.text("QUANT_CFG")?.ok_or(UsageError::Absent { argument: "--quant-cfg", variable: "QUANT_CFG" })?,
    };
    let is_recipe = name.contains('/') || [".yaml", ".yml"].iter().any(|ending| name.ends_with(ending));
    let (mut config, recipe) = if is_recipe {
        let recipe = recipe(name, args.recipe_dir.as_deref())?;
        let origin = Origin { name: recipe.config.name.clone(), built_in: recipe.file.is_none() };
        (recipe.config, Some(origin))
    } else {
        (QuantConfig::named(name)?, None)
    };
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
    config.implemented().with_context(|| config.name.clone())?;
    Ok(Chosen { config, recipe })
}

fn recipe(name: &str, folder: Option<&Path>) -> Result<Recipe> {
    let read = |path: &str| {
        let length = std::fs::metadata(path)?.len();
        if length > MAX_RECIPE {
            return Err(std::io::Error::other(format!("{length} bytes are too many for a recipe")));
        }
        std::fs::read_to_string(path)
    };
    let dirs = folder.map(|folder| folder.display().to_string()).into_iter().collect();
    Ok(Library { read: &read, dirs }.load(name)?)
}
