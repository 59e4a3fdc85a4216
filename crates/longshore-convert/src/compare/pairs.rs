//! Two checkpoints, tensor by tensor: through the mapping where their formats or their keys differ.

use super::{Side, surplus};
use crate::Problem;
use crate::Result;
use crate::mapping::{Declared, Place, Precision};
use crate::model::{Model, check_vocabulary, spec_keys, stored_vocab};
use crate::plan::recut;
use crate::quantized::state::{QuantizerStates, Stage, groups_experts};
use crate::region::Region;
use crate::resolve::{Direction, OpenFiles, Part, Recipe, Resolved, SourceTensor, locate, resolve};
use longshore_ckpt::{Catalog, Format};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The tensors of `b` under the names of `a`, ready to compare.
#[derive(Default)]
pub(crate) struct Pairs {
    /// Both sides, each in its own dtype.
    pub(crate) pairs: Vec<(Recipe, Recipe)>,
    pub(crate) only_a: Vec<String>,
    pub(crate) only_b: Vec<String>,
    /// Name, shape in `a`, shape in `b`.
    pub(crate) shapes: Vec<(String, Vec<u64>, Vec<u64>)>,
    /// Quantizers that do not the same: name, what it does in `a`, in `b`.
    pub(crate) quantizers: Vec<(String, String, String)>,
    /// Anything else that keeps tensors from being compared.
    pub(crate) problems: Vec<Problem>,
    pub(crate) notes: Vec<String>,
}

/// Pairs two checkpoints.
pub(crate) fn pair(a: &Side, b: &Side) -> Result<Pairs> {
    let mut out = Pairs::default();
    let mut theirs = if a.catalog.format != b.catalog.format {
        mapped(a, b, &mut out)?
    } else if a.catalog.format == Format::TorchDist && !same_keys(&a.catalog, &b.catalog) {
        renamed(a, b, &mut out)?
    } else {
        identities(&b.catalog, &mut out)?
    };
    let mut ours = identities(&a.catalog, &mut out)?;
    let (groups_a, groups_b) = (groups_experts(&a.catalog), groups_experts(&b.catalog));
    let each_expert = groups_a.is_some() && groups_b.is_some() && groups_a != groups_b;
    ours.extend(a.quantizers.iter().flat_map(|states| quantizer_tensors(states, each_expert)));
    theirs.extend(b.quantizers.iter().flat_map(|states| quantizer_tensors(states, each_expert)));
    if let (Some(states_a), Some(states_b)) = (&a.quantizers, &b.quantizers) {
        out.quantizers = differing_quantizers(states_a, states_b);
    }
    let mut theirs: BTreeMap<String, Recipe> = theirs.into_iter().map(|r| (r.name.clone(), r)).collect();
    for ours in ours {
        match theirs.remove(&ours.name) {
            None => out.only_a.push(ours.name),
            Some(their) if their.shape != ours.shape => out.shapes.push((ours.name, ours.shape, their.shape)),
            Some(their) => out.pairs.push((ours, their)),
        }
    }
    out.only_b.extend(theirs.into_keys());
    Ok(out)
}

/// Every tensor of a catalog as it is stored.
fn identities(catalog: &Catalog, out: &mut Pairs) -> Result<Vec<Recipe>> {
    let mut files = OpenFiles::new(catalog);
    let mut recipes = Vec::with_capacity(catalog.tensors.len());
    for name in catalog.tensors.keys() {
        match locate(catalog, &mut files, name)? {
            Ok(tensor) => recipes.push(identity(tensor)),
            Err(problem) => out.problems.push(problem),
        }
    }
    Ok(recipes)
}

#[track_caller]
fn identity(tensor: SourceTensor) -> Recipe {
    let rule = std::panic::Location::caller();
    let len = tensor.shape.iter().product();
    let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
    let parts = if len == 0 {
        Vec::new()
    } else {
        vec![Part { target: Region::all(len), source: Some((Arc::new(tensor), Region::all(len))) }]
    };
    let precision = Precision::default();
    let declared =
        Declared { shape: shape.clone(), precision, tp_axis: None, experts: false, place: Place::First, rule };
    Recipe { name, dtype, shape, parts, declared, computed: None }
}

/// The tensors of `b` under the names of `a`, which has the other format.
fn mapped(a: &Side, b: &Side, out: &mut Pairs) -> Result<Vec<Recipe>> {
    let (hf, mc) = if a.catalog.format == Format::Safetensors { (a, b) } else { (b, a) };
    let mut model = Model::from_folder(&hf.catalog.folder)?;
    model.check_converted(&hf.catalog.folder)?;
    let per_block = model.config.mtp.as_ref().map_or(1, |m| m.layers.len() as u64);
    model.settle_mtp(hf.catalog.tensors.keys(), per_block);
    out.notes.extend(model.notes.iter().map(|n| n.text.clone()));
    let padded = stored_vocab(&mc.catalog).unwrap_or(model.config.vocab_size).max(model.config.vocab_size);
    check_vocabulary(&model.config, padded, &mc.catalog.folder)?;
    let mapping = (model.architecture.mapping)(&model.config, &spec_keys(&mc.catalog), padded);
    let direction = if std::ptr::eq(a, hf) { Direction::Export } else { Direction::Import };
    let resolved = resolve(&mapping, &b.catalog, direction, &|_, _, source| source)?;
    if direction == Direction::Export {
        for fill in &mapping.fills {
            let name = &fill.mc.0;
            let (Some(declared), Ok(tensor)) =
                (mapping.mc.get(name), locate(&b.catalog, &mut OpenFiles::new(&b.catalog), name)?)
            else {
                continue;
            };
            if let Some(what) = surplus(tensor, &fill.mc.1, declared, &b.files)? {
                out.problems.push(Problem::Loss { tensor: name.clone(), what });
            }
        }
    }
    Ok(out.add(resolved))
}

