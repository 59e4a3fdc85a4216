//! A smaller model from a larger one, in the same format: some of its layers, the first of its experts.
//!
//! Nothing but names and numbers of rows changes, so that a tensor of the result is one of the source or its first rows.

use super::companions::{self, Links};
use super::draft::{Draft, unmapped};
use super::import::{common_state, params_dtype, with_empty_states};
use super::layout::{safetensors_files, torch_dist_files};
use super::{Content, Note, NoteKind, Plan, SmallFile, model_error, mtp};
use crate::arch::SpecKeys;
use crate::config::hf::nemotron_h::Reduced;
use crate::config::{LayerSpec, ModelConfig, Moe, megatron};
use crate::error::Problem;
use crate::mapping::{Declared, Mapping, Place};
use crate::model::{Model, TRAVELLING, read_manifest, spec, spec_keys};
use crate::options::{CutOptions, DtypeChoice, HF_FILE_SIZE, Layout, MtpChoice};
use crate::resolve::{Direction, OpenFiles, Recipe, locate, resolve};
use crate::{Error, Result, source};
use longshore_ckpt::torch_dist::{item, metadata_json, pickle};
use longshore_ckpt::{Catalog, Format};
use std::collections::BTreeMap;
use std::path::Path;

/// A stored parallel size above this is none.
const MAX_RANKS: u64 = 1 << 16;

/// Plans the cut of the checkpoint `source` into `destination`, a checkpoint of the same format.
pub fn plan_cut(source: &Path, destination: &Path, options: &CutOptions) -> Result<Plan> {
    let mut catalog = Catalog::open(source)?;
    let (mut model, keys, rows) = open(&mut catalog)?;
    let mut problems: Vec<Problem> = mtp::settle(&mut model, &catalog, options.mtp).into_iter().collect();
    let whole = (model.architecture.mapping)(&model.config, &keys, rows);
    let is_mc = catalog.format == Format::TorchDist;
    let direction = if is_mc { Direction::Export } else { Direction::Import };
    let resolved = resolve(&whole, &catalog, direction, &|_, _, dtype| dtype)?;
    let mut notes = std::mem::take(&mut model.notes);
    problems.extend(resolved.problems);
    let strangers = mtp::untold(&resolved.unmapped, options.mtp == MtpChoice::Drop);
    unmapped(&strangers, &catalog, options.allow_unmapped, &mut problems, &mut notes);
    let cut = Cut::of(&model.config, options, &mut problems, &mut notes);
    if !problems.is_empty() {
        return Err(Error::Refused(problems));
    }

    let mapping = (model.architecture.mapping)(&cut.config, &keys, rows);
    let recipes = recipes(&cut, &mapping, &catalog)?;
    let (prefix, links) =
        if is_mc { (format!("{TRAVELLING}/"), Links::Refuse) } else { (String::new(), Links::Follow) };
    let mut small = match &model.folder {
        Some(folder) => companions::collect(folder, &prefix, links)?,
        None => Vec::new(),
    };
    companions::reduced(&mut small, &Reduced { config: &cut.config, kept: cut.kept.clone(), moe: cut.moe })?;
    let mut draft = Draft {
        target: catalog.format,
        destination,
        inner: None,
        dtypes: BTreeMap::new(),
        recipes,
        files: Vec::new(),
        small,
        dropped: resolved.unmapped,
        from_base: Vec::new(),
        dtypes_unknown: false,
        casts_checked: false,
        notes,
        config: cut.config.clone(),
        lowered: None,
        source_pattern: model.config.pattern(),
        mapping,
        catalog,
    };
    match draft.target {
        Format::Safetensors => {
            let (files, index) =
                safetensors_files(&draft.recipes, options.max_file_size.unwrap_or(HF_FILE_SIZE), false);
            draft.files = files;
            draft.small.extend(index.map(|index| SmallFile {
                name: "model.safetensors.index.json".into(),
                content: Content::Bytes(index),
            }));
        }
        Format::TorchDist => torch_dist(&mut draft, &cut, &keys, rows, options)?,
    }
    draft.finish(options)
}

/// The model, the layout of its keys, and the vocabulary rows of its Megatron side.
fn open(catalog: &mut Catalog) -> Result<(Model, SpecKeys, u64)> {
    let (model, keys, rows, is_quantized) = match catalog.format {
        Format::Safetensors => {
            let (model, packed) = source::hugging_face(catalog, None)?;
            let rows = model.config.vocab_size;
            (model, SpecKeys::CANONICAL, rows, packed.is_some())
        }
        Format::TorchDist => {
            let (model, rows, quantized) = source::torch_dist(catalog, None)?;
            (model, spec_keys(catalog), rows, quantized.is_some())
        }
    };
    model.check_converted(&catalog.folder)?;
    if is_quantized {
        let what = "it is quantized, and only plain checkpoints are cut: cut the one it was made from";
        return Err(model_error(&catalog.folder, what));
    }
    Ok((model, keys, rows))
}

