//! RMS norms and other work on single rows.

use super::isa::per_isa;
use super::math::{self, dot, exp, silu};

/// `out = w * (x * rsqrt(mean(x^2) + eps))`, row by row; everything in float32 (`NemotronHRMSNorm` of transformers, which
/// multiplies by the weight before it casts).
#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
        for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
            *out = w * (x * scale);
        }
    }
}

per_isa! {
    /// RMS norm of every row of `x`, `[rows, weight.len()]`.
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body;
}

/// `out = w * bf16(x * rsqrt(mean(x^2) + eps))` (`LlamaRMSNorm` of transformers, which casts before it multiplies).
#[inline(always)]
fn rms_norm_rounded_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
        for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
            *out = w * rounded(x * scale);
        }
    }
}

per_isa! {
    /// The same as [`rms_norm`] of a model in bfloat16 whose norms round before they multiply by the weight.
    pub(crate) fn rms_norm_rounded(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_rounded_body;
}

#[inline(always)]
fn relu_squared_body(x: &mut [f32]) {
    for x in x {
        let positive = if *x > 0.0 { *x } else { 0.0 };
        // NaN must stay NaN: a broken weight has to show.
        *x = if x.is_nan() { *x } else { positive * positive };
    }
}

per_isa! {
    /// `max(x, 0)^2` in place.
    pub(crate) fn relu_squared(x: &mut [f32]) = relu_squared_body;
}

#[inline(always)]
fn swiglu_body(x: &[f32], ffn: usize, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(2 * ffn).zip(out.chunks_exact_mut(ffn)) {
        let (gate, up) = x.split_at(ffn);
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = silu(gate) * up;
        }
    }
}

per_isa! {
    /// `silu(gate) * up` of rows of `[gate | up]`, each `ffn` wide.
    pub(crate) fn swiglu(x: &[f32], ffn: usize, out: &mut [f32]) = swiglu_body;
}

#[inline(always)]
fn add_body(x: &[f32], residual: &mut [f32]) {
    for (r, &x) in residual.iter_mut().zip(x) {
        *r += x;
    }
}

per_isa! {
    /// `residual += x`.
    pub(crate) fn add(x: &[f32], residual: &mut [f32]) = add_body;
}

/// To the nearest bfloat16, ties to even, as a float32. Infinities and NaN stay.
#[inline(always)]
pub(super) fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f32::from_bits(if x.is_nan() { bits | 0x0040_0000 } else { nearest })
}

#[inline(always)]
fn add_rounded_body(x: &[f32], residual: &mut [f32]) {
    for (r, &x) in residual.iter_mut().zip(x) {
        *r = rounded(*r + rounded(x));
    }
}

per_isa! {
    /// `residual = bf16(residual + bf16(x))`: what a bfloat16 module's output and residual addition give.
    pub(crate) fn add_rounded(x: &[f32], residual: &mut [f32]) = add_rounded_body;
}

#[inline(always)]
fn axpy_body(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = a.mul_add(x, *y);
    }
}

per_isa! {
    /// `y += a x`.
    pub(crate) fn axpy(a: f32, x: &[f32], y: &mut [f32]) = axpy_body;
}

#[inline(always)]
fn sum_exp_body(x: &[f32], most: f32, sum: &mut f64) {
    // Float32 within a block, where 16 lanes add 16 terms each, float64 between blocks.
    let mut terms = [0.0; 256];
    for x in x.chunks(256) {
        let terms = &mut terms[..x.len()];
        for (term, &x) in terms.iter_mut().zip(x) {
            *term = if x.is_nan() { 0.0 } else { exp(x - most) };
        }
        *sum += f64::from(math::sum(terms));
    }
}

per_isa! {
    /// Adds `sum(exp(x - most))` to `sum`; NaN counts as negative infinity.
    pub(crate) fn sum_exp(x: &[f32], most: f32, sum: &mut f64) = sum_exp_body;
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> = (0..111).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let weight: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 * 0.01).collect();
        let mut want = vec![0.0; 111];
        rms_norm(Isa::Scalar, &x, &weight, 1e-5, &mut want);
        let mut rounds = vec![0.0; 111];
        rms_norm_rounded(Isa::Scalar, &x, &weight, 1e-5, &mut rounds);
        let mut gated = vec![0.0; 54];
        swiglu(Isa::Scalar, &x[..108], 18, &mut gated);
        let same = |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
        for isa in Isa::available() {
            let mut got = vec![0.0; 111];
            rms_norm(isa, &x, &weight, 1e-5, &mut got);
            assert!(same(&got, &want), "{isa:?}");
            rms_norm_rounded(isa, &x, &weight, 1e-5, &mut got);
            assert!(same(&got, &rounds), "{isa:?}");
            swiglu(isa, &x[..108], 18, &mut got);
            assert!(same(&got, &gated), "{isa:?}");
        }
    }

    #[test]
    fn a_norm_can_round_before_it_multiplies() {
        let (x, weight) = ([3.0, -4.0, 0.1, 7.7], [1.003, 0.7, 1.3, 0.9]);
        let mut out = [0.0; 4];
        rms_norm_rounded(Isa::Scalar, &x, &weight, 1e-5, &mut out);
        let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f32>() / 4.0 + 1e-5).sqrt();
        for i in 0..4 {
            assert_eq!(out[i].to_bits(), (weight[i] * half::bf16::from_f32(x[i] * scale).to_f32()).to_bits());
        }
    }

    #[test]
    fn a_gate_stands_before_what_it_lets_through() {
        let gate = [1.5, -2.0, 0.0, -200.0, 200.0, f32::NAN];
        let up = [2.0, 3.0, 4.0, 5.0, 0.5, 1.0];
        let mut out = [0.0; 6];
        swiglu(Isa::Scalar, &[gate, up].concat(), 6, &mut out);
        for (i, got) in out[..5].iter().enumerate() {
            let want = f64::from(gate[i]) / (1.0 + (-f64::from(gate[i])).exp()) * f64::from(up[i]);
            assert!((f64::from(*got) - want).abs() <= 4e-7 * want.abs() + 1e-40, "{got} instead of {want}");
        }
        assert!(out[5].is_nan());
    }

    #[test]
    fn exponentials_add_up() {
        let x: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.7).sin() * 12.0).chain([f32::NAN]).collect();
        let want: f64 = x[..5000].iter().map(|&x| (f64::from(x) - 12.0).exp()).sum();
        for isa in Isa::available() {
            let mut sum = 0.0;
            sum_exp(isa, &x, 12.0, &mut sum);
            assert!((sum / want - 1.0).abs() < 2e-7, "{isa:?}: {sum} and {want}");
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_even_bfloat16() {
        for bits in [0x3f80_8000u32, 0x3f81_8000, 0x3f80_8001, 0x7f80_0000, 0xff80_0000, 0x0000_8000, 0x7f7f_ffff] {
            let x = f32::from_bits(bits);
            assert_eq!(rounded(x).to_bits(), half::bf16::from_f32(x).to_f32().to_bits(), "{bits:x}");
        }
        assert!(rounded(f32::NAN).is_nan());
    }
}
