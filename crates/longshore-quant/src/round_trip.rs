//! What a weight is after quantization, for whoever measures what was lost.

use crate::fake::fake_quantize;
use crate::pack::{self, Layout, PackedType, Part};
use crate::unpack::{Encoding, unpack};
use crate::{Amax, Element, Granularity, MxElement, Result, Scheme};

/// A weight's way into an exported checkpoint and back: packed and unpacked, as servers compute with it. A weight without an
/// encoding is fake-quantized, one stage after the other.
#[derive(Clone, Debug)]
pub struct RoundTrip {
    stages: Vec<Scheme>,
    element: Element,
    cols: usize,
    encoding: Option<Encoding>,
}

impl RoundTrip {
    /// Of a weight `[rows, cols]` of this element type under the quantizers `stages`.
    pub fn new(stages: &[Scheme], element: Element, rows: u64, cols: u64) -> Self {
        let encoding = encoding(stages).filter(|_| pack::layout(stages, rows, cols).is_ok());
        Self { stages: stages.to_vec(), element, cols: cols as usize, encoding }
    }

    /// Whether it is packed.
    pub fn is_packed(&self) -> bool {
        self.encoding.is_some()
    }

    /// Bands begin at multiples of this many rows.
    pub fn band_rows(&self) -> usize {
        let square = |scheme: &Scheme| match scheme {
            Scheme::Fp8(Granularity::Square(n)) | Scheme::Int8(Granularity::Square(n)) => *n,
            _ => 1,
        };
        self.stages.iter().map(square).max().unwrap_or(1).max(pack::band_rows(&self.stages))
    }

    /// What a band of whole rows becomes. `amax` has an entry per stage, for exactly these rows.
    ///
    /// # Panics
    ///
    /// If `amax` has not the number of values.
    pub fn apply(&self, amax: &[Amax], values: &[f32]) -> Result<Vec<f32>> {
        let mut out = values.to_vec();
        let Some(encoding) = self.encoding else {
            for (&scheme, amax) in self.stages.iter().zip(amax) {
                fake_quantize(scheme, self.element, amax, self.cols, &mut out);
            }
            return Ok(out);
        };
        let rows = values.len() / self.cols.max(1);
        let layout = pack::layout(&self.stages, rows as u64, self.cols as u64)?;
        let mut weight = vec![0; size(&layout.weight) as usize];
        let mut scale = vec![0; layout.scale.as_ref().map_or(0, size) as usize];
        pack::pack(&self.stages, self.element, amax, self.cols, values, &mut weight, &mut scale)?;
        let scale_2 = pack::scale_2(&self.stages, amax).unwrap_or(1.0);
        unpack(encoding, self.element, self.cols, &weight, &scale, scale_2, &mut out);
        Ok(out)
    }
}

/// Bytes of a packed weight `[rows, cols]` with all its scales; `None` where there is no encoding.
pub fn packed_size(stages: &[Scheme], rows: u64, cols: u64) -> Option<u64> {
    let Layout { weight, scale, scale_2 } = pack::layout(stages, rows, cols).ok()?;
    Some(size(&weight) + scale.as_ref().map_or(0, size) + if scale_2 { 4 } else { 0 })
}

fn size(part: &Part) -> u64 {
    part.shape.iter().product::<u64>() * if part.dtype == PackedType::F32 { 4 } else { 1 }
}

