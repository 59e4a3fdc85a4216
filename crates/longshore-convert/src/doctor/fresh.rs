//! Parameters that look as an initialization leaves them.
//!
//! A fresh matrix is normal: its kurtosis is 3, and its rows, and its columns, differ in length no more than chance makes
//! them. Training gives some rows and columns more to do than others, which shows in the lengths long before it shows in
//! the distribution of values. Megatron: `init_method_normal(0.02)`, outputs with `0.02 / sqrt(2 layers)`; Mamba's `D` ones,
//! `A_log` the logarithm of a uniform of 1 to 16, in transformers of 1, 2, 3, …

use super::census::{Census, Piece, Stats};
use super::norms;
use super::{Check, Finding, Severity, finite, of, range};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Shorter rows or columns say too little.
const SHORTEST: u64 = 64;
/// Standard errors that chance may take a statistic away from its mean: one matrix in millions goes further.
const ERRORS: f64 = 5.0;
/// Where so large a part of the matrices looks fresh, the whole model is: chance takes some of many past a threshold.
const UNTRAINED: f64 = 0.9;
/// Fewer heads may have any values by chance.
const FEWEST_HEADS: usize = 4;

/// Whether a matrix is large enough to be judged.
fn is_judged(piece: &Piece) -> bool {
    let s = &piece.stats;
    s.rows >= SHORTEST && s.cols >= SHORTEST && finite(s) && s.constant.is_none()
}

/// Whether a matrix looks as if it had just been made from a normal distribution.
pub(super) fn is_fresh(s: &Stats) -> bool {
    let len = s.len() as f64;
    let near = |value: f64, mean: f64, error: f64| (value - mean).abs() <= ERRORS * error + 0.02 * mean;
    near(s.kurtosis, 3.0, (24.0 / len).sqrt())
        && near(s.mean, 0.0, s.std / len.sqrt())
        && near(s.row_spread, 1.0, (0.5 / s.rows as f64).sqrt())
        && near(s.col_spread, 1.0, (0.5 / s.cols as f64).sqrt())
}

pub(super) fn check(census: &Census<'_>, out: &mut Vec<Finding>) {
    let judged: Vec<&Piece> = census.pieces.iter().filter(|piece| is_judged(piece)).collect();
    let (mtp, trunk): (Vec<&Piece>, Vec<&Piece>) = judged.into_iter().partition(|piece| piece.is_mtp());
    let fresh: Vec<&Piece> = trunk.iter().copied().filter(|piece| is_fresh(&piece.stats)).collect();
    let untrained = !fresh.is_empty() && fresh.len() as f64 >= UNTRAINED * trunk.len() as f64;
    if untrained {
        out.push(whole_model(&fresh, trunk.len()));
    } else {
        kinds(&trunk, out);
    }
    mamba(census, out);
    guesses(census, if untrained { &[] } else { &mtp }, out);
}

fn names<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Vec<String> {
    let mut names: Vec<String> = pieces.flat_map(|piece| piece.stored.clone()).collect();
    names.dedup();
    names
}

fn whole_model(pieces: &[&Piece], all: usize) -> Finding {
    Finding {
        severity: Severity::Suspicious,
        check: Check::FreshInit,
        tensors: names(pieces.iter().copied()),
        evidence: format!("{} matrices look freshly initialized: {}", of(pieces.len(), all), measured(pieces)),
        cause:
            "the model was never trained (or made for a test), or none of its weights was loaded before it was saved"
                .into(),
        remedy: "use the trained checkpoint; `longshore verify CKPT --against SOURCE` proves that a copy equals it"
            .into(),
    }
}

/// `std 0.020, kurtosis 2.998 to 3.004, spread of rows …`
fn measured(pieces: &[&Piece]) -> String {
    let show = |value: fn(&Stats) -> f64| range(pieces.iter().map(|piece| value(&piece.stats)));
    format!(
        "std {}, kurtosis {} (normal: 3), lengths of rows and columns spread {} and {} times as chance (fresh: 1)",
        show(|s| s.std),
        show(|s| s.kurtosis),
        show(|s| s.row_spread),
        show(|s| s.col_spread)
    )
}

/// Kinds of matrices of which some, or all, look fresh, while the model does not.
fn kinds(trunk: &[&Piece], out: &mut Vec<Finding>) {
    let mut kinds: BTreeMap<&str, (Vec<&Piece>, Vec<&Piece>)> = BTreeMap::new();
    for &piece in trunk {
        let group = kinds.entry(&piece.kind).or_default();
        if is_fresh(&piece.stats) { group.0.push(piece) } else { group.1.push(piece) }
    }
    for (kind, (fresh, others)) in kinds.iter().filter(|(_, (fresh, _))| !fresh.is_empty()) {
        let contrast = if others.is_empty() {
            "matrices of other kinds do not".to_owned()
        } else {
            let spread = |s: &Stats| s.row_spread.max(s.col_spread);
            format!("in the others they spread up to {} times", range(others.iter().map(|p| spread(&p.stats))))
        };
        let all = fresh.len() + others.len();
        out.push(Finding {
            severity: Severity::Suspicious,
            check: Check::FreshInit,
            tensors: names(fresh.iter().copied()),
            evidence: format!(
                "{} `{kind}` look freshly initialized: {}; {contrast}",
                of(fresh.len(), all),
                measured(fresh)
            ),
            cause:
                "these weights were not loaded (missing or renamed in the source, and a loader that is not strict) and \
                    stayed at init"
                    .into(),
            remedy: "find them in the source: `longshore doctor CKPT --against SOURCE`".into(),
        });
    }
}

