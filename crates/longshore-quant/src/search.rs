//! ModelOpt's `mse`: the magnitudes of a weight with the smallest squared error, in place of the largest ones.
//!
//! Reference: ModelOpt 0.47 `torch/quantization/calib/mse.py`. Everything is computed in float32, whatever the weight's
//! type is. The errors of NVFP4 blocks are summed up in the order in which torch does it on a CPU, so that the choice is
//! the same to the bit; those of other blocks, rows and tensors are summed up in float64, which differs from torch only
//! where two candidates are equally good to within a float's rounding.
#![expect(clippy::inline_always, reason = "bodies that are compiled once for each instruction set")]

use crate::blocks::{Blocks, NVFP4_BLOCK};
use crate::config::{Algorithm, Method, Sweep};
use crate::fake::fake_quantize;
use crate::isa::{Isa, per_isa};
use crate::number::{E2m1, Minifloat, e4m3_decode, max_bits};
use crate::{Amax, Element, Granularity, Result, Scheme, amax};

/// What is tried.
#[derive(Clone, Debug, PartialEq)]
pub enum Search {
    /// The scales of E4M3 above zero, for blocks that have calibrated ones (`fp8_scale_sweep`). Others stay as they are.
    Scales,
    /// These multiples of the largest magnitude.
    Multiples(Vec<f32>),
}

impl Search {
    /// What the calibrations of a config try for weights; `None`: only the largest magnitude.
    pub fn of(algorithm: &[Algorithm]) -> Option<Self> {
        let sweep =
            algorithm.iter().rev().find_map(|a| if let Method::Mse(sweep) = &a.method { Some(sweep) } else { None })?;
        Some(if sweep.fp8_scale_sweep { Self::Scales } else { Self::Multiples(multiples(sweep)) })
    }

    /// Whether the magnitudes of `scheme` are searched for.
    pub fn applies(&self, scheme: Scheme) -> bool {
        match scheme {
            Scheme::Mx(_) | Scheme::Fp8(Granularity::Token) | Scheme::Int8(Granularity::Token) => false,
            Scheme::Nvfp4Static { .. } => true,
            _ => matches!(self, Self::Multiples(_)),
        }
    }
}

/// As torch's `linspace` steps from both ends, with fused products.
#[expect(clippy::cast_sign_loss, reason = "nothing lies between where the last is below the first")]
fn multiples(sweep: &Sweep) -> Vec<f32> {
    let steps = ((sweep.stop - sweep.start) / sweep.step).ceil() as usize + 1;
    let (start, stop) = (sweep.start as f32, sweep.stop as f32);
    let step = (stop - start) / (steps.max(2) - 1) as f32;
    let at = |i: usize| {
        if i < steps / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((steps - i - 1) as f32, stop) }
    };
    (0..steps).map(at).collect()
}

/// Whether ModelOpt keeps a magnitude in the weight's element type; else it is a float32.
pub fn keeps_element(scheme: Scheme) -> bool {
    !matches!(scheme, Scheme::Int4 { .. } | Scheme::Nvfp4Static { .. })
}

/// Replaces the magnitudes of rows or blocks of a band, as [`amax::observe`] found them, by the best ones. `element` is
/// the weight's; of static NVFP4 `amax.global` must be that of the whole tensor.
///
/// # Panics
///
/// If `amax` has another number of values than there are blocks.
pub fn refine(search: &Search, scheme: Scheme, element: Element, cols: usize, values: &[f32], amax: &mut Amax) {
    let Some(blocks) = Blocks::of(scheme, values.len() / cols.max(1), cols) else { return };
    if !search.applies(scheme) || values.is_empty() {
        return;
    }
    assert_eq!(amax.values.len(), blocks.count(), "an amax for each block");
    match search {
        Search::Scales => {
            let global = amax.global.unwrap_or_else(|| amax.values.iter().copied().fold(0.0, f32::max));
            let largest = if scheme == (Scheme::Nvfp4Static { four_over_six: true }) { 256.0 } else { 448.0 };
            let candidates = Candidates::new(global, largest);
            sweep(Isa::detect(), values, &candidates, &mut amax.values);
        }
        Search::Multiples(multiples) => best_multiples(multiples, scheme, element, cols, values, blocks, amax),
    }
}

