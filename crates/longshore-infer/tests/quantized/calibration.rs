//! What calibration counts.

use crate::reference::{Setup, TIME_STEP_MIN, Tensors, prompts, sweep_options};
use crate::shared_data::shared;
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::backend::{Backend, Inputs, Probe};
use longshore_infer::calibrate::{CalibrateOptions, Calibration, Calibrator, run};
use longshore_infer::error::{Error, Result};
use longshore_infer::model::Model;
use longshore_infer::resume::{Place, Resumed, SavedPass, Saving, key};
use longshore_infer::site::Site;
use longshore_infer::stats::StatsWanted;
use longshore_infer::sweep::Sweep;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const EVERYTHING: StatsWanted = StatsWanted { channel_amax: true, channel_sum: true, weighted: false };

fn options(batch_tokens: usize) -> CalibrateOptions {
    let sweep = sweep_options(batch_tokens);
    CalibrateOptions { sweep, stats: EVERYTHING, all_experts: false, attention: true }
}

fn calibrate(model: &Arc<Model<Cpu>>, prompts: &[Vec<u32>], options: CalibrateOptions) -> Calibration {
    run(model, prompts, options, &mut |_, _| {}).expect("statistics")
}

#[test]
fn float32_amaxes_are_modelopts() {
    let (Some(prompts), reference) = (prompts(), Tensors::float32()) else { return };
    let model = Setup::new(Precision::Float32).load().unwrap();
    let got = calibrate(&model, &prompts, options(64));
    let mut compared = 0;
    for config in ["FP8_DEFAULT_CFG+FP8_KV_CFG", "NVFP4_DEFAULT_CFG", "INT8_DEFAULT_CFG"] {
        for (layer, stats) in got.layers.iter().enumerate() {
            for (site, stats) in stats {
                let name = format!("{config}/decoder.layers.{layer}.{}.input", site.module());
                let Some(want) = reference.get(&name) else { continue };
                let error = (stats.amax - want[0]).abs() / want[0];
                assert!(error < 1e-5, "{name}: {} and {}", stats.amax, want[0]);
                compared += 1;
            }
        }
    }
    // Two linears a layer, four in each of the two with experts; keys and values.
    assert_eq!(compared, 3 * 16 + 2);
}

#[test]
fn bfloat16_amaxes_are_near_those_of_bfloat16_models() {
    let Some(prompts) = prompts() else { return };
    let Some(state) = shared("golden/quant/megatron_nemotronh_fp8/quantizer_state.safetensors") else { return };
    let state = Tensors::open(&state);
    let model = Setup { dt_min: None, ..Setup::new(Precision::Bfloat16) }.load().unwrap();
    let got = calibrate(&model, &prompts, options(64));
    let (mut worst, mut compared) = (0.0f32, 0);
    for (layer, stats) in got.layers.iter().enumerate() {
        for (site, stats) in stats {
            let module = site.module().replace("mlp.experts.", "mlp.experts.local_experts.0.");
            let name = format!("decoder.layers.{layer}.{module}.input_quantizer._amax");
            let Some(want) = state.get(&name) else { continue };
            // Megatron's experts read rows that are multiplied with the router weights.
            let got = stats.weighted_amax.unwrap_or(stats.amax);
            assert_eq!(got.to_bits() & 0xffff, 0, "observed after rounding");
            worst = worst.max((got - want[0]).abs() / want[0]);
            compared += 1;
        }
    }
    eprintln!("worst relative difference of {compared}: {worst}");
    assert_eq!(compared, 16);
    assert!(worst < 0.06, "{worst}");
}

#[test]
fn statistics_do_not_depend_on_threads_or_batches() {
    let Some(prompts) = prompts() else { return };
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let model = |threads| Setup { threads, ..Setup::new(precision) }.load().unwrap();
        let want = calibrate(&model(1), &prompts, options(1000));
        for (threads, batch) in [(1, 7), (3, 64), (2, 1)] {
            let got = calibrate(&model(threads), &prompts, options(batch));
            assert!(got == want, "{precision:?}, {threads} threads, batches of {batch}");
        }
        let json = serde_json::to_string(&want).unwrap();
        assert!(serde_json::from_str::<Calibration>(&json).unwrap() == want, "they come back as they were saved");
    }
}

#[test]
fn channels_add_up_to_the_tensor() {
    let Some(prompts) = prompts() else { return };
    let model = Setup::new(Precision::Float32).load().unwrap();
    let got = calibrate(&model, &prompts, options(50));
    for (site, stats) in got.layers.iter().flatten().chain([(&Site::Output, &got.output)]) {
        let most = stats.channel_amax.as_ref().unwrap().iter().fold(0.0f32, |a, &b| a.max(b));
        assert_eq!(most, stats.amax, "{site:?}");
        assert_eq!(stats.expert_tokens.is_empty(), !site.is_routed());
        assert_eq!(stats.tokens, if site.is_routed() { 2 * 128 } else { 128 });
        let sum: f64 = stats.channel_sum.as_ref().unwrap().iter().sum();
        assert!(sum > 0.0 && sum <= f64::from(most) * stats.tokens as f64 * 512.0);
    }
}

