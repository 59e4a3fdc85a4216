//! Products of quantized weights against a reference written from the description of their sums, bit for bit.

use super::tests::{Numbers, bits, check, fused, pools, widen};
use super::{
    BLOCK_BF16, BLOCK_F32, Isa, Matrix, Pool, Product, RowScales, WeightType, matmul_bf16, matmul_f32, matrix_bytes,
};
use half::bf16;

const TYPES: [WeightType; 9] = [
    WeightType::E4m3,
    WeightType::E4m3Squares,
    WeightType::Int8,
    WeightType::Int4 { block: 128 },
    WeightType::Int4 { block: 48 },
    WeightType::Nvfp4 { block: 16 },
    WeightType::Nvfp4 { block: 32 },
    WeightType::Mxfp8,
    WeightType::Mxfp4,
];

/// E4M3 from its definition.
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let size = if exponent == 0 { fraction / 64.0 } else { (1.0 + fraction) * 2.0_f32.powi(exponent - 7) };
    if code & 0x80 == 0 { size } else { -size }
}

fn e2m1(code: u8) -> f32 {
    let size = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 0 { size } else { -size }
}

/// A matrix, and what it was made of.
struct Case {
    matrix: Matrix,
    /// Code times the scale of its group, row-major.
    weights: Vec<f32>,
    /// Of each row its blocks' scales in f32.
    block_scales: Vec<Vec<f32>>,
    row_scales: Vec<f32>,
}

/// Columns of a scale that lies beside the codes, whatever its type.
fn scale_cols(weight_type: WeightType) -> Option<usize> {
    match weight_type {
        WeightType::E4m3Squares => Some(128),
        WeightType::Int4 { block } | WeightType::Nvfp4 { block } => Some(block),
        WeightType::Mxfp8 | WeightType::Mxfp4 => Some(32),
        _ => None,
    }
}

fn case(numbers: &mut Numbers, rows: usize, cols: usize, weight_type: WeightType) -> Case {
    let mut matrix = Matrix::zeros(rows, cols, weight_type);
    let four_bits = matches!(weight_type, WeightType::Int4 { .. } | WeightType::Nvfp4 { .. } | WeightType::Mxfp4);
    let row_size = weight_type.row_size(cols).unwrap();
    let mut data: Vec<u8> = (0..rows * row_size).map(|_| numbers.next() as u8).collect();
    if matches!(weight_type, WeightType::E4m3 | WeightType::E4m3Squares | WeightType::Mxfp8) {
        data.iter_mut().filter(|code| **code & 0x7f == 0x7f).for_each(|code| *code = 1);
    }
    let per_row = scale_cols(weight_type).map_or(0, |block| cols.div_ceil(block));
    let squares = weight_type == WeightType::E4m3Squares;
    let scale_rows = if squares { rows.div_ceil(128) } else { rows };
    let floats = numbers.singles(scale_rows * per_row, 120, 130);
    let scale_bytes: Vec<u8> = (0..rows * per_row)
        .map(|_| match weight_type {
            WeightType::Nvfp4 { .. } => (numbers.next() % 0x7f) as u8,
            _ => (numbers.next() % 12 + 120) as u8,
        })
        .collect();
    // In pieces, as a loader does it.
    for (i, rows) in data.chunks(row_size * 5).enumerate() {
        matrix.pack_rows(i * 5, rows);
    }
    let in_f32 = squares || matches!(weight_type, WeightType::Int4 { .. });
    if in_f32 {
        for (i, scales) in floats.chunks(per_row).enumerate() {
            matrix.pack_scales(i * if squares { 128 } else { 1 }, RowScales::Float32(scales));
        }
    } else if per_row > 0 {
        matrix.pack_scales(0, RowScales::Bytes(&scale_bytes));
    }
    let mut row_scales = numbers.singles(rows, 120, 130);
    if matches!(weight_type, WeightType::Nvfp4 { .. }) {
        row_scales = vec![row_scales[0]; rows];
        matrix.set_tensor_scale(row_scales[0]);
    } else {
        matrix.set_row_scales(0, &row_scales);
    }
    let weight = |r: usize, c: usize| {
        let byte = data[r * row_size + if four_bits { c / 2 } else { c }];
        let nibble = if c.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
        let scale = |block: usize| scale_bytes[r * per_row + c / block];
        match weight_type {
            WeightType::E4m3 | WeightType::E4m3Squares => e4m3(byte),
            WeightType::Int8 => f32::from(byte.cast_signed()),
            WeightType::Int4 { .. } => f32::from((nibble << 4).cast_signed() >> 4),
            WeightType::Nvfp4 { block } => e2m1(nibble) * e4m3(scale(block)) + 0.0,
            WeightType::Mxfp8 => e4m3(byte) * 2.0_f32.powi(i32::from(scale(32)) - 127) + 0.0,
            WeightType::Mxfp4 => e2m1(nibble) * 2.0_f32.powi(i32::from(scale(32)) - 127) + 0.0,
            WeightType::Float32 | WeightType::Bfloat16 => unreachable!(),
        }
    };
    let weights: Vec<f32> = (0..rows * cols).map(|i| weight(i / cols, i % cols)).collect();
    assert!(weights.iter().all(|w| w.to_bits() << 16 == 0), "a weight is no bf16");
    let of_row = |r: usize| floats[if squares { r / 128 } else { r } * per_row..][..per_row].to_vec();
    let block_scales = (0..rows).map(|r| if in_f32 { of_row(r) } else { Vec::new() }).collect();
    Case { matrix, weights, block_scales, row_scales }
}

