//! `longshore diff`: how two checkpoints differ.

use super::Answer;
use crate::cli::{DiffArgs, Tolerance};
use crate::error::UsageError;
use crate::locate;
use crate::options::{Env, threads};
use crate::progress_bar::ProgressBar;
use crate::report::{Report, peak_memory, table};
use crate::units::{count, counted, seconds};
use anyhow::Result;
use longshore_convert::diff::{self, DiffEntry, DiffOptions, Difference, diff};
use serde_json::json;
use std::time::Instant;

pub(super) fn run(args: &DiffArgs, env: &Env, report: &Report) -> Result<Answer> {
    let started = Instant::now();
    let (a, b) = (locate::checkpoint(&args.a, env)?, locate::checkpoint(&args.b, env)?);
    let tolerance = match args.tolerance {
        Tolerance::Bits => diff::Tolerance::Bits,
        Tolerance::Relative(limit) => diff::Tolerance::Relative(limit),
    };
    let options = DiffOptions { glob: args.glob.clone(), tolerance, threads: threads(args.threads) };
    let progress = ProgressBar::new(report)?;
    let result = progress.finish(diff(&a, &b, &options, &progress))?;
    // Nothing compared is no proof of anything.
    if result.compared == 0 && result.entries.is_empty() {
        return Err(UsageError::NothingCompared { glob: args.glob.clone() }.into());
    }
    let (took, equal) = (started.elapsed().as_secs_f64(), result.entries.is_empty());
    if report.is_json() {
        let fields = json!({
            "equal": equal,
            "a": a,
            "b": b,
            "result": result,
            "timings": {"total_seconds": took},
            "peak_memory": peak_memory(),
        });
        report.json("diff", &fields)?;
    } else {
        report.data(&entries(&result.entries))?;
    }
    for note in &result.notes {
        report.note("Note", note);
    }
    if equal {
        report.status("Equal", &format!("{}  in {}", counted(result.compared, "tensor"), seconds(took)));
        return Ok(Answer::Yes);
    }
    let text = format!("{}; {} equal  in {}", differences(&result.entries), count(result.equal), seconds(took));
    report.note("Different", &text);
    Ok(Answer::No)
}

/// `3 tensors differ`; one may have several entries.
fn differences(entries: &[DiffEntry]) -> String {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.tensor.as_str()).collect();
    names.dedup();
    let verb = if names.len() == 1 { "differs" } else { "differ" };
    format!("{} {verb}", counted(names.len() as u64, "tensor"))
}

/// One line per difference.
fn entries(entries: &[DiffEntry]) -> String {
    let rows: Vec<Vec<String>> = entries.iter().map(|entry| row(entry).to_vec()).collect();
    table(&rows, &[])
}

fn row(entry: &DiffEntry) -> [String; 3] {
    let (word, text) = match &entry.what {
        Difference::OnlyInA => ("missing", "only in the first".to_owned()),
        Difference::OnlyInB => ("missing", "only in the second".to_owned()),
        Difference::Shape { a, b } => ("shape", format!("{a:?} and {b:?}")),
        Difference::Dtype { a, b } => ("dtype", format!("{a} and {b}")),
        Difference::Values { count: n, max_abs, max_rel, first, a, b } => (
            "values",
            format!(
                "{} of different value, max abs {max_abs:.3e}, max rel {max_rel:.3e}, first at {first:?}: {a:?} and {b:?}",
                counted(*n, "element")
            ),
        ),
        Difference::Quantizer { a, b } => ("quantizer", format!("{a} and {b}")),
        Difference::Unreadable { what } => ("unreadable", what.clone()),
    };
    [word.to_owned(), entry.tensor.clone(), text]
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_ckpt::Dtype;

    #[test]
    fn every_kind_of_difference_is_one_line() {
        let entry = |tensor: &str, what| DiffEntry { tensor: tensor.into(), what };
        let values = Difference::Values { count: 1200, max_abs: 0.5, max_rel: 0.25, first: vec![0, 7], a: 2.0, b: 1.5 };
        let list = [
            entry("a", Difference::OnlyInA),
            entry("b", Difference::OnlyInB),
            entry("c.weight", Difference::Shape { a: vec![2], b: vec![3, 1] }),
            entry("d", Difference::Dtype { a: Dtype::Bfloat16, b: Dtype::Float32 }),
            entry("d", values),
            entry("e", Difference::Quantizer { a: "8 bit, axis 0".into(), b: "off".into() }),
        ];
        let expected = "\
missing    a         only in the first
missing    b         only in the second
shape      c.weight  [2] and [3, 1]
dtype      d         bfloat16 and float32
values     d         1,200 elements of different value, max abs 5.000e-1, max rel 2.500e-1, first at [0, 7]: 2.0 and 1.5
quantizer  e         8 bit, axis 0 and off
";
        assert_eq!(entries(&list), expected);
        assert_eq!(differences(&list), "5 tensors differ");
    }
}
