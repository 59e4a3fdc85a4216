//! The backend of this machine's processors.
//!
//! Activations are float32 rows in either precision. In bfloat16, what enters a product, the residual stream and the
//! key/value cache are rounded to it; sums, norms, the router, the scan and its state stay float32.

#![allow(clippy::inline_always, reason = "bodies must be inlined into the functions that enable instructions")]
#![allow(clippy::many_single_char_names, reason = "the names of the formulas")]

mod attention;
pub mod isa;
mod mamba;
mod math;
pub mod matrix;
mod moe;
mod norm;
mod observe;
pub mod pool;
mod quantized;
mod rotary;
mod store;
mod tasks;

use crate::backend::{Backend, Inputs, MambaOptions, Probe, Routing, Segment, WeightFormat};
use crate::error::Result;
use crate::layers::{AttentionWeights, MambaWeights, MoeWeights, Norm};
use crate::quantized::InputQuantizer;
use crate::stats::{InputStats, StatsWanted};
use half::bf16;
use isa::Isa;
use longshore_ckpt::Dtype;
use longshore_quant::Scheme;
use longshore_quant::pack::QuantizedRows;
use matrix::{Matrix, Product, matrix_bytes};
use pool::Pool;
use std::ops::{Deref, Range};
use std::sync::Arc;
use store::{Pooled, Store, take};
use tasks::{each, row_blocks};

pub use attention::KvState;
pub use mamba::MambaState;

/// What products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Float32 throughout; weights in the type they are stored in, which loses nothing. The reference.
    Float32,
    /// Bfloat16 weights and activations, float32 sums.
    Bfloat16,
}

impl Precision {
    /// What this machine computes it in: the same text, the same bits (`docs/engine.md`).
    pub fn arithmetic(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 if Isa::detect() < Isa::Avx512Bf16 => "bfloat16",
            Self::Bfloat16 => "bfloat16, vdpbf16ps",
        }
    }
}

/// This machine's processors.
pub struct Cpu {
    pool: Pool,
    isa: Isa,
    precision: Precision,
    floats: Arc<Store<f32>>,
    halves: Arc<Store<bf16>>,
}

/// Rows of activations.
pub struct Rows {
    width: usize,
    data: Pooled<f32>,
}

/// Rows of a task where rows are independent.
const ROWS_PER_TASK: usize = 16;

impl Cpu {
    /// `threads` threads and the widest instructions of this processor. Errors: the threads cannot be started.
    pub fn new(threads: usize, precision: Precision) -> std::io::Result<Self> {
        Self::with_isa(threads, precision, Isa::detect())
    }

    /// As [`Cpu::new`], with the instructions of `isa`, or of this processor where it has fewer.
    pub fn with_isa(threads: usize, precision: Precision, isa: Isa) -> std::io::Result<Self> {
        Ok(Self {
            pool: Pool::new(threads)?,
            isa: isa.min(Isa::detect()),
            precision,
            floats: Arc::default(),
            halves: Arc::default(),
        })
    }

    /// The precision.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// A buffer of any content.
    fn floats(&self, len: usize) -> Pooled<f32> {
        take(&self.floats, len)
    }

    /// Products of the same or different inputs, in one go.
    fn products<T: Element>(&self, jobs: &mut [Job<'_, T>]) {
        T::products(self, jobs);
    }

    fn relu_squared_rows(&self, data: &mut [f32], width: usize) {
        row_blocks(&self.pool, data, width, ROWS_PER_TASK, |_, rows| norm::relu_squared(self.isa, rows));
    }

    fn add_rows(&self, x: &[f32], residual: &mut [f32], width: usize) {
        row_blocks(&self.pool, residual, width, ROWS_PER_TASK, |first, rows| {
            norm::add(self.isa, &x[first * width..][..rows.len()], rows);
        });
    }
}

/// Input `[tokens, cols]`, weight, output `[tokens, rows]`.
type Job<'a, T> = (&'a [T], &'a Matrix, &'a mut [f32]);

