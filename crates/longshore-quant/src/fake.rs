//! Fake quantization: values rounded to what a format can hold under its scales, in their own element type.
//!
//! The formulas are those of ModelOpt's eager code where it runs without a GPU, else of its kernels: Triton's for NVFP4,
//! CUDA's for MX. They are not those of packing, whose scales and roundings differ.

mod loops;

use crate::amax::max_abs_or_nan;
use crate::blocks::Blocks;
use crate::isa::Isa;
use crate::number::{E2m1, E2m3, E3m2, E4m3, with_rounding};
use crate::{Amax, Element, MxElement, Scheme};
use loops::{Fp8, Int, Int8Steps};

/// Quantizes and dequantizes whole rows of `cols` values in place; `amax` is that of exactly these rows. Results are
/// rounded to `element`.
///
/// Where blocks do not divide the matrix, the last ones are smaller. NVFP4 blocks are always of 16 here, as ModelOpt's kernel has no other
/// size; packing honours the scheme's. A scheme with one amax for all that was never calibrated uses the values' own.
///
/// # Panics
///
/// If `amax` has another number of values than there are blocks.
pub fn fake_quantize(scheme: Scheme, element: Element, amax: &Amax, cols: usize, values: &mut [f32]) {
    if !values.is_empty() {
        with_isa(Isa::detect(), scheme, element, amax, cols, values);
    }
}

