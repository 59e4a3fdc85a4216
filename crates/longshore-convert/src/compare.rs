//! Comparison: tensors of two checkpoints paired by name, through the mapping where the formats differ, and compared
//! element by element in bounded memory.

use crate::cast;
use crate::gather::{BAND, Gather, bands};
use crate::mapping::{Declared, Place, Precision};
use crate::model::{Model, check_vocabulary, spec_keys, stored_vocab};
use crate::plan::{drop_training_state, open_all};
use crate::progress::Progress;
use crate::region::Region;
use crate::resolve::{Direction, OpenFiles, Part, Recipe, SourceTensor, locate, resolve};
use crate::{Error, Problem, Result};
use longshore_ckpt::fs::ReadFile;
use longshore_ckpt::{Catalog, Dtype, Format, Rect};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A checkpoint opened for comparison.
pub(crate) struct Side {
    pub(crate) catalog: Catalog,
    pub(crate) files: Vec<ReadFile>,
}

impl Side {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut catalog = Catalog::open(path)?;
        drop_training_state(&mut catalog);
        let files = open_all(&catalog)?;
        Ok(Self { catalog, files })
    }
}

/// The tensors of `b` under the names of `a`, ready to compare.
#[derive(Default)]
pub(crate) struct Pairs {
    /// Both sides, each in its own dtype.
    pub(crate) pairs: Vec<(Recipe, Recipe)>,
    pub(crate) only_a: Vec<String>,
    pub(crate) only_b: Vec<String>,
    /// Name, shape in `a`, shape in `b`.
    pub(crate) shapes: Vec<(String, Vec<u64>, Vec<u64>)>,
    /// Anything else that keeps tensors from being compared.
    pub(crate) problems: Vec<Problem>,
    pub(crate) notes: Vec<String>,
}

/// Pairs two checkpoints.
pub(crate) fn pair(a: &Side, b: &Side) -> Result<Pairs> {
    let mut out = Pairs::default();
    let theirs =
        if a.catalog.format == b.catalog.format { identities(&b.catalog, &mut out)? } else { mapped(a, b, &mut out)? };
    let mut theirs: BTreeMap<String, Recipe> = theirs.into_iter().map(|r| (r.name.clone(), r)).collect();
    for ours in identities(&a.catalog, &mut out)? {
        match theirs.remove(&ours.name) {
            None => out.only_a.push(ours.name),
            Some(their) if their.shape != ours.shape => out.shapes.push((ours.name, ours.shape, their.shape)),
            Some(their) => out.pairs.push((ours, their)),
        }
    }
    out.only_b.extend(theirs.into_keys());
    Ok(out)
}

/// Every tensor of a catalog as it is stored.
fn identities(catalog: &Catalog, out: &mut Pairs) -> Result<Vec<Recipe>> {
    let mut files = OpenFiles::new(catalog);
    let mut recipes = Vec::with_capacity(catalog.tensors.len());
    for name in catalog.tensors.keys() {
        match locate(catalog, &mut files, name)? {
            Ok(tensor) => recipes.push(identity(tensor)),
            Err(problem) => out.problems.push(problem),
        }
    }
    Ok(recipes)
}

#[track_caller]
fn identity(tensor: SourceTensor) -> Recipe {
    let rule = std::panic::Location::caller();
    let len = tensor.shape.iter().product();
    let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
    let parts = if len == 0 {
        Vec::new()
    } else {
        vec![Part { target: Region::all(len), source: Some((Arc::new(tensor), Region::all(len))) }]
    };
    let precision = Precision::default();
    let declared =
        Declared { shape: shape.clone(), precision, tp_axis: None, experts: false, place: Place::First, rule };
    Recipe { name, dtype, shape, parts, declared, computed: None }
}

/// The tensors of `b` under the names of `a`, which has the other format.
fn mapped(a: &Side, b: &Side, out: &mut Pairs) -> Result<Vec<Recipe>> {
    let (hf, mc) = if a.catalog.format == Format::Safetensors { (a, b) } else { (b, a) };
    let mut model = Model::from_folder(&hf.catalog.folder)?;
    model.check_converted(&hf.catalog.folder)?;
    let per_block = model.config.mtp.as_ref().map_or(1, |m| m.layers.len() as u64);
    model.settle_mtp(hf.catalog.tensors.keys(), per_block);
    out.notes.extend(model.notes.iter().map(|n| n.text.clone()));
    let padded = stored_vocab(&mc.catalog).unwrap_or(model.config.vocab_size).max(model.config.vocab_size);
    check_vocabulary(&model.config, padded, &mc.catalog.folder)?;
    let mapping = (model.architecture.mapping)(&model.config, &spec_keys(&mc.catalog), padded);
    let direction = if std::ptr::eq(a, hf) { Direction::Export } else { Direction::Import };
    let resolved = resolve(&mapping, &b.catalog, direction, &|_, _, source| source)?;
    if direction == Direction::Export {
        for fill in &mapping.fills {
            let name = &fill.mc.0;
            let (Some(declared), Ok(tensor)) =
                (mapping.mc.get(name), locate(&b.catalog, &mut OpenFiles::new(&b.catalog), name)?)
            else {
                continue;
            };
            if let Some(what) = surplus(tensor, &fill.mc.1, declared, &b.files)? {
                out.problems.push(Problem::Loss { tensor: name.clone(), what });
            }
        }
    }
    out.only_b.extend(resolved.unmapped);
    for problem in resolved.problems {
        match problem {
            // Reported from the other side as a tensor that only `a` holds.
            Problem::Missing { .. } => {}
            Problem::Shape { tensor, expected, found, .. } => out.shapes.push((tensor, expected, found)),
            other => out.problems.push(other),
        }
    }
    Ok(resolved.recipes)
}

