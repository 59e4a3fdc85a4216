//! Data sets as calibration samples: folders in a repository's layout, repositories in the Hugging Face cache, and
//! the names that ModelOpt has for some.
//!
//! As `ModelOpt` 0.47 does (`get_dataset_samples`): each split gives the same number of rows, from its start, the last one
//! what remains; sets that are named together share the samples, the first ones what remains. A set that is not
//! registered has one split, `train`.

use super::choice::{Choice, SplitMix64};
use super::error::{CalibrationError, Problems};
use super::layout::{self, Form};
use super::record::Document;
use super::registered::{self, REFERENCE, Registered, Text};
use super::report::SplitReport;
use super::rows;
use crate::error::UsageError;
use crate::locate;
use crate::options::Env;
use anyhow::Result;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Rows of one split.
struct Split {
    source: String,
    path: PathBuf,
    name: Option<String>,
    files: Vec<(PathBuf, Form)>,
    /// Files that the names of the others speak of.
    missing: usize,
    text: Text,
    rows: usize,
}

/// What was taken of all splits.
pub(super) struct Taken {
    pub(super) documents: Vec<Document>,
    /// What documents name by their place.
    pub(super) files: Vec<PathBuf>,
    /// What is wrong with the rows of each file.
    pub(super) problems: Vec<Problems>,
    pub(super) splits: Vec<SplitReport>,
    pub(super) available: Option<u64>,
    pub(super) crc32: u32,
    pub(super) bytes: u64,
    pub(super) warnings: Vec<String>,
}

/// A report's note where the reference would calibrate on its default set.
pub(crate) fn in_place_of_the_gated_set() -> &'static str {
    "the reference's default set nvidia/Nemotron-Post-Training-Dataset-v2 is gated; the bundled text is used in its place \
     (`--calib` names another)"
}

/// The name of the reference's default set, where it is in the Hugging Face cache.
pub(crate) fn reference_set(env: &Env) -> Option<PathBuf> {
    locate::dataset(REFERENCE, env).ok().map(|_| PathBuf::from(REFERENCE))
}

/// Whether `given` names data sets, and not one file of lines or text.
pub(super) fn are_named(given: &Path) -> bool {
    if given.is_file() {
        return is_file_of_set(given);
    }
    given.is_dir() || given.to_str().is_some_and(|text| names(text).into_iter().all(is_name))
}

/// Whether a file has a form that only data sets have.
fn is_file_of_set(path: &Path) -> bool {
    matches!(path.to_str().and_then(Form::of), Some(Form::Parquet | Form::Json { is_gzip: true }))
}

/// Whether this may be one of several data sets.
fn is_name(text: &str) -> bool {
    let path = Path::new(text);
    path.exists() || registered::find(text).is_some() || registered::combo(text).is_some() || is_repository(path)
}

fn is_repository(path: &Path) -> bool {
    // `folder/file.jsonl` is a file that is absent.
    let is_file = path.to_str().is_some_and(|text| Form::of(text).is_some())
        || path.extension().is_some_and(|extension| extension == "txt");
    !is_file && locate::repository_id(path).is_some()
}

/// The names between commas; an existing path has none.
fn names(given: &str) -> Vec<&str> {
    if Path::new(given).exists() { vec![given] } else { given.split(',').collect() }
}

/// Takes the rows that `given` names: `size` of all sets together, `times` as many where they are packed.
pub(super) fn take(given: &Path, size: usize, times: usize, seed: u64, env: &Env) -> Result<Taken> {
    let splits = splits(&given.to_string_lossy(), size, times, env)?;
    let several = splits.windows(2).any(|pair| pair[0].source != pair[1].source);
    let mut taken = Taken {
        documents: Vec::new(),
        files: Vec::new(),
        problems: Vec::new(),
        splits: Vec::new(),
        available: Some(0),
        crc32: 0,
        bytes: 0,
        warnings: Vec::new(),
    };
    for split in splits {
        taken.add(split, seed)?;
    }
    // Rows are filled from the front, which the first set alone may do.
    if several && times > 1 {
        SplitMix64::new(seed).shuffle(&mut taken.documents);
    }
    let mut crc = crc32fast::Hasher::new();
    for document in &taken.documents {
        crc.update(document.text.as_bytes());
        crc.update(b"\n");
        taken.bytes += document.text.len() as u64 + 1;
    }
    taken.crc32 = crc.finalize();
    Ok(taken)
}