/// [`fake_quantize`] compiled for `isa`.
fn with_isa(isa: Isa, scheme: Scheme, element: Element, amax: &Amax, cols: usize, values: &mut [f32]) {
    let rows = values.len() / cols;
    let blocks = Blocks::of(scheme, rows, cols);
    let (blocks, amax_values) = match blocks {
        Some(blocks) if blocks.count() == 1 && amax.values.is_empty() => (blocks, vec![max_abs_or_nan(values)]),
        Some(blocks) => (blocks, amax.values.clone()),
        None => (Blocks::new(1, cols, rows, cols), values.chunks_exact(cols).map(max_abs_or_nan).collect()),
    };
    assert_eq!(amax_values.len(), blocks.count(), "an amax for each block");
    with_rounding!(element, R => match scheme {
        Scheme::Fp8(_) => loops::scaled::<R, Fp8>(isa, values, cols, blocks, &amax_values),
        Scheme::Int8(_) => loops::scaled::<R, Int<8>>(isa, values, cols, blocks, &amax_values),
        Scheme::Int4 { .. } => loops::scaled::<R, Int<4>>(isa, values, cols, blocks, &amax_values),
        Scheme::Nvfp4 { .. } => loops::nvfp4::<R>(isa, values, cols, amax_values[0]),
        Scheme::Nvfp4Static { four_over_six } => {
            let global = amax.global.unwrap_or_else(|| max_abs_or_nan(&amax_values));
            let largest_scale = if four_over_six { 256.0 } else { 448.0 };
            loops::nvfp4_static::<R>(isa, values, cols, blocks, &amax_values, global, largest_scale);
        }
        Scheme::Mx(MxElement::E4m3) => loops::mx::<R, E4m3>(isa, values, cols),
        Scheme::Mx(MxElement::E3m2) => loops::mx::<R, E3m2>(isa, values, cols),
        Scheme::Mx(MxElement::E2m3) => loops::mx::<R, E2m3>(isa, values, cols),
        Scheme::Mx(MxElement::E2m1) => loops::mx::<R, E2m1>(isa, values, cols),
        Scheme::Mx(MxElement::Int8) => loops::mx::<R, Int8Steps>(isa, values, cols),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::noise;
    use crate::{Granularity, amax};

    const SCHEMES: [Scheme; 13] = [
        Scheme::Fp8(Granularity::Tensor),
        Scheme::Fp8(Granularity::Channel),
        Scheme::Fp8(Granularity::Token),
        Scheme::Fp8(Granularity::Square(4)),
        Scheme::Int8(Granularity::Channel),
        Scheme::Int4 { block: 32 },
        Scheme::Nvfp4 { block: 16 },
        Scheme::Nvfp4Static { four_over_six: true },
        Scheme::Mx(MxElement::E4m3),
        Scheme::Mx(MxElement::E3m2),
        Scheme::Mx(MxElement::E2m3),
        Scheme::Mx(MxElement::E2m1),
        Scheme::Mx(MxElement::Int8),
    ];

    fn observed(scheme: Scheme, values: &[f32]) -> Amax {
        let mut amax = Amax::default();
        amax::observe(scheme, 96, values, &mut amax).unwrap();
        amax
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for scheme in SCHEMES {
            for element in [Element::Float16, Element::Bfloat16, Element::Float32] {
                let mut values = noise(element);
                let amax = observed(scheme, &values);
                (values[5], values[100], values[200]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
                let run = |isa| {
                    let mut values = values.clone();
                    with_isa(isa, scheme, element, &amax, 96, &mut values);
                    values.iter().map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }).collect::<Vec<_>>()
                };
                let expected = run(Isa::Scalar);
                for isa in Isa::available() {
                    assert!(run(isa) == expected, "{scheme:?} {element:?} {isa:?}");
                }
            }
        }
    }

    #[test]
    fn quantizing_again_changes_nothing_where_scales_are_powers_of_two() {
        for scheme in SCHEMES.into_iter().filter(|scheme| matches!(scheme, Scheme::Mx(_))) {
            let mut once = noise(Element::Float32);
            fake_quantize(scheme, Element::Float32, &Amax::default(), 96, &mut once);
            let mut twice = once.clone();
            fake_quantize(scheme, Element::Float32, &Amax::default(), 96, &mut twice);
            assert_eq!(once, twice, "{scheme:?}");
        }
    }

    #[test]
    fn integers_beyond_the_amax_saturate_one_step_lower_below_zero() {
        let amax = Amax { values: vec![1.0], global: None };
        let mut values = [2.0, -2.0, 1.0, 0.0];
        fake_quantize(Scheme::Int8(Granularity::Tensor), Element::Float32, &amax, 4, &mut values);
        assert_eq!(values, [1.0, -128.0 / 127.0, 1.0, 0.0]);
    }

    #[test]
    fn blocks_of_nvfp4_whose_scale_is_below_a_hundred_thousandth_become_zero() {
        // The scale for all is 2^-10, those of the blocks are 3 and 6 times 2^-9 of it: 5.7e-6 and 1.1e-5.
        let amax = Amax { values: vec![2688.0 / 1024.0], global: None };
        let (low, high) = (18.0 * 2f32.powi(-19), 36.0 * 2f32.powi(-19));
        let mut values = [[low; 16], [high; 16]].concat();
        fake_quantize(Scheme::Nvfp4 { block: 16 }, Element::Float32, &amax, 32, &mut values);
        assert_eq!(values, [[0.0; 16], [high; 16]].concat());
    }

    #[test]
    fn nothing_stays_nothing() {
        for scheme in SCHEMES {
            fake_quantize(scheme, Element::Bfloat16, &Amax::default(), 0, &mut []);
        }
    }

    #[test]
    fn a_band_of_rows_is_quantized_as_in_the_whole() {
        for scheme in [Scheme::Fp8(Granularity::Square(4)), Scheme::Int4 { block: 32 }, Scheme::Mx(MxElement::E2m1)] {
            let mut whole = noise(Element::Bfloat16);
            let amax = observed(scheme, &whole);
            let mut band = whole[4 * 96..].to_vec();
            fake_quantize(scheme, Element::Bfloat16, &amax, 96, &mut whole);
            let half = Amax { values: amax.values[amax.values.len() / 2..].to_vec(), global: None };
            fake_quantize(scheme, Element::Bfloat16, &half, 96, &mut band);
            assert_eq!(whole[4 * 96..], band, "{scheme:?}");
        }
    }
}
