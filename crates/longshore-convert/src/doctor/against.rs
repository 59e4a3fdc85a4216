//! What a checkpoint differs in from one that is known to be right, and which mistake explains each difference.
//!
//! Tensors with equal hashes are equal. Of the others, rows are hashed and looked for in the orders that mistakes leave
//! them in; what no mistake explains is compared by value.

use super::census::{Census, Keep, Piece, box_of, scan};
use super::cut::{self, Cut};
use super::fresh::is_fresh;
use super::{Check, Finding, Severity, of};
use crate::Result;
use crate::compare::{Values, check_cancelled, compare_box, parallel};
use crate::config::{Attention, LayerSpec};
use crate::progress::Progress;
use crate::source::Source;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// bfloat16 is at most this far from what was rounded or cut off, relative to it.
const ROUNDING: f64 = 1.0 / 256.0;

/// A tensor, or an expert of one, that is not as in the other checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Differing {
    /// Its names in the checkpoint.
    pub tensors: Vec<String>,
    /// The check that explains it.
    pub explained_by: Check,
    /// Elements of other value, and the largest differences, where they were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<DifferingValues>,
}

/// By how much.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DifferingValues {
    /// Elements of other value.
    pub count: u64,
    /// The largest absolute difference.
    pub max_abs: f64,
    /// The largest difference relative to the larger magnitude.
    pub max_rel: f64,
}

/// The differences that are not explained yet, and those that are.
struct Differences<'a> {
    left: &'a Census<'a>,
    right: &'a Census<'a>,
    /// By index of the left's pieces: the right's piece.
    open: BTreeMap<usize, &'a Piece>,
    differing: Vec<Differing>,
}

impl Differences<'_> {
    fn explain(&mut self, index: usize, check: Check, values: Option<DifferingValues>) {
        if self.open.remove(&index).is_some() {
            let tensors = self.left.pieces[index].stored.clone();
            self.differing.push(Differing { tensors, explained_by: check, values });
        }
    }

    fn explain_all(&mut self, indices: &[usize], check: Check) {
        for index in indices {
            self.explain(*index, check, None);
        }
    }

    fn names(&self, indices: &[usize]) -> Vec<String> {
        let mut names: Vec<String> = indices.iter().flat_map(|i| self.left.pieces[*i].stored.clone()).collect();
        names.dedup();
        names
    }

    /// The open differences whose name ends so.
    fn ending(&self, suffix: &str) -> Vec<usize> {
        self.open.keys().copied().filter(|i| self.left.pieces[*i].ends_with(suffix)).collect()
    }
}

/// Compares `left` with `right`, adds what explains the differences to `out`, and lists them all.
pub(super) fn check(
    left: &Census<'_>,
    right: &Source,
    threads: usize,
    progress: &dyn Progress,
    out: &mut Vec<Finding>,
) -> Result<Vec<Differing>> {
    let right = Census::take(right, "Comparing", threads, progress)?;
    let theirs: BTreeMap<(&str, Option<u64>), &Piece> =
        right.pieces.iter().map(|piece| ((piece.name.as_str(), piece.expert), piece)).collect();
    let mut all = Differences { left, right: &right, open: BTreeMap::new(), differing: Vec::new() };
    let mut shapes = Vec::new();
    for (index, piece) in left.pieces.iter().enumerate() {
        match theirs.get(&(piece.name.as_str(), piece.expert)) {
            Some(other) if other.shape != piece.shape => shapes.push((piece, *other)),
            Some(other) if other.stats.hash != piece.stats.hash => _ = all.open.insert(index, *other),
            _ => {}
        }
    }
    presence(left, &right, out);
    misshaped(&shapes, out);
    already(&mut all, out, |check| check != Check::FreshInit);
    mamba(&mut all, out)?;
    attention(&mut all, out)?;
    experts(&mut all, out);
    elsewhere(&mut all, out);
    already(&mut all, out, |check| check == Check::FreshInit);
    row_order(&mut all, progress, out)?;
    values(&mut all, threads, progress, out)?;
    let mut differing = all.differing;
    differing.sort_by(|a, b| a.tensors.cmp(&b.tensors));
    Ok(differing)
}

