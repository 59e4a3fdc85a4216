//! Quantized weights as exporters write them, into matrices.

use super::matrix::{Matrix, RowScales, WeightType};
use crate::backend::WeightFormat;
use longshore_ckpt::Dtype;
use longshore_quant::pack::QuantizedRows;
use longshore_quant::{Granularity, MxElement, Scheme};

/// The type that keeps weights of `scheme` quantized.
pub(super) fn of_scheme(scheme: Scheme) -> Option<WeightType> {
    Some(match scheme {
        Scheme::Fp8(Granularity::Tensor | Granularity::Channel) => WeightType::E4m3,
        Scheme::Fp8(Granularity::Square(128)) => WeightType::E4m3Squares,
        Scheme::Int8(Granularity::Tensor | Granularity::Channel) => WeightType::Int8,
        Scheme::Int4 { block } if block > 0 && block.is_multiple_of(16) => WeightType::Int4 { block },
        Scheme::Nvfp4 { block: block @ (16 | 32) } => WeightType::Nvfp4 { block },
        Scheme::Nvfp4Static { .. } => WeightType::Nvfp4 { block: 16 },
        Scheme::Mx(MxElement::E4m3) => WeightType::Mxfp8,
        Scheme::Mx(MxElement::E2m1) => WeightType::Mxfp4,
        _ => return None,
    })
}

/// The type of matrices of `format`.
///
/// # Panics
/// If [`of_scheme`] has none.
pub(super) fn weight_type(format: WeightFormat) -> WeightType {
    match format {
        WeightFormat::Float(Dtype::Bfloat16) => WeightType::Bfloat16,
        WeightFormat::Float(_) => WeightType::Float32,
        WeightFormat::Quantized(scheme) => of_scheme(scheme).expect("callers ask `has_quantized`"),
    }
}

/// See [`crate::backend::Backend::pack_quantized`].
pub(super) fn pack(matrix: &mut Matrix, first_row: usize, rows: &QuantizedRows) {
    let (cols, weight_type) = (matrix.cols(), matrix.weight_type());
    let row_size = weight_type.row_size(cols).unwrap_or_default().max(1);
    let unpaired = matches!(weight_type, WeightType::Int4 { .. }).then(|| unpair(&rows.weight, cols));
    let codes = unpaired.as_ref().unwrap_or(&rows.weight);
    matrix.pack_rows(first_row, codes);
    let floats = || -> Vec<f32> { rows.scale.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect() };
    let count = codes.len() / row_size;
    match weight_type {
        WeightType::E4m3 | WeightType::Int8 => match floats()[..] {
            [scale] => matrix.set_row_scales(first_row, &vec![scale; count]),
            ref scales => matrix.set_row_scales(first_row, scales),
        },
        WeightType::E4m3Squares | WeightType::Int4 { .. } => {
            matrix.pack_scales(first_row, RowScales::Float32(&floats()));
        }
        _ => matrix.pack_scales(first_row, RowScales::Bytes(&rows.scale)),
    }
    if let Some(scale) = rows.scale_2 {
        matrix.set_row_scales(first_row, &vec![scale; count]);
    }
}

