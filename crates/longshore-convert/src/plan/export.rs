//! torch_dist → Hugging Face; and Hugging Face → Hugging Face where weights are packed on the way.

use super::companions::Links;
use super::draft::{Draft, unmapped};
use super::layout::safetensors_files;
use super::mtp;
use super::{
    Content, Note, NoteKind, Plan, Quantized, SmallFile, already_quantized, companions, inexact_elements, is_widening,
    model_error, open_all,
};
use crate::arch::SpecKeys;
use crate::compare::surplus;
use crate::config::hf::nemotron_h::Reduced;
use crate::config::pruned::Change;
use crate::config::{ModelConfig, megatron, release};
use crate::error::Problem;
use crate::mapping::{Declared, Mapping, Precision};
use crate::model::{Model, Stored, check_vocabulary, read_manifest, spec_keys, stored_vocab, tokenizer_folder};
use crate::options::{DtypeChoice, ExportOptions, MtpChoice};
use crate::quantized::overlay::HfForm;
use crate::quantized::stored::{self, StoredQuantizers};
use crate::quantized::{Quantization, exported, hf_config, overlay};
use crate::resolve::{Direction, DtypeRule, OpenFiles, Recipe, Resolved, is_float, locate, resolve};
use crate::{Error, Result, source};
use longshore_ckpt::torch_dist::is_training_state;
use longshore_ckpt::{Catalog, Dtype, Format, fs};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Plans the export of the torch_dist checkpoint `source` into the Hugging Face folder `destination`.
pub fn plan_export(source: &Path, destination: &Path, options: &ExportOptions) -> Result<Plan> {
    plan(source, destination, options, None)
}

/// The same with packed weights; the source may then be a Hugging Face folder too.
pub fn plan_quantized_export(
    source: &Path,
    destination: &Path,
    options: &ExportOptions,
    quantized: &Quantized<'_>,
) -> Result<Plan> {
    plan(source, destination, options, Some(quantized))
}