/// The magnitude of a whole tensor with the smallest error, found in one pass over its bands.
#[derive(Debug)]
pub struct TensorSearch {
    scheme: Scheme,
    candidates: Vec<f32>,
    losses: Vec<f64>,
}

impl TensorSearch {
    /// Begins with the largest magnitude. `None` where nothing is searched for.
    pub fn new(search: &Search, scheme: Scheme, largest: f32) -> Option<Self> {
        let whole = Granularity::Tensor;
        let is_whole =
            matches!(scheme, Scheme::Nvfp4 { .. }) || scheme == Scheme::Fp8(whole) || scheme == Scheme::Int8(whole);
        let Search::Multiples(multiples) = search else { return None };
        let candidates: Vec<f32> = multiples.iter().map(|m| largest * m).collect();
        is_whole.then(|| Self { scheme, losses: vec![0.0; candidates.len()], candidates })
    }

    /// Takes whole rows of `cols` values.
    pub fn add(&mut self, cols: usize, values: &[f32]) {
        let mut quantized = Vec::new();
        for (&candidate, loss) in self.candidates.iter().zip(&mut self.losses) {
            let amax = Amax { values: vec![candidate], global: None };
            quantized.clear();
            quantized.extend_from_slice(values);
            fake_quantize(self.scheme, Element::Float32, &amax, cols, &mut quantized);
            *loss += squares(values, &quantized);
        }
    }

    /// The first of the best, rounded to the weight's type.
    pub fn finish(&self, element: Element) -> f32 {
        let mut best = (f64::INFINITY, 0.0);
        for (&candidate, &loss) in self.candidates.iter().zip(&self.losses) {
            if loss < best.0 {
                best = (loss, candidate);
            }
        }
        element.round(best.1)
    }
}

/// Squared differences, each a float32, summed up.
fn squares(values: &[f32], quantized: &[f32]) -> f64 {
    values.iter().zip(quantized).map(|(x, q)| f64::from((x - q) * (x - q))).sum()
}

fn best_multiples(
    multiples: &[f32],
    scheme: Scheme,
    element: Element,
    cols: usize,
    values: &[f32],
    blocks: Blocks,
    amax: &mut Amax,
) {
    let keep = |x: f32| if keeps_element(scheme) { element.round(x) } else { x };
    let largest = amax.values.clone();
    let mut best = vec![f64::INFINITY; blocks.count()];
    let mut losses = vec![0.0; blocks.count()];
    let mut quantized = Vec::new();
    for &multiple in multiples {
        let trial = Amax { values: largest.iter().map(|a| keep(a * multiple)).collect(), global: amax.global };
        quantized.clear();
        quantized.extend_from_slice(values);
        fake_quantize(scheme, Element::Float32, &trial, cols, &mut quantized);
        losses.fill(0.0);
        for (r, (row, quantized)) in values.chunks_exact(cols).zip(quantized.chunks_exact(cols)).enumerate() {
            let losses = &mut losses[blocks.in_row(r)];
            for ((loss, x), q) in losses.iter_mut().zip(row.chunks(blocks.cols)).zip(quantized.chunks(blocks.cols)) {
                *loss += match (x.as_array(), q.as_array()) {
                    (Some(x), Some(q)) if blocks.rows == 1 => f64::from(block_squares(x, q)),
                    _ => squares(x, q),
                };
            }
        }
        for ((best, &loss), (amax, &trial)) in
            best.iter_mut().zip(&losses).zip(amax.values.iter_mut().zip(&trial.values))
        {
            if loss < *best {
                (*best, *amax) = (loss, trial);
            }
        }
    }
}

/// The squared differences of a block of 16 in torch's order: eight lanes, then one after the other.
fn block_squares(x: &[f32; NVFP4_BLOCK], q: &[f32; NVFP4_BLOCK]) -> f32 {
    let square = |i: usize| (x[i] - q[i]) * (x[i] - q[i]);
    (0..8).map(|i| square(i) + square(i + 8)).fold(0.0, |sum, pair| sum + pair)
}

