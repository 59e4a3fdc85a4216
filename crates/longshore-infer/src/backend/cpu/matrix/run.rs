//! Products cut into tiles for the threads, and a tile cut into blocks for the kernels.

#[cfg(target_arch = "x86_64")]
use super::fused_x86;
use super::kernel::{Ahead, Bf16Bf16, F32Bf16, F32F32, Finish, Kernel, MAX_ROWS, Out, STEP_LINES, Tile, kernels};
use super::unpack::unpack;
use super::{BLOCK_BF16, BLOCK_F32, Isa, LANES, Line, Matrix, PANEL, Pool, Product, WeightType};
use half::bf16;
use std::cell::{Cell, RefCell};
use std::thread::LocalKey;

/// Rows of activations of a tile: their block of columns stays in the second-level cache.
const TILE_ROWS: usize = 252;
/// Bytes of activations that a tile copies at once.
const COPY_SIZE: usize = 512 << 10;
/// Multiply-adds (of one row at least as many as reading the weights takes time for) that are worth a tile of their own.
const TILE_WORK: usize = 1 << 19;
/// Tiles for each thread, so that none waits long for the last.
const TILES_PER_THREAD: usize = 8;

thread_local! {
    static COPY_F32: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static COPY_BF16: RefCell<Vec<bf16>> = const { RefCell::new(Vec::new()) };
    /// A block of quantized weights, unpacked.
    static UNPACKED: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// A type of activations.
pub(super) trait Activation: Copy + Send + Sync + 'static {
    const ZERO: Self;
    /// Columns of a block.
    const BLOCK: usize;
    /// A thread's copy of a tile's activations.
    fn copy() -> &'static LocalKey<RefCell<Vec<Self>>>;
    /// The kernels for a type of weights, or for what it is unpacked into.
    fn kernels(isa: Isa, weights: WeightType) -> [Kernel<Self>; MAX_ROWS];
    /// Kernels of 1, 2, ... rows that read quantized weights.
    fn fused(isa: Isa, weights: WeightType) -> Vec<Kernel<Self>>;
}

impl Activation for f32 {
    const ZERO: Self = 0.0;
    const BLOCK: usize = BLOCK_F32;

    fn copy() -> &'static LocalKey<RefCell<Vec<Self>>> {
        &COPY_F32
    }

    fn kernels(isa: Isa, weights: WeightType) -> [Kernel<Self>; MAX_ROWS] {
        match weights {
            WeightType::Float32 => kernels::<F32F32>(isa),
            _ => kernels::<F32Bf16>(isa),
        }
    }

    fn fused(isa: Isa, weights: WeightType) -> Vec<Kernel<Self>> {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernels) = fused_x86::fused_f32(isa, weights) {
            return kernels.to_vec();
        }
        let _ = (isa, weights);
        Vec::new()
    }
}

impl Activation for bf16 {
    const ZERO: Self = bf16::ZERO;
    const BLOCK: usize = BLOCK_BF16;

    fn copy() -> &'static LocalKey<RefCell<Vec<Self>>> {
        &COPY_BF16
    }

    fn kernels(isa: Isa, weights: WeightType) -> [Kernel<Self>; MAX_ROWS] {
        assert!(weights != WeightType::Float32, "bf16 activations need bf16 or quantized weights");
        kernels::<Bf16Bf16>(isa)
    }

    fn fused(isa: Isa, weights: WeightType) -> Vec<Kernel<Self>> {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernels) = fused_x86::fused_bf16(isa, weights) {
            return kernels.to_vec();
        }
        let _ = (isa, weights);
        Vec::new()
    }
}

/// A product whose lengths are checked.
struct Checked<'a, T> {
    x: &'a [T],
    w: &'a Matrix,
    out: Out,
    isa: Isa,
    kernels: [Kernel<T>; MAX_ROWS],
    /// Whether the weights are unpacked before `kernels` read them.
    unpacked: bool,
    m: usize,
    /// The number of its first tile, its blocks of rows, and the panels of a tile.
    first_tile: usize,
    row_blocks: usize,
    tile_panels: usize,
}

