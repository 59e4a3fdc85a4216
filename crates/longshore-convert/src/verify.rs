//! `verify`: proves a checkpoint from its bytes, against its manifest or against the checkpoint it was made from.

use crate::compare::{Side, check_cancelled, compare, pair, parallel};
use crate::gather::{BAND, Gather, bands};
use crate::manifest::{self, Manifest};
use crate::model::read_manifest;
use crate::plan::is_mtp;
use crate::progress::Progress;
use crate::quantized::state::is_of_quantizer;
use crate::resolve::{OpenFiles, Recipe};
use crate::run::crc_of;
use crate::{Error, Problem, Result, cast};
use crc32fast::Hasher;
use longshore_ckpt::fs::{self, ReadFile};
use longshore_ckpt::{Catalog, Format, Rect, torch_dist};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// How to verify.
pub struct VerifyOptions {
    /// Lengths and structure only; no data is read.
    pub quick: bool,
    /// Threads, at least one.
    pub threads: usize,
}

/// The outcome.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Whether a manifest was there to compare with.
    pub manifest: bool,
    /// Tensors checked.
    pub tensors: u64,
    /// Chunks checked.
    pub chunks: u64,
    /// Files checked.
    pub files: u64,
    /// Bytes read and checked.
    pub bytes: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

impl VerifyReport {
    fn new() -> Self {
        Self { manifest: false, tensors: 0, chunks: 0, files: 0, bytes: 0, problems: Vec::new(), notes: Vec::new() }
    }
}

fn damaged(tensor: impl Into<String>, file: impl Into<String>, what: impl Into<String>) -> Problem {
    Problem::Damaged { tensor: tensor.into(), file: file.into(), what: what.into() }
}

/// Checks that nothing in the checkpoint at `path` is missing, short, overlapping or flipped.
pub fn verify(path: &Path, options: &VerifyOptions, progress: &dyn Progress) -> Result<VerifyReport> {
    let mut report = VerifyReport::new();
    let folder = data_folder(path)?;
    let manifest = match read_manifest(&folder) {
        Ok(manifest) => manifest,
        Err(error) => {
            report.problems.push(damaged("", manifest::NAME, error.to_string()));
            None
        }
    };
    if let Some(manifest) = &manifest {
        report.manifest = true;
        check_files(&folder, manifest, options, progress, &mut report)?;
    }
    let mut catalog = match Catalog::open(path) {
        Ok(catalog) => catalog,
        // It may be sound, and is not looked at.
        Err(error @ longshore_ckpt::Error::OtherFormat { .. }) => return Err(error.into()),
        Err(error) => {
            report.problems.push(damaged("", "", error.to_string()));
            return Ok(report);
        }
    };
    let sums = check_structure(&catalog, &mut report)?;
    match &manifest {
        Some(manifest) => check_catalog(&catalog, manifest, &mut report),
        None => {
            report.notes.push(format!("there is no {}, so what the tensors should be is not known", manifest::NAME));
            report.files = catalog.files.len() as u64;
            if catalog.format == Format::Safetensors {
                report.notes.push("safetensors holds no checksums: only structure and lengths were checked".into());
            } else if !options.quick {
                check_zip_sums(&catalog, &sums, options, progress, &mut report)?;
            }
        }
    }
    let ignored = crate::plan::drop_training_state(&mut catalog);
    if ignored > 0 {
        report.notes.push(format!("{ignored} entries of optimizer, scheduler and RNG state"));
    }
    Ok(report)
}

/// The folder that holds the data files and the manifest.
fn data_folder(path: &Path) -> Result<PathBuf> {
    match Format::of(path)? {
        Format::TorchDist => Ok(torch_dist::inner_folder(path)?),
        Format::Safetensors => Ok(path.into()),
    }
}

