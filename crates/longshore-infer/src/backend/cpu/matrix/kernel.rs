//! The innermost loops: a few rows of activations times one panel, over one block of columns.

#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use super::simd::{Scalar, Simd};
#[cfg(target_arch = "x86_64")]
use super::simd_x86::{Avx2, Avx512, Avx512Bf16};
use super::{Isa, LANES, Line, PANEL, WeightType};
use half::bf16;

/// Most rows of activations at once: with 4 registers of weights each, 24 of the 32 registers of AVX-512 are sums.
pub(super) const MAX_ROWS: usize = 6;
/// Lines of a step of a panel.
pub(super) const STEP_LINES: usize = PANEL / LANES;
/// Lines ahead that are asked for where a panel is read once, straight from memory.
pub(super) const DISTANCE: usize = 96;

/// What a kernel asks memory for while it works. Measured on Zen 4: without asking, or asking for the first-level cache,
/// registers of 512 bits read 15 to 20 % slower than the memory allows.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    /// Nothing.
    No,
    /// The panel that it reads, some lines later.
    Same,
    /// As much as half of its panel's part, from here on.
    Later(*const Line),
}

/// What a kernel works on.
pub(super) struct Tile<'a, X> {
    /// Activations: rows at distances of `x_stride`, of each the block's `cols`.
    pub(super) x: &'a [X],
    pub(super) x_stride: usize,
    /// The block's columns.
    pub(super) cols: usize,
    /// The block's part of the panel, and its type.
    pub(super) w: &'a [Line],
    pub(super) weight_type: WeightType,
    /// Results: rows at distances of `out_stride`, of each `width` (at most 64).
    pub(super) out: Out,
    pub(super) out_stride: usize,
    pub(super) width: usize,
    pub(super) finish: Finish<'a>,
    pub(super) ahead: Ahead,
}

/// What becomes of the sums of a block.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    /// Whether this is the first block, which overwrites the results.
    pub(super) first: bool,
    /// Scales of this block's sums.
    pub(super) block_scales: Option<&'a [f32; PANEL]>,
    /// Scales of the results, after the last block.
    pub(super) row_scales: Option<&'a [f32; PANEL]>,
}

/// Memory that a kernel may write, and its size.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub(super) to: *mut f32,
    pub(super) len: usize,
}

/// A type of activations with a type of weights.
pub(super) trait Kind {
    /// An activation.
    type X: Copy;
    /// Columns of a step.
    const STEP: usize;

    /// Adds one step to the sums.
    ///
    /// # Safety
    /// As for [`Simd`]; `x` is valid for `STEP` elements at each of `ROWS` multiples of `stride`, `w` for `REGS` registers,
    /// aligned like one.
    unsafe fn step<S: Simd, const ROWS: usize, const REGS: usize>(
        acc: &mut [[S::Reg; REGS]; ROWS],
        x: *const Self::X,
        stride: usize,
        w: *const u32,
    );

    /// The same for one last column where a step has two.
    ///
    /// # Safety
    /// As for `step`, with one element of each row.
    unsafe fn last<S: Simd, const ROWS: usize, const REGS: usize>(
        acc: &mut [[S::Reg; REGS]; ROWS],
        x: *const Self::X,
        stride: usize,
        w: *const u32,
    );
}

/// f32 activations, f32 weights.
pub(super) struct F32F32;
/// f32 activations, bf16 weights.
pub(super) struct F32Bf16;
/// bf16 activations, bf16 weights.
pub(super) struct Bf16Bf16;

/// An array of `REGS` registers from `$w` on by `$load`. A macro, because closures do not inherit the instruction set of the
/// kernel, and calls in place of intrinsics are a hundred times slower.
macro_rules! registers {
    ($load:path, $w:expr) => {{
        let mut regs = [$load($w); REGS];
        for (i, reg) in regs.iter_mut().enumerate().skip(1) {
            *reg = $load($w.add(i * S::LANES));
        }
        regs
    }};
}

