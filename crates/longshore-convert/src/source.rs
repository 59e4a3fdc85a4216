//! A checkpoint of either format as the tensors of one namespace, for readers whose destination is memory.
//!
//! The namespace is the Megatron side with separate norms and without padded vocabulary rows, whatever the checkpoint
//! stores: a Hugging Face folder is read through the architecture's mapping, a torch_dist checkpoint by identity but for
//! the names of fused norms. So whoever runs a model knows layer kinds and no architecture.

use crate::arch::SpecKeys;
use crate::error::Problem;
use crate::gather::{BAND, Gather, packed_rows};
use crate::model::{Model, check_vocabulary, read_manifest, spec_keys, stored_vocab};
use crate::plan::{Note, NoteKind, drop_training_state, open_all, recut, unmapped};
use crate::quantized::packed::{self, Packed, PackedFolder};
use crate::quantized::state::stored_values;
use crate::quantized::stored::{self, StoredQuantizers};
use crate::quantized::{Calibrated, Quantization};
use crate::resolve::{Direction, Recipe, SourceTensor, resolve};
use crate::{Error, Result};
use longshore_ckpt::fs::ReadFile;
use longshore_ckpt::{Catalog, Dtype, Format, Rect};
use longshore_quant::Scheme;
use longshore_quant::pack::QuantizedRows;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// A model's weights, located down to their bytes and read on demand.
pub struct Source {
    /// The model.
    pub model: Model,
    /// Where the weights lie.
    pub catalog: Catalog,
    /// What its quantizers do and their magnitudes, where it has quantizers.
    pub quantized: Option<(Quantization, Calibrated)>,
    recipes: BTreeMap<String, Recipe>,
    files: Vec<ReadFile>,
    bytes_read: AtomicU64,
}

impl Source {
    /// Opens the checkpoint at `path`; `base` supplies the config in place of the checkpoint's own. Everything that is
    /// wrong with names, shapes, dtypes and coverage is found here, all of it together.
    pub fn open(path: &Path, base: Option<&Path>, allow_unmapped: bool) -> Result<Self> {
        let (source, problems) = Self::open_sound(path, base, allow_unmapped)?;
        if problems.is_empty() { Ok(source) } else { Err(Error::Refused(problems)) }
    }

    /// As [`Source::open`], for whoever wants to read the tensors beside those with problems.
    pub(crate) fn open_sound(path: &Path, base: Option<&Path>, allow_unmapped: bool) -> Result<(Self, Vec<Problem>)> {
        let mut catalog = Catalog::open(path)?;
        let mut packed = None;
        let (mut model, rows, mut quantized) = match catalog.format {
            Format::Safetensors => {
                let (model, folder) = hugging_face(&mut catalog, base)?;
                packed = folder;
                let rows = model.config.vocab_size;
                (model, rows, None)
            }
            Format::TorchDist => {
                let (mut model, rows, stored) = torch_dist(&mut catalog, base)?;
                note_padding(&mut model, rows);
                (model, rows, stored.map(|stored| (stored.quantization, stored.calibrated)))
            }
        };
        let config = &model.config;
        let canonical = (model.architecture.mapping)(config, &SpecKeys::CANONICAL, config.vocab_size);
        let mut problems = Vec::new();
        let recipes = match catalog.format {
            Format::Safetensors => {
                let mut resolved = resolve(&canonical, &catalog, Direction::Import, &|_, _, dtype| dtype)?;
                problems.append(&mut resolved.problems);
                unmapped(&resolved.unmapped, &catalog, allow_unmapped, &mut problems, &mut model.notes);
                if let Some(mut packed) = packed {
                    problems.append(&mut packed.problems);
                    packed.attach(&mut resolved.recipes);
                    quantized = Some((packed.quantization, packed.calibrated));
                }
                resolved.recipes
            }
            Format::TorchDist => {
                let stored = (model.architecture.mapping)(config, &spec_keys(&catalog), rows);
                let mut resolved = recut(&stored, &canonical, &catalog, &|_, _, dtype| dtype)?;
                problems.append(&mut resolved.problems);
                unmapped(&resolved.unmapped, &catalog, allow_unmapped, &mut problems, &mut model.notes);
                resolved.recipes
            }
        };
        let files = open_all(&catalog)?;
        // A part whose source has a problem is missing.
        let is_whole =
            |r: &Recipe| r.parts.iter().map(|p| p.target.len()).sum::<u64>() == r.shape.iter().product::<u64>();
        let recipes = recipes.into_iter().filter(is_whole).map(|r| (r.name.clone(), r)).collect();
        Ok((Self { model, catalog, quantized, recipes, files, bytes_read: AtomicU64::new(0) }, problems))
    }

