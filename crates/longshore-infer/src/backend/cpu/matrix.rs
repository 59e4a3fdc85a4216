//! Weight matrices packed for products `x @ W^T`, and these products.
//!
//! A product of f32 activations has the same bits on every instruction set, for any number of rows and threads:
//! `out[m][n] = b_0 + b_1 + ...`, added in this order, where `b_i` is the sum over the i-th block of [`BLOCK_F32`] columns,
//! accumulated from 0.0 by `acc = fma(x[k], w[k], acc)` in ascending `k`.
//!
//! Quantized weights stay quantized in memory. A weight is a code times its scales, of which
//!
//! * those of groups of 16 or 32 columns (E4M3, E8M0) are multiplied with the code, which is exact in bf16: such a weight takes
//!   part in sums as if it were stored as bf16,
//! * those of blocks in f32 (128 by 128 squares, INT4) are multiplied with sums: a sum ends where a block of scales ends too, and
//!   `out = fma(b_i, scale_i, ...fma(b_1, scale_1, b_0 * scale_0))`,
//! * those of rows and of the tensor are multiplied with the finished sum of all blocks, rounded once more.
//!
//! So all types have the same sums on every path: from registers for a few rows, from a block that is unpacked for many. There
//! is one zero among the weights with scales of groups, and what is below 2^-108 under an E8M0 scale is it. A weight or scale
//! that is NaN (for scales of groups also: negative, or E8M0 above 2^119) makes all results of its row NaN, as its product with
//! anything would.
//!
//! Rows of `W` lie in panels of 64, of which the columns (pairs of columns for bf16) follow each other, so that one
//! register of 512 bits takes 16 rows. A panel is read from its beginning to its end.

mod codes;
#[cfg(target_arch = "x86_64")]
mod fused_x86;
mod kernel;
mod lines;
mod pack;
mod run;
mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_x86;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_quantized;
mod unpack;

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
    /// FP8 E4M3 with scales of rows or of the tensor.
    E4m3,
    /// FP8 E4M3 with an f32 scale for each square of 128 by 128, beginning at the first row and column.
    E4m3Squares,
    /// Signed bytes with scales of rows or of the tensor.
    Int8,
    /// Nibbles in two's complement with an f32 scale for each row and `block` columns, a multiple of 16.
    Int4 {
        /// Columns of a scale.
        block: usize,
    },
    /// FP4 E2M1 with an E4M3 scale for each row and `block` columns (16 or 32), and one of the tensor.
    Nvfp4 {
        /// Columns of a scale.
        block: usize,
    },
    /// FP8 E4M3 with an E8M0 scale for each row and 32 columns (OCP MX).
    Mxfp8,
    /// FP4 E2M1 with an E8M0 scale for each row and 32 columns (OCP MX).
    Mxfp4,
}

impl WeightType {
    /// Bytes of a row of elements or codes as [`Matrix::pack_rows`] takes it; `None` where they do not fit a `usize`.
    pub fn row_size(self, cols: usize) -> Option<usize> {
        match self {
            Self::Int4 { .. } | Self::Nvfp4 { .. } | Self::Mxfp4 => Some(cols.div_ceil(2)),
            Self::Float32 => cols.checked_mul(4),
            Self::Bfloat16 => cols.checked_mul(2),
            _ => Some(cols),
        }
    }
}

