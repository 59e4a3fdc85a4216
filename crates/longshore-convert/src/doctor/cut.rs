//! Mamba tensors that tensor parallelism cut, put together the wrong way.
//!
//! `in_proj` has the rows of z, x, B, C and dt, the convolution the channels of x, B and C, and a rank has a part of each.
//! Written one rank after the other (Megatron-LM `core/ssm/mamba_mixer.py`, `partition_sizes`) they are in another order
//! with every shape as it should be. Sections differ in what they do, so the lengths of their rows do: the order in which
//! the lengths of rows are most alike within sections is the order that the tensor is in.

use super::census::{Census, Piece};
use super::{Check, Finding, Severity, finite, of};
use crate::config::{LayerSpec, Mamba};

/// The parts of `in_proj` and of the convolution, in order.
pub(super) const SECTIONED: [(&str, &[&str]); 2] =
    [("mixer.in_proj.weight", &["z", "x", "B", "C", "dt"]), ("mixer.conv1d.weight", &["x", "B", "C"])];
/// Sizes of tensor parallelism that are tried.
const SIZES: [u64; 4] = [2, 4, 8, 16];
/// An order is preferred that leaves less than this part of the variance within sections: in at least half of the layers,
/// and in all together.
const CLEAR: f64 = 0.9;
/// Fewer rows in all layers together say nothing.
const FEWEST_ROWS: usize = 256;

/// How the parts of ranks came into the wrong order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mistake {
    /// The parts of rank 0, then those of rank 1, …
    Joined,
    /// A rank's rows were taken as one slice of the whole, and then gathered section by section.
    Sliced,
}

/// An order in which rows may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cut {
    pub(super) tp: u64,
    pub(super) mistake: Mistake,
}

impl Cut {
    /// Every order that a mixer of these sizes can be in.
    pub(super) fn possible(mamba: &Mamba) -> Vec<Self> {
        let divides = |tp: &u64| mamba.heads.is_multiple_of(*tp) && mamba.groups.is_multiple_of(*tp);
        let both = |tp| [Mistake::Joined, Mistake::Sliced].map(|mistake| Self { tp, mistake });
        SIZES.into_iter().filter(divides).flat_map(both).collect()
    }

    /// For each row of the tensor in this order, the row of the right one.
    pub(super) fn order(self, sections: &[u64]) -> Vec<usize> {
        let mut joined = Vec::new();
        for rank in 0..self.tp {
            let mut begin = 0;
            for size in sections {
                let part = size / self.tp;
                joined.extend((begin + rank * part..begin + (rank + 1) * part).map(|row| row as usize));
                begin += size;
            }
        }
        if self.mistake == Mistake::Joined {
            return joined;
        }
        let mut sliced = vec![0; joined.len()];
        for (at, row) in joined.into_iter().enumerate() {
            sliced[row] = at;
        }
        sliced
    }

    pub(super) fn cause(self) -> String {
        let Self { tp, mistake } = self;
        match mistake {
            Mistake::Joined => format!(
                "the parts of {tp} tensor-parallel ranks were written one after the other, and not section by section"
            ),
            Mistake::Sliced => format!(
                "each of {tp} tensor-parallel ranks took one slice of the whole tensor, as if it were no more than one section"
            ),
        }
    }
}

/// A Mamba layer of the trunk: what its names begin with, and its sizes.
pub(super) fn layers(census: &Census<'_>) -> Vec<(String, Mamba)> {
    let layers = (0..).zip(&census.config().layers);
    let mamba = layers.filter_map(|(i, layer)| match layer {
        LayerSpec::Mamba(mamba) => Some(((census.source.model.architecture.layer_prefix)(i), *mamba)),
        _ => None,
    });
    mamba.collect()
}

/// The pieces of a tensor of sections, if all of them are there and finite.
pub(super) fn sections<'a>(census: &'a Census<'_>, tensor: &str, parts: &[&str]) -> Option<Vec<&'a Piece>> {
    let piece = |part: &&str| census.get(&format!("{tensor}.{part}")).filter(|piece| finite(&piece.stats));
    parts.iter().map(piece).collect()
}

/// What the layers say of one order.
struct Votes {
    cut: Cut,
    within: f64,
    /// Layers that prefer this order.
    layers: usize,
}

pub(super) fn check_statistics(census: &Census<'_>, out: &mut Vec<Finding>) {
    let layers = layers(census);
    let Some((_, mamba)) = layers.first() else { return };
    for (tensor, parts) in SECTIONED {
        let mut votes: Vec<Votes> =
            Cut::possible(mamba).into_iter().map(|cut| Votes { cut, within: 0.0, layers: 0 }).collect();
        let (mut right, mut rows, mut counted, mut tensors) = (0.0, 0, 0, Vec::new());
        for (prefix, _) in &layers {
            let Some(pieces) = sections(census, &format!("{prefix}{tensor}"), parts) else { continue };
            let squares: Vec<f64> = pieces.iter().flat_map(|piece| piece.stats.row_squares.iter().copied()).collect();
            if squares.contains(&0.0) {
                continue;
            }
            let lengths: Vec<f64> = squares.into_iter().map(f64::ln).collect();
            let sizes: Vec<u64> = pieces.iter().map(|piece| piece.stats.rows).collect();
            let labels: Vec<usize> =
                sizes.iter().enumerate().flat_map(|(i, n)| std::iter::repeat_n(i, *n as usize)).collect();
            let as_it_is = within(&lengths, labels.iter().copied(), parts.len());
            for vote in &mut votes {
                let order = vote.cut.order(&sizes);
                let other = within(&lengths, order.iter().map(|row| labels[*row]), parts.len());
                vote.within += other;
                vote.layers += usize::from(other < CLEAR * as_it_is);
            }
            (right, rows, counted) = (right + as_it_is, rows + lengths.len(), counted + 1);
            tensors.extend(pieces.iter().flat_map(|piece| piece.stored.clone()));
        }
        let Some(best) = votes.iter().min_by(|a, b| a.within.total_cmp(&b.within)) else { continue };
        if rows < FEWEST_ROWS || best.within >= CLEAR * right || best.layers * 2 < counted {
            continue;
        }
        tensors.dedup();
        out.push(Finding {
            severity: Severity::Suspicious,
            check: Check::MambaCut,
            tensors,
            evidence: format!(
                "read as cut for tp {}, the lengths of the rows of `{tensor}` vary within sections {:.0} % as much as in \
                 the order they are in; {} layers prefer it",
                best.cut.tp,
                100.0 * best.within / right,
                of(best.layers, counted)
            ),
            cause: best.cut.cause(),
            remedy: "`longshore doctor CKPT --against SOURCE` proves it; then make the checkpoint again".into(),
        });
    }
}

