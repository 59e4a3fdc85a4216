//! What AWQ's searches find, against ModelOpt (`search_reference.py`).
//!
//! Its second pass over a transformers model runs routed experts quantized, which it does not search, and keys and values;
//! `megatron_search.rs` has Megatron's modules, where experts are searched.

use crate::reference::{Setup, Tensors, sweep_options};
use crate::shared_data::shared;
use longshore_infer::backend::cpu::Precision;
use longshore_infer::calibrate::{CalibrateOptions, run};
use longshore_infer::quantized::{LinearQuant, QuantState, WeightQuant, WeightStage};
use longshore_infer::search::{self, Awq, Clipped, Found, Targets};
use longshore_infer::site::Site;
use longshore_infer::smooth::smooth;
use longshore_infer::stats::StatsWanted;
use longshore_infer::sweep::Sweep;
use longshore_quant::config::Clip;
use longshore_quant::{Amax, Element, Granularity, Scheme};
use std::path::Path;

const INT4: Scheme = Scheme::Int4 { block: 128 };
const NVFP4: Scheme = Scheme::Nvfp4 { block: 16 };
const FP8: Scheme = Scheme::Fp8(Granularity::Tensor);

const CLIP: Clip = Clip { max_co_batch_size: 1024, max_tokens_per_batch: 64, min_clip_ratio: 0.5, shrink_step: 0.05 };

/// Layer, site, and the linear in transformers. Queries, keys and values are three linears there, and one here.
const LINEARS: [(usize, Site, &str); 11] = [
    (0, Site::MambaIn, "in_proj"),
    (0, Site::MambaOut, "out_proj"),
    (1, Site::SharedFc1, "shared_experts.up_proj"),
    (1, Site::SharedFc2, "shared_experts.down_proj"),
    (2, Site::Proj, "o_proj"),
    (3, Site::Fc1, "up_proj"),
    (3, Site::Fc2, "down_proj"),
    (4, Site::MambaIn, "in_proj"),
    (4, Site::MambaOut, "out_proj"),
    (5, Site::SharedFc1, "shared_experts.up_proj"),
    (5, Site::SharedFc2, "shared_experts.down_proj"),
];

fn reference() -> Tensors {
    Tensors::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quantized/search_reference.safetensors"))
}

fn prompts() -> Option<Vec<Vec<u32>>> {
    shared("golden/quant/tiny_hf/nemotron_h/base")?;
    let bytes =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quantized/search_reference.safetensors"));
    let bytes = bytes.expect("reference values");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("reference values");
    let (ids, _) = file.tensor("tokens").expect("the prompts").data().as_chunks();
    let ids = ids.iter().map(|&b| u32::from_le_bytes(b)).collect::<Vec<_>>();
    Some(ids.chunks(16).map(<[u32]>::to_vec).collect())
}

/// What is found for every linear of [`LINEARS`]; while scales are compared, the model is quantized as `beside` says.
fn search(scheme: Scheme, awq: &Awq, batch_tokens: usize, beside: QuantState) -> Option<Vec<Found>> {
    let prompts = prompts()?;
    let plain = Setup::new(Precision::Float32).load().expect("the model loads");
    let compared = Setup::quantized(Precision::Float32, beside).load().expect("the model loads");
    let begin = |model| Sweep::new(model, &prompts, &sweep_options(batch_tokens), false).expect("a sweep");
    let [mut observe, mut compare, mut clip] = [begin(&plain), begin(&compared), begin(&plain)];
    let mut all = Vec::new();
    for at in 0..plain.n_layers() {
        let sites = LINEARS.iter().filter(|(layer, ..)| *layer == at);
        let targets: Targets = sites.clone().map(|(_, site, _)| (*site, scheme)).collect();
        let observed = search::observe(&plain, &mut observe, at, &targets, awq).expect("magnitudes");
        let mut found = search::compare(&compared, &mut compare, at, &targets, awq, &observed).expect("scales");
        search::clip(&plain, &mut clip, at, &targets, awq, &mut found).expect("shares");
        all.extend(sites.map(|(_, site, _)| found[&(*site, None)].clone()));
        for sweep in [&mut observe, &mut compare, &mut clip] {
            sweep.next_layer(&mut ()).expect("a layer");
        }
    }
    Some(all)
}

