//! Small number formats: encoding, decoding and rounding.
//!
//! The formats and their bit patterns are those of the OCP Microscaling Formats (MX) Specification 1.0. Everything here
//! is free of branches and of table look-ups, so that loops over it vectorize; choices are written as `select`, because
//! compilers make branches of some that are written as `if`.
#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

/// The bits of a float without its sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// Infinity; every larger magnitude is a NaN.
const INFINITY: u32 = 0x7f80_0000;

/// `x` in E4M3, rounded to nearest even. Beyond 448 it saturates; a NaN keeps its sign.
pub fn e4m3_encode(x: f32) -> u8 {
    E4m3::encode(x)
}

/// The value of an E4M3 code; 0x7f and 0xff are NaN.
pub fn e4m3_decode(code: u8) -> f32 {
    E4m3::decode(code)
}

/// `x` in E5M2, rounded to nearest even. Beyond 57344 it saturates; a NaN keeps its sign.
pub fn e5m2_encode(x: f32) -> u8 {
    E5m2::encode(x)
}

/// The value of an E5M2 code, infinities and NaN included.
pub fn e5m2_decode(code: u8) -> f32 {
    // E5M2 is the upper half of IEEE half precision.
    half::f16::from_bits(u16::from(code) << 8).to_f32()
}

/// `x` in E2M1 (four bits, the sign highest), rounded to nearest even. Beyond 6 it saturates. A negative value that
/// rounds to zero keeps its sign, while a negative zero loses it, and so does NaN, which becomes zero.
pub fn e2m1_encode(x: f32) -> u8 {
    E2m1::magnitude_code(x) as u8 | (u8::from(x < 0.0) << 3)
}

/// The value of the low four bits as E2M1.
pub fn e2m1_decode(code: u8) -> f32 {
    E2m1::decode(code & 0xf)
}

/// The power of two that an E8M0 code stands for; 255 is NaN.
pub fn e8m0_decode(code: u8) -> f32 {
    if code == 255 { f32::NAN } else { power_of_two(i32::from(code) - 127) }
}

/// 2^`exponent`, for -127 to 127.
#[inline(always)]
pub(crate) fn power_of_two(exponent: i32) -> f32 {
    // The lowest one is the only subnormal one.
    f32::from_bits(if exponent == -127 { 0x0040_0000 } else { (exponent + 127).cast_unsigned() << 23 })
}

/// `yes` or `no`, without a branch.
#[inline(always)]
pub(crate) fn select(condition: bool, yes: u32, no: u32) -> u32 {
    let mask = u32::from(condition).wrapping_neg();
    (yes & mask) | (no & !mask)
}

/// The largest magnitude's bits; above those of infinity if there is a NaN.
#[inline(always)]
pub(crate) fn max_bits(values: &[f32]) -> u32 {
    values.iter().fold(0, |max, x| max.max(x.to_bits() & MAGNITUDE))
}

/// A float format of at most eight bits with a sign and subnormals.
pub(crate) trait Minifloat {
    /// Exponent bits.
    const EXPONENT: u32;
    /// Mantissa bits.
    const MANTISSA: u32;
    /// The largest finite magnitude.
    const MAX: f32;
    /// The code of [`Self::MAX`].
    const MAX_CODE: u32;
    /// The code without sign that a NaN becomes.
    const NAN_CODE: u32;

    /// How many bits of an f32's mantissa are rounded away.
    const SHIFT: u32 = 23 - Self::MANTISSA;
    /// The bias of the exponent.
    const BIAS: u32 = (1 << (Self::EXPONENT - 1)) - 1;
    /// The smallest normal magnitude's bits.
    const MIN_NORMAL: u32 = (128 - Self::BIAS) << 23;
    /// Adding this float leaves just the bits of a subnormal magnitude that are kept, rounded to nearest even.
    const SUBNORMAL: u32 = (151 - Self::BIAS - Self::MANTISSA) << 23;

    /// The code of |`x`|.
    #[inline(always)]
    fn magnitude_code(x: f32) -> u32 {
        let a = x.to_bits() & MAGNITUDE;
        let normal = (round_even(a, Self::SHIFT) >> Self::SHIFT).wrapping_sub((127 - Self::BIAS) << Self::MANTISSA);
        let subnormal = (f32::from_bits(a) + f32::from_bits(Self::SUBNORMAL)).to_bits().wrapping_sub(Self::SUBNORMAL);
        let code = select(a < Self::MIN_NORMAL, subnormal, normal);
        select(a > INFINITY, Self::NAN_CODE, code.min(Self::MAX_CODE))
    }

