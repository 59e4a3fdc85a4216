//! Quantized weights widened in registers of AVX-512 (with VBMI): for products of a few rows straight into their sums, for
//! many rows into lines that the other kernels read.

#![expect(clippy::inline_always, reason = "an intrinsic that is not inlined into its kernel costs a call")]

use super::codes::{Codes, GroupScale, e2m1, e4m3, int4, int8};
use super::kernel::{Ahead, DISTANCE, Kernel, STEP_LINES, Tile, finish};
use super::simd_x86::Avx512;
use super::{Isa, LANES, Line, PANEL, WeightType};
use half::bf16;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm512_abs_epi8, _mm512_and_si512,
    _mm512_broadcast_i32x4, _mm512_castsi512_ps, _mm512_cmpeq_epi8_mask, _mm512_dpbf16_ps, _mm512_fmadd_ps,
    _mm512_loadu_si512, _mm512_mask_blend_epi16, _mm512_mask_mov_epi8, _mm512_mask_mov_epi16,
    _mm512_mask_permutexvar_epi16, _mm512_permutex2var_epi8, _mm512_permutexvar_epi16, _mm512_set1_epi8,
    _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_epi8, _mm512_slli_epi16,
    _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_si512, _mm512_sub_epi16, _mm512_subs_epu16,
    _mm512_ternarylogic_epi32, _mm512_test_epi16_mask, _mm512_testn_epi16_mask, _mm512_unpackhi_epi8,
    _mm512_unpacklo_epi8,
};

/// Most rows of activations whose sums leave registers for widening.
pub(super) const FUSED_ROWS: usize = 4;

/// A pair of columns of a panel: 64 pairs of bf16.
type Pairs = [__m512i; STEP_LINES];

/// What takes the pairs of columns, one after the other.
trait Sink {
    /// # Safety
    /// Needs AVX-512; there is room or activations for one more.
    unsafe fn pair(&mut self, pairs: Pairs);
    /// A pair of which only the earlier column counts.
    ///
    /// # Safety
    /// As for `pair`.
    unsafe fn last(&mut self, pairs: Pairs);
}

/// A type of quantized weights.
///
/// # Safety
/// Every method needs AVX-512 BW and VBMI.
trait Format {
    /// Columns and lines that are widened together.
    const COLS: usize;
    const LINES: usize;
    /// Whether units begin with a line of scales.
    const SCALED: bool;
    type Scales: Copy;

    /// `head` is valid for a line where there are scales.
    unsafe fn scales(head: *const u8) -> Self::Scales;
    /// Widens `LINES` lines into `COLS / 2` pairs.
    unsafe fn widen<K: Sink>(lines: *const __m512i, scales: &Self::Scales, sink: &mut K);
}

/// The first `cols` columns of what is given.
struct First<'a, K> {
    sink: &'a mut K,
    cols: usize,
}

impl<K: Sink> Sink for First<'_, K> {
    #[inline(always)]
    unsafe fn pair(&mut self, pairs: Pairs) {
        // SAFETY: the caller's; there is room for as many as `cols`.
        unsafe {
            match self.cols {
                0 => {}
                1 => self.sink.last(pairs),
                _ => self.sink.pair(pairs),
            }
        }
        self.cols = self.cols.saturating_sub(2);
    }
    #[inline(always)]
    unsafe fn last(&mut self, pairs: Pairs) {
        // SAFETY: the caller's.
        unsafe { self.pair(pairs) }
    }
}