/// The magnitudes that a sweep tries, in ascending order, with the scales that blocks get from them.
struct Candidates {
    amax: Vec<f32>,
    scales: Vec<f32>,
    steps: Vec<Steps>,
}

impl Candidates {
    fn new(global: f32, largest: f32) -> Self {
        let amax: Vec<f32> = (1..=126).map(|code| global * (e4m3_decode(code) / 448.0)).collect();
        let mut scales: Vec<f32> = amax.iter().map(|a| a / 6.0).collect();
        let of_scales = Amax { values: vec![global * (448.0 / largest) / 6.0], global: None };
        fake_quantize(Scheme::Fp8(Granularity::Tensor), Element::Float32, &of_scales, scales.len(), &mut scales);
        let steps = scales.iter().map(|&scale| Steps::new(scale)).collect();
        Self { amax, scales, steps }
    }
}

/// What E2M1 makes of magnitudes under one scale, without a division for each.
struct Steps {
    /// The least magnitudes that become the values from the second on.
    from: [f32; 7],
    values: [f32; 8],
}

impl Steps {
    fn new(scale: f32) -> Self {
        // A block whose scale is zero becomes zero.
        let divisor = if scale == 0.0 { 1.0 } else { scale };
        let levels = [0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let from = std::array::from_fn(|i| {
            let (below, level) = (levels[i], levels[i + 1]);
            let reaches = |x: f32| E2m1::round(x / divisor) >= level;
            // Quotients are rounded, so it lies a few floats beside the middle.
            let mut least = f32::midpoint(below, level) * divisor;
            while least > 0.0 && reaches(least.next_down()) {
                least = least.next_down();
            }
            while E2m1::round(least / divisor) < level {
                least = least.next_up();
            }
            least
        });
        Self { from, values: levels.map(|level| level * scale) }
    }

    /// The value that a magnitude becomes.
    #[inline(always)]
    fn value(&self, x: f32) -> f32 {
        let mut value = self.values[0];
        for (&from, &next) in self.from.iter().zip(&self.values[1..]) {
            value = if x >= from { next } else { value };
        }
        value
    }
}

/// Blocks that are swept together, a lane each.
const LANES: usize = 16;

/// The errors of a group of blocks under one scale, each in the order of [`block_squares`]. `None` as soon as all are above
/// the best ones: errors only grow.
#[inline(always)]
fn group_losses(group: &[[f32; LANES]; NVFP4_BLOCK], steps: &Steps, best: &[f32; LANES]) -> Option<[f32; LANES]> {
    let square = |x: f32| {
        let difference = x - steps.value(x);
        difference * difference
    };
    let mut losses = [0.0; LANES];
    for pair in 0..4 {
        for i in [2 * pair, 2 * pair + 1] {
            let (low, high) = (&group[i], &group[i + 8]);
            for lane in 0..LANES {
                losses[lane] += square(low[lane]) + square(high[lane]);
            }
        }
        let mut above = true;
        for (loss, best) in losses.iter().zip(best) {
            above &= loss > best;
        }
        if above {
            return None;
        }
    }
    Some(losses)
}

/// Whether no smaller scale can be as good, for all blocks: their largest values alone would lose more when they are cut
/// to six times the scale, however the rest is rounded.
#[inline(always)]
#[expect(clippy::needless_bitwise_bool, reason = "a branch for each lane would cost more than both comparisons")]
fn is_over(largest: &[f32; LANES], best: &[f32; LANES], scale: f32) -> bool {
    let limit = 6.0 * scale;
    let mut over = true;
    for (&largest, &best) in largest.iter().zip(best) {
        let cut = largest - limit;
        // Without branches.
        over &= (largest == 0.0) | ((cut >= 0.0) & (cut * cut > best));
    }
    over
}

/// The best scales of a group of blocks so far.
struct Best {
    losses: [f32; LANES],
    found: [u32; LANES],
}

impl Best {
    /// Tries a scale; of equally good ones the lowest is wanted.
    #[inline(always)]
    #[expect(clippy::needless_bitwise_bool, reason = "a branch for each lane would cost more than both comparisons")]
    fn try_scale(&mut self, group: &[[f32; LANES]; NVFP4_BLOCK], candidates: &Candidates, at: usize) {
        let Some(losses) = group_losses(group, &candidates.steps[at], &self.losses) else { return };
        let at = at as u32;
        for ((best, found), loss) in self.losses.iter_mut().zip(&mut self.found).zip(losses) {
            let better = (loss < *best) | ((loss == *best) & (at < *found));
            *best = if better { loss } else { *best };
            *found = if better { at } else { *found };
        }
    }
}

#[inline(always)]
fn sweep_body(values: &[f32], candidates: &Candidates, amax: &mut [f32]) {
    let scales = &candidates.scales;
    for (values, amax) in values.chunks(LANES * NVFP4_BLOCK).zip(amax.chunks_mut(LANES)) {
        let mut group = [[0.0; LANES]; NVFP4_BLOCK];
        let mut largest = [0.0; LANES];
        for (lane, block) in values.chunks_exact(NVFP4_BLOCK).enumerate() {
            largest[lane] = f32::from_bits(max_bits(block));
            for (row, x) in group.iter_mut().zip(block) {
                row[lane] = x.abs();
            }
        }
        // All scales above make the whole group zero.
        let most = f32::from_bits(max_bits(&largest));
        let last = scales.partition_point(|&scale| most / scale > 0.25).min(scales.len() - 1);
        // The best ones mostly are where the largest value is 6, or below. Then few errors are summed up to their end.
        let first = scales.partition_point(|&scale| most / scale > 6.0).min(last);
        let mut best = Best { losses: [f32::INFINITY; LANES], found: [0; LANES] };
        for at in (0..=first).rev() {
            if is_over(&largest, &best.losses, scales[at]) {
                break;
            }
            best.try_scale(&group, candidates, at);
        }
        for at in first + 1..=last {
            best.try_scale(&group, candidates, at);
        }
        for ((amax, &at), &largest) in amax.iter_mut().zip(&best.found).zip(&largest) {
            // Every scale suits a block of zeros: the first one.
            *amax = candidates.amax[if largest == 0.0 { 0 } else { at as usize }];
        }
    }
}

per_isa! {
    fn sweep[][](values: &[f32], candidates: &Candidates, amax: &mut [f32]) = sweep_body;
}

/// The largest magnitudes of a band and the best ones after them: [`amax::observe`], then [`refine`].
pub fn observe(
    search: &Search,
    scheme: Scheme,
    element: Element,
    cols: usize,
    values: &[f32],
    amax: &mut Amax,
) -> Result<()> {
    amax::observe(scheme, cols, values, amax)?;
    refine(search, scheme, element, cols, values, amax);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::noise;

    /// Every candidate tried, the first of the best kept.
    fn by_hand(values: &[f32], global: f32) -> Vec<f32> {
        let candidates = Candidates::new(global, 448.0);
        let block = |block: &[f32]| {
            let loss = |amax: f32| {
                let amax = Amax { values: vec![amax], global: Some(global) };
                let mut quantized = block.to_vec();
                fake_quantize(
                    Scheme::Nvfp4Static { four_over_six: false },
                    Element::Float32,
                    &amax,
                    16,
                    &mut quantized,
                );
                block_squares(block.as_array().unwrap(), quantized.as_array().unwrap())
            };
            let mut best = (f32::INFINITY, 0.0);
            for &amax in &candidates.amax {
                if loss(amax) < best.0 {
                    best = (loss(amax), amax);
                }
            }
            best.1
        };
        values.chunks_exact(16).map(block).collect()
    }

    #[test]
    fn skipping_scales_that_cannot_win_changes_nothing_on_any_instruction_set() {
        let mut values = noise(Element::Bfloat16);
        values[32..48].fill(0.0);
        values[65..80].fill(0.0);
        for global in [1.0f32, 0.3, 2000.0, 1e-9, 7e-8] {
            let expected = by_hand(&values, global);
            let candidates = Candidates::new(global, 448.0);
            for isa in Isa::available() {
                let mut amax = vec![0.0; 48];
                sweep(isa, &values, &candidates, &mut amax);
                assert_eq!(amax, expected, "{isa:?} {global}");
            }
        }
    }
}
