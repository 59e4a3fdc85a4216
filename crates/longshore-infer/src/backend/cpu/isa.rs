//! Which instruction set the kernels use, found at run time.
//!
//! Kernels that compilers vectorize well are written once, as a plain `#[inline(always)]` body, and compiled once per
//! instruction set by `per_isa!`. The bits are the same on all of them: fused multiply-adds are exactly specified, and
//! the bodies fix the order of every sum. What a compiler does not find (matrix products) has intrinsics in `matrix/`.

/// An instruction set, the widest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the target has; fused multiply-adds may be library calls.
    Scalar,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, on top of AVX2 and FMA.
    Avx512,
    /// The same with AVX-512 BF16.
    Avx512Bf16,
}

impl Isa {
    /// The widest one that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma");
            let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            if avx512 {
                return if has!("avx512bf16") { Self::Avx512Bf16 } else { Self::Avx512 };
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Scalar
    }

    /// Every instruction set that this processor can run, [`Isa::Scalar`] first.
    pub fn available() -> impl Iterator<Item = Self> {
        let widest = Self::detect();
        [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16].into_iter().filter(move |&isa| isa <= widest)
    }
}

/// Defines `fn name(isa: Isa, args)` that runs `body(args)` compiled for `isa`. `body` must be `#[inline(always)]`, and
/// `isa` must be one that [`Isa::available`] gives.
macro_rules! per_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:path;) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments, reason = "one argument for each buffer and size of the formula")]
        $vis fn $name(isa: $crate::backend::cpu::isa::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::backend::cpu::isa::Isa;
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "those of the body")]
                fn avx2($($arg: $ty),*) {
                    $body($($arg),*);
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "those of the body")]
                fn avx512($($arg: $ty),*) {
                    $body($($arg),*);
                }
                match isa {
                    Isa::Scalar => {}
                    // SAFETY: `Isa::detect` found these features on this processor.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx512 | Isa::Avx512Bf16 => return unsafe { avx512($($arg),*) },
                }
            }
            let _ = isa;
            $body($($arg),*);
        }
    };
}
pub(crate) use per_isa;