#[test]
fn all_experts_see_all_tokens_and_the_next_layer_sees_the_true_routing() {
    let Some(prompts) = prompts() else { return };
    let model = Setup::new(Precision::Float32).load().unwrap();
    let chosen = calibrate(&model, &prompts, options(50));
    let all = calibrate(&model, &prompts, CalibrateOptions { all_experts: true, ..options(50) });
    for (chosen, all) in chosen.layers.iter().zip(&all.layers) {
        for (site, chosen) in chosen {
            let all = &all[site];
            if !site.is_routed() {
                assert!(chosen == all, "{site:?}");
                continue;
            }
            assert_eq!(all.expert_tokens, [128; 4]);
            assert_eq!(all.weighted_amax, chosen.weighted_amax);
            let pairs = chosen.channel_amax.iter().flatten().zip(all.channel_amax.iter().flatten());
            assert!(pairs.clone().all(|(c, a)| c <= a) && pairs.clone().any(|(c, a)| c < a), "{site:?}");
        }
    }
}

/// Adds up what it sees.
#[derive(Default)]
struct Seen(BTreeMap<(Site, usize), f64>);

impl Probe<Cpu> for Seen {
    fn wants(&self, _: Site) -> bool {
        true
    }

    fn inputs(&mut self, backend: &Cpu, inputs: &Inputs<'_, Cpu>) -> Result<()> {
        let mut add = |expert, row: usize| {
            let row = backend.download(inputs.rows, row..row + 1);
            let sum = row.iter().map(|x| f64::from(x.abs())).sum::<f64>();
            *self.0.entry((inputs.site, expert)).or_default() += sum;
        };
        match inputs.experts {
            Some(experts) => experts.each().for_each(|(e, row)| add(e, row)),
            None => (0..inputs.count).for_each(|row| add(0, row)),
        }
        Ok(())
    }
}

#[test]
fn visits_show_the_rows_and_change_nothing() {
    let Some(prompts) = prompts() else { return };
    let model = Setup::new(Precision::Float32).load().unwrap();
    let want = calibrate(&model, &prompts, options(50));
    let mut sweep = Sweep::new(&model, &prompts, &sweep_options(50), false).unwrap();
    for stats in &want.layers {
        let (mut once, mut twice, mut last) = (Seen::default(), Seen::default(), Seen::default());
        assert!(sweep.visit_layer(&mut once).unwrap() && sweep.visit_layer(&mut twice).unwrap());
        assert!(sweep.next_layer_shown(&mut (), &mut last).unwrap());
        assert!(once.0 == twice.0 && once.0 == last.0);
        for (site, stats) in stats {
            let sums = stats.channel_sum.as_ref().unwrap();
            let experts = stats.expert_tokens.len().max(1);
            for (e, sums) in sums.chunks(sums.len() / experts).enumerate() {
                let (want, got) = (sums.iter().sum::<f64>(), once.0.get(&(*site, e)).copied().unwrap_or(0.0));
                assert!((want - got).abs() <= 1e-9 * want, "{site:?} {e}: {want} {got}");
            }
        }
    }
    assert!(!sweep.visit_layer(&mut Seen::default()).unwrap());
}

#[test]
fn a_calibration_goes_on_where_it_was_interrupted() {
    let Some(prompts) = prompts() else { return };
    let folder = tempfile::tempdir().unwrap();
    let place = Place { beside: &folder.path().join("out"), mark: ".calibration-" };
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let model = Setup::new(precision).load().unwrap();
        let want = calibrate(&model, &prompts, options(50));
        let key = key(model.source(), &prompts, &precision.arithmetic()).unwrap();
        for done in 0..=want.layers.len() {
            let mut saved = SavedPass::open(place, &key, Duration::ZERO).unwrap().0;
            let mut calibrator = Calibrator::begin(&model, &prompts, options(50)).unwrap();
            let found: Vec<usize> = match calibrator.resume(&mut saved, |at, found| at == *found).unwrap() {
                Resumed::Nothing => Vec::new(),
                Resumed::Refused(why) => panic!("{why}"),
                Resumed::Layers(found) => found,
            };
            assert_eq!(found, (0..done).collect::<Vec<_>>());
            if calibrator.next_layer().unwrap().is_some() {
                assert!(matches!(calibrator.save(&mut saved, &done), Saving::Saved));
            }
            assert!(calibrator.finish().unwrap() == want, "{precision:?} after {done} layers");
        }
    }
}

#[test]
fn an_activation_that_is_not_finite_is_an_error_that_names_its_place() {
    let Some(base) = shared("golden/quant/tiny_hf/nemotron_h/base") else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(base.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(base.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let name = json.as_object().unwrap().keys().find(|k| k.ends_with("layers.3.mixer.up_proj.weight")).unwrap();
    let at = 8 + header + json[name]["data_offsets"][0].as_u64().unwrap() as usize;
    // NaN.
    bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(folder.path().join("model.safetensors"), &bytes).unwrap();
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let setup = Setup { dt_min: Some(TIME_STEP_MIN), ..Setup::new(precision) };
        let model = setup.load_from(folder.path()).unwrap();
        let error = run(&model, &[vec![5, 6, 7]], options(50), &mut |_, _| {}).unwrap_err();
        let Error::NotFinite { module } = &error else { panic!("{error}") };
        assert_eq!(module, "decoder.layers.3.mlp.linear_fc2");
    }
}