/// Every file of the manifest: there, of the right length and, unless quick, of the right bytes.
fn check_files(
    folder: &Path,
    manifest: &Manifest,
    options: &VerifyOptions,
    progress: &dyn Progress,
    report: &mut VerifyReport,
) -> Result<()> {
    let mut chunks: BTreeMap<u32, Vec<(u64, u64, u32, &str)>> = BTreeMap::new();
    for (name, tensor) in &manifest.tensors {
        for chunk in &tensor.chunks {
            let shape = chunk.shape.as_ref().unwrap_or(&tensor.shape);
            let len = longshore_ckpt::tensor::element_count(shape).and_then(|n| n.checked_mul(tensor.dtype.size()));
            match (len, manifest.files.get(chunk.file as usize)) {
                (Some(len), Some(file)) if chunk.offset.checked_add(len).is_some_and(|end| end <= file.size) => {
                    chunks.entry(chunk.file).or_default().push((chunk.offset, len, chunk.crc32, name));
                }
                _ => report.problems.push(damaged(name, manifest::NAME, "a chunk lies outside of its file")),
            }
        }
    }
    report.files = manifest.files.len() as u64;
    let mut sized = Vec::new();
    for (index, file) in (0u32..).zip(&manifest.files) {
        if !is_plain(&file.name) {
            report.problems.push(damaged(
                "",
                manifest::NAME,
                format!("`{}` is not a name inside the folder", file.name),
            ));
            continue;
        }
        match fs::file_len(&folder.join(&file.name)) {
            Ok(size) if size == file.size => sized.push((index, file)),
            Ok(size) => {
                let what = format!("expected {} bytes, found {size}", file.size);
                report.problems.push(damaged("", &file.name, what));
            }
            Err(error) => report.problems.push(damaged("", &file.name, error.to_string())),
        }
    }
    note_strangers(folder, "", manifest, report)?;
    if options.quick {
        report.notes.push("--quick: lengths and structure only, no data was read".into());
        return Ok(());
    }
    progress.start("Verifying", sized.iter().map(|(_, f)| f.size).sum());
    let found: Mutex<Vec<Problem>> = Mutex::default();
    parallel(options.threads, sized.len(), |i| {
        let (index, file) = sized[i];
        check_cancelled(progress)?;
        let mut chunks = chunks.get(&index).cloned().unwrap_or_default();
        chunks.sort_unstable();
        let problems = check_file(folder, file, &chunks, progress)?;
        found.lock().unwrap_or_else(PoisonError::into_inner).extend(problems);
        Ok(())
    })?;
    report.bytes = sized.iter().map(|(_, f)| f.size).sum();
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(ToString::to_string);
    report.problems.extend(found);
    Ok(())
}

/// A note for every file that is not in the manifest. `prefix` is the subfolder with its `/`.
fn note_strangers(folder: &Path, prefix: &str, manifest: &Manifest, report: &mut VerifyReport) -> Result<()> {
    for name in fs::list(&folder.join(prefix))? {
        let name = format!("{prefix}{name}");
        let inner = format!("{name}/");
        if manifest.files.iter().any(|f| f.name.starts_with(&inner)) && !fs::is_link(&folder.join(&name)) {
            note_strangers(folder, &inner, manifest, report)?;
        } else if name != manifest::NAME && !manifest.files.iter().any(|f| f.name == name) {
            report.notes.push(format!("`{name}` is not in the manifest"));
        }
    }
    Ok(())
}

/// A name that stays inside the folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('/') && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// One file: every chunk's checksum, and the whole file's from theirs and the bytes between.
fn check_file(
    folder: &Path,
    file: &manifest::File,
    chunks: &[(u64, u64, u32, &str)],
    progress: &dyn Progress,
) -> Result<Vec<Problem>> {
    let open = ReadFile::open(&folder.join(&file.name))?;
    open.advise_sequential();
    let mut band = vec![0; BAND];
    let mut whole = Hasher::new();
    let (mut at, mut problems) = (0, Vec::new());
    for &(offset, len, crc, name) in chunks {
        if offset < at {
            problems.push(damaged(name, manifest::NAME, format!("its chunk at byte {offset} overlaps another")));
            continue;
        }
        for (begin, end, want) in [(at, offset, None), (offset, offset + len, Some(crc))] {
            let found = crc_of(&open, begin, end - begin, &mut band)?;
            whole.combine(&Hasher::new_with_initial_len(found, end - begin));
            progress.advance(end - begin, Path::new(&file.name));
            if want.is_some_and(|want| want != found) {
                let what = format!("the checksum of its {len} bytes from byte {offset} on differs");
                problems.push(damaged(name, &file.name, what));
            }
        }
        at = offset + len;
    }
    let found = crc_of(&open, at, file.size - at, &mut band)?;
    whole.combine(&Hasher::new_with_initial_len(found, file.size - at));
    progress.advance(file.size - at, Path::new(&file.name));
    if problems.is_empty() && whole.finalize() != file.crc32 {
        problems.push(damaged("", &file.name, "the checksum of the file differs, outside of all tensor data"));
    }
    Ok(problems)
}

/// A chunk's raw data and the checksum its archive names: tensor, file, offset, length, CRC-32.
type Sum<'a> = (&'a str, u32, u64, u64, u32);