/// One column: `acc += x * w` for registers of weights.
///
/// # Safety
/// As for [`Kind::step`], with one element of each row.
#[inline(always)]
unsafe fn column<S: Simd, const ROWS: usize, const REGS: usize>(
    acc: &mut [[S::Reg; REGS]; ROWS],
    x: *const f32,
    stride: usize,
    w: [S::Reg; REGS],
) {
    for (r, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's `x` has an element at each of `ROWS` multiples of `stride`.
        let x = unsafe { S::splat(*x.add(r * stride)) };
        for (acc, w) in acc.iter_mut().zip(w) {
            // SAFETY: the caller vouches for the instruction set.
            *acc = unsafe { S::fma(x, w, *acc) };
        }
    }
}

impl Kind for F32F32 {
    type X = f32;
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize, const REGS: usize>(
        acc: &mut [[S::Reg; REGS]; ROWS],
        x: *const f32,
        stride: usize,
        w: *const u32,
    ) {
        // SAFETY: the caller's `w` has `REGS` registers, and its `x` an element of each row.
        unsafe { column::<S, ROWS, REGS>(acc, x, stride, registers!(S::load, w.cast::<f32>())) }
    }

    #[inline(always)]
    unsafe fn last<S: Simd, const ROWS: usize, const REGS: usize>(
        _: &mut [[S::Reg; REGS]; ROWS],
        _: *const f32,
        _: usize,
        _: *const u32,
    ) {
    }
}

impl Kind for F32Bf16 {
    type X = f32;
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize, const REGS: usize>(
        acc: &mut [[S::Reg; REGS]; ROWS],
        x: *const f32,
        stride: usize,
        w: *const u32,
    ) {
        // SAFETY: the caller's `w` has `REGS` registers, and its `x` two elements of each row.
        unsafe {
            column::<S, ROWS, REGS>(acc, x, stride, registers!(S::low, w));
            column::<S, ROWS, REGS>(acc, x.add(1), stride, registers!(S::high, w));
        }
    }

    #[inline(always)]
    unsafe fn last<S: Simd, const ROWS: usize, const REGS: usize>(
        acc: &mut [[S::Reg; REGS]; ROWS],
        x: *const f32,
        stride: usize,
        w: *const u32,
    ) {
        // SAFETY: the caller's `w` has `REGS` registers, and its `x` an element of each row.
        unsafe { column::<S, ROWS, REGS>(acc, x, stride, registers!(S::low, w)) }
    }
}

/// One step of pairs, one of each row.
///
/// # Safety
/// As for [`Kind::step`].
#[inline(always)]
unsafe fn pairs<S: Simd, const ROWS: usize, const REGS: usize>(
    acc: &mut [[S::Reg; REGS]; ROWS],
    w: *const u32,
    x: [u32; ROWS],
) {
    // SAFETY: the caller's `w` has `REGS` registers.
    let w = unsafe { registers!(S::load_pairs, w) };
    for (acc, x) in acc.iter_mut().zip(x) {
        // SAFETY: the caller vouches for the instruction set.
        let x = unsafe { S::splat_pair(x) };
        for (acc, w) in acc.iter_mut().zip(w) {
            // SAFETY: as above; sums begin with zero, and `dot` gives no subnormals.
            *acc = unsafe { S::dot(*acc, x, w) };
        }
    }
}

impl Kind for Bf16Bf16 {
    type X = bf16;
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize, const REGS: usize>(
        acc: &mut [[S::Reg; REGS]; ROWS],
        x: *const bf16,
        stride: usize,
        w: *const u32,
    ) {
        let mut rows = [0; ROWS];
        for (r, pair) in rows.iter_mut().enumerate() {
            // SAFETY: the caller's `x` has two elements of each row, which are a pair of any alignment.
            *pair = u32::from_le(unsafe { x.add(r * stride).cast::<u32>().read_unaligned() });
        }
        // SAFETY: the caller's `w` has `REGS` registers.
        unsafe { pairs::<S, ROWS, REGS>(acc, w, rows) }
    }

