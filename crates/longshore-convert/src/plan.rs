//! Plans: everything a conversion will do, decided and checked before the first byte is written.

mod companions;
mod cut;
mod draft;
mod export;
mod import;
mod layout;
mod mtp;
mod recut;

pub use cut::plan_cut;
pub(crate) use draft::unmapped;
pub(crate) use export::drop_training_state;
pub use export::{plan_export, plan_quantized_export};
pub use import::{plan_import, plan_quantized_import};
pub(crate) use mtp::is_mtp;
pub(crate) use recut::recut;

use crate::arch::{RuleRow, location};
use crate::config::ModelConfig;
use crate::gather::bands;
use crate::options::Layout;
use crate::quantized::{Calibrated, Quantization};
use crate::resolve::{Recipe, is_float};
use crate::{Error, Result, cast};
use longshore_ckpt::fs::{Identity, ReadFile};
use longshore_ckpt::{Catalog, Dtype, Format, Rect};
use longshore_quant::config::QuantConfig;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What makes a plan's output a quantized checkpoint.
pub struct Quantized<'a> {
    /// What every quantizer does.
    pub quantization: &'a Quantization,
    /// What was observed; for a plan that is only looked at, nothing yet.
    pub calibrated: &'a Calibrated,
    /// The config, as a Megatron checkpoint stores it.
    pub config: &'a QuantConfig,
}

impl Quantized<'_> {
    /// What tells two runs apart that differ in it.
    fn fingerprint(&self) -> String {
        format!("{:?} {:?}", self.quantization, self.calibrated)
    }
}

/// A stored piece of an output tensor.
#[derive(Debug)]
pub(crate) struct OutChunk {
    /// Index into [`Plan::recipes`].
    pub recipe: usize,
    /// Which elements.
    pub rect: Rect,
}

/// What a data file holds, front to back.
#[derive(Debug)]
pub(crate) enum Item {
    /// Bytes known now: a safetensors header, an opaque object. The name is the object's.
    Bytes { object: Option<String>, bytes: Arc<[u8]> },
    /// Tensor data; in torch_dist inside a zip archive.
    Chunk { chunk: OutChunk, len: u64 },
}

impl Item {
    /// Length in bytes, framing included.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Bytes { bytes, .. } => bytes.len() as u64,
            Self::Chunk { len, .. } => *len,
        }
    }
}

/// A data file of the output.
#[derive(Debug)]
pub(crate) struct OutFile {
    /// Name inside the folder.
    pub name: String,
    /// The items, without gaps.
    pub items: Vec<Item>,
}

impl OutFile {
    /// Length in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.items.iter().map(Item::len).sum()
    }
}

/// A small file of the output: config, tokenizer, index, common state.
#[derive(Debug)]
pub(crate) struct SmallFile {
    /// Name inside the folder, with `/` for a subfolder.
    pub name: String,
    /// Its bytes, or the file they are copied from.
    pub content: Content,
}

/// Where the bytes of a [`SmallFile`] are.
#[derive(Debug)]
pub(crate) enum Content {
    /// Here.
    Bytes(Vec<u8>),
    /// In a file of the source, with the CRC-32 it had when the plan was made.
    Path(PathBuf, u32),
}

/// A complete, valid plan.
#[derive(Debug)]
pub struct Plan {
    /// The format that is written.
    pub(crate) target: Format,
    pub(crate) catalog: Catalog,
    /// What the source files were when the plan was made.
    pub(crate) identities: Vec<(PathBuf, Identity)>,
    pub(crate) destination: PathBuf,
    /// `release` or `iter_*` inside the destination, for torch_dist.
    pub(crate) inner: Option<String>,
    pub(crate) recipes: Vec<Recipe>,
    pub(crate) files: Vec<OutFile>,
    pub(crate) small: Vec<SmallFile>,
    /// Facts that the manifest keeps for the way back.
    pub(crate) origin: crate::manifest::Origin,
    /// Identifies source content and options; stored in the manifest.
    pub(crate) fingerprint: String,
    /// See [`Plan::with_inputs`].
    pub(crate) inputs: Option<String>,
    /// [`Plan::fingerprint`] plus the source files' identities; names the staging folder.
    pub(crate) staging_id: String,
    rules: Vec<RuleRow>,
    summary: Summary,
    config: ModelConfig,
}

/// One side of a conversion.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// The format.
    pub format: Format,
    /// The folder.
    pub path: PathBuf,
    /// Data files.
    pub files: u64,
    /// Tensors.
    pub tensors: u64,
    /// Bytes of the data files.
    pub bytes: u64,
}