/// Tensors that one side has alone.
fn presence(left: &Census<'_>, right: &Census<'_>, out: &mut Vec<Finding>) {
    let told: Vec<String> =
        out.iter().filter(|f| f.check == Check::Structure).flat_map(|f| f.tensors.clone()).collect();
    let alone = |a: &Census<'_>, b: &Census<'_>| -> Vec<String> {
        let pieces = a.pieces.iter().filter(|piece| !b.source.has(&piece.name));
        let mut names: Vec<String> = pieces.flat_map(|piece| piece.stored.clone()).collect();
        names.retain(|name| !told.contains(name));
        names
    };
    for (severity, tensors, what, cause) in [
        (
            Severity::Broken,
            alone(right, left),
            "only the other checkpoint has",
            "these were never saved, or dropped on the way",
        ),
        (
            Severity::Suspicious,
            alone(left, right),
            "the other checkpoint has not",
            "another model, or MTP that was added",
        ),
    ] {
        if !tensors.is_empty() {
            out.push(Finding {
                severity,
                check: Check::Structure,
                evidence: format!("{} tensors that {what}", tensors.len()),
                tensors,
                cause: cause.into(),
                remedy: "compare the two configs, e.g. num_nextn_predict_layers".into(),
            });
        }
    }
}

fn misshaped(shapes: &[(&Piece, &Piece)], out: &mut Vec<Finding>) {
    let Some((a, b)) = shapes.first() else { return };
    out.push(Finding {
        severity: Severity::Broken,
        check: Check::Structure,
        tensors: shapes.iter().flat_map(|(piece, _)| piece.stored.clone()).collect(),
        evidence: format!(
            "{} tensors have another shape than in the other checkpoint; the first: {:?} and {:?}",
            shapes.len(),
            a.shape,
            b.shape
        ),
        cause: "another model, or another config".into(),
        remedy: "compare the two configs".into(),
    });
}

/// Differences that a finding without the other checkpoint tells.
fn already(all: &mut Differences<'_>, out: &[Finding], which: impl Fn(Check) -> bool) {
    let told: BTreeMap<&String, Check> = out
        .iter()
        .filter(|finding| finding.severity != Severity::Note && which(finding.check))
        .flat_map(|finding| finding.tensors.iter().map(|name| (name, finding.check)))
        .collect();
    for index in all.open.keys().copied().collect::<Vec<_>>() {
        let told = all.left.pieces[index].stored.iter().find_map(|name| told.get(name).copied());
        // What the other checkpoint has too is no difference.
        let right = &all.open[&index].stats;
        let explains = |check: &Check| match check {
            Check::FreshInit | Check::MtpAtInit => !is_fresh(right),
            Check::RouterBiasRounded => !right.fits_bf16,
            _ => true,
        };
        if let Some(check) = told.filter(explains) {
            all.explain(index, check, None);
        }
    }
}

/// Hashes of the rows of a tensor; of a vector, its elements.
fn rows(source: &Source, piece: &Piece) -> Result<Vec<u64>> {
    if piece.shape.len() < 2 {
        return Ok(piece.stats.values.iter().map(|value| u64::from(value.to_bits())).collect());
    }
    match source.recipes().get(&piece.name) {
        Some(recipe) => Ok(scan(source, recipe, piece.expert, Keep::Hashes)?.row_hashes),
        None => Ok(Vec::new()),
    }
}

/// Whether `left` holds the rows of `right` in this order.
fn is_order(left: &[u64], right: &[u64], order: &[usize]) -> bool {
    left.len() == order.len() && left.iter().zip(order).all(|(row, from)| right.get(*from) == Some(row))
}

