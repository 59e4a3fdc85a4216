//! The element type of a tensor that is quantized. Its values travel as f32, which holds all of them exactly.

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
}
