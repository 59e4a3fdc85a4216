//! The largest magnitudes that scales are made of.
#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use crate::blocks::{self, Blocks, NVFP4_BLOCK};
use crate::isa::{Isa, per_isa};
use crate::number::max_bits;
use crate::{Error, Result, Scheme};

/// Calibrated magnitudes of a tensor, or of a band of its rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amax {
    /// One per tensor, row, square or block, row-major.
    pub values: Vec<f32>,
    /// The amax of the whole tensor beside those of its blocks ([`Scheme::Nvfp4Static`]).
    pub global: Option<f32>,
}

/// How many values the amax of `rows` by `cols` has: none where it is found while quantizing. A matrix that blocks do
/// not divide is refused, as ModelOpt's exporters refuse it.
pub fn count(scheme: Scheme, rows: usize, cols: usize) -> Result<usize> {
    blocks::divisible(scheme, rows, cols)?;
    Ok(Blocks::of(scheme, rows, cols).map_or(0, |blocks| blocks.count()))
}

/// Takes a band of whole rows of `cols` values into the running maximum `amax`, whose values are those of the same
/// rows; where it has none yet, they begin at zero. NaN and infinity are refused.
///
/// # Panics
///
/// If `amax` has values, but not as many as [`count`] says.
pub fn observe(scheme: Scheme, cols: usize, values: &[f32], amax: &mut Amax) -> Result<()> {
    let rows = values.len() / cols.max(1);
    let count = count(scheme, rows, cols)?;
    if amax.values.is_empty() {
        amax.values.resize(count, 0.0);
    }
    assert_eq!(amax.values.len(), count, "an amax for each block");
    let Some(blocks) = Blocks::of(scheme, rows, cols) else { return finite(cols, values) };
    if values.is_empty() {
        return Ok(());
    }
    if count == 1 {
        amax.values[0] = max_abs(values).ok_or_else(|| not_finite(cols, values))?.max(amax.values[0]);
    } else if block_maxima(Isa::detect(), values, cols, blocks, &mut amax.values) >= f32::INFINITY.to_bits() {
        return Err(not_finite(cols, values));
    }
    if matches!(scheme, Scheme::Nvfp4Static { .. }) {
        let largest = amax.values.iter().copied().fold(0.0, f32::max);
        amax.global = Some(amax.global.map_or(largest, |global| global.max(largest)));
    }
    Ok(())
}

/// The largest magnitude, or `None` if something is not finite. Nothing has 0.
pub fn max_abs(values: &[f32]) -> Option<f32> {
    let max = f32::from_bits(largest(Isa::detect(), values));
    max.is_finite().then_some(max)
}

/// The largest magnitude; NaN if there is one.
pub(crate) fn max_abs_or_nan(values: &[f32]) -> f32 {
    f32::from_bits(largest(Isa::detect(), values))
}

per_isa! { fn largest[][](values: &[f32]) -> u32 = max_bits; }

/// Raises `amax` to the magnitudes of the blocks, and returns the largest magnitude's bits.
#[inline(always)]
fn block_maxima_body(values: &[f32], cols: usize, blocks: Blocks, amax: &mut [f32]) -> u32 {
    let mut worst = 0;
    for (r, row) in values.chunks_exact(cols).enumerate() {
        let amax = &mut amax[blocks.in_row(r)];
        for (i, block) in row.chunks_exact(blocks.cols).enumerate() {
            // A known length spares the loop.
            let max = block.as_array::<NVFP4_BLOCK>().map_or_else(|| max_bits(block), |block| max_bits(block));
            worst = worst.max(max);
            // Magnitudes order as their bits do.
            amax[i] = f32::from_bits(amax[i].to_bits().max(max));
        }
    }
    worst
}

per_isa! {
    fn block_maxima[][](values: &[f32], cols: usize, blocks: Blocks, amax: &mut [f32]) -> u32 = block_maxima_body;
}

/// Refuses what is not finite.
fn finite(cols: usize, values: &[f32]) -> Result<()> {
    if max_abs(values).is_some() { Ok(()) } else { Err(not_finite(cols, values)) }
}

