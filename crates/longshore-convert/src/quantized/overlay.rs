//! From the tensors of a plain checkpoint to those of a quantized one, on either side.

mod carried;
mod megatron;

pub(crate) use carried::carried;
pub use megatron::megatron;

use super::encode::{Encoding, Output, SharedAmax, Stage, Weight, is_shared, packed_dtype, rows_in_one};
use super::linear::Linear;
use super::{BlockShares, Calibrated, QuantLinear, Quantization};
use crate::error::Problem;
use crate::mapping::{Declared, Mapping};
use crate::region::Region;
use crate::resolve::{Computed, Part, Recipe, SourceTensor};
use longshore_ckpt::Dtype;
use longshore_quant::Scheme;
use longshore_quant::pack::{self, PackedType};
use longshore_quant::search::Search;
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
    let by_name: BTreeMap<String, Arc<Recipe>> =
        recipes.iter().map(|r| (r.name.clone(), Arc::new(Recipe { dtype: r.source_dtype(), ..r.clone() }))).collect();
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
        let weights: Vec<Arc<Weight>> =
            found.iter().map(|recipe| Arc::new(Weight::of(&[Arc::clone(recipe)]).scaled(columns.clone()))).collect();
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
            let tensor =
                constant(format!("{hf}.{suffix}"), Dtype::Float32, &[1], &scale.to_le_bytes(), &recipe.declared);
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
        let rows = stored.and_then(|tensor| rows_of(tensor, weight, region, &q.linear, scheme));
        let stored = rows.map(|rows| Weight::of(&[Arc::new(rows)]));
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
fn shares_of(clipped: &BlockShares, region: Option<&Region>, linear: &Linear) -> BlockShares {
    let per_row = clipped.index.len() as u64 / linear.rows.max(1);
    let Some(region) = region.and_then(|region| region.with_row_len(linear.cols, per_row)) else {
        return clipped.clone();
    };
    let runs = region.runs().flat_map(|run| clipped.index[run.start as usize..run.end as usize].iter().copied());
    BlockShares { shares: Arc::clone(&clipped.shares), index: runs.collect() }
}

/// The part of stored magnitudes that belongs to a weight's rows, where these are some of the linear's. `None` where they
/// cut squares in two: the weight then has magnitudes of its own.
fn rows_of(
    tensor: &Arc<SourceTensor>,
    weight: &Weight,
    region: Option<&Region>,
    linear: &Linear,
    scheme: Scheme,
) -> Option<Recipe> {
    let len: u64 = tensor.shape.iter().product();
    let height = rows_in_one(scheme);
    // Magnitudes of a padded vocabulary are more than those of its tokens.
    let stored_rows = if linear.is_output_layer { tensor.shape[0] } else { linear.rows.div_ceil(height) };
    let per_row = len / stored_rows.max(1);
    let source = match region {
        Some(region) => region.with_row_len(height * linear.cols, per_row)?,
        None if linear.is_output_layer => Region::rows(stored_rows, 0..weight.rows().div_ceil(height), per_row),
        None => Region::all(len),
    };
    let shape = vec![source.len() / per_row.max(1), per_row.max(1)];
    Some(Recipe {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        parts: vec![Part { target: Region::all(source.len()), source: Some((Arc::clone(tensor), source)) }],
        declared: weight.recipes().next()?.declared.clone(),
        shape,
        computed: None,
    })
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
        let shape: &[u64] =
            if matches!(scheme, Scheme::Nvfp4 { .. } | Scheme::Nvfp4Static { .. }) { &[] } else { &[1] };
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

fn bytes_of(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    super::encode::narrow(dtype, values, &mut bytes);
    bytes
}
