//! Real quantization: the tensors that ModelOpt's exporters write in place of a weight.
//!
//! The scales and roundings are not those of fake quantization. Three choices are made where ModelOpt writes NaN: an amax
//! of zero is replaced in every format (its HF export of FP8 per tensor and of NVFP4 divides by it), and E4M3 saturates
//! where a weight exceeds its amax.

mod loops;

use crate::blocks::{self, Blocks, MX_BLOCK, NVFP4_BLOCK};
use crate::isa::Isa;
use crate::number::{Float32, e4m3_encode, with_rounding};
use crate::{Amax, Element, Error, Granularity, MxElement, Result, Scheme};

/// The type of a tensor that packing makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedType {
    /// `F8_E4M3`.
    F8E4m3,
    /// `U8`.
    U8,
    /// `I8`.
    I8,
    /// `F32`.
    F32,
}

/// A tensor that packing makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Type.
    pub dtype: PackedType,
    /// Shape; empty for a scalar.
    pub shape: Vec<u64>,
}

/// What a weight becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `weight`.
    pub weight: Part,
    /// `weight_scale`.
    pub scale: Option<Part>,
    /// Whether there is a `weight_scale_2`, an f32 scalar.
    pub scale_2: bool,
}

/// An encoding that export knows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Fp8(Granularity),
    Int8(Granularity),
    /// Rows in pairs: the even one in the low nibble.
    Int4 {
        block: usize,
        /// Under a scale of E4M3 for the tensor (`W4A8_AWQ`).
        scale_2: bool,
    },
    /// Block scales found from the blocks; `scale_2` is the amax over `range`.
    Nvfp4 {
        block: usize,
        range: f32,
    },
    /// Calibrated block scales, the largest at most `largest`.
    Nvfp4Static {
        largest: f32,
    },
    Mxfp8,
    Mxfp4,
}

impl Format {
    fn of(stages: &[Scheme]) -> Result<Self> {
        Ok(match *stages {
            [Scheme::Fp8(granularity @ (Granularity::Tensor | Granularity::Channel | Granularity::Square(_)))] => {
                Self::Fp8(granularity)
            }
            [Scheme::Int8(granularity @ (Granularity::Tensor | Granularity::Channel))] => Self::Int8(granularity),
            [Scheme::Int4 { block }] => Self::Int4 { block, scale_2: false },
            [Scheme::Int4 { block }, Scheme::Fp8(Granularity::Tensor)] => Self::Int4 { block, scale_2: true },
            [Scheme::Nvfp4 { block: block @ (16 | 32) }] => Self::Nvfp4 { block, range: 6.0 * 448.0 },
            // The kernel decodes to E4M3 first, so the block scales leave room for 6 below 448.
            [Scheme::Nvfp4 { block: block @ (16 | 32) }, Scheme::Fp8(Granularity::Tensor)] => {
                Self::Nvfp4 { block, range: 448.0 }
            }
            [Scheme::Nvfp4Static { four_over_six }] => {
                Self::Nvfp4Static { largest: if four_over_six { 256.0 } else { 448.0 } }
            }
            [Scheme::Mx(MxElement::E4m3)] => Self::Mxfp8,
            [Scheme::Mx(MxElement::E2m1)] => Self::Mxfp4,
            _ => return Err(Error::Unsupported(format!("no encoding of {stages:?} in exported checkpoints"))),
        })
    }

    /// Rows and columns of the smallest piece that can be packed, but that Int8 and FP8 per row need no whole rows.
    fn unit(self) -> (usize, usize) {
        match self {
            Self::Fp8(Granularity::Square(n)) => (n, n),
            Self::Fp8(_) | Self::Int8(_) => (1, 1),
            Self::Int4 { block, .. } => (2, block),
            Self::Nvfp4 { block, .. } => (1, block),
            Self::Nvfp4Static { .. } => (1, NVFP4_BLOCK),
            Self::Mxfp8 | Self::Mxfp4 => (1, MX_BLOCK),
        }
    }