/// Gives all pairs of `cols` columns to `sink`, and asks for what follows where `ASK`.
///
/// # Safety
/// As for [`Format`] and `sink`; `lines` are whole units of `weight_type`, whose format is `F`, with `cols` columns.
#[inline(always)]
unsafe fn walk<F: Format, K: Sink, const ASK: bool>(
    weight_type: WeightType,
    lines: &[Line],
    cols: usize,
    sink: &mut K,
) {
    let unit_cols = if F::SCALED { weight_type.unit().0 } else { cols.max(1) };
    let needed = if F::SCALED { cols.div_ceil(unit_cols) } else { 0 } + cols.div_ceil(F::COLS) * F::LINES;
    assert!(lines.len() >= needed, "lines of the columns");
    let mut at = lines.as_ptr();
    let mut left = cols;
    while left > 0 {
        // SAFETY: a unit of `left` columns at most begins here; where there are no scales nothing is read.
        let scales = unsafe { F::scales(at.cast()) };
        if F::SCALED {
            if ASK {
                // SAFETY: asking reads nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(DISTANCE).cast()) };
            }
            at = at.wrapping_add(1);
        }
        let cols = left.min(unit_cols);
        for _ in 0..cols / F::COLS {
            for line in 0..if ASK { F::LINES } else { 0 } {
                // SAFETY: asking reads nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(DISTANCE + line).cast()) };
            }
            // SAFETY: the lines are there, as asserted, and `sink` takes all columns.
            unsafe { F::widen(at.cast(), &scales, sink) };
            at = at.wrapping_add(F::LINES);
        }
        if !cols.is_multiple_of(F::COLS) {
            // SAFETY: as above.
            unsafe { F::widen(at.cast(), &scales, &mut First { sink, cols: cols % F::COLS }) };
        }
        left -= cols;
    }
}

/// A table of 64 bytes.
#[repr(align(64))]
struct Table<T, const N: usize>([T; N]);

impl<T, const N: usize> Table<T, N> {
    /// The `i`-th register.
    ///
    /// # Safety
    /// Needs AVX-512.
    #[inline(always)]
    unsafe fn register(&self, i: usize) -> __m512i {
        let from = &self.0[i * 64 / size_of::<T>()..][..64 / size_of::<T>()];
        // SAFETY: these are 64 bytes.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
}

/// Byte `BYTE` of bf16 by the lower 7 bits of a code.
macro_rules! byte_table {
    ($of:path, $byte:literal) => {{
        let mut table = [0; 128];
        let mut code = 0;
        while code < 128 {
            table[code as usize] = $of(code).to_le_bytes()[$byte];
            code += 1;
        }
        Table(table)
    }};
}
static E4M3_LOW: Table<u8, 128> = byte_table!(e4m3, 0);
static E4M3_HIGH: Table<u8, 128> = byte_table!(e4m3, 1);
const fn e4m3_raised(code: u8) -> u16 {
    raised(e4m3(code), HIGH_E8M0)
}
static E4M3_RAISED_HIGH: Table<u8, 128> = byte_table!(e4m3_raised, 1);
static INT8_LOW: Table<u8, 128> = byte_table!(int8, 0);
static INT8_HIGH: Table<u8, 128> = byte_table!(int8, 1);

/// 16-bit values by the lower 5 bits of an index.
macro_rules! word_table {
    (|$i:ident| $value:expr) => {{
        let mut table = [0_u16; 32];
        let mut $i: u8 = 0;
        while $i < 32 {
            table[$i as usize] = $value;
            $i += 1;
        }
        Table(table)
    }};
}
static INT4: Table<u16, 32> = word_table!(|i| int4(i & 15));
/// The exponent of weights before that of their scale is subtracted, saturating: so high that nothing but zero, of which the
/// bits are 0, and what has a scale of zero, of which [`ZERO_SCALE`] is subtracted, becomes zero.
const HIGH_E4M3: u16 = 137;
/// 120 above 127: it changes no lower byte.
const HIGH_E8M0: u16 = 247;
const ZERO_SCALE: u16 = 0xffff;

/// A bf16 with an exponent that is `high` in place of 127; zero is 0.
const fn raised(value: u16, high: u16) -> u16 {
    if value << 1 == 0 { 0 } else { value + ((high - 127) << 7) }
}

/// Signs and powers of two of E2M1.
static E2M1_POWER: Table<u16, 32> = word_table!(|i| raised(e2m1(i & 15) & 0xff80, HIGH_E4M3));
/// E2M1.
static E2M1_RAISED: Table<u16, 32> = word_table!(|i| raised(e2m1(i & 15), HIGH_E8M0));

/// 1.5 times the bf16 of an E4M3 number, which is exact.
const fn and_a_half(code: u8) -> u16 {
    ((f32::from_bits((e4m3(code) as u32) << 16) * 1.5).to_bits() >> 16) as u16
}
/// What is subtracted for a scale.
const fn below_high(scale: u16) -> u16 {
    if scale == 0 { ZERO_SCALE } else { (HIGH_E4M3 << 7).wrapping_sub(scale) }
}
/// That of E4M3 below 8; and of 1.5 times that.
static E4M3_SMALL: Table<u16, 32> = word_table!(|i| below_high(e4m3(i)));
static E4M3_SMALL_AND_A_HALF: Table<u16, 32> = word_table!(|i| below_high(and_a_half(i)));
/// What is between the bf16 of a larger one and of 1.5 times that, by the fraction.
static AND_A_HALF: Table<u16, 32> = word_table!(|i| and_a_half(0x38 | i & 7) - e4m3(0x38 | i & 7));
/// Each byte of a quarter's own four into both halves of a word.
static SPREAD: Table<u8, 64> = {
    let mut table = [0x80; 64];
    let mut i = 0;
    while i < 32 {
        table[2 * i] = (i / 2) as u8;
        i += 1;
    }
    Table(table)
};

/// Scales of 16 rows as 16-bit numbers, in both halves of each row's word.
///
/// # Safety
/// Needs AVX-512 BW; `from` is valid for 16 bytes.
#[inline(always)]
unsafe fn spread(from: *const u8) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(from.cast())), SPREAD.register(0)) }
}