/// `fma(b_i, scale_i, ...b_0 * scale_0) * row scale`, of sums over at most `most` columns.
fn reference<T: Copy>(case: &Case, x: &[T], most: usize, sum: impl Fn(&[T], &[f32]) -> f32) -> Vec<f32> {
    let (rows, cols, weight_type) = (case.matrix.rows(), case.matrix.cols(), case.matrix.weight_type());
    let mut out = Vec::new();
    for x in x.chunks(cols) {
        for r in 0..rows {
            let w = &case.weights[r * cols..][..cols];
            let mut total: Option<f32> = None;
            let step = if case.block_scales[r].is_empty() { cols } else { scale_cols(weight_type).unwrap() };
            for (i, (x, w)) in x.chunks(step).zip(w.chunks(step)).enumerate() {
                for (x, w) in x.chunks(most).zip(w.chunks(most)) {
                    let block = sum(x, w);
                    total = Some(match (case.block_scales[r].get(i), total) {
                        (None, None) => block,
                        (None, Some(total)) => total + block,
                        (Some(&scale), None) => block * scale,
                        (Some(&scale), Some(total)) => block.mul_add(scale, total),
                    });
                }
            }
            out.push(total.unwrap_or(0.0) * case.row_scales[r]);
        }
    }
    out
}

fn sum_f32(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(0.0, |acc, (x, w)| x.mul_add(*w, acc))
}

fn sum_bf16(x: &[u16], w: &[f32]) -> f32 {
    x.chunks(2).zip(w.chunks(2)).fold(0.0, |acc, (x, w)| {
        let (x1, w1) = (x.get(1).copied().unwrap_or(0), w.get(1).copied().unwrap_or(0.0));
        fused(widen(x[0]), w[0], fused(widen(x1), w1, acc))
    })
}

/// Shapes `[m, rows, cols]`: every small `m`, and every edge of panels, units, groups, squares and blocks.
fn shapes() -> Vec<[usize; 3]> {
    let mut shapes: Vec<_> = (1..=9).chain([63, 64, 65]).map(|m| [m, 65, 147]).collect();
    for cols in [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 127, 129, 256, 257, 513, 1000] {
        shapes.extend([[1, 20, cols], [3, 70, cols], [7, 130, cols]]);
    }
    shapes.extend([[130, 70, 600], [254, 5, 2100], [4, 200, 2049]]);
    shapes
}

#[test]
fn f32_products_of_quantized_weights_have_the_bits_of_the_description() {
    let (pools, mut numbers) = (pools(), Numbers(0x1357_9bdf));
    for weight_type in TYPES {
        for shape @ [m, rows, cols] in shapes() {
            let x = numbers.singles(m * cols, 118, 130);
            let case = case(&mut numbers, rows, cols, weight_type);
            let expected = reference(&case, &x, BLOCK_F32, sum_f32);
            check(shape, &pools, &expected, |pool, isa, out| {
                matmul_f32(pool, isa, &mut [Product { x: &x, w: &case.matrix, out }]);
            });
        }
    }
}

