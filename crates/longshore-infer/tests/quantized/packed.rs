//! Weights that stay quantized in memory, beside the simulation of the same quantization.

use crate::reference::{Setup, furthest, logits, prompts};
use longshore_convert::config::LayerSpec;
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::cache::Sequence;
use longshore_infer::error::Error;
use longshore_infer::memory::Demand;
use longshore_infer::model::{Model, Positions, Run};
use longshore_infer::quantized::{LinearQuant, QuantState, WeightQuant, WeightStage};
use longshore_infer::site::{Site, linears};
use longshore_quant::{Element, Granularity, MxElement, Scheme};
use std::sync::Arc;

/// Every scheme whose weights stay quantized; how far logits may be from those of the simulation, as a share of the largest
/// logit, at all but one of the positions; and the largest share of the simulation's float32 bytes that a model may take.
///
/// Exporters divide by a scale where the simulation multiplies by its inverse, so a weight in the middle of two codes, as those
/// of bf16 models often are, may fall to either side, and so may the block scales of static NVFP4; of MXFP4 exporters round such
/// weights down. The simulation knows NVFP4 blocks of 16 only, so blocks of 32 are not compared. What a matrix holds is
/// compared with what an export holds where matrices are packed.
/// Codes are a quarter or an eighth of float32; the rest are scales, panels of 64 rows, and what blocks do not divide.
const SCHEMES: [(Scheme, f32, f64); 12] = [
    (Scheme::Fp8(Granularity::Tensor), 2e-2, 0.3),
    (Scheme::Fp8(Granularity::Channel), 3e-2, 0.3),
    (Scheme::Fp8(Granularity::Square(128)), 1e-5, 0.4),
    (Scheme::Int8(Granularity::Tensor), 1e-3, 0.3),
    (Scheme::Int8(Granularity::Channel), 5e-3, 0.3),
    (Scheme::Int4 { block: 128 }, 5e-2, 0.2),
    (Scheme::Nvfp4 { block: 16 }, 1e-5, 0.2),
    (Scheme::Nvfp4 { block: 32 }, f32::INFINITY, 0.2),
    (Scheme::Nvfp4Static { four_over_six: false }, 0.1, 0.2),
    (Scheme::Nvfp4Static { four_over_six: true }, 5e-2, 0.2),
    (Scheme::Mx(MxElement::E4m3), 1e-5, 0.3),
    (Scheme::Mx(MxElement::E2m1), 0.3, 0.2),
];

/// `scheme` for all weights that it divides, the output layer's too.
fn state(model: &Model<Cpu>, scheme: Scheme, element: Element) -> QuantState {
    let mut state = QuantState::new(element);
    let stage = || vec![WeightStage { scheme, amax: None }];
    let mut set = |module: String, weight| {
        state.linears.insert(module, LinearQuant { weight, ..LinearQuant::default() });
    };
    for (i, spec) in model.config().layers.iter().enumerate() {
        for (site, _) in linears(spec, 128) {
            let squares = matches!(scheme, Scheme::Fp8(Granularity::Square(_)));
            // Its rows are no multiple of 128.
            if squares && matches!(site, Site::MambaIn | Site::LatentDown | Site::LatentUp) {
                continue;
            }
            let weight = match spec {
                LayerSpec::Moe(moe) if site.is_routed() => {
                    WeightQuant::PerExpert((0..moe.experts).map(|_| stage()).collect())
                }
                _ => WeightQuant::Same(stage()),
            };
            set(format!("decoder.layers.{i}.{}", site.module()), weight);
        }
    }
    set(Site::Output.module().to_owned(), WeightQuant::Same(stage()));
    state
}

fn setup(precision: Precision, state: QuantState, packed: bool) -> Setup {
    Setup { packed, ..Setup::quantized(precision, state) }
}

fn element(precision: Precision) -> Element {
    if precision == Precision::Float32 { Element::Float32 } else { Element::Bfloat16 }
}