fn mamba(all: &mut Differences<'_>, out: &mut Vec<Finding>) -> Result<()> {
    let bias = ("mixer.conv1d.bias", cut::SECTIONED[1].1);
    let mut found: BTreeMap<Cut, Vec<usize>> = BTreeMap::new();
    let mut count = 0;
    for (prefix, sizes) in cut::layers(all.left) {
        for (tensor, parts) in cut::SECTIONED.into_iter().chain([bias]) {
            let name = format!("{prefix}{tensor}");
            let sides = [all.left, all.right].map(|census| cut::sections(census, &name, parts));
            let [Some(ours), Some(theirs)] = sides else { continue };
            let open = |part: &&str| all.ending(&format!("{name}.{part}"));
            let indices: Vec<usize> = parts.iter().flat_map(open).collect();
            if indices.is_empty() {
                continue;
            }
            count += 1;
            let hashes = |census: &Census<'_>, pieces: &[&Piece]| -> Result<Vec<u64>> {
                let parts: Result<Vec<Vec<u64>>> = pieces.iter().map(|piece| rows(census.source, piece)).collect();
                Ok(parts?.concat())
            };
            let (left, right) = (hashes(all.left, &ours)?, hashes(all.right, &theirs)?);
            let sections: Vec<u64> = ours.iter().map(|piece| piece.shape[0]).collect();
            let cut = Cut::possible(&sizes).into_iter().find(|cut| is_order(&left, &right, &cut.order(&sections)));
            if let Some(cut) = cut {
                found.entry(cut).or_default().extend(indices);
            }
        }
    }
    for (cut, indices) in found {
        let names = all.names(&indices);
        all.explain_all(&indices, Check::MambaCut);
        out.push(Finding {
            severity: Severity::Broken,
            check: Check::MambaCut,
            evidence: format!(
                "{} tensors of sections hold exactly the rows of the other checkpoint as cut for tp {}",
                of(names.len(), count.max(names.len())),
                cut.tp
            ),
            tensors: names,
            cause: cut.cause(),
            remedy: "make the checkpoint again with a program that gathers section by section".into(),
        });
    }
    Ok(())
}

/// Queries, keys and values one after the other, as rows of what Megatron interleaves by groups.
fn plain_order(attention: &Attention) -> Vec<usize> {
    let Attention { heads, kv_heads, head_dim, .. } = *attention;
    let (queries, size) = (heads / kv_heads, head_dim as usize);
    let head = |group: u64, slot: u64| {
        let first = (group * (queries + 2) + slot) as usize * size;
        first..first + size
    };
    let slots = [0..queries, queries..queries + 1, queries + 1..queries + 2];
    let heads = slots.into_iter().flat_map(|slots| (0..kv_heads).flat_map(move |g| slots.clone().map(move |s| (g, s))));
    heads.flat_map(|(group, slot)| head(group, slot)).collect()
}

