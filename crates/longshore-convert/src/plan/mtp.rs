//! What becomes of multi-token prediction: kept as the source has it, left out, or lent by another folder.
//!
//! On both sides the names of its tensors begin with `mtp.`.

use super::{Note, NoteKind};
use crate::Result;
use crate::config::ModelConfig;
use crate::error::Problem;
use crate::mapping::Mapping;
use crate::model::Model;
use crate::options::MtpChoice;
use crate::resolve::{Direction, OpenFiles, Recipe, locate, resolve};
use longshore_ckpt::catalog::DataFile;
use longshore_ckpt::{Catalog, Format, fs};
use std::collections::BTreeMap;
use std::path::Path;

/// Whether a tensor of either side belongs to multi-token prediction.
pub(crate) fn is_mtp(name: &str) -> bool {
    name.starts_with("mtp.")
}

/// Whether the checkpoint holds tensors of it.
fn is_held(catalog: &Catalog) -> bool {
    catalog.tensors.keys().any(|name| is_mtp(name))
}

/// Makes the config what the result will be. A config that promises what the source does not hold is one problem, and not
/// one for each tensor.
pub(super) fn settle(model: &mut Model, catalog: &Catalog, choice: MtpChoice) -> Option<Problem> {
    match choice {
        MtpChoice::Keep => {
            let depth = model.config.mtp.as_ref().filter(|_| !is_held(catalog))?.depth;
            model.config.mtp = None;
            let config = model.folder.as_ref().map(|folder| folder.join("config.json").display().to_string());
            Some(Problem::Mtp { config: config.unwrap_or_else(|| "args".into()), depth })
        }
        MtpChoice::Drop => {
            let held: Vec<u64> =
                catalog.tensors.iter().filter(|(name, _)| is_mtp(name)).map(|(_, info)| info.size()).collect();
            let said = model.config.mtp.take().map(|mtp| mtp.depth);
            if held.is_empty() && said.is_none() {
                return None;
            }
            let (count, bytes) = (held.len(), held.iter().fold(0u64, |sum, size| sum.saturating_add(*size)));
            let depth = said.map_or("no MTP in the config".to_owned(), |depth| format!("depth {depth}"));
            let text = format!("MTP: {depth}, {count} tensors, {bytes} bytes (--mtp drop)");
            model.notes.push(Note::new(NoteKind::Dropped, text));
            None
        }
    }
}

/// The tensors without a rule but those that have been `told` of: those of multi-token prediction.
pub(super) fn untold(unmapped: &[String], told: bool) -> Vec<String> {
    unmapped.iter().filter(|name| !(told && is_mtp(name))).cloned().collect()
}

/// The tensors that a base folder lends, under their Hugging Face names.
#[derive(Default)]
pub(super) struct Lent {
    pub(super) recipes: Vec<Recipe>,
    pub(super) problems: Vec<Problem>,
}

/// The tensors of multi-token prediction in the folder `base`, whose config `model` has. The files that hold them become
/// files of the catalog.
pub(super) fn from_base(
    catalog: &mut Catalog,
    model: &mut Model,
    mapping: &dyn Fn(&ModelConfig) -> Mapping,
    base: Option<&Path>,
) -> Result<Lent> {
    let mut lent = Lent::default();
    let mut problem = |what: String| lent.problems.push(Problem::Option { option: "--mtp-from-base".into(), what });
    if is_held(catalog) {
        problem("the checkpoint holds MTP of its own".into());
    }
    let Some(base) = base else {
        problem("`--base DIR` must name the folder to copy from".into());
        return Ok(lent);
    };
    let Some(per_block) = model.config.mtp.as_ref().map(|mtp| mtp.layers.len() as u64) else {
        problem(format!("`{}` says no MTP", base.join("config.json").display()));
        return Ok(lent);
    };
    let from = match Catalog::open(base) {
        Ok(from) if from.format == Format::Safetensors && is_held(&from) => from,
        Ok(_) | Err(longshore_ckpt::Error::NotFound { .. }) => {
            problem(format!("`{}` holds no MTP tensors", base.display()));
            return Ok(lent);
        }
        Err(error) => return Err(error.into()),
    };
    model.settle_mtp(from.tensors.keys(), per_block);
    let wanted = only_mtp(mapping(&model.config));
    let resolved = resolve(&wanted, &from, Direction::Import, &|_, _, dtype| dtype)?;
    lent.problems.extend(resolved.problems);
    if !lent.problems.is_empty() {
        return Ok(lent);
    }
    let (mut files, mut added) = (OpenFiles::new(&from), BTreeMap::new());
    for name in &wanted.hf_order {
        let (Some(declared), Ok(mut tensor)) = (wanted.hf.get(name), locate(&from, &mut files, name)?) else {
            continue;
        };
        for (_, extent) in &mut tensor.chunks {
            extent.file = match added.get(&extent.file) {
                Some(&index) => index,
                None => {
                    let index = lend_file(catalog, &from, extent.file)?;
                    *added.entry(extent.file).or_insert(index)
                }
            };
        }
        lent.recipes.push(Recipe::copy(name, declared, tensor));
    }
    let text = format!(
        "MTP: {} tensors, {} bytes come from `{}`: they are the base's, not the checkpoint's (--mtp-from-base)",
        lent.recipes.len(),
        lent.recipes.iter().map(Recipe::size).sum::<u64>(),
        base.display(),
    );
    model.notes.push(Note::new(NoteKind::Warning, text));
    Ok(lent)
}

/// Makes a file of `from` one of `catalog`, by its whole path; gives its index.
fn lend_file(catalog: &mut Catalog, from: &Catalog, file: u32) -> Result<u32> {
    let path = fs::canonical(&from.path(file))?;
    let Some(name) = path.to_str().map(str::to_owned) else {
        return Err(super::model_error(&path, "its path is not UTF-8"));
    };
    catalog.files.push(DataFile { name, size: from.files[file as usize].size });
    Ok(catalog.files.len() as u32 - 1)
}

/// The part of a mapping that is about multi-token prediction.
fn only_mtp(mut mapping: Mapping) -> Mapping {
    mapping.ties.retain(|tie| is_mtp(&tie.hf.0));
    mapping.fills.clear();
    mapping.hf.retain(|name, _| is_mtp(name));
    mapping.mc.retain(|name, _| is_mtp(name));
    mapping.hf_order.retain(|name| is_mtp(name));
    mapping
}