/// 16 bits in all lanes.
///
/// # Safety
/// Needs AVX-512 BW.
#[inline(always)]
unsafe fn splat(x: u16) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_set1_epi16(x.cast_signed()) }
}

/// Interleaves the lower and the upper bytes of bf16.
macro_rules! interleave {
    ($bytes:path, $lines:expr) => {{
        let (a, b) = ($bytes($lines.read()), $bytes($lines.add(1).read()));
        [
            _mm512_unpacklo_epi8(a.0, a.1),
            _mm512_unpackhi_epi8(a.0, a.1),
            _mm512_unpacklo_epi8(b.0, b.1),
            _mm512_unpackhi_epi8(b.0, b.1),
        ]
    }};
}

/// Lower and upper bytes of bf16.
///
/// # Safety
/// Needs VBMI.
#[inline(always)]
unsafe fn e4m3_bytes(codes: __m512i) -> (__m512i, __m512i) {
    // SAFETY: the caller's.
    unsafe { e4m3_bytes_of(codes, &E4M3_HIGH) }
}

/// The same of [`E4M3_RAISED_HIGH`].
///
/// # Safety
/// Needs VBMI.
#[inline(always)]
unsafe fn e4m3_raised_bytes(codes: __m512i) -> (__m512i, __m512i) {
    // SAFETY: the caller's.
    unsafe { e4m3_bytes_of(codes, &E4M3_RAISED_HIGH) }
}

/// # Safety
/// Needs VBMI.
#[inline(always)]
unsafe fn e4m3_bytes_of(codes: __m512i, high: &Table<u8, 128>) -> (__m512i, __m512i) {
    // SAFETY: the caller's.
    unsafe {
        let low = _mm512_permutex2var_epi8(E4M3_LOW.register(0), codes, E4M3_LOW.register(1));
        let high = _mm512_permutex2var_epi8(high.register(0), codes, high.register(1));
        (low, _mm512_ternarylogic_epi32::<0xf8>(high, codes, _mm512_set1_epi8(i8::MIN)))
    }
}

/// Lower and upper bytes of bf16.
///
/// # Safety
/// Needs VBMI.
#[inline(always)]
unsafe fn int8_bytes(codes: __m512i) -> (__m512i, __m512i) {
    // SAFETY: the caller's.
    unsafe {
        let least = _mm512_set1_epi8(i8::MIN);
        let size = _mm512_abs_epi8(codes);
        let low = _mm512_permutex2var_epi8(INT8_LOW.register(0), size, INT8_LOW.register(1));
        let high = _mm512_permutex2var_epi8(INT8_HIGH.register(0), size, INT8_HIGH.register(1));
        let high = _mm512_ternarylogic_epi32::<0xf8>(high, codes, least);
        // -128 has no magnitude among 7 bits, and the lower byte of zero's.
        let minus_128 = _mm512_set1_epi8((int8(0x80) >> 8) as i8);
        (low, _mm512_mask_mov_epi8(high, _mm512_cmpeq_epi8_mask(codes, least), minus_128))
    }
}

