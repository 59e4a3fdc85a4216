//! What the writing commands share: plan, say what is planned, run, say what was done.

use super::Answer;
use crate::model_args;
use crate::options::{Choice, Direction, Given, Origin, WriteOptions, format_name};
use crate::progress_bar::ProgressBar;
use crate::report::{Report, peak_memory, table};
use crate::units::{bytes, count, counted, rate, seconds};
use anyhow::Result;
use longshore_ckpt::Format;
use longshore_convert::options::Layout;
use longshore_convert::plan::{NoteKind, Summary};
use longshore_convert::run::{self, RunOptions, execute};
use longshore_convert::{Error, Plan, plan_export, plan_import};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Instant;

/// What is read and written.
pub(super) struct Paths {
    /// As the user named it.
    pub(super) source: Given<PathBuf>,
    /// The folder it means.
    pub(super) folder: PathBuf,
    pub(super) destination: Given<PathBuf>,
}

/// Plans, prints the plan, and unless it is a dry run writes.
pub(super) fn run(command: &str, paths: &Paths, options: &WriteOptions, report: &Report) -> Result<Answer> {
    let started = Instant::now();
    planned(command, paths, &plan(paths, options, report)?, options, started, report)
}

/// Prints a plan, made since `started`, and unless it is a dry run writes.
pub(super) fn planned<D>(
    command: &str,
    paths: &Paths,
    plan: &Plan,
    options: &WriteOptions<D>,
    started: Instant,
    report: &Report,
) -> Result<Answer> {
    let plan_seconds = started.elapsed().as_secs_f64();
    let unused = [options.unused.clone(), model_args::unchecked(&options.expected, plan.config())].concat();
    say_plan(plan, paths, options, &unused, report);
    let mut fields = json!({
        "dry_run": options.dry_run,
        "options": choices(paths, &options.choices),
        "unused": unused,
        "summary": plan.summary(),
    });
    if options.dry_run {
        fields["rules"] = json!(plan.rules());
        if report.verbosity() > 0 {
            fields["tensors"] = json!(plan.tensors());
        }
        fields["timings"] = json!({"plan_seconds": plan_seconds});
        fields["peak_memory"] = json!(peak_memory());
        if !report.is_json() {
            report.data(&plan_table(plan, report.verbosity() > 0))?;
        }
    } else {
        fields["result"] = json!(execute_plan(plan, options, started, report)?);
        fields["timings"] = json!({"plan_seconds": plan_seconds, "total_seconds": started.elapsed().as_secs_f64()});
        fields["peak_memory"] = json!(peak_memory());
    }
    if report.is_json() {
        report.json(command, &fields)?;
    }
    Ok(Answer::Yes)
}

/// Writes what is planned and says so.
pub(super) fn execute_plan<D>(
    plan: &Plan,
    options: &WriteOptions<D>,
    started: Instant,
    report: &Report,
) -> Result<run::Report> {
    let progress = ProgressBar::new(report)?;
    let run = RunOptions { threads: options.threads, force: options.force };
    let result = progress.finish(execute(plan, &run, &progress))?;
    say_result(&result, plan.summary().target.files, started, report);
    Ok(result)
}

/// The plan, once the model arguments of `MLM_EXTRA_ARGS` agree with the model.
fn plan(paths: &Paths, options: &WriteOptions, report: &Report) -> Result<Plan> {
    let plan = match &options.direction {
        Direction::Import(import) => plan_import(&paths.folder, &paths.destination.value, import)?,
        Direction::Export(export) => plan_export(&paths.folder, &paths.destination.value, export)?,
    };
    let problems = model_args::contradictions(&options.expected, plan.config());
    if !problems.is_empty() {
        return Err(Error::Refused(problems).into());
    }
    for line in model_args::without_effect(&options.expected, plan.config()) {
        report.note("Warning", &line);
    }
    Ok(plan)
}

fn say_plan<D>(plan: &Plan, paths: &Paths, options: &WriteOptions<D>, unused: &[String], report: &Report) {
    let summary = plan.summary();
    report.status("Source", &source_line(summary, paths));
    report.status("Target", &target_line(summary, paths, options));
    for note in &summary.notes {
        report.note(note_word(note.kind), &note.text);
    }
    if !unused.is_empty() {
        report.detail("Ignored", &format!("no effect here: {}", unused.join(" ")));
    }
    report.status("Planned", &format!("every byte accounted for; {}", counted(summary.notes.len() as u64, "note")));
    if !options.dry_run && report.verbosity() > 0 {
        for line in plan_table(plan, report.verbosity() > 1).lines() {
            report.detail("", line);
        }
    }
}

pub(super) fn source_line(summary: &Summary, paths: &Paths) -> String {
    let side = &summary.source;
    let from = match paths.source.origin {
        Origin::Flag if paths.source.value == paths.folder => String::new(),
        Origin::Flag => format!(", in {}", paths.folder.display()),
        origin => format!(", in {} ({origin})", paths.folder.display()),
    };
    format!(
        "{}, {}, {}, {}  ({}, {}){from}",
        format_name(side.format),
        counted(side.files, "file"),
        counted(side.tensors, "tensor"),
        bytes(side.bytes),
        summary.architecture,
        summary.layers,
    )
}