impl Taken {
    fn add(&mut self, split: Split, seed: u64) -> Result<()> {
        if split.missing > 0 {
            let (there, all) = (split.files.len(), split.files.len() + split.missing);
            let name = split.name.as_deref().unwrap_or_default();
            self.warnings.push(format!("`{}`: {there} of the {all} files of `{name}` are there", split.source));
        }
        let mut choice = Choice::new(split.rows, seed);
        let mut all = true;
        for (path, form) in split.files {
            if choice.is_settled() {
                all = false;
                break;
            }
            let file = self.files.len();
            let mut problems = Problems::of_file(form == Form::Parquet);
            rows::read(&path, form, split.text.columns(), |line, text| {
                if choice.is_settled() {
                    all = false;
                    return ControlFlow::Break(());
                }
                match text {
                    Ok(text) => choice.offer(Document { file, line, text }),
                    Err(what) => problems.add(line, what),
                }
                ControlFlow::Continue(())
            })?;
            self.files.push(path);
            self.problems.push(problems);
        }
        self.available = self.available.filter(|_| all).map(|available| available + choice.offered());
        let chosen = choice.finish();
        let (source, path, rows) = (split.source, split.path, chosen.len() as u64);
        self.splits.push(SplitReport { source, path, split: split.name, rows });
        for document in chosen {
            let Document { file, line, text } = document;
            match split.text.line(text) {
                Ok(text) => self.documents.push(Document { file, line, text }),
                Err(what) => self.problems[file].add(line, what),
            }
        }
        Ok(())
    }

    /// The splits as a report's source.
    pub(super) fn source(&self) -> String {
        let shown = |report: &SplitReport| {
            let of = report.split.as_ref().map_or_else(String::new, |split| format!("`{split}` of "));
            format!("{of}`{}` ({})", report.source, crate::units::counted(report.rows, "row"))
        };
        self.splits.iter().map(shown).collect::<Vec<_>>().join(", ")
    }
}

/// The share of the part `at` of `total` in `parts`: the first ones take what does not come out even.
fn share(total: usize, parts: usize, at: usize) -> usize {
    total / parts + usize::from(at < total % parts)
}

/// The splits to read. Everything that is wrong with the names is one error.
fn splits(given: &str, size: usize, times: usize, env: &Env) -> Result<Vec<Split>> {
    let (mut problems, mut absent) = (Vec::new(), Vec::new());
    let given = names(given);
    let mut sets: Vec<(&str, usize)> = Vec::new();
    for (at, &name) in given.iter().enumerate() {
        let rows = share(size, given.len(), at);
        let members = registered::combo(name).filter(|_| !Path::new(name).exists()).unwrap_or(&[]);
        let of_member = |(at, &member)| (member, share(rows, members.len(), at));
        sets.extend(members.iter().enumerate().map(of_member));
        if members.is_empty() {
            sets.push((name, rows));
        }
    }
    let mut found = Vec::new();
    for (at, &(name, rows)) in sets.iter().enumerate() {
        if sets[..at].iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            problems.push(format!("`{name}` is named twice"));
            continue;
        }
        match folder(name, env) {
            Ok((path, set)) => add_splits(&mut found, &mut problems, name, path, set, rows * times)?,
            Err(error) => {
                if let UsageError::NoDataset { repo, .. } = &error {
                    absent.push(repo.clone());
                }
                problems.push(error.to_string());
            }
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(CalibrationError::Sets { problems, absent }.into()) }
}

/// Where a set lies: a path, else a registered name, else a repository.
fn folder(name: &str, env: &Env) -> Result<(PathBuf, Option<&'static Registered>), UsageError> {
    let path = Path::new(name);
    if path.exists() {
        let own = path.file_name().and_then(|name| name.to_str());
        return Ok((path.to_owned(), own.filter(|_| path.is_dir()).and_then(registered::of_folder)));
    }
    let set = registered::find(name);
    match set.map(|set| set.repo).or_else(|| locate::repository_id(path)) {
        Some(repo) => Ok((locate::dataset(repo, env)?, set)),
        None => Err(UsageError::NoFolder { path: path.to_owned() }),
    }
}

fn add_splits(
    found: &mut Vec<Split>,
    problems: &mut Vec<String>,
    name: &str,
    path: PathBuf,
    set: Option<&Registered>,
    rows: usize,
) -> Result<()> {
    let source = set.filter(|_| !Path::new(name).exists()).map_or(name, |set| set.repo).to_owned();
    let text = set.map_or(Text::Record, |set| set.text);
    if !path.is_dir() {
        match Form::of(name) {
            Some(form) => {
                found.push(Split {
                    source,
                    files: vec![(path.clone(), form)],
                    missing: 0,
                    path,
                    name: None,
                    text,
                    rows,
                });
            }
            None => problems.push(format!("`{name}` is no data set: expected .parquet, .jsonl or .json, or a folder")),
        }
        return Ok(());
    }
    let all = match layout::list(&path)? {
        Ok(all) => all,
        Err(what) => {
            problems.push(what);
            return Ok(());
        }
    };
    let names = set.map_or(&["train"][..], |set| set.splits);
    for (at, split) in names.iter().enumerate() {
        let last = at + 1 == names.len();
        let rows = rows / names.len() + if last { rows % names.len() } else { 0 };
        match layout::of_split(&all, set.and_then(|set| set.config), split) {
            _ if rows == 0 => {}
            Ok(files) => found.push(Split {
                missing: files.expected - files.paths.len(),
                source: source.clone(),
                path: path.clone(),
                name: Some((*split).to_owned()),
                files: files.paths.iter().filter_map(|name| Some((path.join(name), Form::of(name)?))).collect(),
                text,
                rows,
            }),
            Err(what) => {
                problems.push(format!("`{}`: {what}", path.display()));
                if all.is_empty() {
                    break;
                }
            }
        }
    }
    Ok(())
}
