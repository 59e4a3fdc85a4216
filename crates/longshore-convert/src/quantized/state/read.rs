//! Taking the quantizers out of a catalog.

use super::attributes::{self, State};
use super::record::Record;
use crate::error::Problem;
use crate::resolve::{OpenFiles, SourceTensor, file_of, is_float, locate};
use crate::{Error, Result, cast};
use longshore_ckpt::tensor::element_count;
use longshore_ckpt::torch_dist::extra_state::ExtraState;
use longshore_ckpt::torch_dist::pickle::View;
use longshore_ckpt::{Catalog, Dtype, Format, torch_dist};
use longshore_quant::Attributes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most values of a tensor that is read into memory: the rows of a large vocabulary are 262,144.
const MAX_VALUES: u64 = 1 << 20;
/// Most quantizers of a module: two stages for each of many experts.
const MAX_QUANTIZERS: usize = 8192;

/// A tensor of a quantizer.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// Where it lies. A value of a whole tensor is stored as `[1]`, of rows as `[rows, 1]`, of blocks as `[rows, n]`.
    pub tensor: Arc<SourceTensor>,
    /// Its values in row-major order; `None` for blocks, of which there are many.
    pub values: Option<Arc<[f32]>>,
}

/// A quantizer, or one stage of several in sequence.
#[derive(Clone, Debug)]
pub struct Stage {
    /// What it does.
    pub attributes: Attributes,
    /// The calibrated magnitude.
    pub amax: Option<StoredTensor>,
    /// That of the whole tensor, where there is one for each block.
    pub global_amax: Option<StoredTensor>,
    /// What the input is multiplied by, per column.
    pub pre_quant_scale: Option<StoredTensor>,
}

impl Stage {
    /// Its tensors with the names that they have in it.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&'static str, &StoredTensor)> {
        let all =
            [("_amax", &self.amax), ("_global_amax", &self.global_amax), ("_pre_quant_scale", &self.pre_quant_scale)];
        all.into_iter().filter_map(|(name, tensor)| Some((name, tensor.as_ref()?)))
    }
}

/// The quantizers of a checkpoint.
#[derive(Debug)]
pub struct QuantizerStates {
    /// By module, as torch_dist names it with an expert each, and name in it: `decoder.layers.0.mixer.in_proj`,
    /// `weight_quantizer`.
    pub modules: BTreeMap<String, BTreeMap<String, Vec<Stage>>>,
    /// What the checkpoint says was done to the model.
    pub record: Option<Record>,
    /// Extra states of other programs, and what they are in words.
    pub unknown: Vec<(String, String)>,
}

impl QuantizerStates {
    /// Reads the quantizers of a catalog and removes their tensors from it, so that what is left looks like a plain
    /// checkpoint; `None` where there are none. Everything that is wrong with them is told together.
    pub fn read(catalog: &mut Catalog) -> Result<Option<Self>> {
        if catalog.format != Format::TorchDist {
            return Ok(None);
        }
        let names: BTreeMap<Name, String> =
            catalog.tensors.keys().filter_map(|full| Some((Name::parse(full)?, full.clone()))).collect();
        let record = Record::read(&catalog.folder)?;
        // Extra states of a plain checkpoint are empty, and there are thousands of them.
        if names.is_empty() && record.is_none() {
            return Ok(None);
        }
        let mut reader = Reader {
            catalog,
            files: OpenFiles::new(catalog),
            names: &names,
            used: BTreeSet::new(),
            unknown: Vec::new(),
            problems: Vec::new(),
        };
        let modules = reader.modules()?;
        reader.leftovers(&modules);
        let Reader { unknown, problems, .. } = reader;
        if !problems.is_empty() {
            return Err(Error::Refused(problems));
        }
        for full in names.values() {
            catalog.tensors.remove(full);
        }
        Ok(Some(Self { modules, record, unknown }))
    }

    /// Every quantizer: module, name in it, stages.
    pub(crate) fn list(&self) -> impl Iterator<Item = (&str, &str, &[Stage])> {
        self.modules.iter().flat_map(|(module, quantizers)| {
            quantizers.iter().map(move |(name, stages)| (module.as_str(), name.as_str(), stages.as_slice()))
        })
    }

    /// The stages of a quantizer, none where the checkpoint does not have it.
    pub fn stages(&self, module: &str, quantizer: &str) -> &[Stage] {
        self.modules.get(module).and_then(|module| module.get(quantizer)).map_or(&[], Vec::as_slice)
    }
}

/// The name of a tensor of a quantizer, `MODULE.weight_quantizer.0._amax`, in its parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    module: String,
    quantizer: String,
    stage: Option<usize>,
    buffer: String,
}

