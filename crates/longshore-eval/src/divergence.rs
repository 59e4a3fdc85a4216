//! How far one model's next-token distributions are from another's, position by position.

use crate::perplexity::outside;
use crate::statistics::{Cluster, clustered_error, mean, quantile};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Two distributions at one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// `KL(base || other) = sum(p (ln p - ln q))` in nats, `p` the base's probabilities.
    pub kl: f64,
    /// `KL(other || base)`.
    pub reverse_kl: f64,
    /// Whether both hold the same token most likely; of equals the first counts.
    pub same_top: bool,
    /// The true token's negative log-likelihood under `other`, less that under `base`; in nats.
    pub nll_difference: f64,
}

impl Position {
    /// Compares two rows of natural log-probabilities ([`crate::perplexity::log_probs`]) over the same vocabulary, at a
    /// position followed by `target`.
    pub fn of(base: &[f64], other: &[f64], target: u32) -> Result<Self> {
        if base.len() != other.len() {
            let what = format!("expected vocabularies of one size, found {} and {}", base.len(), other.len());
            return Err(Error::Invalid(what));
        }
        let at = |row: &[f64]| row.get(target as usize).copied().ok_or_else(|| outside(target, row.len()));
        let position = Self {
            kl: kl(base, other),
            reverse_kl: kl(other, base),
            same_top: top(base) == top(other),
            nll_difference: at(base)? - at(other)?,
        };
        if [position.kl, position.reverse_kl, position.nll_difference].iter().any(|x| x.is_nan()) {
            return Err(Error::NotANumber { what: "a divergence".into() });
        }
        Ok(position)
    }
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    let term = |(&p, &q): (&f64, &f64)| if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) };
    let sum: f64 = p.iter().zip(q).map(term).sum();
    // Rounding may leave equal distributions a little below zero. (Not `max`, which would hide NaN.)
    if sum < 0.0 { 0.0 } else { sum }
}

fn top(row: &[f64]) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, &x) in row.iter().enumerate() {
        if x > best.1 {
            best = (i, x);
        }
    }
    best.0
}

/// The positions of a text, window by window.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    kl: Vec<f64>,
    windows: Vec<[Cluster; 4]>,
}

/// What is kept of a window: sums over its positions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowSum {
    /// Positions.
    pub positions: usize,
    /// Of [`Position::kl`].
    pub kl: f64,
    /// Of [`Position::reverse_kl`].
    pub reverse_kl: f64,
    /// Positions where both hold the same token most likely.
    pub same_top: f64,
    /// Of [`Position::nll_difference`].
    pub nll_difference: f64,
}

impl WindowSum {
    /// The sums, in the order of the fields.
    pub fn sums(&self) -> [f64; 4] {
        [self.kl, self.reverse_kl, self.same_top, self.nll_difference]
    }
}

/// A mean, and its standard error clustered by window (`None` for one window).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// One standard error.
    pub error: Option<f64>,
}

/// What the positions come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Positions.
    pub positions: usize,
    /// Windows.
    pub windows: usize,
    /// `KL(base || other)`, nats a token.
    pub kl: Mean,
    /// Its quantiles, interpolated as numpy's.
    pub kl_median: f64,
    /// 99 of 100 are not larger.
    pub kl_p99: f64,
    /// 999 of 1000 are not larger.
    pub kl_p999: f64,
    /// The largest.
    pub kl_max: f64,
    /// `KL(other || base)`, nats a token.
    pub reverse_kl: Mean,
    /// The fraction of positions where both hold the same token most likely.
    pub same_top: Mean,
    /// The paired difference of negative log-likelihoods, other less base, nats a token: the logarithm of the ratio of the
    /// perplexities.
    pub nll_difference: Mean,
}

impl Divergence {
    /// Adds a window's positions.
    pub fn add_window(&mut self, positions: &[Position]) {
        if positions.is_empty() {
            return;
        }
        let sum = |value: fn(&Position) -> f64| Cluster::of(positions.iter().map(value));
        self.kl.extend(positions.iter().map(|p| p.kl));
        self.windows.push([
            sum(|p| p.kl),
            sum(|p| p.reverse_kl),
            sum(|p| f64::from(u8::from(p.same_top))),
            sum(|p| p.nll_difference),
        ]);
    }

    /// The sums, window by window, without those that have no positions.
    pub fn windows(&self) -> Vec<WindowSum> {
        let of = |[kl, reverse_kl, same_top, nll_difference]: &[Cluster; 4]| WindowSum {
            positions: kl.count,
            kl: kl.sum,
            reverse_kl: reverse_kl.sum,
            same_top: same_top.sum,
            nll_difference: nll_difference.sum,
        };
        self.windows.iter().map(of).collect()
    }

    /// The summary; `None` without positions.
    pub fn summary(&self) -> Option<Summary> {
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        let of = |i: usize| {
            let clusters: Vec<Cluster> = self.windows.iter().map(|window| window[i]).collect();
            Mean { mean: mean(&clusters), error: clustered_error(&clusters) }
        };
        Some(Summary {
            positions: sorted.len(),
            windows: self.windows.len(),
            kl_max: *sorted.last()?,
            kl_median: quantile(&sorted, 0.5),
            kl_p99: quantile(&sorted, 0.99),
            kl_p999: quantile(&sorted, 0.999),
            kl: of(0),
            reverse_kl: of(1),
            same_top: of(2),
            nll_difference: of(3),
        })
    }
}
