//! What AWQ and `SmoothQuant` find for all linears of a layer, routed experts each on their own, against ModelOpt on
//! Megatron's modules (`megatron_search_reference.py`).

use crate::reference::{Setup, Tensors, sweep_options};
use crate::search::check_losses;
use crate::shared_data::shared;
use longshore_infer::backend::cpu::Precision;
use longshore_infer::calibrate::{CalibrateOptions, run};
use longshore_infer::search::{Awq, Clipped, Targets, Unit, layer, share_input_amax};
use longshore_infer::site::linears;
use longshore_infer::smooth::smooth;
use longshore_infer::stats::StatsWanted;
use longshore_infer::sweep::Sweep;
use longshore_quant::config::Clip;
use longshore_quant::{Element, Scheme};
use std::path::Path;

const CLIP: Clip = Clip { max_co_batch_size: 1024, max_tokens_per_batch: 64, min_clip_ratio: 0.5, shrink_step: 0.05 };

fn reference() -> Tensors {
    let file = "tests/quantized/megatron_search_reference.safetensors";
    Tensors::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file))
}

/// Eight of 16 tokens.
fn prompts() -> Option<Vec<Vec<u32>>> {
    shared("golden/quant/tiny_hf/nemotron_h/base")?;
    let all = crate::reference::prompts()?.concat();
    Some(all[..128].chunks(16).map(<[u32]>::to_vec).collect())
}

/// As Megatron computes.
fn setup() -> Setup {
    Setup { dt_min: None, ..Setup::new(Precision::Float32) }
}

fn module(layer: usize, (site, expert): Unit) -> String {
    let path = site.module();
    let path = expert.map_or(path.to_owned(), |e| path.replace(".experts.", &format!(".experts.experts.{e}.")));
    format!("decoder.layers.{layer}.{path}")
}

fn furthest(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| ((a - b) / b).abs()).fold(0.0, f32::max)
}

#[test]
fn awq_finds_modelopts_scales_of_every_expert() {
    let (Some(prompts), reference) = (prompts(), reference()) else { return };
    let model = setup().load().expect("the model loads");
    for (config, scheme, clip) in [
        ("INT4_AWQ_CFG", Scheme::Int4 { block: 128 }, None),
        ("NVFP4_AWQ_LITE_CFG", Scheme::Nvfp4 { block: 16 }, None),
        ("NVFP4_AWQ_FULL_CFG", Scheme::Nvfp4 { block: 16 }, Some(CLIP)),
    ] {
        let awq = Awq { alpha_step: Some(0.1), clip, element: Element::Float32, weighted: true, batch: 1 };
        let mut sweep = Sweep::new(&model, &prompts, &sweep_options(64), false).expect("a sweep");
        let mut compared = 0;
        for at in 0..model.n_layers() {
            let sites = linears(&model.config().layers[at], 128).into_iter().map(|(site, _)| site);
            let targets: Targets = sites.map(|site| (site, scheme)).collect();
            let mut found = layer(&model, &mut sweep, at, &targets, &awq).expect("a search");
            if clip.is_some() {
                share_input_amax(&mut found);
            }
            sweep.next_layer(&mut ()).expect("a layer");
            for (unit, found) in found {
                let name = format!("{config}/{}", module(at, unit));
                let get = |what: &str| reference.values(&format!("{name}.{what}"));
                check_losses(&name, scheme, &found.losses, &get("losses"));
                assert_eq!(found.alpha, Some(get("alpha")[0]), "{name}");
                let far = furthest(&found.pre_quant_scale.expect("a scale"), &get("pqs"));
                assert!(far < 1e-5, "{name}: {far}");
                if let Some(amax) = reference.get(&format!("{name}.input")) {
                    assert!(furthest(&[found.input_amax.expect("an amax")], &amax) < 1e-5, "{name}");
                }
                if let Some(Clipped::Tensor(amax)) = found.clipped {
                    assert!(furthest(&[amax], &get("weight")) < 1e-5, "{name}: {amax}");
                }
                compared += 1;
            }
        }
        // Two linears a layer; in each of the two with experts, two of the shared one and eight of four.
        assert_eq!(compared, 4 * 2 + 2 * 10, "{config}");
    }
}

#[test]
fn smoothing_finds_modelopts_scales_of_every_expert() {
    let (Some(prompts), reference) = (prompts(), reference()) else { return };
    let model = setup().load().expect("the model loads");
    let stats = StatsWanted { channel_amax: true, channel_sum: false, weighted: true };
    let options = CalibrateOptions { sweep: sweep_options(64), stats, all_experts: false, attention: false };
    let calibration = run(&model, &prompts, options, &mut |_, _| {}).expect("statistics");
    for (config, alpha) in [("INT8_SMOOTHQUANT_CFG", 1.0), ("INT8_SMOOTHQUANT_HALF", 0.5)] {
        let mut compared = 0;
        for (at, stats) in calibration.layers.iter().enumerate() {
            for (site, stats) in stats {
                let channels = stats.channel_amax.as_ref().expect("channels");
                let units = if site.is_routed() { (0..4).map(Some).collect() } else { vec![None] };
                for expert in units {
                    let name = format!("{config}/{}", module(at, (*site, expert)));
                    let got = smooth(&model, at, (*site, expert), channels, alpha, Element::Float32).expect("scales");
                    let far = furthest(&got.pre_quant_scale, &reference.values(&format!("{name}.pqs")));
                    let amax = furthest(&[got.input_amax], &reference.values(&format!("{name}.input")));
                    eprintln!("{name}: scales {far:e}, input {amax:e}");
                    assert!(far < 1e-5 && amax < 1e-5, "{name}: {far} {amax}");
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 4 * 2 + 2 * 10, "{config}");
    }
}
