//! Registers of AVX2 and AVX-512.

#![expect(clippy::inline_always, reason = "an intrinsic that is not inlined into its kernel costs a call")]
#![expect(clippy::cast_ptr_alignment, reason = "weights lie in lines of 64 bytes")]

use super::simd::{SCALE, Simd};
use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512bh, __m512i, _CMP_LE_OQ, _CMP_LT_OQ, _MM_HINT_T1, _mm_prefetch, _mm256_add_ps,
    _mm256_and_ps, _mm256_and_si256, _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_movemask_ps, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm512_add_ps, _mm512_and_ps, _mm512_and_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_and_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    _mm512_storeu_ps,
};

/// 8 lanes.
pub(super) struct Avx2;
/// 16 lanes.
pub(super) struct Avx512;
/// 16 lanes, and `dot` is an instruction.
pub(super) struct Avx512Bf16;

/// A register of all magnitudes' bits.
const MAGNITUDE: i32 = i32::MAX;
/// A register of signs.
const SIGN: i32 = i32::MIN;
const HIGH: i32 = -0x1_0000;

/// A zero of its sign for a subnormal.
#[inline(always)]
unsafe fn flush_input_256(x: __m256) -> __m256 {
    // SAFETY: the caller's instruction set.
    unsafe {
        let size = _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(MAGNITUDE)));
        let tiny = _mm256_cmp_ps::<_CMP_LT_OQ>(size, _mm256_set1_ps(f32::MIN_POSITIVE));
        _mm256_blendv_ps(x, _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(SIGN))), tiny)
    }
}

/// `fma_flush` of `simd`.
#[inline(always)]
unsafe fn fma_flush_256(a: __m256, b: __m256, c: __m256) -> __m256 {
    // SAFETY: the caller's instruction set.
    unsafe {
        let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(MAGNITUDE));
        let smallest = _mm256_set1_ps(f32::MIN_POSITIVE);
        let sum = _mm256_fmadd_ps(a, b, c);
        let small = _mm256_cmp_ps::<_CMP_LE_OQ>(_mm256_and_ps(sum, magnitude), smallest);
        if _mm256_movemask_ps(small) == 0 {
            return sum;
        }
        let scale = _mm256_set1_ps(SCALE);
        let scaled = _mm256_fmadd_ps(_mm256_mul_ps(a, scale), b, _mm256_mul_ps(c, scale));
        let below = _mm256_cmp_ps::<_CMP_LT_OQ>(_mm256_and_ps(scaled, magnitude), _mm256_mul_ps(smallest, scale));
        let zero = _mm256_and_ps(sum, _mm256_castsi256_ps(_mm256_set1_epi32(SIGN)));
        _mm256_blendv_ps(sum, zero, _mm256_and_ps(small, below))
    }
}

impl Simd for Avx2 {
    type Reg = __m256;
    type Pairs = (__m256, __m256);
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the caller's instruction set.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the caller's instruction set.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: the caller's pointer is valid for a register.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m256) {
        // SAFETY: the caller's pointer is valid for a register.
        unsafe { _mm256_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's instruction set.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's instruction set.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the caller's instruction set.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn low(from: *const u32) -> __m256 {
        // SAFETY: the caller's pointer is valid for a register.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn high(from: *const u32) -> __m256 {
        // SAFETY: the caller's pointer is valid for a register, and aligned like one.
        unsafe {
            _mm256_castsi256_ps(_mm256_and_si256(from.cast::<__m256i>().read_volatile(), _mm256_set1_epi32(HIGH)))
        }
    }
    #[inline(always)]
    unsafe fn splat_pair(pair: u32) -> Self::Pairs {
        let (low, high) = (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000));
        // SAFETY: the caller's instruction set.
        unsafe { (flush_input_256(_mm256_set1_ps(low)), flush_input_256(_mm256_set1_ps(high))) }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> Self::Pairs {
        // SAFETY: the caller's pointer is valid for a register.
        unsafe { (flush_input_256(Self::low(from)), flush_input_256(Self::high(from))) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m256, x: Self::Pairs, w: Self::Pairs) -> __m256 {
        // SAFETY: the caller's instruction set.
        unsafe { fma_flush_256(x.0, w.0, fma_flush_256(x.1, w.1, acc)) }
    }
    #[inline(always)]
    unsafe fn prefetch(line: *const u32) {
        // SAFETY: asking for memory reads none.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
}

/// A zero of its sign for a subnormal.
#[inline(always)]
unsafe fn flush_input_512(x: __m512) -> __m512 {
    // SAFETY: the caller's instruction set.
    unsafe {
        let size = _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(MAGNITUDE)));
        let tiny = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(size, _mm512_set1_ps(f32::MIN_POSITIVE));
        _mm512_mask_and_ps(x, tiny, x, _mm512_castsi512_ps(_mm512_set1_epi32(SIGN)))
    }
}

