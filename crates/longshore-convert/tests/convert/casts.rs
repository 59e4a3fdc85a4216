//! Casts against their definition: the nearest number of the target, the even one of two that are equally near.

use longshore_ckpt::Dtype;
use longshore_convert::cast::{cast, inexact, number};
use proptest::prelude::*;

/// The value of a 16-bit float with `exponent` bits of exponent, from the definition of IEEE 754.
fn decode(bits: u16, exponent: i32) -> f64 {
    let mantissa = 15 - exponent;
    let (e, m) = (i32::from(bits & 0x7fff) >> mantissa, f64::from(i32::from(bits) & ((1 << mantissa) - 1)));
    let (bias, unit) = ((1 << (exponent - 1)) - 1, f64::from(1 << mantissa));
    let magnitude = match e {
        0 => m / unit * f64::from(1 - bias).exp2(),
        e if e == (1 << exponent) - 1 => {
            if m == 0.0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        e => (1.0 + m / unit) * f64::from(e - bias).exp2(),
    };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

fn exponent_of(dtype: Dtype) -> i32 {
    if dtype == Dtype::Float16 { 5 } else { 8 }
}

/// The code of the nearest number; numbers are in the order of their codes. `None`: NaN.
fn nearest(value: f64, dtype: Dtype) -> Option<u16> {
    if value.is_nan() {
        return None;
    }
    let exponent = exponent_of(dtype);
    let infinity = (((1u32 << exponent) - 1) << (15 - exponent)) as u16;
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    let value = value.abs();
    // As if one more binade followed: what rounds to its first number is infinite.
    let at = |code: u16| {
        if code == infinity {
            2.0 * decode(infinity - (1 << (15 - exponent)), exponent)
        } else {
            decode(code, exponent)
        }
    };
    let (mut low, mut high) = (0, infinity);
    if value >= at(infinity) {
        return Some(sign | infinity);
    }
    while high - low > 1 {
        let middle = u16::midpoint(low, high);
        if at(middle) <= value { low = middle } else { high = middle }
    }
    let (below, above) = (value - at(low), at(high) - value);
    let code = if below < above || (below == above && low % 2 == 0) { low } else { high };
    Some(sign | code)
}

fn is_nan(dtype: Dtype, bytes: &[u8]) -> bool {
    number(dtype, bytes).is_nan()
}

fn check(from: Dtype, source: &[u8], value: f64, to: Dtype) {
    let mut got = vec![0; to.size() as usize];
    let overflow = cast(from, source, to, &mut got);
    let infinite = number(to, &got).is_infinite() && value.is_finite();
    assert_eq!(overflow, u64::from(infinite), "{value} from {from} to {to}");
    // torch casts float64 to a 16-bit type by way of float32.
    let value = if from == Dtype::Float64 { f64::from(value as f32) } else { value };
    match to {
        Dtype::Float16 | Dtype::Bfloat16 => match nearest(value, to) {
            None => assert!(is_nan(to, &got)),
            Some(code) => assert_eq!(u16::from_le_bytes([got[0], got[1]]), code, "{value} from {from} to {to}"),
        },
        Dtype::Float32 if value.is_nan() => assert!(is_nan(to, &got)),
        Dtype::Float32 => assert_eq!(got, (value as f32).to_le_bytes(), "{value} from {from}"),
        _ if value.is_nan() => assert!(is_nan(to, &got)),
        _ => assert_eq!(got, value.to_le_bytes(), "{value} from {from}"),
    }
    let exact = value.is_nan() || (number(to, &got) == number(from, source));
    assert_eq!(inexact(from, source, to), u64::from(!exact), "{value} from {from} to {to}");
}

const TARGETS: [Dtype; 4] = [Dtype::Bfloat16, Dtype::Float16, Dtype::Float32, Dtype::Float64];

#[test]
fn every_16_bit_number_is_cast_as_defined() {
    for from in [Dtype::Bfloat16, Dtype::Float16] {
        for code in 0..=u16::MAX {
            for to in TARGETS.into_iter().filter(|&to| to != from) {
                check(from, &code.to_le_bytes(), decode(code, exponent_of(from)), to);
            }
        }
    }
}

#[test]
fn every_tie_and_its_neighbours_are_cast_as_defined() {
    for to in [Dtype::Bfloat16, Dtype::Float16] {
        for code in 0..0x7fffu16 {
            let (a, b) = (decode(code, exponent_of(to)), decode(code + 1, exponent_of(to)));
            if !b.is_finite() {
                continue;
            }
            let tie = f64::midpoint(a, b);
            let near = [tie as f32, (tie as f32).next_up(), (tie as f32).next_down(), -(tie as f32)];
            for value in near {
                check(Dtype::Float32, &value.to_le_bytes(), f64::from(value), to);
            }
            for value in [tie, tie.next_up(), tie.next_down()] {
                check(Dtype::Float64, &value.to_le_bytes(), value, to);
            }
        }
    }
}

#[test]
fn every_bfloat16_code_survives_float32_nan_payloads_too() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let (mut wide, mut back) = (vec![0; all.len() * 2], vec![0; all.len()]);
    cast(Dtype::Bfloat16, &all, Dtype::Float32, &mut wide);
    cast(Dtype::Float32, &wide, Dtype::Bfloat16, &mut back);
    assert!(all == back);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_wide_number_is_cast_as_defined(single in any::<u32>(), double in any::<u64>()) {
        for to in TARGETS {
            if to != Dtype::Float32 {
                check(Dtype::Float32, &single.to_le_bytes(), f64::from(f32::from_bits(single)), to);
            }
            if to != Dtype::Float64 {
                check(Dtype::Float64, &double.to_le_bytes(), f64::from_bits(double), to);
            }
        }
    }
}
