//! How a matrix is cut into the blocks that share an amax.
#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use crate::{Error, Granularity, Result, Scheme};

/// Blocks of a band of whole rows. Where they do not divide it, the last ones of an axis are smaller: ModelOpt pads the
/// right and the bottom with zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Blocks {
    /// Rows of a block.
    pub(crate) rows: usize,
    /// Columns of a block.
    pub(crate) cols: usize,
    /// Blocks from top to bottom.
    pub(crate) down: usize,
    /// Blocks from left to right.
    pub(crate) across: usize,
}

impl Blocks {
    /// The blocks of `scheme` that have an amax from calibration, or `None` where it is found while quantizing.
    pub(crate) fn of(scheme: Scheme, rows: usize, cols: usize) -> Option<Self> {
        Some(match scheme {
            Scheme::Fp8(Granularity::Tensor) | Scheme::Int8(Granularity::Tensor) | Scheme::Nvfp4 { .. } => {
                Self::new(rows, cols, rows, cols)
            }
            Scheme::Fp8(Granularity::Channel) | Scheme::Int8(Granularity::Channel) => Self::new(1, cols, rows, cols),
            Scheme::Fp8(Granularity::Square(n)) | Scheme::Int8(Granularity::Square(n)) => Self::new(n, n, rows, cols),
            Scheme::Int4 { block } => Self::new(1, block, rows, cols),
            Scheme::Nvfp4Static { .. } => Self::new(1, NVFP4_BLOCK, rows, cols),
            Scheme::Fp8(Granularity::Token) | Scheme::Int8(Granularity::Token) | Scheme::Mx(_) => return None,
        })
    }

    /// A matrix of `rows` by `cols` in blocks of `block_rows` by `block_cols`.
    pub(crate) fn new(block_rows: usize, block_cols: usize, rows: usize, cols: usize) -> Self {
        let (block_rows, block_cols) = (block_rows.max(1), block_cols.max(1));
        let (down, across) = (rows.div_ceil(block_rows), cols.div_ceil(block_cols));
        Self { rows: block_rows, cols: block_cols, down, across }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.down * self.across
    }

    /// The numbers of the blocks that row `row` lies in.
    #[inline(always)]
    pub(crate) fn in_row(&self, row: usize) -> std::ops::Range<usize> {
        let start = row / self.rows * self.across;
        start..start + self.across
    }
}

/// Columns of an NVFP4 block, but where a scheme says otherwise.
pub(crate) const NVFP4_BLOCK: usize = 16;
/// Columns of an MX block.
pub(crate) const MX_BLOCK: usize = 32;

/// Refuses a matrix of `rows` by `cols` that blocks of `block_rows` by `block_cols` do not divide.
pub(crate) fn divides(block_rows: usize, block_cols: usize, rows: usize, cols: usize) -> Result<()> {
    if block_rows > 0 && block_cols > 0 && rows.is_multiple_of(block_rows) && cols.is_multiple_of(block_cols) {
        return Ok(());
    }
    let what = match block_rows {
        1 => format!("blocks of {block_cols} columns"),
        _ if block_cols == 1 => format!("groups of {block_rows} rows"),
        _ => format!("squares of {block_rows} by {block_cols}"),
    };
    Err(Error::Indivisible { rows, cols, what })
}

/// Refuses a matrix that the blocks of `scheme` do not divide.
pub(crate) fn divisible(scheme: Scheme, rows: usize, cols: usize) -> Result<()> {
    match scheme {
        Scheme::Fp8(Granularity::Square(n)) | Scheme::Int8(Granularity::Square(n)) => divides(n, n, rows, cols),
        Scheme::Int4 { block } | Scheme::Nvfp4 { block } => divides(1, block, rows, cols),
        Scheme::Nvfp4Static { .. } => divides(1, NVFP4_BLOCK, rows, cols),
        Scheme::Fp8(_) | Scheme::Int8(_) | Scheme::Mx(_) => Ok(()),
    }
}
