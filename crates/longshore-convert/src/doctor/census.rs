//! The census: every tensor, and every expert of a tensor of experts, read once and reduced to statistics and a hash.

use crate::Result;
use crate::arch::without_numbers;
use crate::compare::{check_cancelled, parallel};
use crate::config::ModelConfig;
use crate::progress::Progress;
use crate::resolve::Recipe;
use crate::source::Source;
use longshore_ckpt::{Dtype, Rect};
use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Vectors of at most this many elements are kept: norms, biases, the parameters of Mamba heads.
const KEPT: u64 = 1 << 20;

/// A tensor, or one expert of it.
pub(super) struct Piece {
    /// Its name among the engine's: Megatron's, with norms of their own.
    pub(super) name: String,
    /// The name with its numbers replaced, and whether its layer has experts: what is alike in all layers.
    pub(super) kind: String,
    /// What its layer's names begin with; empty outside of layers.
    pub(super) layer: String,
    /// Which slot of the leading axis.
    pub(super) expert: Option<u64>,
    /// The names in the checkpoint.
    pub(super) stored: Vec<String>,
    /// The dtype of the checkpoint.
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) stats: Stats,
}

impl Piece {
    pub(super) fn is_mtp(&self) -> bool {
        self.name.starts_with("mtp.")
    }

    pub(super) fn is_norm(&self) -> bool {
        self.shape.len() == 1 && self.name.ends_with("norm.weight")
    }

    pub(super) fn is_vocabulary(&self) -> bool {
        matches!(self.name.as_str(), "embedding.word_embeddings.weight" | "output_layer.weight")
    }

    pub(super) fn is_matrix(&self) -> bool {
        self.stats.rows > 1 && self.stats.cols > 1
    }

    pub(super) fn ends_with(&self, suffix: &str) -> bool {
        self.name.ends_with(suffix)
    }
}

/// Rows, or columns, that hold zeros alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Zeros {
    pub(super) count: u64,
    /// The longest run: its first, and how many.
    pub(super) run: (u64, u64),
    current: u64,
}

impl Zeros {
    fn add(&mut self, at: u64, zero: bool) {
        self.current = if zero { self.current + 1 } else { 0 };
        self.count += u64::from(zero);
        if self.current > self.run.1 {
            self.run = (at + 1 - self.current, self.current);
        }
    }
}

/// What is known of a tensor read as rows: its leading axis, and all others together. A vector is one row.
#[derive(Clone, Debug, Default)]
pub(super) struct Stats {
    pub(super) rows: u64,
    pub(super) cols: u64,
    pub(super) not_finite: u64,
    /// Row and column of the first that is not finite, and its value.
    pub(super) first_not_finite: Option<(u64, u64, f32)>,
    pub(super) mean: f64,
    /// Of the values as they are, not about the mean.
    pub(super) std: f64,
    /// Fourth moment over the square of the second: 3 for a normal distribution about zero.
    pub(super) kurtosis: f64,
    /// How much the lengths of rows differ, in units of what independent normal values do.
    pub(super) row_spread: f64,
    pub(super) col_spread: f64,
    pub(super) zero_rows: Zeros,
    pub(super) zero_cols: Zeros,
    /// The value that all elements have.
    pub(super) constant: Option<f32>,
    /// Whether bfloat16 holds every value.
    pub(super) fits_bf16: bool,
    /// Of all values, as 32-bit floats, in order.
    pub(super) hash: u64,
    /// The values of a vector.
    pub(super) values: Vec<f32>,
    /// Squared lengths of rows, where they were asked for.
    pub(super) row_squares: Vec<f64>,
    /// A hash of each row, where they were asked for.
    pub(super) row_hashes: Vec<u64>,
}

impl Stats {
    pub(super) fn len(&self) -> u64 {
        self.rows * self.cols
    }
}

/// What is kept of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Nothing,
    Squares,
    Hashes,
}

/// All pieces of a checkpoint, in the order of names.
pub(super) struct Census<'a> {
    pub(super) source: &'a Source,
    pub(super) pieces: Vec<Piece>,
}

impl<'a> Census<'a> {
    /// Reads everything.
    pub(super) fn take(source: &'a Source, phase: &str, threads: usize, progress: &dyn Progress) -> Result<Self> {
        let mut boxes: Vec<(&Recipe, Option<u64>)> = Vec::new();
        for recipe in source.recipes().values() {
            match (recipe.declared.experts, recipe.shape.first()) {
                (true, Some(&experts)) => boxes.extend((0..experts).map(|e| (recipe, Some(e)))),
                _ => boxes.push((recipe, None)),
            }
        }
        progress.start(phase, source.recipes().values().map(Recipe::size).sum());
        let pieces: Mutex<Vec<(usize, Piece)>> = Mutex::default();
        parallel(threads, boxes.len(), |index| {
            check_cancelled(progress)?;
            let (recipe, expert) = boxes[index];
            let keep = if is_cut_by_sections(&recipe.name) { Keep::Squares } else { Keep::Nothing };
            let stats = scan(source, recipe, expert, keep)?;
            progress.advance(stats.len() * recipe.dtype.size(), Path::new(&recipe.name));
            let piece = piece(source, recipe, expert, stats);
            pieces.lock().unwrap_or_else(PoisonError::into_inner).push((index, piece));
            Ok(())
        })?;
        let mut pieces = pieces.into_inner().unwrap_or_else(PoisonError::into_inner);
        pieces.sort_by_key(|(index, _)| *index);
        Ok(Self { source, pieces: pieces.into_iter().map(|(_, piece)| piece).collect() })
    }