/// Scales of blocks of whole rows, row-major `[rows, blocks of columns]` (of squares `[rows / 128, cols / 128]`), rounded up.
#[derive(Clone, Copy, Debug)]
pub enum RowScales<'a> {
    /// Of [`WeightType::Int4`] and [`WeightType::E4m3Squares`].
    Float32(&'a [f32]),
    /// Of the others: E4M3 or E8M0, whichever the type has.
    Bytes(&'a [u8]),
}

/// Bytes that a matrix of this shape allocates, as [`Matrix::bytes`] counts them. `None` where they do not fit the address
/// space.
pub fn matrix_bytes(rows: u64, cols: u64, weight_type: WeightType) -> Option<u64> {
    let sizes = Sizes::new(usize::try_from(rows).ok()?, usize::try_from(cols).ok()?, weight_type)?;
    Some(sizes.bytes as u64)
}

/// How much there is of what a matrix consists of.
struct Sizes {
    lines: usize,
    row_scales: usize,
    block_scales: usize,
    bytes: usize,
}

impl Sizes {
    fn new(rows: usize, cols: usize, weight_type: WeightType) -> Option<Self> {
        let panels = rows.div_ceil(PANEL);
        let lines = panels.checked_mul(weight_type.lines(cols)?)?;
        let row_scales = if weight_type.codes().is_some() { panels } else { 0 };
        let blocks = weight_type.scaled_block().map_or(0, |block| cols.div_ceil(block.max(1)));
        let block_scales = panels.checked_mul(blocks)?;
        let scales = row_scales.checked_add(block_scales)?.checked_mul(PANEL * size_of::<f32>())?;
        let bytes = lines.checked_mul(size_of::<Line>())?.checked_add(scales)?;
        isize::try_from(bytes).is_ok().then_some(Self { lines, row_scales, block_scales, bytes })
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
    /// Panels, of each the steps (a column, or a pair of them), of each the lines of 16 rows; of quantized weights the units
    /// that `codes` describes. Padded with zeros.
    lines: Lines,
    /// Scales of finished sums: of each panel those of its rows. None of floats.
    row_scales: Vec<[f32; PANEL]>,
    /// Scales of sums of blocks: of each panel the blocks of columns, of each those of its rows.
    block_scales: Vec<[f32; PANEL]>,
}

impl Matrix {
    /// A matrix of zeros, whose row and tensor scales are 1.
    ///
    /// # Panics
    /// If its size in bytes does not fit the address space, or there are no kernels for its type's block size.
    pub fn zeros(rows: usize, cols: usize, weight_type: WeightType) -> Self {
        assert!(weight_type.is_supported(), "no kernels for {weight_type:?}");
        let sizes = Sizes::new(rows, cols, weight_type).expect("a matrix fits the address space");
        Self {
            rows,
            cols,
            weight_type,
            lines: Lines::zeros(sizes.lines),
            row_scales: vec![[1.0; PANEL]; sizes.row_scales],
            block_scales: vec![[0.0; PANEL]; sizes.block_scales],
        }
    }

    /// Packs consecutive whole rows beginning at `first_row`. `data` is row-major little-endian elements of the matrix's
    /// type; two to a byte of 4-bit types, the even column in the low nibble, where a row begins with a byte of its own.
    ///
    /// # Panics
    /// If `data` is not whole rows, or has more than there are from `first_row`.
    pub fn pack_rows(&mut self, first_row: usize, data: &[u8]) {
        pack::pack_rows(self, first_row, data);
    }

    /// Packs the scales of the blocks of whole rows, beginning at `first_row` (of squares a multiple of 128).
    ///
    /// # Panics
    /// If they are not those of whole rows, more than there are from `first_row`, or of a kind that this type has not.
    pub fn pack_scales(&mut self, first_row: usize, scales: RowScales<'_>) {
        pack::pack_scales(self, first_row, scales);
    }

    /// Replaces the scales of the rows from `first_row` on.
    ///
    /// # Panics
    /// If the matrix is not quantized, or has not so many rows.
    pub fn set_row_scales(&mut self, first_row: usize, scales: &[f32]) {
        assert!(
            self.weight_type.codes().is_some() && self.rows.checked_sub(first_row).is_some_and(|n| scales.len() <= n),
            "{} scales from row {first_row} of [{}, {}] of {:?}",
            scales.len(),
            self.rows,
            self.cols,
            self.weight_type
        );
        for (to, &scale) in self.row_scales.as_flattened_mut()[first_row..].iter_mut().zip(scales) {
            // A NaN stands for one among the codes or scales.
            *to = if to.is_nan() { *to } else { scale };
        }
    }

    /// Replaces the scales of all rows by that of the tensor.
    ///
    /// # Panics
    /// If the matrix is not quantized.
    pub fn set_tensor_scale(&mut self, scale: f32) {
        self.set_row_scales(0, &vec![scale; self.rows]);
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
        self.lines.len() * size_of::<Line>() + size_of_val(&self.row_scales[..]) + size_of_val(&self.block_scales[..])
    }

    /// Row `r` as f32: of quantized types the code times its group's scale, times its block's, times its row's.
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
            _ => {
                unpack::row(self.weight_type, self.panel(r / PANEL), r % PANEL, out);
                if let Some(block) = self.weight_type.scaled_block() {
                    for (out, scales) in out.chunks_mut(block).zip(self.panel_block_scales(r / PANEL)) {
                        for out in out {
                            *out *= scales[r % PANEL];
                        }
                    }
                }
                for out in out {
                    *out *= self.row_scales[r / PANEL][r % PANEL];
                }
            }
        }
    }

    fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    fn panel_lines(&self) -> usize {
        self.weight_type.lines(self.cols).expect("a panel fits the address space")
    }

    fn panel_block_scales(&self, panel: usize) -> &[[f32; PANEL]] {
        let blocks = self.block_scales.len() / self.panels();
        &self.block_scales[panel * blocks..][..blocks]
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

/// Products of f32 activations, in f32 arithmetic; narrower weights are widened, which is exact.
///
/// # Panics
/// If lengths disagree, or this processor has not `isa`.
pub fn matmul_f32(pool: &Pool, isa: Isa, products: &mut [Product<'_, f32>]) {
    run::matmul(pool, isa, products);
}

/// Products of bf16 activations and of weights that are bf16 or quantized, with f32 sums.
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