    fn divides(self, rows: usize, cols: usize) -> Result<()> {
        let (unit_rows, unit_cols) = self.unit();
        if let Self::Int4 { .. } = self {
            blocks::divides(unit_rows, 1, rows, cols)?;
            return blocks::divides(1, unit_cols, rows, cols);
        }
        blocks::divides(unit_rows, unit_cols, rows, cols)
    }
}

/// The tensors that a weight of `rows` by `cols` becomes under the quantizers `stages`. Besides single schemes there are
/// `[Int4, Fp8(Tensor)]` (`W4A8_AWQ`) and `[Nvfp4, Fp8(Tensor)]`, which is NVFP4 with FP8 inputs (`W4A8_NVFP4_FP8`): that
/// weight has one quantizer, whose amax is `amax[0]`, and the second stage only says that block scales are smaller.
pub fn layout(stages: &[Scheme], rows: u64, cols: u64) -> Result<Layout> {
    use PackedType::{F8E4m3, F32, I8, U8};
    let format = Format::of(stages)?;
    let too_large = |_| Error::Unsupported(format!("[{rows}, {cols}] exceeds this machine's memory"));
    format.divides(usize::try_from(rows).map_err(too_large)?, usize::try_from(cols).map_err(too_large)?)?;
    let part = |dtype, shape: &[u64]| Part { dtype, shape: shape.to_vec() };
    let (weight, scale, scale_2) = match format {
        Format::Fp8(granularity) => {
            let scale = match granularity {
                Granularity::Square(n) => part(F32, &[rows / n as u64, 1, cols / n as u64, 1]),
                Granularity::Channel => part(F32, &[rows]),
                Granularity::Tensor | Granularity::Token => part(F32, &[]),
            };
            (part(F8E4m3, &[rows, cols]), scale, false)
        }
        Format::Int8(granularity) => {
            let scales = if granularity == Granularity::Channel { rows } else { 1 };
            (part(I8, &[rows, cols]), part(F32, &[scales]), false)
        }
        Format::Int4 { block, scale_2 } => {
            (part(U8, &[rows / 2, cols]), part(F32, &[rows, cols / block as u64]), scale_2)
        }
        Format::Nvfp4 { .. } | Format::Nvfp4Static { .. } => {
            let blocks = cols / format.unit().1 as u64;
            (part(U8, &[rows, cols / 2]), part(F8E4m3, &[rows, blocks]), true)
        }
        Format::Mxfp8 => (part(F8E4m3, &[rows, cols]), part(U8, &[rows, cols / MX_BLOCK as u64]), false),
        Format::Mxfp4 => (part(U8, &[rows, cols / 2]), part(U8, &[rows, cols / MX_BLOCK as u64]), false),
    };
    Ok(Layout { weight, scale: Some(scale), scale_2 })
}

/// Whole rows of a packed weight, as [`pack`] makes them.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedRows {
    /// Codes. Of INT4 rows lie in pairs, the even one in the low nibbles; other 4-bit codes are pairs of columns.
    pub weight: Vec<u8>,
    /// Scales of the rows or their blocks, or that of the tensor.
    pub scale: Vec<u8>,
    /// The scale of the tensor beside those of blocks.
    pub scale_2: Option<f32>,
}

/// Rows that must be packed together: bands begin at multiples of this.
pub fn band_rows(stages: &[Scheme]) -> usize {
    Format::of(stages).map_or(1, |format| format.unit().0)
}

/// Packs a band of whole rows of `cols` values. `amax` has an entry per stage, for exactly these rows. `weight` and
/// `scale` are the band's parts of `weight` and `weight_scale`, little endian; a scale of the whole tensor is written with
/// every band.
///
/// # Panics
///
/// If a slice has not the size that [`layout`] says for these rows, or `amax` not the number of values.
pub fn pack(
    stages: &[Scheme],
    element: Element,
    amax: &[Amax],
    cols: usize,
    values: &[f32],
    weight: &mut [u8],
    scale: &mut [u8],
) -> Result<()> {
    with_isa(Isa::detect(), stages, element, amax, cols, values, (weight, scale))
}