    /// The code of `x`.
    #[inline(always)]
    fn encode(x: f32) -> u8 {
        let sign = (x.to_bits() >> 31) << (Self::EXPONENT + Self::MANTISSA);
        (Self::magnitude_code(x) | sign) as u8
    }

    /// The value of a code; bits above the sign must be clear. Codes that are no numbers are [`Self::NAN_CODE`]'s only.
    #[inline(always)]
    fn decode(code: u8) -> f32 {
        let code = u32::from(code);
        let sign = (code >> (Self::EXPONENT + Self::MANTISSA)) << 31;
        let magnitude = code & ((1 << (Self::EXPONENT + Self::MANTISSA)) - 1);
        let normal = (magnitude << Self::SHIFT).wrapping_add((127 - Self::BIAS) << 23);
        // Exact: a few units of the spacing of subnormals.
        let subnormal = (f32::from_bits(Self::SUBNORMAL | magnitude) - f32::from_bits(Self::SUBNORMAL)).to_bits();
        let bits = select(magnitude < (1 << Self::MANTISSA), subnormal, normal);
        let bits = select(magnitude > Self::MAX_CODE, INFINITY | 0x0040_0000, bits);
        f32::from_bits(bits | sign)
    }

    /// `x` rounded to a value of the format, saturating. NaN stays NaN.
    #[inline(always)]
    fn round(x: f32) -> f32 {
        let bits = x.to_bits();
        let a = bits & MAGNITUDE;
        let normal = round_even(a, Self::SHIFT) & !((1 << Self::SHIFT) - 1);
        let magic = f32::from_bits(Self::SUBNORMAL);
        let subnormal = ((f32::from_bits(a) + magic) - magic).to_bits();
        let rounded = select(a < Self::MIN_NORMAL, subnormal, normal).min(Self::MAX.to_bits());
        let rounded = select(a > INFINITY, a, rounded);
        f32::from_bits(rounded | (bits & !MAGNITUDE))
    }
}

/// `bits` plus what makes cutting off the low `shift` bits a rounding to nearest, ties to even.
#[inline(always)]
fn round_even(bits: u32, shift: u32) -> u32 {
    bits.wrapping_add((1 << (shift - 1)) - 1).wrapping_add((bits >> shift) & 1)
}

/// Defines formats.
macro_rules! minifloats {
    ($($(#[$doc:meta])* $name:ident: $exponent:literal, $mantissa:literal, $max:literal, $code:literal, $nan:literal;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl Minifloat for $name {
            const EXPONENT: u32 = $exponent;
            const MANTISSA: u32 = $mantissa;
            const MAX: f32 = $max;
            const MAX_CODE: u32 = $code;
            const NAN_CODE: u32 = $nan;
        }
    )*};
}

minifloats! {
    /// FP8 without infinities.
    E4m3: 4, 3, 448.0, 0x7e, 0x7f;
    /// FP8 with infinities.
    E5m2: 5, 2, 57344.0, 0x7b, 0x7f;
    /// FP6.
    E3m2: 3, 2, 28.0, 0x1f, 0x1f;
    /// FP6.
    E2m3: 2, 3, 7.5, 0x1f, 0x1f;
    /// FP4.
    E2m1: 2, 1, 6.0, 0x7, 0;
}

/// An element type that results are rounded to: [`crate::Element`] as a type, for loops compiled once for each.
pub(crate) trait Rounding {
    /// `x` rounded to nearest even.
    fn round(x: f32) -> f32;
}

/// [`crate::Element::Float16`].
pub(crate) struct Float16;
/// [`crate::Element::Bfloat16`].
pub(crate) struct Bfloat16;
/// [`crate::Element::Float32`].
pub(crate) struct Float32;

impl Rounding for Float16 {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        let bits = x.to_bits();
        let a = bits & MAGNITUDE;
        let normal = round_even(a, 13) & !0x1fff;
        // Half precision's subnormals are multiples of 2^-24, the spacing of singles from 0.5 to 1.
        let subnormal = ((f32::from_bits(a) + 0.5) - 0.5).to_bits();
        let rounded = select(a < 0x3880_0000, subnormal, normal);
        // From 65520 on the nearest value is infinity.
        let rounded = select(a >= 0x477f_f000, INFINITY, rounded);
        let rounded = select(a > INFINITY, (a | 0x0040_0000) & !0x1fff, rounded);
        f32::from_bits(rounded | (bits & !MAGNITUDE))
    }
}

impl Rounding for Bfloat16 {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        let bits = x.to_bits();
        // The sign of a NaN must not be carried into.
        let nan = bits | 0x0040_0000;
        let rounded = round_even(bits, 16);
        f32::from_bits(select(bits & MAGNITUDE > INFINITY, nan, rounded) & 0xffff_0000)
    }
}