/// Four pairs of 8 columns by `$pair($scales, index of the register, register)`, with the nibble in the lowest bits of each
/// half.
macro_rules! nibbles {
    ($lines:expr, $sink:expr, $pair:path, $scales:expr) => {{
        let v = [$lines.read(), $lines.add(1).read(), $lines.add(2).read(), $lines.add(3).read()];
        nibbles!(@ $sink, $pair, $scales, v);
        nibbles!(@ $sink, $pair, $scales, nibbles!(v, 4));
        nibbles!(@ $sink, $pair, $scales, nibbles!(v, 8));
        nibbles!(@ $sink, $pair, $scales, nibbles!(v, 12));
    }};
    ($v:ident, $shift:literal) => {
        [
            _mm512_srli_epi16::<$shift>($v[0]),
            _mm512_srli_epi16::<$shift>($v[1]),
            _mm512_srli_epi16::<$shift>($v[2]),
            _mm512_srli_epi16::<$shift>($v[3]),
        ]
    };
    (@ $sink:expr, $pair:path, $scales:expr, $v:expr) => {{
        let v = $v;
        $sink.pair([$pair($scales, 0, v[0]), $pair($scales, 1, v[1]), $pair($scales, 2, v[2]), $pair($scales, 3, v[3])]);
    }};
}

/// The scales of a panel's four times 16 rows.
macro_rules! four {
    ($scale:path, $head:ident) => {
        [$scale($head), $scale($head.add(LANES)), $scale($head.add(2 * LANES)), $scale($head.add(3 * LANES))]
    };
}

/// [`Codes::E4m3`] without scales among the codes.
struct E4m3;
/// [`Codes::Int8`].
struct Int8;
/// [`Codes::Int4`].
struct Int4;
/// [`Codes::E4m3`] with E8M0.
struct Mxfp8;
/// [`Codes::E2m1`] with E4M3.
struct E2m1E4m3;
/// [`Codes::E2m1`] with E8M0.
struct E2m1E8m0;

impl Format for E4m3 {
    const COLS: usize = 2;
    const LINES: usize = 2;
    const SCALED: bool = false;
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: *const u8) {}
    #[inline(always)]
    unsafe fn widen<K: Sink>(lines: *const __m512i, (): &(), sink: &mut K) {
        // SAFETY: the caller's.
        unsafe { sink.pair(interleave!(e4m3_bytes, lines)) }
    }
}

impl Format for Int8 {
    const COLS: usize = 2;
    const LINES: usize = 2;
    const SCALED: bool = false;
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: *const u8) {}
    #[inline(always)]
    unsafe fn widen<K: Sink>(lines: *const __m512i, (): &(), sink: &mut K) {
        // SAFETY: the caller's.
        unsafe { sink.pair(interleave!(int8_bytes, lines)) }
    }
}

impl Format for Int4 {
    const COLS: usize = 8;
    const LINES: usize = 4;
    const SCALED: bool = false;
    type Scales = ();

    #[inline(always)]
    unsafe fn scales(_: *const u8) {}
    #[inline(always)]
    unsafe fn widen<K: Sink>(lines: *const __m512i, (): &(), sink: &mut K) {
        // SAFETY: the caller's.
        unsafe { nibbles!(lines, sink, int4_pairs, ()) }
    }
}

/// # Safety
/// Needs AVX-512 BW.
#[inline(always)]
unsafe fn int4_pairs((): (), _: usize, codes: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_permutexvar_epi16(codes, INT4.register(0)) }
}

/// What is subtracted for scales in E8M0 of 16 rows.
///
/// # Safety
/// Needs AVX-512 BW; `from` is valid for 16 bytes.
#[inline(always)]
unsafe fn e8m0_scale(from: *const u8) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let stored = spread(from);
        let less = _mm512_sub_epi16(splat(HIGH_E8M0 << 7), _mm512_slli_epi16::<7>(stored));
        _mm512_mask_mov_epi16(less, _mm512_testn_epi16_mask(stored, stored), splat(ZERO_SCALE))
    }
}

impl Format for Mxfp8 {
    const COLS: usize = 2;
    const LINES: usize = 2;
    const SCALED: bool = true;
    type Scales = [__m512i; STEP_LINES];

