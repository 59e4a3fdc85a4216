//! Plans: everything a conversion will do, decided and checked before the first byte is written.

mod companions;
mod export;
mod import;
mod layout;

pub(crate) use export::drop_training_state;
pub use export::plan_export;
pub use import::plan_import;

use crate::arch::{RuleRow, location};
use crate::config::ModelConfig;
use crate::gather::bands;
use crate::resolve::{Direction, Recipe, is_float};
use crate::{Error, Result, cast};
use longshore_ckpt::fs::{self, Identity, ReadFile};
use longshore_ckpt::{Catalog, Dtype, Format, Rect};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    pub(crate) direction: Direction,
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

/// `52 layers: 23 M, 23 E, 6 *`
fn layers_text(pattern: &str) -> String {
    let count = |letter| pattern.chars().filter(|&c| c == letter).count();
    let kinds = ['M', 'E', '*', '-'].map(|c| (c, count(c)));
    let parts: Vec<_> = kinds.iter().filter(|k| k.1 > 0).map(|(c, n)| format!("{n} {c}")).collect();
    format!("{} layers: {}", pattern.chars().count(), parts.join(", "))
}

/// Every data file of a catalog as it is now.
fn identities(catalog: &Catalog) -> Result<Vec<(PathBuf, Identity)>> {
    let paths = (0..catalog.files.len()).map(|i| catalog.path(i as u32));
    paths.map(|path| Ok((path.clone(), Identity::of(&path)?))).collect()
}

/// A 64-bit FNV-1a hash; enough to tell plans apart, not a proof against forgery.
struct Fingerprint(u64);

impl Fingerprint {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn add_json(&mut self, value: &impl Serialize) {
        self.add(&serde_json::to_vec(value).unwrap_or_default());
    }

    fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Identifies what a plan will write: the program, the options, the source's tables and samples of its data. With the
/// identities of its files the result also tells two sources apart that differ between the samples.
fn fingerprints(
    catalog: &Catalog,
    options: &impl Serialize,
    small: &[SmallFile],
    identities: &[(PathBuf, Identity)],
) -> Result<(String, String)> {
    /// Samples per file and bytes of each: reading them costs less than a millisecond a file.
    const SAMPLES: u64 = 16;
    const SAMPLE: u64 = 4096;
    let mut hash = Fingerprint::new();
    hash.add(env!("CARGO_PKG_VERSION").as_bytes());
    hash.add_json(options);
    for (name, info) in &catalog.tensors {
        hash.add(name.as_bytes());
        hash.add(info.dtype.torch_name().as_bytes());
        hash.add_json(&info.shape);
        for chunk in &info.chunks {
            hash.add_json(&(&chunk.rect, chunk.extent));
        }
    }
    for (index, file) in catalog.files.iter().enumerate() {
        let open = ReadFile::open(&catalog.path(index as u32))?;
        let mut buffer = vec![0; SAMPLE.min(file.size) as usize];
        for sample in 0..SAMPLES {
            let last = file.size - buffer.len() as u64;
            open.read_exact_at((u128::from(last) * u128::from(sample) / u128::from(SAMPLES - 1)) as u64, &mut buffer)?;
            hash.add(&buffer);
        }
    }
    for file in small {
        hash.add(file.name.as_bytes());
        match &file.content {
            Content::Bytes(bytes) => hash.add(bytes),
            Content::Path(_, crc) => hash.add(&crc.to_le_bytes()),
        }
    }
    let content = hash.text();
    for (path, identity) in identities {
        hash.add_json(&(path, identity.size, identity.mtime_ns as i64, identity.inode));
    }
    Ok((content, hash.text()))
}

/// A note where the destination has less room than the plan needs.
fn space_note(destination: &Path, needed: u64, notes: &mut Vec<Note>) -> Option<u64> {
    let free = fs::free_space(destination).ok()?;
    if free < needed {
        let text =
            format!("the destination has {:.1} GB free, {:.1} GB are needed", gigabytes(free), gigabytes(needed));
        notes.push(Note::new(NoteKind::Space, text));
    }
    Some(free)
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// A note where the destination holds something, which a run replaces only when told to.
fn destination_note(destination: &Path, notes: &mut Vec<Note>) {
    if fs::exists(destination) && fs::list(destination).map_or(true, |names| !names.is_empty()) {
        let text =
            format!("`{}` is not empty: a run needs --force, unless it holds this very result", destination.display());
        notes.push(Note::new(NoteKind::Warning, text));
    }
}

/// The destination with links resolved, so that publishing replaces what they lead to and not the link.
fn real_path(destination: &Path) -> Result<PathBuf> {
    Ok(if fs::exists(destination) { fs::canonical(destination)? } else { destination.into() })
}

/// A note for every unfinished run beside the destination that is not this one.
fn staging_notes(destination: &Path, staging_id: &str, notes: &mut Vec<Note>) {
    let others = fs::stale_stagings(destination).into_iter().filter(|p| !p.to_string_lossy().ends_with(staging_id));
    notes.extend(others.map(|p| Note::new(NoteKind::Warning, format!("`{}` is left from another run", p.display()))));
}

/// Notes about dtypes: one line per pair of types. `checked` says that every value was found to survive.
fn cast_notes(recipes: &[Recipe], checked: bool, notes: &mut Vec<Note>) -> u64 {
    let mut pairs: Vec<(Dtype, Dtype, u64, &str)> = Vec::new();
    for (recipe, from) in recipes.iter().flat_map(|r| r.cast_dtypes().into_iter().map(move |from| (r, from))) {
        let to = recipe.dtype;
        match pairs.iter_mut().find(|p| (p.0, p.1) == (from, to)) {
            Some(pair) => pair.2 += 1,
            None => pairs.push((from, to, 1, &recipe.name)),
        }
    }
    for &(from, to, count, example) in &pairs {
        let how = if checked || is_widening(from, to) { "exactly" } else { "rounded to nearest" };
        let text =
            format!("{count} tensors from {from} to {to}, {how} (`{example}`{})", if count > 1 { ", …" } else { "" });
        notes.push(Note::new(NoteKind::Cast, text));
    }
    recipes.iter().filter(|r| r.casts()).count() as u64
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

/// A model error at `path`.
fn model_error(path: &Path, what: impl Into<String>) -> Error {
    Error::Model { path: path.into(), what: what.into() }
}
