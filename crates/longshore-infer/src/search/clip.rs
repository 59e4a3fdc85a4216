//! `awq_clip`: smaller magnitudes of a weight.

use super::lite::Losses;
use super::trial::{Weight, amax_of, quantize};
use super::{Clipped, Rows, first_least};
use longshore_quant::config::Clip;
use longshore_quant::{Amax, Element, Scheme};
use std::sync::Mutex;

/// What is collected for the search of a linear.
pub(super) struct Clipping {
    shares: Vec<f32>,
    kind: Kind,
}

enum Kind {
    /// One magnitude for all: outputs are compared.
    Tensor(Losses),
    /// A magnitude for each block of columns.
    Blocks(Moments),
}

/// Of every block of columns the second moments of the inputs: the error of a block's product with them is a quadratic
/// form, so that one pass serves all shares of all rows.
struct Moments {
    /// Columns of a block.
    block: usize,
    /// Columns of all blocks.
    cols: usize,
    /// Rows of a batch that are taken, at least.
    tokens: usize,
    /// The batch that is being read, and its rows.
    batch: Option<usize>,
    rows: Vec<f32>,
    /// `[blocks, block, block]`
    sums: Vec<f32>,
}

impl Moments {
    /// Ends a batch: its rows are taken at equal steps.
    fn close(&mut self) {
        let step = (self.rows.len() / self.cols / self.tokens).max(1);
        let taken = (self.rows.len() / self.cols).div_ceil(step) as f32;
        for x in self.rows.chunks_exact(self.cols).step_by(step) {
            for (x, sums) in x.chunks_exact(self.block).zip(self.sums.chunks_exact_mut(self.block * self.block)) {
                for (a, sums) in x.iter().zip(sums.chunks_exact_mut(self.block)) {
                    let a = a / taken;
                    for (sum, b) in sums.iter_mut().zip(x) {
                        *sum += a * b;
                    }
                }
            }
        }
        self.rows.clear();
    }
}

impl Clipping {
    #[expect(clippy::cast_sign_loss, reason = "ratios are at most 1 and steps positive")]
    pub(super) fn new(clip: &Clip, scheme: Scheme, cols: usize) -> Self {
        let count = ((1.0 - clip.min_clip_ratio) / clip.shrink_step).ceil() as usize;
        let at = |i: usize| clip.min_clip_ratio + i as f64 * clip.shrink_step;
        // Rounded to two digits, as the reference tries them.
        let mut shares: Vec<f32> =
            (0..count).map(|i| ((f64::from(at(i) as f32) * 100.0).round() / 100.0) as f32).collect();
        shares.push(1.0);
        let kind = match scheme {
            Scheme::Int4 { block } => {
                let sums = vec![0.0; cols.div_ceil(block) * block * block];
                let tokens = clip.max_tokens_per_batch.max(1) as usize;
                Kind::Blocks(Moments { block, cols, tokens, batch: None, rows: Vec::new(), sums })
            }
            _ => Kind::Tensor(Losses::new(shares.len())),
        };
        Self { shares, kind }
    }

    /// The shares to compare, where there is one magnitude for all.
    pub(super) fn shares_of_tensor(&self) -> Option<Vec<f32>> {
        matches!(self.kind, Kind::Tensor(_)).then(|| self.shares.clone())
    }

    pub(super) fn add_errors(&mut self, batches: &[usize], errors: &[Vec<f64>], out: usize) {
        if let Kind::Tensor(losses) = &mut self.kind {
            losses.add(batches, errors, out);
        }
    }

    /// Takes some tokens of every batch, once all of it is known.
    pub(super) fn add_rows(&mut self, rows: &Rows<'_>) {
        let Kind::Blocks(moments) = &mut self.kind else { return };
        for (row, &batch) in rows.values.chunks_exact(rows.cols).zip(rows.batches) {
            if moments.batch != Some(batch) {
                moments.close();
                moments.batch = Some(batch);
            }
            moments.rows.extend_from_slice(row);
        }
    }

    /// The first of the best shares.
    pub(super) fn finish(self, weight: &Weight, scheme: Scheme, element: Element, threads: usize) -> Clipped {
        match self.kind {
            Kind::Tensor(losses) => {
                let share = self.shares[first_least(&losses.finish())];
                let most = amax_of(scheme, weight.cols, &weight.values, 1.0).map_or(0.0, |amax| amax.values[0]);
                Clipped::Tensor(element.round(most * share))
            }
            Kind::Blocks(mut moments) => {
                moments.close();
                let index = best_of_blocks(&self.shares, weight, scheme, element, &moments, threads);
                Clipped::Blocks { shares: self.shares, index }
            }
        }
    }
}

fn best_of_blocks(
    shares: &[f32],
    weight: &Weight,
    scheme: Scheme,
    element: Element,
    moments: &Moments,
    threads: usize,
) -> Vec<u8> {
    let block = moments.block;
    let cols = weight.cols;
    let across = cols / block;
    let mut index = vec![0u8; weight.values.len() / block];
    let rows = weight.values.len() / cols;
    let per_task = rows.div_ceil(threads.max(1) * 4).max(1);
    let tasks = Mutex::new(weight.values.chunks(per_task * cols).zip(index.chunks_mut(per_task * across)));
    let work = || {
        loop {
            let task = tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some((values, index)) = task else { return };
            let Ok(most) = amax_of(scheme, cols, values, 1.0) else { continue };
            let mut best = vec![f64::INFINITY; index.len()];
            for (at, share) in shares.iter().enumerate() {
                let amax = Amax { values: most.values.iter().map(|a| a * share).collect(), global: None };
                let mut quantized = Weight { values: values.to_vec(), cols };
                if quantize(scheme, element, &amax, &mut quantized, 1).is_err() {
                    continue;
                }
                let blocks = quantized.values.chunks_exact(block).zip(values.chunks_exact(block));
                for (i, (q, w)) in blocks.enumerate() {
                    let difference: Vec<f32> = q.iter().zip(w).map(|(q, w)| q - w).collect();
                    let moments = &moments.sums[i % across * block * block..][..block * block];
                    let loss = quadratic(&difference, moments);
                    if loss < best[i] {
                        (best[i], index[i]) = (loss, at as u8);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    index
}

/// `d H d`
fn quadratic(difference: &[f32], moments: &[f32]) -> f64 {
    let row = |row: &[f32]| {
        let mut lanes = [0.0f32; 16];
        let (a, rest) = row.as_chunks::<16>();
        let (b, _) = difference.as_chunks::<16>();
        for (a, b) in a.iter().zip(b) {
            for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
                *lane += a * b;
            }
        }
        let left = rest.iter().zip(&difference[row.len() - rest.len()..]).map(|(a, b)| a * b).sum::<f32>();
        lanes.iter().sum::<f32>() + left
    };
    let rows = moments.chunks_exact(difference.len()).map(row);
    rows.zip(difference).map(|(x, d)| f64::from(x) * f64::from(*d)).sum()
}