/// The quantizers of a config that are not searched: those of transformers' fused experts, and of keys and values.
fn beside(weight: Scheme, input: Option<Scheme>, kv: Option<Scheme>) -> Option<QuantState> {
    let prompts = prompts()?;
    let model = Setup::new(Precision::Float32).load().expect("the model loads");
    let (sweep, stats) = (sweep_options(64), StatsWanted::default());
    let options = CalibrateOptions { sweep, stats, all_experts: false, attention: true };
    let calibration = run(&model, &prompts, options, &mut |_, _| {}).expect("statistics");
    let mut state = QuantState::new(Element::Float32);
    for (layer, stats) in calibration.layers.iter().enumerate() {
        for (site, stats) in stats {
            let module = format!("decoder.layers.{layer}.{}", site.module());
            let amax = Amax { values: vec![stats.amax], global: None };
            match (site, kv) {
                (Site::ExpertFc1 | Site::ExpertFc2, _) => {
                    let stages = vec![vec![WeightStage { scheme: weight, amax: None }]; 4];
                    let (weight, input) = (WeightQuant::PerExpert(stages), input.map(|scheme| (scheme, amax)));
                    state.linears.insert(module, LinearQuant { weight, input, ..LinearQuant::default() });
                }
                (Site::Key | Site::Value, Some(scheme)) => drop(state.attention.insert(module, (scheme, amax))),
                _ => {}
            }
        }
    }
    Some(state)
}

fn lite() -> Awq {
    Awq { alpha_step: Some(0.1), clip: None, element: Element::Float32, weighted: false, batch: 1 }
}

fn furthest(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| ((a - b) / b).abs()).fold(0.0, f32::max)
}

/// A four-bit code or the scale of its block flips with the last bit of what it is made of, and moves the loss of an
/// exponent a little: of one of the eleven in INT4, of up to seven in NVFP4. All others differ as sums of floats do.
pub(crate) fn check_losses(name: &str, scheme: Scheme, losses: &[f64], want: &[f32]) {
    assert_eq!(losses.len(), want.len());
    let mut far: Vec<f64> = losses.iter().zip(want).map(|(a, b)| (a / f64::from(*b) - 1.0).abs()).collect();
    far.sort_by(f64::total_cmp);
    let exact = if matches!(scheme, Scheme::Nvfp4 { .. }) { 3 } else { 9 };
    eprintln!("{name}: {:e} {:e}", far[exact], far[10]);
    assert!(far[exact] < 1e-5 && far[10] < 1e-2, "{name}: {far:?}");
}

fn check_lite(config: &str, scheme: Scheme, got: &[Found], reference: &Tensors) {
    for ((layer, _, path), found) in LINEARS.iter().zip(got) {
        let name = |what: &str| format!("{config}/model.layers.{layer}.mixer.{path}.{what}");
        check_losses(&name("losses"), scheme, &found.losses, &reference.values(&name("losses")));
        assert_eq!(found.alpha, Some(reference.values(&name("alpha"))[0]), "{}", name("alpha"));
        let pqs = reference.values(&name("input_quantizer._pre_quant_scale"));
        let scale = found.pre_quant_scale.as_ref().expect("a scale");
        assert!(furthest(scale, &pqs) < 1e-5, "{}: {}", name("pqs"), furthest(scale, &pqs));
        if let Some(amax) = reference.get(&name("input_quantizer._amax")) {
            assert!(furthest(&[found.input_amax.expect("an amax")], &amax) < 1e-5, "{}", name("amax"));
        }
    }
}

#[test]
fn awq_lite_finds_modelopts_exponents_and_scales() {
    let reference = reference();
    for (config, scheme, input, kv) in [
        ("INT4_AWQ_CFG", INT4, None, None),
        ("INT4_AWQ_CFG+FP8_KV_CFG", INT4, None, Some(FP8)),
        ("W4A8_AWQ_BETA_CFG", INT4, Some(FP8), None),
        ("NVFP4_AWQ_LITE_CFG", NVFP4, Some(NVFP4), None),
    ] {
        let Some(beside) = beside(scheme, input, kv) else { return };
        let Some(got) = search(scheme, &lite(), 64, beside) else { return };
        check_lite(config, scheme, &got, &reference);
    }
}

#[test]
fn prompts_of_a_batch_are_searched_together() {
    let (reference, Some(beside)) = (reference(), beside(INT4, None, None)) else { return };
    let clip = Some(Clip { max_tokens_per_batch: 8, ..CLIP });
    let config = "INT4_FULL_PAIRS";
    for batch_tokens in [64, 13] {
        let awq = Awq { batch: 2, clip, ..lite() };
        let Some(got) = search(INT4, &awq, batch_tokens, beside.clone()) else { return };
        check_lite(config, INT4, &got, &reference);
        check_clipped(config, &got, &reference);
    }
}

#[test]
fn prompts_cut_at_other_places_find_the_same() {
    let at = |batch_tokens| search(INT4, &lite(), batch_tokens, QuantState::new(Element::Float32));
    let (Some(want), Some(got)) = (at(1000), at(13)) else { return };
    for (want, got) in want.iter().zip(&got) {
        assert_eq!((want.alpha, &want.pre_quant_scale), (got.alpha, &got.pre_quant_scale));
    }
}

