//! Casts between float types: to nearest, ties to even, as torch rounds. NaN stays NaN, infinities stay infinite.

use half::{bf16, f16};
use longshore_ckpt::Dtype;

/// Casts little-endian elements; equal types are copied bit for bit. Returns how many finite values became infinite.
pub fn cast(from: Dtype, source: &[u8], to: Dtype, target: &mut [u8]) -> u64 {
    use Dtype::{Bfloat16, Float16, Float32, Float64};
    if from == to {
        target.copy_from_slice(source);
        return 0;
    }
    match (from, to) {
        // The bits of a NaN stay too, so that a model with one still comes back bit for bit.
        (Bfloat16, Float32) => each(source, target, |[low, high]| [0, 0, low, high]),
        (Float16, Float32) => each(source, target, |b| f32::to_le_bytes(f16::from_le_bytes(b).to_f32())),
        (Float32, Bfloat16) => count(source, target, f32::from_le_bytes, |x| {
            let y = match x.to_le_bytes() {
                [0, 0, low, high] => bf16::from_le_bytes([low, high]),
                _ => bf16::from_f32(x),
            };
            (y.to_le_bytes(), y.is_infinite() && x.is_finite())
        }),
        (Float32, Float16) => count(source, target, f32::from_le_bytes, |x| {
            let y = f16::from_f32(x);
            (y.to_le_bytes(), y.is_infinite() && x.is_finite())
        }),
        (Bfloat16, Float16) => count(source, target, bf16::from_le_bytes, |x| {
            let y = f16::from_f32(x.to_f32());
            (y.to_le_bytes(), y.is_infinite() && x.is_finite())
        }),
        (Float16, Bfloat16) => each(source, target, |b| bf16::from_f32(f16::from_le_bytes(b).to_f32()).to_le_bytes()),
        (_, Float64) => {
            let width = from.size() as usize;
            for (s, t) in source.chunks_exact(width).zip(target.chunks_exact_mut(8)) {
                t.copy_from_slice(&number(from, s).to_le_bytes());
            }
            0
        }
        (Float64, Float32) => count(source, target, f64::from_le_bytes, |x| {
            let y = x as f32;
            (y.to_le_bytes(), y.is_infinite() && x.is_finite())
        }),
        // By way of float32, as torch does.
        (Float64, Bfloat16) => count(source, target, f64::from_le_bytes, |x| {
            let y = bf16::from_f32(x as f32);
            (y.to_le_bytes(), y.is_infinite() && x.is_finite())
        }),
        (Float64, Float16) => count(source, target, f64::from_le_bytes, |x| {
            let y = f16::from_f32(x as f32);
            (y.to_le_bytes(), y.is_infinite() && x.is_finite())
        }),
        _ => unreachable!("a plan casts between float types only"),
    }
}

/// Widens little-endian floats of at most 32 bits, which is exact.
///
/// # Panics
/// For other types: weights that are quantized are of one of these.
pub fn widen(from: Dtype, source: &[u8], target: &mut [f32]) {
    match from {
        Dtype::Bfloat16 => {
            for (s, t) in source.as_chunks::<2>().0.iter().zip(target) {
                *t = f32::from_bits(u32::from(u16::from_le_bytes(*s)) << 16);
            }
        }
        Dtype::Float16 => {
            for (s, t) in source.as_chunks::<2>().0.iter().zip(target) {
                *t = f16::from_le_bytes(*s).to_f32();
            }
        }
        Dtype::Float32 => {
            for (s, t) in source.as_chunks::<4>().0.iter().zip(target) {
                *t = f32::from_le_bytes(*s);
            }
        }
        _ => panic!("{from} does not widen to float32"),
    }
}

/// Stores values as `to`; how many finite ones became infinite.
pub fn narrow(values: &[f32], to: Dtype, target: &mut [u8]) -> u64 {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    cast(Dtype::Float32, &bytes, to, target)
}

fn each<const S: usize, const T: usize>(source: &[u8], target: &mut [u8], f: impl Fn([u8; S]) -> [u8; T]) -> u64 {
    let (source, target) = (source.as_chunks::<S>().0, target.as_chunks_mut::<T>().0);
    for (s, t) in source.iter().zip(target) {
        *t = f(*s);
    }
    0
}

fn count<N: Copy, const S: usize, const T: usize>(
    source: &[u8],
    target: &mut [u8],
    read: impl Fn([u8; S]) -> N,
    f: impl Fn(N) -> ([u8; T], bool),
) -> u64 {
    let (source, target) = (source.as_chunks::<S>().0, target.as_chunks_mut::<T>().0);
    let mut overflows = 0;
    for (s, t) in source.iter().zip(target) {
        let (bytes, overflow) = f(read(*s));
        *t = bytes;
        overflows += u64::from(overflow);
    }
    overflows
}

