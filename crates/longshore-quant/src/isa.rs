//! Which instruction set the loops over values are compiled for, found at run time.
//!
//! Loops that compilers vectorize well are written once, as a plain `#[inline(always)]` body, and compiled once per
//! instruction set by `per_isa!`. The bits are the same on all of them: every operation is exactly specified by IEEE 754
//! or works on integers, and nothing is fused or reordered.

/// An instruction set, the widest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// Whatever the target has.
    Scalar,
    /// AVX2.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, on top of AVX2.
    Avx512,
}

impl Isa {
    /// The widest one that this processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") {
                let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
                return if avx512 { Self::Avx512 } else { Self::Avx2 };
            }
        }
        Self::Scalar
    }

    /// Every instruction set that this processor can run.
    #[cfg(test)]
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        let widest = Self::detect();
        [Self::Scalar, Self::Avx2, Self::Avx512].into_iter().filter(move |&isa| isa <= widest)
    }
}

/// Something to compare instruction sets with: eight rows of 96 values of `element`, each row of another magnitude.
#[cfg(test)]
pub(crate) fn noise(element: crate::Element) -> Vec<f32> {
    let unit = |i: u32| i.wrapping_mul(2_654_435_761).wrapping_add(i.wrapping_mul(i)) as f32 / 2f32.powi(31) - 1.0;
    let magnitude = |i: u32| 2f32.powi((i / 96 * 3).cast_signed() - 12);
    (0..8 * 96).map(|i| element.round(unit(i) * magnitude(i))).collect()
}

/// Defines `fn name[generics][names](isa: Isa, args) -> result` that runs `body::<names>(args)` compiled for `isa`.
/// `body` must be `#[inline(always)]`, and `isa` must be one that [`Isa::available`] gives.
macro_rules! per_isa {
    ($vis:vis fn $name:ident[$($decl:tt)*][$($used:tt)*]($($arg:ident: $ty:ty),* $(,)?) $(-> $result:ty)? = $body:ident;) => {
        $vis fn $name<$($decl)*>(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::isa::Isa;
                #[target_feature(enable = "avx2")]
                fn avx2<$($decl)*>($($arg: $ty),*) $(-> $result)? {
                    $body::<$($used)*>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
                fn avx512<$($decl)*>($($arg: $ty),*) $(-> $result)? {
                    $body::<$($used)*>($($arg),*)
                }
                match isa {
                    Isa::Scalar => {}
                    // SAFETY: `Isa::detect` found these features on this processor.
                    #[allow(unsafe_code, reason = "the features are there")]
                    Isa::Avx2 => return unsafe { avx2::<$($used)*>($($arg),*) },
                    // SAFETY: as above.
                    #[allow(unsafe_code, reason = "the features are there")]
                    Isa::Avx512 => return unsafe { avx512::<$($used)*>($($arg),*) },
                }
            }
            let _ = isa;
            $body::<$($used)*>($($arg),*)
        }
    };
}
pub(crate) use per_isa;