    #[inline(always)]
    unsafe fn scales(head: *const u8) -> Self::Scales {
        // SAFETY: the caller's.
        unsafe { four!(e8m0_scale, head) }
    }
    #[inline(always)]
    unsafe fn widen<K: Sink>(lines: *const __m512i, scales: &Self::Scales, sink: &mut K) {
        // SAFETY: the caller's.
        unsafe {
            let mut pairs = interleave!(e4m3_raised_bytes, lines);
            for (pair, less) in pairs.iter_mut().zip(scales) {
                *pair = _mm512_subs_epu16(*pair, *less);
            }
            sink.pair(pairs);
        }
    }
}

/// What is subtracted for scales in E4M3 of 16 rows, and for 1.5 times them.
#[derive(Clone, Copy)]
struct Scale {
    one: __m512i,
    and_a_half: __m512i,
}

/// # Safety
/// Needs AVX-512 BW; `from` is valid for 16 bytes.
#[inline(always)]
unsafe fn e4m3_scale(from: *const u8) -> Scale {
    // SAFETY: the caller's.
    unsafe {
        let stored = spread(from);
        let small = _mm512_testn_epi16_mask(stored, splat(0x78));
        let one = _mm512_sub_epi16(splat((HIGH_E4M3 - (127 - 7)) << 7), _mm512_slli_epi16::<4>(stored));
        let and_a_half = _mm512_sub_epi16(one, _mm512_permutexvar_epi16(stored, AND_A_HALF.register(0)));
        Scale {
            one: _mm512_mask_permutexvar_epi16(one, small, stored, E4M3_SMALL.register(0)),
            and_a_half: _mm512_mask_permutexvar_epi16(and_a_half, small, stored, E4M3_SMALL_AND_A_HALF.register(0)),
        }
    }
}

/// # Safety
/// Needs AVX-512 BW.
#[inline(always)]
unsafe fn e2m1_e4m3_pairs(scales: &[Scale; STEP_LINES], i: usize, codes: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let half = _mm512_test_epi16_mask(codes, splat(1));
        let less = _mm512_mask_blend_epi16(half, scales[i].one, scales[i].and_a_half);
        _mm512_subs_epu16(_mm512_permutexvar_epi16(codes, E2M1_POWER.register(0)), less)
    }
}

/// # Safety
/// Needs AVX-512 BW.
#[inline(always)]
unsafe fn e2m1_e8m0_pairs(scales: &[__m512i; STEP_LINES], i: usize, codes: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_subs_epu16(_mm512_permutexvar_epi16(codes, E2M1_RAISED.register(0)), scales[i]) }
}

macro_rules! e2m1_format {
    ($name:ident, $scales:ty, $scale:path, $pairs:path) => {
        impl Format for $name {
            const COLS: usize = 8;
            const LINES: usize = 4;
            const SCALED: bool = true;
            type Scales = [$scales; STEP_LINES];

            #[inline(always)]
            unsafe fn scales(head: *const u8) -> Self::Scales {
                // SAFETY: the caller's.
                unsafe { four!($scale, head) }
            }
            #[inline(always)]
            unsafe fn widen<K: Sink>(lines: *const __m512i, scales: &Self::Scales, sink: &mut K) {
                // SAFETY: the caller's.
                unsafe { nibbles!(lines, sink, $pairs, scales) }
            }
        }
    };
}
e2m1_format!(E2m1E4m3, Scale, e4m3_scale, e2m1_e4m3_pairs);
e2m1_format!(E2m1E8m0, __m512i, e8m0_scale, e2m1_e8m0_pairs);

/// Lines of bf16 pairs.
struct Store(*mut __m512i);

impl Sink for Store {
    #[inline(always)]
    unsafe fn pair(&mut self, pairs: Pairs) {
        for pair in pairs {
            // SAFETY: the caller's.
            unsafe { _mm512_storeu_si512(self.0, pair) };
            self.0 = self.0.wrapping_add(1);
        }
    }
    #[inline(always)]
    unsafe fn last(&mut self, pairs: Pairs) {
        // SAFETY: the caller's.
        unsafe { self.pair(pairs) }
    }
}

/// Sums of products with rows of activations.
struct Sums<X, const ROWS: usize> {
    acc: [[__m512; STEP_LINES]; ROWS],
    x: *const X,
    stride: usize,
}