    /// Shape of a tensor, in elements, and the dtype that holds every value of its source.
    ///
    /// # Panics
    /// For a name that the architecture does not have: names come from the model's own layers.
    pub fn tensor(&self, name: &str) -> (&[u64], Dtype) {
        let recipe = self.recipe(name);
        (&recipe.shape, recipe.dtype)
    }

    /// Every tensor, by name.
    pub(crate) fn recipes(&self) -> &BTreeMap<String, Recipe> {
        &self.recipes
    }

    /// The data files that recipes read.
    pub(crate) fn files(&self) -> &[ReadFile] {
        &self.files
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.recipes.contains_key(name)
    }

    /// Bytes handed out so far, in the dtypes that were asked for.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Reads the elements of `rect` as `dtype`, little-endian and row-major, into `out`.
    pub fn read(&self, name: &str, rect: &Rect, dtype: Dtype, out: &mut [u8]) -> Result<()> {
        self.count(out.len());
        no_overflow(name, dtype, Gather::casting(self.recipe(name), rect, dtype).fill(&self.files, out)?)
    }

    /// As [`Source::read`], in bands of whole rows of `row_len` elements: `take(first_row, bytes)` gets one after the
    /// other. Memory is bounded by the band, or by one row.
    pub fn read_rows(
        &self,
        name: &str,
        rect: &Rect,
        dtype: Dtype,
        row_len: u64,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<()> {
        let mut gather = Gather::casting(self.recipe(name), rect, dtype);
        let row_size = row_len * dtype.size();
        let rows = rect.len().checked_div(row_len).unwrap_or(0);
        let per_band = (BAND as u64 / row_size.max(1)).clamp(1, rows.max(1));
        let mut band = vec![0; (per_band * row_size) as usize];
        let mut row = 0;
        while row < rows {
            let count = per_band.min(rows - row);
            let part = &mut band[..(count * row_size) as usize];
            self.count(part.len());
            no_overflow(name, dtype, gather.fill(&self.files, part)?)?;
            take(row as usize, part);
            row += count;
        }
        Ok(())
    }

    /// The rows of `rect` as the checkpoint stores them, where it stores all of them in codes; the box has whole rows.
    pub fn coded(&self, name: &str, rect: &Rect) -> Option<Vec<CodedRows<'_>>> {
        let rows = packed_rows(self.recipe(name), rect)?;
        Some(rows.into_iter().map(|(packed, rows)| CodedRows { source: self, packed, rows }).collect())
    }

    /// The values of a tensor of quantizers, which has no name in the architecture's table.
    pub fn values(&self, tensor: &SourceTensor) -> Result<Vec<f32>> {
        Ok(stored_values(tensor, |file, offset, bytes| self.files[file as usize].read_exact_at(offset, bytes))?)
    }

    /// The tensors that hold NaN or infinity, each with the first of them: what to tell once a computation met one.
    pub fn not_finite(&self) -> Result<Vec<Problem>> {
        let mut problems = Vec::new();
        for (name, recipe) in &self.recipes {
            let (row_len, mut first) = (recipe.shape.last().copied().unwrap_or(1), None);
            self.read_rows(name, &Rect::whole(&recipe.shape), Dtype::Float32, row_len, |row, bytes| {
                let bad = bytes.as_chunks().0.iter().position(|&b| !f32::from_le_bytes(b).is_finite());
                if let (None, Some(at)) = (first, bad) {
                    let at = at as u64;
                    first = Some((row as u64 + at / row_len, at % row_len));
                }
            })?;
            if let Some((row, col)) = first {
                let what = format!("not finite at row {row}, column {col}");
                let tensor = match recipe.sources()[..] {
                    [source] => source.to_owned(),
                    _ => name.clone(),
                };
                problems.push(Problem::Quantize { tensor, what });
            }
        }
        Ok(problems)
    }

    fn count(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn recipe(&self, name: &str) -> &Recipe {
        self.recipes.get(name).unwrap_or_else(|| panic!("no tensor `{name}` in the architecture's table"))
    }
}

/// Rows that follow each other in a packed weight.
pub struct CodedRows<'a> {
    source: &'a Source,
    packed: &'a Packed,
    rows: Range<u64>,
}

