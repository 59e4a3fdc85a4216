//! What both directions have in common: from the parts of a plan to the plan, with its notes and fingerprints.

use super::{Content, Item, Note, NoteKind, OutFile, Plan, Side, SmallFile, Summary, is_widening};
use crate::Result;
use crate::arch::rule_rows;
use crate::config::ModelConfig;
use crate::error::Problem;
use crate::fingerprint::Fingerprint;
use crate::manifest::Origin;
use crate::mapping::Mapping;
use crate::options::Layout;
use crate::resolve::{Recipe, file_of};
use longshore_ckpt::fs::{self, Identity, ReadFile};
use longshore_ckpt::{Catalog, Dtype, Format};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a direction decides.
pub(super) struct Draft<'a> {
    /// The format that is written.
    pub(super) target: Format,
    pub(super) catalog: Catalog,
    pub(super) destination: &'a Path,
    /// `release` or `iter_*` inside the destination, for torch_dist.
    pub(super) inner: Option<String>,
    pub(super) config: ModelConfig,
    /// The layout, where it is smaller than the one that was asked for.
    pub(super) lowered: Option<Layout>,
    /// The layers of the source in Megatron's letters.
    pub(super) source_pattern: String,
    pub(super) mapping: Mapping,
    pub(super) recipes: Vec<Recipe>,
    pub(super) files: Vec<OutFile>,
    pub(super) small: Vec<SmallFile>,
    /// Source tensors whose dtype the output does not show.
    pub(super) dtypes: BTreeMap<String, Dtype>,
    /// Source tensors left out on request.
    pub(super) dropped: Vec<String>,
    /// Output tensors that a base folder lends.
    pub(super) from_base: Vec<String>,
    /// Whether a source of torch_dist did not say which dtypes its Hugging Face tensors had.
    pub(super) dtypes_unknown: bool,
    /// Whether every narrowing cast was found to keep all values.
    pub(super) casts_checked: bool,
    pub(super) notes: Vec<Note>,
}

impl Draft<'_> {
    /// The plan. `options` are what the user asked for; they are part of its fingerprint.
    pub(super) fn finish(self, options: &impl Serialize) -> Result<Plan> {
        let Self { target, catalog, destination, inner, config, mapping, recipes, files, small, mut notes, .. } = self;
        let identities = identities(&catalog)?;
        let (fingerprint, staging_id) = fingerprints(&catalog, options, &small, &identities)?;
        let casts = cast_notes(&recipes, self.casts_checked, &mut notes);
        let bytes = files.iter().map(OutFile::size).sum();
        let free_space = space_note(destination, bytes, &mut notes);
        destination_note(destination, &mut notes);
        staging_notes(destination, &staging_id, &mut notes);
        let chunks = files.iter().flat_map(|f| &f.items).filter(|item| matches!(item, Item::Chunk { .. })).count();
        let objects = match target {
            Format::TorchDist => mapping.objects.len(),
            Format::Safetensors => catalog.objects.len(),
        };
        let summary = Summary {
            source: Side {
                format: catalog.format,
                path: catalog.folder.clone(),
                // Those of a base folder are there by their whole path.
                files: catalog.files.iter().filter(|file| Path::new(&file.name).is_relative()).count() as u64,
                tensors: catalog.tensors.len() as u64,
                bytes: catalog.total_size(),
            },
            target: Side {
                format: target,
                path: inner.as_ref().map_or_else(|| destination.into(), |inner| destination.join(inner)),
                files: files.len() as u64,
                tensors: recipes.len() as u64,
                bytes,
            },
            architecture: config.architecture.clone(),
            layers: layers_text(&self.source_pattern),
            target_layers: (config.pattern() != self.source_pattern).then(|| layers_text(&config.pattern())),
            lowered: self.lowered,
            chunks: chunks as u64,
            objects: objects as u64,
            casts,
            fills: recipes.iter().filter(|r| r.parts.iter().any(|p| p.source.is_none())).count() as u64,
            notes,
            free_space,
            fingerprint: fingerprint.clone(),
        };
        let origin = Origin {
            architecture: config.architecture.clone(),
            vocab_size: config.vocab_size,
            dtypes: self.dtypes,
            dropped: self.dropped,
            from_base: self.from_base,
            dtypes_unknown: self.dtypes_unknown,
        };
        let rules = rule_rows(&mapping);
        let destination = real_path(destination)?;
        Ok(Plan {
            target,
            catalog,
            identities,
            destination,
            inner,
            recipes,
            files,
            small,
            origin,
            fingerprint,
            inputs: None,
            staging_id,
            rules,
            summary,
            config,
        })
    }
}

/// Tensors that no rule names: problems, or notes where the user allows them.
pub(crate) fn unmapped(
    names: &[String],
    catalog: &Catalog,
    allowed: bool,
    problems: &mut Vec<Problem>,
    notes: &mut Vec<Note>,
) {
    for name in names {
        if allowed {
            notes.push(Note::new(NoteKind::Dropped, format!("`{name}`: no rule names it (--allow-unmapped)")));
        } else {
            problems.push(Problem::Unmapped { tensor: name.clone(), file: file_of(catalog, name) });
        }
    }
}

