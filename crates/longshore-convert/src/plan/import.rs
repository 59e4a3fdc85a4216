//! Hugging Face, or torch_dist in another layout of keys → torch_dist.

use super::companions::Links;
use super::draft::{Draft, unmapped};
use super::layout::torch_dist_files;
use super::mtp;
use super::recut::recut;
use super::{Content, Note, NoteKind, Plan, Quantized, SmallFile, already_quantized, companions};
use crate::arch::SpecKeys;
use crate::config::hf::nemotron_h::Reduced;
use crate::config::{ModelConfig, megatron};
use crate::error::Problem;
use crate::mapping::{Mapping, Place};
use crate::model::{Model, TOKENIZER, TRAVELLING, read_manifest, spec_keys, tokenizer_folder};
use crate::options::{DtypeChoice, ImportOptions, Layout, MtpChoice};
use crate::quantized::linear::Naming;
use crate::quantized::packed::PackedFolder;
use crate::quantized::stored::StoredQuantizers;
use crate::quantized::{objects, overlay};
use crate::resolve::{Direction, Recipe, import_dtype, resolve};
use crate::source;
use crate::{Error, Result};
use longshore_ckpt::torch_dist::pickle::Plain;
use longshore_ckpt::torch_dist::{item, metadata_json, pickle};
use longshore_ckpt::{Catalog, Dtype, Format};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Plans the conversion of the checkpoint `source` into the torch_dist checkpoint `destination`.
pub fn plan_import(source: &Path, destination: &Path, options: &ImportOptions) -> Result<Plan> {
    plan(source, destination, options, None)
}

/// The same with quantizers.
pub fn plan_quantized_import(
    source: &Path,
    destination: &Path,
    options: &ImportOptions,
    quantized: &Quantized<'_>,
) -> Result<Plan> {
    plan(source, destination, options, Some(quantized))
}

