//! Values that no arithmetic survives, and zeros where weights should be.

use super::census::{Census, Piece, Zeros};
use super::{Check, Finding, Severity, finite};

/// A run of zero rows of at least one part in this many is a piece that is missing, not rows that training let die.
const PART: u64 = 16;

pub(super) fn check(census: &Census<'_>, out: &mut Vec<Finding>) {
    not_finite(census, out);
    all_zero(census, out);
    zero_rows(census, out);
    vocabulary(census, out);
}

fn names(pieces: &[&Piece]) -> Vec<String> {
    pieces.iter().flat_map(|piece| piece.stored.clone()).collect()
}

fn not_finite(census: &Census<'_>, out: &mut Vec<Finding>) {
    let bad: Vec<&Piece> = census.pieces.iter().filter(|piece| !finite(&piece.stats)).collect();
    let Some(first) = bad.first() else { return };
    let Some((row, col, value)) = first.stats.first_not_finite else { return };
    let count: u64 = bad.iter().map(|piece| piece.stats.not_finite).sum();
    let place = if first.stats.rows > 1 { format!("row {row}, column {col}") } else { format!("index {col}") };
    out.push(Finding {
        severity: Severity::Broken,
        check: Check::NotFinite,
        evidence: format!(
            "{count} values are NaN or infinite; the first is {value} in `{}` at {place}",
            first.stored.join("`, `")
        ),
        tensors: names(&bad),
        cause: "training diverged, a cast to float16 overflowed, or the file is damaged".into(),
        remedy: "`longshore verify` finds damage; otherwise take an earlier checkpoint, or cast to bfloat16".into(),
    });
}

/// Zero everywhere. Norms and the biases of routers have checks of their own.
fn all_zero(census: &Census<'_>, out: &mut Vec<Finding>) {
    let zero = |piece: &&Piece| {
        piece.stats.constant == Some(0.0) && !piece.is_norm() && !piece.ends_with(".mlp.router.expert_bias")
    };
    let (matrices, vectors): (Vec<&Piece>, Vec<&Piece>) =
        census.pieces.iter().filter(zero).partition(|piece| piece.is_matrix());
    for (severity, pieces, cause) in [
        (Severity::Broken, matrices, "memory that was never filled: the piece was not saved, or not loaded"),
        (Severity::Suspicious, vectors, "left at an init of zeros, or not loaded"),
    ] {
        if !pieces.is_empty() {
            out.push(Finding {
                severity,
                check: Check::AllZero,
                evidence: format!("all {} values are exactly 0", pieces.iter().map(|p| p.stats.len()).sum::<u64>()),
                tensors: names(&pieces),
                cause: cause.into(),
                remedy: "make the checkpoint again from its source; `longshore diff` shows whether the source has them"
                    .into(),
            });
        }
    }
}

/// Rows or columns of linears that are zero.
fn zero_rows(census: &Census<'_>, out: &mut Vec<Finding>) {
    let candidates = census.pieces.iter().filter(|piece| {
        piece.is_matrix() && !piece.is_vocabulary() && finite(&piece.stats) && piece.stats.constant != Some(0.0)
    });
    let (mut missing, mut dead): (Vec<&Piece>, Vec<&Piece>) = (Vec::new(), Vec::new());
    for piece in candidates {
        let s = &piece.stats;
        let is_part = |zeros: &Zeros, all: u64| zeros.run.1 > 1 && zeros.run.1 * PART >= all;
        if is_part(&s.zero_rows, s.rows) || is_part(&s.zero_cols, s.cols) {
            missing.push(piece);
        } else if s.zero_rows.count + s.zero_cols.count > 0 {
            dead.push(piece);
        }
    }
    let remedy = "compare with the source: `longshore doctor CKPT --against SOURCE`";
    if let Some(first) = missing.first() {
        let s = &first.stats;
        let (what, (at, run), all) = if s.zero_rows.run.1 * PART >= s.rows && s.zero_rows.run.1 > 1 {
            ("rows", s.zero_rows.run, s.rows)
        } else {
            ("columns", s.zero_cols.run, s.cols)
        };
        out.push(Finding {
            severity: Severity::Broken,
            check: Check::ZeroRows,
            evidence: format!(
                "{what} {at} to {} of {all} of `{}` are 0; {} tensors have a block of at least 1/{PART}",
                at + run - 1,
                first.stored.join("`, `"),
                missing.len()
            ),
            tensors: names(&missing),
            cause: "the part of one tensor-parallel rank, or one chunk, was never written".into(),
            remedy: remedy.into(),
        });
    }
    if !dead.is_empty() {
        let count = |zeros: fn(&Piece) -> &Zeros| dead.iter().map(|piece| zeros(piece).count).sum::<u64>();
        out.push(Finding {
            severity: Severity::Suspicious,
            check: Check::ZeroRows,
            evidence: format!(
                "{} rows and {} columns of {} linears are 0",
                count(|p| &p.stats.zero_rows),
                count(|p| &p.stats.zero_cols),
                dead.len()
            ),
            tensors: names(&dead),
            cause: "units that were pruned, or rows that were never written".into(),
            remedy: remedy.into(),
        });
    }
}

/// Rows of the vocabulary that are zero: padding, or tokens that were never seen.
fn vocabulary(census: &Census<'_>, out: &mut Vec<Finding>) {
    for piece in census.pieces.iter().filter(|piece| piece.is_vocabulary()) {
        let Zeros { count, run: (at, run), .. } = piece.stats.zero_rows;
        let rows = piece.stats.rows;
        if count == 0 || count == rows {
            continue;
        }
        let is_padding = count == run && at + run == rows;
        let cause = if is_padding { "padding of the vocabulary" } else { "tokens without a weight" };
        out.push(Finding {
            severity: if count * 2 > rows { Severity::Suspicious } else { Severity::Note },
            check: Check::ZeroRows,
            tensors: piece.stored.clone(),
            evidence: format!("{count} of {rows} rows are 0, at most {run} in a row from row {at}"),
            cause: cause.into(),
            remedy: "nothing, if the tokenizer never gives these ids".into(),
        });
    }
}
