//! Weight matrices packed for products `x @ W^T`, and these products.
//!
//! A product of f32 activations has the same bits on every instruction set, for any number of rows and threads:
//! `out[m][n] = b_0 + b_1 + ...`, added in this order, where `b_i` is the sum over the i-th block of [`BLOCK_F32`] columns,
//! accumulated from 0.0 by `acc = fma(x[k], w[k], acc)` in ascending `k`.
//!
//! Rows of `W` lie in panels of 64, of which the columns (pairs of columns for bf16) follow each other, so that one
//! register of 512 bits takes 16 rows. A panel is read from its beginning to its end.

mod kernel;
mod lines;
mod pack;
mod run;
mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_x86;
#[cfg(test)]
mod tests;

use super::isa::Isa;
use super::pool::Pool;
use half::bf16;
use lines::Lines;

/// Columns of a block of a product of f32 activations (see the module's description of sums).
pub const BLOCK_F32: usize = 256;
/// Columns of a block of a product of bf16 activations.
pub const BLOCK_BF16: usize = 512;
/// Rows of `W` in a panel.
const PANEL: usize = 64;
/// 32-bit words of a cache line: one column (f32) or a pair of columns (bf16) of 16 rows of `W`.
const LANES: usize = 16;

/// Element type in which a matrix's weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// IEEE single precision.
    Float32,
    /// The upper half of it.
    Bfloat16,
}

impl WeightType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Bfloat16 => 2,
        }
    }
}

/// A cache line of weights: 16 rows of `W`, of each one f32 or (the earlier column in the lower half) two bf16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LANES]);

/// A weight matrix `[rows, cols]` (output features, input features: torch's `Linear.weight`), packed for `x @ W^T`.
pub struct Matrix {
    rows: usize,
    cols: usize,
    weight_type: WeightType,
    /// Panels, of each the steps (a column, or a pair of them), of each the lines of 16 rows. Padded with zeros.
    lines: Lines,
}

impl Matrix {
    /// A matrix of zeros.
    ///
    /// # Panics
    /// If its size in bytes does not fit a `usize`.
    pub fn zeros(rows: usize, cols: usize, weight_type: WeightType) -> Self {
        let mut matrix = Self { rows, cols, weight_type, lines: Lines::zeros(0) };
        let lines = matrix.panels().checked_mul(matrix.panel_lines()).expect("a matrix fits the address space");
        matrix.lines = Lines::zeros(lines);
        matrix
    }

    /// Packs consecutive whole rows beginning at `first_row`. `data` is row-major little-endian elements of the matrix's
    /// type.
    ///
    /// # Panics
    /// If `data` is not whole rows, or has more than there are from `first_row`.
    pub fn pack_rows(&mut self, first_row: usize, data: &[u8]) {
        pack::pack_rows(self, first_row, data);
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Type of the elements.
    pub fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    /// Allocated bytes.
    pub fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Row `r` as f32.
    ///
    /// # Panics
    /// If there is no row `r`, or `out` does not hold exactly its columns.
    pub fn row(&self, r: usize, out: &mut [f32]) {
        assert!(r < self.rows && out.len() == self.cols, "row {r} of [{}, {}]", self.rows, self.cols);
        let lane = r % LANES;
        let lines = self.panel(r / PANEL).iter().skip(r % PANEL / LANES).step_by(PANEL / LANES);
        match self.weight_type {
            WeightType::Float32 => {
                out.iter_mut().zip(lines).for_each(|(out, line)| *out = f32::from_bits(line.0[lane]));
            }
            WeightType::Bfloat16 => {
                for (pair, line) in out.chunks_mut(2).zip(lines) {
                    pair[0] = f32::from_bits(line.0[lane] << 16);
                    if let Some(odd) = pair.get_mut(1) {
                        *odd = f32::from_bits(line.0[lane] & 0xffff_0000);
                    }
                }
            }
        }
    }

    fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Columns (f32) or pairs of columns (bf16).
    fn steps(&self) -> usize {
        match self.weight_type {
            WeightType::Float32 => self.cols,
            WeightType::Bfloat16 => self.cols.div_ceil(2),
        }
    }

    fn panel_lines(&self) -> usize {
        self.steps().checked_mul(PANEL / LANES).expect("a panel fits the address space")
    }

    fn panel(&self, panel: usize) -> &[Line] {
        let lines = self.panel_lines();
        &self.lines[panel * lines..][..lines]
    }
}

/// One product: `out[m, rows] = x[m, cols] @ w^T`, row-major and contiguous. `m` is what the lengths say.
pub struct Product<'a, T> {
    /// Activations `[m, cols]`.
    pub x: &'a [T],
    /// Weights `[rows, cols]`.
    pub w: &'a Matrix,
    /// Overwritten `[m, rows]`.
    pub out: &'a mut [f32],
}

/// Products of f32 activations, in f32 arithmetic; bf16 weights are widened, which is exact.
///
/// # Panics
/// If lengths disagree, or this processor has not `isa`.
pub fn matmul_f32(pool: &Pool, isa: Isa, products: &mut [Product<'_, f32>]) {
    run::matmul(pool, isa, products);
}

/// Products of bf16 activations and weights, with f32 sums.
///
/// # Panics
/// If lengths disagree, a matrix is [`WeightType::Float32`], or this processor has not `isa`.
pub fn matmul_bf16(pool: &Pool, isa: Isa, products: &mut [Product<'_, bf16>]) {
    run::matmul(pool, isa, products);
}

/// Rounds to nearest, ties to even; a NaN stays one. The same bits on every `isa`.
///
/// # Panics
/// If the lengths differ, or this processor has not `isa`.
pub fn to_bf16(isa: Isa, x: &[f32], out: &mut [bf16]) {
    assert_eq!(x.len(), out.len(), "one result for each value");
    assert!(isa <= Isa::detect(), "this processor has no {isa:?}");
    pack::to_bf16(isa, x, out);
}