/// Rows of nibbles from pairs of rows: of a byte of `[rows / 2, cols]` the low nibble is the even row's, of one of the result
/// (`[rows, cols / 2]`) the even column's.
fn unpair(pairs: &[u8], cols: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(pairs.len());
    for pair in pairs.chunks_exact(cols.max(1)) {
        out.extend(pair.chunks(2).map(|c| c[0] & 15 | c.get(1).map_or(0, |odd| odd << 4)));
        out.extend(pair.chunks(2).map(|c| c[0] >> 4 | c.get(1).map_or(0, |odd| odd & 0xf0)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_quant::pack::{PackedType, band_rows, layout, pack as quantize, scale_2};
    use longshore_quant::unpack::{Encoding, unpack};
    use longshore_quant::{Amax, Element, amax};

    const ALL: [(Scheme, Encoding); 11] = [
        (Scheme::Fp8(Granularity::Tensor), Encoding::Fp8),
        (Scheme::Fp8(Granularity::Channel), Encoding::Fp8Channel),
        (Scheme::Fp8(Granularity::Square(128)), Encoding::Fp8Square { rows: 128, cols: 128 }),
        (Scheme::Int8(Granularity::Channel), Encoding::Int8Channel),
        (Scheme::Int4 { block: 128 }, Encoding::Int4 { block: 128 }),
        (Scheme::Nvfp4 { block: 16 }, Encoding::Nvfp4 { block: 16 }),
        (Scheme::Nvfp4 { block: 32 }, Encoding::Nvfp4 { block: 32 }),
        (Scheme::Nvfp4Static { four_over_six: false }, Encoding::Nvfp4 { block: 16 }),
        (Scheme::Nvfp4Static { four_over_six: true }, Encoding::Nvfp4 { block: 16 }),
        (Scheme::Mx(MxElement::E4m3), Encoding::Mxfp8),
        (Scheme::Mx(MxElement::E2m1), Encoding::Mxfp4),
    ];

    #[test]
    fn a_matrix_holds_what_an_export_holds() {
        const COLS: usize = 384;
        const ROWS: usize = 256;
        let values: Vec<f32> =
            (0..ROWS * COLS).map(|i| ((i * 7919 % 4093) as f32 / 2048.0 - 1.0) * (1.0 + (i / COLS) as f32)).collect();
        for (scheme, encoding) in ALL {
            let mut whole = Amax::default();
            amax::observe(scheme, COLS, &values, &mut whole).unwrap();
            let mut matrix = Matrix::zeros(ROWS, COLS, of_scheme(scheme).unwrap());
            let band = band_rows(&[scheme]).max(32);
            for first_row in (0..ROWS).step_by(band) {
                let values = &values[first_row * COLS..][..band * COLS];
                let mut amax = Amax { values: Vec::new(), global: whole.global };
                if whole.values.len() == 1 {
                    amax.values.clone_from(&whole.values);
                } else {
                    let per = whole.values.len() * band / ROWS;
                    amax.values = whole.values[first_row / band * per..][..per].to_vec();
                }
                let amax = [amax];
                let layout = layout(&[scheme], band as u64, COLS as u64).unwrap();
                let zeros = |part: &longshore_quant::pack::Part| {
                    let size = if part.dtype == PackedType::F32 { 4 } else { 1 };
                    vec![0; part.shape.iter().product::<u64>() as usize * size]
                };
                let (mut weight, mut scale) = (zeros(&layout.weight), zeros(&layout.scale.unwrap()));
                quantize(&[scheme], Element::Float32, &amax, COLS, values, &mut weight, &mut scale).unwrap();
                let second = scale_2(&[scheme], &amax);
                let mut want = vec![0.0; values.len()];
                unpack(encoding, Element::Float32, COLS, &weight, &scale, second.unwrap_or(1.0), &mut want);
                pack(&mut matrix, first_row, &QuantizedRows { weight, scale, scale_2: second });
                let mut got = vec![0.0; COLS];
                for (r, want) in want.chunks(COLS).enumerate() {
                    matrix.row(first_row + r, &mut got);
                    for (got, want) in got.iter().zip(want) {
                        // Scales may be multiplied in another order.
                        assert!((got - want).abs() <= 2e-7 * want.abs(), "{scheme:?}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_has_no_kernels_is_said_to_have_none() {
        for scheme in [
            Scheme::Fp8(Granularity::Token),
            Scheme::Fp8(Granularity::Square(64)),
            Scheme::Int4 { block: 24 },
            Scheme::Nvfp4 { block: 64 },
            Scheme::Mx(MxElement::Int8),
        ] {
            assert_eq!(of_scheme(scheme), None);
        }
    }
}
