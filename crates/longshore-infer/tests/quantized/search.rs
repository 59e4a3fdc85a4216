//! What AWQ's searches find, against ModelOpt (`search_reference.py`).
//!
//! Its second pass over a transformers model runs routed experts quantized, which it does not search; ours and that of
//! Megatron's modules see the unquantized model. So losses differ a little behind the first layer with experts.

use crate::reference::{Setup, Tensors, sweep_options};
use crate::shared_data::shared;
use longshore_infer::backend::cpu::Precision;
use longshore_infer::search::{Awq, Clipped, Found, Targets, layer};
use longshore_infer::site::Site;
use longshore_infer::sweep::Sweep;
use longshore_quant::config::Clip;
use longshore_quant::{Element, Scheme};
use std::path::Path;

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

/// What is found for every linear of [`LINEARS`].
fn search(scheme: Scheme, awq: &Awq, batch_tokens: usize) -> Option<Vec<Found>> {
    let prompts = prompts()?;
    let model = Setup::new(Precision::Float32).load().expect("the model loads");
    let mut sweep = Sweep::new(&model, &prompts, &sweep_options(batch_tokens), false).expect("a sweep");
    let mut all = Vec::new();
    for at in 0..model.n_layers() {
        let sites = LINEARS.iter().filter(|(layer, ..)| *layer == at);
        let targets: Targets = sites.clone().map(|(_, site, _)| (*site, scheme)).collect();
        let found = layer(&model, &mut sweep, at, &targets, awq).expect("a search");
        all.extend(sites.map(|(_, site, _)| found[&(*site, None)].clone()));
        sweep.next_layer(&mut ()).expect("a layer");
    }
    Some(all)
}

fn lite() -> Awq {
    Awq { alpha_step: Some(0.1), clip: None, element: Element::Float32, weighted: false }
}

fn furthest(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| ((a - b) / b).abs()).fold(0.0, f32::max)
}

fn check_lite(config: &str, scheme: Scheme, got: &[Found], reference: &Tensors) {
    let mut other = 0;
    for ((layer, _, path), found) in LINEARS.iter().zip(got) {
        let name = |what: &str| format!("{config}/model.layers.{layer}.mixer.{path}.{what}");
        let losses: Vec<f32> = found.losses.iter().map(|&x| x as f32).collect();
        let far = furthest(&losses, &reference.values(&name("losses")));
        let alpha = reference.values(&name("alpha"))[0];
        let pqs = reference.values(&name("input_quantizer._pre_quant_scale"));
        let scale = found.pre_quant_scale.as_ref().expect("a scale");
        eprintln!("{config} {layer} {path}: losses {far:e}, alpha {:?} {alpha}", found.alpha);
        // Four-bit codes of weights that lie between two of them flip with the last bit of a scale; which ones was not traced.
        let near = if matches!(scheme, Scheme::Nvfp4 { .. }) { 5e-3 } else { 2e-6 };
        assert!(far < if *layer < 2 { near } else { 0.1 }, "{}: {far}", name("losses"));
        if found.alpha == Some(alpha) {
            assert!(furthest(scale, &pqs) < 2e-5, "{}: {}", name("pqs"), furthest(scale, &pqs));
            if let Some(amax) = reference.get(&name("input_quantizer._amax")) {
                assert!(furthest(&[found.input_amax.expect("an amax")], &amax) < 2e-5, "{}", name("amax"));
            }
        } else {
            assert!(*layer >= 2, "{}", name("alpha"));
            other += 1;
        }
    }
    assert!(other <= 2, "{config} {scheme:?}: {other} other exponents");
}

#[test]
fn awq_lite_finds_modelopts_exponents_and_scales() {
    let reference = reference();
    for (config, scheme) in [
        ("INT4_AWQ_CFG", Scheme::Int4 { block: 128 }),
        ("W4A8_AWQ_BETA_CFG", Scheme::Int4 { block: 128 }),
        ("NVFP4_AWQ_LITE_CFG", Scheme::Nvfp4 { block: 16 }),
    ] {
        let Some(got) = search(scheme, &lite(), 64) else { return };
        check_lite(config, scheme, &got, &reference);
    }
}

#[test]
fn prompts_cut_at_other_places_find_the_same() {
    let scheme = Scheme::Int4 { block: 128 };
    let (Some(want), Some(got)) = (search(scheme, &lite(), 1000), search(scheme, &lite(), 13)) else { return };
    for (want, got) in want.iter().zip(&got) {
        assert_eq!((want.alpha, &want.pre_quant_scale), (got.alpha, &got.pre_quant_scale));
    }
}

fn check_clip(config: &str, scheme: Scheme, awq: &Awq) {
    let reference = reference();
    let Some(got) = search(scheme, awq, 64) else { return };
    for ((layer, _, path), found) in LINEARS.iter().zip(&got) {
        let name = format!("{config}/model.layers.{layer}.mixer.{path}.weight_quantizer._amax");
        let want = reference.values(&name);
        let alpha = reference.get(&format!("{config}/model.layers.{layer}.mixer.{path}.alpha"));
        if alpha.map(|alpha| alpha[0]) != found.alpha {
            assert!(*layer >= 2, "{name}");
            continue;
        }
        match found.clipped.as_ref().expect("shares") {
            Clipped::Tensor(amax) => {
                let far = furthest(&[*amax], &want);
                eprintln!("{name}: {amax} {}", want[0]);
                assert!(far < 2e-5, "{name}: {amax} {}", want[0]);
            }
            Clipped::Blocks { shares, index } => {
                // The largest magnitudes are in the weight: shares are compared through those without a clip.
                let plain =
                    reference.get(&format!("INT4_AWQ_CFG/model.layers.{layer}.mixer.{path}.weight_quantizer._amax"));
                let plain = plain.expect("an amax");
                assert_eq!((index.len(), plain.len()), (want.len(), want.len()));
                if config == "INT4_FULL" {
                    let far = (0..want.len())
                        .filter(|&i| (shares[usize::from(index[i])] * plain[i] / want[i] - 1.0).abs() > 1e-4);
                    let far = far.count();
                    eprintln!("{name}: {far} of {} other blocks", want.len());
                    assert!(far * 100 <= want.len(), "{name}: {far} of {}", want.len());
                }
            }
        }
    }
}

#[test]
fn awq_clip_and_full_find_modelopts_magnitudes() {
    let clip = Awq { alpha_step: None, clip: Some(CLIP), ..lite() };
    let full = Awq { alpha_step: Some(0.1), clip: Some(CLIP), ..lite() };
    check_clip("NVFP4_AWQ_CLIP_CFG", Scheme::Nvfp4 { block: 16 }, &clip);
    check_clip("NVFP4_AWQ_FULL_CFG", Scheme::Nvfp4 { block: 16 }, &full);
    check_clip("INT4_FULL", Scheme::Int4 { block: 128 }, &full);
}