/// The likeliest tokens after `prompt`, one after the other.
fn greedy(model: &Arc<Model<Cpu>>, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let (mut sequence, mut out, mut ids) = (Sequence::new(), Vec::new(), prompt.to_vec());
    for i in 0..tokens {
        let run = Run { sequence: &mut sequence, ids: &ids, prefill: i == 0, keep_trail: false };
        let logits = model.step(&mut [run], Positions::Last).expect("the model runs").logits;
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary");
        ids = vec![best as u32];
        out.push(best as u32);
    }
    out
}

#[test]
fn packed_weights_compute_what_the_simulation_does_in_less_memory() {
    let Some(prompts) = prompts() else { return };
    let plain = Setup::new(Precision::Float32).load().unwrap();
    for (scheme, near, share) in SCHEMES {
        let load = |packed| setup(Precision::Float32, state(&plain, scheme, Element::Float32), packed).load().unwrap();
        let (simulated, packed) = (load(false), load(true));
        let (want, got) = (logits(&simulated, &prompts, 64), logits(&packed, &prompts, 64));
        let most = want.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let mut each: Vec<f32> = got.chunks(256).zip(want.chunks(256)).map(|(a, b)| furthest(a, b) / most).collect();
        each.sort_by(f32::total_cmp);
        let smaller = packed.resident_bytes() as f64 / simulated.resident_bytes() as f64;
        eprintln!("{scheme:?}: {:e}, then {:e} of the largest logit, {smaller:.3} of the memory", each[14], each[15]);
        assert!(each[14] < near, "{scheme:?} is {} away", each[14]);
        assert!(smaller < share, "{scheme:?} takes {smaller} of the memory");
        if near <= 1e-3 {
            assert_eq!(greedy(&packed, &prompts[0], 12), greedy(&simulated, &prompts[0], 12), "{scheme:?}");
        }
    }
}

#[test]
fn a_row_of_packed_weights_depends_on_no_schedule() {
    let Some(prompts) = prompts() else { return };
    let plain = Setup::new(Precision::Float32).load().unwrap();
    for precision in [Precision::Float32, Precision::Bfloat16] {
        for (scheme, ..) in SCHEMES {
            let load = |threads| {
                let state = state(&plain, scheme, element(precision));
                Setup { threads, ..setup(precision, state, true) }.load().unwrap()
            };
            let want = logits(&load(1), &prompts, 1000);
            let model = load(3);
            for batch in [1, 7] {
                assert!(logits(&model, &prompts, batch) == want, "{precision:?} {scheme:?} {batch}");
            }
        }
    }
}

#[test]
fn packed_layers_that_are_read_when_needed_give_the_same_bits_and_need_less() {
    let Some(prompts) = prompts() else { return };
    let plain = Setup::new(Precision::Float32).load().unwrap();
    let demand = Demand { states: 1, state_tokens: 40, prompt_tokens: 32, batch_tokens: 32, logits: 1, decode: true };
    let scheme = Scheme::Nvfp4 { block: 16 };
    let load = |packed, memory| {
        setup(Precision::Float32, state(&plain, scheme, Element::Float32), packed).memory(memory).load()
    };
    let least = |packed| match load(packed, Some((100_000_000, demand.clone()))).map(|_| ()) {
        Ok(()) => {
            let mut budget = 0;
            while let Err(Error::Memory { needed, .. }) = load(packed, Some((budget, demand.clone()))) {
                budget = needed;
            }
            budget
        }
        Err(error) => panic!("{error}"),
    };
    let (packed, simulated) = (least(true), least(false));
    assert!(packed < simulated, "{packed} {simulated}");
    let small = load(true, Some((packed, demand.clone()))).unwrap();
    assert!(!small.is_resident());
    assert_eq!(greedy(&small, &prompts[0], 8), greedy(&load(true, None).unwrap(), &prompts[0], 8));
}