fn plan(source: &Path, destination: &Path, options: &ImportOptions, quantized: Option<&Quantized<'_>>) -> Result<Plan> {
    let mut catalog = Catalog::open(source)?;
    let mut opened = open(&mut catalog, options)?;
    if quantized.is_some() && opened.quantizers.is_some() {
        return Err(already_quantized(&catalog.folder));
    }
    let (config, architecture) = (&opened.model.config, opened.model.architecture);
    let mut options = options.clone();
    let asked = options.layout;
    let mut lowered = Vec::new();
    if let (true, Some(check)) = (options.lower_layout, architecture.check_layout) {
        (options.layout, lowered) = lower(config, options.layout, check);
    }
    let options = &options;

    let vocab = config.vocab_size;
    let padded = padded_vocab(vocab, config.hidden_size, options)?;
    let mut notes = std::mem::take(&mut opened.model.notes);
    notes.append(&mut lowered);
    if padded > vocab {
        let text = format!("vocabulary from {vocab} to {padded} rows, with zeros (--make-vocab-size-divisible-by)");
        notes.push(Note::new(NoteKind::Padded, text));
    }
    // ModelOpt stores experts apart, each with its quantizers, and asks for it in both specs.
    let single_experts = quantized.is_some() || opened.quantizers.is_some();
    let keys = SpecKeys { single_experts, ..SpecKeys::of(options) };
    let mapping = (architecture.mapping)(config, &keys, padded);
    let dtype = |_: &str, declared: &_, source| import_dtype(options.dtype, declared, source);
    let mut resolved = match &opened.stored {
        None => resolve(&mapping, &catalog, Direction::Import, &dtype)?,
        Some(stored) => recut(stored, &mapping, &catalog, &dtype)?,
    };
    let mut problems = architecture.check_layout.map_or_else(Vec::new, |check| check(config, options.layout));
    if options.iteration.is_some_and(|n| i64::try_from(n).is_err()) {
        problems.push(Problem::Option { option: "--iteration".into(), what: "is too large to be stored".into() });
    }
    problems.append(&mut resolved.problems);
    problems.append(&mut opened.problems);
    let strangers = mtp::untold(&resolved.unmapped, options.mtp == MtpChoice::Drop);
    unmapped(&strangers, &catalog, options.allow_unmapped, &mut problems, &mut notes);
    let mut recipes = resolved.recipes;
    if let Some(packed) = &mut opened.packed {
        problems.append(&mut packed.problems);
        if quantized.is_some() {
            return Err(already_quantized(&catalog.folder));
        }
        if !options.dequantize {
            let what = "is needed: the source's weights are packed, and Megatron has none of that form".into();
            problems.push(Problem::Option { option: "--dequantize".into(), what });
        }
        packed.attach(&mut recipes);
    }
    let plain = params_dtype(options.dtype, &recipes);
    let (dtypes, dtypes_unknown) = match opened.stored {
        None => (origin_dtypes(&recipes), false),
        Some(_) => recorded_dtypes(&catalog, &mapping, &recipes)?,
    };
    let mut states = BTreeMap::new();
    let mut small = match &opened.model.folder {
        Some(folder) => companions::collect(folder, &format!("{TRAVELLING}/"), opened.links)?,
        None => match tokenizer_folder(&catalog) {
            Some(tokenizer) => companions::collect(&tokenizer, &format!("{TOKENIZER}/"), Links::Refuse)?,
            None => Vec::new(),
        },
    };
    companions::resized(&mut small, &opened.model.changes, config)?;
    if opened.packed.is_some() {
        companions::dequantized(&mut small)?;
    }
    if options.mtp == MtpChoice::Drop {
        companions::reduced(&mut small, &Reduced::without_mtp(config))?;
    }
    if let Some(q) = quantized {
        if let Err(mut found) = overlay::megatron(&mut recipes, &mapping, q.quantization, q.calibrated) {
            problems.append(&mut found);
        }
        states = objects::states(q.quantization, &recipes, &mapping.objects);
        let files = objects::modelopt_state(q.config);
        small.extend(files.into_iter().map(|(name, bytes)| SmallFile { name, content: Content::Bytes(bytes) }));
    }
    if let Some(quantizers) = &opened.quantizers {
        match overlay::carried(&mut recipes, &mapping, quantizers, Naming::of(options.spec)) {
            Ok(quantization) => states = objects::states(&quantization, &recipes, &mapping.objects),
            Err(mut found) => problems.append(&mut found),
        }
        small.extend(companions::modelopt_state(&catalog.folder, &mut notes)?);
    }
    if !problems.is_empty() {
        return Err(Error::Refused(problems));
    }
    let mut objects = with_empty_states(&mapping.objects);
    objects.extend(states);

    let layers = config.layers.len() as u64;
    let files = torch_dist_files(&recipes, &objects, options.layout, layers, options.max_file_size);
    let arguments =
        megatron::args(config, options.layout, options.spec, padded, plain, options.make_vocab_size_divisible_by);
    small.push(SmallFile { name: "metadata.json".into(), content: Content::Bytes(metadata_json().to_vec()) });
    let common = common_state(arguments, options.iteration, single_experts);
    small.push(SmallFile {
        name: "common.pt".into(),
        content: Content::Bytes(item::object_item(&pickle::dump(&common))),
    });

    let draft = Draft {
        target: Format::TorchDist,
        catalog,
        destination,
        inner: Some(options.iteration.map_or_else(|| "release".to_string(), |n| format!("iter_{n:07}"))),
        dtypes,
        mapping,
        recipes,
        files,
        small,
        dropped: resolved.unmapped,
        from_base: Vec::new(),
        dtypes_unknown,
        casts_checked: false,
        notes,
        lowered: (options.layout != asked).then_some(options.layout),
        source_pattern: config.pattern(),
        config: opened.model.config,
    };
    let quantizers =
        quantized.map(Quantized::fingerprint).or_else(|| opened.quantizers.as_ref().map(StoredQuantizers::fingerprint));
    draft.finish(&(options, quantizers))
}

/// A source with what it says of itself.
struct Opened {
    model: Model,
    /// The mapping of its keys, where it is torch_dist.
    stored: Option<Mapping>,
    links: Links,
    /// Its packed weights, where it is a Hugging Face folder.
    packed: Option<PackedFolder>,
    /// Its quantizers, where it is torch_dist.
    quantizers: Option<StoredQuantizers>,
    problems: Vec<Problem>,
}

