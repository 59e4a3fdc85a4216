//! Resolution: a mapping checked against a catalog, giving every output tensor as a recipe of source bytes.
//!
//! Everything that can be wrong with names, shapes, dtypes and coverage is found here, all of it together.

use crate::Result;
use crate::arch::location;
use crate::error::Problem;
use crate::mapping::{Declared, Mapping, Precision};
use crate::quantized::encode::{Encoding, Output};
use crate::quantized::packed::Packed;
use crate::region::Region;
use longshore_ckpt::fs::ReadFile;
use longshore_ckpt::{Catalog, Dtype, Extent, Format, Rect, torch_dist};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which way a mapping is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Hugging Face → Megatron.
    Import,
    /// Megatron → Hugging Face.
    Export,
}

/// A tensor of the source, located down to its bytes.
#[derive(Clone, Debug)]
pub struct SourceTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, in elements.
    pub shape: Vec<u64>,
    /// The stored boxes, sorted by their first element, and the extents of their raw data.
    pub chunks: Vec<(Rect, Extent)>,
    /// What its values are computed from, where it is packed; its chunks then mean nothing.
    pub packed: Option<Arc<Packed>>,
}

/// A part of an output tensor.
#[derive(Clone, Debug)]
pub struct Part {
    /// The elements of the output tensor.
    pub target: Region,
    /// Where they come from; `None`: zeros.
    pub source: Option<(Arc<SourceTensor>, Region)>,
}

/// An output tensor and where its elements come from.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Name.
    pub name: String,
    /// Element type in the output.
    pub dtype: Dtype,
    /// Shape, in elements.
    pub shape: Vec<u64>,
    /// Parts that tile it, sorted by their first element.
    pub parts: Vec<Part>,
    /// What the table declares about it.
    pub declared: Declared,
    /// What it is made of, where it is not a copy: it then has no parts.
    pub computed: Option<Computed>,
}

/// Where the bytes of a tensor come from that is not copied.
#[derive(Debug, Clone)]
pub enum Computed {
    /// They are known.
    Bytes(Arc<[u8]>),
    /// From a weight, while they are written.
    Encoded(Arc<Encoding>, Output),
}

impl Recipe {
    /// A tensor as it is stored, under another name; its first rows where fewer are declared.
    pub(crate) fn copy(name: &str, declared: &Declared, tensor: SourceTensor) -> Self {
        let (stored, shape) = (&tensor.shape, &declared.shape);
        let len = shape.iter().product();
        let region = match (stored.first(), shape.first()) {
            (Some(&all), Some(&rows)) if rows < all => Region::rows(all, 0..rows, shape[1..].iter().product()),
            _ => Region::all(len),
        };
        Self {
            name: name.into(),
            dtype: tensor.dtype,
            shape: shape.clone(),
            parts: vec![Part { target: Region::all(len), source: Some((Arc::new(tensor), region)) }],
            declared: declared.clone(),
            computed: None,
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.size()
    }

    /// Whether some element is stored in another dtype than in the source.
    pub fn casts(&self) -> bool {
        self.parts.iter().any(|p| p.source.as_ref().is_some_and(|(s, _)| s.dtype != self.dtype))
    }

    /// The dtype that holds every value of the sources: the widest, and float32 for float16 beside bfloat16.
    pub fn source_dtype(&self) -> Dtype {
        let dtypes = || self.parts.iter().filter_map(|p| p.source.as_ref().map(|(s, _)| s.dtype));
        let widest = dtypes().max_by_key(|d| d.size()).unwrap_or(self.dtype);
        let mixed = widest.size() == 2 && dtypes().any(|d| is_float(d) && d != widest);
        if mixed { Dtype::Float32 } else { widest }
    }

    /// Distinct dtypes of the sources that are not that of the output.
    pub(crate) fn cast_dtypes(&self) -> BTreeSet<Dtype> {
        let dtypes = self.parts.iter().filter_map(|p| p.source.as_ref().map(|(s, _)| s.dtype));
        dtypes.filter(|&dtype| dtype != self.dtype).collect()
    }

    /// Distinct source names, in order of first use.
    pub fn sources(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        let computed: Vec<&str> = match &self.computed {
            Some(Computed::Encoded(encoding, _)) => encoding.weight.recipes().flat_map(Self::sources).collect(),
            Some(Computed::Bytes(_)) | None => Vec::new(),
        };
        names.extend(computed);
        names.dedup();
        for (source, _) in self.parts.iter().filter_map(|p| p.source.as_ref()) {
            if !names.contains(&source.name.as_str()) {
                names.push(&source.name);
            }
        }
        names
    }
}

/// The outcome of a resolution: what could be resolved, and all that could not.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Output tensors in table order.
    pub recipes: Vec<Recipe>,
    /// Source tensors that no rule names.
    pub unmapped: Vec<String>,
    /// What is wrong, without the unmapped tensors.
    pub problems: Vec<Problem>,
}