/// Chunks tile their tensors, and every archive is what its entry promises.
fn check_structure<'a>(catalog: &'a Catalog, report: &mut VerifyReport) -> Result<Vec<Sum<'a>>> {
    let mut files = OpenFiles::new(catalog);
    let mut sums = Vec::new();
    for (name, info) in &catalog.tensors {
        report.tensors += 1;
        report.chunks += info.chunks.len() as u64;
        if let Err(what) = info.check() {
            report.problems.push(Problem::Cover { tensor: name.clone(), what });
        }
        if catalog.format == Format::Safetensors {
            continue;
        }
        for chunk in &info.chunks {
            let file = chunk.extent.file;
            match torch_dist::locate_payload(files.get(file)?, info, chunk) {
                Ok((extent, Some(crc))) => sums.push((name.as_str(), file, extent.offset, extent.len, crc)),
                Ok((_, None)) => {}
                Err(error) => {
                    let file = &catalog.files[file as usize].name;
                    report.problems.push(damaged(name, file, error.to_string()));
                }
            }
        }
    }
    Ok(sums)
}

/// The checkpoint's own tables say what the manifest says.
fn check_catalog(catalog: &Catalog, manifest: &Manifest, report: &mut VerifyReport) {
    for (name, want) in &manifest.tensors {
        let Some(found) = catalog.tensors.get(name) else {
            report.problems.push(Problem::Missing { tensor: name.clone(), rule: manifest::NAME.into() });
            continue;
        };
        let rects = |chunks: BTreeSet<(Vec<u64>, Vec<u64>)>| chunks;
        let listed = rects(
            want.chunks
                .iter()
                .map(|c| {
                    let start = c.start.clone().unwrap_or_else(|| vec![0; want.shape.len()]);
                    (start, c.shape.clone().unwrap_or_else(|| want.shape.clone()))
                })
                .collect(),
        );
        let stored = rects(found.chunks.iter().map(|c| (c.rect.offsets.clone(), c.rect.sizes.clone())).collect());
        if (found.dtype, &found.shape) != (want.dtype, &want.shape) || listed != stored {
            let what = format!(
                "expected {} {:?} in {} chunks, found {} {:?} in {}",
                want.dtype,
                want.shape,
                want.chunks.len(),
                found.dtype,
                found.shape,
                found.chunks.len()
            );
            report.problems.push(damaged(name, manifest::NAME, what));
        }
    }
    for name in catalog.tensors.keys().filter(|name| !manifest.tensors.contains_key(*name)) {
        report.problems.push(Problem::Unmapped { tensor: name.clone(), file: crate::resolve::file_of(catalog, name) });
    }
}

/// Whether the checkpoint's tables and the lengths of its data files are those that the manifest promises. No data is read.
pub(crate) fn fits_manifest(catalog: &Catalog, manifest: &Manifest) -> bool {
    let mut report = VerifyReport::new();
    check_catalog(catalog, manifest, &mut report);
    let sizes: BTreeMap<&str, u64> = manifest.files.iter().map(|file| (file.name.as_str(), file.size)).collect();
    report.problems.is_empty() && catalog.files.iter().all(|file| sizes.get(file.name.as_str()) == Some(&file.size))
}