/// What is wrong with the padding of a tensor: rows that should be zero and are not.
pub(crate) fn surplus(
    tensor: SourceTensor,
    region: &Region,
    declared: &Declared,
    files: &[ReadFile],
) -> Result<Option<String>> {
    let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype, vec![region.len()]);
    let part = Part { target: Region::all(region.len()), source: Some((Arc::new(tensor), region.clone())) };
    let recipe = Recipe { name, dtype, shape, parts: vec![part], declared: declared.clone(), computed: None };
    let width = dtype.size() as usize;
    let mut nonzero = 0;
    bands(&recipe, files, |band| {
        nonzero += band.chunks_exact(width).filter(|e| cast::number(dtype, e) != 0.0).count();
        true
    })?;
    let text = || {
        format!(
            "{nonzero} values in the rows past vocab_size are not zero; --vocab-size or --base says how many rows count"
        )
    };
    Ok((nonzero > 0).then(text))
}

/// How the elements of two tensors differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Values {
    pub(crate) count: u64,
    pub(crate) max_abs: f64,
    pub(crate) max_rel: f64,
    /// Row-major index of the first.
    pub(crate) first: u64,
    pub(crate) a: f64,
    pub(crate) b: f64,
}

/// Compares two tensors of one shape, each in its own dtype: bit for bit where the dtypes are equal, by value otherwise.
/// `tolerance` is relative to the larger magnitude.
pub(crate) fn compare(
    a: (&Recipe, &[ReadFile]),
    b: (&Recipe, &[ReadFile]),
    tolerance: f64,
    done: &mut dyn FnMut(u64),
) -> Result<Option<Values>> {
    compare_box(a, b, &Rect::whole(&a.0.shape), tolerance, done)
}

/// As [`compare`], in one box of both.
pub(crate) fn compare_box(
    a: (&Recipe, &[ReadFile]),
    b: (&Recipe, &[ReadFile]),
    rect: &Rect,
    tolerance: f64,
    done: &mut dyn FnMut(u64),
) -> Result<Option<Values>> {
    /// Elements at a time; a band of either side has at most 8 bytes an element.
    const ELEMENTS: u64 = (BAND / 4) as u64;
    let (mut ga, mut gb) = (Gather::new(a.0, rect), Gather::new(b.0, rect));
    let (wa, wb) = (a.0.dtype.size(), b.0.dtype.size());
    let total = rect.len();
    let most = ELEMENTS.min(total);
    let (mut ba, mut bb) = (vec![0; (most * wa) as usize], vec![0; (most * wb) as usize]);
    let mut values = Values::default();
    let mut at = 0;
    while at < total {
        let n = most.min(total - at);
        let (pa, pb) = (&mut ba[..(n * wa) as usize], &mut bb[..(n * wb) as usize]);
        ga.fill(a.1, pa)?;
        gb.fill(b.1, pb)?;
        if a.0.dtype != b.0.dtype || pa != pb {
            differences((a.0.dtype, pa), (b.0.dtype, pb), at, tolerance, &mut values);
        }
        at += n;
        done(n * wa);
    }
    Ok((values.count > 0).then_some(values))
}

fn differences(a: (Dtype, &[u8]), b: (Dtype, &[u8]), at: u64, tolerance: f64, values: &mut Values) {
    let pairs = a.1.chunks_exact(a.0.size() as usize).zip(b.1.chunks_exact(b.0.size() as usize));
    for (i, (ea, eb)) in (at..).zip(pairs) {
        if a.0 == b.0 && ea == eb {
            continue;
        }
        let (x, y) = (cast::number(a.0, ea), cast::number(b.0, eb));
        let abs = (x - y).abs();
        let scale = x.abs().max(y.abs());
        let rel = if abs == 0.0 { 0.0 } else { abs / scale };
        let same_bits_matter = a.0 == b.0 && tolerance == 0.0;
        let equal = if x.is_nan() || y.is_nan() {
            x.is_nan() && y.is_nan() && !same_bits_matter
        } else {
            // Zeros of different sign have equal values and different bits.
            abs <= tolerance * scale && !same_bits_matter
        };
        if equal {
            continue;
        }
        if values.count == 0 {
            (values.first, values.a, values.b) = (i, x, y);
        }
        values.count += 1;
        values.max_abs = values.max_abs.max(abs);
        values.max_rel = values.max_rel.max(rel);
    }
}

/// Runs `work` over every index below `count` on `threads` threads; the first error wins.
pub(crate) fn parallel(threads: usize, count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let (next, error) = (AtomicUsize::new(0), Mutex::new(None));
    let run = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            if let Err(e) = work(index) {
                next.store(count, Ordering::Relaxed);
                error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(e);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            scope.spawn(run);
        }
        run();
    });
    error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Stops a comparison on request; nothing is staged.
pub(crate) fn check_cancelled(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() { Err(Error::Stopped) } else { Ok(()) }
}
