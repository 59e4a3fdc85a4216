//! What the matrix kernels reach on this machine, beside its memory's speed and its arithmetic units', as JSON.
//!
//! `cargo run --release -p longshore-infer --example kernel_roofline -- [--threads N]`

#![allow(clippy::print_stdout, reason = "the result of a program")]

use half::bf16;
use longshore_infer::backend::cpu::isa::Isa;
use longshore_infer::backend::cpu::matrix::{Matrix, Product, RowScales, WeightType, matmul_bf16, matmul_f32};
use longshore_infer::backend::cpu::pool::Pool;
use serde_json::{Map, Value, json};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long each thing is repeated; the best time counts, since other programs only make it longer.
const REPEAT: Duration = Duration::from_millis(700);
/// Matrices of a decoding step: together (128 MiB as bf16) they exceed the caches.
const STEP: (usize, usize, usize) = (16, 2048, 2048);

fn best(mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < REPEAT {
        let one = Instant::now();
        run();
        best = best.min(one.elapsed().as_secs_f64());
    }
    best
}

fn matrix(rows: usize, cols: usize, weight_type: WeightType) -> Matrix {
    let mut matrix = Matrix::zeros(rows, cols, weight_type);
    let row: Vec<u8> = match weight_type {
        WeightType::Float32 => (0..cols).flat_map(|i| (0.001 * (i % 97) as f32).to_le_bytes()).collect(),
        WeightType::Bfloat16 => (0..cols).flat_map(|i| bf16::from_f32(0.001 * (i % 97) as f32).to_le_bytes()).collect(),
        _ => (0..weight_type.row_size(cols).expect("a row is small")).map(|i| (i % 127) as u8).collect(),
    };
    (0..rows).for_each(|r| matrix.pack_rows(r, &row));
    match weight_type {
        WeightType::E4m3Squares => {
            let scales = vec![0.5; rows.div_ceil(128) * cols.div_ceil(128)];
            matrix.pack_scales(0, RowScales::Float32(&scales));
        }
        WeightType::Int4 { block } => {
            matrix.pack_scales(0, RowScales::Float32(&vec![0.5; rows * cols.div_ceil(block)]));
        }
        WeightType::Nvfp4 { block } => {
            matrix.pack_scales(0, RowScales::Bytes(&vec![0x38; rows * cols.div_ceil(block)]));
        }
        WeightType::Mxfp8 | WeightType::Mxfp4 => {
            matrix.pack_scales(0, RowScales::Bytes(&vec![127; rows * cols.div_ceil(32)]));
        }
        _ => {}
    }
    matrix
}

/// Bytes per nanosecond of all threads reading.
fn read(pool: &Pool) -> f64 {
    const PART: usize = 1 << 17;
    let data = vec![1_u64; 32 << 20];
    let seconds = best(|| {
        pool.run(data.len() / PART, |i| {
            let mut sums = [0_u64; 32];
            for chunk in data[i * PART..][..PART].as_chunks::<32>().0 {
                sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum ^= x);
            }
            black_box(sums);
        });
    });
    (data.len() * 8) as f64 / seconds / 1e9
}

/// Seconds of one call of products of f32 (`single`) or bf16 activations with each of `matrices`.
fn seconds(pool: &Pool, isa: Isa, m: usize, matrices: &[Matrix], single: bool) -> f64 {
    let (rows, cols) = (matrices[0].rows(), matrices[0].cols());
    let x: Vec<f32> = (0..m * cols).map(|i| 0.01 * (i % 89) as f32).collect();
    let half: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
    let mut out = vec![0.0; m * rows];
    best(|| {
        for w in matrices {
            let out = &mut out[..];
            if single {
                matmul_f32(pool, isa, &mut [Product { x: &x, w, out }]);
            } else {
                matmul_bf16(pool, isa, &mut [Product { x: &half, w, out }]);
            }
        }
        black_box(&out);
    })
}

