//! Mixture of experts: a router in float32, experts on the tokens sent to them, a shared expert on all of them
//! (`NemotronHMoE` of transformers; `core/transformer/moe` of Megatron-LM).
//!
//! A token's experts are added in ascending order, so its result does not depend on what else is in the batch.

use super::isa::per_isa;
use super::math::sigmoid;
use super::matrix::Matrix;
use super::store::Pooled;
use super::tasks::row_blocks;
use super::{Cpu, Element, Input, Rows, norm};
use crate::backend::{Backend, ExpertRows, Inputs, Probe, Routing};
use crate::error::Result;
use crate::layers::{MoeWeights, show};
use crate::quantized::InputQuantizer;
use crate::site::Site;
use longshore_convert::config::Moe;

/// The whole layer: `out = experts(u) + shared_expert(u)`, rows of `hidden` elements.
pub(super) fn run<T: Element>(
    cpu: &Cpu,
    w: &MoeWeights<Cpu>,
    u: &Rows,
    out: &mut [f32],
    probe: &mut dyn Probe<Cpu>,
) -> Result<Routing> {
    let hidden = u.width;
    let tokens = u.data.len() / hidden;
    let routing = route(cpu, w, &u.data, hidden);
    let plain = T::of(cpu, &u.data);
    show(cpu, probe, Site::SharedFc1, u, tokens)?;
    let shared_input = quantized::<T>(cpu, u, w.shared_fc1.input.as_deref());
    let mut shared =
        Shared { input: shared_input.as_deref().unwrap_or(&plain), inner: rows(cpu, tokens, w.spec.shared_ffn) };
    let sent = Sent::new(&routing.experts, w.spec.experts as usize, w.spec.top_k as usize);
    let Some((down, up)) = &w.latent else {
        let input = Routed { rows: u, plain: &plain, sent: &sent, routing: &routing };
        let routed = experts::<T>(cpu, w, &input, Some((&mut shared, out)), probe)?;
        cpu.add_rows(&routed.data, out, hidden);
        return Ok(routing);
    };
    show(cpu, probe, Site::LatentDown, u, tokens)?;
    let down_input = quantized::<T>(cpu, u, down.input.as_deref());
    let down_input = down_input.as_deref().unwrap_or(&plain);
    let mut latent = rows(cpu, tokens, w.spec.latent.unwrap_or_default());
    cpu.products(&mut [
        (down_input, &down.matrix, &mut latent.data),
        (shared.input, &w.shared_fc1.matrix, &mut shared.inner.data),
    ]);
    let input = Routed { rows: &latent, plain: &T::of(cpu, &latent.data), sent: &sent, routing: &routing };
    let routed = experts::<T>(cpu, w, &input, None, probe)?;
    show(cpu, probe, Site::LatentUp, &routed, tokens)?;
    let routed_input = enter::<T>(cpu, &routed, up.input.as_deref());
    let shared_inner = shared.activate(cpu, w, tokens, probe)?;
    let mut added = cpu.floats(out.len());
    cpu.products(&mut [(&routed_input, &up.matrix, out), (&shared_inner, &w.shared_fc2.matrix, &mut added)]);
    cpu.add_rows(&added, out, hidden);
    Ok(routing)
}

/// A buffer of any content.
fn rows(cpu: &Cpu, rows: usize, width: u64) -> Rows {
    Rows { width: width as usize, data: cpu.floats(rows * width as usize) }
}

/// What a linear with this quantizer reads; `None` without one.
fn quantized<T: Element>(cpu: &Cpu, x: &Rows, quantizer: Option<&InputQuantizer>) -> Option<Pooled<T>> {
    quantizer.map(|quantizer| T::own(cpu, cpu.fake_quantize(x, quantizer).data))
}

/// What a linear reads.
fn enter<'a, T: Element>(cpu: &Cpu, x: &'a Rows, quantizer: Option<&InputQuantizer>) -> Input<'a, T> {
    quantized::<T>(cpu, x, quantizer).map_or_else(|| T::of(cpu, &x.data), Input::Rounded)
}

