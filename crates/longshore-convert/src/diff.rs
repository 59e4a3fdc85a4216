//! `diff`: how two checkpoints differ, tensor by tensor, in equal or different formats.

use crate::compare::{Side, Values, check_cancelled, compare, pair, parallel};
use crate::progress::Progress;
use crate::resolve::Recipe;
use crate::{Problem, Result};
use longshore_ckpt::Dtype;
use serde::Serialize;
use std::path::Path;
use std::sync::Mutex;

/// What counts as equal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// The same bits.
    Bits,
    /// A difference of at most this, relative to the larger magnitude.
    Relative(f64),
}

/// How to compare.
pub struct DiffOptions {
    /// Compares only tensors whose name (in the format of the first checkpoint) matches; `*` and `?` are wild.
    pub glob: Option<String>,
    /// What counts as equal.
    pub tolerance: Tolerance,
    /// Threads, at least one.
    pub threads: usize,
}

/// One way in which a tensor differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are the two checkpoints' values")]
pub enum Difference {
    /// The second checkpoint lacks it.
    OnlyInA,
    /// The first checkpoint lacks it.
    OnlyInB,
    /// Other shapes; the values were not compared.
    Shape { a: Vec<u64>, b: Vec<u64> },
    /// Other dtypes.
    Dtype { a: Dtype, b: Dtype },
    /// Other values: how many, the largest absolute and relative difference, and the first one with its index.
    Values { count: u64, max_abs: f64, max_rel: f64, first: Vec<u64>, a: f64, b: f64 },
    /// Quantizers that do not the same.
    Quantizer { a: String, b: String },
    /// The tensor could not be read.
    Unreadable { what: String },
}

/// A tensor that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiffEntry {
    /// Name, in the format of the first checkpoint where it has it.
    pub tensor: String,
    /// How.
    #[serde(flatten)]
    pub what: Difference,
}

/// The outcome.
#[derive(Clone, Debug, Serialize)]
pub struct DiffReport {
    /// Tensors in both.
    pub compared: u64,
    /// Tensors that are equal.
    pub equal: u64,
    /// The differences, by name.
    pub entries: Vec<DiffEntry>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Compares two checkpoints. Where the formats differ, a wider dtype with the same values is no difference.
pub fn diff(a: &Path, b: &Path, options: &DiffOptions, progress: &dyn Progress) -> Result<DiffReport> {
    let (left, right) = (Side::apart(a)?, Side::apart(b)?);
    let cross = left.catalog.format != right.catalog.format;
    let mut pairs = pair(&left, &right)?;
    let matches = |name: &str| options.glob.as_ref().is_none_or(|g| glob_matches(g, name));
    pairs.pairs.retain(|(r, _)| matches(&r.name));
    let mut entries = Vec::new();
    let mut add = |tensor: String, what| {
        if matches(&tensor) {
            entries.push(DiffEntry { tensor, what });
        }
    };
    pairs.only_a.into_iter().for_each(|name| add(name, Difference::OnlyInA));
    pairs.only_b.into_iter().for_each(|name| add(name, Difference::OnlyInB));
    pairs.shapes.into_iter().for_each(|(name, a, b)| add(name, Difference::Shape { a, b }));
    pairs.quantizers.into_iter().for_each(|(name, a, b)| add(name, Difference::Quantizer { a, b }));
    for problem in pairs.problems {
        let what = problem.to_string();
        let tensor = match problem {
            Problem::Cover { tensor, .. } | Problem::Damaged { tensor, .. } | Problem::Loss { tensor, .. } => tensor,
            _ => String::new(),
        };
        add(tensor, Difference::Unreadable { what });
    }

    progress.start("Comparing", pairs.pairs.iter().map(|(r, _)| r.size()).sum());
    let tolerance = match options.tolerance {
        Tolerance::Bits => 0.0,
        Tolerance::Relative(r) => r,
    };
    let found: Mutex<Vec<(usize, DiffEntry)>> = Mutex::default();
    let wider: Mutex<u64> = Mutex::default();
    parallel(options.threads, pairs.pairs.len(), |index| {
        check_cancelled(progress)?;
        let (ra, rb) = &pairs.pairs[index];
        let file = Path::new(&ra.name);
        let values = compare((ra, &left.files), (rb, &right.files), tolerance, &mut |n| progress.advance(n, file))?;
        let push = |what| {
            let entry = DiffEntry { tensor: ra.name.clone(), what };
            found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, entry));
        };
        if ra.dtype != rb.dtype {
            if cross && values.is_none() {
                *wider.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += 1;
            } else {
                push(Difference::Dtype { a: ra.dtype, b: rb.dtype });
            }
        }
        if let Some(values) = values {
            push(describe(ra, &values));
        }
        Ok(())
    })?;
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by_key(|f| f.0);
    let mut differing: Vec<usize> = found.iter().map(|f| f.0).collect();
    differing.dedup();
    entries.extend(found.into_iter().map(|f| f.1));
    entries.sort_by(|x, y| x.tensor.cmp(&y.tensor));
    let wider = wider.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if wider > 0 {
        pairs.notes.push(format!("{wider} tensors have another dtype and the same values"));
    }
    let compared = pairs.pairs.len() as u64;
    Ok(DiffReport { compared, equal: compared - differing.len() as u64, entries, notes: pairs.notes })
}

fn describe(recipe: &Recipe, v: &Values) -> Difference {
    let mut rest = v.first;
    let mut first = vec![0; recipe.shape.len()];
    for (axis, &dim) in recipe.shape.iter().enumerate().rev() {
        first[axis] = rest % dim.max(1);
        rest /= dim.max(1);
    }
    Difference::Values { count: v.count, max_abs: v.max_abs, max_rel: v.max_rel, first, a: v.a, b: v.b }
}

/// Whether `name` matches `pattern`, in which `*` stands for any characters and `?` for one.
pub fn glob_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on if the current try fails: after the last star, one character later in the name.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after, from)) => {
                    retry = Some((after, from + 1));
                    (p, n) = (after, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::glob_matches;

    #[test]
    fn globs() {
        for (pattern, name, want) in [
            ("*", "", true),
            ("*.weight", "a.b.weight", true),
            ("*.weight", "a.b.weights", false),
            ("a.*.c", "a.b.b.c", true),
            ("a.?.c", "a.b.c", true),
            ("a.?.c", "a.bb.c", false),
            ("*a*b*", "xxaxxbxx", true),
            ("", "a", false),
        ] {
            assert_eq!(glob_matches(pattern, name), want, "{pattern} {name}");
        }
    }
}