// SAFETY: `out` is the memory of a `&mut [f32]` that outlives it; each tile of it is given to one thread.
unsafe impl<T: Sync> Sync for Checked<'_, T> {}

pub(super) fn matmul<T: Activation>(pool: &Pool, isa: Isa, products: &mut [Product<'_, T>]) {
    assert!(isa <= Isa::detect(), "this processor has no {isa:?}");
    let mut checked: Vec<Checked<'_, T>> = products.iter_mut().map(|product| check(isa, product)).collect();
    let work: usize = checked.iter().map(|p| p.w.panels().saturating_mul(panel_work(p))).fold(0, usize::saturating_add);
    let worth = TILE_WORK.max(work / (pool.threads() * TILES_PER_THREAD));
    let mut tiles = 0;
    for product in &mut checked {
        product.first_tile = tiles;
        if product.m == 0 {
            continue;
        }
        product.row_blocks = product.m.div_ceil(TILE_ROWS);
        product.tile_panels = worth.div_ceil((panel_work(product) / product.row_blocks).max(1));
        tiles += product.w.panels().div_ceil(product.tile_panels) * product.row_blocks;
    }
    pool.run(tiles, |tile| {
        let product = &checked[checked.partition_point(|product| product.first_tile <= tile) - 1];
        run_tile(product, tile - product.first_tile);
    });
}

fn check<'a, T: Activation>(isa: Isa, product: &'a mut Product<'_, T>) -> Checked<'a, T> {
    let Product { x, w, out } = product;
    let m = x.len().checked_div(w.cols).or_else(|| out.len().checked_div(w.rows)).unwrap_or(0);
    assert!(
        m.checked_mul(w.cols) == Some(x.len()) && m.checked_mul(w.rows) == Some(out.len()),
        "{} activations and {} results of [{}, {}]",
        x.len(),
        out.len(),
        w.rows,
        w.cols
    );
    let mut kernels = T::kernels(isa, w.weight_type);
    let mut unpacked = w.weight_type.codes().is_some();
    let fused = if unpacked { T::fused(isa, w.weight_type) } else { Vec::new() };
    // All rows of a product in one kernel, or else the weights are unpacked once for all.
    if (1..=fused.len()).contains(&m) {
        kernels[..fused.len()].copy_from_slice(&fused);
        unpacked = false;
    }
    Checked {
        x,
        w,
        out: Out { to: out.as_mut_ptr(), len: out.len() },
        isa,
        kernels,
        unpacked,
        m,
        first_tile: 0,
        row_blocks: 1,
        tile_panels: 1,
    }
}

/// Multiply-adds of a panel; a few rows take no less time than reading it does.
fn panel_work<T>(product: &Checked<'_, T>) -> usize {
    product.w.cols.saturating_mul(PANEL).saturating_mul(product.m.max(4))
}

/// The `i`-th of `parts` nearly equal parts of `0..len`.
fn part(len: usize, parts: usize, i: usize) -> std::ops::Range<usize> {
    let begin = |i: usize| len / parts * i + i.min(len % parts);
    begin(i)..begin(i + 1)
}

fn run_tile<T: Activation>(product: &Checked<'_, T>, tile: usize) {
    let w = product.w;
    let rows = part(product.m, product.row_blocks, tile % product.row_blocks);
    let first_panel = tile / product.row_blocks * product.tile_panels;
    let panels = first_panel..w.panels().min(first_panel + product.tile_panels);
    let x = &product.x[rows.start * w.cols..rows.end * w.cols];
    let size = size_of::<T>();
    // Parts begin where sums do.
    let block = w.weight_type.scaled_block().unwrap_or(T::BLOCK);
    let most = (COPY_SIZE / size / rows.len() / block).max(1).saturating_mul(block);
    if rows.len() == 1 {
        run_part(product, x, w.cols, &rows, &panels, 0..w.cols);
        return;
    }
    T::copy().with_borrow_mut(|copy| {
        let mut begin = 0_usize;
        loop {
            let cols = begin..w.cols.min(begin.saturating_add(most));
            // Rows at a distance of a power of two would share the sets of the nearest cache.
            let stride = (cols.len() * size).next_multiple_of(1024) / size + 64 / size;
            copy.resize(copy.len().max(rows.len() * stride), T::ZERO);
            for (to, from) in copy.chunks_exact_mut(stride).zip(x.chunks_exact(w.cols.max(1))) {
                to[..cols.len()].copy_from_slice(&from[cols.clone()]);
            }
            run_part(product, copy, stride, &rows, &panels, cols.clone());
            begin = cols.end;
            if begin == w.cols {
                break;
            }
        }
    });
}

/// The blocks of some columns, whose activations are `x`.
fn run_part<T: Activation>(
    product: &Checked<'_, T>,
    x: &[T],
    x_stride: usize,
    rows: &std::ops::Range<usize>,
    panels: &std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
) {
    let w = product.w;
    let groups = rows.len().div_ceil(MAX_ROWS);
    let (unit_cols, unit_lines) = w.weight_type.unit();
    let line = |col: usize| col.div_ceil(unit_cols) * unit_lines;
    let mut scratch = UNPACKED.take();
    if product.unpacked {
        scratch.resize(scratch.len().max(T::BLOCK.div_ceil(2) * STEP_LINES), Line([0; LANES]));
    }
    for panel in panels.clone() {
        let lines = w.panel(panel);
        let mut begin = cols.start;
        loop {
            let end = cols.end.min(w.weight_type.end_of_sum(begin, T::BLOCK));
            let packed: &[Line] = &lines[line(begin)..line(end)];
            let next = match end < cols.end {
                true => packed.as_ptr_range().end,
                false if panel + 1 < panels.end => w.panel(panel + 1)[line(cols.start)..].as_ptr(),
                false => packed.as_ptr(),
            };
            let block = if product.unpacked {
                unpack(product.isa, w.weight_type, packed, end - begin, &mut scratch);
                &scratch[..(end - begin).div_ceil(2) * STEP_LINES]
            } else {
                packed
            };
            let finish = Finish {
                first: begin == 0,
                block_scales: w
                    .weight_type
                    .scaled_block()
                    .and_then(|cols| w.panel_block_scales(panel).get(begin / cols)),
                row_scales: if end == w.cols { w.row_scales.get(panel) } else { None },
            };
            for group in 0..groups {
                let part = part(rows.len(), groups, group);
                let first = (rows.start + part.start) * w.rows + panel * PANEL;
                let tile = Tile {
                    x: x.get(part.start * x_stride + begin - cols.start..).unwrap_or(&[]),
                    x_stride,
                    cols: end - begin,
                    w: block,
                    weight_type: w.weight_type,
                    out: Out { to: product.out.to.wrapping_add(first), len: product.out.len - first },
                    out_stride: w.rows,
                    width: PANEL.min(w.rows - panel * PANEL),
                    finish,
                    // Two groups, half of the next block each; of quantized weights, which are no longer, the first all.
                    ahead: match group {
                        0 if product.unpacked => Ahead::Later(next),
                        _ if product.unpacked => Ahead::No,
                        _ if groups == 1 => Ahead::Same,
                        0 | 1 => Ahead::Later(next.wrapping_add(group * block.len() / 2)),
                        _ => Ahead::No,
                    },
                };
                // SAFETY: `matmul` has checked the instruction set. `first` is in `out`, of which this tile's rows and
                // panels are nobody else's, since each tile runs once.
                unsafe { product.kernels[part.len() - 1](&tile) };
            }
            begin = end;
            if begin == cols.end {
                break;
            }
        }
    }
    UNPACKED.set(scratch);
}