/// The shared expert on its way: where it reads what the routed experts read, its products join theirs.
struct Shared<'a, T> {
    input: &'a [T],
    inner: Rows,
}

impl<T: Element> Shared<'_, T> {
    /// From the first linear's result to the second one's input.
    fn activate(
        &mut self,
        cpu: &Cpu,
        w: &MoeWeights<Cpu>,
        tokens: usize,
        probe: &mut dyn Probe<Cpu>,
    ) -> Result<Input<'_, T>> {
        cpu.relu_squared_rows(&mut self.inner.data, self.inner.width);
        show(cpu, probe, Site::SharedFc2, &self.inner, tokens)?;
        Ok(enter::<T>(cpu, &self.inner, w.shared_fc2.input.as_deref()))
    }
}

/// What the routed experts read.
struct Routed<'a, T> {
    rows: &'a Rows,
    /// The same as it enters a product that is not quantized.
    plain: &'a [T],
    sent: &'a Sent,
    routing: &'a Routing,
}

/// The tokens of each expert.
struct Sent {
    /// Token and its slot (the index into the routing's weights), expert by expert.
    rows: Vec<(usize, usize)>,
    /// First row of each expert, and the end.
    starts: Vec<usize>,
}

impl Sent {
    fn new(chosen: &[u32], experts: usize, top_k: usize) -> Self {
        let mut starts = vec![0; experts + 1];
        for &e in chosen {
            starts[e as usize + 1] += 1;
        }
        for e in 0..experts {
            starts[e + 1] += starts[e];
        }
        let mut next = starts.clone();
        let mut rows = vec![(0, 0); chosen.len()];
        for (slot, &e) in chosen.iter().enumerate() {
            rows[next[e as usize]] = (slot / top_k, slot);
            next[e as usize] += 1;
        }
        Self { rows, starts }
    }

    /// Rows of the experts, in their order, as each one's own quantizer leaves them.
    fn quantize(&self, cpu: &Cpu, rows: &[f32], width: usize, quantizers: &[InputQuantizer]) -> Pooled<f32> {
        let mut data = cpu.floats(rows.len());
        row_blocks(&cpu.pool, &mut data, width, 8, |first, out| {
            out.copy_from_slice(&rows[first * width..][..out.len()]);
            for (i, row) in out.chunks_exact_mut(width).enumerate() {
                let expert = self.starts.partition_point(|&start| start <= first + i) - 1;
                quantizers[expert].apply(row);
            }
        });
        data
    }

    /// Experts with tokens, and how many.
    fn busy(&self) -> impl Iterator<Item = (usize, usize)> {
        self.starts.windows(2).enumerate().map(|(e, w)| (e, w[1] - w[0])).filter(|&(_, rows)| rows > 0)
    }
}

