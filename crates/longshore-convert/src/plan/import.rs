//! Hugging Face → torch_dist.

use super::companions::Links;
use super::draft::{Draft, unmapped};
use super::layout::torch_dist_files;
use super::{Content, Note, NoteKind, Plan, SmallFile, companions, model_error};
use crate::arch::SpecKeys;
use crate::config::megatron;
use crate::error::Problem;
use crate::model::{Model, TRAVELLING};
use crate::options::{DtypeChoice, ImportOptions};
use crate::resolve::{Direction, Recipe, import_dtype, resolve};
use crate::{Error, Result};
use longshore_ckpt::torch_dist::pickle::Plain;
use longshore_ckpt::torch_dist::{item, metadata_json, pickle};
use longshore_ckpt::{Catalog, Dtype, Format};
use std::collections::BTreeMap;
use std::path::Path;

/// Plans the conversion of the Hugging Face folder `source` into the torch_dist checkpoint `destination`.
pub fn plan_import(source: &Path, destination: &Path, options: &ImportOptions) -> Result<Plan> {
    let catalog = Catalog::open(source)?;
    if catalog.format != Format::Safetensors {
        return Err(model_error(source, "not a Hugging Face folder but a torch_dist checkpoint"));
    }
    let config_folder = options.base.as_deref().unwrap_or(&catalog.folder);
    let mut model = Model::from_folder(config_folder)?;
    let per_block = model.config.mtp.as_ref().map_or(1, |m| m.layers.len() as u64);
    model.settle_mtp(catalog.tensors.keys(), per_block);
    let Model { config, architecture, mut notes, .. } = model;

    let vocab = config.vocab_size;
    let padded = padded_vocab(vocab, config.hidden_size, options)?;
    if padded > vocab {
        let text = format!("vocabulary from {vocab} to {padded} rows, with zeros (--make-vocab-size-divisible-by)");
        notes.push(Note::new(NoteKind::Padded, text));
    }
    let keys = SpecKeys::of(options);
    let mapping = (architecture.mapping)(&config, &keys, padded);
    let dtype = |_: &str, declared: &_, source| import_dtype(options.dtype, declared, source);
    let mut resolved = resolve(&mapping, &catalog, Direction::Import, &dtype)?;
    let mut problems = (architecture.check_layout)(&config, options.layout);
    if options.iteration.is_some_and(|n| i64::try_from(n).is_err()) {
        problems.push(Problem::Option { option: "--iteration".into(), what: "is too large to be stored".into() });
    }
    problems.append(&mut resolved.problems);
    unmapped(&resolved.unmapped, &catalog, options.allow_unmapped, &mut problems, &mut notes);
    if !problems.is_empty() {
        return Err(Error::Refused(problems));
    }

    let recipes = resolved.recipes;
    let files =
        torch_dist_files(&recipes, &mapping.objects, options.layout, config.layers.len() as u64, options.max_file_size);
    let params = params_dtype(options.dtype, &recipes);
    let arguments =
        megatron::args(&config, options.layout, options.spec, padded, params, options.make_vocab_size_divisible_by);
    let mut small = companions::collect(config_folder, &format!("{TRAVELLING}/"), Links::Follow)?;
    small.push(SmallFile { name: "metadata.json".into(), content: Content::Bytes(metadata_json().to_vec()) });
    let common = common_state(arguments, options.iteration);
    small.push(SmallFile {
        name: "common.pt".into(),
        content: Content::Bytes(item::object_item(&pickle::dump(&common))),
    });

    let draft = Draft {
        direction: Direction::Import,
        catalog,
        destination,
        inner: Some(options.iteration.map_or_else(|| "release".to_string(), |n| format!("iter_{n:07}"))),
        config,
        dtypes: origin_dtypes(&recipes),
        mapping,
        recipes,
        files,
        small,
        dropped: resolved.unmapped,
        casts_checked: false,
        notes,
    };
    draft.finish(options)
}

/// Rows of the vocabulary on the Megatron side.
fn padded_vocab(vocab: u64, hidden: u64, options: &ImportOptions) -> Result<u64> {
    let Some(n) = options.make_vocab_size_divisible_by else { return Ok(vocab) };
    let rows = n.checked_mul(options.layout.tp).filter(|&n| n > 0).and_then(|n| vocab.checked_next_multiple_of(n));
    // As for the sizes of the config: no number of bytes may overflow.
    rows.filter(|rows| rows.checked_mul(hidden).is_some_and(|n| n < 1 << 60)).ok_or_else(|| {
        let what = format!("{n} times {} is no multiple for {vocab} rows", options.layout.tp);
        Error::Refused(vec![Problem::Option { option: "--make-vocab-size-divisible-by".into(), what }])
    })
}

/// The dtype of the bulk of the parameters, which the stored arguments name.
fn params_dtype(choice: DtypeChoice, recipes: &[Recipe]) -> Option<Dtype> {
    if let DtypeChoice::Cast(dtype) = choice {
        return Some(dtype);
    }
    let mut bytes: BTreeMap<Dtype, u64> = BTreeMap::new();
    for recipe in recipes {
        *bytes.entry(recipe.dtype).or_default() += recipe.size();
    }
    bytes.into_iter().max_by_key(|entry| entry.1).map(|entry| entry.0)
}

/// Source tensors whose dtype is not that of the tensor that holds them.
fn origin_dtypes(recipes: &[Recipe]) -> BTreeMap<String, Dtype> {
    let parts = recipes.iter().flat_map(|r| r.parts.iter().map(move |p| (r.dtype, p)));
    let sources = parts.filter_map(|(dtype, p)| p.source.as_ref().map(|(s, _)| (dtype, s)));
    sources.filter(|(dtype, s)| *dtype != s.dtype).map(|(_, s)| (s.name.clone(), s.dtype)).collect()
}

/// What `common.pt` holds, see `docs/torch_dist.md`. `save_checkpoint(1, …, release=True)` stores iteration 1.
fn common_state(arguments: Vec<(String, Plain)>, iteration: Option<u64>) -> Plain {
    let text = |s: &str| Plain::Str(s.into());
    let content = vec![
        (text("singleton_local_shards"), Plain::Bool(false)),
        (text("chained_optim_avoid_prefix"), Plain::Bool(true)),
    ];
    Plain::Dict(vec![
        (text("args"), Plain::Namespace(arguments)),
        (text("checkpoint_version"), Plain::Float(3.0)),
        (text("iteration"), Plain::Int(iteration.unwrap_or(1).cast_signed())),
        (text("num_floating_point_operations_so_far"), Plain::Int(0)),
        (text("content_metadata"), Plain::Dict(content)),
    ])
}