/// Gives the dtype of an output tensor from its declaration and the dtype of its source.
pub type DtypeRule<'a> = &'a dyn Fn(&str, &Declared, Dtype) -> Dtype;

/// The default dtype rule of an import: `keep` or one params dtype, but float32 where the table says so.
pub fn import_dtype(choice: crate::DtypeChoice, declared: &Declared, source: Dtype) -> Dtype {
    let wide = source == Dtype::Float32;
    match (declared.precision, choice) {
        // Wider than needed, but nothing is lost.
        (Precision::McFloat32 | Precision::Float32, _) if source == Dtype::Float64 => source,
        (Precision::McFloat32 | Precision::Float32, _) => Dtype::Float32,
        (Precision::SourceFloat32, _) if wide => Dtype::Float32,
        (_, crate::DtypeChoice::Cast(dtype)) => dtype,
        (_, crate::DtypeChoice::Keep) => source,
    }
}

/// Reads `mapping` in `direction` against `catalog`.
pub fn resolve(mapping: &Mapping, catalog: &Catalog, direction: Direction, dtype: DtypeRule<'_>) -> Result<Resolved> {
    let mut out = Resolved::default();
    if let Err(bad) = mapping.check() {
        out.problems.extend(bad.into_iter().map(|(tensor, what)| Problem::Cover { tensor, what }));
        return Ok(out);
    }
    let (from, to) = match direction {
        Direction::Import => (&mapping.hf, &mapping.mc),
        Direction::Export => (&mapping.mc, &mapping.hf),
    };
    let sources = sources(catalog, from, &mut out.problems)?;
    out.unmapped = catalog.tensors.keys().filter(|name| !from.contains_key(*name)).cloned().collect();

    let mut parts: BTreeMap<&str, Vec<Part>> = to.keys().map(|k| (k.as_str(), Vec::new())).collect();
    for tie in &mapping.ties {
        let (source, target) = match direction {
            Direction::Import => (&tie.hf, &tie.mc),
            Direction::Export => (&tie.mc, &tie.hf),
        };
        // A source that is missing or misshaped is already a problem of its own.
        if let (Some(tensor), Some(parts)) = (sources.get(source.0.as_str()), parts.get_mut(target.0.as_str())) {
            parts.push(Part { target: target.1.clone(), source: Some((Arc::clone(tensor), source.1.clone())) });
        }
    }
    if direction == Direction::Import {
        for fill in &mapping.fills {
            if let Some(parts) = parts.get_mut(fill.mc.0.as_str()) {
                parts.push(Part { target: fill.mc.1.clone(), source: None });
            }
        }
    }
    let order: Vec<&String> = match direction {
        Direction::Import => to.keys().collect(),
        Direction::Export => mapping.hf_order.iter().collect(),
    };
    for name in order {
        let (Some(declared), Some(mut parts)) = (to.get(name), parts.remove(name.as_str())) else { continue };
        parts.sort_by_key(|p| p.target.at(0).0);
        let mut recipe = Recipe {
            name: name.clone(),
            dtype: Dtype::Uint8,
            shape: declared.shape.clone(),
            parts,
            declared: declared.clone(),
            computed: None,
        };
        if recipe.parts.is_empty() {
            continue;
        }
        let source = recipe.source_dtype();
        recipe.dtype = dtype(name, declared, source);
        for source in recipe.parts.iter().filter_map(|p| p.source.as_ref().map(|s| &s.0)) {
            // Weights are floats; anything else is quantized or not what its name says.
            if !is_float(source.dtype) {
                out.problems.push(Problem::Dtype {
                    tensor: source.name.clone(),
                    file: file_of(catalog, &source.name),
                    found: source.dtype,
                    what: "expected a float of 16, 32 or 64 bits".into(),
                    rule: location(declared.rule),
                });
            }
        }
        // Nothing casts the others, so a tensor with one of them is not even compared.
        if recipe.cast_dtypes().into_iter().chain([recipe.dtype]).all(is_float) {
            out.recipes.push(recipe);
        }
    }
    Ok(out)
}