/// What enters a product.
trait Element: Copy + Default + Send + Sync + 'static {
    /// The values in this type, rounded where it is narrower.
    fn of<'a>(cpu: &Cpu, x: &'a [f32]) -> Input<'a, Self>;
    /// The same of values that nothing else needs.
    fn own(cpu: &Cpu, x: Pooled<f32>) -> Pooled<Self>;
    /// A buffer of any content.
    fn buffer(cpu: &Cpu, len: usize) -> Pooled<Self>;
    fn products(cpu: &Cpu, jobs: &mut [Job<'_, Self>]);
}

/// Values, or a rounded copy of them.
enum Input<'a, T> {
    Same(&'a [T]),
    Rounded(Pooled<T>),
}

impl<T> Deref for Input<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Same(x) => x,
            Self::Rounded(x) => x,
        }
    }
}

impl Element for f32 {
    fn of<'a>(_: &Cpu, x: &'a [f32]) -> Input<'a, Self> {
        Input::Same(x)
    }

    fn own(_: &Cpu, x: Pooled<f32>) -> Pooled<Self> {
        x
    }

    fn buffer(cpu: &Cpu, len: usize) -> Pooled<Self> {
        cpu.floats(len)
    }

    fn products(cpu: &Cpu, jobs: &mut [Job<'_, Self>]) {
        matrix::matmul_f32(&cpu.pool, cpu.isa, &mut as_products(jobs));
    }
}

impl Element for bf16 {
    fn of<'a>(cpu: &Cpu, x: &'a [f32]) -> Input<'a, Self> {
        Input::Rounded(rounded(cpu, x))
    }

    fn own(cpu: &Cpu, x: Pooled<f32>) -> Pooled<Self> {
        rounded(cpu, &x)
    }

    fn buffer(cpu: &Cpu, len: usize) -> Pooled<Self> {
        take(&cpu.halves, len)
    }

    fn products(cpu: &Cpu, jobs: &mut [Job<'_, Self>]) {
        if cpu.isa >= Isa::Avx512Bf16 {
            return matrix::matmul_bf16(&cpu.pool, cpu.isa, &mut as_products(jobs));
        }
        // Emulating the instruction's rounding takes three to five times as long as float32 products of the same values.
        let mut wide: Vec<Pooled<f32>> = Vec::with_capacity(jobs.len());
        for (x, ..) in &*jobs {
            let mut values = cpu.floats(x.len());
            for (wide, x) in values.iter_mut().zip(*x) {
                *wide = f32::from_bits(u32::from(x.to_bits()) << 16);
            }
            wide.push(values);
        }
        let products = wide.iter().zip(jobs);
        let mut products: Vec<_> = products.map(|(x, (_, w, out))| Product { x, w, out }).collect();
        matrix::matmul_f32(&cpu.pool, cpu.isa, &mut products);
    }
}

fn rounded(cpu: &Cpu, x: &[f32]) -> Pooled<bf16> {
    let mut out = take(&cpu.halves, x.len());
    each(&cpu.pool, &mut pairs(x, &mut out), |(x, out)| matrix::to_bf16(cpu.isa, x, out));
    out
}

/// Equal pieces of two slices, of a size worth a task.
fn pairs<'a, T>(x: &'a [f32], out: &'a mut [T]) -> Vec<(&'a [f32], &'a mut [T])> {
    const PIECE: usize = 1 << 15;
    x.chunks(PIECE).zip(out.chunks_mut(PIECE)).collect()
}