#[test]
fn bf16_products_of_quantized_weights_have_the_bits_of_the_description() {
    let (pools, mut numbers) = (pools(), Numbers(0x2468_ace1));
    for weight_type in TYPES {
        for shape @ [m, rows, cols] in shapes() {
            let x = numbers.halves(m * cols, 122, 128);
            let case = case(&mut numbers, rows, cols, weight_type);
            let expected = reference(&case, &x, BLOCK_BF16, sum_bf16);
            let x: Vec<_> = x.into_iter().map(bf16::from_bits).collect();
            check(shape, &pools, &expected, |pool, isa, out| {
                matmul_bf16(pool, isa, &mut [Product { x: &x, w: &case.matrix, out }]);
            });
        }
    }
}

#[test]
fn a_row_is_codes_times_their_scales() {
    let mut numbers = Numbers(99);
    for weight_type in TYPES {
        for (rows, cols) in [(1, 1), (130, 257), (65, 48)] {
            let case = case(&mut numbers, rows, cols, weight_type);
            for r in 0..rows {
                let mut row = vec![0.0; cols];
                case.matrix.row(r, &mut row);
                let scale =
                    |c: usize| case.block_scales[r].get(c / scale_cols(weight_type).unwrap_or(1)).unwrap_or(&1.0);
                let expected: Vec<_> =
                    (0..cols).map(|c| case.weights[r * cols + c] * scale(c) * case.row_scales[r]).collect();
                assert_eq!(bits(&row), bits(&expected), "{weight_type:?}, row {r} of [{rows}, {cols}]");
            }
        }
    }
}