impl Name {
    fn parse(full: &str) -> Option<Self> {
        let parts: Vec<&str> = full.split('.').collect();
        let at = parts.iter().position(|part| part.ends_with("_quantizer"))?;
        let (stage, buffer) = match parts[at + 1..] {
            [buffer] => (None, buffer.to_owned()),
            [stage, buffer] if stage.parse::<usize>().is_ok() => (stage.parse().ok(), buffer.to_owned()),
            // Nothing that is known; refused as a tensor that no state speaks of.
            ref rest => (None, rest.join(".")),
        };
        Some(Self { module: parts[..at].join("."), quantizer: parts[at].to_owned(), stage, buffer })
    }
}

/// Whether a tensor is one of a quantizer, by its name.
pub(crate) fn is_of_quantizer(tensor: &str) -> bool {
    Name::parse(tensor).is_some()
}

/// The module and expert of an extra state's key: that of stacked experts is counted in its shard.
fn module_of(key: &str) -> Option<String> {
    let (module, shard) = key.split_once("._extra_state/shard_")?;
    let (index, count) = shard.split_once('_')?;
    if count == "1" {
        return Some(module.to_owned());
    }
    let expert: u64 = index.parse().ok()?;
    Some(module.replacen(EXPERTS, &format!("{EXPERTS}{expert}."), 1))
}

const EXPERTS: &str = ".experts.experts.";

/// The expert of a module and the module that its group shares: `….experts.experts.3.linear_fc1` gives 3 and
/// `….experts.experts.linear_fc1`.
fn expert_of(module: &str) -> Option<(usize, String)> {
    let (before, after) = module.split_once(EXPERTS)?;
    let (expert, linear) = after.split_once('.')?;
    Some((expert.parse().ok()?, format!("{before}{EXPERTS}{linear}")))
}