/// The checksums inside the zip archives, where no manifest has better ones.
fn check_zip_sums(
    catalog: &Catalog,
    sums: &[Sum<'_>],
    options: &VerifyOptions,
    progress: &dyn Progress,
    report: &mut VerifyReport,
) -> Result<()> {
    let total = sums.iter().map(|s| s.3).sum();
    progress.start("Verifying", total);
    let open = crate::plan::open_all(catalog)?;
    let found: Mutex<Vec<Problem>> = Mutex::default();
    parallel(options.threads, sums.len(), |i| {
        check_cancelled(progress)?;
        let (name, file, offset, len, want) = sums[i];
        let mut band = vec![0; BAND.min(len as usize)];
        let file_name = &catalog.files[file as usize].name;
        if crc_of(&open[file as usize], offset, len, &mut band)? != want {
            let what = format!("the zip checksum of its {len} bytes from byte {offset} on differs");
            found.lock().unwrap_or_else(PoisonError::into_inner).push(damaged(name, file_name, what));
        }
        progress.advance(len, Path::new(file_name));
        Ok(())
    })?;
    report.bytes = total;
    let chunks = report.chunks;
    report.notes.push(format!("{} of {chunks} chunks carry a zip checksum and were read", sums.len()));
    report.problems.extend(found.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(())
}

/// Proves that every element of the checkpoint at `path` equals its source, across formats, and that neither holds a
/// tensor the other lacks.
pub fn verify_against(
    path: &Path,
    source: &Path,
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> Result<VerifyReport> {
    let (ours, theirs) = (Side::apart(path)?, Side::apart(source)?);
    let manifest = read_manifest(&ours.catalog.folder)?;
    let mut report = VerifyReport::new();
    report.manifest = manifest.is_some();
    report.files = ours.catalog.files.len() as u64;
    let pairs = pair(&ours, &theirs)?;
    report.notes.extend(pairs.notes);
    report.problems.extend(pairs.problems);
    let origin = manifest.as_ref().map(|m| &m.origin);
    let from_base: BTreeSet<&String> = origin.iter().flat_map(|o| &o.from_base).collect();
    let (mut lent, mut without_mtp, mut quantizers) = (0, 0, 0);
    for name in pairs.only_a {
        if from_base.contains(&name) {
            lent += 1;
        } else if theirs.quantizers.is_none() && is_of_quantizer(&name) {
            quantizers += 1;
        } else {
            report.problems.push(damaged(name, "", "the source has no such tensor"));
        }
    }
    // The names may be those of either side.
    let mtp_dropped = origin.is_some_and(|o| o.dropped.iter().any(|name| is_mtp(name)))
        && !ours.catalog.tensors.keys().any(|name| is_mtp(name));
    for name in pairs.only_b {
        if mtp_dropped && is_mtp(&name) {
            without_mtp += 1;
        } else if origin.is_some_and(|o| o.dropped.contains(&name)) {
            report.notes.push(format!("`{name}` was left out on request"));
        } else {
            report.problems.push(Problem::Missing { tensor: name, rule: "it is in the source".into() });
        }
    }
    if lent > 0 {
        report
            .notes
            .push(format!("{lent} tensors of MTP come from a base folder, not from the source (--mtp-from-base)"));
    }
    if quantizers > 0 {
        report.notes.push(format!("{quantizers} tensors of quantizers are no part of the source, which has none"));
    }
    for (name, found, expected) in pairs.quantizers {
        report.problems.push(Problem::Quantize { tensor: name, what: format!("{found}; in the source {expected}") });
    }
    if without_mtp > 0 {
        report.notes.push(format!("{without_mtp} tensors of MTP were left out on request (--mtp drop)"));
    }
    for (tensor, found, expected) in pairs.shapes {
        report.problems.push(Problem::Shape { tensor, file: String::new(), expected, found, rule: String::new() });
    }
    progress.start("Comparing", pairs.pairs.iter().map(|(r, _)| r.size()).sum());
    let outcome: Mutex<(Vec<Problem>, u64)> = Mutex::default();
    parallel(options.threads, pairs.pairs.len(), |i| {
        check_cancelled(progress)?;
        let (stored, origin) = &pairs.pairs[i];
        let name = Path::new(&stored.name);
        let equal = compare((stored, &ours.files), (origin, &theirs.files), 0.0, &mut |n| progress.advance(n, name))?;
        let Some(values) = equal else { return Ok(()) };
        let asked =
            manifest.as_ref().is_some_and(|m| origin.sources().iter().any(|s| m.origin.dtypes.contains_key(*s)));
        let rounded =
            asked && stored.dtype != origin.dtype && is_rounding((stored, &ours.files), (origin, &theirs.files))?;
        let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if rounded {
            outcome.1 += 1;
        } else {
            let file = crate::resolve::file_of(&ours.catalog, &stored.name);
            let what =
                format!("{} of {} values differ from the source", values.count, Rect::whole(&stored.shape).len());
            outcome.0.push(damaged(&stored.name, file, what));
        }
        Ok(())
    })?;
    let (mut problems, rounded) = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    problems.sort_by_key(ToString::to_string);
    report.problems.extend(problems);
    if rounded > 0 {
        report.notes.push(format!("{rounded} tensors were rounded on request (--dtype); each value is the nearest"));
    }
    report.tensors = pairs.pairs.len() as u64;
    report.chunks = ours.chunks;
    report.bytes = pairs.pairs.iter().map(|(r, _)| r.size()).sum();
    Ok(report)
}

/// Whether every stored value is the source's, rounded to the stored dtype.
fn is_rounding(stored: (&Recipe, &[ReadFile]), origin: (&Recipe, &[ReadFile])) -> Result<bool> {
    let rect = Rect::whole(&stored.0.shape);
    let mut gather = Gather::new(stored.0, &rect);
    let width = (origin.0.dtype.size(), stored.0.dtype.size());
    let mut same = true;
    let mut failure: Option<Error> = None;
    bands(origin.0, origin.1, |band| {
        let len = (band.len() as u64 / width.0 * width.1) as usize;
        let (mut want, mut found) = (vec![0; len], vec![0; len]);
        cast::cast(origin.0.dtype, band, stored.0.dtype, &mut want);
        failure = gather.fill(stored.1, &mut found).err().map(Error::from);
        same = failure.is_none() && want == found;
        same
    })?;
    failure.map_or(Ok(same), Err)
}
