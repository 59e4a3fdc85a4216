//! `longshore fit`: the parallel layouts that can load a checkpoint on given GPUs.

use super::Answer;
use crate::cli::launch::FitArgs;
use crate::locate;
use crate::options::Env;
use crate::report::{Report, table};
use crate::units::{bytes, count, counted};
use anyhow::Result;
use longshore_convert::Layout;
use longshore_convert::fit::{Fit, FitOptions, Loadable, RefusedSize, fit};
use longshore_convert::outline::Outline;
use serde_json::json;
use std::fmt::Write as _;

/// Layouts that are shown unless all are asked for.
const SHOWN: usize = 8;

pub(super) fn run(args: &FitArgs, env: &Env, report: &Report) -> Result<Answer> {
    let folder = locate::checkpoint(&args.checkpoint, env)?;
    let base = args.base.as_ref().map(|base| locate::checkpoint(base, env)).transpose()?;
    let outline = Outline::open(&folder, base.as_deref())?;
    let options = FitOptions {
        gpus: args.gpus,
        reserve: args.reserve,
        tp: args.tp,
        pp: args.pp,
        ep: args.ep,
        etp: args.etp,
        make_vocab_size_divisible_by: args.make_vocab_size_divisible_by,
    };
    let found = fit(&outline, &options, &folder)?;
    for note in &outline.model.notes {
        report.note("Note", &note.text);
    }
    if report.is_json() {
        let fields = json!({
            "gpus": options.gpus,
            "reserve": options.reserve,
            "usable": options.usable(),
            "dtype": "bfloat16",
            "recommended": found.layouts.first().filter(|l| l.fits),
            "layouts": found.layouts,
            "refused": found.refused,
        });
        report.json("fit", &fields)?;
    } else {
        report.data(&text(&found, &options, args.all))?;
    }
    let fits = found.layouts.first().is_some_and(|layout| layout.fits);
    Ok(if fits { Answer::Yes } else { Answer::No })
}

fn text(found: &Fit, options: &FitOptions, all: bool) -> String {
    let fitting = found.layouts.iter().filter(|l| l.fits).count();
    let mut text = format!(
        "{} of {}, {} of them for weights; weights in bfloat16, no activations, no key-value cache\n",
        counted(options.gpus.count, "GPU"),
        bytes(options.gpus.size),
        bytes(options.usable()),
    );
    let _ = writeln!(
        text,
        "{} can load the model, {} fit{}",
        counted(found.layouts.len() as u64, "layout"),
        count(fitting as u64),
        if fitting > 0 { "; the first is recommended" } else { "" },
    );
    if !found.layouts.is_empty() {
        let mut rows =
            vec![["tp", "pp", "ep", "etp", "dp", "weights per rank", "of a GPU", ""].map(str::to_owned).to_vec()];
        let shown = if all { found.layouts.len() } else { SHOWN };
        rows.extend(found.layouts.iter().take(shown).map(|layout| row(layout, options)));
        text += "\n";
        text += &table(&rows, &[0, 1, 2, 3, 4, 5, 6]);
        if found.layouts.len() > shown {
            let _ = writeln!(text, "and {} more; --all shows them", count((found.layouts.len() - shown) as u64));
        }
    }
    if !found.refused.is_empty() {
        text += "\nrefused\n";
        let row = |size: &RefusedSize| vec![size.option.to_owned(), size.size.to_string(), size.reasons.join("; ")];
        text += &table(&found.refused.iter().map(row).collect::<Vec<_>>(), &[1]);
    } else if found.layouts.is_empty() {
        let _ = writeln!(
            text,
            "\nneither tp × pp nor ep × etp × pp of these sizes divides {}",
            counted(options.gpus.count, "GPU")
        );
    }
    text
}

fn row(layout: &Loadable, options: &FitOptions) -> Vec<String> {
    let Layout { tp, pp, ep, etp } = layout.layout;
    let percent = layout.bytes_per_rank as f64 / options.gpus.size as f64 * 100.0;
    let mut cells: Vec<String> = [tp, pp, ep, etp, layout.dp].map(|n| n.to_string()).to_vec();
    cells.push(bytes(layout.bytes_per_rank));
    cells.push(format!("{percent:.1} %"));
    cells.push(if layout.fits { "fits" } else { "too large" }.to_owned());
    cells
}