struct Reader<'a> {
    catalog: &'a Catalog,
    files: OpenFiles<'a>,
    names: &'a BTreeMap<Name, String>,
    /// Tensors that a state speaks of.
    used: BTreeSet<&'a str>,
    unknown: Vec<(String, String)>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn problem(&mut self, tensor: impl Into<String>, what: impl Into<String>) {
        self.problems.push(Problem::Quantize { tensor: tensor.into(), what: what.into() });
    }

    fn modules(&mut self) -> Result<BTreeMap<String, BTreeMap<String, Vec<Stage>>>> {
        let mut modules = BTreeMap::new();
        for (key, &extent) in &self.catalog.objects {
            let Some(module) = module_of(key) else { continue };
            let state = match torch_dist::read_extra_state(self.files.get(extent.file)?, extent) {
                Ok(state) => state,
                Err(error @ longshore_ckpt::Error::Io { .. }) => return Err(error.into()),
                Err(error) => {
                    let file = self.catalog.files[extent.file as usize].name.clone();
                    self.problems.push(Problem::Damaged { tensor: key.clone(), file, what: error.to_string() });
                    continue;
                }
            };
            let pickle = match state {
                ExtraState::Empty => continue,
                ExtraState::Pickled(pickle) => pickle,
                ExtraState::Unknown(what) => {
                    self.unknown.push((key.clone(), what));
                    continue;
                }
            };
            let root = pickle.root();
            if root.get("modelopt_real_quantizer_state").is_some_and(|state| !state.is_none()) {
                self.problem(key, "compressed weights (`real_quantize`) are not supported");
                continue;
            }
            let Some(states) = root.get("modelopt_quantizer_state").and_then(View::entries) else {
                self.unknown.push((key.clone(), "a state without modelopt_quantizer_state".into()));
                continue;
            };
            if states.len() > MAX_QUANTIZERS {
                self.problem(key, format!("its state has {} quantizers", states.len()));
                continue;
            }
            let mut quantizers: BTreeMap<&str, Numbered> = BTreeMap::new();
            for (name, state) in states {
                let Some((name, numbers)) = name.as_str().and_then(numbered) else {
                    self.problem(key, "the name of a quantizer is not one");
                    continue;
                };
                match attributes::state(state) {
                    Ok(state) => {
                        quantizers.entry(name).or_default().insert(numbers, state);
                    }
                    Err(what) => self.problem(format!("{module}.{name}"), what),
                }
            }
            let mut stages = BTreeMap::new();
            for (name, states) in quantizers {
                let Some(states) = in_sequence(states, expert_of(&module).map(|(expert, _)| expert)) else {
                    self.problem(format!("{module}.{name}"), "its stages are not numbered from 0");
                    continue;
                };
                let count = states.len();
                let read = states
                    .into_iter()
                    .enumerate()
                    .map(|(i, state)| self.stage(&module, name, (count > 1).then_some(i), state));
                stages.insert(name.to_owned(), read.collect::<Result<Vec<_>>>()?);
            }
            modules.insert(module, stages);
        }
        Ok(modules)
    }

    /// A stage with its tensors.
    fn stage(&mut self, module: &str, quantizer: &str, stage: Option<usize>, state: State) -> Result<Stage> {
        let State { attributes, buffers } = state;
        let blocks = attributes.block_sizes.as_ref().filter(|b| b.dynamic != Some(true));
        let is_blocked = blocks.is_some_and(|b| b.axes.iter().any(|(_, block)| block.is_some()));
        let [mut amax, mut global_amax, mut pre_quant_scale] = [None, None, None];
        for buffer in buffers {
            let name = |module: &str| Name {
                module: module.to_owned(),
                quantizer: quantizer.to_owned(),
                stage,
                buffer: buffer.clone(),
            };
            let own = name(module);
            // Grouped experts share the quantizers of input and output.
            let shared = || expert_of(module).and_then(|(_, shared)| self.names.get(&name(&shared)));
            let Some(full) = self.names.get(&own).or_else(shared) else {
                let number = stage.map_or_else(String::new, |stage| format!(".{stage}"));
                let full = format!("{module}.{quantizer}{number}.{buffer}");
                self.problem(full, "its quantizer has it, but it is not in the checkpoint");
                continue;
            };
            self.used.insert(full);
            match buffer.as_str() {
                "_amax" => {
                    let most = if attributes.axis.is_some() { MAX_VALUES } else { 1 };
                    amax = self.tensor(full, (!is_blocked).then_some(most), true)?;
                }
                "_global_amax" => global_amax = self.tensor(full, Some(1), true)?,
                "_pre_quant_scale" => pre_quant_scale = self.tensor(full, Some(MAX_VALUES), false)?,
                _ => self.problem(full, "this tensor of a quantizer is not supported"),
            }
        }
        Ok(Stage { attributes, amax, global_amax, pre_quant_scale })
    }

    /// Locates a tensor, and reads its values where `most` of them are expected.
    fn tensor(&mut self, full: &str, most: Option<u64>, is_amax: bool) -> Result<Option<StoredTensor>> {
        let tensor = match locate(self.catalog, &mut self.files, full)? {
            Ok(tensor) => tensor,
            Err(problem) => {
                self.problems.push(problem);
                return Ok(None);
            }
        };
        if !is_float(tensor.dtype) || tensor.dtype == Dtype::Float64 {
            let file = file_of(self.catalog, full);
            let (what, rule) = ("expected a float of 16 or 32 bits".into(), String::new());
            self.problems.push(Problem::Dtype { tensor: full.into(), file, found: tensor.dtype, what, rule });
            return Ok(None);
        }
        let tensor = Arc::new(tensor);
        let Some(most) = most else { return Ok(Some(StoredTensor { tensor, values: None })) };
        let count = element_count(&tensor.shape).filter(|&count| (1..=most).contains(&count));
        if count.is_none() {
            self.problem(full, format!("expected 1 to {most} values, found the shape {:?}", tensor.shape));
            return Ok(None);
        }
        let values = stored_values(&tensor, |file, offset, bytes| self.files.get(file)?.read_exact_at(offset, bytes))?;
        if let Some(bad) = values.iter().find(|v| !v.is_finite() || (is_amax && **v < 0.0)) {
            self.problem(full, format!("expected finite values{}, found {bad}", if is_amax { " from 0" } else { "" }));
            return Ok(None);
        }
        Ok(Some(StoredTensor { tensor, values: Some(values.into()) }))
    }

    /// What no state speaks of, and weights that are not those of a plain checkpoint.
    fn leftovers(&mut self, modules: &BTreeMap<String, BTreeMap<String, Vec<Stage>>>) {
        let is_scale = |name: &Name| matches!(name.buffer.as_str(), "_scale" | "_double_scale" | "_scale_zeros");
        let orphans = self.names.iter().filter(|(_, full)| !self.used.contains(full.as_str()));
        let (scales, orphans): (Vec<_>, Vec<_>) = orphans.partition(|(name, _)| is_scale(name));
        for (_, full) in orphans {
            self.problem(full, "no `_extra_state` says what its quantizer does");
        }
        let is_packed = |dtype| matches!(dtype, Dtype::Uint8 | Dtype::Int8 | Dtype::Float8E4m3 | Dtype::Float8E5m2);
        let weight = |module: &String| format!("{module}.weight");
        let packed =
            modules.keys().map(weight).filter(|w| self.catalog.tensors.get(w).is_some_and(|t| is_packed(t.dtype)));
        let compressed: Vec<String> = packed.chain(scales.into_iter().map(|(_, full)| full.clone())).collect();
        if let Some(first) = compressed.first() {
            let more = compressed.len() - 1;
            let what = format!("compressed weights (`--compress`) are not supported; {more} more tensors of that kind");
            self.problem(first, what);
        }
    }
}