/// [`pack`] compiled for `isa`, into (`weight`, `scale`).
fn with_isa(
    isa: Isa,
    stages: &[Scheme],
    element: Element,
    amax: &[Amax],
    cols: usize,
    values: &[f32],
    (weight, scale): (&mut [u8], &mut [u8]),
) -> Result<()> {
    let format = Format::of(stages)?;
    let rows = values.len() / cols.max(1);
    format.divides(rows, cols)?;
    if values.is_empty() {
        return Ok(());
    }
    let nibbles =
        matches!(format, Format::Int4 { .. } | Format::Nvfp4 { .. } | Format::Nvfp4Static { .. } | Format::Mxfp4);
    assert_eq!(weight.len(), if nibbles { values.len() / 2 } else { values.len() }, "bytes of the packed weight");
    let blocks = Blocks::of(stages[0], rows, cols).unwrap_or_else(|| Blocks::new(1, MX_BLOCK, rows, cols));
    let static_amax = || {
        let values = amax.first().map_or(&[][..], |amax| &amax.values);
        assert_eq!(values.len(), blocks.count(), "an amax for each block");
        values
    };
    let f32_scales = |scale: &mut [u8]| -> Vec<f32> {
        let largest = largest_value(stages[0]);
        // ModelOpt keeps the amax of INT4 blocks in single precision, whatever the weight is.
        let element = if let Format::Int4 { .. } = format { Element::Float32 } else { element };
        let scales: Vec<f32> = static_amax().iter().map(|&x| export_amax(x, largest, element) / largest).collect();
        assert_eq!(scale.len(), 4 * scales.len(), "bytes of the scales");
        for (bytes, x) in scale.chunks_exact_mut(4).zip(&scales) {
            bytes.copy_from_slice(&x.to_le_bytes());
        }
        scales
    };
    let block_scales = |scale: &[u8]| assert_eq!(scale.len() * format.unit().1, values.len(), "bytes of the scales");
    let scale_2 = || scale_2(stages, amax).ok_or_else(|| Error::Unsupported(format!("{stages:?} without an amax")));
    match format {
        // Divided by a scalar, which does not promote the element type in torch: rounded to it before it is encoded.
        Format::Fp8(Granularity::Tensor) => {
            let scales = f32_scales(scale);
            with_rounding!(element, R => loops::fp8::<R>(isa, values, cols, blocks, &scales, weight));
        }
        Format::Fp8(_) => loops::fp8::<Float32>(isa, values, cols, blocks, &f32_scales(scale), weight),
        Format::Int8(_) => loops::int8(isa, values, cols, blocks, &f32_scales(scale), weight),
        Format::Int4 { .. } => loops::int4(isa, values, cols, blocks, &f32_scales(scale), weight),
        Format::Nvfp4 { block, .. } => {
            block_scales(scale);
            let scale_2 = scale_2()?;
            if block == NVFP4_BLOCK {
                loops::nvfp4::<16>(isa, values, scale_2, weight, scale);
            } else {
                loops::nvfp4::<32>(isa, values, scale_2, weight, scale);
            }
        }
        Format::Nvfp4Static { largest } => {
            block_scales(scale);
            let scale_2 = scale_2()?;
            let global = export_global(amax);
            for (code, &amax) in scale.iter_mut().zip(static_amax()) {
                let share = if amax == 0.0 { 1.0 } else { amax / 6.0 };
                *code = e4m3_encode((share * largest / (global / 6.0)).clamp(MIN_BLOCK_SCALE, 448.0));
            }
            loops::e2m1::<NVFP4_BLOCK>(isa, values, scale_2, weight, scale);
        }
        Format::Mxfp8 => {
            block_scales(scale);
            loops::mxfp8(isa, values, weight, scale);
        }
        Format::Mxfp4 => {
            block_scales(scale);
            loops::mxfp4(isa, values, weight, scale);
        }
    }
    Ok(())
}

/// The smallest block scale of NVFP4: E4M3's smallest value.
const MIN_BLOCK_SCALE: f32 = 1.0 / 512.0;