/// `52 layers: 23 M, 23 E, 6 *`
fn layers_text(pattern: &str) -> String {
    let count = |letter| pattern.chars().filter(|&c| c == letter).count();
    let kinds = ['M', 'E', '*', '-'].map(|c| (c, count(c)));
    let parts: Vec<_> = kinds.iter().filter(|k| k.1 > 0).map(|(c, n)| format!("{n} {c}")).collect();
    format!("{} layers: {}", pattern.chars().count(), parts.join(", "))
}

/// Every data file of a catalog as it is now.
fn identities(catalog: &Catalog) -> Result<Vec<(PathBuf, Identity)>> {
    let paths = (0..catalog.files.len()).map(|i| catalog.path(i as u32));
    paths.map(|path| Ok((path.clone(), Identity::of(&path)?))).collect()
}

/// Identifies what a plan will write: the program, the options, the source's tables and samples of its data. With the
/// identities of its files the result also tells two sources apart that differ between the samples.
fn fingerprints(
    catalog: &Catalog,
    options: &impl Serialize,
    small: &[SmallFile],
    identities: &[(PathBuf, Identity)],
) -> Result<(String, String)> {
    /// Samples per file and bytes of each: reading them costs less than a millisecond a file.
    const SAMPLES: u64 = 16;
    const SAMPLE: u64 = 4096;
    let mut hash = Fingerprint::default();
    hash.add(env!("CARGO_PKG_VERSION").as_bytes());
    hash.add_json(options);
    for (name, info) in &catalog.tensors {
        hash.add(name.as_bytes());
        hash.add(info.dtype.torch_name().as_bytes());
        hash.add_json(&info.shape);
        for chunk in &info.chunks {
            hash.add_json(&(&chunk.rect, chunk.extent));
        }
    }
    for (index, file) in catalog.files.iter().enumerate() {
        let open = ReadFile::open(&catalog.path(index as u32))?;
        let mut buffer = vec![0; SAMPLE.min(file.size) as usize];
        for sample in 0..SAMPLES {
            let last = file.size - buffer.len() as u64;
            open.read_exact_at((u128::from(last) * u128::from(sample) / u128::from(SAMPLES - 1)) as u64, &mut buffer)?;
            hash.add(&buffer);
        }
    }
    for file in small {
        hash.add(file.name.as_bytes());
        match &file.content {
            Content::Bytes(bytes) => hash.add(bytes),
            Content::Path(_, crc) => hash.add(&crc.to_le_bytes()),
        }
    }
    let content = hash.text();
    for (path, identity) in identities {
        hash.add_json(&(path, identity.size, identity.mtime_ns as i64, identity.inode));
    }
    Ok((content, hash.text()))
}

/// A note where the destination has less room than the plan needs.
fn space_note(destination: &Path, needed: u64, notes: &mut Vec<Note>) -> Option<u64> {
    let free = fs::free_space(destination).ok()?;
    if free < needed {
        let text =
            format!("the destination has {:.3} GB free, {:.3} GB are needed", gigabytes(free), gigabytes(needed));
        notes.push(Note::new(NoteKind::Space, text));
    }
    Some(free)
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// A note where the destination holds something, which a run replaces only when told to.
fn destination_note(destination: &Path, notes: &mut Vec<Note>) {
    if fs::exists(destination) && fs::list(destination).map_or(true, |names| !names.is_empty()) {
        let text =
            format!("`{}` is not empty: a run needs --force, unless it holds this very result", destination.display());
        notes.push(Note::new(NoteKind::Warning, text));
    }
}

/// The destination with links resolved, so that publishing replaces what they lead to and not the link.
fn real_path(destination: &Path) -> Result<PathBuf> {
    Ok(if fs::exists(destination) { fs::canonical(destination)? } else { destination.into() })
}

/// A note for every unfinished run beside the destination that is not this one.
fn staging_notes(destination: &Path, staging_id: &str, notes: &mut Vec<Note>) {
    let others = fs::stale_stagings(destination).into_iter().filter(|p| !p.to_string_lossy().ends_with(staging_id));
    notes.extend(others.map(|p| Note::new(NoteKind::Warning, format!("`{}` is left from another run", p.display()))));
}

/// Notes about dtypes: one line per pair of types. `checked` says that every value was found to survive.
fn cast_notes(recipes: &[Recipe], checked: bool, notes: &mut Vec<Note>) -> u64 {
    let mut pairs: Vec<(Dtype, Dtype, u64, &str)> = Vec::new();
    for (recipe, from) in recipes.iter().flat_map(|r| r.cast_dtypes().into_iter().map(move |from| (r, from))) {
        let to = recipe.dtype;
        match pairs.iter_mut().find(|p| (p.0, p.1) == (from, to)) {
            Some(pair) => pair.2 += 1,
            None => pairs.push((from, to, 1, &recipe.name)),
        }
    }
    for &(from, to, count, example) in &pairs {
        let how = if checked || is_widening(from, to) { "exactly" } else { "rounded to nearest" };
        let text =
            format!("{count} tensors from {from} to {to}, {how} (`{example}`{})", if count > 1 { ", …" } else { "" });
        notes.push(Note::new(NoteKind::Cast, text));
    }
    recipes.iter().filter(|r| r.casts()).count() as u64
}