/// Decoding and prompts with one type of weights, with bf16 and with f32 activations. Bytes are those of the matrices, scales
/// included; rows per microsecond compare types.
fn quantized(pool: &Pool, isa: Isa, weight_type: WeightType) -> Value {
    let (count, rows, cols) = STEP;
    let matrices: Vec<_> = (0..count).map(|_| matrix(rows, cols, weight_type)).collect();
    let bytes = matrices.iter().map(Matrix::bytes).sum::<usize>() as f64;
    let mut kind = Map::new();
    for (activations, single) in [("bf16", false), ("f32", true)] {
        for m in [1, 4, 8] {
            let seconds = seconds(pool, isa, m, &matrices, single);
            kind.insert(format!("{activations}_gemv_m{m}_gb_s"), json!(bytes / seconds / 1e9));
            kind.insert(format!("{activations}_gemv_m{m}_rows_us"), json!((count * rows) as f64 / seconds / 1e6));
        }
        let flops = (2 * 256 * rows * cols) as f64;
        let speed = flops / seconds(pool, isa, 256, &matrices[..1], single) / 1e9;
        kind.insert(format!("{activations}_gemm_m256_gflops"), json!(speed));
    }
    Value::Object(kind)
}

fn main() {
    let mut args = std::env::args().skip_while(|arg| arg != "--threads").skip(1);
    let threads = match args.next() {
        Some(threads) => threads.parse().expect("--threads takes a number"),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let pool = Pool::new(threads).expect("threads start");
    let isa = Isa::detect();
    let mut report = Map::new();
    report.insert("isa".into(), json!(format!("{isa:?}")));
    report.insert("threads".into(), json!(threads));

    let spin = |micros| {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(micros) {}
    };
    let empty = best(|| (0..100).for_each(|_| pool.run(2, |_| {}))) / 100.0;
    let tasks = best(|| (0..100).for_each(|_| pool.run(threads, |_| spin(20)))) / 100.0;
    report.insert("pool_empty_us".into(), json!(empty * 1e6));
    report.insert("pool_over_20us_tasks_us".into(), json!(tasks * 1e6 - 20.0));
    let after_pause = {
        let mut times: Vec<f64> = (0..50)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(2));
                let begin = Instant::now();
                pool.run(threads, |_| spin(20));
                begin.elapsed().as_secs_f64() * 1e6 - 20.0
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    report.insert("pool_over_20us_tasks_after_a_pause_us".into(), json!(after_pause));
    report.insert("read_gb_s".into(), json!(read(&pool)));

    let kinds = [
        ("bf16", WeightType::Bfloat16, false),
        ("f32", WeightType::Float32, true),
        ("f32_x_bf16", WeightType::Bfloat16, true),
    ];
    for (name, weight_type, single) in kinds {
        let mut kind = Map::new();
        for (m, rows, cols) in [(16, 4096, 4096), (64, 4096, 4096), (256, 4096, 1024), (256, 4096, 4096)] {
            let w = [matrix(rows, cols, weight_type)];
            let flops = (2 * m * rows * cols) as f64;
            let speed = flops / seconds(&pool, isa, m, &w, single) / 1e9;
            kind.insert(format!("gemm_{m}x{rows}x{cols}_gflops"), json!(speed));
        }
        let (count, rows, cols) = STEP;
        let matrices: Vec<_> = (0..count).map(|_| matrix(rows, cols, weight_type)).collect();
        let bytes = matrices.iter().map(Matrix::bytes).sum::<usize>() as f64;
        for m in [1, 2, 3, 4, 6, 8] {
            let speed = bytes / seconds(&pool, isa, m, &matrices, single) / 1e9;
            kind.insert(format!("gemv_m{m}_gb_s"), json!(speed));
        }
        report.insert(name.into(), Value::Object(kind));
    }
    for (name, weight_type) in [
        ("bf16", WeightType::Bfloat16),
        ("e4m3", WeightType::E4m3),
        ("e4m3_squares", WeightType::E4m3Squares),
        ("int8", WeightType::Int8),
        ("int4_128", WeightType::Int4 { block: 128 }),
        ("nvfp4", WeightType::Nvfp4 { block: 16 }),
        ("mxfp8", WeightType::Mxfp8),
        ("mxfp4", WeightType::Mxfp4),
    ] {
        report.insert(format!("quantized_{name}"), quantized(&pool, isa, weight_type));
    }
    report.insert("read_again_gb_s".into(), json!(read(&pool)));
    let data = vec![1; 4096 * 4096 * 2];
    let mut packed = Matrix::zeros(4096, 4096, WeightType::Bfloat16);
    let pack = best(|| packed.pack_rows(0, &data));
    report.insert("pack_gb_s".into(), json!(data.len() as f64 / pack / 1e9));
    println!("{}", serde_json::to_string_pretty(&report).expect("numbers print"));
}