/// Magnitudes of blocks may be others where two shares lead to nearly the same error: one block in a hundred.
fn check_clipped(config: &str, got: &[Found], reference: &Tensors) {
    for ((layer, _, path), found) in LINEARS.iter().zip(got) {
        let get =
            |config: &str, what: &str| reference.get(&format!("{config}/model.layers.{layer}.mixer.{path}.{what}"));
        let (name, want) =
            (format!("{config} {layer} {path}"), get(config, "weight_quantizer._amax").expect("an amax"));
        assert_eq!(get(config, "alpha").map(|alpha| alpha[0]), found.alpha, "{name}");
        match found.clipped.as_ref().expect("shares") {
            Clipped::Tensor(amax) => assert!(furthest(&[*amax], &want) < 1e-5, "{name}: {amax} {}", want[0]),
            Clipped::Blocks { shares, index } => {
                // The largest magnitudes are in the scaled weight: shares are compared through those without a clip.
                let plain = get("INT4_AWQ_CFG", "weight_quantizer._amax").expect("an amax");
                assert_eq!((index.len(), plain.len()), (want.len(), want.len()));
                let other = |&i: &usize| (shares[usize::from(index[i])] * plain[i] / want[i] - 1.0).abs() > 1e-4;
                let others = (0..want.len()).filter(other).count();
                eprintln!("{name}: {others} of {} other blocks", want.len());
                assert!(others * 100 <= want.len(), "{name}: {others} of {}", want.len());
            }
        }
    }
}

#[test]
fn awq_clip_and_full_find_modelopts_magnitudes() {
    let reference = reference();
    let clip = Awq { alpha_step: None, clip: Some(CLIP), ..lite() };
    let full = Awq { clip: Some(CLIP), ..lite() };
    for (config, scheme, input, awq) in [
        ("NVFP4_AWQ_CLIP_CFG", NVFP4, Some(NVFP4), clip),
        ("NVFP4_AWQ_FULL_CFG", NVFP4, Some(NVFP4), full),
        ("INT4_FULL", INT4, None, full),
    ] {
        let Some(beside) = beside(scheme, input, None) else { return };
        let Some(got) = search(scheme, &awq, 64, beside) else { return };
        check_clipped(config, &got, &reference);
    }
}

#[test]
fn smoothing_finds_modelopts_scales() {
    let (Some(prompts), reference) = (prompts(), reference()) else { return };
    let model = Setup::new(Precision::Float32).load().expect("the model loads");
    let weights = shared("golden/quant/tiny_hf/nemotron_h/base/model.safetensors").expect("it was there");
    let weights = Tensors::open(&weights);
    let stats = StatsWanted { channel_amax: true, ..StatsWanted::default() };
    let options = CalibrateOptions { sweep: sweep_options(64), stats, all_experts: false, attention: false };
    let calibration = run(&model, &prompts, options, &mut |_, _| {}).expect("statistics");
    for (config, alpha) in [("INT8_SMOOTHQUANT_CFG", 1.0), ("INT8_SMOOTHQUANT_HALF", 0.5)] {
        let attention = ["q_proj", "k_proj", "v_proj"].map(|path| (2, Site::Qkv, path));
        for (layer, site, path) in LINEARS.into_iter().chain(attention) {
            if site == Site::Qkv && alpha < 1.0 {
                // Three linears with three weights there.
                continue;
            }
            let get = |what: &str| reference.values(&format!("{config}/model.layers.{layer}.mixer.{path}.{what}"));
            let channels = calibration.layers[layer][&site].channel_amax.as_ref().expect("channels");
            let got = smooth(&model, layer, (site, None), channels, alpha, Element::Float32).expect("scales");
            let far = furthest(&got.pre_quant_scale, &get("input_quantizer._pre_quant_scale"));
            let amax = furthest(&[got.input_amax], &get("input_quantizer._amax"));
            // The weight as it is stored, row by row.
            let weight = weights.values(&format!("backbone.layers.{layer}.mixer.{path}.weight"));
            let scale: Vec<f32> = got.pre_quant_scale.iter().map(|s| 1.0 / s).collect();
            let most = |row: &[f32]| row.iter().zip(&scale).map(|(w, s)| (w * s).abs()).fold(0.0, f32::max);
            let rows: Vec<f32> = weight.chunks_exact(scale.len()).map(most).collect();
            let rows = furthest(&rows, &get("weight_quantizer._amax"));
            eprintln!("{config} {layer} {path}: scales {far:e}, input {amax:e}, weight {rows:e}");
            assert!(far < 1e-5 && amax < 1e-5 && rows < 1e-5, "{config} {layer} {path}: {far} {amax} {rows}");
        }
    }
}
