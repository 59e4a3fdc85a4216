//! Tensors that are computed from a weight while they are written: packed values, scales, calibrated magnitudes.
//!
//! A weight is read in bands of rows and never held whole. Scales of rows and blocks come from the band itself; the one
//! magnitude that a whole linear shares is found in a pass of its own before, once for all tensors that need it.

use super::BlockShares;
use crate::gather::Gather;
use crate::resolve::Recipe;
use crate::{Error, Problem, Result, cast};
use longshore_ckpt::fs::ReadFile;
use longshore_ckpt::{Dtype, Rect};
use longshore_quant::pack::PackedType;
use longshore_quant::search::{self, Search, TensorSearch};
use longshore_quant::{Amax, Element, Granularity, Scheme, amax, pack};
use std::sync::{Arc, OnceLock};

/// Bytes of source read for a band: large enough for the disk, small enough for the second-level cache.
const BAND: u64 = 512 << 10;

/// The rows of a linear, or of a part of it, as a quantizer sees them: boxes of tensors of the source, one after the other.
#[derive(Debug)]
pub struct Weight {
    /// Boxes of whole rows.
    pieces: Vec<(Arc<Recipe>, Rect)>,
    rows: u64,
    cols: u64,
    dtype: Dtype,
    /// What each column is multiplied by before it is quantized, rounded to the dtype (the inverse of a
    /// `pre_quant_scale`).
    columns: Option<Arc<[f32]>>,
}

impl Weight {
    /// All rows of these tensors, `[rows, cols]` each, of one dtype.
    pub fn of(recipes: &[Arc<Recipe>]) -> Self {
        let pieces = recipes.iter().map(|r| (Arc::clone(r), Rect::whole(&r.shape))).collect();
        Self::new(pieces)
    }

    fn new(pieces: Vec<(Arc<Recipe>, Rect)>) -> Self {
        let cols = pieces.first().and_then(|(_, rect)| rect.sizes.last().copied()).unwrap_or(1);
        let rows = pieces.iter().map(|(_, rect)| rect.len() / cols.max(1)).sum();
        let dtype = pieces.first().map_or(Dtype::Float32, |(recipe, _)| recipe.dtype);
        Self { pieces, rows, cols, dtype, columns: None }
    }

    /// With columns multiplied before anything else happens.
    #[must_use]
    pub fn scaled(mut self, columns: Option<Arc<[f32]>>) -> Self {
        self.columns = columns;
        self
    }

    /// Output features.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> u64 {
        self.cols
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The name of its first tensor, for messages.
    pub fn name(&self) -> &str {
        self.pieces.first().map_or("", |(recipe, _)| &recipe.name)
    }

    /// Its tensors.
    pub fn recipes(&self) -> impl Iterator<Item = &Recipe> {
        self.pieces.iter().map(|(recipe, _)| &**recipe)
    }

    /// The element type, for the roundings of a computation.
    pub fn element(&self) -> Element {
        match self.dtype {
            Dtype::Float16 => Element::Float16,
            Dtype::Bfloat16 => Element::Bfloat16,
            _ => Element::Float32,
        }
    }

    fn error(&self, error: &longshore_quant::Error) -> Error {
        let sources: Vec<&str> = self.recipes().flat_map(Recipe::sources).collect();
        let tensor = if let [source] = sources[..] { source } else { self.name() };
        Error::Refused(vec![Problem::Quantize { tensor: tensor.into(), what: error.to_string() }])
    }
}

/// Reads rows one after the other.
struct Rows<'a> {
    weight: &'a Weight,
    /// The piece that is being read, its gather, and its rows that are left.
    piece: usize,
    gather: Option<Gather<'a>>,
    left: u64,
    bytes: Vec<u8>,
}

impl<'a> Rows<'a> {
    fn new(weight: &'a Weight) -> Self {
        Self { weight, piece: 0, gather: None, left: 0, bytes: Vec::new() }
    }

