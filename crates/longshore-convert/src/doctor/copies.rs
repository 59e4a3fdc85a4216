//! Weights that are there more than once: experts of a layer, whole layers, embedding and output layer.

use super::census::{Census, Piece};
use super::{Check, Finding, Severity, of};
use std::collections::{BTreeMap, BTreeSet};

/// Fewer values may be equal by chance.
const FEWEST: u64 = 1024;

pub(super) fn check(census: &Census<'_>, out: &mut Vec<Finding>) {
    experts(census, out);
    layers(census, out);
    let hash =
        |name: &str| census.get(name).filter(|piece| piece.stats.constant.is_none()).map(|piece| piece.stats.hash);
    let vocabulary = ["embedding.word_embeddings.weight", "output_layer.weight"];
    if let [Some(a), Some(b)] = vocabulary.map(hash)
        && a == b
    {
        out.push(Finding {
            severity: Severity::Note,
            check: Check::EqualVocabulary,
            tensors: vocabulary.iter().filter_map(|name| census.get(name)).flat_map(|p| p.stored.clone()).collect(),
            evidence: "the output layer equals the embedding, bit for bit".into(),
            cause: "a model with tied embeddings, or an output layer that was not loaded".into(),
            remedy: "nothing, if the model was trained with tie_word_embeddings".into(),
        });
    }
}

/// How the equal experts of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pattern {
    /// Expert e equals expert e modulo this.
    Every(usize),
    /// Experts equal the first of their block of this many.
    Blocks(usize),
    /// Some other way.
    Other,
}

fn pattern(hashes: &[u64]) -> Pattern {
    let divisors = || (1..hashes.len()).filter(|p| hashes.len().is_multiple_of(*p));
    let every = |p: &usize| hashes.iter().enumerate().all(|(e, hash)| *hash == hashes[e % p]);
    let blocks = |p: &usize| hashes.iter().enumerate().all(|(e, hash)| *hash == hashes[e / p * p]);
    if let Some(p) = divisors().find(every) {
        return Pattern::Every(p);
    }
    divisors().filter(|p| *p > 1).rev().find(blocks).map_or(Pattern::Other, Pattern::Blocks)
}

fn experts(census: &Census<'_>, out: &mut Vec<Finding>) {
    let mut linears: BTreeMap<&str, Vec<&Piece>> = BTreeMap::new();
    for piece in census.pieces.iter().filter(|piece| piece.expert.is_some()) {
        linears.entry(&piece.name).or_default().push(piece);
    }
    let all = linears.len();
    let mut found: BTreeMap<Pattern, (BTreeSet<&str>, Vec<&Piece>, String)> = BTreeMap::new();
    for (name, experts) in linears {
        let mut same: BTreeMap<u64, Vec<&Piece>> = BTreeMap::new();
        for &piece in experts.iter().filter(|piece| piece.stats.constant.is_none() && piece.stats.len() >= FEWEST) {
            same.entry(piece.stats.hash).or_default().push(piece);
        }
        same.retain(|_, pieces| pieces.len() > 1);
        let Some(first) = same.values().min_by_key(|pieces| pieces[0].expert) else { continue };
        let hashes: Vec<u64> = experts.iter().map(|piece| piece.stats.hash).collect();
        let numbers = |pieces: &[&Piece]| {
            let list: Vec<String> = pieces.iter().filter_map(|p| p.expert).take(8).map(|e| e.to_string()).collect();
            list.join(", ")
        };
        let example = format!("experts {} are equal", numbers(first));
        let group = found.entry(pattern(&hashes)).or_insert_with(|| (BTreeSet::new(), Vec::new(), example));
        group.0.insert(name);
        group.1.extend(same.into_values().flatten());
    }
    for (pattern, (linears, mut pieces, example)) in found {
        pieces.sort_by_key(|piece| (&piece.name, piece.expert));
        let experts = pieces.iter().filter(|piece| Some(&piece.name.as_str()) == linears.first()).count();
        let (how, cause) = match pattern {
            Pattern::Every(1) => (
                "every expert equals the first".to_owned(),
                "one expert was copied into all: upcycling without training, or one expert's name for all".to_owned(),
            ),
            Pattern::Every(p) => (
                format!("expert e equals expert e modulo {p}"),
                format!(
                    "each of the expert-parallel ranks has {p} experts, and those of one rank were written for all: local \
                     numbers of experts were taken for global ones"
                ),
            ),
            Pattern::Blocks(p) => (
                format!("blocks of {p} experts are equal"),
                format!("upcycling without training, or {p} ranks of expert tensor parallelism taken for experts"),
            ),
            Pattern::Other => {
                ("without a pattern".to_owned(), "experts were written under each other's numbers".to_owned())
            }
        };
        out.push(Finding {
            severity: Severity::Broken,
            check: Check::EqualExperts,
            evidence: format!(
                "in {} linears of experts {example}: {how}; {experts} experts of the first have an equal",
                of(linears.len(), all)
            ),
            tensors: pieces.iter().flat_map(|piece| piece.stored.clone()).collect(),
            cause,
            remedy: "make the checkpoint again from its source, with the expert parallel size it was saved with".into(),
        });
    }
}

