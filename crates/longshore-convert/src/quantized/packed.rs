//! Packed weights of a Hugging Face folder, read as the values that they stand for.
//!
//! Whose tensors they are is told by their names (`weight_scale`, `weight_scale_2`, `weight_scale_inv`, `input_scale`,
//! `pre_quant_scale`, `k_scale`, `v_scale`), how they are packed by dtypes and shapes; what happens to the inputs is told by
//! the config's `quant_algo`. `take` removes all of it from a catalog and leaves plain weights in its place; whatever
//! reads one of these then gets the values, row by row ([`Packed::read`]).

use super::linear::{Linear, Naming, linears};
use super::{Calibrated, KvQuantizers, QuantLinear, Quantization, WeightAmax};
use crate::Result;
use crate::config::LayerSpec;
use crate::config::json;
use crate::error::Problem;
use crate::model::Model;
use crate::resolve::{OpenFiles, Recipe, SourceTensor, locate};
use longshore_ckpt::fs::{self, ReadFile};
use longshore_ckpt::{Catalog, Dtype, Rect};
use longshore_quant::pack::QuantizedRows;
use longshore_quant::unpack::{Encoding, unpack};
use longshore_quant::{Attributes, Element, Granularity, MxElement, Scheme};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Largest config that is read: a model of many experts lists each of them.
const MAX_CONFIG: u64 = 64 << 20;

/// A packed weight.
#[derive(Debug)]
pub struct Packed {
    encoding: Encoding,
    scheme: Scheme,
    /// What values are rounded to.
    element: Element,
    cols: u64,
    rows: u64,
    weight: SourceTensor,
    scale: SourceTensor,
    scale_2: f32,
}

impl Packed {
    /// Columns.
    pub fn cols(&self) -> u64 {
        self.cols
    }

    /// The values of `len` elements from the `at`-th on, in row-major order.
    pub fn read(&self, files: &[ReadFile], at: u64, len: u64) -> longshore_ckpt::Result<Vec<f32>> {
        let unit = self.band_rows();
        let first = at / self.cols / unit * unit;
        let last = (at + len).div_ceil(self.cols).next_multiple_of(unit).min(self.rows);
        let QuantizedRows { weight, scale, .. } = self.codes(files, first..last)?;
        let mut out = vec![0.0; ((last - first) * self.cols) as usize];
        unpack(self.encoding, self.element, self.cols as usize, &weight, &scale, self.scale_2, &mut out);
        out.drain(..(at - first * self.cols) as usize);
        out.truncate(len as usize);
        Ok(out)
    }

    /// How it is quantized.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Rows.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows that lie together: codes are read from a multiple of it on, up to one or to the end.
    pub fn band_rows(&self) -> u64 {
        self.encoding.band_rows() as u64
    }

    /// What is stored of whole rows.
    pub fn codes(&self, files: &[ReadFile], rows: Range<u64>) -> longshore_ckpt::Result<QuantizedRows> {
        let Range { start: first, end: last } = rows;
        let weight = part(&self.weight, files, self.rows, first, last)?;
        let scale = match self.encoding {
            Encoding::Fp8 => part(&self.scale, files, 1, 0, 1)?,
            Encoding::Fp8Square { rows: n, .. } | Encoding::Fp8ScaleInv { rows: n, .. } => {
                let n = n as u64;
                part(&self.scale, files, self.rows.div_ceil(n), first / n, last.div_ceil(n))?
            }
            _ => part(&self.scale, files, self.rows, first, last)?,
        };
        let scale_2 = matches!(self.encoding, Encoding::Nvfp4 { .. }).then_some(self.scale_2);
        Ok(QuantizedRows { weight, scale, scale_2 })
    }
}