/// `sum_e weight * fc2(relu(fc1(x[t]))^2)` of every token t.
fn experts<T: Element>(
    cpu: &Cpu,
    w: &MoeWeights<Cpu>,
    x: &Routed<'_, T>,
    shared: Option<(&mut Shared<'_, T>, &mut [f32])>,
    probe: &mut dyn Probe<Cpu>,
) -> Result<Rows> {
    let Routed { sent, routing, .. } = *x;
    let (width, ffn) = (x.rows.width, w.spec.expert_ffn as usize);
    let tokens = x.rows.data.len() / width;
    // A token's row is quantized once for all of its experts, unless each has a quantizer of its own.
    let input = if let [all] = &w.fc1.inputs[..] { quantized::<T>(cpu, x.rows, Some(all)) } else { None };
    let input = input.as_deref().unwrap_or(x.plain);
    if probe.all_experts() {
        show_all::<T>(cpu, w, x.rows, input, probe)?;
    } else if probe.wants(Site::ExpertFc1) {
        let rows: Vec<usize> = sent.rows.iter().map(|r| r.0).collect();
        let experts = ExpertRows { starts: &sent.starts, rows: Some(&rows), weights: None };
        let (site, experts) = (Site::ExpertFc1, Some(experts));
        probe.inputs(cpu, &Inputs { site, rows: x.rows, count: tokens, experts })?;
    }
    let gathered = if w.fc1.inputs.len() > 1 {
        let mut gathered = cpu.floats(sent.rows.len() * width);
        gather(&mut gathered, &x.rows.data, sent, width);
        T::own(cpu, sent.quantize(cpu, &gathered, width, &w.fc1.inputs))
    } else {
        let mut gathered = T::buffer(cpu, sent.rows.len() * width);
        gather(&mut gathered, input, sent, width);
        gathered
    };
    let mut inner = rows(cpu, sent.rows.len(), w.spec.expert_ffn);
    let mut jobs = split(sent, &w.fc1.matrices, &gathered, width, &mut inner.data, ffn);
    let mut shared = shared;
    if let Some((shared, _)) = &mut shared {
        jobs.push((shared.input, &w.shared_fc1.matrix, &mut shared.inner.data));
    }
    cpu.products(&mut jobs);
    cpu.relu_squared_rows(&mut inner.data, ffn);
    let weights: Vec<f32> = sent.rows.iter().map(|r| routing.weights[r.1]).collect();
    if probe.wants(Site::ExpertFc2) {
        let experts = ExpertRows { starts: &sent.starts, rows: None, weights: Some(&weights) };
        let (site, experts) = (Site::ExpertFc2, Some(experts));
        probe.inputs(cpu, &Inputs { site, rows: &inner, count: sent.rows.len(), experts })?;
    }
    if w.weight_before_fc2 {
        row_blocks(&cpu.pool, &mut inner.data, ffn, 8, |first, rows| {
            for (row, weight) in rows.chunks_exact_mut(ffn).zip(&weights[first..]) {
                for x in row {
                    *x *= weight;
                }
            }
        });
    }
    let inner = match &w.fc2.inputs[..] {
        each @ [_, _, ..] => Input::Rounded(T::own(cpu, sent.quantize(cpu, &inner.data, ffn, each))),
        inputs => enter::<T>(cpu, &inner, inputs.first()),
    };
    let mut results = cpu.floats(sent.rows.len() * width);
    let mut jobs = split(sent, &w.fc2.matrices, &inner, ffn, &mut results, width);
    let shared = match shared {
        Some((shared, out)) => Some((shared.activate(cpu, w, tokens, probe)?, out)),
        None => None,
    };
    match shared {
        Some((inner, out)) => {
            jobs.push((&inner, &w.shared_fc2.matrix, out));
            cpu.products(&mut jobs);
        }
        None => cpu.products(&mut jobs),
    }
    // Where each slot's result is; a token's slots are in ascending order of experts.
    let mut at = vec![0; sent.rows.len()];
    for (row, &(_, slot)) in sent.rows.iter().enumerate() {
        at[slot] = row;
    }
    let top_k = w.spec.top_k as usize;
    let mut out = rows(cpu, tokens, width as u64);
    row_blocks(&cpu.pool, &mut out.data, width, 8, |first, rows| {
        for (t, out) in rows.chunks_exact_mut(width).enumerate() {
            out.fill(0.0);
            for slot in (first + t) * top_k..(first + t + 1) * top_k {
                let weight = if w.weight_before_fc2 { 1.0 } else { routing.weights[slot] };
                norm::axpy(cpu.isa, weight, &results[at[slot] * width..][..width], out);
            }
        }
    });
    Ok(out)
}

/// The rows that are sent to the experts.
fn gather<T: Copy>(into: &mut [T], rows: &[T], sent: &Sent, width: usize) {
    for (row, &(token, _)) in into.chunks_exact_mut(width).zip(&sent.rows) {
        row.copy_from_slice(&rows[token * width..][..width]);
    }
}

/// Shows the probe all tokens in every expert, one expert at a time.
fn show_all<T: Element>(
    cpu: &Cpu,
    w: &MoeWeights<Cpu>,
    x: &Rows,
    input: &[T],
    probe: &mut dyn Probe<Cpu>,
) -> Result<()> {
    let tokens = x.data.len() / x.width;
    for (e, fc1) in w.fc1.matrices.iter().enumerate() {
        let starts: Vec<usize> = (0..=w.fc1.matrices.len()).map(|i| if i <= e { 0 } else { tokens }).collect();
        let experts = Some(ExpertRows { starts: &starts, rows: None, weights: None });
        if probe.wants(Site::ExpertFc1) {
            probe.inputs(cpu, &Inputs { site: Site::ExpertFc1, rows: x, count: tokens, experts })?;
        }
        if probe.wants(Site::ExpertFc2) {
            let own = w.fc1.inputs.get(e).filter(|_| w.fc1.inputs.len() > 1);
            let own = quantized::<T>(cpu, x, own);
            let input = own.as_deref().unwrap_or(input);
            let mut inner = rows(cpu, tokens, w.spec.expert_ffn);
            cpu.products(&mut [(input, fc1, &mut inner.data)]);
            cpu.relu_squared_rows(&mut inner.data, inner.width);
            probe.inputs(cpu, &Inputs { site: Site::ExpertFc2, rows: &inner, count: tokens, experts })?;
        }
    }
    Ok(())
}

/// One product for each expert that has tokens.
fn split<'a, T>(
    sent: &Sent,
    weights: &'a [Matrix],
    x: &'a [T],
    width: usize,
    out: &'a mut [f32],
    out_width: usize,
) -> Vec<(&'a [T], &'a Matrix, &'a mut [f32])> {
    let mut out = out;
    let mut x = x;
    let mut jobs = Vec::new();
    for (e, rows) in sent.busy() {
        let (input, x_rest) = x.split_at(rows * width);
        let (result, out_rest) = std::mem::take(&mut out).split_at_mut(rows * out_width);
        (x, out) = (x_rest, out_rest);
        jobs.push((input, &weights[e], result));
    }
    jobs
}