/// `weight_scale_2`, or `None` where the format has none or an amax is missing. `amax` is that of the whole tensor, or of
/// any band where all bands share one.
pub fn scale_2(stages: &[Scheme], amax: &[Amax]) -> Option<f32> {
    match Format::of(stages).ok()? {
        Format::Nvfp4 { range, .. } => Some(positive(*amax.first()?.values.first()?, 6.0) / range),
        Format::Nvfp4Static { largest } => {
            amax.first()?.global?;
            Some(export_global(amax) / (6.0 * largest))
        }
        Format::Int4 { scale_2: true, .. } => {
            Some(export_amax(*amax.get(1)?.values.first()?, 448.0, Element::Float32) / 448.0)
        }
        _ => None,
    }
}

/// `input_scale` of an input quantizer, or `None` where export writes none.
pub fn input_scale(scheme: Scheme, amax: f32) -> Option<f32> {
    match scheme {
        Scheme::Fp8(Granularity::Tensor) | Scheme::Int8(Granularity::Tensor) => {
            let largest = largest_value(scheme);
            Some(export_amax(amax, largest, Element::Float32) / largest)
        }
        Scheme::Nvfp4 { .. } => Some(positive(amax, 6.0) / (6.0 * 448.0)),
        _ => None,
    }
}

/// The largest value of the format itself (`maxbound`).
fn largest_value(scheme: Scheme) -> f32 {
    match scheme {
        Scheme::Fp8(_) | Scheme::Mx(MxElement::E4m3) => 448.0,
        Scheme::Int8(_) | Scheme::Mx(MxElement::Int8) => 127.0,
        Scheme::Int4 { .. } => 7.0,
        Scheme::Nvfp4 { .. } | Scheme::Nvfp4Static { .. } | Scheme::Mx(MxElement::E2m1) => 6.0,
        Scheme::Mx(MxElement::E3m2) => 28.0,
        Scheme::Mx(MxElement::E2m3) => 7.5,
    }
}

/// An amax as export takes it: `largest` for zero and NaN, which nothing could be divided by.
fn positive(amax: f32, largest: f32) -> f32 {
    if amax == 0.0 || amax.is_nan() { largest } else { amax }
}

/// The same within the normal numbers of the amax's type.
fn export_amax(amax: f32, largest: f32, element: Element) -> f32 {
    let (tiny, max) = match element {
        Element::Float16 => (half::f16::MIN_POSITIVE.to_f32(), half::f16::MAX.to_f32()),
        Element::Bfloat16 => (half::bf16::MIN_POSITIVE.to_f32(), half::bf16::MAX.to_f32()),
        Element::Float32 => (f32::MIN_POSITIVE, f32::MAX),
    };
    positive(amax, largest).clamp(tiny, max)
}

