//! The attributes of a quantizer, named as ModelOpt's `QuantizerAttributeConfig` names them.

use std::fmt;

use serde::Serialize;

/// `num_bits`: an integer's width, or the exponent and mantissa bits of a float.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum NumBits {
    /// Integer of this many bits.
    Int(u8),
    /// Exponent and mantissa bits: (4, 3) is E4M3.
    Float(u8, u8),
}

impl fmt::Display for NumBits {
    /// As Python prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(bits) => bits.fmt(f),
            Self::Float(exponent, mantissa) => write!(f, "({exponent}, {mantissa})"),
        }
    }
}

/// `block_sizes`: how axes are cut into blocks, and how the scales of the blocks are stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockSizes {
    /// Axis (negative, from the last) and its block, `None` for all of the axis, in the order of the config.
    pub axes: Vec<(i32, Option<u32>)>,
    /// `type`: whether the scales are found while the tensor is quantized; `None` where the config does not say.
    pub dynamic: Option<bool>,
    /// Number format of the scales of the blocks.
    pub scale_bits: Option<NumBits>,
    /// Blocks choose between two ranges (`four_over_six`).
    pub four_over_six: Option<bool>,
}

/// `bias`: an offset that is taken off before quantizing and put back after (affine KV caches).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bias {
    /// The axes that are averaged over, negative, from the last.
    pub axes: Vec<i32>,
    /// `type`: whether it is found while the tensor is quantized; `None` where the config does not say.
    pub dynamic: Option<bool>,
    /// `method`: `mean` or `max_min`; `None` where the config does not say.
    pub method: Option<String>,
}

/// What one quantizer (one stage of a sequence) does.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "ModelOpt's fields")]
pub struct Attributes {
    /// Whether it quantizes at all.
    pub enable: bool,
    /// Number format.
    pub num_bits: NumBits,
    /// Bits a value is counted as by a search for mixed precision.
    pub effective_bits: Option<f64>,
    /// The axis that keeps scales of its own.
    pub axis: Option<i32>,
    /// Compute in the original type (else: store quantized values).
    pub fake_quant: bool,
    /// No sign.
    pub unsigned: bool,
    /// Without the most negative integer.
    pub narrow_range: bool,
    /// `type: dynamic`: the amax is found while the tensor is quantized.
    pub dynamic: bool,
    /// Blocks.
    pub block_sizes: Option<BlockSizes>,
    /// Offset.
    pub bias: Option<Bias>,
    /// The calibrator's name.
    pub calibrator: String,
    /// Rotation before quantizing.
    pub rotate: bool,
    /// Gradients pass unchanged (training only).
    pub pass_through_bwd: bool,
    /// The amax is 448, whatever the format: nothing is calibrated, stored or exported.
    pub use_constant_amax: bool,
    /// An amax that is not calibrated, but stored and exported like one that is.
    pub constant_amax: Option<f64>,
}

impl Default for Attributes {
    /// ModelOpt's defaults: eight-bit integers, one amax, enabled.
    fn default() -> Self {
        Self {
            enable: true,
            num_bits: NumBits::Int(8),
            effective_bits: None,
            axis: None,
            fake_quant: true,
            unsigned: false,
            narrow_range: false,
            dynamic: false,
            block_sizes: None,
            bias: None,
            calibrator: "max".into(),
            rotate: false,
            pass_through_bwd: true,
            use_constant_amax: false,
            constant_amax: None,
        }
    }
}
