//! Logits of simulated quantization.

use crate::reference::{Setup, Tensors, furthest, logits, prompts};
use crate::shared_data::shared;
use longshore_convert::config::LayerSpec;
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::cache::Sequence;
use longshore_infer::model::{Model, Positions, Run};
use longshore_infer::quantized::{ExpertInput, LinearQuant, QuantState, RoutedFc2, WeightQuant, WeightStage};
use longshore_infer::site::{Site, linears};
use longshore_quant::{Amax, Element, Granularity, MxElement, Scheme};

const FP8: Scheme = Scheme::Fp8(Granularity::Tensor);
const NVFP4: Scheme = Scheme::Nvfp4 { block: 16 };

/// A config of ModelOpt: schemes of weights and inputs.
const CONFIGS: [(&str, Scheme, Option<Scheme>); 7] = [
    ("FP8_DEFAULT_CFG+FP8_KV_CFG", FP8, Some(FP8)),
    ("NVFP4_DEFAULT_CFG", NVFP4, Some(NVFP4)),
    ("INT8_DEFAULT_CFG", Scheme::Int8(Granularity::Channel), Some(Scheme::Int8(Granularity::Tensor))),
    ("INT8_SMOOTHQUANT_CFG", Scheme::Int8(Granularity::Channel), Some(Scheme::Int8(Granularity::Tensor))),
    ("FP8_PER_CHANNEL_PER_TOKEN_CFG", Scheme::Fp8(Granularity::Channel), Some(Scheme::Fp8(Granularity::Token))),
    ("MXFP8_DEFAULT_CFG", Scheme::Mx(MxElement::E4m3), Some(Scheme::Mx(MxElement::E4m3))),
    ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", Scheme::Int4 { block: 128 }, None),
];

fn layers(model: &Model<Cpu>) -> Vec<LayerSpec> {
    model.config().layers.clone()
}

fn amax(values: Vec<f32>) -> Amax {
    Amax { values, global: None }
}

/// The state of `config`; `derive` leaves amaxes of weights to the weights.
fn state(layers: &[LayerSpec], reference: &Tensors, config: usize, derive: bool) -> QuantState {
    let (config, weight, input) = CONFIGS[config];
    let mut state = QuantState::new(Element::Float32);
    for (i, spec) in layers.iter().enumerate() {
        for (site, _) in linears(spec, 128) {
            let module = format!("decoder.layers.{i}.{}", site.module());
            let get = |what: &str| reference.get(&format!("{config}/{module}{what}"));
            let stage = |values: Option<Vec<f32>>| {
                vec![WeightStage { scheme: weight, amax: values.filter(|_| !derive).map(amax) }]
            };
            let weight = match spec {
                LayerSpec::Moe(moe) if site.is_routed() => {
                    WeightQuant::PerExpert((0..moe.experts).map(|e| stage(get(&format!(".{e}.weight")))).collect())
                }
                _ => WeightQuant::Same(stage(get(".weight"))),
            };
            let pre_quant_scale = get(".pre_quant_scale");
            let weight_scale = pre_quant_scale.as_ref().map(|scale| scale.iter().map(|s| 1.0 / s).collect());
            let input = input.map(|scheme| (scheme, amax(get(".input").unwrap_or_default())));
            let linear = LinearQuant { weight, weight_scale, input, pre_quant_scale, ..LinearQuant::default() };
            state.linears.insert(module, linear);
        }
        for site in [Site::Key, Site::Value] {
            let module = format!("decoder.layers.{i}.{}", site.module());
            if let Some(values) = reference.get(&format!("{config}/{module}.input")) {
                state.attention.insert(module, (FP8, amax(values)));
            }
        }
    }
    state
}

#[test]
fn float32_logits_are_those_of_modelopts_quantized_model() {
    let (Some(prompts), reference) = (prompts(), Tensors::float32()) else { return };
    let plain = Setup::new(Precision::Float32).load().unwrap();
    let far = furthest(&logits(&plain, &prompts, 64), &reference.values("plain/logits"));
    eprintln!("unquantized: {far:e}");
    assert!(far < 2e-5, "{far}");
    for (i, (config, ..)) in CONFIGS.iter().enumerate() {
        let state = state(&layers(&plain), &reference, i, false);
        let model = Setup::quantized(Precision::Float32, state).load().unwrap();
        let (got, want) = (logits(&model, &prompts, 64), reference.values(&format!("{config}/logits")));
        let mut each: Vec<f32> = got.chunks(256).zip(want.chunks(256)).map(|(a, b)| furthest(a, b)).collect();
        each.sort_by(f32::total_cmp);
        let away = furthest(&got, &reference.values("plain/logits"));
        eprintln!("{config}: {:e}, then {:e}; quantization itself {away:e}", each[14], each[15]);
        // A value on the border between two codes may fall to either side: at one of the 16 positions.
        assert!(each[14] < 1e-5 && each[15] < 0.1 && away > 0.3, "{config}: {each:?}");
    }
}