/// Layers that share matrices: what a matrix is called within its layer, and what it holds, is the same.
fn layers(census: &Census<'_>, out: &mut Vec<Finding>) {
    let is_judged = |piece: &&Piece| {
        !piece.layer.is_empty() && piece.is_matrix() && piece.stats.constant.is_none() && piece.stats.len() >= FEWEST
    };
    let mut matrices: BTreeMap<&str, usize> = BTreeMap::new();
    let mut same: BTreeMap<(&str, Option<u64>, u64), Vec<&Piece>> = BTreeMap::new();
    for piece in census.pieces.iter().filter(is_judged) {
        *matrices.entry(&piece.layer).or_default() += 1;
        let within = piece.name.get(piece.layer.len()..).unwrap_or_default();
        same.entry((within, piece.expert, piece.stats.hash)).or_default().push(piece);
    }
    let mut groups: BTreeMap<Vec<&str>, Vec<&Piece>> = BTreeMap::new();
    for pieces in same.into_values().filter(|pieces| pieces.len() > 1) {
        groups.entry(pieces.iter().map(|piece| piece.layer.as_str()).collect()).or_default().extend(pieces);
    }
    for (layers, pieces) in groups {
        let each = pieces.len() / layers.len();
        let all = layers.first().and_then(|layer| matrices.get(layer)).copied().unwrap_or(each);
        let names: Vec<&str> = layers.iter().map(|layer| layer.trim_end_matches('.')).collect();
        let mtp = layers.iter().any(|layer| layer.starts_with("mtp."));
        let (severity, cause) = if mtp {
            (Severity::Suspicious, "MTP was initialized from these layers and not trained")
        } else {
            (
                Severity::Broken,
                "one layer was written under several numbers, or the model was deepened without training",
            )
        };
        out.push(Finding {
            severity,
            check: Check::EqualLayers,
            evidence: format!("{} matrices are equal, bit for bit, in {}", of(each, all), names.join(", ")),
            tensors: pieces.iter().flat_map(|piece| piece.stored.clone()).collect(),
            cause: cause.into(),
            remedy: "make the checkpoint again from its source; look at the order of layers across pipeline stages"
                .into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_equal_experts() {
        assert_eq!(pattern(&[7, 7, 7, 7]), Pattern::Every(1));
        assert_eq!(pattern(&[1, 2, 1, 2, 1, 2]), Pattern::Every(2));
        assert_eq!(pattern(&[1, 1, 2, 2, 3, 3]), Pattern::Blocks(2));
        assert_eq!(pattern(&[1, 2, 3, 1]), Pattern::Other);
    }
}