impl CodedRows<'_> {
    /// How they are quantized.
    pub fn scheme(&self) -> Scheme {
        self.packed.scheme()
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.rows.end - self.rows.start
    }

    /// Whether they can be read without the rows around them.
    pub fn stands_alone(&self) -> bool {
        let unit = self.packed.band_rows();
        self.rows.start.is_multiple_of(unit)
            && (self.rows.end.is_multiple_of(unit) || self.rows.end == self.packed.rows())
    }

    /// Reads them in bands that begin at multiples of what lies together: `take(first_row, codes)` gets one after the other.
    pub fn read(&self, mut take: impl FnMut(u64, &QuantizedRows)) -> Result<()> {
        let unit = self.packed.band_rows();
        let band = (BAND as u64 / self.packed.cols().max(1)).max(1).next_multiple_of(unit);
        let mut first = self.rows.start;
        while first < self.rows.end {
            let last = (first + band).min(self.rows.end);
            let codes = self.packed.codes(&self.source.files, first..last)?;
            self.source.count(codes.weight.len() + codes.scale.len());
            take(first - self.rows.start, &codes);
            first = last;
        }
        Ok(())
    }
}

fn no_overflow(name: &str, dtype: Dtype, overflows: u64) -> Result<()> {
    if overflows == 0 {
        return Ok(());
    }
    let what = format!("{overflows} values are too large for {dtype}");
    Err(Error::Refused(vec![Problem::Loss { tensor: name.into(), what }]))
}

/// A note where the vocabulary has rows past its last token, for those who leave them out.
pub(crate) fn note_padding(model: &mut Model, rows: u64) {
    if rows > model.config.vocab_size {
        let text = format!("rows {} to {rows} of the vocabulary are padding and are not read", model.config.vocab_size);
        model.notes.push(Note::new(NoteKind::Ignored, text));
    }
}

/// The model of a Hugging Face folder, and its packed weights, which the catalog then shows as plain ones.
pub(crate) fn hugging_face(catalog: &mut Catalog, base: Option<&Path>) -> Result<(Model, Option<PackedFolder>)> {
    let mut model = Model::from_folder(base.unwrap_or(&catalog.folder))?;
    let per_block = model.config.mtp.as_ref().map_or(1, |m| m.layers.len() as u64);
    model.settle_mtp(catalog.tensors.keys(), per_block);
    let config = packed::config(&catalog.folder)?;
    if !model.architecture.is_converted() {
        if config.is_some_and(|config| !config.is_null()) {
            let what = format!("quantized weights of `{}` are not read yet", model.architecture.hf_class);
            return Err(Error::Model { path: catalog.folder.clone(), what });
        }
        return Ok((model, None));
    }
    let folder = packed::take(catalog, &model, config.as_ref())?;
    if let Some(folder) = &folder {
        let count = folder.quantization.linears.iter().filter(|q| q.is_quantized()).count();
        model.notes.push(Note::new(NoteKind::Inferred, format!("{count} quantized linears, packed")));
    }
    Ok((model, folder))
}

/// The model, the number of vocabulary rows that the checkpoint stores, and its quantizers, which the catalog then no
/// longer holds.
pub(crate) fn torch_dist(catalog: &mut Catalog, base: Option<&Path>) -> Result<(Model, u64, Option<StoredQuantizers>)> {
    let manifest = read_manifest(&catalog.folder)?;
    let mut model = Model::from_torch_dist(catalog, base)?;
    model.check_converted(&catalog.folder)?;
    model.settle_mtp(catalog.tensors.keys(), 1);
    let ignored = drop_training_state(catalog);
    if ignored > 0 {
        let text = format!("{ignored} entries of optimizer, scheduler and RNG state");
        model.notes.push(Note::new(NoteKind::Ignored, text));
    }
    if let (None, Some(manifest)) = (&model.folder, &manifest) {
        model.config.vocab_size = manifest.origin.vocab_size;
    }
    let rows = stored_vocab(catalog).unwrap_or(model.config.vocab_size).max(model.config.vocab_size);
    check_vocabulary(&model.config, rows, &catalog.folder)?;
    let quantized = stored::read(catalog, &mut model)?;
    Ok((model, rows, quantized))
}