/// The sum of squares about the means of sections.
fn within(values: &[f64], labels: impl Iterator<Item = usize>, sections: usize) -> f64 {
    // Values less the mean of all lose no digits to it.
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let mut sums = vec![(0.0, 0.0); sections];
    let mut total = 0.0;
    for (value, label) in values.iter().zip(labels) {
        let value = value - mean;
        total += value * value;
        if let Some((sum, count)) = sums.get_mut(label) {
            *sum += value;
            *count += 1.0;
        }
    }
    let between = |(sum, count): &(f64, f64)| if *count > 0.0 { sum * sum / count } else { 0.0 };
    total - sums.iter().map(between).sum::<f64>()
}

/// What a rank has of each, by heads or by channels of heads.
const BY_HEADS: [&str; 4] = ["mixer.A_log", "mixer.D", "mixer.dt_bias", "mixer.norm.weight"];

/// Parameters of heads of which every rank wrote the same part.
pub(super) fn check_replicated(census: &Census<'_>, out: &mut Vec<Finding>) {
    let layers = layers(census);
    let (mut tensors, mut said, mut most) = (Vec::new(), Vec::new(), 0);
    for name in BY_HEADS {
        let pieces: Vec<(&Piece, u64)> = layers
            .iter()
            .filter_map(|(prefix, mamba)| Some((census.get(&format!("{prefix}{name}"))?, mamba.heads)))
            .collect();
        let found: Vec<(&Piece, u64)> = pieces
            .iter()
            .filter_map(|(piece, heads)| repeated(&piece.stats.values, *heads).map(|times| (*piece, times)))
            .collect();
        if found.len() * 2 < pieces.len() || found.is_empty() {
            continue;
        }
        most = most.max(found.iter().map(|(_, times)| *times).max().unwrap_or(0));
        said.push(format!("{} `{name}`", of(found.len(), pieces.len())));
        tensors.extend(found.iter().flat_map(|(piece, _)| piece.stored.clone()));
    }
    if tensors.is_empty() {
        return;
    }
    out.push(Finding {
        severity: Severity::Broken,
        check: Check::MambaReplicated,
        tensors,
        evidence: format!("the first 1/{most} of the heads is repeated {most} times, bit for bit: {}", said.join(", ")),
        cause: format!(
            "saved at tensor parallel size {most} by a program that takes these parameters for replicated: all ranks wrote \
             the part of one, and the others are lost"
        ),
        remedy: "save again at tensor parallel size 1, or split these parameters along heads; the lost values are only in \
                 the source"
            .into(),
    });
}

/// How many times the first values are repeated, the most that there is; they must not be all equal.
fn repeated(values: &[f32], heads: u64) -> Option<u64> {
    let is_repeated = |tp: &u64| {
        let part = values.len() / *tp as usize;
        heads.is_multiple_of(*tp)
            && part > 1
            && values.iter().any(|v| *v != values[0])
            && values.iter().zip(values.iter().skip(part)).all(|(a, b)| a.to_bits() == b.to_bits())
    };
    SIZES.into_iter().rev().find(is_repeated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_those_of_the_definition() {
        let rows = |mistake| Cut { tp: 2, mistake }.order(&[4, 2]);
        assert_eq!(rows(Mistake::Joined), [0, 1, 4, 2, 3, 5]);
        let (joined, sliced) = (rows(Mistake::Joined), rows(Mistake::Sliced));
        assert_eq!(joined.iter().map(|&row| sliced[row]).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn the_variance_within_sections_is_least_in_the_right_order() {
        let values = [1.0, 1.0, 1.0, 5.0];
        assert!(within(&values, [0, 0, 0, 1].into_iter(), 2).abs() < 1e-12);
        assert!((within(&values, [0, 0, 1, 1].into_iter(), 2) - 8.0).abs() < 1e-12);
    }

    #[test]
    fn repetition_is_found_where_it_is() {
        assert_eq!(repeated(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0], 8), Some(4));
        assert_eq!(repeated(&[1.0, 2.0, 3.0, 1.0, 2.0, 3.0], 6), Some(2));
        assert_eq!(repeated(&[1.0, 2.0, 3.0, 4.0], 4), None);
        assert_eq!(repeated(&[1.0, 1.0, 1.0, 1.0], 4), None, "a constant says nothing");
    }
}