fn as_products<'a, T>(jobs: &'a mut [Job<'_, T>]) -> Vec<Product<'a, T>> {
    jobs.iter_mut().map(|(x, w, out)| Product { x, w, out }).collect()
}

/// `sum(exp(x - most))`, where NaN counts as negative infinity.
pub(crate) fn sum_exp(x: &[f32], most: f32) -> f64 {
    let mut sum = 0.0;
    norm::sum_exp(Isa::detect(), x, most, &mut sum);
    sum
}

impl Backend for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Buffer = Rows;
    type MambaState = MambaState;
    type KvState = KvState;

    fn matrix_type(&self, stored: Dtype) -> Dtype {
        match (self.precision, stored) {
            (Precision::Bfloat16, _) | (_, Dtype::Bfloat16) => Dtype::Bfloat16,
            _ => Dtype::Float32,
        }
    }

    fn has_quantized(&self, scheme: Scheme) -> bool {
        quantized::of_scheme(scheme).is_some()
    }

    fn matrix(&self, rows: usize, cols: usize, format: impl Into<WeightFormat>) -> Matrix {
        Matrix::zeros(rows, cols, quantized::weight_type(format.into()))
    }

    fn pack(&self, matrix: &mut Matrix, first_row: usize, rows: &[u8]) {
        matrix.pack_rows(first_row, rows);
    }

    fn pack_quantized(&self, matrix: &mut Matrix, first_row: usize, rows: &QuantizedRows) {
        quantized::pack(matrix, first_row, rows);
    }

    fn matrix_size(&self, rows: u64, cols: u64, format: WeightFormat) -> u64 {
        // What exceeds the address space exceeds every budget; sums of it must not overflow.
        matrix_bytes(rows, cols, quantized::weight_type(format)).unwrap_or(1 << 48)
    }

    fn activation_size(&self) -> u64 {
        match self.precision {
            Precision::Float32 => 4,
            Precision::Bfloat16 => 2,
        }
    }

    fn vector(&self, values: Vec<f32>) -> Vec<f32> {
        values
    }

    fn buffer(&self, rows: usize, width: usize) -> Rows {
        Rows { width, data: self.floats(rows * width) }
    }

    fn upload(&self, width: usize, values: &[f32]) -> Rows {
        let mut data = self.floats(values.len());
        data.copy_from_slice(values);
        Rows { width, data }
    }

    fn download(&self, buffer: &Rows, rows: Range<usize>) -> Vec<f32> {
        buffer.data[rows.start * buffer.width..rows.end * buffer.width].to_vec()
    }

    fn mamba_state(&self, weights: &MambaWeights<Self>) -> MambaState {
        MambaState::new(&weights.spec)
    }

    fn kv_state(&self, weights: &AttentionWeights<Self>) -> KvState {
        KvState::new(&weights.spec, self.precision)
    }

    fn fork_kv(&self, state: &KvState, tokens: usize) -> KvState {
        state.fork(tokens)
    }

    fn truncate_kv(&self, state: &mut KvState, tokens: usize) {
        state.truncate(tokens);
    }

    fn rms_norm(&self, x: &Rows, norm: &Norm<Self>, out: &mut Rows) {
        let (width, rounds) = (x.width, norm.rounds_first && self.precision == Precision::Bfloat16);
        let kernel = if rounds { norm::rms_norm_rounded } else { norm::rms_norm };
        row_blocks(&self.pool, &mut out.data, width, ROWS_PER_TASK, |first, rows| {
            kernel(self.isa, &x.data[first * width..][..rows.len()], &norm.weight, norm.eps, rows);
        });
    }

    fn linear(&self, x: &Rows, weight: &Matrix, out: &mut Rows) {
        match self.precision {
            Precision::Float32 => f32::products(self, &mut [(&x.data, weight, &mut out.data)]),
            Precision::Bfloat16 => {
                let x = bf16::of(self, &x.data);
                bf16::products(self, &mut [(&x, weight, &mut out.data)]);
            }
        }
    }

    fn fake_quantize(&self, x: &Rows, quantizer: &InputQuantizer) -> Rows {
        let width = x.width;
        let mut data = self.floats(x.data.len());
        row_blocks(&self.pool, &mut data, width, ROWS_PER_TASK, |first, rows| {
            rows.copy_from_slice(&x.data[first * width..][..rows.len()]);
            quantizer.apply(rows);
        });
        Rows { width, data }
    }

    fn scaled(&self, x: &Rows, scale: &[f32], element: longshore_quant::Element) -> Rows {
        let width = x.width;
        let mut data = self.floats(x.data.len());
        row_blocks(&self.pool, &mut data, width, ROWS_PER_TASK, |first, rows| {
            rows.copy_from_slice(&x.data[first * width..][..rows.len()]);
            element.scale_rows(scale, rows);
        });
        Rows { width, data }
    }

    fn squared_differences(&self, a: &Rows, b: &Rows) -> Vec<f64> {
        let width = a.width;
        let mut sums = vec![0.0; a.data.len() / width];
        let rows = a.data.chunks(width * ROWS_PER_TASK).zip(b.data.chunks(width * ROWS_PER_TASK));
        let mut blocks: Vec<_> = rows.zip(sums.chunks_mut(ROWS_PER_TASK)).collect();
        each(&self.pool, &mut blocks, |((a, b), sums)| observe::squared_differences(a, b, sums));
        sums
    }

    fn observe(&self, inputs: &Inputs<'_, Self>, wanted: StatsWanted, stats: &mut InputStats) {
        observe::observe(self, inputs, wanted, stats);
    }

    fn columns(&self, x: &Rows, columns: &[Range<usize>]) -> Rows {
        let width = columns.iter().map(Range::len).sum();
        let mut data = self.floats(x.data.len() / x.width * width);
        for (row, out) in x.data.chunks_exact(x.width).zip(data.chunks_exact_mut(width)) {
            let mut out = out;
            for range in columns {
                let (part, rest) = out.split_at_mut(range.len());
                part.copy_from_slice(&row[range.clone()]);
                out = rest;
            }
        }
        Rows { width, data }
    }

    fn set_columns(&self, x: &mut Rows, columns: &[Range<usize>], values: &Rows) {
        for (row, values) in x.data.chunks_exact_mut(x.width).zip(values.data.chunks_exact(values.width)) {
            let mut values = values;
            for range in columns {
                let (part, rest) = values.split_at(range.len());
                row[range.clone()].copy_from_slice(part);
                values = rest;
            }
        }
    }

    fn add(&self, x: &Rows, residual: &mut Rows) {
        let width = x.width;
        row_blocks(&self.pool, &mut residual.data, width, ROWS_PER_TASK, |first, rows| {
            let x = &x.data[first * width..][..rows.len()];
            match self.precision {
                Precision::Float32 => norm::add(self.isa, x, rows),
                Precision::Bfloat16 => norm::add_rounded(self.isa, x, rows),
            }
        });
    }

    fn concatenate(&self, a: &Rows, b: &Rows) -> Rows {
        let width = a.width + b.width;
        let mut data = self.floats(a.data.len() + b.data.len());
        let rows = a.data.chunks_exact(a.width).zip(b.data.chunks_exact(b.width));
        for (out, (first, second)) in data.chunks_exact_mut(width).zip(rows) {
            out[..a.width].copy_from_slice(first);
            out[a.width..].copy_from_slice(second);
        }
        Rows { width, data }
    }

    fn relu_squared(&self, x: &mut Rows) {
        self.relu_squared_rows(&mut x.data, x.width);
    }

    fn swiglu(&self, x: &Rows, out: &mut Rows) {
        let ffn = out.width;
        row_blocks(&self.pool, &mut out.data, ffn, ROWS_PER_TASK, |first, rows| {
            norm::swiglu(self.isa, &x.data[first * 2 * ffn..][..2 * rows.len()], ffn, rows);
        });
    }

    fn mamba(
        &self,
        weights: &MambaWeights<Self>,
        options: &MambaOptions,
        projected: &Rows,
        segments: &mut [Segment<'_, MambaState>],
        out: &mut Rows,
    ) {
        let parameters = mamba::Parameters {
            spec: &weights.spec,
            conv: &weights.conv,
            conv_bias: &weights.conv_bias,
            a: &weights.a,
            d: &weights.d,
            dt_bias: &weights.dt_bias,
            norm: &weights.norm,
        };
        mamba::run(&self.pool, self.isa, &parameters, options, &projected.data, segments, &mut out.data);
    }

    fn rotate(
        &self,
        weights: &AttentionWeights<Self>,
        frequencies: &Vec<f32>,
        segments: &[Segment<'_, KvState>],
        qkv: &mut Rows,
    ) {
        let rounds = self.precision == Precision::Bfloat16;
        rotary::run(&self.pool, self.isa, &weights.spec, frequencies, rounds, segments, &mut qkv.data);
    }

    fn attention(
        &self,
        weights: &AttentionWeights<Self>,
        qkv: &Rows,
        segments: &mut [Segment<'_, KvState>],
        out: &mut Rows,
    ) {
        attention::run(&self.pool, self.isa, &weights.spec, &qkv.data, segments, &mut out.data);
    }

    fn moe(
        &self,
        weights: &MoeWeights<Self>,
        u: &Rows,
        out: &mut Rows,
        probe: &mut dyn Probe<Self>,
    ) -> Result<Routing> {
        match self.precision {
            Precision::Float32 => moe::run::<f32>(self, weights, u, &mut out.data, probe),
            Precision::Bfloat16 => moe::run::<bf16>(self, weights, u, &mut out.data, probe),
        }
    }
}