    #[inline(always)]
    unsafe fn last<S: Simd, const ROWS: usize, const REGS: usize>(
        acc: &mut [[S::Reg; REGS]; ROWS],
        x: *const bf16,
        stride: usize,
        w: *const u32,
    ) {
        let mut rows = [0; ROWS];
        for (r, pair) in rows.iter_mut().enumerate() {
            // SAFETY: the caller's `x` has an element of each row.
            *pair = u32::from(unsafe { *x.add(r * stride) }.to_bits());
        }
        // SAFETY: the caller's `w` has `REGS` registers.
        unsafe { pairs::<S, ROWS, REGS>(acc, w, rows) }
    }
}

/// The sums of `ROWS` rows and of `REGS` registers of rows of `W` at a time.
///
/// # Safety
/// As for [`Simd`]; `tile.out` is valid for writes, and nobody else uses the part that the tile names.
#[inline(always)]
unsafe fn body<S: Simd, K: Kind, const ROWS: usize, const REGS: usize>(tile: &Tile<'_, K::X>) {
    let steps = tile.cols.div_ceil(K::STEP);
    assert!(tile.x.len() >= (ROWS - 1) * tile.x_stride + tile.cols, "activations of the tile");
    assert!(tile.w.len() == steps * STEP_LINES, "weights of the tile");
    assert!(tile.width <= PANEL && tile.out.len >= (ROWS - 1) * tile.out_stride + tile.width, "results of the tile");
    let wide = REGS * S::LANES;
    for column in (0..tile.width).step_by(wide) {
        // The panel passes once for each `column`, and what it needs is asked for once.
        let ahead = if column == 0 { tile.ahead } else { Ahead::No };
        let later = match ahead {
            Ahead::Later(later) => later.cast(),
            Ahead::Same => tile.w.as_ptr().wrapping_add(DISTANCE).cast(),
            Ahead::No => tile.w.as_ptr().cast(),
        };
        // SAFETY: the lengths are asserted; registers from `column` on end within a step's words and are aligned, since their
        // width divides `PANEL` and `column`, and lines are aligned.
        let acc = unsafe {
            match ahead {
                Ahead::No => sums::<S, K, ROWS, REGS, 0>(tile, column, later),
                Ahead::Later(_) => sums::<S, K, ROWS, REGS, 2>(tile, column, later),
                Ahead::Same => sums::<S, K, ROWS, REGS, STEP_LINES>(tile, column, later),
            }
        };
        let width = (tile.width - column).min(wide);
        for (r, acc) in acc.iter().enumerate() {
            let to = tile.out.to.wrapping_add(r * tile.out_stride + column);
            // SAFETY: `width` results from here are within `tile.out`, as asserted.
            unsafe { finish::<S, REGS>(acc, to, column, width, tile.finish) };
        }
    }
}

/// The sums of the registers of weights from `column` on, while it asks for `ASK` lines from `later` at each step.
///
/// # Safety
/// As for [`Simd`]; the lengths are those that `body` asserts, and each step has `REGS` registers from `column` on.
#[inline(always)]
unsafe fn sums<S: Simd, K: Kind, const ROWS: usize, const REGS: usize, const ASK: usize>(
    tile: &Tile<'_, K::X>,
    column: usize,
    mut later: *const u32,
) -> [[S::Reg; REGS]; ROWS] {
    // Returned, not lent: sums that are lent are stored at each step.
    // SAFETY: the caller vouches for the instruction set.
    let mut acc = [[unsafe { S::zero() }; REGS]; ROWS];
    let mut w = tile.w.as_ptr().cast::<u32>().wrapping_add(column);
    let mut x = tile.x.as_ptr();
    for _ in 0..tile.cols / K::STEP {
        for _ in 0..ASK {
            // SAFETY: asking reads nothing.
            unsafe { S::prefetch(later) };
            later = later.wrapping_add(LANES);
        }
        // SAFETY: this step's columns are in each of the rows and in the panel.
        unsafe { K::step::<S, ROWS, REGS>(&mut acc, x, tile.x_stride, w) };
        x = x.wrapping_add(K::STEP);
        w = w.wrapping_add(PANEL);
    }
    if !tile.cols.is_multiple_of(K::STEP) {
        // SAFETY: one column is left, and the panel has a step for it.
        unsafe { K::last::<S, ROWS, REGS>(&mut acc, x, tile.x_stride, w) };
    }
    acc
}