/// The amax of the whole tensor of static NVFP4.
fn export_global(amax: &[Amax]) -> f32 {
    positive(amax.first().and_then(|amax| amax.global).unwrap_or_default(), 6.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amax;
    use crate::isa::noise;
    use crate::unpack::{Encoding, unpack};

    const TENSOR: Scheme = Scheme::Fp8(Granularity::Tensor);

    /// Every encoding, with what decodes it.
    const ALL: [(&[Scheme], Encoding); 13] = [
        (&[TENSOR], Encoding::Fp8),
        (&[Scheme::Fp8(Granularity::Channel)], Encoding::Fp8Channel),
        (&[Scheme::Fp8(Granularity::Square(4))], Encoding::Fp8Square { rows: 4, cols: 4 }),
        (&[Scheme::Int8(Granularity::Channel)], Encoding::Int8Channel),
        (&[Scheme::Int4 { block: 32 }], Encoding::Int4 { block: 32 }),
        (&[Scheme::Int4 { block: 32 }, TENSOR], Encoding::Int4 { block: 32 }),
        (&[Scheme::Nvfp4 { block: 16 }], Encoding::Nvfp4 { block: 16 }),
        (&[Scheme::Nvfp4 { block: 32 }], Encoding::Nvfp4 { block: 32 }),
        (&[Scheme::Nvfp4 { block: 32 }, TENSOR], Encoding::Nvfp4 { block: 32 }),
        (&[Scheme::Nvfp4Static { four_over_six: false }], Encoding::Nvfp4 { block: 16 }),
        (&[Scheme::Nvfp4Static { four_over_six: true }], Encoding::Nvfp4 { block: 16 }),
        (&[Scheme::Mx(MxElement::E4m3)], Encoding::Mxfp8),
        (&[Scheme::Mx(MxElement::E2m1)], Encoding::Mxfp4),
    ];

    fn observed(stages: &[Scheme], values: &[f32]) -> Vec<Amax> {
        let observed = |&scheme| {
            let mut amax = Amax::default();
            amax::observe(scheme, 96, values, &mut amax).unwrap();
            amax
        };
        stages.iter().map(observed).collect()
    }

    fn packed(isa: Isa, stages: &[Scheme], element: Element, values: &[f32]) -> (Vec<u8>, Vec<u8>) {
        let layout = layout(stages, 8, 96).unwrap();
        let bytes = |part: &Part| {
            vec![0; part.shape.iter().product::<u64>() as usize * if part.dtype == PackedType::F32 { 4 } else { 1 }]
        };
        let (mut weight, mut scale) = (bytes(&layout.weight), bytes(&layout.scale.unwrap()));
        let out = (&mut weight[..], &mut scale[..]);
        with_isa(isa, stages, element, &observed(stages, values), 96, values, out).unwrap();
        (weight, scale)
    }

    #[test]
    fn every_instruction_set_packs_and_unpacks_the_same_bits() {
        for (stages, encoding) in ALL {
            for element in [Element::Float16, Element::Bfloat16, Element::Float32] {
                let values = noise(element);
                let run = |isa| {
                    let (weight, scale) = packed(isa, stages, element, &values);
                    let mut out = vec![0.0; values.len()];
                    let scale_2 = scale_2(stages, &observed(stages, &values)).unwrap_or(1.0);
                    crate::unpack::with_isa(isa, encoding, element, 96, (&weight, &scale, scale_2), &mut out);
                    (weight, scale, out.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                };
                let expected = run(Isa::Scalar);
                for isa in Isa::available() {
                    assert!(run(isa) == expected, "{stages:?} {element:?} {isa:?}");
                }
            }
        }
    }

    #[test]
    fn a_weight_of_zeros_packs_to_zeros_under_scales_that_are_numbers() {
        for (stages, encoding) in ALL {
            let zeros = vec![0.0; 8 * 96];
            let (weight, scale) = packed(Isa::detect(), stages, Element::Bfloat16, &zeros);
            let scale_2 = scale_2(stages, &observed(stages, &zeros)).unwrap_or(1.0);
            let mut out = vec![1.0; zeros.len()];
            unpack(encoding, Element::Bfloat16, 96, &weight, &scale, scale_2, &mut out);
            assert!(scale_2 > 0.0 && out.iter().all(|&x| x == 0.0), "{stages:?}");
        }
    }

    #[test]
    fn formats_without_an_encoding_are_refused_by_name() {
        for stages in [
            &[Scheme::Mx(MxElement::E3m2)][..],
            &[Scheme::Mx(MxElement::Int8)],
            &[Scheme::Fp8(Granularity::Token)],
            &[Scheme::Nvfp4 { block: 64 }],
            &[],
        ] {
            assert!(matches!(layout(stages, 64, 64), Err(Error::Unsupported(_))), "{stages:?}");
        }
        let error = layout(&[Scheme::Mx(MxElement::Int8)], 64, 64).unwrap_err().to_string();
        assert_eq!(error, "unsupported quantizer: no encoding of [Mx(Int8)] in exported checkpoints");
    }

    #[test]
    fn dimensions_that_blocks_do_not_divide_are_refused() {
        for (stages, rows, cols, text) in [
            (&[Scheme::Int4 { block: 32 }][..], 7, 96, "[7, 96] does not divide into groups of 2 rows"),
            (&[Scheme::Int4 { block: 32 }], 8, 80, "[8, 80] does not divide into blocks of 32 columns"),
            (&[Scheme::Nvfp4 { block: 16 }], 8, 40, "[8, 40] does not divide into blocks of 16 columns"),
            (&[Scheme::Mx(MxElement::E4m3)], 8, 48, "[8, 48] does not divide into blocks of 32 columns"),
        ] {
            assert_eq!(layout(stages, rows, cols).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn bands_begin_where_rows_share_bytes_or_scales() {
        let rows = |stages: &[Scheme]| band_rows(stages);
        assert_eq!(rows(&[Scheme::Int4 { block: 128 }]), 2);
        assert_eq!(rows(&[Scheme::Fp8(Granularity::Square(128))]), 128);
        assert_eq!(rows(&[Scheme::Nvfp4 { block: 16 }]), 1);
    }

    #[test]
    fn scales_of_inputs_are_the_amax_over_the_largest_value() {
        assert_eq!(input_scale(TENSOR, 44.8), Some(44.8 / 448.0));
        assert_eq!(input_scale(TENSOR, 0.0), Some(1.0));
        assert_eq!(input_scale(Scheme::Int8(Granularity::Tensor), f32::NAN), Some(1.0));
        assert_eq!(input_scale(Scheme::Nvfp4 { block: 16 }, 2688.0), Some(1.0));
        assert_eq!(input_scale(Scheme::Nvfp4 { block: 16 }, 0.0), Some(1.0 / 448.0));
        assert_eq!(input_scale(Scheme::Fp8(Granularity::Token), 1.0), None);
        assert_eq!(input_scale(Scheme::Mx(MxElement::E4m3), 1.0), None);
    }

    #[test]
    fn an_amax_is_kept_within_the_normal_numbers_of_its_type() {
        assert_eq!(export_amax(1e-7, 448.0, Element::Float16), 2f32.powi(-14));
        assert_eq!(export_amax(1e-7, 448.0, Element::Bfloat16), 1e-7);
        assert_eq!(export_amax(f32::INFINITY, 448.0, Element::Float16), 65504.0);
    }

    #[test]
    fn weights_beyond_their_amax_saturate() {
        let mut amax = observed(&[TENSOR], &[2.0; 96]);
        amax[0].values[0] = 1.0;
        let (mut weight, mut scale) = ([0; 96], [0; 4]);
        pack(&[TENSOR], Element::Float32, &amax, 96, &[-2.0; 96], &mut weight, &mut scale).unwrap();
        assert_eq!(weight, [0xfe; 96]);
    }

    #[test]
    fn static_blocks_without_the_amax_of_the_tensor_are_refused() {
        let stages = [Scheme::Nvfp4Static { four_over_six: false }];
        let amax = [Amax { values: vec![1.0; 6], global: None }];
        let result = pack(&stages, Element::Float32, &amax, 96, &[1.0; 96], &mut [0; 48], &mut [0; 6]);
        assert!(matches!(result, Err(Error::Unsupported(_))));
    }

    #[test]
    fn the_exponent_is_the_logarithm_rounded_to_single_precision_and_then_up() {
        // What torch's log2 and ceil give (torch 2.11, CPU) this many floats above a power of two.
        for (exponent, hidden) in
            [(-126, 22), (-64, 11), (-16, 2), (-8, 1), (-4, 0), (0, 0), (4, 1), (16, 5), (127, 22)]
        {
            let power = 2f32.powi(exponent).to_bits();
            let code = u8::try_from(exponent + 127).unwrap();
            let above = |steps: u32| loops::e8m0_above(f32::from_bits(power + steps));
            assert_eq!([above(0), above(hidden)], [code; 2], "{exponent}");
            assert_eq!(above(hidden + 1), code + u8::from(exponent < 127), "{exponent}");
        }
        assert_eq!([0.0, 2f32.powi(-140), 2f32.powi(-127), 1.5 * 2f32.powi(-127)].map(loops::e8m0_above), [0, 0, 0, 1]);
    }
}
