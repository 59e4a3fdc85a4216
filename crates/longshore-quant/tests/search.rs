//! The magnitudes that `mse` finds against those that real ModelOpt found (`fixtures/search.py`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use half::bf16;
use longshore_quant::config::QuantConfig;
use longshore_quant::search::{self, Search, TensorSearch};
use longshore_quant::{Amax, Element, Granularity, Scheme, amax};
use safetensors::{Dtype, SafeTensors};

const FIXTURE: &[u8] = include_bytes!("fixtures/search.safetensors");
const COLS: usize = 256;

fn values(name: &str) -> Vec<f32> {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let tensor = file.tensor(name).unwrap();
    match tensor.dtype() {
        Dtype::F32 => tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::BF16 => {
            tensor.data().chunks_exact(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// The magnitudes found in bands of eight rows.
fn found(search: &Search, scheme: Scheme, element: Element, weight: &[f32]) -> Vec<f32> {
    let mut whole = Amax::default();
    amax::observe(Scheme::Fp8(Granularity::Tensor), COLS, weight, &mut whole).unwrap();
    if let Some(mut tensor) = TensorSearch::new(search, scheme, whole.values[0]) {
        weight.chunks(8 * COLS).for_each(|band| tensor.add(COLS, band));
        return vec![tensor.finish(element)];
    }
    let mut all = Vec::new();
    for band in weight.chunks(8 * COLS) {
        let mut amax = Amax { values: Vec::new(), global: Some(whole.values[0]) };
        search::observe(search, scheme, element, COLS, band, &mut amax).unwrap();
        all.extend(amax.values);
    }
    all
}

fn check(case: &str, search: &Search, scheme: Scheme) {
    for (element, ending) in [(Element::Float32, "f32"), (Element::Bfloat16, "bf16")] {
        let got = found(search, scheme, element, &values(&format!("weight.{ending}")));
        let expected = values(&format!("{case}.{ending}.amax"));
        let different = got.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!((got.len(), different), (expected.len(), 0), "{case}.{ending}");
    }
}

fn search_of(config: &str) -> Search {
    Search::of(&QuantConfig::named(config).unwrap().algorithm).unwrap()
}

#[test]
fn the_sweep_over_scales_finds_modelopts_blocks() {
    let search = search_of("NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG");
    assert_eq!(search, Search::Scales);
    check("sweep", &search, Scheme::Nvfp4Static { four_over_six: false });
    for scheme in [Scheme::Fp8(Granularity::Tensor), Scheme::Int8(Granularity::Channel), Scheme::Nvfp4 { block: 16 }] {
        assert!(!search.applies(scheme));
    }
}

#[test]
fn four_over_six_finds_modelopts_blocks() {
    let search = search_of("NVFP4_FOUR_OVER_SIX_CFG");
    assert_eq!(search, Search::Multiples(vec![1.0, 1.5]));
    check("four_over_six", &search, Scheme::Nvfp4Static { four_over_six: true });
}

#[test]
fn multiples_are_tried_for_every_other_format() {
    let recipe = "metadata:\n  recipe_type: ptq\nquantize:\n  algorithm:\n    method: mse\n  quant_cfg:\n    - quantizer_name: '*'\n      enable: false\n";
    let read = |_: &str| Ok(recipe.to_owned());
    let library = longshore_quant::config::recipe::Library { read: &read, dirs: Vec::new() };
    let search = Search::of(&library.load("x.yaml").unwrap().config.algorithm).unwrap();
    check("static", &search, Scheme::Nvfp4Static { four_over_six: false });
    check("int4", &search, Scheme::Int4 { block: 128 });
    check("int8", &search, Scheme::Int8(Granularity::Channel));
    check("fp8", &search, Scheme::Fp8(Granularity::Tensor));
    check("nvfp4", &search, Scheme::Nvfp4 { block: 16 });
}