    pub(super) fn config(&self) -> &ModelConfig {
        &self.source.model.config
    }

    /// Bytes of all pieces, in the types that they are stored in.
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.stats.len() * piece.dtype.size()).sum()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Piece> {
        let found = self.pieces.binary_search_by(|piece| piece.name.as_str().cmp(name)).ok()?;
        self.pieces.get(found)
    }
}

/// `in_proj` and `conv1d` hold sections of rows, which tensor parallelism cuts one by one.
fn is_cut_by_sections(name: &str) -> bool {
    name.contains(".mixer.in_proj.weight.") || name.contains(".mixer.conv1d.weight.")
}

fn piece(source: &Source, recipe: &Recipe, expert: Option<u64>, stats: Stats) -> Piece {
    let layer = layer_of(&recipe.name);
    let mut kind = without_numbers(&recipe.name);
    if source.has(&format!("{layer}mlp.router.weight")) {
        kind += " (MoE layer)";
    }
    let mut shape = recipe.shape.clone();
    if expert.is_some() {
        shape.remove(0);
    }
    let stored = stored_names(recipe, expert);
    let (name, dtype) = (recipe.name.clone(), recipe.source_dtype());
    Piece { name, kind, layer, expert, stored, dtype, shape, stats }
}

/// `decoder.layers.3.` of a name in layer 3.
fn layer_of(name: &str) -> String {
    let marker = "layers.";
    let Some(at) = name.rfind(marker).map(|at| at + marker.len()) else { return String::new() };
    name[at..].find('.').map_or_else(String::new, |end| name[..=at + end].to_owned())
}

/// The names in the checkpoint of the tensors that hold a piece.
fn stored_names(recipe: &Recipe, expert: Option<u64>) -> Vec<String> {
    let sources = recipe.sources();
    match expert {
        None => sources.into_iter().map(str::to_owned).collect(),
        Some(e) => match sources.as_slice() {
            [one] if recipe.shape[0] > 1 => vec![format!("{one}[{e}]")],
            _ => sources.get(e as usize).map(|name| (*name).to_owned()).into_iter().collect(),
        },
    }
}

/// The elements of a tensor, or of an expert of it.
pub(super) fn box_of(recipe: &Recipe, expert: Option<u64>) -> Rect {
    let mut rect = Rect::whole(&recipe.shape);
    if let Some(e) = expert {
        (rect.offsets[0], rect.sizes[0]) = (e, 1);
    }
    rect
}

/// Reads a tensor, or an expert of it, once.
pub(super) fn scan(source: &Source, recipe: &Recipe, expert: Option<u64>, keep: Keep) -> Result<Stats> {
    let rect = box_of(recipe, expert);
    let shape = &recipe.shape[usize::from(expert.is_some())..];
    let cols = if shape.len() < 2 { rect.len() } else { shape[1..].iter().product() };
    let mut sums = Sums::new(cols, rect.len().checked_div(cols).unwrap_or(0), keep);
    sums.keep_values = shape.len() < 2 && cols <= KEPT;
    source.read_rows(&recipe.name, &rect, Dtype::Float32, cols, |first, bytes| {
        for (i, row) in bytes.chunks_exact(cols as usize * 4).enumerate() {
            sums.row((first + i) as u64, row);
        }
    })?;
    Ok(sums.finish())
}

/// The statistics while they grow.
struct Sums {
    stats: Stats,
    hash: DefaultHasher,
    first: Option<f32>,
    is_constant: bool,
    keep_values: bool,
    keep: Keep,
    sum: f64,
    squares: f64,
    fourths: f64,
    /// Sum and sum of squares of the lengths of rows.
    lengths: (f64, f64),
    columns: Vec<f64>,
    row: Vec<f32>,
}

impl Sums {
    fn new(cols: u64, rows: u64, keep: Keep) -> Self {
        let stats = Stats { rows, cols, fits_bf16: true, ..Stats::default() };
        Self {
            stats,
            hash: DefaultHasher::new(),
            first: None,
            is_constant: true,
            keep_values: false,
            keep,
            sum: 0.0,
            squares: 0.0,
            fourths: 0.0,
            lengths: (0.0, 0.0),
            columns: vec![0.0; cols as usize],
            row: Vec::with_capacity(cols as usize),
        }
    }