    /// The next rows, widened: as many as `values` holds.
    fn read(&mut self, files: &[ReadFile], values: &mut [f32]) -> Result<()> {
        let (cols, dtype) = (self.weight.cols as usize, self.weight.dtype);
        let mut values = values;
        while !values.is_empty() {
            if self.left == 0 {
                let (recipe, rect) = &self.weight.pieces[self.piece];
                self.gather = Some(Gather::casting(recipe, rect, dtype));
                self.left = rect.len() / self.weight.cols;
                self.piece += 1;
                continue;
            }
            let rows = self.left.min((values.len() / cols) as u64);
            let (now, rest) = values.split_at_mut(rows as usize * cols);
            self.bytes.resize(now.len() * dtype.size() as usize, 0);
            if let Some(gather) = &mut self.gather {
                gather.fill(files, &mut self.bytes)?;
            }
            cast::widen(dtype, &self.bytes, now);
            if let Some(columns) = &self.weight.columns {
                let element = self.weight.element();
                for row in now.chunks_exact_mut(cols) {
                    for (x, s) in row.iter_mut().zip(columns.iter()) {
                        *x = element.round(*x * s);
                    }
                }
            }
            self.left -= rows;
            values = rest;
        }
        Ok(())
    }
}

/// Reads a weight band by band.
struct Bands<'a> {
    rows: Rows<'a>,
    done: u64,
    per_band: u64,
    values: Vec<f32>,
}

impl<'a> Bands<'a> {
    /// Bands are multiples of `unit` rows but for the last.
    fn new(weight: &'a Weight, unit: u64) -> Self {
        let row_size = (weight.cols * weight.dtype.size()).max(1);
        let per_band = (BAND / row_size / unit).max(1) * unit;
        Self { rows: Rows::new(weight), done: 0, per_band, values: Vec::new() }
    }

    /// The values of the next rows; `None` after the last.
    fn next(&mut self, files: &[ReadFile]) -> Result<Option<&mut [f32]>> {
        let weight = self.rows.weight;
        let rows = self.per_band.min(weight.rows - self.done);
        if rows == 0 {
            return Ok(None);
        }
        self.done += rows;
        self.values.resize((rows * weight.cols) as usize, 0.0);
        self.rows.read(files, &mut self.values)?;
        Ok(Some(&mut self.values))
    }
}

/// The magnitude that all weights of a linear share, found when it is first needed.
#[derive(Debug)]
pub struct SharedAmax {
    weights: Vec<Arc<Weight>>,
    search: Option<(Search, Scheme)>,
    value: OnceLock<f32>,
}

impl SharedAmax {
    /// Over these weights.
    pub fn new(weights: Vec<Arc<Weight>>) -> Self {
        Self { weights, search: None, value: OnceLock::new() }
    }

    /// Searched for, where the scheme has one magnitude for all: the weights are read twice then.
    #[must_use]
    pub fn searched(mut self, search: Option<&Search>, scheme: Scheme) -> Self {
        self.search = search.map(|search| (search.clone(), scheme));
        self
    }

    /// A known value.
    pub fn known(value: f32) -> Self {
        Self { weights: Vec::new(), search: None, value: OnceLock::from(value) }
    }

    /// The value; reads the weights if nobody has asked before.
    pub fn get(&self, files: &[ReadFile]) -> Result<f32> {
        if let Some(value) = self.value.get() {
            return Ok(*value);
        }
        let mut total = Amax { values: vec![0.0], global: None };
        for weight in &self.weights {
            let mut bands = Bands::new(weight, 1);
            while let Some(values) = bands.next(files)? {
                amax::observe(Scheme::Fp8(Granularity::Tensor), weight.cols() as usize, values, &mut total)
                    .map_err(|e| weight.error(&e))?;
            }
        }
        let value = self.best(files, total.values[0])?;
        Ok(*self.value.get_or_init(|| value))
    }

    fn best(&self, files: &[ReadFile], largest: f32) -> Result<f32> {
        let search = self.search.as_ref().and_then(|(search, scheme)| TensorSearch::new(search, *scheme, largest));
        let (Some(mut search), Some(first)) = (search, self.weights.first()) else { return Ok(largest) };
        for weight in &self.weights {
            let mut bands = Bands::new(weight, 1);
            while let Some(values) = bands.next(files)? {
                search.add(weight.cols() as usize, values);
            }
        }
        Ok(search.finish(first.element()))
    }
}

/// A quantizer of a weight.
#[derive(Debug)]
pub struct Stage {
    /// What it does.
    pub scheme: Scheme,
    /// Its magnitudes per row or block, `[rows, n]`, where they are stored and not to be found from the weight.
    pub stored: Option<Weight>,
    /// What is tried in place of the largest magnitudes of rows or blocks.
    pub search: Option<Search>,
    /// What the largest magnitudes of blocks are multiplied by, `[rows, n]`.
    pub clipped: Option<BlockShares>,
}

