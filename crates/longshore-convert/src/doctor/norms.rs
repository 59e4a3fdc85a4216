//! Norms that hold what they were made with: a trained norm is never one everywhere, nor zero.

use super::census::{Census, Piece};
use super::{Check, Finding, Severity, of};
use std::collections::BTreeMap;

/// A shorter norm may be one everywhere by chance.
const SHORTEST: u64 = 16;

/// Whether a norm holds ones alone.
pub(super) fn is_one(piece: &Piece) -> bool {
    piece.is_norm() && piece.stats.len() >= SHORTEST && piece.stats.constant == Some(1.0)
}

/// Norms of the trunk: those of MTP are told with the rest of it.
pub(super) fn check(census: &Census<'_>, out: &mut Vec<Finding>) {
    let trunk = || census.pieces.iter().filter(|piece| piece.is_norm() && !piece.is_mtp());
    let mut kinds: BTreeMap<&str, Vec<&Piece>> = BTreeMap::new();
    trunk().for_each(|piece| kinds.entry(&piece.kind).or_default().push(piece));
    let (mut whole, mut part, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, pieces) in &kinds {
        let ones: Vec<&Piece> = pieces.iter().copied().filter(|piece| is_one(piece)).collect();
        if !ones.is_empty() {
            let group = if ones.len() == pieces.len() { &mut whole } else { &mut part };
            group.push((*kind, ones, pieces.len()));
        }
        zeros.extend(pieces.iter().copied().filter(|piece| piece.stats.constant == Some(0.0)));
    }
    let trained = trunk().filter(|piece| !is_one(piece)).count();
    if !whole.is_empty() {
        let fusable = |kind: &str| {
            let pre = ["norm.weight", "input_layernorm.weight", "pre_mlp_layernorm.weight"];
            kind.strip_prefix("decoder.layers.{}.").is_some_and(|name| pre.contains(&name))
        };
        let all_fusable = whole.iter().all(|(kind, ..)| fusable(kind));
        let cause = if trained == 0 {
            "no norm was loaded, or the model was never trained"
        } else if all_fusable {
            "one side has these norms inside the linears (`…layer_norm_weight`, TE spec), the other as modules of their own \
             (local spec): a loader that is not strict did not find them and left them at init"
        } else {
            "these norms were not loaded and stayed at init"
        };
        let evidence = evidence(&whole, &format!("{trained} other norms are not"));
        out.push(finding(Severity::Broken, &whole, evidence, cause));
    }
    if !part.is_empty() {
        let evidence = evidence(&part, "the others of these kinds are not");
        let cause = "these layers were not loaded and stayed at init";
        out.push(finding(Severity::Suspicious, &part, evidence, cause));
    }
    if !zeros.is_empty() {
        out.push(Finding {
            severity: Severity::Broken,
            check: Check::NormsAtZero,
            tensors: zeros.iter().flat_map(|piece| piece.stored.clone()).collect(),
            evidence: format!("{} norms are exactly 0 everywhere: what follows them reads zeros", zeros.len()),
            cause:
                "memory that was never filled, or norms stored less one (zero-centered) under the names of plain ones"
                    .into(),
            remedy: "make the checkpoint again from its source; `longshore diff` shows whether the source has them"
                .into(),
        });
    }
}

type Group<'a> = (&'a str, Vec<&'a Piece>, usize);

fn evidence(groups: &[Group<'_>], others: &str) -> String {
    let said = |(kind, ones, all): &Group<'_>| format!("{} `{kind}`", of(ones.len(), *all));
    let list: Vec<String> = groups.iter().map(said).collect();
    format!("exactly 1 everywhere: {}; {others}", list.join(", "))
}

fn finding(severity: Severity, groups: &[Group<'_>], evidence: String, cause: &str) -> Finding {
    Finding {
        severity,
        check: Check::NormsAtOne,
        tensors: groups.iter().flat_map(|(_, ones, _)| ones).flat_map(|piece| piece.stored.clone()).collect(),
        evidence,
        cause: cause.into(),
        remedy: "convert again from the source with `--norms` (or `--spec`) as the program that loads it expects"
            .into(),
    }
}