/// Every code with every scale: the product of a single 1 with a column is that column.
#[test]
fn every_code_and_scale_is_widened_exactly() {
    let pool = Pool::new(1).unwrap();
    for (weight_type, codes) in [
        (WeightType::E4m3, 256),
        (WeightType::Int8, 256),
        (WeightType::Int4 { block: 16 }, 16),
        (WeightType::Nvfp4 { block: 16 }, 16),
        (WeightType::Mxfp8, 256),
        (WeightType::Mxfp4, 16),
    ] {
        let nvfp4 = matches!(weight_type, WeightType::Nvfp4 { .. });
        let scales: Vec<u8> = match weight_type {
            WeightType::Nvfp4 { .. } => (0..0x7f).collect(),
            WeightType::Mxfp8 | WeightType::Mxfp4 => (0..=246).collect(),
            _ => vec![0],
        };
        for isa in Isa::available() {
            for m in [1, 7] {
                for &scale in &scales {
                    // A row for each code; the second column is zero.
                    let mut matrix = Matrix::zeros(codes, 2, weight_type);
                    let value = |code: u8| match weight_type {
                        WeightType::E4m3 => e4m3(code),
                        WeightType::Int8 => f32::from(code.cast_signed()),
                        WeightType::Int4 { .. } => f32::from((code << 4).cast_signed() >> 4),
                        _ if nvfp4 => e2m1(code) * e4m3(scale),
                        _ if scale < 10 => 0.0,
                        WeightType::Mxfp8 => e4m3(code) * 2.0_f32.powi(i32::from(scale) - 127),
                        _ => e2m1(code) * 2.0_f32.powi(i32::from(scale) - 127),
                    };
                    for code in 0..codes {
                        let code = code as u8;
                        let row = if codes == 16 { vec![code] } else { vec![code, 0] };
                        matrix.pack_rows(usize::from(code), &row);
                    }
                    if scales.len() > 1 {
                        matrix.pack_scales(0, RowScales::Bytes(&vec![scale; codes]));
                    } else if codes == 16 {
                        matrix.pack_scales(0, RowScales::Float32(&[1.0; 16]));
                    }
                    let mut out = vec![f32::NAN; m * codes];
                    matmul_f32(&pool, isa, &mut [Product { x: &[1.0, 0.0].repeat(m), w: &matrix, out: &mut out }]);
                    for (i, out) in out.iter().enumerate() {
                        let code = (i % codes) as u8;
                        if codes == 256 && code & 0x7f == 0x7f && weight_type != WeightType::Int8 {
                            assert!(out.is_nan(), "{weight_type:?} {code}");
                        } else {
                            assert_eq!(*out, value(code), "{weight_type:?}, code {code}, scale {scale}, {isa:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_a_number_makes_its_row_so() {
    let pool = Pool::new(1).unwrap();
    let run = |matrix: &Matrix| {
        let mut out = vec![0.0; matrix.rows()];
        matmul_f32(&pool, Isa::detect(), &mut [Product { x: &vec![1.0; matrix.cols()], w: matrix, out: &mut out }]);
        out.iter().map(|x| x.is_nan()).collect::<Vec<_>>()
    };
    for (weight_type, scale) in [
        (WeightType::Nvfp4 { block: 16 }, 0x7f),
        (WeightType::Nvfp4 { block: 16 }, 0x81),
        (WeightType::Mxfp8, 0xff),
        (WeightType::Mxfp4, 0xff),
    ] {
        let mut matrix = Matrix::zeros(3, 32, weight_type);
        let per_row = 32 / scale_cols(weight_type).unwrap();
        matrix.pack_scales(1, RowScales::Bytes(&vec![scale; per_row]));
        matrix.set_tensor_scale(1.0);
        assert_eq!(run(&matrix), [false, true, false], "{weight_type:?}");
    }
    let mut matrix = Matrix::zeros(2, 2, WeightType::E4m3);
    matrix.set_tensor_scale(2.0);
    matrix.pack_rows(0, &[0x38, 0xff, 0x38, 0x38]);
    matrix.set_tensor_scale(2.0);
    assert_eq!(run(&matrix), [true, false]);
}

#[test]
fn sizes_are_known_before_and_hostile_ones_do_not_overflow() {
    for weight_type in TYPES.into_iter().chain([WeightType::Float32, WeightType::Bfloat16]) {
        for (rows, cols) in [(0, 0), (0, 5), (5, 0), (1, 1), (64, 128), (65, 129), (1000, 300)] {
            let matrix = Matrix::zeros(rows, cols, weight_type);
            assert_eq!(matrix_bytes(rows as u64, cols as u64, weight_type), Some(matrix.bytes() as u64));
        }
        for (rows, cols) in [(u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX), (1 << 33, 1 << 33), (1 << 62, 64)] {
            assert_eq!(matrix_bytes(rows, cols, weight_type), None, "{weight_type:?} [{rows}, {cols}]");
        }
    }
}

#[test]
fn without_columns_results_are_zero() {
    for weight_type in TYPES {
        let mut matrix = Matrix::zeros(3, 0, weight_type);
        matrix.pack_rows(0, &[]);
        if scale_cols(weight_type).is_some() {
            matrix.pack_scales(
                0,
                match weight_type {
                    WeightType::E4m3Squares | WeightType::Int4 { .. } => RowScales::Float32(&[]),
                    _ => RowScales::Bytes(&[]),
                },
            );
        }
        let mut out = [f32::NAN; 6];
        let pool = Pool::new(1).unwrap();
        matmul_f32(&pool, Isa::detect(), &mut [Product { x: &[], w: &matrix, out: &mut out }]);
        assert_eq!(out, [0.0; 6], "{weight_type:?}");
    }
}

#[test]
#[should_panic(expected = "2 scales from row 2 of [3, 32]")]
fn scales_of_parts_of_rows_are_refused() {
    Matrix::zeros(3, 32, WeightType::Nvfp4 { block: 32 }).pack_scales(2, RowScales::Bytes(&[0; 2]));
}

#[test]
#[should_panic(expected = "has no such scales")]
fn scales_of_another_kind_are_refused() {
    Matrix::zeros(3, 32, WeightType::Mxfp8).pack_scales(0, RowScales::Float32(&[1.0; 3]));
}

#[test]
#[should_panic(expected = "no kernels for Int4")]
fn blocks_without_kernels_are_refused() {
    Matrix::zeros(1, 1, WeightType::Int4 { block: 0 });
}
