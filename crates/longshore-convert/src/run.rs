//! Execution: writes a plan's files into a staging folder and publishes them whole.
//!
//! One data file is written front to back by one thread, so its checksum runs in order, nothing is locked, and a run that
//! was interrupted resumes with the files that were finished.

use crate::gather::BAND;
use crate::manifest::{self, Manifest};
use crate::model::read_manifest;
use crate::plan::{Item, OutFile, Plan, open_all};
use crate::produce::Producer;
use crate::progress::Progress;
use crate::{Error, Problem, Result};
use crc32fast::Hasher;
use longshore_ckpt::fs::{self, Identity, ReadFile, SeqWriter, Staging};
use longshore_ckpt::torch_dist::item::Frame;
use longshore_ckpt::torch_dist::metadata::{self, Metadata};
use longshore_ckpt::{Format, Rect, torch_dist};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// How to run a plan.
pub struct RunOptions {
    /// Threads, at least one.
    pub threads: usize,
    /// Replace what the destination holds.
    pub force: bool,
}

/// A file of the result.
#[derive(Clone, Debug, Serialize)]
pub struct WrittenFile {
    /// Name inside the folder.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// CRC-32 of the whole file.
    pub crc32: u32,
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The folder with the data files.
    pub folder: PathBuf,
    /// Bytes of all files.
    pub bytes: u64,
    /// The files.
    pub files: Vec<WrittenFile>,
    /// Data files taken over from an interrupted run.
    pub resumed_files: u64,
    /// The destination already held this very result; nothing was written.
    pub already_complete: bool,
    /// Seconds it took.
    pub seconds: f64,
}

/// A finished data file, as the journal keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Finished {
    file: String,
    size: u64,
    crc32: u32,
    /// CRC-32 of every chunk's raw data, in the order of the file.
    chunks: Vec<u32>,
}

/// Executes a plan. The destination holds either what it held before or the complete result.
pub fn execute(plan: &Plan, options: &RunOptions, progress: &dyn Progress) -> Result<Report> {
    let started = Instant::now();
    if let Some(report) = already_complete(plan, started)? {
        return Ok(report);
    }
    check_destination(plan, options.force)?;
    let staging = Staging::open(&plan.destination, &plan.staging_id)?;
    let sources = open_all(&plan.catalog)?;
    sources.iter().for_each(ReadFile::advise_sequential);
    progress.start("Converting", plan.files.iter().map(OutFile::size).sum());
    let (finished, resumed) = match write_data(plan, &staging, &sources, options.threads, progress) {
        // The same command would be refused again: nothing is kept for it.
        Err(error @ Error::Refused(_)) => {
            staging.discard()?;
            return Err(error);
        }
        other => other?,
    };

    let mut files: Vec<manifest::File> = Vec::new();
    for small in &plan.small {
        files.push(write_small(plan, &staging, &small.name, &small.bytes()?)?);
    }
    if plan.target == Format::TorchDist {
        files.push(write_small(plan, &staging, ".metadata", &metadata::write(&torch_metadata(plan)))?);
    }
    files.extend(finished.values().map(|f| manifest::File { name: f.file.clone(), size: f.size, crc32: f.crc32 }));
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let manifest = manifest(plan, files, &finished);
    write_small(plan, &staging, manifest::NAME, &manifest.to_json())?;
    check_sources(plan, &sources, staging.path())?;
    if !options.force && complete(plan).is_some() {
        // The same command ran meanwhile.
        staging.discard()?;
        return Ok(report(plan, &manifest, 0, true, started));
    }
    let wanted: BTreeSet<String> =
        manifest.files.iter().map(|f| f.name.as_str()).chain([manifest::NAME]).map(|n| staged_name(plan, n)).collect();
    remove_others(&staging.files(), "", &wanted)?;
    publish(plan, staging, options.force)?;
    Ok(report(plan, &manifest, resumed, false, started))
}