pub(super) fn target_line<D>(summary: &Summary, paths: &Paths, options: &WriteOptions<D>) -> String {
    let side = &summary.target;
    let mut parts = vec![format_name(side.format).to_owned()];
    parts.extend(shown_options(&options.choices, summary.lowered));
    parts.extend(summary.target_layers.clone());
    parts.push(counted(side.files, "file"));
    parts.push(match side.format {
        Format::TorchDist => counted(summary.chunks, "chunk"),
        Format::Safetensors => counted(side.tensors, "tensor"),
    });
    parts.push(bytes(side.bytes));
    let to = match paths.destination.origin {
        Origin::Flag => String::new(),
        origin => format!(", to {} ({origin})", paths.destination.value.display()),
    };
    parts.join(", ") + &to
}

/// The options that name the output: the spec always, others where they are not the default; variables are named. Of a
/// layout that was lowered, what it became.
fn shown_options(choices: &[Choice], lowered: Option<Layout>) -> Vec<String> {
    const SHOWN: [&str; 11] = ["spec", "norms", "tp", "pp", "ep", "etp", "dtype", "base", "layers", "experts", "mtp"];
    let shown = |name: &str| {
        let choice = choices.iter().find(|choice| choice.name == name)?;
        let text = match (name, &choice.value) {
            (_, Value::Null) => return None,
            ("spec" | "norms" | "experts", value) => format!("{} {name}", plain(value)),
            ("dtype", Value::String(_)) => "dtypes kept".to_owned(),
            ("dtype", cast) => cast.as_object().and_then(|cast| cast.values().next()).map(plain)?,
            ("mtp", value) => format!("MTP {}", if value == "drop" { "dropped" } else { "kept" }),
            (_, value) => {
                let asked = plain(value);
                let size = lowered.and_then(|layout| match name {
                    "tp" => Some(layout.tp),
                    "pp" => Some(layout.pp),
                    "ep" => Some(layout.ep),
                    "etp" => Some(layout.etp),
                    _ => None,
                });
                match size.map(|size| size.to_string()).filter(|size| *size != asked) {
                    Some(size) => format!("{name} {size} for {asked}"),
                    None => format!("{name} {asked}"),
                }
            }
        };
        match choice.origin {
            Origin::Default => (name == "spec").then_some(text),
            Origin::Flag => Some(text),
            Origin::Variable(_) => Some(format!("{text} ({})", choice.origin)),
        }
    };
    SHOWN.into_iter().filter_map(shown).collect()
}

/// A value without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub(super) fn note_word(kind: NoteKind) -> &'static str {
    match kind {
        NoteKind::Inferred => "Inferred",
        NoteKind::Dropped => "Dropped",
        NoteKind::Padded => "Padded",
        NoteKind::Cast => "Cast",
        NoteKind::Ignored => "Ignored",
        NoteKind::Space => "Space",
        NoteKind::Warning => "Warning",
    }
}

/// The rules with their counts, and where each tensor goes if `tensors`.
fn plan_table(plan: &Plan, tensors: bool) -> String {
    let mut rows = vec![["rule", "", "count", "hf → mc"].map(str::to_owned).to_vec()];
    rows.extend(
        plan.rules()
            .into_iter()
            .map(|row| vec![row.rule, row.word.to_owned(), count(row.count), format!("{} → {}", row.hf, row.mc)]),
    );
    let mut text = table(&rows, &[2]);
    if tensors {
        let mut rows = vec![["tensor", "dtype", "shape", "file", "rule", "from"].map(str::to_owned).to_vec()];
        rows.extend(plan.tensors().into_iter().map(|row| {
            let shape = format!("{:?}", row.shape);
            // A tensor of experts comes from hundreds; `--json` has them all.
            let more = if row.from.len() > 1 { format!(" and {} more", row.from.len() - 1) } else { String::new() };
            let from = row.from.first().map(|name| format!("{name}{more}")).unwrap_or_default();
            vec![row.name, row.dtype.to_string(), shape, row.file, row.rule, from]
        }));
        text += "\n";
        text += &table(&rows, &[]);
    }
    text
}

fn say_result(result: &run::Report, data_files: u64, started: Instant, report: &Report) {
    for file in &result.files {
        report.detail("Wrote", &format!("{}  {}  crc32 {:08x}", file.name, bytes(file.size), file.crc32));
    }
    if result.already_complete {
        report.status("Complete", &format!("{}  by an earlier run", result.folder.display()));
        return;
    }
    if result.resumed_files > 0 {
        let finished = count(result.resumed_files);
        report.status("Resumed", &format!("{finished} of {} were finished", counted(data_files, "data file")));
    }
    let rate = rate(result.bytes, result.seconds);
    let peak = peak_memory().map(|peak| format!(", peak {}", bytes(peak))).unwrap_or_default();
    let took = seconds(started.elapsed().as_secs_f64());
    report.status("Published", &format!("{}  in {took} ({rate}{peak})", result.folder.display()));
}

/// Every option with its origin, by name.
fn choices(paths: &Paths, choices: &[Choice]) -> Value {
    let mut object = Map::new();
    object.insert("source".into(), json!({"value": paths.folder, "origin": paths.source.origin}));
    object.insert("destination".into(), json!({"value": paths.destination.value, "origin": paths.destination.origin}));
    object.extend(choices.iter().map(|choice| (choice.name.replace('-', "_"), json!(choice))));
    Value::Object(object)
}
