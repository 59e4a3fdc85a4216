//! From the tensors of a plain checkpoint to those of a quantized one, on either side.

use super::encode::{Encoding, Output, SharedAmax, Stage, Weight, is_shared, packed_dtype};
use super::{BlockShares, Calibrated, QuantLinear, Quantization};
use crate::error::Problem;
use crate::mapping::{Declared, Mapping};
use crate::region::Region;
use crate::resolve::{Computed, Part, Recipe, SourceTensor};
use longshore_ckpt::Dtype;
use longshore_quant::pack::{self, PackedType};
use longshore_quant::search::{Search, keeps_element};
use longshore_quant::{Granularity, Scheme, amax};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Choices of an export.
#[derive(Clone, Copy, Debug, Default)]
pub struct HfForm {
    /// Reproduce the reference's defects: scales of the KV cache not below 1.
    pub compat_modelopt: bool,
}

/// The Hugging Face tensors of a quantized checkpoint, from those of the plain one, in order. `mapping` ties them to the
/// Megatron side, whose modules the quantization is about.
pub fn hugging_face(
    recipes: Vec<Recipe>,
    mapping: &Mapping,
    quantization: &Quantization,
    calibrated: &Calibrated,
    form: HfForm,
) -> Result<Vec<Recipe>, Vec<Problem>> {
    let mut problems = Vec::new();
    let by_name: BTreeMap<String, Arc<Recipe>> = recipes
        .iter()
        .map(|r| (r.name.clone(), Arc::new(Recipe { dtype: r.source_dtype(), ..r.clone() })))
        .collect();
    let regions: BTreeMap<&str, (&str, &Region)> =
        mapping.ties.iter().map(|t| (t.hf.0.as_str(), (t.mc.0.as_str(), &t.mc.1))).collect();
    let mut replaced: BTreeMap<String, Vec<Recipe>> = BTreeMap::new();
    for q in quantization.linears.iter().filter(|q| !q.weight_schemes.is_empty()) {
        let names: Vec<String> = q.linear.hf.iter().map(|hf| format!("{hf}.weight")).collect();
        let found: Option<Vec<&Arc<Recipe>>> = names.iter().map(|name| by_name.get(name)).collect();
        let Some(found) = found else {
            let what = "its weight is not in the output (tied embeddings?)".into();
            problems.push(Problem::Quantize { tensor: q.linear.module.clone(), what });
            continue;
        };
        let columns = calibrated.columns(&q.linear.module);
        let weights: Vec<Arc<Weight>> = found
            .iter()
            .map(|recipe| Arc::new(Weight::of(&[Arc::clone(recipe)]).scaled(columns.clone())))
            .collect();
        let shared = Arc::new(match calibrated.weight_amax(&q.linear.module) {
            Some(value) => SharedAmax::known(value),
            None => searched(SharedAmax::new(weights.clone()), q, calibrated),
        });
        for ((name, recipe), weight) in names.iter().zip(&found).zip(&weights) {
            let region = regions.get(name.as_str()).filter(|_| names.len() > 1).map(|(_, region)| *region);
            let stages = stages(q, calibrated, weight, region);
            let encoding = Arc::new(Encoding { weight: Arc::clone(weight), stages, shared: Arc::clone(&shared) });
            match packed(name, recipe, &encoding, q, calibrated) {
                Ok(tensors) => {
                    replaced.insert(name.clone(), tensors);
                }
                Err(problem) => problems.push(problem),
            }
        }
    }
    for kv in &quantization.kv {
        for (of, hf, suffix) in [(1, &kv.hf_k, "k_scale"), (2, &kv.hf_v, "v_scale")] {
            let recipe = by_name.get(&format!("{hf}.weight"));
            let (Some(amax), Some(recipe)) = (kv.amax(calibrated, of), recipe) else { continue };
            let scale = amax / kv.max_value(of);
            let scale = if form.compat_modelopt { scale.max(1.0) } else { scale };
            let tensor = constant(format!("{hf}.{suffix}"), Dtype::Float32, &[1], &scale.to_le_bytes(), &recipe.declared);
            let name = format!("{hf}.weight");
            let plain = || vec![recipes.iter().find(|r| r.name == name).cloned()].into_iter().flatten().collect();
            replaced.entry(name.clone()).or_insert_with(plain).push(tensor);
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(recipes.into_iter().flat_map(|recipe| replaced.remove(&recipe.name).unwrap_or_else(|| vec![recipe])).collect())
}

/// The stages of a weight, with the stored magnitudes of its rows or blocks.
fn stages(q: &QuantLinear, calibrated: &Calibrated, weight: &Weight, region: Option<&Region>) -> Vec<Stage> {
    let stage = |(at, &scheme): (usize, &Scheme)| {
        let stored = calibrated.stored_amax(&q.linear.module, at).filter(|_| !is_whole(scheme));
        let stored = stored.map(|tensor| Weight::of(&[Arc::new(rows_of(tensor, weight, region, &q.linear))]));
        let search = weight_search(q, calibrated).filter(|search| stored.is_none() && search.applies(scheme)).cloned();
        let clipped = calibrated.clipped.get(&q.linear.module).filter(|_| at == 0 && stored.is_none());
        Stage { scheme, stored, search, clipped: clipped.map(|clipped| shares_of(clipped, region, &q.linear)) }
    };
    q.weight_schemes.iter().enumerate().map(stage).collect()
}

/// How the magnitudes of a weight are searched for. ModelOpt leaves out those that are quantized in sequence.
fn weight_search<'a>(q: &QuantLinear, calibrated: &'a Calibrated) -> Option<&'a Search> {
    calibrated.weight_search.as_ref().filter(|_| q.weight_schemes.len() == 1)
}

