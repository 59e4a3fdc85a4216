//! Throughput of every codec on one core, in GB/s of bfloat16 source: `cargo run --release --example codec_speed`.
//!
//! A band of 512 KiB of values (as f32) is quantized over and over, so it stays in cache as it does in a conversion.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::hint::black_box;
use std::time::Instant;

use longshore_quant::fake::fake_quantize;
use longshore_quant::pack::{PackedType, layout, pack, scale_2};
use longshore_quant::search::{self, Search};
use longshore_quant::unpack::{Encoding, unpack};
use longshore_quant::{Amax, Element, Granularity, MxElement, Scheme, amax};

const ROWS: usize = 128;
const COLS: usize = 1024;
const TENSOR: Scheme = Scheme::Fp8(Granularity::Tensor);

/// The best of several batches, in GB of bfloat16 a second.
fn speed(mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..10 {
            run();
        }
        best = best.min(start.elapsed().as_secs_f64() / 10.0);
    }
    (ROWS * COLS * 2) as f64 / best / 1e9
}

fn main() -> longshore_quant::Result<()> {
    let element = Element::Bfloat16;
    let noise = |i: usize| ((i * 2_654_435_761) >> 8 & 0xffff) as f32 / 32768.0 - 1.0;
    let values: Vec<f32> = (0..ROWS * COLS).map(|i| element.round(noise(i))).collect();
    println!("{:24} {:>8} {:>8} {:>8} {:>8}", "GB/s of bfloat16", "observe", "fake", "pack", "unpack");
    println!(
        "{:24} {:8.1}",
        "max_abs",
        speed(|| {
            black_box(amax::max_abs(black_box(&values)));
        })
    );
    let blocks = Scheme::Nvfp4Static { four_over_six: false };
    // As in weights most blocks are far below the largest value, so that many scales are tried.
    let mut far = values.clone();
    far[0] = 16.0;
    println!(
        "{:24} {:8.3}",
        "NVFP4 static, swept",
        speed(|| {
            let mut found = Amax::default();
            let _ = black_box(search::observe(&Search::Scales, blocks, element, COLS, black_box(&far), &mut found));
        })
    );
    for (name, stages, encoding) in [
        ("FP8 tensor", &[TENSOR][..], Encoding::Fp8),
        ("FP8 channel", &[Scheme::Fp8(Granularity::Channel)], Encoding::Fp8Channel),
        ("FP8 128x128", &[Scheme::Fp8(Granularity::Square(128))], Encoding::Fp8Square { rows: 128, cols: 128 }),
        ("INT8 channel", &[Scheme::Int8(Granularity::Channel)], Encoding::Int8Channel),
        ("INT4 block 128", &[Scheme::Int4 { block: 128 }], Encoding::Int4 { block: 128 }),
        ("NVFP4", &[Scheme::Nvfp4 { block: 16 }], Encoding::Nvfp4 { block: 16 }),
        ("NVFP4 block 32", &[Scheme::Nvfp4 { block: 32 }], Encoding::Nvfp4 { block: 32 }),
        ("NVFP4 static", &[Scheme::Nvfp4Static { four_over_six: false }], Encoding::Nvfp4 { block: 16 }),
        ("MXFP8", &[Scheme::Mx(MxElement::E4m3)], Encoding::Mxfp8),
        ("MXFP4", &[Scheme::Mx(MxElement::E2m1)], Encoding::Mxfp4),
    ] {
        let mut found = Amax::default();
        amax::observe(stages[0], COLS, &values, &mut found)?;
        let observe = speed(|| {
            let _ = black_box(amax::observe(stages[0], COLS, black_box(&values), &mut found));
        });
        let found = [found];
        let mut out = values.clone();
        let fake = speed(|| fake_quantize(stages[0], element, &found[0], COLS, black_box(&mut out)));
        let layout = layout(stages, ROWS as u64, COLS as u64)?;
        let mut weight = vec![0; layout.weight.shape.iter().product::<u64>() as usize];
        let scale = layout.scale.map_or(0, |part| {
            part.shape.iter().product::<u64>() as usize * if part.dtype == PackedType::F32 { 4 } else { 1 }
        });
        let mut scale = vec![0; scale];
        pack(stages, element, &found, COLS, &values, &mut weight, &mut scale)?;
        let packing = speed(|| {
            let _ = black_box(pack(stages, element, &found, COLS, black_box(&values), &mut weight, &mut scale));
        });
        let scale_2 = scale_2(stages, &found).unwrap_or(1.0);
        let unpacking = speed(|| unpack(encoding, element, COLS, black_box(&weight), &scale, scale_2, &mut out));
        println!("{name:24} {observe:8.1} {fake:8.1} {packing:8.1} {unpacking:8.1}");
    }
    Ok(())
}
