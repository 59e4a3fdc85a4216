//! `awq_lite`: scales of input channels.

use super::trial::{Trial, Weight};
use super::{Found, Rows};
use longshore_quant::{Element, Scheme};
use serde::{Deserialize, Serialize};

/// Means of the magnitudes of every channel, of a batch first and then of all batches.
#[derive(Default)]
pub(super) struct ActScale {
    batch: Option<usize>,
    count: u64,
    sum: Vec<f64>,
    batches: u64,
    means: Vec<f32>,
    amax: Vec<f32>,
}

impl ActScale {
    pub(super) fn add(&mut self, rows: &Rows<'_>) {
        self.sum.resize(rows.cols, 0.0);
        self.means.resize(rows.cols, 0.0);
        self.amax.resize(rows.cols, 0.0);
        for (row, &batch) in rows.values.chunks_exact(rows.cols).zip(rows.batches) {
            if self.batch != Some(batch) {
                self.close();
                self.batch = Some(batch);
            }
            self.count += 1;
            for ((sum, amax), x) in self.sum.iter_mut().zip(&mut self.amax).zip(row) {
                *sum += f64::from(x.abs());
                *amax = amax.max(x.abs());
            }
        }
    }

    /// Ends a batch.
    fn close(&mut self) {
        if self.count > 0 {
            for (mean, sum) in self.means.iter_mut().zip(&mut self.sum) {
                *mean += (*sum / self.count as f64) as f32;
                *sum = 0.0;
            }
            self.batches += 1;
            self.count = 0;
        }
    }

    pub(super) fn finish(mut self, weight: Vec<f32>) -> Channels {
        self.close();
        let act = self.means.iter().map(|mean| mean / self.batches.max(1) as f32).collect();
        Channels { act, weight, amax: self.amax }
    }
}

/// The mean over rows of every channel's share of its block's largest magnitude. Of formats without blocks, a row is one.
pub(super) fn weight_scale(weight: &Weight, scheme: Scheme, element: Element) -> Vec<f32> {
    let block = match scheme {
        Scheme::Int4 { block } | Scheme::Nvfp4 { block } => block,
        Scheme::Nvfp4Static { .. } => 16,
        Scheme::Mx(_) => 32,
        Scheme::Fp8(_) | Scheme::Int8(_) => weight.cols,
    };
    let tiny = if element == Element::Float16 { 6.103_515_6e-5 } else { f32::MIN_POSITIVE };
    let mut sums = vec![0.0f64; weight.cols];
    for row in weight.values.chunks_exact(weight.cols) {
        for (block, sums) in row.chunks(block).zip(sums.chunks_mut(block)) {
            let most = element.round(block.iter().fold(0.0f32, |most, x| most.max(x.abs())) + tiny);
            for (sum, x) in sums.iter_mut().zip(block) {
                *sum += f64::from(element.round(x.abs() / most));
            }
        }
    }
    let rows = (weight.values.len() / weight.cols) as f64;
    sums.iter().map(|sum| element.round((sum / rows) as f32)).collect()
}

/// What is known of the channels of an input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Channels {
    act: Vec<f32>,
    weight: Vec<f32>,
    amax: Vec<f32>,
}

/// Gives all of them the largest magnitudes of any.
pub(super) fn share_amax<'a>(channels: impl Iterator<Item = &'a mut Channels>) {
    let mut all: Vec<&mut Channels> = channels.collect();
    let mut most: Vec<f32> = Vec::new();
    for channels in &all {
        most.resize(channels.amax.len(), 0.0);
        for (most, x) in most.iter_mut().zip(&channels.amax) {
            *most = most.max(*x);
        }
    }
    for channels in &mut all {
        channels.amax.clone_from(&most);
    }
}

/// The exponents that are tried: torch's `arange(0, 1 + step, step)`.
#[expect(clippy::cast_sign_loss, reason = "steps are positive")]
fn exponents(step: f64) -> Vec<f32> {
    let count = ((1.0 + step) / step).ceil() as usize;
    (0..count).map(|i| (i as f64 * step) as f32).collect()
}

impl Channels {
    /// How many there are; `None` if that is not one number.
    pub fn count(&self) -> Option<usize> {
        let count = self.act.len();
        (self.weight.len() == count && self.amax.len() == count).then_some(count)
    }

    /// What the weight's columns are multiplied with under an exponent.
    fn scale(&self, alpha: f32) -> Vec<f32> {
        let rest = (1.0 - f64::from(alpha)) as f32;
        let of =
            |(act, weight): (&f32, &f32)| (act.powf(alpha) / (weight.powf(rest) + f32::MIN_POSITIVE)).clamp(1e-4, 1e4);
        let scale: Vec<f32> = self.act.iter().zip(&self.weight).map(of).collect();
        let (most, least) = scale.iter().fold((0.0f32, f32::INFINITY), |(a, b), &x| (a.max(x), b.min(x)));
        let middle = (most * least).sqrt();
        scale.iter().map(|x| x / middle).collect()
    }

    pub(super) fn trials(&self, step: f64) -> Vec<Trial> {
        exponents(step).into_iter().map(|alpha| Trial { scale: Some(self.scale(alpha)), share: 1.0 }).collect()
    }

    /// The first exponent of the least error.
    pub(super) fn best(&self, step: f64, losses: Vec<f64>) -> Found {
        let exponents = exponents(step);
        let best = super::first_least(&losses);
        let alpha = exponents[best];
        let scale: Vec<f32> = self.scale(alpha).iter().map(|s| 1.0 / s).collect();
        let input_amax = self.amax.iter().zip(&scale).fold(0.0f32, |most, (a, s)| most.max(a * s));
        Found { alpha: Some(alpha), losses, pre_quant_scale: Some(scale), input_amax: Some(input_amax), clipped: None }
    }
}

/// Mean squared errors of a batch, summed up over batches.
pub(super) struct Losses {
    batch: Option<usize>,
    values: f64,
    sums: Vec<f64>,
    totals: Vec<f64>,
}

impl Losses {
    pub(super) fn new(trials: usize) -> Self {
        Self { batch: None, values: 0.0, sums: vec![0.0; trials], totals: vec![0.0; trials] }
    }

    /// `errors` are of rows of `out` values, trial by trial.
    pub(super) fn add(&mut self, batches: &[usize], errors: &[Vec<f64>], out: usize) {
        for (row, &batch) in batches.iter().enumerate() {
            if self.batch != Some(batch) {
                self.close();
                self.batch = Some(batch);
            }
            self.values += out as f64;
            for (sum, errors) in self.sums.iter_mut().zip(errors) {
                *sum += errors[row];
            }
        }
    }

    fn close(&mut self) {
        for (total, sum) in self.totals.iter_mut().zip(&mut self.sums) {
            *total += *sum / self.values.max(1.0);
            *sum = 0.0;
        }
        self.values = 0.0;
    }

    pub(super) fn finish(mut self) -> Vec<f64> {
        self.close();
        self.totals
    }
}