fn searched(shared: SharedAmax, q: &QuantLinear, calibrated: &Calibrated) -> SharedAmax {
    match q.weight_schemes[..] {
        [scheme] => shared.searched(weight_search(q, calibrated), scheme),
        _ => shared,
    }
}

fn is_whole(scheme: Scheme) -> bool {
    is_shared(scheme) && !matches!(scheme, Scheme::Nvfp4Static { .. })
}

/// The shares of the blocks that belong to a weight's rows.
fn shares_of(clipped: &BlockShares, region: Option<&Region>, linear: &super::linear::Linear) -> BlockShares {
    let per_row = clipped.index.len() as u64 / linear.rows.max(1);
    let Some(region) = region.and_then(|region| region.with_row_len(linear.cols, per_row)) else { return clipped.clone() };
    let runs = region.runs().flat_map(|run| clipped.index[run.start as usize..run.end as usize].iter().copied());
    BlockShares { shares: Arc::clone(&clipped.shares), index: runs.collect() }
}

/// The rows of a stored magnitude `[rows of the linear / r, n]` that belong to a weight's rows.
fn rows_of(tensor: &Arc<SourceTensor>, weight: &Weight, region: Option<&Region>, linear: &super::linear::Linear) -> Recipe {
    let len: u64 = tensor.shape.iter().product();
    let per_row = len / linear.rows.max(1);
    let rows = region.and_then(|region| region.with_row_len(linear.cols, per_row));
    let source = rows.unwrap_or_else(|| Region::all(len));
    let shape = vec![source.len() / per_row.max(1), per_row.max(1)];
    let declared = weight.recipes().next().map(|r| r.declared.clone());
    Recipe {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        parts: vec![Part { target: Region::all(source.len()), source: Some((Arc::clone(tensor), source)) }],
        declared: declared.unwrap_or_else(|| unreachable!("a weight has a tensor")),
        shape,
        computed: None,
    }
}

/// The tensors that take the place of one weight.
fn packed(
    name: &str,
    recipe: &Recipe,
    encoding: &Arc<Encoding>,
    q: &QuantLinear,
    calibrated: &Calibrated,
) -> Result<Vec<Recipe>, Problem> {
    let problem = |what: String| Problem::Quantize { tensor: name.into(), what };
    let layout = pack::layout(&q.weight_schemes, encoding.weight.rows(), encoding.weight.cols())
        .map_err(|e| problem(e.to_string()))?;
    let computed = |name: String, dtype: PackedType, shape: Vec<u64>, output: Output| Recipe {
        name,
        dtype: packed_dtype(dtype),
        shape,
        parts: Vec::new(),
        declared: recipe.declared.clone(),
        computed: Some(Computed::Encoded(Arc::clone(encoding), output)),
    };
    let module = name.trim_end_matches(".weight");
    let mut tensors = vec![computed(name.into(), layout.weight.dtype, layout.weight.shape, Output::Values)];
    if let Some(scale) = layout.scale {
        tensors.push(computed(format!("{name}_scale"), scale.dtype, scale.shape, Output::Scale));
    }
    if layout.scale_2 {
        tensors.push(computed(format!("{name}_scale_2"), PackedType::F32, Vec::new(), Output::Scale2));
    }
    let module_key = &q.linear.module;
    if let Some(scheme) = q.input_scheme
        && let Some(scale) = calibrated.inputs.get(module_key).and_then(|&amax| pack::input_scale(scheme, amax))
    {
        let bytes = scale.to_le_bytes();
        // As the reference shapes them.
        let shape: &[u64] = if matches!(scheme, Scheme::Nvfp4 { .. } | Scheme::Nvfp4Static { .. }) { &[] } else { &[1] };
        tensors.push(constant(format!("{module}.input_scale"), Dtype::Float32, shape, &bytes, &recipe.declared));
    }
    if let Some(scale) = calibrated.pre_quant_scales.get(module_key) {
        let dtype = encoding.weight.dtype();
        let (name, shape) = (format!("{module}.pre_quant_scale"), [scale.len() as u64]);
        tensors.push(constant(name, dtype, &shape, &bytes_of(dtype, scale), &recipe.declared));
    }
    Ok(tensors)
}