/// Every tensor of the result, in the order in which its format stores them.
fn recipes(cut: &Cut, mapping: &Mapping, catalog: &Catalog) -> Result<Vec<Recipe>> {
    let (order, side): (Vec<&String>, _) = match catalog.format {
        Format::Safetensors => (mapping.hf_order.iter().collect(), &mapping.hf),
        Format::TorchDist => (mapping.mc.keys().collect(), &mapping.mc),
    };
    let (mut recipes, mut problems) = (Vec::with_capacity(order.len()), Vec::new());
    let mut files = OpenFiles::new(catalog);
    for (name, declared) in order.into_iter().filter_map(|name| Some((name, side.get(name)?))) {
        match locate(catalog, &mut files, &cut.name_in_source(name, declared))? {
            Ok(tensor) => recipes.push(Recipe::copy(name, declared, tensor)),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(recipes) } else { Err(Error::Refused(problems)) }
}

/// What only torch_dist has: files by rank, arguments, the record of the original dtypes.
fn torch_dist(draft: &mut Draft<'_>, cut: &Cut, keys: &SpecKeys, rows: u64, options: &CutOptions) -> Result<()> {
    let catalog = &draft.catalog;
    let args = catalog.common.as_ref().map(|c| megatron::Args::from_common(c.root())).unwrap_or_default();
    let layout = cut.layout(&args, &mut draft.notes);
    let layers = cut.config.layers.len() as u64;
    let objects = with_empty_states(&draft.mapping.objects);
    draft.files = torch_dist_files(&draft.recipes, &objects, layout, layers, options.max_file_size);

    let iteration = catalog.folder.file_name().and_then(|name| name.to_str()?.strip_prefix("iter_")?.parse().ok());
    draft.inner = Some(iteration.map_or_else(|| "release".into(), |n: u64| format!("iter_{n:07}")));
    let divisor = args.int("make_vocab_size_divisible_by").filter(|&n| n > 0 && rows.is_multiple_of(n));
    let dtype = params_dtype(DtypeChoice::Keep, &draft.recipes);
    let arguments = megatron::args(&cut.config, layout, spec(catalog), rows, dtype, divisor);
    let common = item::object_item(&pickle::dump(&common_state(arguments, iteration, keys.single_experts)));
    draft.small.push(SmallFile { name: "metadata.json".into(), content: Content::Bytes(metadata_json().to_vec()) });
    draft.small.push(SmallFile { name: "common.pt".into(), content: Content::Bytes(common) });

    let recorded = read_manifest(&catalog.folder)?.map(|manifest| manifest.origin);
    draft.dtypes_unknown = recorded.as_ref().is_none_or(|origin| origin.dtypes_unknown);
    draft.dtypes = recorded.map(|origin| cut.dtypes(&draft.mapping, &origin.dtypes)).unwrap_or_default();
    Ok(())
}

/// The smaller model.
struct Cut {
    config: ModelConfig,
    /// The layers of the source that it has, in order.
    kept: Vec<usize>,
    /// The sizes of its MoE layers, also where none is kept.
    moe: Option<Moe>,
}

impl Cut {
    /// What `options` make of a model: all that is wrong with them is in `problems`, all that they change in `notes`.
    fn of(whole: &ModelConfig, options: &CutOptions, problems: &mut Vec<Problem>, notes: &mut Vec<Note>) -> Self {
        let mut config = whole.clone();
        let kept = kept_layers(whole, options, problems, notes);
        config.layers = kept.iter().filter_map(|&i| whole.layers.get(i).copied()).collect();
        let moe = reduced_moe(whole.kinds().moe, options, problems, notes);
        let layers = config.layers.iter_mut().chain(config.mtp.iter_mut().flat_map(|mtp| &mut mtp.layers));
        let mut has_moe = false;
        for layer in layers {
            if let (LayerSpec::Moe(_), Some(moe)) = (&layer, moe) {
                *layer = LayerSpec::Moe(moe);
                has_moe = true;
            }
        }
        if options.experts.is_some() && whole.kinds().moe.is_some() && !has_moe && !kept.is_empty() {
            problems.push(option("--experts", "none of the layers that are kept has experts"));
        }
        Self { config, kept, moe }
    }

    /// What a tensor of the result is called in the source. The first number in the names of a layer is its index.
    fn name_in_source(&self, name: &str, declared: &Declared) -> String {
        let Place::Layer(new) = declared.place else { return name.to_owned() };
        let old = self.kept.get(new as usize).copied().unwrap_or_default();
        name.replacen(&format!(".{new}."), &format!(".{old}."), 1)
    }

    /// The recorded dtypes of Hugging Face tensors, under their new names.
    fn dtypes(
        &self,
        mapping: &Mapping,
        recorded: &BTreeMap<String, longshore_ckpt::Dtype>,
    ) -> BTreeMap<String, longshore_ckpt::Dtype> {
        let entry = |(name, declared): (&String, &Declared)| {
            Some((name.clone(), *recorded.get(&self.name_in_source(name, declared))?))
        };
        mapping.hf.iter().filter_map(entry).collect()
    }

    /// The parallel sizes that the source's arguments name, as far as the smaller model can have them.
    fn layout(&self, args: &megatron::Args, notes: &mut Vec<Note>) -> Layout {
        let size = |name| args.int(name).filter(|n| (1..=MAX_RANKS).contains(n));
        let tp = size("tensor_model_parallel_size").unwrap_or(1);
        let mut layout = Layout {
            tp,
            pp: size("pipeline_model_parallel_size").unwrap_or(1),
            ep: size("expert_model_parallel_size").unwrap_or(1),
            etp: size("expert_tensor_parallel_size").unwrap_or(tp),
        };
        let mut reduce = |what: &str, from: &mut u64, to: u64, why: String| {
            if *from != to {
                notes.push(Note::new(NoteKind::Inferred, format!("{what} from {from} to {to}: {why}")));
                *from = to;
            }
        };
        let layers = self.config.layers.len() as u64;
        let pp = layout.pp.min(layers);
        reduce("pipeline parallel size", &mut layout.pp, pp, format!("there are {layers} layers"));
        let experts = self.moe.map_or(1, |moe| moe.experts);
        let ep = largest(layout.ep, |n| experts.is_multiple_of(n));
        reduce("expert parallel size", &mut layout.ep, ep, format!("there are {experts} experts"));
        layout
    }
}

fn option(name: &str, what: impl Into<String>) -> Problem {
    Problem::Option { option: name.into(), what: what.into() }
}

/// The largest number from 1 to `most` that is `right`; 1 always is.
fn largest(most: u64, right: impl Fn(u64) -> bool) -> u64 {
    (1..=most).rev().find(|&n| right(n)).unwrap_or(1)
}

fn kept_layers(
    whole: &ModelConfig,
    options: &CutOptions,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<Note>,
) -> Vec<usize> {
    let count = whole.layers.len();
    let Some(layers) = &options.layers else { return (0..count).collect() };
    let mut kept = Vec::new();
    for range in layers.ranges() {
        if range.end > count as u64 {
            let what = match range.end - range.start {
                1 => format!("there is no layer {}: the model has {count}, numbered from 0", range.start),
                _ => format!("{}..{} ends behind the model, which has {count} layers", range.start, range.end),
            };
            problems.push(option("--layers", what));
        } else {
            kept.extend(range.start as usize..range.end as usize);
        }
    }
    if kept.len() < count {
        let text = format!("{} of {count} layers (--layers {layers})", count - kept.len());
        notes.push(Note::new(NoteKind::Dropped, text));
    }
    kept
}

/// The sizes of the MoE layers with fewer experts, and with no more groups and choices than these allow.
fn reduced_moe(
    whole: Option<Moe>,
    options: &CutOptions,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<Note>,
) -> Option<Moe> {
    let Some(experts) = options.experts else { return whole };
    let Some(mut moe) = whole else {
        problems.push(option("--experts", "the model has no experts"));
        return None;
    };
    if experts == 0 || experts > moe.experts {
        problems.push(option("--experts", format!("expected 1 to {}, found {experts}", moe.experts)));
        return whole;
    }
    if experts < moe.experts {
        let text =
            format!("{} of {} experts of each MoE layer (--experts {experts})", moe.experts - experts, moe.experts);
        notes.push(Note::new(NoteKind::Dropped, text));
    }
    moe.experts = experts;
    let mut reduce = |field: &str, from: &mut u64, to: u64, why: String| {
        if *from != to {
            notes.push(Note::new(NoteKind::Inferred, format!("{field} from {from} to {to}: {why}")));
            *from = to;
        }
    };
    // transformers scores a group by its best two experts, so that a group of one has no score.
    let groups = largest(moe.n_group, |n| n == 1 || (experts.is_multiple_of(n) && experts / n > 1));
    reduce("n_group", &mut moe.n_group, groups, format!("{experts} experts in groups of the same size, at least two"));
    let chosen = moe.topk_group.min(groups);
    reduce("topk_group", &mut moe.topk_group, chosen, format!("of {groups} in all"));
    let reached = chosen.saturating_mul(experts / groups.max(1));
    let top_k = moe.top_k.min(reached);
    reduce("num_experts_per_tok", &mut moe.top_k, top_k, format!("a token reaches {reached} experts"));
    let mut warn = |text: &str| notes.push(Note::new(NoteKind::Warning, text));
    if experts == 1 {
        warn("transformers cannot run a model with one expert: it scores a group by its best two");
    } else if moe.top_k == 1 && moe.norm_topk_prob {
        warn(
            "num_experts_per_tok is 1: transformers divides the score of the one expert by itself (norm_topk_prob), Megatron does not",
        );
    }
    Some(moe)
}