/// Writes the first `width` sums, which are those from row `column` of the panel on, or adds them to what is there.
///
/// # Safety
/// As for [`Simd`]; `to` is valid for `width` results, and the panel has `REGS` registers from `column` on.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd, const REGS: usize>(
    acc: &[S::Reg; REGS],
    to: *mut f32,
    column: usize,
    width: usize,
    how: Finish<'_>,
) {
    if width == REGS * S::LANES {
        for (i, &acc) in acc.iter().enumerate() {
            let at = column + i * S::LANES;
            // SAFETY: all the registers fit `width`, and scales are as many as a panel's rows.
            unsafe {
                let to = to.add(i * S::LANES);
                let mut sum = match how.block_scales {
                    None if how.first => acc,
                    None => S::add(S::load(to), acc),
                    Some(scales) if how.first => S::mul(acc, S::load(scales.as_ptr().add(at))),
                    Some(scales) => S::fma(acc, S::load(scales.as_ptr().add(at)), S::load(to)),
                };
                if let Some(scales) = how.row_scales {
                    sum = S::mul(sum, S::load(scales.as_ptr().add(at)));
                }
                S::store(to, sum);
            }
        }
        return;
    }
    let mut sums = [0.0; PANEL];
    for (sums, &acc) in sums.chunks_exact_mut(S::LANES).zip(acc) {
        // SAFETY: the chunk is as long as a register.
        unsafe { S::store(sums.as_mut_ptr(), acc) };
    }
    for (i, &sum) in sums[..width].iter().enumerate() {
        // SAFETY: `i` is below `width`.
        let to = unsafe { &mut *to.add(i) };
        let sum = match how.block_scales {
            None if how.first => sum,
            None => *to + sum,
            Some(scales) if how.first => sum * scales[column + i],
            Some(scales) => sum.mul_add(scales[column + i], *to),
        };
        *to = how.row_scales.map_or(sum, |scales| sum * scales[column + i]);
    }
}

/// A kernel for some number of rows.
///
/// Calling one needs its instruction set, and that `tile.out` is valid and not used by others.
pub(super) type Kernel<X> = unsafe fn(&Tile<'_, X>);

/// Defines a function that gives the kernels for 1 to [`MAX_ROWS`] rows.
macro_rules! kernels {
    ($name:ident, $simd:ty, $regs:literal $(, $feature:literal)?) => {
        fn $name<K: Kind>() -> [Kernel<K::X>; MAX_ROWS] {
            /// # Safety
            /// As for `body`.
            $(#[target_feature(enable = $feature)])?
            unsafe fn rows<K: Kind, const ROWS: usize>(tile: &Tile<'_, K::X>) {
                // SAFETY: the caller's.
                unsafe { body::<$simd, K, ROWS, $regs>(tile) }
            }
            [rows::<K, 1>, rows::<K, 2>, rows::<K, 3>, rows::<K, 4>, rows::<K, 5>, rows::<K, 6>]
        }
    };
}

kernels!(scalar, Scalar, 1);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, Avx2, 2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
kernels!(avx512, Avx512, 4, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
#[cfg(target_arch = "x86_64")]
kernels!(avx512_bf16, Avx512Bf16, 4, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,avx512bf16");

/// The kernels for 1 to [`MAX_ROWS`] rows on `isa`, which this processor must have when they are called.
pub(super) fn kernels<K: Kind>(isa: Isa) -> [Kernel<K::X>; MAX_ROWS] {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Scalar => scalar::<K>(),
        Isa::Avx2 => avx2::<K>(),
        Isa::Avx512 => avx512::<K>(),
        Isa::Avx512Bf16 => avx512_bf16::<K>(),
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        scalar::<K>()
    }
}