    fn row(&mut self, at: u64, bytes: &[u8]) {
        let mut row_hash = DefaultHasher::new();
        row_hash.write(bytes);
        let row_hash = row_hash.finish();
        self.hash.write_u64(row_hash);
        if self.keep == Keep::Hashes {
            self.stats.row_hashes.push(row_hash);
        }
        self.row.clear();
        self.row.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
        let first = *self.first.get_or_insert(self.row.first().copied().unwrap_or(0.0));
        self.is_constant &= self.row.iter().all(|&v| v == first);
        self.stats.fits_bf16 &= self.row.iter().all(|v| v.to_bits().trailing_zeros() >= 16);
        if self.keep_values {
            self.stats.values.extend_from_slice(&self.row);
        }
        let (mut sum, mut squares, mut fourths) = (0.0, 0.0, 0.0);
        for (&value, column) in self.row.iter().zip(&mut self.columns) {
            let value = f64::from(value);
            let square = value * value;
            sum += value;
            squares += square;
            fourths += square * square;
            *column += square;
        }
        if !squares.is_finite() {
            for (col, &value) in (0..).zip(&self.row).filter(|(_, value)| !value.is_finite()) {
                self.stats.not_finite += 1;
                self.stats.first_not_finite.get_or_insert((at, col, value));
            }
        }
        self.sum += sum;
        self.squares += squares;
        self.fourths += fourths;
        self.lengths.0 += squares.sqrt();
        self.lengths.1 += squares;
        self.stats.zero_rows.add(at, squares == 0.0);
        if self.keep == Keep::Squares {
            self.stats.row_squares.push(squares);
        }
    }

    fn finish(mut self) -> Stats {
        let (rows, cols) = (self.stats.rows as f64, self.stats.cols as f64);
        let len = rows * cols;
        let variance = self.squares / len;
        self.stats.mean = self.sum / len;
        self.stats.std = variance.sqrt();
        self.stats.kurtosis = self.fourths / len / (variance * variance);
        self.stats.row_spread = spread(self.lengths, rows, cols);
        let lengths = self.columns.iter().fold((0.0, 0.0), |(sum, squares), &c| (sum + c.sqrt(), squares + c));
        self.stats.col_spread = spread(lengths, cols, rows);
        for (at, &column) in (0..).zip(&self.columns) {
            self.stats.zero_cols.add(at, column == 0.0);
        }
        self.stats.constant = self.first.filter(|_| self.is_constant);
        self.stats.hash = self.hash.finish();
        self.stats
    }
}

/// The coefficient of variation of `count` lengths of `dim` values, from their sum and sum of squares, over the one that
/// independent normal values have: `1 / sqrt(2 dim)`.
fn spread((sum, squares): (f64, f64), count: f64, dim: f64) -> f64 {
    let mean = sum / count;
    let variance = (squares / count - mean * mean).max(0.0);
    variance.sqrt() / mean * (2.0 * dim).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(rows: &[&[f32]]) -> Stats {
        let mut sums = Sums::new(rows[0].len() as u64, rows.len() as u64, Keep::Nothing);
        for (at, row) in (0..).zip(rows) {
            sums.row(at, &row.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        }
        sums.finish()
    }

    #[test]
    fn statistics_are_those_of_the_definition() {
        let s = stats(&[&[1.0, -1.0], &[3.0, 3.0], &[0.0, 0.0], &[0.0, 0.0]]);
        assert_eq!((s.mean, s.std), (0.75, 2.5_f64.sqrt()));
        assert!((s.kurtosis - 164.0 / 8.0 / 6.25).abs() < 1e-12);
        assert_eq!((s.zero_rows.count, s.zero_rows.run, s.zero_cols.count), (2, (2, 2), 0));
        assert_eq!((s.not_finite, s.constant, s.fits_bf16), (0, None, true));
        // Lengths of rows: sqrt 2, sqrt 18, 0, 0.
        let (mean, squares) = (4.0 * 2_f64.sqrt() / 4.0, 20.0 / 4.0);
        assert!((s.row_spread - (squares - mean * mean).sqrt() / mean * 2.0).abs() < 1e-12);
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_placed() {
        let s = stats(&[&[1.0, 2.0], &[0.1, f32::NEG_INFINITY], &[f32::NAN, 1.0]]);
        assert_eq!((s.not_finite, s.first_not_finite), (2, Some((1, 1, f32::NEG_INFINITY))));
        assert!(!s.fits_bf16);
    }

    #[test]
    fn a_layer_is_the_innermost() {
        for (name, layer) in [
            ("decoder.layers.12.mixer.D", "decoder.layers.12."),
            ("mtp.layers.0.mtp_model_layer.layers.1.mlp.router.weight", "mtp.layers.0.mtp_model_layer.layers.1."),
            ("mtp.layers.0.enorm.weight", "mtp.layers.0."),
            ("output_layer.weight", ""),
        ] {
            assert_eq!(layer_of(name), layer);
        }
    }
}