/// The float types that a cast reads and writes.
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Float16 | Dtype::Bfloat16 | Dtype::Float32 | Dtype::Float64)
}

/// The first file that holds a piece of a tensor.
pub fn file_of(catalog: &Catalog, tensor: &str) -> String {
    let chunk = catalog.tensors.get(tensor).and_then(|t| t.chunks.first());
    chunk.map_or_else(String::new, |c| catalog.files[c.extent.file as usize].name.clone())
}

/// Locates every declared tensor in the catalog.
fn sources(
    catalog: &Catalog,
    declared: &BTreeMap<String, Declared>,
    problems: &mut Vec<Problem>,
) -> Result<BTreeMap<String, Arc<SourceTensor>>> {
    let mut found = BTreeMap::new();
    let mut files = OpenFiles::new(catalog);
    for (name, want) in declared {
        let rule = || location(want.rule);
        let Some(info) = catalog.tensors.get(name) else {
            problems.push(Problem::Missing { tensor: name.clone(), rule: rule() });
            continue;
        };
        if info.shape != want.shape {
            problems.push(Problem::Shape {
                tensor: name.clone(),
                file: file_of(catalog, name),
                expected: want.shape.clone(),
                found: info.shape.clone(),
                rule: rule(),
            });
            continue;
        }
        match locate(catalog, &mut files, name)? {
            Ok(tensor) => {
                found.insert(name.clone(), Arc::new(tensor));
            }
            Err(problem) => problems.push(problem),
        }
    }
    Ok(found)
}

/// A tensor of the catalog down to its bytes, or what is wrong with its chunks.
pub fn locate(
    catalog: &Catalog,
    files: &mut OpenFiles<'_>,
    name: &str,
) -> Result<std::result::Result<SourceTensor, Problem>> {
    let Some(info) = catalog.tensors.get(name) else {
        return Ok(Err(Problem::Missing { tensor: name.into(), rule: String::new() }));
    };
    if let Err(what) = info.check() {
        return Ok(Err(Problem::Cover { tensor: name.into(), what }));
    }
    let mut chunks = Vec::with_capacity(info.chunks.len());
    // A chunk without elements has nothing to locate.
    for chunk in info.chunks.iter().filter(|chunk| !chunk.rect.is_empty()) {
        let extent = match catalog.format {
            Format::Safetensors => chunk.extent,
            Format::TorchDist => match torch_dist::locate_payload(files.get(chunk.extent.file)?, info, chunk) {
                Ok((extent, _)) => extent,
                Err(longshore_ckpt::Error::Io { op, path, source }) => {
                    return Err(longshore_ckpt::Error::Io { op, path, source }.into());
                }
                Err(error) => {
                    let file = catalog.files[chunk.extent.file as usize].name.clone();
                    return Ok(Err(Problem::Damaged { tensor: name.into(), file, what: error.to_string() }));
                }
            },
        };
        chunks.push((chunk.rect.clone(), extent));
    }
    chunks.sort_by(|a, b| a.0.offsets.cmp(&b.0.offsets));
    Ok(Ok(SourceTensor { name: name.into(), dtype: info.dtype, shape: info.shape.clone(), chunks, packed: None }))
}

/// The data files of a catalog, opened when first needed.
pub struct OpenFiles<'a> {
    catalog: &'a Catalog,
    files: Vec<Option<ReadFile>>,
}

impl<'a> OpenFiles<'a> {
    /// No file is open yet.
    pub fn new(catalog: &'a Catalog) -> Self {
        Self { catalog, files: catalog.files.iter().map(|_| None).collect() }
    }

    /// The data file `index`.
    pub fn get(&mut self, index: u32) -> longshore_ckpt::Result<&ReadFile> {
        let slot = &mut self.files[index as usize];
        match slot {
            Some(file) => Ok(file),
            None => Ok(slot.insert(ReadFile::open(&self.catalog.path(index))?)),
        }
    }
}