/// A tensor whose bytes are known.
pub(super) fn constant(name: String, dtype: Dtype, shape: &[u64], bytes: &[u8], declared: &Declared) -> Recipe {
    Recipe {
        name,
        dtype,
        shape: shape.to_vec(),
        parts: Vec::new(),
        declared: Declared { shape: shape.to_vec(), tp_axis: None, experts: false, ..declared.clone() },
        computed: Some(Computed::Bytes(bytes.into())),
    }
}

/// Adds to the Megatron tensors of a plain checkpoint those of its quantizers. `recipes` have an expert each (local spec)
/// or all experts in one tensor (TE spec).
pub fn megatron(
    recipes: &mut Vec<Recipe>,
    mapping: &Mapping,
    quantization: &Quantization,
    calibrated: &Calibrated,
) -> Result<(), Vec<Problem>> {
    let mut problems = Vec::new();
    let weights = weights_of_modules(recipes, mapping);
    let mut added: Vec<Recipe> = Vec::new();
    for group in quantization.groups() {
        let grouped = quantization.grouped_experts() && group[0].linear.expert.is_some();
        let module = if grouped { group[0].linear.grouped_module() } else { group[0].linear.module.clone() };
        let Some(parts) = weights.get(&module) else {
            if group[0].is_quantized() {
                let what = "it has no weight of its own (tied embeddings)".into();
                problems.push(Problem::Quantize { tensor: module, what });
            }
            continue;
        };
        let sources: Vec<Arc<Recipe>> = parts.iter().map(|&i| Arc::new(recipes[i].clone())).collect();
        let group = Group { module, linears: group, sources, grouped, calibrated };
        match group.tensors() {
            Ok(tensors) => added.extend(tensors),
            Err(mut found) => problems.append(&mut found),
        }
        if let Some(scaled) = group.scaled() {
            for (&i, computed) in parts.iter().zip(scaled) {
                recipes[i].computed = Some(computed);
            }
        }
    }
    for kv in &quantization.kv {
        let declared = recipes.iter().find(|r| r.name == kv.qkv_weight()).map(|r| (r.declared.clone(), r.dtype));
        let Some((declared, dtype)) = declared else { continue };
        for (of, letter) in ["q", "k", "v"].into_iter().enumerate() {
            if let Some(amax) = kv.amax(calibrated, of) {
                let bytes = bytes_of(dtype, &[amax]);
                let name = format!("{}.{letter}_bmm_quantizer._amax", kv.module);
                added.push(constant(name, dtype, &[], &bytes, &declared));
            }
        }
    }
    recipes.extend(added);
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// The weights of every module, in the order of its rows: an input projection is stored in parts.
fn weights_of_modules(recipes: &[Recipe], mapping: &Mapping) -> BTreeMap<String, Vec<usize>> {
    let first_row: BTreeMap<&str, u64> = mapping.ties.iter().map(|t| (t.mc.0.as_str(), t.hf.1.at(0).0)).collect();
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, recipe) in recipes.iter().enumerate() {
        if let Some(at) = recipe.name.rfind(".weight") {
            found.entry(recipe.name[..at].into()).or_default().push(i);
        }
    }
    for parts in found.values_mut() {
        parts.sort_by_key(|&i| first_row.get(recipes[i].name.as_str()));
    }
    found
}

/// The linears of one Megatron module.
struct Group<'a> {
    module: String,
    linears: Vec<&'a QuantLinear>,
    sources: Vec<Arc<Recipe>>,
    /// Whether they are the experts of one tensor.
    grouped: bool,
    calibrated: &'a Calibrated,
}

