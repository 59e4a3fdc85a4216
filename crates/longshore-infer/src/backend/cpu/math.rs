//! Elementary functions and sums in float32 with the same bits on every processor: polynomials with fused multiply-adds
//! in a fixed order, no library calls. All are branch-free, so compilers vectorize loops over them.

/// Lanes of a sum: partial sums are kept apart modulo this and added as a tree at the end.
const LANES: usize = 16;

/// `e^x`, within 2 units in the last place; subnormal results are right, NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, and the Taylor series of `e^r` up to `r^7 / 7!`, whose remainder is below
/// `r^8 / 8! < 6e-9`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // The sum of ln 2 in two parts: the first has zeros at the end, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    // Beyond these the result is 0 or infinite.
    let clamped = x.clamp(-104.0, 89.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let p = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
    let p = r.mul_add(p, 1.0 / 120.0);
    let p = r.mul_add(p, 1.0 / 24.0);
    let p = r.mul_add(p, 1.0 / 6.0);
    let p = r.mul_add(p, 0.5);
    let p = r.mul_add(p, 1.0);
    let p = r.mul_add(p, 1.0);
    // The whole number is in the low bits of the shifted sum. A cast would not vectorize; of NaN, which gives any number
    // here, `p` is NaN. In two factors, since 2^n itself may be out of range.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `2^n` for `-126 <= n <= 127`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(n.wrapping_add(127).cast_unsigned() << 23)
}

/// `ln(1 + y)` for `y >= 0`, within 2 units in the last place, also where `1 + y` rounds to 1.
///
/// `1 + y = 2^n m` with `m` around 1, and `ln m = 2 artanh(s)`, `s = (m - 1) / (m + 1)`, by its series up to `s^11`.
#[inline(always)]
pub(crate) fn ln_1p(y: f32) -> f32 {
    let u = 1.0 + y;
    // What rounding `1 + y` lost, as a share of the sum.
    let lost = (y - (u - 1.0)) / u;
    // The exponent of u / sqrt(1/2), so that m lies within sqrt(1/2) and sqrt(2).
    let bits = u.to_bits();
    let shifted = bits.wrapping_sub(0x3f35_04f3);
    let n = (shifted.cast_signed() >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let p = q.mul_add(1.0 / 11.0, 1.0 / 9.0);
    let p = q.mul_add(p, 1.0 / 7.0);
    let p = q.mul_add(p, 1.0 / 5.0);
    let p = q.mul_add(p, 1.0 / 3.0);
    let series = (2.0 * s * q).mul_add(p, 2.0 * s);
    n.mul_add(std::f32::consts::LN_2, series + lost)
}

/// `ln(1 + e^x)`, and x itself above 20, as `torch.nn.functional.softplus`.
#[inline(always)]
pub(crate) fn softplus(x: f32) -> f32 {
    // Not `min`, which would lose a NaN.
    let soft = ln_1p(exp(if x > 20.0 { 20.0 } else { x }));
    if x > 20.0 { x } else { soft }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `sin x` and `cos x`, rounded to float32 from float64: of numbers below 2^31 in magnitude within half a unit in the last place
/// and a little, of larger ones somewhere between -1 and 1.
///
/// `x = n pi / 2 + r` with `|r| <= pi / 4`, and the Taylor series of both up to `r^14 / 14!` and `r^15 / 15!`, whose remainders
/// are below 1e-15.
#[inline(always)]
pub(crate) fn sin_cos(x: f32) -> (f32, f32) {
    // Pi / 2 in two parts, the first rounded to float64.
    const HIGH: f64 = std::f64::consts::FRAC_PI_2;
    const LOW: f64 = 6.123_233_995_736_766e-17;
    // Adding and subtracting 1.5 * 2^52 rounds to a whole number.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(x);
    let shifted = x.mul_add(std::f64::consts::FRAC_2_PI, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LOW, n.mul_add(-HIGH, x));
    // Only what is out of range is outside of these.
    let r = r.clamp(-1.0, 1.0);
    let q = r * r;
    let s = q.mul_add(-1.0 / 1_307_674_368_000.0, 1.0 / 6_227_020_800.0);
    let s = q.mul_add(s, -1.0 / 39_916_800.0);
    let s = q.mul_add(s, 1.0 / 362_880.0);
    let s = q.mul_add(s, -1.0 / 5040.0);
    let s = q.mul_add(s, 1.0 / 120.0);
    let s = q.mul_add(s, -1.0 / 6.0);
    let sin = (q * r).mul_add(s, r);
    let c = q.mul_add(-1.0 / 87_178_291_200.0, 1.0 / 479_001_600.0);
    let c = q.mul_add(c, -1.0 / 3_628_800.0);
    let c = q.mul_add(c, 1.0 / 40_320.0);
    let c = q.mul_add(c, -1.0 / 720.0);
    let c = q.mul_add(c, 1.0 / 24.0);
    let c = q.mul_add(c, -0.5);
    let cos = q.mul_add(c, 1.0);
    // The quarter turn is in the low bits of the shifted number.
    let quarter = shifted.to_bits();
    let (sin, cos) = if quarter & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let sin = if quarter & 2 == 0 { sin } else { -sin };
    let cos = if quarter.wrapping_add(1) & 2 == 0 { cos } else { -cos };
    (sin as f32, cos as f32)
}

/// `sum(a * b)`.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane = a.mul_add(*b, *lane);
    }
    tree(lanes)
}