/// What a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NoteKind {
    /// Decided from the source because nobody said.
    Inferred,
    /// Left out on request.
    Dropped,
    /// Filled up on request.
    Padded,
    /// Stored in another dtype.
    Cast,
    /// Not needed, left where it is.
    Ignored,
    /// About the destination's free space.
    Space,
    /// Worth acting on.
    Warning,
}

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// What it is about.
    pub kind: NoteKind,
    /// The line.
    pub text: String,
}

impl Note {
    pub(crate) fn new(kind: NoteKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// A plan in a few lines.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// What is read.
    pub source: Side,
    /// What is written.
    pub target: Side,
    /// The architecture's Hugging Face class.
    pub architecture: String,
    /// Layers by kind, e.g. `52 layers: 23 M, 23 E, 6 *`.
    pub layers: String,
    /// Those of what is written, where they are others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_layers: Option<String>,
    /// The layout, where it is smaller than the one that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lowered: Option<Layout>,
    /// Stored pieces of tensors.
    pub chunks: u64,
    /// Opaque objects.
    pub objects: u64,
    /// Tensors stored in another dtype than in the source.
    pub casts: u64,
    /// Tensors with rows of zeros that the source does not have.
    pub fills: u64,
    /// What was inferred, dropped, padded, cast.
    pub notes: Vec<Note>,
    /// Free bytes at the destination.
    pub free_space: Option<u64>,
    /// Identifies the content and the options.
    pub fingerprint: String,
}

/// An output tensor, for a listing.
#[derive(Clone, Debug, Serialize)]
pub struct TensorRow {
    /// Name.
    pub name: String,
    /// Element type in the output.
    pub dtype: Dtype,
    /// Shape, in elements.
    pub shape: Vec<u64>,
    /// The file of its first chunk.
    pub file: String,
    /// The line of the architecture's table.
    pub rule: String,
    /// Names of its sources.
    pub from: Vec<String>,
}

impl Plan {
    /// The plan in a few lines.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Notes in the result what it was computed from, so that [`crate::run::already_made`] knows it before anything is computed.
    #[must_use]
    pub fn with_inputs(self, inputs: String) -> Self {
        Self { inputs: Some(inputs), ..self }
    }

    /// The model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The rules that apply, with how many tensors each ties.
    pub fn rules(&self) -> Vec<RuleRow> {
        self.rules.clone()
    }

    /// Every output tensor.
    pub fn tensors(&self) -> Vec<TensorRow> {
        let mut file_of = vec![""; self.recipes.len()];
        for file in self.files.iter().rev() {
            for item in &file.items {
                if let Item::Chunk { chunk, .. } = item {
                    file_of[chunk.recipe] = &file.name;
                }
            }
        }
        let row = |(recipe, file): (&Recipe, &str)| TensorRow {
            name: recipe.name.clone(),
            dtype: recipe.dtype,
            shape: recipe.shape.clone(),
            file: file.into(),
            rule: location(recipe.declared.rule),
            from: recipe.sources().into_iter().map(String::from).collect(),
        };
        self.recipes.iter().zip(file_of).map(row).collect()
    }

    /// The folder that the data files end up in.
    pub fn folder(&self) -> PathBuf {
        self.inner.as_ref().map_or_else(|| self.destination.clone(), |inner| self.destination.join(inner))
    }
}

/// Whether every value of `from` is one of `to`.
pub(crate) fn is_widening(from: Dtype, to: Dtype) -> bool {
    from == to || (is_float(from) && is_float(to) && to.size() > from.size())
}

/// How many elements of a recipe would change if they were stored as `to`. Reads the tensor.
fn inexact_elements(recipe: &Recipe, to: Dtype, files: &[ReadFile]) -> Result<u64> {
    let mut changed = 0;
    bands(recipe, files, |band| {
        changed += cast::inexact(recipe.dtype, band, to);
        true
    })?;
    Ok(changed)
}

/// Opens every data file of a catalog.
pub(crate) fn open_all(catalog: &Catalog) -> Result<Vec<ReadFile>> {
    (0..catalog.files.len()).map(|i| Ok(ReadFile::open(&catalog.path(i as u32))?)).collect()
}

/// The source of something that quantizes has quantizers.
fn already_quantized(path: &Path) -> Error {
    model_error(path, "it is quantized already; `export` writes it for servers")
}

/// A model error at `path`.
fn model_error(path: &Path, what: impl Into<String>) -> Error {
    Error::Model { path: path.into(), what: what.into() }
}