#[test]
fn amaxes_of_weights_need_not_be_given() {
    let (Some(prompts), reference) = (prompts(), Tensors::float32()) else { return };
    let plain = Setup::new(Precision::Float32).load().unwrap();
    for (config, (name, ..)) in CONFIGS.iter().enumerate().take(2) {
        let run = |derive| {
            let mut state = state(&layers(&plain), &reference, config, derive);
            // ModelOpt's q, k and v were calibrated apart.
            state.linears.remove("decoder.layers.2.self_attention.linear_qkv");
            logits(&Setup::quantized(Precision::Float32, state).load().unwrap(), &prompts, 64)
        };
        assert!(run(true) == run(false), "{name}");
    }
}

#[test]
fn a_row_depends_on_no_schedule() {
    let (Some(prompts), reference) = (prompts(), Tensors::float32()) else { return };
    let plain = Setup::new(Precision::Float32).load().unwrap();
    for precision in [Precision::Float32, Precision::Bfloat16] {
        for (config, routed_fc2) in
            [(0, RoutedFc2::WeightBefore), (1, RoutedFc2::WeightAfter), (4, RoutedFc2::WeightAfter)]
        {
            let load = |threads| {
                let mut state = state(&layers(&plain), &reference, config, true);
                state.routed_fc2 = routed_fc2;
                if precision == Precision::Bfloat16 {
                    state.element = Element::Bfloat16;
                }
                Setup { threads, ..Setup::quantized(precision, state) }.load().unwrap()
            };
            let want = logits(&load(1), &prompts, 1000);
            let model = load(3);
            for batch in [1, 7, 40] {
                assert!(logits(&model, &prompts, batch) == want, "{precision:?} {config} {batch}");
            }
            // The last position, token by token.
            let mut sequence = Sequence::new();
            let mut last = Vec::new();
            for id in &prompts[0] {
                let run = Run { sequence: &mut sequence, ids: &[*id], prefill: true, keep_trail: false };
                last = model.step(&mut [run], Positions::Last).unwrap().logits;
            }
            assert!(last == want[3 * 256..4 * 256], "{precision:?} {config}");
        }
    }
}

/// Euclidean distance, relative to `want`.
fn distance(got: &[f32], want: &[f32]) -> f32 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied())
}

#[test]
fn megatrons_quantized_model_is_near() {
    let Some(prompts) = prompts() else { return };
    let Some(folder) = shared("golden/quant/megatron_nemotronh_fp8") else { return };
    let amaxes = Tensors::open(&folder.join("quantizer_state.safetensors"));
    let all = Tensors::open(&folder.join("logits_after.safetensors")).values("logits");
    let want: Vec<f32> = all.chunks(256).skip(7).step_by(8).flatten().copied().collect();
    let plain = Setup { dt_min: None, ..Setup::new(Precision::Bfloat16) }.load().unwrap();
    let quantized = |routed_fc2| {
        let mut state = QuantState::new(Element::Bfloat16);
        state.routed_fc2 = routed_fc2;
        for (i, spec) in layers(&plain).iter().enumerate() {
            for (site, _) in linears(spec, 128) {
                let module = format!("decoder.layers.{i}.{}", site.module());
                let get = |expert: usize, what: &str| {
                    let module = module.replace("mlp.experts.", &format!("mlp.experts.local_experts.{expert}."));
                    amax(amaxes.values(&format!("{module}.{what}_quantizer._amax")))
                };
                let stage = |expert| vec![WeightStage { scheme: FP8, amax: Some(get(expert, "weight")) }];
                let weight = match spec {
                    LayerSpec::Moe(moe) if site.is_routed() => {
                        WeightQuant::PerExpert((0..moe.experts as usize).map(stage).collect())
                    }
                    _ => WeightQuant::Same(stage(0)),
                };
                let input = Some((FP8, get(0, "input")));
                state.linears.insert(module, LinearQuant { weight, input, ..LinearQuant::default() });
            }
        }
        let setup = Setup { dt_min: None, ..Setup::quantized(Precision::Bfloat16, state) };
        distance(&logits(&setup.load().unwrap(), &prompts, 64), &want)
    };
    let unquantized = distance(&logits(&plain, &prompts, 64), &want);
    let (before, after) = (quantized(RoutedFc2::WeightBefore), quantized(RoutedFc2::WeightAfter));
    eprintln!("Megatron's order {before}, the other {after}, unquantized {unquantized}");
    assert!(before < 0.6 * unquantized && before < after, "{before} {after} {unquantized}");
}