impl<const ROWS: usize> Sums<f32, ROWS> {
    /// # Safety
    /// Needs AVX-512; there are activations of one more column.
    #[inline(always)]
    unsafe fn column(&mut self, weights: [__m512; STEP_LINES]) {
        for (r, acc) in self.acc.iter_mut().enumerate() {
            // SAFETY: the caller's.
            let x = unsafe { _mm512_set1_ps(*self.x.add(r * self.stride)) };
            for (acc, w) in acc.iter_mut().zip(weights) {
                // SAFETY: the caller's.
                *acc = unsafe { _mm512_fmadd_ps(x, w, *acc) };
            }
        }
        self.x = self.x.wrapping_add(1);
    }
}

impl<const ROWS: usize> Sink for Sums<f32, ROWS> {
    #[inline(always)]
    unsafe fn pair(&mut self, p: Pairs) {
        // SAFETY: the caller's.
        unsafe {
            self.last(p);
            let high = _mm512_set1_epi32(-0x1_0000);
            self.column([
                _mm512_castsi512_ps(_mm512_and_si512(p[0], high)),
                _mm512_castsi512_ps(_mm512_and_si512(p[1], high)),
                _mm512_castsi512_ps(_mm512_and_si512(p[2], high)),
                _mm512_castsi512_ps(_mm512_and_si512(p[3], high)),
            ]);
        }
    }
    #[inline(always)]
    unsafe fn last(&mut self, p: Pairs) {
        // SAFETY: the caller's.
        unsafe {
            self.column([
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(p[0])),
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(p[1])),
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(p[2])),
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(p[3])),
            ]);
        }
    }
}

impl<const ROWS: usize> Sums<bf16, ROWS> {
    /// # Safety
    /// Needs AVX-512 BF16.
    #[inline(always)]
    unsafe fn dot(&mut self, r: usize, x: u32, pairs: Pairs) {
        // SAFETY: the caller's; registers of 512 bits.
        unsafe {
            let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x.cast_signed()));
            for (acc, w) in self.acc[r].iter_mut().zip(pairs) {
                *acc = _mm512_dpbf16_ps(*acc, x, std::mem::transmute::<__m512i, __m512bh>(w));
            }
        }
    }
}

impl<const ROWS: usize> Sink for Sums<bf16, ROWS> {
    #[inline(always)]
    unsafe fn pair(&mut self, pairs: Pairs) {
        for r in 0..ROWS {
            // SAFETY: the caller's: two activations of each row.
            unsafe { self.dot(r, self.x.add(r * self.stride).cast::<u32>().read_unaligned(), pairs) };
        }
        self.x = self.x.wrapping_add(2);
    }
    #[inline(always)]
    unsafe fn last(&mut self, pairs: Pairs) {
        for r in 0..ROWS {
            // SAFETY: the caller's: an activation of each row.
            unsafe { self.dot(r, u32::from((*self.x.add(r * self.stride)).to_bits()), pairs) };
        }
        self.x = self.x.wrapping_add(1);
    }
}

