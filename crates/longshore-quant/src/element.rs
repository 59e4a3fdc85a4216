//! The element type of a tensor that is quantized. Its values travel as f32, which holds all of them exactly.

#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use crate::isa::{Isa, per_isa};
use crate::number::{Rounding, with_rounding};
use half::{bf16, f16};

/// What a tensor's values are rounded to between the steps of a computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE half precision.
    Float16,
    /// The upper half of single precision.
    Bfloat16,
    /// IEEE single precision.
    Float32,
}

impl Element {
    /// `x` rounded to nearest, ties to even.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::Float16 => f16::from_f32(x).to_f32(),
            Self::Bfloat16 => bf16::from_f32(x).to_f32(),
            Self::Float32 => x,
        }
    }

    /// Rounds all of them.
    pub fn round_all(self, values: &mut [f32]) {
        with_rounding!(self, R => round_all::<R>(Isa::detect(), values));
    }

    /// Rounds rows, multiplies each with `scale`, column by column, and rounds again.
    pub fn scale_rows(self, scale: &[f32], rows: &mut [f32]) {
        with_rounding!(self, R => scale_rows::<R>(Isa::detect(), scale, rows));
    }
}

#[inline(always)]
fn round_all_body<R: Rounding>(values: &mut [f32]) {
    for x in values {
        *x = R::round(*x);
    }
}

#[inline(always)]
fn scale_rows_body<R: Rounding>(scale: &[f32], rows: &mut [f32]) {
    for row in rows.chunks_exact_mut(scale.len().max(1)) {
        for (x, s) in row.iter_mut().zip(scale) {
            *x = R::round(R::round(*x) * s);
        }
    }
}

per_isa! {
    fn round_all[R: Rounding][R](values: &mut [f32]) = round_all_body;
}

per_isa! {
    fn scale_rows[R: Rounding][R](scale: &[f32], rows: &mut [f32]) = scale_rows_body;
}
