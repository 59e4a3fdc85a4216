//! Two models on the same prompts, layer by layer and logit by logit, in step with each other, so that neither the models
//! nor what they compute has to fit memory.

use crate::backend::{Backend, Routing};
use crate::error::{Error, Result};
use crate::model::{Model, Observer};
use crate::sample::argmax;
use crate::sweep::{Sweep, SweepOptions};
use longshore_quant::Distortion;
use std::ops::Range;
use std::sync::Arc;

/// How two sets of numbers differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Largest absolute difference; infinite where one is NaN and the other not.
    pub max: f64,
    /// Mean absolute difference.
    pub mean: f64,
    /// Standard deviation of the first set.
    pub deviation: f64,
}

/// After one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerDifference {
    /// Index of the layer.
    pub layer: usize,
    /// Its letter in Megatron's pattern.
    pub kind: char,
    /// Of the residual stream after it.
    pub hidden: Difference,
    /// The same as powers: of the first's residual stream, and of what the second's is off.
    pub distortion: Distortion,
    /// Tokens that a MoE layer sent to other experts, of all tokens.
    pub routes: Option<(usize, usize)>,
}

/// On one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptDifference {
    /// Positions.
    pub positions: usize,
    /// Of the logits.
    pub logits: Difference,
    /// Mean over the positions of KL(first || second), in nats.
    pub kl_mean: f64,
    /// The largest.
    pub kl_max: f64,
    /// Mean over the positions of KL(second || first), in nats.
    pub kl_reverse_mean: f64,
    /// Of both, the sum over all positions but the last of `-ln p(next token)`, in nats.
    pub nll: [f64; 2],
    /// Positions with the same most likely token.
    pub same_top: usize,
    /// The same, position by position.
    pub each: Vec<PositionDifference>,
}

/// At one position of a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionDifference {
    /// Largest absolute difference of its logits.
    pub max: f64,
    /// Mean absolute difference.
    pub mean: f64,
    /// KL(first || second), in nats.
    pub kl: f64,
    /// Whether the most likely token is the same.
    pub same_top: bool,
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// In order; empty unless asked for.
    pub layers: Vec<LayerDifference>,
    /// In the order of the prompts.
    pub prompts: Vec<PromptDifference>,
}

/// Sums of a [`Difference`].
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    max: f64,
    total: f64,
    sum: f64,
    squares: f64,
    count: f64,
}

impl Sums {
    fn add(&mut self, a: &[f32], b: &[f32]) {
        for (&a, &b) in a.iter().zip(b) {
            let (a, b) = (f64::from(a), f64::from(b));
            // Two infinities of one sign, and two NaN, are equal.
            let same = a == b || (a.is_nan() && b.is_nan());
            let gap = if same { 0.0 } else { (a - b).abs() };
            let gap = if gap.is_nan() { f64::INFINITY } else { gap };
            self.max = self.max.max(gap);
            self.total += gap;
            self.sum += a;
            self.squares += a * a;
            self.count += 1.0;
        }
    }

    fn difference(&self) -> Difference {
        let count = self.count.max(1.0);
        let mean = self.sum / count;
        Difference {
            max: self.max,
            mean: self.total / count,
            deviation: (self.squares / count - mean * mean).max(0.0).sqrt(),
        }
    }
}

/// The experts of the last MoE layer's tokens.
#[derive(Default)]
struct Routes(Vec<u32>);

impl Observer for Routes {
    fn routing(&mut self, _: usize, _: &[(usize, Range<usize>)], routing: &Routing) {
        self.0.extend_from_slice(&routing.experts);
    }
}

/// Rows of the vocabulary's size in memory at a time.
const LOGIT_ROWS: usize = 16;