fn attention(all: &mut Differences<'_>, out: &mut Vec<Finding>) -> Result<()> {
    let prefix = all.left.source.model.architecture.layer_prefix;
    let layers: Vec<(u64, LayerSpec)> = (0..).zip(all.left.config().layers.iter().copied()).collect();
    let mut found = Vec::new();
    for (i, layer) in layers {
        let LayerSpec::Attention(attention) = layer else { continue };
        let name = format!("{}self_attention.linear_qkv.weight", prefix(i));
        for index in all.ending(&name) {
            let (ours, theirs) = (&all.left.pieces[index], all.open[&index]);
            let (left, right) = (rows(all.left.source, ours)?, rows(all.right.source, theirs)?);
            let order = plain_order(&attention);
            if is_order(&left, &right, &order) || is_order(&right, &left, &order) {
                found.push(index);
            }
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let tensors = all.names(&found);
    let evidence = format!("{} layers hold exactly the rows of the other checkpoint in that order", found.len());
    all.explain_all(&found, Check::QkvOrder);
    out.push(Finding {
        severity: Severity::Broken,
        check: Check::QkvOrder,
        tensors,
        evidence,
        cause:
            "queries, keys and values were put one after the other where Megatron interleaves them by groups, or were \
                taken apart as if they were not interleaved"
                .into(),
        remedy: "make the checkpoint again from its source".into(),
    });
    Ok(())
}

/// Experts that are there under other numbers.
fn experts(all: &mut Differences<'_>, out: &mut Vec<Finding>) {
    let mut by_hash: BTreeMap<(&str, u64), u64> = BTreeMap::new();
    for piece in &all.right.pieces {
        if let Some(expert) = piece.expert {
            by_hash.entry((&piece.name, piece.stats.hash)).or_insert(expert);
        }
    }
    let (mut indices, mut moved) = (Vec::new(), Vec::new());
    for index in all.open.keys() {
        let piece = &all.left.pieces[*index];
        let from = by_hash.get(&(piece.name.as_str(), piece.stats.hash));
        if let (Some(expert), Some(from)) = (piece.expert, from) {
            indices.push(*index);
            moved.push(format!("{expert} holds {from}"));
        }
    }
    if indices.is_empty() {
        return;
    }
    let tensors = all.names(&indices);
    let shown = moved.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    all.explain_all(&indices, Check::ExpertOrder);
    out.push(Finding {
        severity: Severity::Broken,
        check: Check::ExpertOrder,
        tensors,
        evidence: format!("{} linears of experts are those of other experts of the layer: {shown}", indices.len()),
        cause: "expert-parallel ranks were put together in another order than the router numbers experts".into(),
        remedy: "make the checkpoint again from its source, with the expert parallel size it was saved with".into(),
    });
}

/// Tensors that are there under another name.
fn elsewhere(all: &mut Differences<'_>, out: &mut Vec<Finding>) {
    let mut by_hash: BTreeMap<(&[u64], u64), &Piece> = BTreeMap::new();
    for piece in all.right.pieces.iter().filter(|piece| piece.stats.constant.is_none()) {
        by_hash.entry((&piece.shape, piece.stats.hash)).or_insert(piece);
    }
    let found: Vec<(usize, &Piece)> = all
        .open
        .keys()
        .filter_map(|index| {
            let piece = &all.left.pieces[*index];
            by_hash.get(&(piece.shape.as_slice(), piece.stats.hash)).map(|from| (*index, *from))
        })
        .collect();
    let Some((first, from)) = found.first() else { return };
    let indices: Vec<usize> = found.iter().map(|(index, _)| *index).collect();
    out.push(Finding {
        severity: Severity::Broken,
        check: Check::OtherTensor,
        tensors: all.names(&indices),
        evidence: format!(
            "{} tensors are other tensors of the other checkpoint; `{}` is `{}`",
            found.len(),
            all.left.pieces[*first].stored.join("`, `"),
            from.stored.join("`, `")
        ),
        cause: "layers were numbered otherwise (pipeline stages in another order), or names were mixed up".into(),
        remedy: "make the checkpoint again from its source, with the pipeline layout it was saved with".into(),
    });
    all.explain_all(&indices, Check::OtherTensor);
}

/// The same rows, in an order that no mistake above explains.
fn row_order(all: &mut Differences<'_>, progress: &dyn Progress, out: &mut Vec<Finding>) -> Result<()> {
    let mut found = Vec::new();
    for (index, theirs) in &all.open {
        check_cancelled(progress)?;
        let ours = &all.left.pieces[*index];
        // The same rows have the same sum of squares, but for the order of additions.
        let [a, b] = [ours, *theirs].map(|piece| piece.stats.std);
        if !ours.is_matrix() || (a - b).abs() > 1e-9 * a.abs() {
            continue;
        }
        let (mut left, mut right) = (rows(all.left.source, ours)?, rows(all.right.source, theirs)?);
        left.sort_unstable();
        right.sort_unstable();
        if left == right {
            found.push(*index);
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    out.push(Finding {
        severity: Severity::Broken,
        check: Check::RowOrder,
        tensors: all.names(&found),
        evidence: format!("{} tensors hold exactly the rows of the other checkpoint, in another order", found.len()),
        cause: "parts of ranks or of heads were put together in another order".into(),
        remedy: "make the checkpoint again from its source".into(),
    });
    all.explain_all(&found, Check::RowOrder);
    Ok(())
}

/// What is left: other values, by how much, and whether rounding explains them.
fn values(all: &mut Differences<'_>, threads: usize, progress: &dyn Progress, out: &mut Vec<Finding>) -> Result<()> {
    let open: Vec<(usize, &Piece)> = all.open.iter().map(|(index, piece)| (*index, *piece)).collect();
    let (left, right) = (all.left, all.right);
    let size = |(index, _): &(usize, &Piece)| left.pieces[*index].stats.len() * left.pieces[*index].dtype.size();
    progress.start("Comparing values", open.iter().map(size).sum());
    let measured: Mutex<Vec<(usize, DifferingValues)>> = Mutex::default();
    parallel(threads, open.len(), |i| {
        check_cancelled(progress)?;
        let (index, _) = open[i];
        let piece = &left.pieces[index];
        let recipes = [left, right].map(|census| census.source.recipes().get(&piece.name));
        let [Some(a), Some(b)] = recipes else { return Ok(()) };
        let rect = box_of(a, piece.expert);
        let sides = ((a, left.source.files()), (b, right.source.files()));
        let advance = &mut |n| progress.advance(n, Path::new(&piece.name));
        if let Some(Values { count, max_abs, max_rel, .. }) = compare_box(sides.0, sides.1, &rect, 0.0, advance)? {
            let values = DifferingValues { count, max_abs, max_rel };
            measured.lock().unwrap_or_else(PoisonError::into_inner).push((index, values));
        }
        Ok(())
    })?;
    let mut measured = measured.into_inner().unwrap_or_else(PoisonError::into_inner);
    measured.sort_by_key(|(index, _)| *index);
    let is_rounded = |(index, values): &(usize, DifferingValues)| {
        let fits = |piece: &Piece| piece.stats.fits_bf16;
        values.max_rel <= ROUNDING && fits(&left.pieces[*index]) && !fits(all.open[index])
    };
    let (rounded, other): (Vec<_>, Vec<_>) = measured.into_iter().partition(is_rounded);
    let quantized = left.source.quantized.is_some() != right.source.quantized.is_some();
    let share = other.len() as f64 / left.pieces.len().max(1) as f64;
    let (severity, cause) = if quantized {
        (Severity::Note, "one of the two is quantized")
    } else if share > 0.5 {
        (Severity::Suspicious, "another state of training: fine-tuned, averaged, or another revision")
    } else {
        (Severity::Suspicious, "these alone were trained, edited or damaged; no known mistake explains them")
    };
    let groups = [
        (Check::Rounded, rounded, Severity::Note, "the values passed through bfloat16"),
        (Check::OtherValues, other, severity, cause),
    ];
    for (check, group, severity, cause) in groups {
        if group.is_empty() {
            continue;
        }
        let most = |of: fn(&DifferingValues) -> f64| group.iter().map(|(_, values)| of(values)).fold(0.0, f64::max);
        let indices: Vec<usize> = group.iter().map(|(index, _)| *index).collect();
        out.push(Finding {
            severity,
            check,
            tensors: all.names(&indices),
            evidence: format!(
                "{} tensors differ in {} values, by at most {:.3e} and {:.3e} of the larger",
                of(group.len(), left.pieces.len()),
                group.iter().map(|(_, values)| values.count).sum::<u64>(),
                most(|values| values.max_abs),
                most(|values| values.max_rel)
            ),
            cause: cause.into(),
            remedy: "`longshore diff` lists them with their first differing values".into(),
        });
        for (index, values) in group {
            all.explain(index, check, Some(values));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_keys_and_values_one_after_the_other() {
        // Two groups of two queries, key and value, heads of one row: q0 q1 k0 v0 q2 q3 k1 v1.
        let attention = Attention { heads: 4, kv_heads: 2, head_dim: 1, rotary: None };
        assert_eq!(plain_order(&attention), [0, 1, 4, 5, 2, 6, 3, 7]);
        let wide = Attention { head_dim: 2, ..attention };
        assert_eq!(plain_order(&wide)[..6], [0, 1, 2, 3, 8, 9]);
    }
}