/// What decodes a weight that was packed under these quantizers.
fn encoding(stages: &[Scheme]) -> Option<Encoding> {
    Some(match *stages.first()? {
        Scheme::Fp8(Granularity::Tensor) => Encoding::Fp8,
        Scheme::Fp8(Granularity::Channel) => Encoding::Fp8Channel,
        Scheme::Fp8(Granularity::Square(n)) => Encoding::Fp8Square { rows: n, cols: n },
        Scheme::Int8(Granularity::Channel) => Encoding::Int8Channel,
        Scheme::Int4 { block } => Encoding::Int4 { block },
        Scheme::Nvfp4 { block } => Encoding::Nvfp4 { block },
        Scheme::Nvfp4Static { .. } => Encoding::Nvfp4 { block: 16 },
        Scheme::Mx(MxElement::E4m3) => Encoding::Mxfp8,
        Scheme::Mx(MxElement::E2m1) => Encoding::Mxfp4,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Distortion;
    use crate::amax::observe;
    use crate::isa::noise;

    const TENSOR: Scheme = Scheme::Fp8(Granularity::Tensor);

    /// Schemes with the decibels that a weight without outliers must keep.
    const ALL: [(&[Scheme], bool, f64); 13] = [
        (&[TENSOR], true, 25.0),
        (&[Scheme::Fp8(Granularity::Channel)], true, 25.0),
        (&[Scheme::Fp8(Granularity::Square(4))], true, 25.0),
        (&[Scheme::Int8(Granularity::Channel)], true, 35.0),
        (&[Scheme::Int8(Granularity::Tensor)], false, 35.0),
        (&[Scheme::Int4 { block: 32 }], true, 12.0),
        (&[Scheme::Int4 { block: 32 }, TENSOR], true, 12.0),
        (&[Scheme::Nvfp4 { block: 16 }], true, 15.0),
        (&[Scheme::Nvfp4 { block: 32 }, TENSOR], true, 14.0),
        (&[Scheme::Nvfp4Static { four_over_six: true }], true, 15.0),
        (&[Scheme::Mx(MxElement::E4m3)], true, 25.0),
        (&[Scheme::Mx(MxElement::E2m1)], true, 14.0),
        (&[Scheme::Mx(MxElement::E3m2)], false, 20.0),
    ];

    fn observed(stages: &[Scheme], values: &[f32]) -> Vec<Amax> {
        let of = |&scheme: &Scheme| {
            let mut amax = Amax::default();
            observe(scheme, 96, values, &mut amax).unwrap();
            amax
        };
        stages.iter().map(of).collect()
    }

    #[test]
    fn every_scheme_keeps_most_of_a_weight() {
        let values: Vec<f32> =
            (0..8u32 * 96).map(|i| Element::Bfloat16.round((i as f32 * 1.7).sin() + 0.3 * (i as f32).cos())).collect();
        for (stages, packed, least) in ALL {
            let trip = RoundTrip::new(stages, Element::Bfloat16, 8, 96);
            assert_eq!(trip.is_packed(), packed, "{stages:?}");
            let mut distortion = Distortion::default();
            distortion.add(&values, &trip.apply(&observed(stages, &values), &values).unwrap());
            let sqnr = distortion.sqnr().unwrap();
            assert!(sqnr > least && sqnr < least + 15.0, "{stages:?}: {sqnr}");
        }
    }

    #[test]
    fn bands_give_what_the_whole_gives() {
        let values = noise(Element::Bfloat16);
        let rows = values.len() / 96;
        for (stages, ..) in
            ALL.into_iter().filter(|(s, ..)| matches!(s[0], Scheme::Fp8(Granularity::Square(_)) | Scheme::Mx(_)))
        {
            let trip = RoundTrip::new(stages, Element::Bfloat16, rows as u64, 96);
            let whole = trip.apply(&observed(stages, &values), &values).unwrap();
            let band = trip.band_rows() * 96;
            let parts: Vec<f32> =
                values.chunks(band).flat_map(|part| trip.apply(&observed(stages, part), part).unwrap()).collect();
            assert!(whole.iter().zip(&parts).all(|(a, b)| a.to_bits() == b.to_bits()), "{stages:?}");
        }
    }

    #[test]
    fn sizes_count_the_scales() {
        assert_eq!(packed_size(&[TENSOR], 8, 96), Some(8 * 96 + 4));
        assert_eq!(packed_size(&[Scheme::Nvfp4 { block: 16 }], 8, 96), Some(8 * 96 / 2 + 8 * 6 + 4));
        assert_eq!(packed_size(&[Scheme::Int4 { block: 32 }], 8, 96), Some(8 * 96 / 2 + 8 * 3 * 4));
        assert_eq!(packed_size(&[Scheme::Mx(MxElement::E4m3)], 8, 96), Some(8 * 96 + 8 * 3));
        assert_eq!(packed_size(&[Scheme::Mx(MxElement::Int8)], 8, 96), None);
        assert_eq!(packed_size(&[Scheme::Nvfp4 { block: 16 }], 8, 40), None);
    }
}
