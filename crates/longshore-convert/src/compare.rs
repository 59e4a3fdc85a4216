//! Comparison: tensors of two checkpoints paired by name, through the mapping where the formats differ, and compared
//! element by element in bounded memory.

use crate::cast;
use crate::gather::{BAND, Gather, bands};
use crate::mapping::Declared;
use crate::plan::{drop_training_state, open_all};
use crate::progress::Progress;
use crate::quantized::state::QuantizerStates;
use crate::region::Region;
use crate::resolve::{Part, Recipe, SourceTensor};
use crate::{Error, Result};
use longshore_ckpt::fs::ReadFile;
use longshore_ckpt::{Catalog, Dtype, Rect};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

mod pairs;

pub(crate) use pairs::pair;

/// A checkpoint opened for comparison.
pub(crate) struct Side {
    pub(crate) catalog: Catalog,
    pub(crate) files: Vec<ReadFile>,
    /// Stored pieces of its tensors.
    pub(crate) chunks: u64,
    /// Its quantizers, if it was opened with them apart; the catalog then lacks their tensors.
    pub(crate) quantizers: Option<QuantizerStates>,
}

impl Side {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut catalog = Catalog::open(path)?;
        drop_training_state(&mut catalog);
        let files = open_all(&catalog)?;
        let chunks = catalog.tensors.values().map(|info| info.chunks.len() as u64).sum();
        Ok(Self { catalog, files, chunks, quantizers: None })
    }

    /// As [`Side::open`], with the quantizers apart from the tensors of the model.
    pub(crate) fn apart(path: &Path) -> Result<Self> {
        let mut side = Self::open(path)?;
        side.quantizers = QuantizerStates::read(&mut side.catalog)?;
        Ok(side)
    }
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