#[test]
fn every_expert_scales_its_own_input() {
    let Some(prompts) = prompts() else { return };
    // Behind a squared ReLU a scale is squared; powers of two leave the bits as they are.
    let scale = |first: bool, expert: i32| {
        let scale = 0.5f32.powi(expert);
        ExpertInput { pre_quant_scale: Some(vec![if first { scale } else { 1.0 / (scale * scale) }; 128]), input: None }
    };
    for (precision, element) in [(Precision::Float32, Element::Float32), (Precision::Bfloat16, Element::Bfloat16)] {
        let plain = Setup::new(precision).load().unwrap();
        let mut state = QuantState::new(element);
        for (module, first) in [("linear_fc1", true), ("linear_fc2", false)] {
            let expert_inputs = (0..4).map(|expert| scale(first, expert)).collect();
            let linear = LinearQuant { expert_inputs, ..LinearQuant::default() };
            state.linears.insert(format!("decoder.layers.1.mlp.experts.{module}"), linear);
        }
        let model = Setup::quantized(precision, state).load().unwrap();
        assert!(logits(&model, &prompts, 40) == logits(&plain, &prompts, 40), "{precision:?}");
    }
}

fn linear<'a>(state: &'a mut QuantState, module: &str) -> &'a mut LinearQuant {
    state.linears.get_mut(module).expect("a linear")
}

#[test]
fn a_state_that_does_not_fit_the_model_is_an_error_that_names_the_module() {
    let (Some(_), reference) = (prompts(), Tensors::float32()) else { return };
    let plain = Setup::new(Precision::Float32).load().unwrap();
    let module = "decoder.layers.3.mlp.linear_fc1";
    let fails = |change: &dyn Fn(&mut QuantState)| {
        let mut state = state(&layers(&plain), &reference, 0, false);
        change(&mut state);
        Setup::quantized(Precision::Float32, state).load().err().map(|e| e.to_string()).expect("an error")
    };
    let other = "decoder.layers.9.mixer.in_proj";
    let error = fails(&|state| drop(state.linears.insert(other.into(), LinearQuant::default())));
    assert_eq!(error, format!("quantization of `{other}`: the model has no such linear"));
    let error = fails(&|state| linear(state, module).input = Some((FP8, Amax::default())));
    assert_eq!(error, format!("quantization of `{module}`: the input has 0 amax values, expected 1"));
    let error = fails(&|state| linear(state, module).pre_quant_scale = Some(vec![1.0; 3]));
    assert_eq!(error, format!("quantization of `{module}`: `pre_quant_scale` has not 128 values"));
    let experts = "decoder.layers.1.mlp.experts.linear_fc1";
    let error = fails(&|state| linear(state, experts).expert_inputs = vec![ExpertInput::default(); 3]);
    assert_eq!(error, format!("quantization of `{experts}`: 3 inputs, expected 4"));
    let block = WeightStage { scheme: Scheme::Int4 { block: 96 }, amax: None };
    let error = fails(&|state| linear(state, module).weight = WeightQuant::Same(vec![block.clone()]));
    assert_eq!(error, format!("quantization of `{module}`: [256, 128] does not divide into blocks of 96 columns"));
    let experts = "decoder.layers.1.mlp.experts.linear_fc2";
    let error = fails(&|state| linear(state, experts).weight = WeightQuant::PerExpert(vec![Vec::new()]));
    assert_eq!(error, format!("quantization of `{experts}`: 1 weights, expected 4"));
    let operand = "decoder.layers.1.self_attention.core_attention.k_bmm_quantizer";
    let error = fails(&|state| drop(state.attention.insert(operand.into(), (FP8, amax(vec![1.0])))));
    assert_eq!(error, format!("quantization of `{operand}`: the model has no such operand of attention"));
}