/// The value of one little-endian element. 64-bit integers beyond 2^53 are rounded.
pub fn number(dtype: Dtype, bytes: &[u8]) -> f64 {
    fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().expect("the caller cuts elements to their size")
    }
    match dtype {
        Dtype::Bool | Dtype::Uint8 => f64::from(bytes[0]),
        Dtype::Int8 => f64::from(bytes[0].cast_signed()),
        Dtype::Uint16 => f64::from(u16::from_le_bytes(array(bytes))),
        Dtype::Int16 => f64::from(i16::from_le_bytes(array(bytes))),
        Dtype::Uint32 => f64::from(u32::from_le_bytes(array(bytes))),
        Dtype::Int32 => f64::from(i32::from_le_bytes(array(bytes))),
        Dtype::Uint64 => u64::from_le_bytes(array(bytes)) as f64,
        Dtype::Int64 => i64::from_le_bytes(array(bytes)) as f64,
        Dtype::Float16 => f16::from_le_bytes(array(bytes)).to_f64(),
        Dtype::Bfloat16 => bf16::from_le_bytes(array(bytes)).to_f64(),
        Dtype::Float32 => f64::from(f32::from_le_bytes(array(bytes))),
        Dtype::Float64 => f64::from_le_bytes(array(bytes)),
        Dtype::Float8E4m3 => float8(bytes[0], 4, 7, 0x7f),
        Dtype::Float8E5m2 => float8(bytes[0], 5, 15, 0x7c),
        // A power of two, 2^(code - 127); the last code is NaN (OCP MX 1.0).
        Dtype::Float8E8m0 if bytes[0] == 0xff => f64::NAN,
        Dtype::Float8E8m0 => f64::from(i32::from(bytes[0]) - 127).exp2(),
    }
}

/// An 8-bit float of `exponent` bits; codes from `special` on (without sign) are NaN, but for E5M2's infinity (OCP FP8).
fn float8(code: u8, exponent: i32, bias: i32, special: u8) -> f64 {
    let mantissa_bits = 7 - exponent;
    let magnitude = code & 0x7f;
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    if magnitude >= special {
        return if exponent == 5 && magnitude == special { sign * f64::INFINITY } else { f64::NAN };
    }
    let e = i32::from(magnitude) >> mantissa_bits;
    let m = f64::from(i32::from(magnitude) & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
    let (m, e) = if e == 0 { (m, 1 - bias) } else { (1.0 + m, e - bias) };
    sign * m * f64::from(e).exp2()
}

/// How many elements a cast to `to` would change, by value; NaN counts as kept.
pub fn inexact(from: Dtype, source: &[u8], to: Dtype) -> u64 {
    let (width, to_width) = (from.size() as usize, to.size() as usize);
    let mut target = vec![0; source.len() / width * to_width];
    cast(from, source, to, &mut target);
    let pairs = source.chunks_exact(width).zip(target.chunks_exact(to_width));
    let same = |(s, t): (&[u8], &[u8])| {
        let (x, y) = (number(from, s), number(to, t));
        x == y || (x.is_nan() && y.is_nan())
    };
    pairs.filter(|&pair| !same(pair)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast_one(from: Dtype, bytes: &[u8], to: Dtype) -> (f64, u64) {
        let mut out = vec![0; to.size() as usize];
        let overflow = cast(from, bytes, to, &mut out);
        (number(to, &out), overflow)
    }

    #[test]
    fn float32_rounds_to_nearest_even_bfloat16() {
        for (bits, want) in
            [(0x3f80_8000u32, 0x3f80u16), (0x3f81_8000, 0x3f82), (0x3f80_8001, 0x3f81), (0x3f80_7fff, 0x3f80)]
        {
            let (got, overflow) = cast_one(Dtype::Float32, &bits.to_le_bytes(), Dtype::Bfloat16);
            assert_eq!((got, overflow), (bf16::from_bits(want).to_f64(), 0));
        }
    }

    #[test]
    fn overflow_is_counted_and_infinity_is_not() {
        assert_eq!(cast_one(Dtype::Bfloat16, &bf16::from_f32(1e6).to_le_bytes(), Dtype::Float16), (f64::INFINITY, 1));
        assert_eq!(cast_one(Dtype::Bfloat16, &bf16::INFINITY.to_le_bytes(), Dtype::Float16), (f64::INFINITY, 0));
        assert!(cast_one(Dtype::Float32, &f32::NAN.to_le_bytes(), Dtype::Float16).0.is_nan());
    }

    #[test]
    fn every_bfloat16_survives_float32_and_back() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let (mut wide, mut back) = (vec![0; all.len() * 2], vec![0; all.len()]);
        cast(Dtype::Bfloat16, &all, Dtype::Float32, &mut wide);
        cast(Dtype::Float32, &wide, Dtype::Bfloat16, &mut back);
        for (a, b) in all.chunks(2).zip(back.chunks(2)) {
            let nan = number(Dtype::Bfloat16, a).is_nan() && number(Dtype::Bfloat16, b).is_nan();
            assert!(a == b || nan);
        }
        assert_eq!(inexact(Dtype::Float32, &wide, Dtype::Bfloat16), 0);
        assert_eq!(inexact(Dtype::Float32, &1.000_1f32.to_le_bytes(), Dtype::Bfloat16), 1);
    }

    #[test]
    fn float8_values_are_those_of_the_ocp_tables() {
        assert_eq!(number(Dtype::Float8E4m3, &[0x7e]), 448.0);
        assert_eq!(number(Dtype::Float8E4m3, &[0x01]), 2f64.powi(-9));
        assert!(number(Dtype::Float8E4m3, &[0xff]).is_nan());
        assert_eq!(number(Dtype::Float8E5m2, &[0x7b]), 57344.0);
        assert_eq!(number(Dtype::Float8E5m2, &[0xfc]), f64::NEG_INFINITY);
        assert_eq!(number(Dtype::Float8E8m0, &[127]), 1.0);
    }
}