/// Writes a small file into the staging folder.
fn write_small(plan: &Plan, staging: &Staging, name: &str, bytes: &[u8]) -> Result<manifest::File> {
    let staged = staged_name(plan, name);
    let mut writer = staging.create_file(&staged)?;
    writer.write(bytes)?;
    writer.finish()?;
    staging.commit_file(&staged)?;
    Ok(manifest::File { name: name.into(), size: bytes.len() as u64, crc32: crc32fast::hash(bytes) })
}

/// Removes from the staging folder what is not in the result: a run that died after it had published left there what it
/// had replaced. `prefix` is the folder's name and a `/`.
fn remove_others(folder: &Path, prefix: &str, wanted: &BTreeSet<String>) -> Result<()> {
    for name in fs::list(folder)? {
        let (path, name) = (folder.join(&name), format!("{prefix}{name}"));
        let inner = format!("{name}/");
        if wanted.range(inner.clone()..).next().is_some_and(|w| w.starts_with(&inner)) {
            remove_others(&path, &inner, wanted)?;
        } else if !wanted.contains(&name) {
            fs::remove_all(&path)?;
        }
    }
    Ok(())
}

/// The manifest of the result, if the destination already holds it: files of the right lengths, written by the same plan.
fn complete(plan: &Plan) -> Option<Manifest> {
    whole(plan).filter(|manifest| manifest.fingerprint == plan.fingerprint)
}

/// The report, if the destination holds what was computed from the same inputs: there is nothing to compute or to write.
pub fn already_made(plan: &Plan, inputs: &str) -> Option<Report> {
    let manifest = whole(plan).filter(|manifest| manifest.inputs.as_deref() == Some(inputs))?;
    Some(report(plan, &manifest, 0, true, Instant::now()))
}

/// The manifest of what the destination holds, if its files have the right lengths and a loader would find them.
fn whole(plan: &Plan) -> Option<Manifest> {
    let folder = plan.folder();
    let manifest = read_manifest(&folder).ok().flatten()?;
    let whole = |f: &manifest::File| fs::file_len(&folder.join(&f.name)).ok() == Some(f.size);
    let tracked = plan.inner.as_ref().is_none_or(|inner| {
        let tracker = fs::read_small(&plan.destination.join(torch_dist::TRACKER), 64);
        tracker.is_ok_and(|text| text == tracker_text(inner).as_bytes())
    });
    (manifest.files.iter().all(whole) && tracked).then_some(manifest)
}

/// The report, if there is nothing to do.
fn already_complete(plan: &Plan, started: Instant) -> Result<Option<Report>> {
    let Some(manifest) = complete(plan) else { return Ok(None) };
    // A run that was stopped after publishing leaves its staging folder, with what it replaced.
    if fs::stale_stagings(&plan.destination).iter().any(|p| p.to_string_lossy().ends_with(&plan.staging_id)) {
        Staging::open(&plan.destination, &plan.staging_id)?.discard()?;
    }
    Ok(Some(report(plan, &manifest, 0, true, started)))
}

fn report(plan: &Plan, manifest: &Manifest, resumed: u64, already_complete: bool, started: Instant) -> Report {
    let written = |f: &manifest::File| WrittenFile { name: f.name.clone(), size: f.size, crc32: f.crc32 };
    Report {
        folder: plan.folder(),
        bytes: manifest.files.iter().map(|f| f.size).sum(),
        files: manifest.files.iter().map(written).collect(),
        resumed_files: resumed,
        already_complete,
        seconds: started.elapsed().as_secs_f64(),
    }
}

/// Refuses a destination that a run would refuse: before hours of computing.
pub fn check_destination(plan: &Plan, force: bool) -> Result<()> {
    let path = &plan.destination;
    let refuse = |what: &str| Err(Error::Destination { path: path.clone(), what: what.into() });
    if !fs::exists(path) {
        return Ok(());
    }
    if !fs::is_dir(path) {
        return refuse("is not a folder");
    }
    let inside = |a: &Path, b: &Path| match (fs::canonical(a), fs::canonical(b)) {
        (Ok(a), Ok(b)) => a.starts_with(b),
        _ => false,
    };
    if inside(&plan.catalog.folder, &plan.folder()) || inside(path, &plan.catalog.folder) {
        return refuse("is the source or lies around or inside it");
    }
    if !force && !fs::list(path)?.is_empty() {
        return Err(not_empty(path));
    }
    Ok(())
}