/// Scores, choice and weights of every token.
fn route(cpu: &Cpu, w: &MoeWeights<Cpu>, u: &[f32], hidden: usize) -> Routing {
    let (experts, top_k) = (w.spec.experts as usize, w.spec.top_k as usize);
    let tokens = u.len() / hidden;
    let mut logits = vec![0.0; tokens * experts];
    f32::products(cpu, &mut [(u, &w.router, &mut logits)]);
    let mut routing = Routing { logits, experts: vec![0; tokens * top_k], weights: vec![0.0; tokens * top_k] };
    let mut scores = vec![0.0; experts];
    let rows = routing.logits.chunks_exact(experts);
    let slots = routing.experts.chunks_exact_mut(top_k).zip(routing.weights.chunks_exact_mut(top_k));
    for (logits, (chosen, weights)) in rows.zip(slots) {
        sigmoids(cpu.isa, logits, &mut scores);
        choose(&w.spec, &scores, &w.expert_bias, chosen);
        weigh(&w.spec, &scores, chosen, weights);
    }
    routing
}

#[inline(always)]
fn sigmoids_body(x: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = sigmoid(x);
    }
}

per_isa! {
    fn sigmoids(x: &[f32], out: &mut [f32]) = sigmoids_body;
}

/// The `top_k` experts with the highest biased scores among the best groups, in ascending order. Of equal ones the first.
fn choose(spec: &Moe, scores: &[f32], bias: &[f32], chosen: &mut [u32]) {
    let mut biased: Vec<f32> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
    let (groups, kept) = (spec.n_group as usize, spec.topk_group as usize);
    if groups > 1 {
        let per_group = biased.len() / groups;
        // transformers scores a group by its best two experts, whatever `num_experts_per_tok`.
        let score = |group: &[f32]| {
            let mut best = [f32::NEG_INFINITY; 2];
            for &x in group {
                if x > best[0] {
                    best = [x, best[0]];
                } else if x > best[1] {
                    best[1] = x;
                }
            }
            best[0] + if per_group > 1 { best[1] } else { 0.0 }
        };
        let mut group_scores: Vec<f32> = biased.chunks_exact(per_group).map(score).collect();
        let mut keep = vec![false; groups];
        for _ in 0..kept {
            keep[take_highest(&mut group_scores)] = true;
        }
        for (group, keep) in biased.chunks_exact_mut(per_group).zip(keep) {
            if !keep {
                group.fill(f32::NEG_INFINITY);
            }
        }
    }
    for slot in &mut *chosen {
        *slot = take_highest(&mut biased) as u32;
    }
    chosen.sort_unstable();
}

