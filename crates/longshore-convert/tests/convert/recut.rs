//! torch_dist → torch_dist: what another spec or layout keeps.

use crate::shared_data::shared;
use longshore_ckpt::{Catalog, Dtype};
use longshore_convert::diff::{DiffOptions, Difference, Tolerance, diff};
use longshore_convert::model::Model;
use longshore_convert::options::{DtypeChoice, ExportOptions, ImportOptions, Layout, SpecName};
use longshore_convert::plan::Quantized;
use longshore_convert::progress::Silent;
use longshore_convert::quantized::linear::Naming;
use longshore_convert::quantized::state::{QuantizerStates, Record};
use longshore_convert::quantized::{Calibrated, Quantization};
use longshore_convert::run::{RunOptions, execute};
use longshore_convert::verify::{VerifyOptions, verify_against};
use longshore_convert::{Error, Plan, Problem, plan_export, plan_import, plan_quantized_import};
use longshore_quant::config::QuantConfig;
use std::path::{Path, PathBuf};

fn options(spec: SpecName, tp: u64, pp: u64) -> ImportOptions {
    ImportOptions { layout: Layout { tp, pp, ep: 1, etp: tp }, ..ImportOptions::new(spec) }
}

fn run(plan: &Plan) {
    execute(plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap();
}

fn recut(source: &Path, destination: &Path, options: &ImportOptions) {
    run(&plan_import(source, destination, options).unwrap());
}

fn export(source: &Path, destination: &Path) {
    run(&plan_export(source, destination, &ExportOptions::default()).unwrap());
}

/// Whether two checkpoints have the same tensors; says how they differ.
fn equal(a: &Path, b: &Path) -> bool {
    let options = DiffOptions { glob: None, tolerance: Tolerance::Bits, threads: 2 };
    let found = diff(a, b, &options, &Silent).unwrap();
    if let Some(first) = found.entries.first() {
        eprintln!("{} differ, the first: {first:?}", found.entries.len());
    }
    found.entries.is_empty() && found.compared > 0
}

/// What keeps a checkpoint from being proved against its source.
fn unproved(path: &Path, source: &Path) -> Vec<Problem> {
    verify_against(path, source, &VerifyOptions { quick: false, threads: 2 }, &Silent).unwrap().problems
}

fn base() -> Option<PathBuf> {
    Some(shared("golden/quant")?.join("tiny_hf/nemotron_h/base"))
}

/// Quantizes the tiny model; `input` is the magnitude that a linear's input had.
fn quantized(base: &Path, destination: &Path, spec: SpecName, name: &str, input: impl Fn(usize, Option<u64>) -> f32) {
    let config = QuantConfig::named(name).unwrap().with_kv_cache("fp8").unwrap();
    quantized_by(&config, base, destination, spec, input);
}

fn quantized_by(
    config: &QuantConfig,
    base: &Path,
    destination: &Path,
    spec: SpecName,
    input: impl Fn(usize, Option<u64>) -> f32,
) {
    let model = Model::from_folder(base).unwrap();
    let quantization = Quantization::decide(&model, Naming::of(spec), config).unwrap();
    let mut calibrated = Calibrated::default();
    for (i, q) in quantization.linears.iter().enumerate().filter(|(_, q)| q.input_scheme.is_some()) {
        calibrated.inputs.insert(q.linear.module.clone(), input(i, q.linear.expert));
    }
    for layer in &quantization.kv {
        calibrated.kv.insert(layer.module.clone(), [Some(0.5), Some(1.5), Some(2.5)]);
    }
    let quantized = Quantized { quantization: &quantization, calibrated: &calibrated, config };
    run(&plan_quantized_import(base, destination, &options(spec, 1, 1), &quantized).unwrap());
}

/// Experts share theirs.
fn shared_input(i: usize, expert: Option<u64>) -> f32 {
    if expert.is_some() { 3.5 } else { 1.0 + i as f32 / 8.0 }
}

#[test]
fn the_original_comes_back_from_a_re_cut_to_the_bit() {
    let Some(base) = base() else { return };
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    recut(&base, &at("te"), &options(SpecName::Te, 1, 1));
    recut(&at("te"), &at("local"), &options(SpecName::Local, 2, 2));
    // Names differ, values do not.
    assert!(equal(&at("te"), &at("local")) && equal(&at("local"), &at("te")));
    assert_eq!(unproved(&at("local"), &at("te")), []);
    export(&at("local"), &at("hf"));
    // Router biases and `A_log` are bfloat16 there and float32 in Megatron: the manifest knows it, also the second time.
    assert!(equal(&base, &at("hf")));

    // What a re-cut casts is known too.
    let wider = ImportOptions { dtype: DtypeChoice::Cast(Dtype::Float32), ..options(SpecName::Te, 1, 1) };
    recut(&at("local"), &at("wide"), &wider);
    export(&at("wide"), &at("again"));
    assert!(equal(&base, &at("again")));
}

#[test]
fn quantizers_go_along_in_both_specs_and_any_layout() {
    let Some(base) = base() else { return };
    for name in [
        "FP8_DEFAULT_CFG",
        "NVFP4_DEFAULT_CFG",
        "INT8_DEFAULT_CFG",
        "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
        "MXFP8_DEFAULT_CFG",
    ] {
        for (spec, other) in [(SpecName::Te, SpecName::Local), (SpecName::Local, SpecName::Te)] {
            let out = tempfile::tempdir().unwrap();
            let at = |name: &str| out.path().join(name);
            quantized(&base, &at("q"), spec, name, shared_input);
            recut(&at("q"), &at("other"), &options(other, 2, 2));
            // As if it had been quantized in that spec: tensors, states and what ModelOpt recorded.
            quantized(&base, &at("direct"), other, name, shared_input);
            assert!(equal(&at("direct"), &at("other")), "{name} {spec:?}");
            let states = |folder: &Path| {
                let states = QuantizerStates::read(&mut Catalog::open(folder).unwrap()).unwrap().unwrap();
                let listed = states.modules.into_iter().flat_map(|(module, quantizers)| {
                    quantizers.into_iter().map(move |(quantizer, stages)| {
                        let stages = stages.into_iter().map(|s| (s.attributes, s.amax.and_then(|a| a.values)));
                        (module.clone(), quantizer, stages.collect::<Vec<_>>())
                    })
                });
                listed.collect::<Vec<_>>()
            };
            assert_eq!(states(&at("direct")), states(&at("other")), "{name} {spec:?}");
            let record = |folder: &Path| Record::read(&folder.join("release")).unwrap().unwrap();
            assert_eq!(record(&at("q")), record(&at("other")));
            assert!(equal(&at("q"), &at("other")), "{name} {spec:?}");
            assert_eq!(unproved(&at("other"), &at("q")), [], "{name} {spec:?}");
            assert_eq!(unproved(&at("other"), &base), [], "{name} {spec:?}");
            // Servers get the same, and the way back is the way.
            export(&at("q"), &at("hf"));
            export(&at("other"), &at("hf-other"));
            assert!(equal(&at("hf"), &at("hf-other")), "{name} {spec:?}");
            recut(&at("other"), &at("back"), &options(spec, 1, 1));
            assert!(equal(&at("q"), &at("back")), "{name} {spec:?}");
        }
    }
}

#[test]
fn what_differs_is_seen_through_other_names() {
    let Some(base) = base() else { return };
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    quantized(&base, &at("a"), SpecName::Te, "FP8_DEFAULT_CFG", shared_input);
    quantized(
        &base,
        &at("b"),
        SpecName::Local,
        "FP8_DEFAULT_CFG",
        |i, expert| {
            if i == 0 { 7.0 } else { shared_input(i, expert) }
        },
    );
    // The last byte of an expert's weight.
    let catalog = Catalog::open(&at("b")).unwrap();
    let weight = "decoder.layers.1.mlp.experts.experts.2.linear_fc1.weight";
    let payload = longshore_ckpt::torch_dist::locate_payload(
        &longshore_ckpt::fs::ReadFile::open(&catalog.path(catalog.tensors[weight].chunks[0].extent.file)).unwrap(),
        &catalog.tensors[weight],
        &catalog.tensors[weight].chunks[0],
    );
    let extent = payload.unwrap().0;
    let file = catalog.path(extent.file);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[(extent.offset + extent.len) as usize - 1] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let options = DiffOptions { glob: None, tolerance: Tolerance::Bits, threads: 2 };
    let differing = |a: &str, b: &str| diff(&at(a), &at(b), &options, &Silent).unwrap().entries;
    let names: Vec<String> = differing("a", "b").into_iter().map(|entry| entry.tensor).collect();
    assert_eq!(names, ["decoder.layers.0.mixer.in_proj.input_quantizer._amax", weight]);
    assert_eq!(unproved(&at("b"), &at("a")).len(), 2);

    // The same weights, quantized in another way.
    quantized(&base, &at("c"), SpecName::Te, "INT8_WEIGHT_ONLY_CFG", shared_input);
    let found = differing("a", "c");
    let of = |quantizer: &str| {
        let entry = |name: &str| Difference::Quantizer { a: "(4, 3) bit".into(), b: name.into() };
        let what = if quantizer == "input_quantizer" { entry("off") } else { entry("8 bit, axis 0") };
        let name = format!("decoder.layers.0.mixer.in_proj.{quantizer}");
        found.iter().any(|found| found.tensor == name && found.what == what)
    };
    assert!(of("input_quantizer") && of("weight_quantizer"), "{found:?}");
    let problems = unproved(&at("c"), &at("a"));
    assert!(problems.iter().any(|p| matches!(p, Problem::Quantize { tensor, .. }
        if tensor == "decoder.layers.0.mixer.in_proj.weight_quantizer")));
}

#[test]
fn experts_that_differ_stay_apart() {
    let Some(base) = base() else { return };
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let apart = |i, expert: Option<u64>| expert.map_or_else(|| shared_input(i, expert), |e| 1.0 + e as f32);
    quantized(&base, &at("q"), SpecName::Local, "FP8_DEFAULT_CFG", apart);
    recut(&at("q"), &at("local"), &options(SpecName::Local, 2, 1));
    assert!(equal(&at("q"), &at("local")));
    let refused = plan_import(&at("q"), &at("te"), &options(SpecName::Te, 1, 1)).unwrap_err();
    let Error::Refused(problems) = refused else { panic!("{refused}") };
    let is_input = |problem: &Problem| {
        matches!(problem, Problem::Quantize { tensor, what }
            if tensor.ends_with(".input_quantizer") && what.contains("other values than that of expert 0"))
    };
    // Each linear of the three others of four experts, in two layers.
    assert_eq!(problems.len(), 2 * 2 * 3, "{problems:?}");
    assert!(problems.iter().all(is_input), "{problems:?}");
}

#[test]
fn weights_keep_the_dtype_that_their_quantizers_are_for() {
    let Some(base) = base() else { return };
    let out = tempfile::tempdir().unwrap();
    quantized(&base, &out.path().join("q"), SpecName::Te, "FP8_DEFAULT_CFG", shared_input);
    let cast = ImportOptions { dtype: DtypeChoice::Cast(Dtype::Float16), ..options(SpecName::Te, 1, 1) };
    let refused = plan_import(&out.path().join("q"), &out.path().join("x"), &cast).unwrap_err().to_string();
    assert!(refused.contains("decoder.layers.0.mixer.in_proj.weight"), "{refused}");
    assert!(refused.contains("its quantizers are for weights in bfloat16, not in float16"), "{refused}");
}

#[test]
fn magnitudes_of_a_vocabulary_are_for_its_rows() {
    let Some(base) = base() else { return };
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let mut config = QuantConfig::named("INT8_WEIGHT_ONLY_CFG").unwrap();
    config
        .entries
        .retain(|entry| !entry.quantizer_name.contains("output_layer") && !entry.quantizer_name.contains("lm_head"));
    quantized_by(&config, &base, &at("q"), SpecName::Te, shared_input);
    let padded = ImportOptions { make_vocab_size_divisible_by: Some(1000), ..options(SpecName::Te, 1, 1) };
    let refused = plan_import(&at("q"), &at("x"), &padded).unwrap_err().to_string();
    assert!(refused.contains("output_layer.weight_quantizer._amax"), "{refused}");
    assert!(refused.contains("its 256 magnitudes are not those of a weight [1000, 128]"), "{refused}");
    recut(&at("q"), &at("local"), &options(SpecName::Local, 2, 1));
    assert!(equal(&at("q"), &at("local")));

    // Quantized with padding, the magnitudes are those of all rows, and leave without the padding.
    let model = Model::from_folder(&base).unwrap();
    let quantization = Quantization::decide(&model, Naming::MegatronTe, &config).unwrap();
    let calibrated = Calibrated::default();
    let q = Quantized { quantization: &quantization, calibrated: &calibrated, config: &config };
    run(&plan_quantized_import(&base, &at("padded"), &padded, &q).unwrap());
    let shape = |name: &str| Catalog::open(&at("padded")).unwrap().tensors[name].shape.clone();
    assert_eq!(shape("output_layer.weight"), [1000, 128]);
    assert_eq!(shape("output_layer.weight_quantizer._amax"), [1000, 1]);
    export(&at("q"), &at("hf"));
    export(&at("padded"), &at("hf-padded"));
    assert!(equal(&at("hf"), &at("hf-padded")));
}

#[test]
fn quantizers_that_no_linear_has_are_refused() {
    let Some(base) = base() else { return };
    let out = tempfile::tempdir().unwrap();
    let source = out.path().join("q");
    quantized(&base, &source, SpecName::Te, "MXFP8_DEFAULT_CFG", shared_input);
    let table = source.join("release/.metadata");
    let bytes = std::fs::read(&table).unwrap();
    let (name, other) = (b"layers.0.mixer.in_proj._extra_state", b"layers.0.mixer.in_prox._extra_state");
    let mut renamed = bytes.clone();
    for at in 0..bytes.len() - name.len() {
        if bytes[at..].starts_with(name) {
            renamed[at..at + name.len()].copy_from_slice(other);
        }
    }
    assert_ne!(bytes, renamed);
    std::fs::write(&table, renamed).unwrap();
    let refused = plan_import(&source, &out.path().join("x"), &options(SpecName::Local, 1, 1)).unwrap_err().to_string();
    for quantizer in ["input_quantizer", "weight_quantizer"] {
        assert!(refused.contains(&format!("decoder.layers.0.mixer.in_prox.{quantizer}")), "{refused}");
    }
    assert!(refused.contains("it is enabled, and the model has no linear of this name"), "{refused}");
}