/// Runs both models over `prompts`. `after_layer` sees how far they are.
pub fn compare<B: Backend + 'static>(
    models: [&Arc<Model<B>>; 2],
    prompts: &[Vec<u32>],
    options: &SweepOptions,
    per_layer: bool,
    after_layer: &mut dyn FnMut(usize),
) -> Result<Comparison> {
    let shape = |m: &Arc<Model<B>>| [m.n_layers(), m.hidden(), m.vocab()];
    if shape(models[0]) != shape(models[1]) {
        let what = models.map(|m| {
            let [layers, hidden, vocab] = shape(m);
            format!("{layers} layers of {hidden} and a vocabulary of {vocab}")
        });
        return Err(Error::Incomparable { what: what.join(", against ") });
    }
    let mut out = Comparison::default();
    let mut a = Sweep::new(models[0], prompts, options, false)?;
    let mut b = Sweep::new(models[1], prompts, options, false)?;
    for (layer, spec) in models[0].config().layers.iter().enumerate() {
        let (mut routes_a, mut routes_b) = (Routes::default(), Routes::default());
        a.next_layer(&mut routes_a)?;
        b.next_layer(&mut routes_b)?;
        if per_layer {
            let (mut sums, mut distortion) = (Sums::default(), Distortion::default());
            for batch in 0..a.n_batches() {
                let (a, b) = (a.hidden(batch)?.1, b.hidden(batch)?.1);
                sums.add(&a, &b);
                distortion.add(&a, &b);
            }
            let tokens: usize = prompts.iter().map(Vec::len).sum();
            let top_k = routes_a.0.len() / tokens.max(1);
            let other = |(a, b): &(&[u32], &[u32])| a != b;
            let routes = (top_k > 0)
                .then(|| (routes_a.0.chunks(top_k).zip(routes_b.0.chunks(top_k)).filter(other).count(), tokens));
            let hidden = sums.difference();
            out.layers.push(LayerDifference { layer, kind: spec.letter(), hidden, distortion, routes });
        }
        after_layer(layer);
    }
    let (head_a, head_b) = (models[0].head()?, models[1].head()?);
    let (vocab, width) = (models[0].vocab(), models[0].hidden());
    let mut all: Vec<(Sums, PromptDifference)> = prompts.iter().map(|_| (Sums::default(), nothing())).collect();
    for batch in 0..a.n_batches() {
        let ((names, hidden_a), (_, hidden_b)) = (a.hidden(batch)?, b.hidden(batch)?);
        let rows = hidden_a.chunks(LOGIT_ROWS * width).zip(hidden_b.chunks(LOGIT_ROWS * width));
        for (names, (hidden_a, hidden_b)) in names.chunks(LOGIT_ROWS).zip(rows) {
            let logits_a = models[0].logits_of(&head_a, hidden_a);
            let logits_b = models[1].logits_of(&head_b, hidden_b);
            let rows = logits_a.chunks_exact(vocab).zip(logits_b.chunks_exact(vocab));
            for (&(prompt, position), (a, b)) in names.iter().zip(rows) {
                let next = prompts[prompt].get(position + 1);
                let (sums, prompt) = &mut all[prompt];
                sums.add(a, b);
                let norms = [normalizer(a), normalizer(b)];
                let kl = divergence_of([a, b], norms);
                prompt.kl_reverse_mean += divergence_of([b, a], [norms[1], norms[0]]);
                if let Some(&next) = next {
                    prompt.nll[0] += norms[0] - f64::from(a[next as usize]);
                    prompt.nll[1] += norms[1] - f64::from(b[next as usize]);
                }
                let same_top = argmax(a) == argmax(b);
                prompt.positions += 1;
                prompt.kl_mean += kl;
                prompt.kl_max = prompt.kl_max.max(kl);
                prompt.same_top += usize::from(same_top);
                let mut own = Sums::default();
                own.add(a, b);
                let Difference { max, mean, .. } = own.difference();
                prompt.each.push(PositionDifference { max, mean, kl, same_top });
            }
        }
    }
    out.prompts = all
        .into_iter()
        .map(|(sums, p)| PromptDifference {
            logits: sums.difference(),
            kl_mean: p.kl_mean / p.positions.max(1) as f64,
            kl_reverse_mean: p.kl_reverse_mean / p.positions.max(1) as f64,
            ..p
        })
        .collect();
    Ok(out)
}

fn nothing() -> PromptDifference {
    PromptDifference {
        positions: 0,
        logits: Difference::default(),
        kl_mean: 0.0,
        kl_max: 0.0,
        kl_reverse_mean: 0.0,
        nll: [0.0; 2],
        same_top: 0,
        each: Vec::new(),
    }
}

/// KL(softmax(a) || softmax(b)) in nats, in float64. Infinite where NaN or infinity leave it undefined, but for equal rows.
pub fn divergence(a: &[f32], b: &[f32]) -> f64 {
    divergence_of([a, b], [normalizer(a), normalizer(b)])
}

/// `ln(sum(exp(x)))`
fn normalizer(row: &[f32]) -> f64 {
    let top = row.iter().fold(f64::NEG_INFINITY, |top, &x| top.max(f64::from(x)));
    top + row.iter().map(|&x| (f64::from(x) - top).exp()).sum::<f64>().ln()
}

/// [`divergence`] of rows with these normalizers.
fn divergence_of([a, b]: [&[f32]; 2], [norm_a, norm_b]: [f64; 2]) -> f64 {
    if a.iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())) {
        return 0.0;
    }
    let term = |(&a, &b): (&f32, &f32)| {
        let (a, b) = (f64::from(a) - norm_a, f64::from(b) - norm_b);
        if a == f64::NEG_INFINITY { 0.0 } else { a.exp() * (a - b) }
    };
    let sum: f64 = a.iter().zip(b).map(term).sum();
    // Rounding can make it negative by an ulp.
    if sum.is_nan() { f64::INFINITY } else { sum.max(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_the_textbooks() {
        // P = (1/2, 1/2), Q = (1/4, 3/4).
        let (a, b) = ([0.0, 0.0], [0.0, 3f32.ln()]);
        let want = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((divergence(&a, &b) - want).abs() < 1e-7);
        assert_eq!(divergence(&b, &b), 0.0);
    }

    #[test]
    fn a_nan_on_one_side_is_infinitely_far() {
        let mut sums = Sums::default();
        sums.add(&[1.0, f32::NAN], &[1.0, f32::NAN]);
        assert_eq!(sums.difference().max, 0.0);
        sums.add(&[1.0], &[f32::NAN]);
        assert_eq!(sums.difference().max, f64::INFINITY);
        assert_eq!(sums.difference().mean, f64::INFINITY);
        assert_eq!(divergence(&[1.0, 2.0], &[f32::NAN, 2.0]), f64::INFINITY);
        assert_eq!(divergence(&[f32::NAN, 2.0], &[f32::NAN, 2.0]), 0.0);
    }
}