impl Group<'_> {
    fn weight(&self, q: &QuantLinear) -> Weight {
        let weight = match q.linear.expert.filter(|_| self.grouped) {
            Some(e) => Weight::expert(&self.sources[0], e),
            None => Weight::of(&self.sources),
        };
        weight.scaled(self.calibrated.columns(&q.linear.module))
    }

    fn encoding(&self, q: &QuantLinear) -> Arc<Encoding> {
        let weight = Arc::new(self.weight(q));
        let shared = Arc::new(match self.calibrated.weight_amax(&q.linear.module) {
            Some(value) => SharedAmax::known(value),
            None => searched(SharedAmax::new(vec![Arc::clone(&weight)]), q, self.calibrated),
        });
        let stages = stages(q, self.calibrated, &weight, None);
        Arc::new(Encoding { weight, stages, shared })
    }

    /// The tensors of its quantizers.
    fn tensors(&self) -> Result<Vec<Recipe>, Vec<Problem>> {
        let first = self.linears[0];
        let (declared, dtype) = (&self.sources[0].declared, self.sources[0].dtype);
        let encodings: Vec<_> = self.linears.iter().map(|q| self.encoding(q)).collect();
        let mut added = Vec::new();
        for (stage, &scheme) in first.weight_schemes.iter().enumerate() {
            let number = if first.weight_schemes.len() > 1 { format!(".{stage}") } else { String::new() };
            let quantizer = format!("{}.weight_quantizer{number}", self.module);
            let (rows, cols) = (first.linear.rows, first.linear.cols);
            let shape = amax_shape(scheme, rows, cols).map_err(|e| {
                vec![Problem::Quantize { tensor: self.module.clone(), what: e.to_string() }]
            })?;
            let Some(shape) = shape else { continue };
            let stored = if keeps_element(scheme) { dtype } else { Dtype::Float32 };
            let mut add = |name: &str, dtype, shape: &[u64], output| {
                let one = |encoding: &Arc<Encoding>| Recipe {
                    computed: Some(Computed::Encoded(Arc::clone(encoding), output)),
                    ..constant(name.into(), dtype, shape, &[], declared)
                };
                let mut each: Vec<Recipe> = encodings.iter().map(one).collect();
                added.push(if self.grouped { joined(name.into(), each, declared) } else { each.swap_remove(0) });
            };
            add(&format!("{quantizer}._amax"), stored, &shape, Output::Amax(stage, stored));
            if matches!(scheme, Scheme::Nvfp4Static { .. }) {
                add(&format!("{quantizer}._global_amax"), Dtype::Float32, &[1], Output::GlobalAmax);
            }
        }
        let amax = self.calibrated.inputs.get(&first.linear.module);
        if let (Some(scheme), Some(&amax)) = (first.input_scheme, amax)
            && pack::input_scale(scheme, amax).is_some()
        {
            let name = format!("{}.input_quantizer._amax", self.module);
            added.push(constant(name, dtype, &[1], &bytes_of(dtype, &[amax]), declared));
        }
        if let Some(scale) = self.calibrated.pre_quant_scales.get(&first.linear.module) {
            let name = format!("{}.input_quantizer._pre_quant_scale", self.module);
            added.push(constant(name, dtype, &[scale.len() as u64], &bytes_of(dtype, scale), declared));
        }
        Ok(added)
    }

    /// What its weights become where columns are scaled, in the order of the tensors.
    fn scaled(&self) -> Option<Vec<Computed>> {
        self.linears.iter().find_map(|q| self.calibrated.columns(&q.linear.module))?;
        let of = |weight: Weight| {
            let shared = Arc::new(SharedAmax::known(0.0));
            Computed::Encoded(Arc::new(Encoding { weight: Arc::new(weight), stages: Vec::new(), shared }), Output::Scaled)
        };
        if !self.grouped {
            let columns = self.calibrated.columns(&self.linears[0].linear.module);
            let part = |source: &Arc<Recipe>| of(Weight::of(&[Arc::clone(source)]).scaled(columns.clone()));
            return Some(self.sources.iter().map(part).collect());
        }
        let (source, shape) = (&self.sources[0], &self.sources[0].shape[1..]);
        let expert = |q: &&QuantLinear| Recipe {
            computed: Some(of(self.weight(q))),
            ..constant(String::new(), source.dtype, shape, &[], &source.declared)
        };
        Some(vec![Computed::Joined(self.linears.iter().map(expert).collect())])
    }
}

/// Tensors of one shape on a new leading axis.
fn joined(name: String, each: Vec<Recipe>, declared: &Declared) -> Recipe {
    let shape: Vec<u64> = std::iter::once(each.len() as u64).chain(each[0].shape.iter().copied()).collect();
    Recipe { computed: Some(Computed::Joined(each.clone())), ..constant(name, each[0].dtype, &shape, &[], declared) }
}

fn bytes_of(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    super::encode::narrow(dtype, values, &mut bytes);
    bytes
}

/// The shape in which Megatron stores the magnitudes of a weight; `None` where there are none.
fn amax_shape(scheme: Scheme, rows: u64, cols: u64) -> longshore_quant::Result<Option<Vec<u64>>> {
    let count = amax::count(scheme, rows as usize, cols as usize)? as u64;
    Ok(match scheme {
        Scheme::Mx(_) | Scheme::Fp8(Granularity::Token) | Scheme::Int8(Granularity::Token) => None,
        _ if is_whole(scheme) => Some(vec![1]),
        Scheme::Fp8(Granularity::Square(n)) | Scheme::Int8(Granularity::Square(n)) => {
            Some(vec![rows / n as u64, cols / n as u64])
        }
        _ => Some(vec![rows, count / rows.max(1)]),
    })
}