fn plan(source: &Path, destination: &Path, options: &ExportOptions, quantized: Option<&Quantized<'_>>) -> Result<Plan> {
    let mut catalog = Catalog::open(source)?;
    if catalog.format != Format::TorchDist && quantized.is_none() {
        return Err(model_error(source, "not a torch_dist checkpoint but a Hugging Face folder"));
    }
    let Opened {
        folder,
        changes,
        config,
        mapping,
        trunk,
        lent,
        direction,
        mut notes,
        mut problems,
        recorded,
        settled,
        stored,
    } = open(&mut catalog, options)?;
    if quantized.is_some() && stored.is_some() {
        return Err(already_quantized(&catalog.folder));
    }
    let dtype = |name: &str, declared: &Declared, stored: Dtype| match (declared.precision, options.dtype) {
        (Precision::Float32, _) => recorded.get(name).copied().unwrap_or(Dtype::Float32),
        (_, DtypeChoice::Keep) => recorded.get(name).copied().unwrap_or(stored),
        (_, DtypeChoice::Cast(dtype)) => dtype,
    };
    let mut resolved = match direction {
        Direction::Export => resolve(trunk.as_ref().unwrap_or(&mapping), &catalog, direction, &dtype)?,
        Direction::Import => identities(&mapping, &catalog, &dtype)?,
    };
    problems.append(&mut resolved.problems);
    let told = options.mtp == MtpChoice::Drop || options.mtp_from_base;
    unmapped(&mtp::untold(&resolved.unmapped, told), &catalog, options.allow_unmapped, &mut problems, &mut notes);
    let mut recipes = resolved.recipes;
    if problems.is_empty() && direction == Direction::Export {
        let files = open_all(&catalog)?;
        problems.extend(surplus_rows(&mapping, &catalog, &files)?);
        if options.dtype == DtypeChoice::Keep {
            let known = |name: &str| settled || recorded.contains_key(name);
            settle_dtypes(&mut recipes, config.dtype, &known, &files)?;
            for recipe in recipes.iter().filter(|r| !is_widening(r.source_dtype(), r.dtype)) {
                let changed = inexact_elements(&with_dtype(recipe, recipe.source_dtype()), recipe.dtype, &files)?;
                if changed > 0 {
                    let (from, to) = (recipe.source_dtype(), recipe.dtype);
                    let what = format!(
                        "{changed} values in {from} are not values of {to}, the dtype of its origin; name one with --dtype"
                    );
                    problems.push(Problem::Loss { tensor: recipe.name.clone(), what });
                }
            }
        }
    }
    if !problems.is_empty() {
        return Err(Error::Refused(problems));
    }

    let mut small = match &folder {
        Some(folder) => {
            let links =
                if options.base.is_some() || direction == Direction::Import { Links::Follow } else { Links::Refuse };
            let mut small = companions::collect(folder, "", links)?;
            companions::resized(&mut small, &changes, &config)?;
            small
        }
        None => {
            let (json, assumed) = release::hf_json(&config);
            notes.extend(assumed.into_iter().map(|n| Note::new(NoteKind::Warning, n)));
            let bytes = serde_json::to_vec_pretty(&json).unwrap_or_default();
            let mut small = match tokenizer_folder(&catalog) {
                Some(tokenizer) => companions::collect(&tokenizer, "", Links::Refuse)?,
                None => Vec::new(),
            };
            small.retain(|file| file.name != "config.json");
            small.push(SmallFile { name: "config.json".into(), content: Content::Bytes(bytes) });
            small
        }
    };
    if options.mtp == MtpChoice::Drop {
        companions::reduced(&mut small, &Reduced::without_mtp(&config))?;
    }
    if let (Some(_), DtypeChoice::Cast(dtype)) = (&folder, options.dtype) {
        rename_dtype(&mut small, dtype, &mut notes)?;
    }
    let applied = match (quantized, &stored) {
        (Some(q), _) => Some((q.quantization, q.calibrated)),
        (None, Some(stored)) => Some((&stored.quantization, &stored.calibrated)),
        (None, None) => None,
    };
    if let Some((quantization, calibrated)) = applied {
        let form = HfForm { compat_modelopt: options.compat_modelopt };
        recipes = overlay::hugging_face(recipes, &mapping, quantization, calibrated, form).map_err(Error::Refused)?;
        describe(&mut small, quantization, &mapping, form)?;
    }
    let from_base = lent.iter().map(|recipe| recipe.name.clone()).collect();
    recipes.extend(lent.into_iter().map(|recipe| {
        let dtype = dtype(&recipe.name, &recipe.declared, recipe.dtype);
        Recipe { dtype, ..recipe }
    }));
    let (files, index) = safetensors_files(&recipes, options.max_file_size, applied.is_some());
    if let Some(index) = index {
        small.push(SmallFile { name: "model.safetensors.index.json".into(), content: Content::Bytes(index) });
    }
    let draft = Draft {
        target: Format::Safetensors,
        catalog,
        destination,
        inner: None,
        lowered: None,
        source_pattern: config.pattern(),
        config,
        mapping,
        recipes,
        files,
        small,
        dtypes: BTreeMap::new(),
        dropped: resolved.unmapped,
        from_base,
        dtypes_unknown: false,
        casts_checked: options.dtype == DtypeChoice::Keep,
        notes,
    };
    let quantizers =
        quantized.map(Quantized::fingerprint).or_else(|| stored.as_ref().map(StoredQuantizers::fingerprint));
    draft.finish(&(options, quantizers))
}

/// A source with what it says of itself.
struct Opened {
    /// Where its config.json and tokenizer are.
    folder: Option<PathBuf>,
    /// What of that config.json pruning changed.
    changes: Vec<Change>,
    config: ModelConfig,
    mapping: Mapping,
    /// The mapping of what the checkpoint itself holds, where a base lends the rest.
    trunk: Option<Mapping>,
    /// What a base lends.
    lent: Vec<Recipe>,
    /// Whose tensors it holds: [`Direction::Export`] of torch_dist, [`Direction::Import`] of a Hugging Face folder.
    direction: Direction,
    notes: Vec<Note>,
    problems: Vec<Problem>,
    /// The dtypes of Hugging Face tensors that something recorded.
    recorded: BTreeMap<String, Dtype>,
    /// Whether the stored dtypes are right where nothing was recorded.
    settled: bool,
    /// Its quantizers.
    stored: Option<StoredQuantizers>,
}