/// The kernel of `ROWS` rows, which reads quantized weights.
///
/// # Safety
/// As for [`Format`] and `Sums`; `tile.out` is valid for writes, and nobody else uses the part that the tile names.
#[inline(always)]
unsafe fn body<F: Format, X: Copy, const ROWS: usize>(tile: &Tile<'_, X>)
where
    Sums<X, ROWS>: Sink,
{
    assert!(tile.x.len() >= (ROWS - 1) * tile.x_stride + tile.cols, "activations of the tile");
    assert!(tile.width <= PANEL && tile.out.len >= (ROWS - 1) * tile.out_stride + tile.width, "results of the tile");
    // SAFETY: the caller's instruction set.
    let zero = unsafe { _mm512_setzero_ps() };
    let mut sums = Sums { acc: [[zero; STEP_LINES]; ROWS], x: tile.x.as_ptr(), stride: tile.x_stride };
    // SAFETY: the rows have the tile's columns, as asserted.
    unsafe {
        match tile.ahead {
            Ahead::No => walk::<F, _, false>(tile.weight_type, tile.w, tile.cols, &mut sums),
            Ahead::Same | Ahead::Later(_) => walk::<F, _, true>(tile.weight_type, tile.w, tile.cols, &mut sums),
        }
    }
    for (r, acc) in sums.acc.iter().enumerate() {
        // SAFETY: `width` results from here are within `tile.out`, as asserted.
        unsafe {
            finish::<Avx512, STEP_LINES>(
                acc,
                tile.out.to.wrapping_add(r * tile.out_stride),
                0,
                tile.width,
                tile.finish,
            );
        }
    }
}

/// Defines a function that gives the kernels for 1 to [`FUSED_ROWS`] rows.
macro_rules! kernels {
    ($name:ident, $x:ty, $feature:literal) => {
        fn $name<F: Format>() -> [Kernel<$x>; FUSED_ROWS] {
            /// # Safety
            /// As for `body`.
            #[target_feature(enable = $feature)]
            unsafe fn rows<F: Format, const ROWS: usize>(tile: &Tile<'_, $x>)
            where
                Sums<$x, ROWS>: Sink,
            {
                // SAFETY: the caller's.
                unsafe { body::<F, $x, ROWS>(tile) }
            }
            [rows::<F, 1>, rows::<F, 2>, rows::<F, 3>, rows::<F, 4>]
        }
    };
}
kernels!(kernels_f32, f32, "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma");
kernels!(kernels_bf16, bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma,avx512bf16");

/// # Safety
/// Needs AVX-512 BW and VBMI; `units` are of a type whose format is `F`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma")]
unsafe fn store<F: Format>(weight_type: WeightType, units: &[Line], cols: usize, out: &mut [Line]) {
    assert!(out.len() >= cols.div_ceil(2) * STEP_LINES, "lines of bf16");
    // SAFETY: there is room for all pairs of columns.
    unsafe { walk::<F, _, false>(weight_type, units, cols, &mut Store(out.as_mut_ptr().cast())) }
}

/// Calls a generic function with the format of a quantized weight type.
macro_rules! with_format {
    ($weight_type:expr, $call:ident!($($arg:tt)*)) => {
        match ($weight_type.codes(), $weight_type.group()) {
            (None, _) => None,
            (Some(Codes::E4m3), None) => Some($call!(E4m3 $($arg)*)),
            (Some(Codes::E4m3), Some(_)) => Some($call!(Mxfp8 $($arg)*)),
            (Some(Codes::Int8), _) => Some($call!(Int8 $($arg)*)),
            (Some(Codes::Int4), _) => Some($call!(Int4 $($arg)*)),
            (Some(Codes::E2m1), Some((_, GroupScale::E8m0))) => Some($call!(E2m1E8m0 $($arg)*)),
            (Some(Codes::E2m1), _) => Some($call!(E2m1E4m3 $($arg)*)),
        }
    };
}
macro_rules! instance {
    ($format:ident $function:ident) => {
        $function::<$format>()
    };
}
macro_rules! instance_store {
    ($format:ident) => {
        store::<$format> as Unpack
    };
}

/// A function that widens `cols` columns of whole units into lines of bf16 pairs.
pub(super) type Unpack = unsafe fn(WeightType, &[Line], usize, &mut [Line]);

/// Whether this processor has what this module needs, and `isa` allows it.
fn has(isa: Isa) -> bool {
    isa >= Isa::Avx512 && std::arch::is_x86_feature_detected!("avx512vbmi")
}

/// The kernels of a quantized type for f32 activations. They may be called on this processor.
pub(super) fn fused_f32(isa: Isa, weight_type: WeightType) -> Option<[Kernel<f32>; FUSED_ROWS]> {
    if !has(isa) {
        return None;
    }
    with_format!(weight_type, instance!(kernels_f32))
}

/// The kernels of a quantized type for bf16 activations. They may be called on this processor.
pub(super) fn fused_bf16(isa: Isa, weight_type: WeightType) -> Option<[Kernel<bf16>; FUSED_ROWS]> {
    if !has(isa) || isa < Isa::Avx512Bf16 {
        return None;
    }
    with_format!(weight_type, instance!(kernels_bf16))
}

/// Widens whole units. It may be called on this processor.
pub(super) fn unpack(isa: Isa, weight_type: WeightType) -> Option<Unpack> {
    if !has(isa) {
        return None;
    }
    with_format!(weight_type, instance_store!())
}
