//! Products against a reference written from the description of their sums, bit for bit.

use super::{BLOCK_BF16, BLOCK_F32, Isa, Matrix, Pool, Product, WeightType, matmul_bf16, matmul_f32, to_bf16};
use half::bf16;

/// Numbers that repeat.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    /// Bits of a bf16 with an exponent from `low` to `high` (127 is that of 1.0).
    fn half(&mut self, low: u64, high: u64) -> u16 {
        let bits = self.next();
        (bits & 0x807f | (low + (bits >> 16) % (high - low + 1)) << 7) as u16
    }

    pub(super) fn halves(&mut self, len: usize, low: u64, high: u64) -> Vec<u16> {
        (0..len).map(|_| self.half(low, high)).collect()
    }

    pub(super) fn singles(&mut self, len: usize, low: u64, high: u64) -> Vec<f32> {
        let mut single = || u32::from(self.half(low, high)) << 16 | (self.next() & 0xffff) as u32;
        (0..len).map(|_| f32::from_bits(single())).collect()
    }
}

pub(super) fn widen(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

fn pack_f32(rows: usize, cols: usize, w: &[f32]) -> Matrix {
    let mut matrix = Matrix::zeros(rows, cols, WeightType::Float32);
    matrix.pack_rows(0, &w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
    matrix
}

fn pack_bf16(rows: usize, cols: usize, w: &[u16]) -> Matrix {
    let mut matrix = Matrix::zeros(rows, cols, WeightType::Bfloat16);
    matrix.pack_rows(0, &w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
    matrix
}

/// `b_0 + b_1 + ...` of blocks of `block` columns, of each the sum that `sum` gives for its columns of `x` and `w`.
fn blocks<T>(x: &[T], w: &[T], block: usize, sum: impl Fn(&[T], &[T]) -> f32) -> f32 {
    let sums = x.chunks(block).zip(w.chunks(block)).map(|(x, w)| sum(x, w));
    sums.reduce(|total, block| total + block).unwrap_or(0.0)
}

fn reference_f32(x: &[f32], w: &[f32]) -> f32 {
    blocks(x, w, BLOCK_F32, |x, w| x.iter().zip(w).fold(0.0, |acc, (x, w)| x.mul_add(*w, acc)))
}

/// The nearest f32 of 24 bits and any exponent, and its zero below 2^-126, of `a * b + c`. In f64 the product is exact, and
/// its sum with `c` rounds like an f32 whenever the test's exponents are near each other.
pub(super) fn fused(a: f32, b: f32, c: f32) -> f32 {
    let zero = |x: f32| if x.is_subnormal() { 0.0_f32.copysign(x) } else { x };
    let (a, b) = (zero(a), zero(b));
    let sum = a.mul_add(b, c);
    let exact = f64::from(a) * f64::from(b) + f64::from(c);
    // Halfway between the two largest numbers of 24 bits that are not above 2^-126.
    let tiny = f64::from(f32::MIN_POSITIVE) * (1.0 - 2.0_f64.powi(-25));
    if exact.abs() < tiny { 0.0_f32.copysign(sum) } else { sum }
}

fn reference_bf16(x: &[u16], w: &[u16]) -> f32 {
    blocks(x, w, BLOCK_BF16, |x, w| {
        x.chunks(2).zip(w.chunks(2)).fold(0.0, |acc, (x, w)| {
            let (x1, w1) = (x.get(1).copied().unwrap_or(0), w.get(1).copied().unwrap_or(0));
            fused(widen(x[0]), widen(w[0]), fused(widen(x1), widen(w1), acc))
        })
    })
}

pub(super) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

pub(super) fn pools() -> Vec<Pool> {
    (1..=3).map(|threads| Pool::new(threads).unwrap()).collect()
}

/// Shapes `[m, rows, cols]`: every `m`, and every edge of panels, blocks and pairs.
fn shapes() -> Vec<[usize; 3]> {
    let mut shapes: Vec<_> = (1..=70).map(|m| [m, 17, 259]).collect();
    for rows in [1, 5, 16, 63, 64, 65, 130] {
        for cols in [1, 2, 3, 31, 256, 257, 513, 1000] {
            shapes.extend([1, 2, 3, 6, 13].map(|m| [m, rows, cols]));
        }
    }
    shapes.extend([[253, 70, 515], [600, 3, 1030], [37, 129, 9000]]);
    shapes
}

/// Every product of `shape` is `expected`, with `product` on all instruction sets and thread counts.
pub(super) fn check(shape: [usize; 3], pools: &[Pool], expected: &[f32], product: impl Fn(&Pool, Isa, &mut [f32])) {
    for isa in Isa::available() {
        for pool in pools {
            let mut out = vec![f32::NAN; expected.len()];
            product(pool, isa, &mut out);
            assert!(bits(&out) == bits(expected), "{shape:?} on {isa:?} with {} threads", pool.threads());
        }
    }
}

/// `out[m, rows]` by `sum` of each row of `x` and of `w`.
fn expect<T>(cols: usize, x: &[T], w: &[T], sum: impl Fn(&[T], &[T]) -> f32) -> Vec<f32> {
    x.chunks(cols).flat_map(|x| w.chunks(cols).map(|w| sum(x, w)).collect::<Vec<_>>()).collect()
}

#[test]
fn f32_products_have_the_bits_of_the_description() {
    let (pools, mut numbers) = (pools(), Numbers(0x1234_5678_9abc_def1));
    for shape @ [m, rows, cols] in shapes() {
        let x = numbers.singles(m * cols, 118, 130);
        let w = numbers.singles(rows * cols, 118, 130);
        let matrix = pack_f32(rows, cols, &w);
        check(shape, &pools, &expect(cols, &x, &w, reference_f32), |pool, isa, out| {
            matmul_f32(pool, isa, &mut [Product { x: &x, w: &matrix, out }]);
        });
        let w = numbers.halves(rows * cols, 118, 130);
        let matrix = pack_bf16(rows, cols, &w);
        let w: Vec<_> = w.into_iter().map(widen).collect();
        check(shape, &pools, &expect(cols, &x, &w, reference_f32), |pool, isa, out| {
            matmul_f32(pool, isa, &mut [Product { x: &x, w: &matrix, out }]);
        });
    }
}

#[test]
fn f32_products_keep_subnormals_and_the_sign_of_zero() {
    let (pools, mut numbers) = (pools(), Numbers(77));
    for shape @ [m, rows, cols] in [[1, 65, 1], [3, 20, 3], [9, 70, 301]] {
        let x = numbers.singles(m * cols, 40, 62);
        let w = numbers.halves(rows * cols, 60, 66);
        let matrix = pack_bf16(rows, cols, &w);
        let w: Vec<_> = w.into_iter().map(widen).collect();
        let expected = expect(cols, &x, &w, reference_f32);
        assert!(expected.iter().any(|x| x.is_subnormal()), "nothing to keep");
        check(shape, &pools, &expected, |pool, isa, out| {
            matmul_f32(pool, isa, &mut [Product { x: &x, w: &matrix, out }]);
        });
        let matrix = pack_f32(rows, cols, &w);
        check(shape, &pools, &expected, |pool, isa, out| {
            matmul_f32(pool, isa, &mut [Product { x: &x, w: &matrix, out }]);
        });
    }
    // The padding of an odd column must not turn a negative zero into zero.
    let matrix = pack_bf16(1, 1, &[0x0080]);
    check([1, 1, 1], &pools, &[-0.0], |pool, isa, out| {
        matmul_f32(pool, isa, &mut [Product { x: &[-f32::MIN_POSITIVE], w: &matrix, out }]);
    });
}

#[test]
fn bf16_products_have_the_bits_of_the_description() {
    let (pools, mut numbers) = (pools(), Numbers(0xfeed_beef));
    for (i, shape @ [m, rows, cols]) in shapes().into_iter().enumerate() {
        let (low, high) = [(118, 130), (124, 128)][i % 2];
        let x = numbers.halves(m * cols, low, high);
        let w = numbers.halves(rows * cols, low, high);
        let matrix = pack_bf16(rows, cols, &w);
        let expected = expect(cols, &x, &w, reference_bf16);
        let x: Vec<_> = x.into_iter().map(bf16::from_bits).collect();
        check(shape, &pools, &expected, |pool, isa, out| {
            matmul_bf16(pool, isa, &mut [Product { x: &x, w: &matrix, out }]);
        });
    }
}

#[test]
fn bf16_products_flush_as_described() {
    let (pools, mut numbers) = (pools(), Numbers(31));
    // Subnormal inputs; sums about 2^-126; both.
    for (xs, ws) in [((0, 3), (120, 130)), ((60, 66), (60, 66)), ((0, 130), (0, 4))] {
        for shape @ [m, rows, cols] in [[1, 130, 2], [7, 64, 4], [8, 200, 7], [13, 65, 41]] {
            let x = numbers.halves(m * cols, xs.0, xs.1);
            let w = numbers.halves(rows * cols, ws.0, ws.1);
            let matrix = pack_bf16(rows, cols, &w);
            let expected = expect(cols, &x, &w, reference_bf16);
            let x: Vec<_> = x.into_iter().map(bf16::from_bits).collect();
            check(shape, &pools, &expected, |pool, isa, out| {
                matmul_bf16(pool, isa, &mut [Product { x: &x, w: &matrix, out }]);
            });
        }
    }
    // 2^-126 less 1.5 * 2^-151 is below 2^-126 in 24 bits; less 2^-151 it is not.
    for (factor, expected) in [(1.5, 0.0), (1.0, f32::MIN_POSITIVE)] {
        let half = |factor: f64, exponent| bf16::from_f64(factor * 2.0_f64.powi(exponent));
        let x = [half(factor, -75), half(1.0, -63)];
        let matrix = pack_bf16(1, 2, &[half(-1.0, -76).to_bits(), half(1.0, -63).to_bits()]);
        check([1, 1, 2], &pools, &[expected], |pool, isa, out| {
            matmul_bf16(pool, isa, &mut [Product { x: &x, w: &matrix, out }]);
        });
    }
}

#[test]
fn infinities_and_nans_pass() {
    for isa in Isa::available() {
        let pool = Pool::new(1).unwrap();
        let x = [f32::INFINITY, 1.0, f32::NAN, 1.0, -1.0, 2.0].map(bf16::from_f32);
        let matrix = pack_bf16(1, 2, &[1.0, 1.0].map(|w| bf16::from_f32(w).to_bits()));
        let mut out = [0.0; 3];
        matmul_bf16(&pool, isa, &mut [Product { x: &x, w: &matrix, out: &mut out }]);
        assert!(out[0] == f32::INFINITY && out[1].is_nan() && out[2] == 1.0, "{out:?} on {isa:?}");
    }
}

#[test]
fn products_of_one_call_do_not_mix() {
    let (pools, mut numbers) = (pools(), Numbers(5));
    let shapes = [[3, 70, 40], [0, 9, 9], [1, 1, 1], [5, 0, 8], [4, 6, 0], [300, 500, 33], [2, 64, 600]];
    let cases: Vec<_> = shapes
        .iter()
        .map(|&[m, rows, cols]| {
            let (x, w) = (numbers.singles(m * cols, 120, 128), numbers.singles(rows * cols, 120, 128));
            let expected = match cols {
                0 => vec![0.0; m * rows],
                _ => expect(cols, &x, &w, reference_f32),
            };
            (x, pack_f32(rows, cols, &w), expected)
        })
        .collect();
    for isa in Isa::available() {
        for pool in &pools {
            let mut outs: Vec<_> = cases.iter().map(|(_, _, expected)| vec![f32::NAN; expected.len()]).collect();
            let products = cases.iter().zip(&mut outs).map(|((x, w, _), out)| Product { x, w, out });
            matmul_f32(pool, isa, &mut products.collect::<Vec<_>>());
            for ((_, _, expected), out) in cases.iter().zip(&outs) {
                assert_eq!(bits(out), bits(expected));
            }
        }
    }
}

#[test]
fn rows_come_back_however_they_were_packed() {
    let mut numbers = Numbers(9);
    for (rows, cols) in [(1, 1), (5, 3), (64, 33), (65, 16), (130, 257), (200, 32)] {
        let singles = numbers.singles(rows * cols, 0, 255);
        let halves = numbers.halves(rows * cols, 0, 255);
        let single_bytes: Vec<_> = singles.iter().flat_map(|x| x.to_le_bytes()).collect();
        let half_bytes: Vec<_> = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
        for at_once in [1, 3, 16, 17, rows] {
            for (weight_type, data) in [(WeightType::Float32, &single_bytes), (WeightType::Bfloat16, &half_bytes)] {
                let mut matrix = Matrix::zeros(rows, cols, weight_type);
                assert_eq!((matrix.rows(), matrix.cols(), matrix.weight_type()), (rows, cols, weight_type));
                assert!(matrix.bytes() >= data.len());
                for (i, rows) in data.chunks(at_once * weight_type.row_size(cols).unwrap()).enumerate() {
                    matrix.pack_rows(i * at_once, rows);
                }
                for r in 0..rows {
                    let mut row = vec![0.0; cols];
                    matrix.row(r, &mut row);
                    let expected: Vec<f32> = match weight_type {
                        WeightType::Float32 => singles[r * cols..][..cols].to_vec(),
                        _ => halves[r * cols..][..cols].iter().map(|&x| widen(x)).collect(),
                    };
                    assert_eq!(bits(&row), bits(&expected), "row {r} of [{rows}, {cols}], {at_once} at once");
                }
            }
        }
    }
}

#[test]
fn rounding_to_bf16_is_that_of_half() {
    let mut numbers = Numbers(3);
    let mut x = numbers.singles(5000, 0, 255);
    x.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE]);
    // Ties, to even on both sides; a NaN whose upper half is an infinity; one above the largest.
    x.extend([0x3f80_8000, 0x3f81_8000, 0x7f80_0001, 0xff80_ffff, 0x7f7f_8000, 0x7f7f_7fff].map(f32::from_bits));
    let expected: Vec<_> = x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    for isa in Isa::available() {
        let mut out = vec![bf16::ZERO; x.len()];
        to_bf16(isa, &x, &mut out);
        assert_eq!(out.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected, "{isa:?}");
    }
}

#[test]
#[should_panic(expected = "activations and")]
fn lengths_are_checked() {
    let matrix = Matrix::zeros(2, 3, WeightType::Float32);
    let pool = Pool::new(1).unwrap();
    matmul_f32(&pool, Isa::Scalar, &mut [Product { x: &[0.0; 6], w: &matrix, out: &mut [0.0; 3] }]);
}

#[test]
#[should_panic(expected = "bf16 activations need bf16 or quantized weights")]
fn weights_of_bf16_products_are_checked() {
    let matrix = Matrix::zeros(1, 1, WeightType::Float32);
    let pool = Pool::new(1).unwrap();
    matmul_bf16(&pool, Isa::Scalar, &mut [Product { x: &[bf16::ONE], w: &matrix, out: &mut [0.0] }]);
}

#[test]
#[should_panic(expected = "from row 1 of [2, 1]")]
fn too_many_rows_are_refused() {
    Matrix::zeros(2, 1, WeightType::Float32).pack_rows(1, &[0; 8]);
}