/// The bytes of rows `first..last` of a tensor that is stored in one piece and has a share for each of `rows` rows.
fn part(
    tensor: &SourceTensor,
    files: &[ReadFile],
    rows: u64,
    first: u64,
    last: u64,
) -> longshore_ckpt::Result<Vec<u8>> {
    let Some((_, extent)) = tensor.chunks.first() else { return Ok(Vec::new()) };
    let share = |row: u64| extent.len * row / rows.max(1);
    let mut bytes = vec![0; (share(last) - share(first)) as usize];
    files[extent.file as usize].read_exact_at(extent.offset + share(first), &mut bytes)?;
    Ok(bytes)
}

/// The packed weights of a folder, and what happens to inputs.
pub(crate) struct PackedFolder {
    weights: BTreeMap<String, Arc<Packed>>,
    /// What its quantizers do; weights are already what they do to them.
    pub(crate) quantization: Quantization,
    /// Magnitudes.
    pub(crate) calibrated: Calibrated,
    /// What is wrong with them, to be told with whatever else is.
    pub(crate) problems: Vec<Problem>,
}

impl PackedFolder {
    /// Makes recipes read the values.
    pub(crate) fn attach(&self, recipes: &mut [Recipe]) {
        let sources = recipes.iter_mut().flat_map(|r| &mut r.parts).filter_map(|part| part.source.as_mut());
        for (tensor, _) in sources {
            if let Some(packed) = self.weights.get(&tensor.name) {
                *tensor = Arc::new(SourceTensor { packed: Some(Arc::clone(packed)), ..(**tensor).clone() });
            }
        }
    }
}