/// Mamba's parameters of heads, which have exact values at init.
fn mamba(census: &Census<'_>, out: &mut Vec<Finding>) {
    let trunk = |suffix: &'static str| {
        census.pieces.iter().filter(move |piece| piece.ends_with(suffix) && !piece.is_mtp()).collect::<Vec<_>>()
    };
    let (skips, decays, steps) = (trunk(".mixer.D"), trunk(".mixer.A_log"), trunk(".mixer.dt_bias"));
    let at_one: Vec<&Piece> = skips
        .iter()
        .copied()
        .filter(|piece| piece.stats.values.len() >= FEWEST_HEADS && piece.stats.constant == Some(1.0))
        .collect();
    let counted: Vec<&Piece> = decays.iter().copied().filter(|piece| counts_heads(&piece.stats.values)).collect();
    if at_one.is_empty() && counted.is_empty() {
        return;
    }
    let softplus = |v: f32| f64::from(v).exp().ln_1p();
    let in_range = |piece: &&&Piece| piece.stats.values.iter().all(|&v| (0.0009..=0.101).contains(&softplus(v)));
    let whole = at_one.len() == skips.len() || counted.len() == decays.len();
    out.push(Finding {
        severity: if whole { Severity::Broken } else { Severity::Suspicious },
        check: Check::MambaAtInit,
        tensors: names(at_one.iter().chain(&counted).copied()),
        evidence: format!(
            "`D` is exactly 1 in {} layers and `A_log` log(1, 2, 3, …) in {}; softplus of `dt_bias` lies in the range of \
             the init, 0.001 to 0.1, in {}",
            of(at_one.len(), skips.len()),
            of(counted.len(), decays.len()),
            of(steps.iter().filter(in_range).count(), steps.len())
        ),
        cause: "these parameters were not loaded and stayed at init".into(),
        remedy: "look for `mixer.A_log`, `mixer.D` and `mixer.dt_bias` in the source, and make the checkpoint again".into(),
    });
}

/// Whether these are the logarithms of 1, 2, 3, …, as far as bfloat16 holds them.
fn counts_heads(values: &[f32]) -> bool {
    values.len() >= FEWEST_HEADS
        && (1..).zip(values).all(|(head, &value)| {
            let log = f64::from(head).ln();
            (f64::from(value) - log).abs() <= log / 256.0
        })
}

/// MTP that a checkpoint has and nobody trained.
fn guesses(census: &Census<'_>, judged: &[&Piece], out: &mut Vec<Finding>) {
    let norms: Vec<&Piece> = census.pieces.iter().filter(|piece| piece.is_mtp() && piece.is_norm()).collect();
    let ones: Vec<&Piece> = norms.iter().copied().filter(|piece| norms::is_one(piece)).collect();
    let fresh: Vec<&Piece> = judged.iter().copied().filter(|piece| is_fresh(&piece.stats)).collect();
    if ones.is_empty() && fresh.is_empty() {
        return;
    }
    let mut evidence = format!("{} norms of MTP are exactly 1 everywhere", of(ones.len(), norms.len()));
    if !judged.is_empty() {
        let _ = write!(evidence, "; {} of its matrices look freshly initialized", of(fresh.len(), judged.len()));
    }
    if !fresh.is_empty() {
        let _ = write!(evidence, ": {}", measured(&fresh));
    }
    let whole = ones.len() == norms.len();
    out.push(Finding {
        severity: if whole { Severity::Broken } else { Severity::Suspicious },
        check: Check::MtpAtInit,
        tensors: names(ones.iter().chain(&fresh).copied()),
        evidence,
        cause:
            "the source had no MTP, or it was not loaded: the model's own answers do not suffer, its guesses are noise"
                .into(),
        remedy: "take MTP from the release, or set num_nextn_predict_layers to 0".into(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_of_counted_heads_are_known_in_either_precision() {
        let logs: Vec<f32> = (1..=64).map(|head| f32::ln(f32::from(u8::try_from(head).unwrap()))).collect();
        assert!(counts_heads(&logs));
        let rounded: Vec<f32> = logs.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect();
        assert!(counts_heads(&rounded));
        let mut trained = logs;
        trained[40] += 0.02;
        assert!(!counts_heads(&trained));
    }
}