fn open(catalog: &mut Catalog, options: &ExportOptions) -> Result<Opened> {
    if catalog.format == Format::Safetensors {
        let (mut model, packed) = source::hugging_face(catalog, options.base.as_deref())?;
        model.check_converted(&catalog.folder)?;
        if packed.is_some() {
            return Err(already_quantized(&catalog.folder));
        }
        let problems = mtp::settle(&mut model, catalog, options.mtp).into_iter().collect();
        let Model { config, architecture, folder, changes, notes } = model;
        let mapping = (architecture.mapping)(&config, &SpecKeys::CANONICAL, config.vocab_size);
        let (recorded, direction) = (BTreeMap::new(), Direction::Import);
        return Ok(Opened {
            folder,
            changes,
            config,
            mapping,
            trunk: None,
            lent: Vec::new(),
            direction,
            notes,
            problems,
            recorded,
            settled: true,
            stored: None,
        });
    }
    let manifest = read_manifest(&catalog.folder)?;
    let mut model = Model::from_torch_dist(catalog, options.base.as_deref())?;
    model.check_converted(&catalog.folder)?;
    let mut problems = match &model.folder {
        Some(_) => megatron::contradictions(&Stored::of(catalog)?.args, &model.config),
        None => Vec::new(),
    };
    if !options.mtp_from_base {
        model.settle_mtp(catalog.tensors.keys(), 1);
        problems.extend(mtp::settle(&mut model, catalog, options.mtp));
    }
    let Model { mut config, architecture, folder, changes, mut notes } = model;
    let ignored = drop_training_state(catalog);
    if ignored > 0 {
        notes.push(Note::new(NoteKind::Ignored, format!("{ignored} entries of optimizer, scheduler and RNG state")));
    }
    if let Some(vocab) = options.vocab_size {
        if folder.is_some() && vocab != config.vocab_size {
            let what = format!("{vocab}, but config.json says vocab_size = {}", config.vocab_size);
            problems.push(Problem::Option { option: "--vocab-size".into(), what });
        }
        config.vocab_size = vocab;
    } else if let (None, Some(manifest)) = (&folder, &manifest) {
        config.vocab_size = manifest.origin.vocab_size;
    }
    let stored = stored_vocab(catalog).unwrap_or(config.vocab_size);
    if stored > config.vocab_size {
        let text = format!("vocabulary from {stored} stored rows to {}, the surplus is zero", config.vocab_size);
        notes.push(Note::new(NoteKind::Inferred, text));
    }
    let rows = stored.max(config.vocab_size);
    check_vocabulary(&config, rows, &catalog.folder)?;
    let keys = spec_keys(catalog);
    let mapping = |config: &ModelConfig| (architecture.mapping)(config, &keys, rows);
    let mut model = Model { config, architecture, folder, changes, notes };
    let (mut full, mut lent) = (None, Vec::new());
    if options.mtp_from_base {
        let mut found = mtp::from_base(catalog, &mut model, &mapping, options.base.as_deref())?;
        problems.append(&mut found.problems);
        lent = found.recipes;
        full = Some(model.config.clone());
        model.config.mtp = None;
    }
    let stored = stored::read(catalog, &mut model)?;
    let Model { config: own, folder, changes, notes, .. } = model;
    let trunk = full.is_some().then(|| mapping(&own));
    let config = full.unwrap_or(own);
    let mapping = mapping(&config);
    let mut recorded = match &options.base {
        Some(base) => base_dtypes(base)?,
        None => BTreeMap::new(),
    };
    let settled = manifest.as_ref().is_some_and(|m| !m.origin.dtypes_unknown);
    recorded.extend(manifest.map(|m| m.origin.dtypes).unwrap_or_default());
    let direction = Direction::Export;
    Ok(Opened { folder, changes, config, mapping, trunk, lent, direction, notes, problems, recorded, settled, stored })
}

/// The tensors of a Hugging Face folder as they are, checked as for an import.
fn identities(mapping: &Mapping, catalog: &Catalog, dtype: DtypeRule<'_>) -> Result<Resolved> {
    let mut out = resolve(mapping, catalog, Direction::Import, &|_, _, dtype| dtype)?;
    out.recipes.clear();
    if !out.problems.is_empty() {
        return Ok(out);
    }
    let mut files = OpenFiles::new(catalog);
    for name in &mapping.hf_order {
        let (Some(declared), Ok(tensor)) = (mapping.hf.get(name), locate(catalog, &mut files, name)?) else { continue };
        let copy = Recipe::copy(name, declared, tensor);
        out.recipes.push(Recipe { dtype: dtype(name, declared, copy.dtype), ..copy });
    }
    Ok(out)
}

