//! What a quantizer does to a tensor.

/// The parts of a tensor that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// All of it.
    Tensor,
    /// A row each (`axis` 0 of a weight): output features.
    Channel,
    /// A row each, found while it is quantized: tokens.
    Token,
    /// Squares of this many rows and columns.
    Square(usize),
}

/// The element of an MX format, in blocks of 32 with a power of two as scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MxElement {
    /// FP8.
    E4m3,
    /// FP6.
    E3m2,
    /// FP6.
    E2m3,
    /// FP4.
    E2m1,
    /// INT8.
    Int8,
}

/// What a quantizer does: every combination of ModelOpt's attributes that this crate computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// E4M3.
    Fp8(Granularity),
    /// Eight-bit integers.
    Int8(Granularity),
    /// Four-bit integers, a scale per so many columns of a row.
    Int4 {
        /// Columns.
        block: usize,
    },
    /// E2M1 with an E4M3 scale per block found from the block itself, under a scale per tensor.
    Nvfp4 {
        /// Columns of a block: 16, or 32.
        block: usize,
    },
    /// The same with a calibrated amax per block of 16.
    Nvfp4Static {
        /// Whether blocks choose between a range of 6 and of 4 (largest block scale 256 in place of 448).
        four_over_six: bool,
    },
    /// A power of two per block of 32.
    Mx(MxElement),
}