/// The tensors of `b` under the names of `a`, which is torch_dist too and has other keys: another spec, experts each in
/// a tensor. Where nothing says which model it is, they keep their names.
fn renamed(a: &Side, b: &Side, out: &mut Pairs) -> Result<Vec<Recipe>> {
    let found = Model::from_torch_dist(&b.catalog, None).or_else(|_| Model::from_torch_dist(&a.catalog, None));
    let Some(mut model) = found.ok().filter(|model| model.architecture.is_converted()) else {
        return identities(&b.catalog, out);
    };
    model.settle_mtp(b.catalog.tensors.keys(), 1);
    let rows = stored_vocab(&b.catalog).unwrap_or(model.config.vocab_size).max(model.config.vocab_size);
    check_vocabulary(&model.config, rows, &b.catalog.folder)?;
    let mapping = |catalog| (model.architecture.mapping)(&model.config, &spec_keys(catalog), rows);
    let resolved = recut(&mapping(&b.catalog), &mapping(&a.catalog), &b.catalog, &|_, _, dtype| dtype)?;
    Ok(out.add(resolved))
}

/// Whether two catalogs name the tensors of a model alike.
fn same_keys(a: &Catalog, b: &Catalog) -> bool {
    let keys = |catalog| {
        let keys = spec_keys(catalog);
        (keys.norms, keys.single_experts)
    };
    keys(a) == keys(b)
}

/// The tensors of quantizers under the names of the checkpoint; or of experts each, which the specs have alike.
fn quantizer_tensors(states: &QuantizerStates, each_expert: bool) -> Vec<Recipe> {
    let mut seen = BTreeSet::new();
    let mut recipes = Vec::new();
    for (module, quantizer, stages) in states.list() {
        for (i, stage) in stages.iter().enumerate() {
            for (buffer, stored) in stage.tensors() {
                let number = if stages.len() == 1 { String::new() } else { format!(".{i}") };
                let mut recipe = identity((*stored.tensor).clone());
                if each_expert {
                    recipe.name = format!("{module}.{quantizer}{number}.{buffer}");
                    // Of one spec `[rows, n]`, of the other `[count, 1]`.
                    recipe.shape = vec![recipe.shape.iter().product()];
                }
                if seen.insert(recipe.name.clone()) {
                    recipes.push(recipe);
                }
            }
        }
    }
    recipes
}

fn differing_quantizers(a: &QuantizerStates, b: &QuantizerStates) -> Vec<(String, String, String)> {
    let all: BTreeSet<(&str, &str)> = [a, b].into_iter().flat_map(QuantizerStates::list).map(|q| (q.0, q.1)).collect();
    let told = |states: &QuantizerStates, (module, quantizer): (&str, &str)| {
        let stages = states.stages(module, quantizer).iter().filter(|stage| stage.attributes.enable);
        let stages: Vec<String> = stages.map(told).collect();
        if stages.is_empty() { "off".to_owned() } else { stages.join(", then ") }
    };
    let pair = |name: (&str, &str)| {
        let (a, b) = (told(a, name), told(b, name));
        (a != b).then(|| (format!("{}.{}", name.0, name.1), a, b))
    };
    all.into_iter().filter_map(pair).collect()
}

/// What a stage does, in few words.
fn told(stage: &Stage) -> String {
    let attributes = &stage.attributes;
    let axis = attributes.axis.map_or_else(String::new, |axis| format!(", axis {axis}"));
    let blocks = attributes.block_sizes.as_ref().map_or_else(String::new, |blocks| {
        let axes: Vec<String> = blocks.axes.iter().map(|(axis, n)| format!("{axis}: {}", n.unwrap_or(0))).collect();
        let kind = if blocks.dynamic == Some(true) { "dynamic" } else { "static" };
        let scale = blocks.scale_bits.map_or_else(String::new, |bits| format!(", scales {bits}"));
        format!(", {kind} blocks {{{}}}{scale}", axes.join(", "))
    });
    let dynamic = if attributes.dynamic { ", dynamic" } else { "" };
    format!("{} bit{axis}{blocks}{dynamic}", attributes.num_bits)
}

impl Pairs {
    /// The tensors of a mapping; what it finds wrong becomes differences.
    fn add(&mut self, resolved: Resolved) -> Vec<Recipe> {
        self.only_b.extend(resolved.unmapped);
        for problem in resolved.problems {
            match problem {
                // Reported from the other side as a tensor that only `a` holds.
                Problem::Missing { .. } => {}
                Problem::Shape { tensor, expected, found, .. } => self.shapes.push((tensor, expected, found)),
                other => self.problems.push(other),
            }
        }
        resolved.recipes
    }
}