fn open(catalog: &mut Catalog, options: &ImportOptions) -> Result<Opened> {
    match catalog.format {
        Format::Safetensors => {
            let (mut model, packed) = source::hugging_face(catalog, options.base.as_deref())?;
            model.check_converted(&catalog.folder)?;
            let problems = mtp::settle(&mut model, catalog, options.mtp).into_iter().collect();
            Ok(Opened { model, stored: None, links: Links::Follow, packed, quantizers: None, problems })
        }
        Format::TorchDist => {
            let (mut model, rows, quantizers) = source::torch_dist(catalog, options.base.as_deref())?;
            source::note_padding(&mut model, rows);
            let problems = mtp::settle(&mut model, catalog, options.mtp).into_iter().collect();
            let stored = (model.architecture.mapping)(&model.config, &spec_keys(catalog), rows);
            let links = if options.base.is_some() { Links::Follow } else { Links::Refuse };
            Ok(Opened { model, stored: Some(stored), links, packed: None, quantizers, problems })
        }
    }
}

/// The objects of a plain checkpoint: every extra state is empty.
pub(super) fn with_empty_states(objects: &BTreeMap<String, Place>) -> BTreeMap<String, (Place, Arc<[u8]>)> {
    let empty: Arc<[u8]> = item::empty_extra_state().into();
    objects.iter().map(|(name, place)| (name.clone(), (*place, Arc::clone(&empty)))).collect()
}

/// The largest sizes up to those of `layout` that the model can have, and a note for each that is smaller.
fn lower(
    config: &ModelConfig,
    mut layout: Layout,
    check: fn(&ModelConfig, Layout) -> Vec<Problem>,
) -> (Layout, Vec<Note>) {
    /// No model has more of anything that is divided.
    const MOST: u64 = 1 << 12;
    /// Gives one of the sizes.
    type Size = fn(&mut Layout) -> &mut u64;
    let mut notes = Vec::new();
    let sizes: [(&str, Size); 4] =
        [("--tp", |l| &mut l.tp), ("--pp", |l| &mut l.pp), ("--ep", |l| &mut l.ep), ("--etp", |l| &mut l.etp)];
    for (option, size) in sizes {
        let asked = *size(&mut layout);
        let refused = |layout| {
            check(config, layout).into_iter().find(|p| matches!(p, Problem::Option { option: o, .. } if o == option))
        };
        let Some(problem) = refused(layout) else { continue };
        let fits = |n: &u64| {
            let mut smaller = layout;
            *size(&mut smaller) = *n;
            refused(smaller).is_none()
        };
        let n = (1..asked.min(MOST)).rev().find(fits).unwrap_or(1);
        *size(&mut layout) = n;
        if let Problem::Option { what, .. } = problem {
            notes.push(Note::new(NoteKind::Warning, format!("{option} {asked} becomes {n}: {what} (--lower-layout)")));
        }
    }
    (layout, notes)
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
pub(super) fn params_dtype(choice: DtypeChoice, recipes: &[Recipe]) -> Option<Dtype> {
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

/// The same for a source of torch_dist, whose manifest has them, and whether nothing recorded them.
fn recorded_dtypes(
    catalog: &Catalog,
    mapping: &Mapping,
    recipes: &[Recipe],
) -> Result<(BTreeMap<String, Dtype>, bool)> {
    let Some(origin) = read_manifest(&catalog.folder)?.map(|m| m.origin).filter(|origin| !origin.dtypes_unknown) else {
        return Ok((BTreeMap::new(), true));
    };
    let mut dtypes = origin.dtypes;
    dtypes.retain(|name, _| mapping.hf.contains_key(name));
    // What is cast now was stored as its original.
    let cast: BTreeMap<&str, Dtype> =
        recipes.iter().filter(|r| r.casts()).map(|r| (r.name.as_str(), r.source_dtype())).collect();
    for tie in &mapping.ties {
        if let Some(&dtype) = cast.get(tie.mc.0.as_str()) {
            dtypes.entry(tie.hf.0.clone()).or_insert(dtype);
        }
    }
    Ok((dtypes, false))
}

/// What `common.pt` holds, see `docs/torch_dist.md`. `save_checkpoint(1, …, release=True)` stores iteration 1.
pub(super) fn common_state(arguments: Vec<(String, Plain)>, iteration: Option<u64>, single_experts: bool) -> Plain {
    let text = |s: &str| Plain::Str(s.into());
    let content = vec![
        (text("singleton_local_shards"), Plain::Bool(single_experts)),
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