/// `fma_flush` of `simd`.
#[inline(always)]
unsafe fn fma_flush_512(a: __m512, b: __m512, c: __m512) -> __m512 {
    // SAFETY: the caller's instruction set.
    unsafe {
        let magnitude = _mm512_castsi512_ps(_mm512_set1_epi32(MAGNITUDE));
        let smallest = _mm512_set1_ps(f32::MIN_POSITIVE);
        let sum = _mm512_fmadd_ps(a, b, c);
        let small = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(_mm512_and_ps(sum, magnitude), smallest);
        if small == 0 {
            return sum;
        }
        let scale = _mm512_set1_ps(SCALE);
        let scaled = _mm512_fmadd_ps(_mm512_mul_ps(a, scale), b, _mm512_mul_ps(c, scale));
        let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_and_ps(scaled, magnitude), _mm512_mul_ps(smallest, scale));
        _mm512_mask_and_ps(sum, small & below, sum, _mm512_castsi512_ps(_mm512_set1_epi32(SIGN)))
    }
}

/// A pair's elements in all lanes.
#[inline(always)]
unsafe fn splat_pair_512(pair: u32) -> (__m512, __m512) {
    let (low, high) = (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000));
    // SAFETY: the caller's instruction set.
    unsafe { (flush_input_512(_mm512_set1_ps(low)), flush_input_512(_mm512_set1_ps(high))) }
}

/// The elements of 16 pairs.
#[inline(always)]
unsafe fn load_pairs_512(from: *const u32) -> (__m512, __m512) {
    // SAFETY: the caller's pointer is valid for a register.
    unsafe { (flush_input_512(Avx512::low(from)), flush_input_512(Avx512::high(from))) }
}

/// `dot` of `Avx512`.
#[inline(always)]
unsafe fn dot_512(acc: __m512, x: (__m512, __m512), w: (__m512, __m512)) -> __m512 {
    // SAFETY: the caller's instruction set.
    unsafe { fma_flush_512(x.0, w.0, fma_flush_512(x.1, w.1, acc)) }
}

/// A pair in all lanes.
#[inline(always)]
unsafe fn splat_pair_bf16(pair: u32) -> __m512bh {
    // SAFETY: the caller's instruction set; registers of 512 bits.
    unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(f32::from_bits(pair))) }
}

/// 16 pairs.
#[inline(always)]
unsafe fn load_pairs_bf16(from: *const u32) -> __m512bh {
    // SAFETY: the caller's pointer is valid for a register; registers of 512 bits.
    unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_loadu_ps(from.cast())) }
}

/// An implementation with 16 lanes, whose `dot` and its operands are given.
macro_rules! avx512 {
    ($name:ident, $pairs:ty, $splat_pair:path, $load_pairs:path, $dot:path) => {
        impl Simd for $name {
            type Reg = __m512;
            type Pairs = $pairs;
            const LANES: usize = 16;

            #[inline(always)]
            unsafe fn zero() -> __m512 {
                // SAFETY: the caller's instruction set.
                unsafe { _mm512_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn splat(x: f32) -> __m512 {
                // SAFETY: the caller's instruction set.
                unsafe { _mm512_set1_ps(x) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> __m512 {
                // SAFETY: the caller's pointer is valid for a register.
                unsafe { _mm512_loadu_ps(from) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut f32, x: __m512) {
                // SAFETY: the caller's pointer is valid for a register.
                unsafe { _mm512_storeu_ps(to, x) }
            }
            #[inline(always)]
            unsafe fn add(a: __m512, b: __m512) -> __m512 {
                // SAFETY: the caller's instruction set.
                unsafe { _mm512_add_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: __m512, b: __m512) -> __m512 {
                // SAFETY: the caller's instruction set.
                unsafe { _mm512_mul_ps(a, b) }
            }
            #[inline(always)]
            unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
                // SAFETY: the caller's instruction set.
                unsafe { _mm512_fmadd_ps(a, b, c) }
            }
            #[inline(always)]
            unsafe fn low(from: *const u32) -> __m512 {
                // SAFETY: the caller's pointer is valid for a register.
                unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(from.cast()))) }
            }
            #[inline(always)]
            unsafe fn high(from: *const u32) -> __m512 {
                // SAFETY: the caller's pointer is valid for a register, and aligned like one.
                unsafe {
                    _mm512_castsi512_ps(_mm512_and_si512(
                        from.cast::<__m512i>().read_volatile(),
                        _mm512_set1_epi32(HIGH),
                    ))
                }
            }
            #[inline(always)]
            unsafe fn splat_pair(pair: u32) -> $pairs {
                // SAFETY: the caller's instruction set.
                unsafe { $splat_pair(pair) }
            }
            #[inline(always)]
            unsafe fn load_pairs(from: *const u32) -> $pairs {
                // SAFETY: the caller's pointer is valid for a register.
                unsafe { $load_pairs(from) }
            }
            #[inline(always)]
            unsafe fn dot(acc: __m512, x: $pairs, w: $pairs) -> __m512 {
                // SAFETY: the caller's instruction set.
                unsafe { $dot(acc, x, w) }
            }
            #[inline(always)]
            unsafe fn prefetch(line: *const u32) {
                // SAFETY: asking for memory reads none.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
            }
        }
    };
}

avx512!(Avx512, (__m512, __m512), splat_pair_512, load_pairs_512, dot_512);
avx512!(Avx512Bf16, __m512bh, splat_pair_bf16, load_pairs_bf16, _mm512_dpbf16_ps);