/// The error about the first value that is not finite.
fn not_finite(cols: usize, values: &[f32]) -> Error {
    let index = values.iter().position(|x| !x.is_finite()).unwrap_or_default();
    let value = if values.get(index).is_some_and(|x| x.is_nan()) { "NaN" } else { "inf" };
    Error::NotFinite { value, row: index / cols, col: index % cols }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Granularity;

    #[test]
    fn every_granularity_has_its_number_of_values() {
        let count = |scheme| count(scheme, 256, 384).unwrap();
        assert_eq!(count(Scheme::Fp8(Granularity::Tensor)), 1);
        assert_eq!(count(Scheme::Int8(Granularity::Channel)), 256);
        assert_eq!(count(Scheme::Fp8(Granularity::Square(128))), 6);
        assert_eq!(count(Scheme::Int4 { block: 128 }), 768);
        assert_eq!(count(Scheme::Nvfp4Static { four_over_six: true }), 256 * 24);
        assert_eq!(count(Scheme::Fp8(Granularity::Token)), 0);
        assert_eq!(count(Scheme::Mx(crate::MxElement::E4m3)), 0);
    }

    #[test]
    fn a_matrix_that_blocks_do_not_divide_is_refused_by_name() {
        let error = count(Scheme::Int4 { block: 128 }, 4, 200).unwrap_err();
        assert_eq!(error.to_string(), "[4, 200] does not divide into blocks of 128 columns");
        let error = count(Scheme::Fp8(Granularity::Square(128)), 4, 256).unwrap_err();
        assert_eq!(error.to_string(), "[4, 256] does not divide into squares of 128 by 128");
    }

    #[test]
    fn a_running_maximum_only_grows() {
        let scheme = Scheme::Nvfp4Static { four_over_six: false };
        let mut amax = Amax::default();
        let mut values = [0.5f32; 64];
        values[40] = -3.0;
        observe(scheme, 32, &values, &mut amax).unwrap();
        assert_eq!((amax.values.as_slice(), amax.global), ([0.5, 0.5, 3.0, 0.5].as_slice(), Some(3.0)));
        values[40] = 1.0;
        values[0] = 2.0;
        observe(scheme, 32, &values, &mut amax).unwrap();
        assert_eq!((amax.values.as_slice(), amax.global), ([2.0, 0.5, 3.0, 0.5].as_slice(), Some(3.0)));
        amax.global = Some(8.0);
        observe(scheme, 32, &values, &mut amax).unwrap();
        assert_eq!(amax.global, Some(8.0));
        let mut amax = Amax { values: vec![5.0], global: None };
        observe(Scheme::Fp8(Granularity::Tensor), 32, &values, &mut amax).unwrap();
        assert_eq!(amax.values, [5.0]);
    }

    #[test]
    fn rows_squares_and_tensors_have_the_maxima_of_their_values() {
        let values: Vec<f32> = (0..8 * 12).map(|i| -(i as f32)).collect();
        let observed = |scheme| {
            let mut amax = Amax::default();
            observe(scheme, 12, &values, &mut amax).unwrap();
            amax.values
        };
        assert_eq!(observed(Scheme::Fp8(Granularity::Tensor)), [95.0]);
        assert_eq!(observed(Scheme::Int8(Granularity::Channel)), [11., 23., 35., 47., 59., 71., 83., 95.]);
        assert_eq!(observed(Scheme::Fp8(Granularity::Square(4))), [39., 43., 47., 87., 91., 95.]);
        assert!(observed(Scheme::Fp8(Granularity::Token)).is_empty());
    }

    #[test]
    fn what_is_not_finite_is_refused_with_its_place() {
        for (value, text) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "inf")] {
            let mut values = vec![1.0; 160];
            values[75] = value;
            assert_eq!(max_abs(&values), None);
            for scheme in
                [Scheme::Fp8(Granularity::Tensor), Scheme::Fp8(Granularity::Token), Scheme::Int4 { block: 16 }]
            {
                let error = observe(scheme, 32, &values, &mut Amax::default()).unwrap_err();
                assert_eq!(error, Error::NotFinite { value: text, row: 2, col: 11 });
            }
        }
    }

    #[test]
    fn every_instruction_set_finds_the_same_maxima() {
        let values: Vec<f32> = (0..4 * 96u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
        let blocks = Blocks::new(1, 16, 4, 96);
        let run = |isa| {
            let mut amax = vec![0.0; blocks.count()];
            let worst = block_maxima(isa, &values, 96, blocks, &mut amax);
            (worst, largest(isa, &values), amax.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let expected = run(Isa::Scalar);
        assert_eq!(expected.0, expected.1);
        for isa in Isa::available() {
            assert_eq!(run(isa), expected, "{isa:?}");
        }
    }
}
