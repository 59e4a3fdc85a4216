//! Registers of f32, one implementation for each instruction set: what the kernels of products are written in.
//!
//! `dot` is AMD's VDPBF16PS, measured on Zen 4: inputs that are subnormal count as zeros of their sign; the later (upper)
//! elements of the pairs are multiplied and added first, then the earlier ones, each by a fused multiply-add that rounds to
//! nearest even and gives a zero of its sign where the result, rounded to 24 bits of unbounded exponent, is below 2^-126.
//! Where the instruction is missing, the same bits come from fused multiply-adds.

#![expect(clippy::inline_always, reason = "an intrinsic that is not inlined into its kernel costs a call")]

/// A register of `LANES` f32, and what one processor can do with it.
///
/// # Safety
/// Every method needs the instruction set of its implementor; pointers must be valid for a whole register, and those to
/// words (not those to f32) aligned like one.
pub(super) trait Simd {
    /// The register.
    type Reg: Copy;
    /// A register of pairs of bf16 as `dot` takes it.
    type Pairs: Copy;
    /// Elements of a register.
    const LANES: usize;

    unsafe fn zero() -> Self::Reg;
    unsafe fn splat(x: f32) -> Self::Reg;
    unsafe fn load(from: *const f32) -> Self::Reg;
    unsafe fn store(to: *mut f32, x: Self::Reg);
    unsafe fn add(a: Self::Reg, b: Self::Reg) -> Self::Reg;
    unsafe fn mul(a: Self::Reg, b: Self::Reg) -> Self::Reg;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::Reg, b: Self::Reg, c: Self::Reg) -> Self::Reg;
    /// The earlier elements of pairs of bf16.
    unsafe fn low(from: *const u32) -> Self::Reg;
    /// The later ones. Reads again what `low` read: kept, it would take registers that a kernel of 6 rows does not have.
    unsafe fn high(from: *const u32) -> Self::Reg;
    unsafe fn splat_pair(pair: u32) -> Self::Pairs;
    unsafe fn load_pairs(from: *const u32) -> Self::Pairs;
    /// See the module; `acc` has no subnormals.
    unsafe fn dot(acc: Self::Reg, x: Self::Pairs, w: Self::Pairs) -> Self::Reg;
    /// Asks for a line, which need not exist, for the second-level cache.
    unsafe fn prefetch(line: *const u32);
}

/// Without intrinsics: the reference of the others.
pub(super) struct Scalar;

const SCALAR_LANES: usize = 16;
/// The exponent's bits and the fraction's, of a pair's elements and of an f32.
const MAGNITUDE: u32 = 0x7fff_ffff;
const SIGN: u32 = 0x8000_0000;
const SMALLEST_NORMAL: u32 = 0x0080_0000;
/// 2^64.
pub(super) const SCALE: f32 = f32::from_bits((127 + 64) << 23);

/// A zero of its sign for a subnormal.
fn flush_input(bits: u32) -> f32 {
    f32::from_bits(if bits & MAGNITUDE < SMALLEST_NORMAL { bits & SIGN } else { bits })
}

/// `a * b + c`, or a zero of its sign where that is tiny.
fn fma_flush(a: f32, b: f32, c: f32) -> f32 {
    let sum = a.mul_add(b, c);
    let bits = sum.to_bits();
    match (bits & MAGNITUDE).cmp(&SMALLEST_NORMAL) {
        std::cmp::Ordering::Greater => sum,
        std::cmp::Ordering::Less => f32::from_bits(bits & SIGN),
        std::cmp::Ordering::Equal => {
            // Rounded up to it from below? Scaled by 2^64 there is no subnormal, so that the rounding is to 24 bits. No
            // overflow: the sum is a multiple of 2^(exponent of a + exponent of b - 14), so `a` and `c` are below 2^16.
            let scaled = (a * SCALE).mul_add(b, c * SCALE);
            if scaled.abs() < f32::MIN_POSITIVE * SCALE { f32::from_bits(bits & SIGN) } else { sum }
        }
    }
}

impl Simd for Scalar {
    type Reg = [f32; SCALAR_LANES];
    type Pairs = [u32; SCALAR_LANES];
    const LANES: usize = SCALAR_LANES;

    #[inline(always)]
    unsafe fn zero() -> Self::Reg {
        [0.0; SCALAR_LANES]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::Reg {
        [x; SCALAR_LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Reg {
        // SAFETY: the caller's pointer is valid for a register; an array of f32 needs no more than its alignment.
        unsafe { from.cast::<Self::Reg>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::Reg) {
        // SAFETY: as in `load`.
        unsafe { to.cast::<Self::Reg>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::Reg, b: Self::Reg) -> Self::Reg {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::Reg, b: Self::Reg) -> Self::Reg {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::Reg, b: Self::Reg, c: Self::Reg) -> Self::Reg {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn low(from: *const u32) -> Self::Reg {
        // SAFETY: the caller's pointer is valid for a register.
        unsafe { Self::load_pairs(from) }.map(|pair| f32::from_bits(pair << 16))
    }
    #[inline(always)]
    unsafe fn high(from: *const u32) -> Self::Reg {
        // SAFETY: the caller's pointer is valid for a register.
        unsafe { Self::load_pairs(from) }.map(|pair| f32::from_bits(pair & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn splat_pair(pair: u32) -> Self::Pairs {
        [pair; SCALAR_LANES]
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> Self::Pairs {
        // SAFETY: the caller's pointer is valid for a register.
        unsafe { from.cast::<Self::Pairs>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::Reg, x: Self::Pairs, w: Self::Pairs) -> Self::Reg {
        std::array::from_fn(|i| {
            let later = fma_flush(flush_input(x[i] & 0xffff_0000), flush_input(w[i] & 0xffff_0000), acc[i]);
            fma_flush(flush_input(x[i] << 16), flush_input(w[i] << 16), later)
        })
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u32) {}
}