impl Rounding for Float32 {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }
}

/// Evaluates `$call` with `$name` standing for the [`Rounding`] of an [`crate::Element`].
macro_rules! with_rounding {
    ($element:expr, $name:ident => $call:expr) => {
        match $element {
            $crate::Element::Float16 => {
                type $name = $crate::number::Float16;
                $call
            }
            $crate::Element::Bfloat16 => {
                type $name = $crate::number::Bfloat16;
                $call
            }
            $crate::Element::Float32 => {
                type $name = $crate::number::Float32;
                $call
            }
        }
    };
}
pub(crate) use with_rounding;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Element;

    /// Bit patterns from all over f32: every exponent, and mantissas around every tie.
    fn patterns() -> impl Iterator<Item = f32> {
        let edges = (0..=23).flat_map(|shift| {
            let bit = 1u32 << shift;
            [bit.wrapping_sub(1), bit, bit + 1, 3 * bit, 5 * bit, 0x7f_ffff ^ bit]
        });
        let mantissas: Vec<u32> = edges.map(|m| m & 0x7f_ffff).collect();
        (0..512u32).flat_map(move |top| mantissas.clone().into_iter().map(move |m| f32::from_bits((top << 23) | m)))
    }

    /// The nearest value by search, ties to the even code.
    fn nearest<F: Minifloat>(x: f32) -> u32 {
        let x = f64::from(x.abs().min(F::MAX));
        let distance = |code: u32| (f64::from(F::decode(code as u8)) - x).abs();
        (0..=F::MAX_CODE).min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)))).unwrap()
    }

    fn check<F: Minifloat>() {
        for x in patterns() {
            let rounded = F::round(x);
            if x.is_nan() {
                assert!(rounded.is_nan());
                assert_eq!(F::magnitude_code(x), F::NAN_CODE);
                continue;
            }
            let expected = if x.is_infinite() { F::MAX_CODE } else { nearest::<F>(x) };
            assert_eq!(F::magnitude_code(x), expected, "{x:e}");
            assert_eq!(rounded.to_bits(), F::decode(F::encode(x)).to_bits(), "{x:e}");
        }
    }

    #[test]
    fn every_format_rounds_to_the_nearest_value_and_ties_to_even() {
        check::<E4m3>();
        check::<E5m2>();
        check::<E3m2>();
        check::<E2m3>();
        check::<E2m1>();
    }

    #[test]
    fn every_code_decodes_to_a_value_that_encodes_to_it() {
        for code in 0..=255u8 {
            let x = e4m3_decode(code);
            assert_eq!(x.is_nan(), code & 0x7f == 0x7f);
            assert_eq!(e4m3_encode(x), code);
            let x = e5m2_decode(code);
            let saturated = if code & 0x7f == 0x7c { code - 1 } else { code };
            assert_eq!(e5m2_encode(x), if x.is_nan() { code | 0x7f } else { saturated });
            if !x.is_nan() && !x.is_infinite() {
                assert_eq!(E5m2::decode(code), x);
            }
        }
        let values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for code in 0..8u8 {
            let value = values[usize::from(code)];
            assert_eq!((e2m1_decode(code), e2m1_decode(code | 8)), (value, -value));
            assert_eq!(e2m1_encode(value), code);
        }
        assert_eq!(e4m3_decode(0x7e), 448.0);
        assert_eq!(e4m3_decode(1), 2f32.powi(-9));
    }

    #[test]
    fn negative_zero_and_nan_lose_their_sign_in_e2m1_but_small_negatives_keep_it() {
        assert_eq!([e2m1_encode(-0.0), e2m1_encode(f32::NAN), e2m1_encode(-0.1)], [0, 0, 8]);
    }

    #[test]
    fn e8m0_codes_are_powers_of_two() {
        for code in 0..255u8 {
            assert_eq!(f64::from(e8m0_decode(code)), 2f64.powi(i32::from(code) - 127));
        }
        assert!(e8m0_decode(255).is_nan());
    }

    #[test]
    fn rounding_in_loops_is_that_of_the_element() {
        // Half precision overflows from 65520 on.
        for x in patterns().chain([65520.0, 65520f32.next_down(), -65520.0]) {
            for element in [Element::Float16, Element::Bfloat16, Element::Float32] {
                let fast = with_rounding!(element, R => R::round(x));
                assert_eq!(fast.to_bits(), element.round(x).to_bits(), "{element:?} {x:e}");
            }
        }
    }
}