/// The index of the highest value, which is replaced so that it is not found again. NaN counts as the lowest.
fn take_highest(values: &mut [f32]) -> usize {
    let mut best: Option<usize> = None;
    for (i, x) in values.iter().enumerate() {
        if x.to_bits() == TAKEN {
            continue;
        }
        if best.is_none_or(|b| *x > values[b] || (values[b].is_nan() && !x.is_nan())) {
            best = Some(i);
        }
    }
    let best = best.unwrap_or(0);
    values[best] = f32::from_bits(TAKEN);
    best
}

/// A NaN that no computation gives: marks what is taken.
const TAKEN: u32 = 0x7fab_cdef;

fn weigh(spec: &Moe, scores: &[f32], chosen: &[u32], weights: &mut [f32]) {
    for (weight, &e) in weights.iter_mut().zip(chosen) {
        *weight = scores[e as usize];
    }
    if spec.norm_topk_prob {
        let sum = weights.iter().sum::<f32>() + 1e-20;
        for weight in &mut *weights {
            *weight /= sum;
        }
    }
    for weight in weights {
        *weight *= spec.routed_scaling_factor as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(experts: u64, top_k: u64, n_group: u64, topk_group: u64) -> Moe {
        Moe {
            experts,
            top_k,
            expert_ffn: 1,
            shared_ffn: 1,
            latent: None,
            n_group,
            topk_group,
            norm_topk_prob: true,
            routed_scaling_factor: 2.0,
        }
    }

    #[test]
    fn the_bias_decides_the_choice_and_not_the_weights() {
        let (spec, scores) = (spec(4, 2, 1, 1), [0.1, 0.2, 0.3, 0.4]);
        let (mut chosen, mut weights) = ([0; 2], [0.0; 2]);
        choose(&spec, &scores, &[1.0, 0.0, 0.0, 0.0], &mut chosen);
        assert_eq!(chosen, [0, 3]);
        weigh(&spec, &scores, &chosen, &mut weights);
        assert!((weights[0] - 0.4).abs() < 1e-6 && (weights[1] - 1.6).abs() < 1e-6, "{weights:?}");
    }

    #[test]
    fn groups_compete_by_their_best_two() {
        // The best expert is in the second group, but the first group's two are better together.
        let scores = [0.5, 0.5, 0.9, 0.0];
        let mut chosen = [0; 2];
        choose(&spec(4, 2, 2, 1), &scores, &[0.0; 4], &mut chosen);
        assert_eq!(chosen, [0, 1]);
    }

    #[test]
    fn of_equal_experts_the_first_is_taken_and_none_twice() {
        let mut chosen = [0; 3];
        choose(&spec(4, 3, 1, 1), &[0.5; 4], &[0.0; 4], &mut chosen);
        assert_eq!(chosen, [0, 1, 2]);
        choose(&spec(4, 3, 1, 1), &[f32::NAN; 4], &[0.0; 4], &mut chosen);
        assert_eq!(chosen, [0, 1, 2]);
    }
}