/// Writes into the small files what the weights are: `hf_quant_config.json`, and `quantization_config` in config.json.
fn describe(small: &mut Vec<SmallFile>, quantization: &Quantization, mapping: &Mapping, form: HfForm) -> Result<()> {
    let described = exported::describe(quantization, mapping, form)?;
    small.retain(|file| file.name != "hf_quant_config.json");
    if let Some((hf_quant_config, quantization_config)) = described {
        if let Some(file) = small.iter_mut().find(|f| f.name == "config.json") {
            let text = String::from_utf8_lossy(&file.bytes()?).into_owned();
            let path = file.path();
            let inserted = hf_config::insert(&text, &quantization_config).map_err(|e| e.in_file(&path, 0))?;
            file.content = Content::Bytes(inserted.into_bytes());
        }
        let bytes = serde_json::to_vec_pretty(&hf_quant_config).unwrap_or_default();
        small.push(SmallFile { name: "hf_quant_config.json".into(), content: Content::Bytes(bytes) });
    }
    Ok(())
}

/// Takes training state out of the catalog; returns how many entries.
pub(crate) fn drop_training_state(catalog: &mut Catalog) -> usize {
    let before = catalog.tensors.len() + catalog.objects.len();
    catalog.tensors.retain(|name, _| !is_training_state(name));
    catalog.objects.retain(|name, _| !is_training_state(name));
    before - catalog.tensors.len() - catalog.objects.len()
}

/// The dtypes of the tensors of `base`, if it holds weights.
fn base_dtypes(base: &Path) -> Result<BTreeMap<String, Dtype>> {
    match Catalog::open(base) {
        Ok(catalog) => Ok(catalog.tensors.into_iter().map(|(name, info)| (name, info.dtype)).collect()),
        Err(longshore_ckpt::Error::NotFound { .. }) => Ok(BTreeMap::new()),
        Err(error) => Err(error.into()),
    }
}

/// Vocabulary rows past the last token that are not zero.
fn surplus_rows(mapping: &Mapping, catalog: &Catalog, files: &[fs::ReadFile]) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for fill in &mapping.fills {
        let (name, region) = &fill.mc;
        let located = locate(catalog, &mut OpenFiles::new(catalog), name)?;
        if let (Some(declared), Ok(tensor)) = (mapping.mc.get(name), located)
            && let Some(what) = surplus(tensor, region, declared, files)?
        {
            problems.push(Problem::Loss { tensor: name.clone(), what });
        }
    }
    Ok(problems)
}

/// Without a record of the origin, a float tensor takes the config's dtype if every value is one of it.
fn settle_dtypes(
    recipes: &mut [Recipe],
    config: Option<Dtype>,
    known: &dyn Fn(&str) -> bool,
    files: &[fs::ReadFile],
) -> Result<()> {
    let Some(config) = config else { return Ok(()) };
    for recipe in recipes {
        let open = recipe.declared.precision != Precision::Float32 && !known(&recipe.name);
        if open && recipe.dtype != config && is_float(recipe.dtype) && inexact_elements(recipe, config, files)? == 0 {
            recipe.dtype = config;
        }
    }
    Ok(())
}

/// The recipe as it would be without a cast.
fn with_dtype(recipe: &Recipe, dtype: Dtype) -> Recipe {
    Recipe { dtype, ..recipe.clone() }
}

/// Writes the dtype of the weights into config.json, as text, so that the rest of it stays as it is.
fn rename_dtype(small: &mut [SmallFile], dtype: Dtype, notes: &mut Vec<Note>) -> Result<()> {
    let Some(file) = small.iter_mut().find(|f| f.name == "config.json") else { return Ok(()) };
    let text = String::from_utf8_lossy(&file.bytes()?).into_owned();
    for key in ["\"torch_dtype\"", "\"dtype\""] {
        let Some(at) = text.find(key) else { continue };
        let value = text[at + key.len()..].find('"').map(|i| at + key.len() + i + 1);
        let Some((start, end)) = value.and_then(|s| text[s..].find('"').map(|e| (s, s + e))) else { continue };
        let renamed = format!("{}{}{}", &text[..start], dtype.torch_name(), &text[end..]);
        file.content = Content::Bytes(renamed.into_bytes());
        notes.push(Note::new(NoteKind::Cast, format!("config.json: {key} is {dtype}")));
        return Ok(());
    }
    Ok(())
}