/// The quantization config of a folder: config.json's, else `hf_quant_config.json`.
pub(crate) fn config(folder: &Path) -> Result<Option<Value>> {
    for (name, key) in [("config.json", Some("quantization_config")), ("hf_quant_config.json", None)] {
        let path = folder.join(name);
        if !fs::exists(&path) {
            continue;
        }
        let mut value = json::parse(&fs::read_small(&path, MAX_CONFIG)?).map_err(|e| e.in_file(&path, 0))?;
        let found = match key {
            Some(key) => value.get_mut(key).map(Value::take),
            None => Some(value),
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Takes the packed weights out of a catalog; `None` where there are none. `config` is the quantization config.
pub(crate) fn take(catalog: &mut Catalog, model: &Model, config: Option<&Value>) -> Result<Option<PackedFolder>> {
    let is_scale = |name: &str| SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
    if !catalog.tensors.keys().any(|name| is_scale(name)) {
        return Ok(None);
    }
    let dtype = model.config.dtype.filter(|d| matches!(d, Dtype::Float16 | Dtype::Float32)).unwrap_or(Dtype::Bfloat16);
    let mut reader = Reader { catalog, problems: Vec::new(), weights: BTreeMap::new(), dtype };
    let mut calibrated = Calibrated { weights_are_scaled: true, weights_are_values: true, ..Calibrated::default() };
    let mut quantized = Vec::new();
    for linear in linears(model.architecture, &model.config) {
        quantized.push(reader.linear(linear, config, &mut calibrated)?);
    }
    let mut kv = Vec::new();
    for (index, spec) in model.config.layers.iter().enumerate() {
        if matches!(spec, LayerSpec::Attention(_)) {
            kv.extend(reader.attention(index, &mut calibrated)?);
        }
    }
    let Reader { problems, weights, .. } = reader;
    for (name, packed) in &weights {
        if let Some(info) = catalog.tensors.get_mut(name) {
            info.dtype = dtype;
            info.shape = vec![packed.rows, packed.cols];
            for chunk in &mut info.chunks {
                chunk.rect = Rect::whole(&info.shape);
            }
        }
    }
    catalog.tensors.retain(|name, _| !is_scale(name));
    let quantization = Quantization { naming: Naming::HuggingFace, linears: quantized, kv, warnings: Vec::new() };
    Ok(Some(PackedFolder { weights, quantization, calibrated, problems }))
}

/// Endings of the tensors that belong to a weight or a cache.
const SUFFIXES: [&str; 7] = [
    ".weight_scale",
    ".weight_scale_2",
    ".weight_scale_inv",
    ".input_scale",
    ".pre_quant_scale",
    ".k_scale",
    ".v_scale",
];

struct Reader<'a> {
    catalog: &'a Catalog,
    problems: Vec<Problem>,
    weights: BTreeMap<String, Arc<Packed>>,
    dtype: Dtype,
}

impl Reader<'_> {
    fn problem(&mut self, tensor: &str, what: impl Into<String>) {
        self.problems.push(Problem::Quantize { tensor: tensor.into(), what: what.into() });
    }

    fn locate(&mut self, name: &str) -> Result<Option<SourceTensor>> {
        if !self.catalog.tensors.contains_key(name) {
            return Ok(None);
        }
        match locate(self.catalog, &mut OpenFiles::new(self.catalog), name)? {
            Ok(tensor) => Ok(Some(tensor)),
            Err(problem) => {
                self.problems.push(problem);
                Ok(None)
            }
        }
    }

    /// The values of a small float tensor.
    fn values(&mut self, name: &str, most: u64) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.locate(name)? else { return Ok(None) };
        let count: u64 = tensor.shape.iter().product();
        if !matches!(tensor.dtype, Dtype::Float16 | Dtype::Bfloat16 | Dtype::Float32) || count > most || count == 0 {
            self.problem(name, format!("expected 1 to {most} floats, found {} of {}", count, tensor.dtype));
            return Ok(None);
        }
        let read =
            |file, offset, bytes: &mut [u8]| ReadFile::open(&self.catalog.path(file))?.read_exact_at(offset, bytes);
        let values = super::state::stored_values(&tensor, read)?;
        if values.iter().any(|v| !v.is_finite() || *v < 0.0) {
            self.problem(name, "expected finite values from 0");
            return Ok(None);
        }
        Ok(Some(values))
    }

    fn scalar(&mut self, name: &str) -> Result<Option<f32>> {
        Ok(self.values(name, 1)?.and_then(|values| values.first().copied()))
    }

    /// A linear: its weights one by one, and what they share.
    fn linear(&mut self, linear: Linear, config: Option<&Value>, calibrated: &mut Calibrated) -> Result<QuantLinear> {
        let (mut input, mut weights, mut scheme) = (None::<f32>, Vec::new(), Vec::new());
        for hf in linear.hf.clone() {
            let name = format!("{hf}.weight");
            let Some(found) = self.weight(&name, linear.cols)? else { continue };
            if let Some(scale) = self.scalar(&format!("{hf}.input_scale"))? {
                // Servers take the larger one of what they fuse.
                input = Some(input.map_or(scale, |other| other.max(scale)));
            }
            if let Some(scale) = self.values(&format!("{hf}.pre_quant_scale"), 1 << 20)? {
                calibrated.pre_quant_scales.insert(linear.module.clone(), scale.into());
            }
            scheme.clone_from(&found.1);
            weights.push(found.2);
            self.weights.insert(name, Arc::new(found.0));
        }
        let algo = linear.hf.first().and_then(|hf| algo_of(config?, hf)).unwrap_or_default();
        let input_scheme = input_scheme(&scheme, input.is_some(), &algo);
        if let (Some(scale), Some(input_scheme)) = (input, input_scheme) {
            calibrated.inputs.insert(linear.module.clone(), scale * largest(input_scheme));
        }
        if let (Some(largest), [scheme]) = (weights.into_iter().flatten().reduce(f32::max), scheme.as_slice())
            && super::encode::is_shared(*scheme)
        {
            calibrated.weights.insert((linear.module.clone(), 0), WeightAmax::Tensor(largest));
        }
        let off = || vec![Attributes { enable: false, ..Attributes::default() }];
        let has_pre_quant_scale = calibrated.pre_quant_scales.contains_key(&linear.module);
        Ok(QuantLinear {
            linear,
            input: off(),
            weight: off(),
            output: off(),
            input_scheme,
            weight_schemes: scheme,
            has_pre_quant_scale,
        })
    }

    /// A packed weight, its scheme, and the magnitude of all of it where it has one scale.
    #[expect(clippy::type_complexity, reason = "three answers about one tensor")]
    fn weight(&mut self, name: &str, cols: u64) -> Result<Option<(Packed, Vec<Scheme>, Option<f32>)>> {
        let Some(weight) = self.locate(name)? else { return Ok(None) };
        let scale_name = format!("{name}_scale");
        let inverse = self.locate(&format!("{scale_name}_inv"))?;
        let is_inverse = inverse.is_some();
        let scale = match inverse {
            Some(scale) => Some(scale),
            None => self.locate(&scale_name)?,
        };
        let Some(scale) = scale else {
            // Whoever reads it says that it is no float.
            return Ok(None);
        };
        let [stored_rows, stored_cols] = weight.shape[..] else {
            self.problem(name, format!("expected rows and columns, found {:?}", weight.shape));
            return Ok(None);
        };
        let shape: Vec<u64> = scale.shape.iter().copied().filter(|&n| n != 1).collect();
        let per_row =
            |rows: u64| (scale.shape.first() == Some(&rows)).then(|| scale.shape.iter().skip(1).product::<u64>());
        let blocks =
            |rows: u64| per_row(rows).filter(|&n| n > 0 && cols.is_multiple_of(n)).map(|n| (cols / n) as usize);
        let whole = scale.shape.iter().product::<u64>() == 1;
        let square = |n: u64| {
            shape
                == [stored_rows.div_ceil(n), cols.div_ceil(n)]
                    .map(|n| n)
                    .iter()
                    .copied()
                    .filter(|&n| n != 1)
                    .collect::<Vec<_>>()
        };
        let found = match (weight.dtype, scale.dtype) {
            (Dtype::Float8E4m3, Dtype::Float32 | Dtype::Bfloat16) if is_inverse && square(128) => Some((
                Encoding::Fp8ScaleInv { rows: 128, cols: 128 },
                Scheme::Fp8(Granularity::Square(128)),
                stored_rows,
            )),
            (Dtype::Float8E4m3, Dtype::Float32) if whole => {
                Some((Encoding::Fp8, Scheme::Fp8(Granularity::Tensor), stored_rows))
            }
            (Dtype::Float8E4m3, Dtype::Float32) if shape == [stored_rows] => {
                Some((Encoding::Fp8Channel, Scheme::Fp8(Granularity::Channel), stored_rows))
            }
            (Dtype::Float8E4m3, Dtype::Float32) if square(128) => {
                Some((Encoding::Fp8Square { rows: 128, cols: 128 }, Scheme::Fp8(Granularity::Square(128)), stored_rows))
            }
            (Dtype::Float8E4m3, Dtype::Uint8) if blocks(stored_rows) == Some(32) => {
                Some((Encoding::Mxfp8, Scheme::Mx(MxElement::E4m3), stored_rows))
            }
            (Dtype::Int8, Dtype::Float32) if shape == [stored_rows] => {
                Some((Encoding::Int8Channel, Scheme::Int8(Granularity::Channel), stored_rows))
            }
            (Dtype::Uint8, Dtype::Uint8) if stored_cols * 2 == cols && blocks(stored_rows) == Some(32) => {
                Some((Encoding::Mxfp4, Scheme::Mx(MxElement::E2m1), stored_rows))
            }
            (Dtype::Uint8, Dtype::Float8E4m3) if stored_cols * 2 == cols => blocks(stored_rows)
                .filter(|block| [16, 32].contains(block))
                .map(|block| (Encoding::Nvfp4 { block }, Scheme::Nvfp4 { block }, stored_rows)),
            (Dtype::Uint8, Dtype::Float32) if stored_cols == cols => {
                blocks(stored_rows * 2).map(|block| (Encoding::Int4 { block }, Scheme::Int4 { block }, stored_rows * 2))
            }
            _ => None,
        };
        let Some((encoding, scheme, rows)) = found else {
            let what = format!(
                "no known packing: {} {:?} with scales {} {:?}",
                weight.dtype, weight.shape, scale.dtype, scale.shape
            );
            self.problem(name, what);
            return Ok(None);
        };
        let scale = if scale.dtype == Dtype::Bfloat16 {
            self.problem(&scale_name, "expected float32 scales");
            return Ok(None);
        } else {
            scale
        };
        let scale_2 = self.scalar(&format!("{name}_scale_2"))?;
        let needs = matches!(encoding, Encoding::Nvfp4 { .. });
        if needs && scale_2.is_none() {
            self.problem(name, format!("`{name}_scale_2` is missing"));
        }
        let amax = match encoding {
            Encoding::Fp8 => self.scalar(&scale_name)?.map(|s| s * 448.0),
            Encoding::Nvfp4 { .. } => scale_2.map(|s| s * (6.0 * 448.0)),
            _ => None,
        };
        let element = match self.dtype {
            Dtype::Float16 => Element::Float16,
            Dtype::Float32 => Element::Float32,
            _ => Element::Bfloat16,
        };
        let mut schemes = vec![scheme];
        if matches!(encoding, Encoding::Int4 { .. }) && scale_2.is_some() {
            schemes.push(Scheme::Fp8(Granularity::Tensor));
        }
        let packed = Packed { encoding, scheme, element, cols, rows, weight, scale, scale_2: scale_2.unwrap_or(1.0) };
        Ok(Some((packed, schemes, amax)))
    }

    fn attention(&mut self, index: usize, calibrated: &mut Calibrated) -> Result<Option<KvQuantizers>> {
        let hf = |p: &str| format!("backbone.layers.{index}.mixer.{p}");
        let (k, v) = (self.scalar(&hf("k_proj.k_scale"))?, self.scalar(&hf("v_proj.v_scale"))?);
        if k.is_none() && v.is_none() {
            return Ok(None);
        }
        let fp8 = Scheme::Fp8(Granularity::Tensor);
        let kv = KvQuantizers::new(index, Default::default(), [None, k.map(|_| fp8), v.map(|_| fp8)]);
        calibrated.kv.insert(kv.module.clone(), [None, k.map(|s| s * 448.0), v.map(|s| s * 448.0)]);
        Ok(Some(kv))
    }
}