/// The values of a tensor in row-major order, widened. `read(file, offset, bytes)` fills the bytes.
pub(crate) fn stored_values(
    tensor: &SourceTensor,
    mut read: impl FnMut(u32, u64, &mut [u8]) -> longshore_ckpt::Result<()>,
) -> longshore_ckpt::Result<Vec<f32>> {
    let mut out = vec![0.0; tensor.shape.iter().product::<u64>() as usize];
    for (rect, extent) in &tensor.chunks {
        let mut bytes = vec![0; extent.len as usize];
        read(extent.file, extent.offset, &mut bytes)?;
        let mut values = vec![0.0; rect.len() as usize];
        cast::widen(tensor.dtype, &bytes, &mut values);
        let mut local = 0;
        while local < values.len() {
            let (at, run) = rect.run_at(&tensor.shape, local as u64);
            let (at, run) = (at as usize, (run as usize).min(values.len() - local));
            out[at..at + run].copy_from_slice(&values[local..local + run]);
            local += run;
        }
    }
    Ok(out)
}

/// The states of one quantizer's stages or experts, by the numbers after its name.
type Numbered = BTreeMap<Vec<usize>, State>;

/// `weight_quantizer.3.0` is `weight_quantizer` and 3, 0.
fn numbered(name: &str) -> Option<(&str, Vec<usize>)> {
    let (name, numbers) = name.split_once('.').unwrap_or((name, ""));
    let numbers = numbers.split('.').filter(|n| !n.is_empty()).map(|n| n.parse().ok()).collect::<Option<Vec<_>>>()?;
    name.ends_with("_quantizer").then_some((name, numbers))
}

/// Whether the numbers, of which there are `depth`, begin with that of an expert.
///
/// `weight_quantizer.0` and `.1` may be two stages or two experts. Experts of a group all do the same and a sequence of
/// two equal stages makes no sense, so that this tells them apart.
fn is_grouped(states: &Numbered, depth: usize) -> bool {
    let same = || states.values().all(|state| Some(&state.attributes) == states.values().next().map(|s| &s.attributes));
    depth == 2 || (depth == 1 && same())
}

/// Whether the experts of a checkpoint with quantizers were one module; `None` where no state tells.
pub(crate) fn groups_experts(catalog: &Catalog) -> Option<bool> {
    let is_expert = |key: &&String| module_of(key).is_some_and(|module| expert_of(&module).is_some());
    let mut files = OpenFiles::new(catalog);
    catalog.objects.keys().filter(is_expert).find_map(|key| {
        let extent = catalog.objects[key];
        let ExtraState::Pickled(pickle) = torch_dist::read_extra_state(files.get(extent.file).ok()?, extent).ok()?
        else {
            return None;
        };
        let states = pickle.root().get("modelopt_quantizer_state").and_then(View::entries)?;
        let weights = states.take(MAX_QUANTIZERS).filter_map(|(name, state)| {
            let (name, numbers) = numbered(name.as_str()?)?;
            (name == "weight_quantizer").then(|| Some((numbers, attributes::state(state).ok()?)))?
        });
        let weights: Numbered = weights.collect();
        Some(is_grouped(&weights, weights.keys().next()?.len()))
    })
}

/// The stages in order, of the one expert where it is grouped with others. A group holds the experts of one rank, each rank's
/// from 0, hence the remainder.
fn in_sequence(states: Numbered, expert: Option<usize>) -> Option<Vec<State>> {
    let depth = states.keys().next()?.len();
    if states.keys().any(|numbers| numbers.len() != depth) {
        return None;
    }
    let Some(expert) = expert.filter(|_| is_grouped(&states, depth)) else {
        let counted = states.keys().enumerate().all(|(i, numbers)| numbers.is_empty() || *numbers == [i]);
        return (depth < 2 && counted).then(|| states.into_values().collect());
    };
    let group: BTreeSet<usize> = states.keys().map(|numbers| numbers[0]).collect();
    let local = expert % group.len();
    let stages: Vec<(Vec<usize>, State)> = states.into_iter().filter(|(numbers, _)| numbers[0] == local).collect();
    let counted = stages.iter().enumerate().all(|(i, (numbers, _))| numbers.get(1).is_none_or(|&stage| stage == i));
    (counted && !stages.is_empty()).then(|| stages.into_iter().map(|(_, state)| state).collect())
}