fn not_empty(path: &Path) -> Error {
    Error::Destination { path: path.into(), what: "is not empty".into() }
}

/// Name of a file in the staging folder, which is laid out as the destination.
fn staged_name(plan: &Plan, name: &str) -> String {
    plan.inner.as_ref().map_or_else(|| name.to_string(), |inner| format!("{inner}/{name}"))
}

/// Writes all data files that an earlier run did not finish. Where values break a rule all of them are looked at, so that every
/// problem is told.
fn write_data(
    plan: &Plan,
    staging: &Staging,
    sources: &[ReadFile],
    threads: usize,
    progress: &dyn Progress,
) -> Result<(BTreeMap<String, Finished>, u64)> {
    let entries = staging.journal_entries();
    let earlier: BTreeMap<String, Finished> = entries
        .into_iter()
        .filter_map(|v| serde_json::from_value::<Finished>(v).ok())
        .map(|f| (f.file.clone(), f))
        .collect();
    // Largest first, so that the threads end together.
    let mut order: Vec<&OutFile> = plan.files.iter().collect();
    order.sort_by_key(|f| std::cmp::Reverse(f.size()));
    let (next, resumed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let halt = Halt::default();
    let outcome: Mutex<Outcome> = Mutex::default();
    let work = || {
        let mut band = vec![0; BAND];
        while let Some(file) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            if halt.stop.load(Ordering::Relaxed) {
                return;
            }
            let result = match earlier.get(&file.name) {
                Some(finished) if is_whole(plan, staging, finished, file, &mut band) => {
                    resumed.fetch_add(1, Ordering::Relaxed);
                    progress.advance(file.size(), Path::new(&file.name));
                    Ok(finished.clone())
                }
                _ => write_file(plan, staging, sources, file, &mut band, &halt, progress),
            };
            let mut outcome = outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match result {
                Ok(finished) => {
                    outcome.finished.insert(finished.file.clone(), finished);
                }
                Err(Error::Refused(mut problems)) => outcome.problems.append(&mut problems),
                Err(error) => {
                    halt.stop.store(true, Ordering::Relaxed);
                    outcome.error.get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(order.len()) {
            scope.spawn(work);
        }
        work();
    });
    let Outcome { finished, mut problems, error } =
        outcome.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Weight and scales, which are tensors of their own, have the same to tell.
    problems.sort_by_key(ToString::to_string);
    problems.dedup();
    match error {
        Some(error) => Err(error),
        None if !problems.is_empty() => Err(Error::Refused(problems)),
        None => Ok((finished, resumed.into_inner() as u64)),
    }
}

/// What came of the files.
#[derive(Default)]
struct Outcome {
    finished: BTreeMap<String, Finished>,
    problems: Vec<Problem>,
    error: Option<Error>,
}

/// What one thread tells the others.
#[derive(Default)]
struct Halt {
    /// Nothing more is to be done.
    stop: AtomicBool,
    /// There will be no result: values are looked at and not written.
    refused: AtomicBool,
}

/// Whether a file of an earlier run is as its journal entry says: length and checksum.
fn is_whole(plan: &Plan, staging: &Staging, finished: &Finished, file: &OutFile, band: &mut [u8]) -> bool {
    let mut check = || -> Result<bool> {
        let open = ReadFile::open(&staging.final_path(&staged_name(plan, &file.name)))?;
        if open.len() != finished.size || file.size() != finished.size {
            return Ok(false);
        }
        Ok(crc_of(&open, 0, open.len(), band)? == finished.crc32)
    };
    check().unwrap_or(false)
}

/// CRC-32 of a byte range.
pub(crate) fn crc_of(file: &ReadFile, offset: u64, len: u64, band: &mut [u8]) -> Result<u32> {
    let mut hasher = Hasher::new();
    let mut at = 0;
    while at < len {
        let n = (len - at).min(band.len() as u64);
        let part = &mut band[..n as usize];
        file.read_exact_at(offset + at, part)?;
        hasher.update(part);
        at += n;
    }
    Ok(hasher.finalize())
}

/// Writes one data file front to back, or looks at what it would hold.
fn write_file(
    plan: &Plan,
    staging: &Staging,
    sources: &[ReadFile],
    file: &OutFile,
    band: &mut [u8],
    halt: &Halt,
    progress: &dyn Progress,
) -> Result<Finished> {
    let staged = staged_name(plan, &file.name);
    let name = Path::new(&file.name);
    let mut writer = staging.create_file(&staged)?;
    writer.preallocate(file.size())?;
    let mut whole = Hasher::new();
    let mut chunks = Vec::new();
    let mut put = |writer: &mut SeqWriter, bytes: &[u8]| -> Result<()> {
        if !halt.refused.load(Ordering::Relaxed) {
            whole.update(bytes);
            writer.write(bytes)?;
        }
        progress.advance(bytes.len() as u64, name);
        if halt.stop.load(Ordering::Relaxed) || progress.cancelled() {
            return Err(Error::Interrupted { staging: staging.path().to_path_buf() });
        }
        Ok(())
    };
    let mut refused: Vec<Problem> = Vec::new();
    for item in &file.items {
        match item {
            Item::Bytes { bytes, .. } => put(&mut writer, bytes)?,
            Item::Chunk { chunk, .. } => {
                let mut problems: Vec<Problem> = Vec::new();
                let recipe = &plan.recipes[chunk.recipe];
                let frame = frame(plan, chunk.recipe, &chunk.rect);
                if let Some(frame) = &frame {
                    put(&mut writer, &frame.head)?;
                }
                let mut producer = Producer::new(recipe, &chunk.rect);
                let mut payload = Hasher::new();
                let mut left = chunk.rect.len() * recipe.dtype.size();
                while left > 0 {
                    let part = &mut band[..left.min(BAND as u64) as usize];
                    match producer.fill(sources, part) {
                        Ok(0) => {}
                        Ok(overflows) => {
                            let what = format!("{overflows} values are too large for {}", recipe.dtype);
                            problems.push(Problem::Loss { tensor: recipe.name.clone(), what });
                        }
                        Err(Error::Refused(mut found)) => problems.append(&mut found),
                        Err(error) => return Err(error),
                    }
                    if !problems.is_empty() {
                        halt.refused.store(true, Ordering::Relaxed);
                        // The rest of this tensor has nothing new to tell.
                        progress.advance(left, name);
                        break;
                    }
                    payload.update(part);
                    put(&mut writer, part)?;
                    left -= part.len() as u64;
                }
                refused.append(&mut problems);
                let crc = payload.finalize();
                chunks.push(crc);
                if let Some(frame) = &frame {
                    put(&mut writer, &frame.tail(crc))?;
                }
            }
        }
    }
    if halt.refused.load(Ordering::Relaxed) {
        return Err(Error::Refused(refused));
    }
    writer.finish()?;
    staging.commit_file(&staged)?;
    let finished = Finished { file: file.name.clone(), size: file.size(), crc32: whole.finalize(), chunks };
    staging.record(&serde_json::to_value(&finished).unwrap_or_default())?;
    Ok(finished)
}

/// The zip archive around a chunk; safetensors has none.
fn frame(plan: &Plan, recipe: usize, rect: &Rect) -> Option<Frame> {
    (plan.target == Format::TorchDist).then(|| Frame::tensor(plan.recipes[recipe].dtype, &rect.sizes))
}

/// The `.metadata` of the planned files.
fn torch_metadata(plan: &Plan) -> Metadata {
    let mut out = Metadata::default();
    for file in &plan.files {
        let path = out.add_path(&file.name);
        let mut offset = 0;
        for item in &file.items {
            let len = item.len();
            match item {
                Item::Bytes { object: Some(name), .. } => out.add_object(name, path, offset, len),
                Item::Bytes { object: None, .. } => {}
                Item::Chunk { chunk, .. } => {
                    let recipe = &plan.recipes[chunk.recipe];
                    out.add_chunk(&recipe.name, recipe.dtype, &recipe.shape, chunk.rect.clone(), path, offset, len);
                }
            }
            offset += len;
        }
    }
    out
}

fn manifest(plan: &Plan, files: Vec<manifest::File>, finished: &BTreeMap<String, Finished>) -> Manifest {
    let mut tensors: BTreeMap<String, manifest::Tensor> = BTreeMap::new();
    for file in &plan.files {
        let Some(crcs) = finished.get(&file.name).map(|f| &f.chunks) else { continue };
        let mut crcs = crcs.iter();
        let index = files.partition_point(|f| f.name < file.name) as u32;
        let mut offset = 0;
        for item in &file.items {
            if let (Item::Chunk { chunk, .. }, Some(&crc32)) =
                (item, matches!(item, Item::Chunk { .. }).then(|| crcs.next()).flatten())
            {
                let recipe = &plan.recipes[chunk.recipe];
                let head = frame(plan, chunk.recipe, &chunk.rect).map_or(0, |f| f.head.len() as u64);
                let part = chunk.rect.sizes != recipe.shape;
                let tensor = tensors.entry(recipe.name.clone()).or_insert_with(|| manifest::Tensor {
                    dtype: recipe.dtype,
                    shape: recipe.shape.clone(),
                    chunks: Vec::new(),
                });
                tensor.chunks.push(manifest::Chunk {
                    file: index,
                    offset: offset + head,
                    start: part.then(|| chunk.rect.offsets.clone()),
                    shape: part.then(|| chunk.rect.sizes.clone()),
                    crc32,
                });
            }
            offset += item.len();
        }
    }
    Manifest {
        schema: 1,
        program: format!("longshore {}", env!("CARGO_PKG_VERSION")),
        fingerprint: plan.fingerprint.clone(),
        inputs: plan.inputs.clone(),
        origin: plan.origin.clone(),
        files,
        tensors,
    }
}

/// The source must be what it was when the plan was made: the open files, and the paths that name them.
fn check_sources(plan: &Plan, sources: &[ReadFile], staging: &Path) -> Result<()> {
    for ((path, planned), open) in plan.identities.iter().zip(sources) {
        let now = Identity::of(path);
        let what = match now {
            Ok(now) if now == *planned && open.identity() == *planned => continue,
            Ok(_) => "its size, time or inode differs".to_string(),
            Err(error) => error.to_string(),
        };
        // What was written may mix old and new data.
        fs::remove_all(staging)?;
        return Err(Error::SourceChanged { path: path.clone(), what });
    }
    Ok(())
}

/// The text of the tracker file for an inner folder.
fn tracker_text(inner: &str) -> String {
    inner.strip_prefix("iter_").and_then(|n| n.parse::<u64>().ok()).map_or_else(|| inner.to_string(), |n| n.to_string())
}

/// Makes the staged files the destination. An absent or empty destination becomes the result by one rename. Otherwise the
/// inner folder (Megatron) or the whole folder (Hugging Face) is exchanged, and what was there is removed last.
fn publish(plan: &Plan, staging: Staging, force: bool) -> Result<()> {
    let destination = &plan.destination;
    let vacant = !fs::exists(destination) || fs::list(destination)?.is_empty();
    if !vacant && !force {
        // Filled since the run began. The finished files stay for the same command with --force.
        return Err(not_empty(destination));
    }
    if let Some(inner) = &plan.inner {
        let tracker = staging.final_path(torch_dist::TRACKER);
        fs::write_durable(&tracker, tracker_text(inner).as_bytes())?;
        if !vacant {
            let target = destination.join(inner);
            let old = if fs::exists(&target) {
                Some(fs::publish_over(&staging.final_path(inner), &target)?)
            } else {
                fs::publish_new(&staging.final_path(inner), &target)?;
                None
            };
            // Megatron reads what the tracker names, so this is the moment the new checkpoint counts.
            fs::rename_durable(&tracker, &destination.join(torch_dist::TRACKER))?;
            if let Some(old) = old {
                fs::remove_all(&old)?;
            }
            return Ok(staging.discard()?);
        }
    }
    let files = staging.files();
    if vacant {
        fs::publish_new(&files, destination)?;
    } else {
        let old = fs::publish_over(&files, destination)?;
        fs::remove_all(&old)?;
    }
    Ok(staging.discard()?)
}