/// The format that a quantization config names for a module.
fn algo_of(config: &Value, module: &str) -> Option<String> {
    let fields = config.get("quantization").unwrap_or(config);
    let layer = fields.get("quantized_layers").and_then(|layers| {
        // Experts may be listed as one.
        let container = module.split(".experts.").next().map(|before| format!("{before}.experts"));
        layers.get(module).or_else(|| layers.get(container?))
    });
    let algo = layer.and_then(|layer| layer.get("quant_algo")).or_else(|| fields.get("quant_algo"))?;
    Some(algo.as_str()?.to_uppercase())
}

/// What happens to the input of a linear whose weight is packed as `weight`.
fn input_scheme(weight: &[Scheme], has_scale: bool, algo: &str) -> Option<Scheme> {
    let fp8 = Scheme::Fp8(Granularity::Tensor);
    match (weight.first()?, has_scale) {
        (_, true) if algo.starts_with("W4A8") => Some(fp8),
        (Scheme::Int8(_), true) => Some(Scheme::Int8(Granularity::Tensor)),
        (Scheme::Nvfp4 { .. }, true) => Some(Scheme::Nvfp4 { block: 16 }),
        (Scheme::Fp8(_) | Scheme::Int4 { .. } | Scheme::Mx(_), true) => Some(fp8),
        (Scheme::Fp8(Granularity::Channel), false) if algo == "FP8_PER_CHANNEL_PER_TOKEN" => {
            Some(Scheme::Fp8(Granularity::Token))
        }
        (Scheme::Mx(element), false) if algo.starts_with("MXFP") => Some(Scheme::Mx(*element)),
        _ => None,
    }
}

/// What a magnitude was divided by to give an input scale.
fn largest(scheme: Scheme) -> f32 {
    match scheme {
        Scheme::Int8(_) => 127.0,
        Scheme::Nvfp4 { .. } | Scheme::Nvfp4Static { .. } => 6.0 * 448.0,
        _ => 448.0,
    }
}