/// A weight and what is done to it.
#[derive(Debug)]
pub struct Encoding {
    /// The weight.
    pub weight: Arc<Weight>,
    /// The quantizer, or the sequence of them.
    pub stages: Vec<Stage>,
    /// The magnitude of the linear, for schemes that have one scale for all of it.
    pub shared: Arc<SharedAmax>,
}

/// Which tensor of an [`Encoding`] is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The values themselves, columns scaled.
    Scaled,
    /// The packed values.
    Values,
    /// The scales of rows or blocks, or the one of the tensor.
    Scale,
    /// The scale above those of the blocks.
    Scale2,
    /// The calibrated magnitudes of a stage, as ModelOpt stores them, in this dtype.
    Amax(usize, Dtype),
    /// The magnitude of the linear, beside those of its blocks, as a float32.
    GlobalAmax,
}

/// The rows of a weight that a row of its magnitudes is for.
pub(crate) fn rows_in_one(scheme: Scheme) -> u64 {
    match scheme {
        Scheme::Fp8(Granularity::Square(n)) | Scheme::Int8(Granularity::Square(n)) => n as u64,
        _ => 1,
    }
}

/// Whether a scheme needs the magnitude of the whole tensor.
pub fn is_shared(scheme: Scheme) -> bool {
    let whole = Granularity::Tensor;
    scheme == Scheme::Fp8(whole)
        || scheme == Scheme::Int8(whole)
        || matches!(scheme, Scheme::Nvfp4 { .. } | Scheme::Nvfp4Static { .. })
}

impl Encoding {
    /// The schemes of the stages.
    pub fn schemes(&self) -> Vec<Scheme> {
        self.stages.iter().map(|stage| stage.scheme).collect()
    }

    fn shared_value(&self, files: &[ReadFile]) -> Result<Option<f32>> {
        let needed = self.stages.iter().any(|stage| is_shared(stage.scheme));
        if needed { self.shared.get(files).map(Some) } else { Ok(None) }
    }
}

/// The magnitude that a linear shares, as far as an encoder knows it.
#[derive(Clone, Copy)]
enum Shared {
    Unknown,
    /// No stage has one.
    None,
    Known(f32),
}

/// Produces the bytes of one output of an encoding, front to back.
pub(crate) struct Encoder<'a> {
    encoding: &'a Encoding,
    schemes: Vec<Scheme>,
    output: Output,
    bands: Bands<'a>,
    stored: Vec<Option<Rows<'a>>>,
    shared: Shared,
    ready: Vec<u8>,
    at: usize,
    other: Vec<u8>,
}

impl<'a> Encoder<'a> {
    /// Begins at the first byte.
    pub(crate) fn new(encoding: &'a Encoding, output: Output) -> Self {
        let schemes = encoding.schemes();
        let bands = Bands::new(&encoding.weight, pack::band_rows(&schemes) as u64);
        let stored = encoding.stages.iter().map(|stage| stage.stored.as_ref().map(Rows::new)).collect();
        Self {
            encoding,
            schemes,
            output,
            bands,
            stored,
            shared: Shared::Unknown,
            ready: Vec::new(),
            at: 0,
            other: Vec::new(),
        }
    }