/// `sum(x)`, in the same order.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] += x[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    tree(lanes)
}

/// The lanes' sum: halves are added until one is left.
#[inline(always)]
fn tree(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest element; negative infinity of none. NaN is passed over.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for x in x.chunks(LANES) {
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(got: f32, want: f64) -> f64 {
        let unit = f64::from(f32::from_bits((want as f32).abs().to_bits() + 1)) - f64::from((want as f32).abs());
        (f64::from(got) - want).abs() / unit
    }

    #[test]
    fn exp_is_within_two_units() {
        let mut worst = 0f64;
        for i in -1_040_000..=887_000 {
            let x = i as f32 * 1e-4;
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
        }
        assert!(worst < 2.0, "{worst}");
        assert_eq!((exp(0.0), exp(-200.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!((exp(89.0), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn softplus_is_torchs() {
        let mut worst = 0f64;
        for i in -2_000_000..=200_000 {
            let x = i as f32 * 1e-4;
            if x > -87.0 {
                worst = worst.max(ulps(softplus(x), f64::from(x).exp().ln_1p()));
            }
        }
        assert!(worst < 4.0, "{worst}");
        assert_eq!((softplus(21.0), softplus(-200.0)), (21.0, 0.0));
        assert!(softplus(f32::NAN).is_nan());
    }

    #[test]
    fn sine_and_cosine_are_rounded_ones() {
        let mut worst = 0f64;
        let small = (-2_000_000..=2_000_000).map(|i| i as f32 * 1e-4);
        let whole = (0..2_000_000).map(|i| i as f32);
        let large = (0..2_000_000).map(|i| i as f32 * 1_073.77);
        for x in small.chain(whole).chain(large) {
            let (sin, cos) = sin_cos(x);
            worst = worst.max(ulps(sin, f64::from(x).sin())).max(ulps(cos, f64::from(x).cos()));
        }
        assert!(worst < 0.51, "{worst}");
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
        for x in [1e12, -1e20, f32::MAX] {
            let (sin, cos) = sin_cos(x);
            assert!(sin.abs() <= 1.0 && cos.abs() <= 1.0, "{x}: {sin}, {cos}");
        }
        assert!(sin_cos(f32::NAN).0.is_nan() && sin_cos(f32::INFINITY).1.is_nan());
    }

    #[test]
    fn a_dot_product_keeps_sixteen_sums() {
        let a: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 / 7.0).collect();
        let b: Vec<f32> = (0..37).map(|i| 2.0 - i as f32 / 9.0).collect();
        let mut lanes = [0f32; 16];
        for i in 0..37 {
            lanes[i % 16] = a[i].mul_add(b[i], lanes[i % 16]);
        }
        let eight: Vec<f32> = (0..8).map(|i| lanes[i] + lanes[i + 8]).collect();
        let four: Vec<f32> = (0..4).map(|i| eight[i] + eight[i + 4]).collect();
        let want = (four[0] + four[2]) + (four[1] + four[3]);
        assert_eq!(dot(&a, &b).to_bits(), want.to_bits());
    }
}
