//! The correction biases of routers: the only weights whose last bits decide, since they choose experts.

use super::census::{Census, Piece};
use super::{Check, Finding, Severity, of};
use longshore_ckpt::Dtype;

/// Of so many values that 32-bit floats hold and bfloat16 does not, none being there is no chance: 1 in 2^16 is.
const ENOUGH: usize = 4;

pub(super) fn check(census: &Census<'_>, out: &mut Vec<Finding>) {
    let biases: Vec<&Piece> = census.pieces.iter().filter(|piece| piece.ends_with(".mlp.router.expert_bias")).collect();
    at_zero(&biases, out);
    rounded(&biases, out);
}

fn at_zero(biases: &[&Piece], out: &mut Vec<Finding>) {
    let zero: Vec<&Piece> = biases.iter().copied().filter(|piece| piece.stats.constant == Some(0.0)).collect();
    if zero.is_empty() {
        return;
    }
    let all = zero.len() == biases.len();
    let (severity, cause, remedy) = if all {
        let cause = "trained without correction biases, or none was loaded";
        (Severity::Note, cause, "compare with the source, if it has any")
    } else {
        let cause = "these layers' biases were not loaded and stayed at init";
        (Severity::Suspicious, cause, "make the checkpoint again from its source")
    };
    out.push(Finding {
        severity,
        check: Check::RouterBiasAtZero,
        evidence: format!("the correction biases of {} routers are exactly 0", of(zero.len(), biases.len())),
        tensors: zero.iter().flat_map(|piece| piece.stored.clone()).collect(),
        cause: cause.into(),
        remedy: remedy.into(),
    });
}

fn rounded(biases: &[&Piece], out: &mut Vec<Finding>) {
    let telling = |value: f32| value.fract() != 0.0;
    let count: usize = biases.iter().map(|piece| piece.stats.values.iter().filter(|v| telling(**v)).count()).sum();
    if count < ENOUGH || !biases.iter().all(|piece| piece.stats.fits_bf16) {
        return;
    }
    let narrow = biases.iter().filter(|piece| piece.dtype.size() < Dtype::Float32.size()).count();
    out.push(Finding {
        severity: Severity::Suspicious,
        check: Check::RouterBiasRounded,
        tensors: biases.iter().flat_map(|piece| piece.stored.clone()).collect(),
        evidence: format!(
            "all {count} values that are no whole numbers, in {} routers, are values of bfloat16; {} biases are stored \
             in 16 bits",
            biases.len(),
            narrow
        ),
        cause: "the biases passed through bfloat16 (a cast of the whole model): close scores now choose other experts"
            .into(),
        remedy: "make the checkpoint again and keep `e_score_correction_bias` / `expert_bias` in float32".into(),
    });
}