    /// Fills `out` with the next bytes.
    pub(crate) fn fill(&mut self, files: &[ReadFile], out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            if self.at == self.ready.len() {
                self.at = 0;
                self.ready.clear();
                self.produce(files)?;
            }
            let n = (out.len() - done).min(self.ready.len() - self.at);
            out[done..done + n].copy_from_slice(&self.ready[self.at..self.at + n]);
            (done, self.at) = (done + n, self.at + n);
        }
        Ok(())
    }

    /// Computes the bytes of the next band, or all of them where they do not depend on the rows.
    fn produce(&mut self, files: &[ReadFile]) -> Result<()> {
        let weight = &self.encoding.weight;
        if let (Shared::Unknown, true) = (self.shared, self.output != Output::Scaled) {
            self.shared = self.encoding.shared_value(files)?.map_or(Shared::None, Shared::Known);
        }
        let shared = if let Shared::Known(value) = self.shared { Some(value) } else { None };
        let of_tensor = |scheme: Scheme| is_shared(scheme) && !matches!(scheme, Scheme::Nvfp4Static { .. });
        match (self.output, shared) {
            (Output::Amax(stage, dtype), Some(value)) if of_tensor(self.schemes[stage]) => {
                narrow(dtype, &[value], &mut self.ready);
                return Ok(());
            }
            (Output::GlobalAmax, _) => {
                narrow(Dtype::Float32, &[shared.unwrap_or(0.0)], &mut self.ready);
                return Ok(());
            }
            (Output::Scale2, _) => {
                let amax = Amax { values: shared.into_iter().collect(), global: shared };
                let scale = pack::scale_2(&self.schemes, &vec![amax; self.schemes.len()]);
                self.ready.extend(scale.unwrap_or(0.0).to_le_bytes());
                return Ok(());
            }
            _ => {}
        }
        let cols = weight.cols() as usize;
        let first_row = self.bands.done as usize;
        let Some(values) = self.bands.next(files)? else {
            unreachable!("the shape of `{}` was planned from the same rows", weight.name())
        };
        if self.output == Output::Scaled {
            narrow(weight.dtype(), values, &mut self.ready);
            return Ok(());
        }
        let rows = values.len() / cols;
        let mut amax = Vec::with_capacity(self.schemes.len());
        for (stage, stored) in self.encoding.stages.iter().zip(&mut self.stored) {
            let mut found = band_amax(weight, stage, shared, stored.as_mut(), values, files)?;
            if let Some(clipped) = &stage.clipped {
                clip(clipped, first_row, rows, &mut found);
            }
            amax.push(found);
        }
        if let Output::Amax(stage, dtype) = self.output {
            narrow(dtype, &amax[stage].values, &mut self.ready);
            return Ok(());
        }
        let layout = pack::layout(&self.schemes, rows as u64, cols as u64).map_err(|e| weight.error(&e))?;
        let (mut packed, mut scale) = (std::mem::take(&mut self.ready), std::mem::take(&mut self.other));
        packed.resize(size(&layout.weight), 0);
        scale.resize(layout.scale.as_ref().map_or(0, size), 0);
        pack::pack(&self.schemes, weight.element(), &amax, cols, values, &mut packed, &mut scale)
            .map_err(|e| weight.error(&e))?;
        (self.ready, self.other) = if self.output == Output::Scale { (scale, packed) } else { (packed, scale) };
        Ok(())
    }
}

/// Bytes of a packed tensor.
fn size(part: &pack::Part) -> usize {
    (part.shape.iter().product::<u64>() * packed_dtype(part.dtype).size()) as usize
}

/// The dtype that a packed tensor has on disk.
pub fn packed_dtype(packed: PackedType) -> Dtype {
    match packed {
        PackedType::F8E4m3 => Dtype::Float8E4m3,
        PackedType::U8 => Dtype::Uint8,
        PackedType::I8 => Dtype::Int8,
        PackedType::F32 => Dtype::Float32,
    }
}

/// Takes shares of the magnitudes of a band's blocks.
fn clip(clipped: &BlockShares, first_row: usize, rows: usize, amax: &mut Amax) {
    let first = amax.values.len() / rows.max(1) * first_row;
    for (x, &share) in amax.values.iter_mut().zip(clipped.index.iter().skip(first)) {
        *x *= clipped.shares.get(usize::from(share)).copied().unwrap_or(1.0);
    }
}

/// The magnitudes of a stage for a band of rows.
fn band_amax(
    weight: &Weight,
    stage: &Stage,
    shared: Option<f32>,
    stored: Option<&mut Rows<'_>>,
    values: &[f32],
    files: &[ReadFile],
) -> Result<Amax> {
    let (scheme, cols) = (stage.scheme, weight.cols() as usize);
    let count = amax::count(scheme, values.len() / cols, cols).map_err(|e| weight.error(&e))?;
    let is_static = matches!(scheme, Scheme::Nvfp4Static { .. });
    let global = if is_static { shared } else { None };
    let mut found = Amax { values: vec![0.0; count], global };
    match (stored, shared) {
        (Some(stored), _) => stored.read(files, &mut found.values)?,
        (None, Some(value)) if is_shared(scheme) && !is_static => found.values.fill(value),
        _ => {
            amax::observe(scheme, cols, values, &mut found).map_err(|e| weight.error(&e))?;
            found.global = global;
            if let Some(search) = &stage.search {
                search::refine(search, scheme, weight.element(), cols, values, &mut found);
            }
        }
    }
    found.global = global;
    Ok(found)
}

/// Appends values in a float dtype that holds them.
pub(super) fn narrow(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + values.len() * dtype.size() as usize, 0);
    cast::narrow(values, dtype, &mut out[at..]);
}
