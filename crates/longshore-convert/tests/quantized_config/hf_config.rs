//! Our configs against what ModelOpt 0.47 wrote for the same formats. `modelopt/` holds only such configs, made by running it:
//! its Megatron export of the tiny Nemotron-H of the reference data, its Hugging Face export of the tiny Llama there
//! (`llama.json`), and its two functions for a mixture of all formats (`mixture.json`).

use longshore_convert::Error;
use longshore_convert::quantized::hf_config::{
    Exported, ExportedLinear, KvFormat, hf_quant_config, insert, quant_algo, quantization_config,
};
use longshore_quant::{Granularity, MxElement, Scheme};
use serde_json::{Value, json};

const FP8: Scheme = Scheme::Fp8(Granularity::Tensor);
const NVFP4: Scheme = Scheme::Nvfp4 { block: 16 };
const NVFP4_32: Scheme = Scheme::Nvfp4 { block: 32 };
const STATIC: Scheme = Scheme::Nvfp4Static { four_over_six: true };
const INT4: Scheme = Scheme::Int4 { block: 128 };
const INT8: Scheme = Scheme::Int8(Granularity::Channel);
const INT8_INPUT: Scheme = Scheme::Int8(Granularity::Tensor);
const MXFP4: Scheme = Scheme::Mx(MxElement::E2m1);
const MXFP8: Scheme = Scheme::Mx(MxElement::E4m3);

/// A quantized linear's weight and input.
type Format = (&'static [Scheme], Option<Scheme>);

fn linear(name: &str, (weight, input): Format) -> ExportedLinear {
    let name = name.to_owned();
    ExportedLinear { name, weight: weight.to_vec(), input, pre_quant_scale: false, rows: 256, cols: 256 }
}

/// The tiny Nemotron-H, pattern `ME*-ME` with four experts.
fn nemotron_h(format: impl Fn(&str) -> Format) -> Exported {
    let mut linears = Vec::new();
    let mut add = |name: String| linears.push(linear(&name, format(&name)));
    for (layer, kind) in "ME*-ME".char_indices() {
        let names: Vec<String> = match kind {
            'M' => vec!["in_proj".into(), "out_proj".into()],
            'E' => {
                let experts = (0..4).flat_map(|e| [format!("experts.{e}.up_proj"), format!("experts.{e}.down_proj")]);
                experts.chain(["shared_experts.up_proj".into(), "shared_experts.down_proj".into()]).collect()
            }
            '*' => ["q_proj", "k_proj", "v_proj", "o_proj"].map(str::to_owned).into(),
            _ => vec!["up_proj".into(), "down_proj".into()],
        };
        for name in names {
            add(format!("backbone.layers.{layer}.mixer.{name}"));
        }
    }
    linears.push(linear("lm_head", (&[], None)));
    let others =
        ["embeddings", "layers.0.mixer.conv1d", "layers.1.mixer.gate", "layers.4.mixer.conv1d", "layers.5.mixer.gate"];
    let others = others.map(|name| format!("backbone.{name}")).into();
    Exported { linears, others, kv: None, has_mtp: false }
}

fn llama((weight, input): Format, pre_quant_scale: bool) -> Exported {
    let names = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    let of_layer = |layer| names.map(|name| format!("model.layers.{layer}.{name}"));
    let mut linears: Vec<_> = (0..2).flat_map(of_layer).map(|name| linear(&name, (weight, input))).collect();
    for linear in &mut linears {
        linear.pre_quant_scale = pre_quant_scale;
    }
    linears.push(linear("lm_head", (&[], None)));
    Exported { linears, others: vec!["model.embed_tokens".into()], kv: None, has_mtp: false }
}

/// Values and the order of keys.
fn assert_same(ours: Option<Value>, theirs: &Value) {
    let ours = ours.expect("a config");
    assert_eq!(serde_json::to_string_pretty(&ours).unwrap(), serde_json::to_string_pretty(theirs).unwrap());
}

fn assert_both(exported: &Exported, theirs: &Value) {
    assert_same(hf_quant_config(exported, false).unwrap(), &theirs["hf_quant_config"]);
    assert_same(quantization_config(exported, false).unwrap(), &theirs["quantization_config"]);
}

fn fixture(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn one_format_reads_as_modelopts_megatron_export() {
    let all = |format: Format| nemotron_h(move |_| format);
    let cases = [
        (all((&[FP8], Some(FP8))), include_str!("modelopt/fp8.json")),
        (all((&[NVFP4], Some(NVFP4))), include_str!("modelopt/nvfp4.json")),
        (all((&[NVFP4], None)), include_str!("modelopt/w4a16.json")),
    ];
    for (exported, theirs) in cases {
        assert_both(&exported, &fixture(theirs));
        assert_same(hf_quant_config(&exported, true).unwrap(), &fixture(theirs)["hf_quant_config"]);
    }
}

#[test]
fn modules_left_out_read_as_modelopts_megatron_export() {
    let experts_and_mlps = |name: &str| -> Format {
        let plain = ["in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj"];
        if plain.iter().any(|end| name.ends_with(end)) { (&[], None) } else { (&[NVFP4], Some(NVFP4)) }
    };
    assert_both(&nemotron_h(experts_and_mlps), &fixture(include_str!("modelopt/conservative.json")));
}

#[test]
fn the_recipe_of_super_reads_as_modelopts_megatron_export() {
    let recipe = |name: &str| -> Format {
        if name.contains(".experts.") {
            (&[NVFP4], Some(NVFP4))
        } else if name.contains("shared_experts") || name.ends_with("in_proj") || name.ends_with("out_proj") {
            (&[FP8], Some(FP8))
        } else {
            (&[], None)
        }
    };
    let theirs = fixture(include_str!("modelopt/super.json"));
    assert_both(&nemotron_h(recipe), &theirs);
    let experts = &theirs["quantization_config"]["config_groups"]["group_1"]["targets"];
    assert_eq!(experts.as_array().map(Vec::len), Some(16), "the fixture is a mixture");
}

/// Formats, their configs of ModelOpt, and whether there is a `pre_quant_scale`.
const LLAMA: [(&str, Format, bool); 12] = [
    ("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", (&[Scheme::Fp8(Granularity::Square(128))], None), false),
    (
        "FP8_PER_CHANNEL_PER_TOKEN_CFG",
        (&[Scheme::Fp8(Granularity::Channel)], Some(Scheme::Fp8(Granularity::Token))),
        false,
    ),
    ("INT4_AWQ_CFG", (&[INT4], None), true),
    ("INT8_WEIGHT_ONLY_CFG", (&[INT8], None), false),
    ("MXFP4_DEFAULT_CFG", (&[MXFP4], Some(MXFP4)), false),
    ("MXFP8_DEFAULT_CFG", (&[MXFP8], Some(MXFP8)), false),
    ("NVFP4_AWQ_LITE_CFG", (&[NVFP4], Some(NVFP4)), true),
    ("NVFP4_DEFAULT_CFG+NVFP4_KV_CFG", (&[STATIC], Some(NVFP4)), false),
    ("W4A16_NVFP4_CFG", (&[STATIC], None), false),
    ("W4A8_AWQ_BETA_CFG", (&[INT4, FP8], Some(FP8)), true),
    ("W4A8_MXFP4_FP8_CFG", (&[MXFP4], Some(FP8)), false),
    ("W4A8_NVFP4_FP8_CFG", (&[NVFP4_32], Some(FP8)), false),
];

#[test]
fn every_format_reads_as_modelopts_hugging_face_export() {
    let theirs = fixture(include_str!("modelopt/llama.json"));
    assert_eq!(theirs.as_object().unwrap().len(), LLAMA.len());
    for (name, format, pre_quant_scale) in LLAMA {
        let mut exported = llama(format, pre_quant_scale);
        exported.kv = name.contains("NVFP4_KV").then_some(KvFormat::Nvfp4);
        assert_both(&exported, &theirs[name]);
    }
}

#[test]
fn compatible_configs_are_absent_where_modelopts_megatron_export_has_none() {
    for (name, format, pre_quant_scale) in LLAMA {
        let exported = llama(format, pre_quant_scale);
        let algo = quant_algo(&exported.linears[0]).unwrap().unwrap();
        let expected = ["FP8", "NVFP4", "W4A16_NVFP4", "fp8_pb_wo"].contains(&algo.name);
        assert_eq!(hf_quant_config(&exported, true).unwrap().is_some(), expected, "{name}");
        assert_eq!(quantization_config(&exported, true).unwrap().is_some(), expected, "{name}");
    }
    let mut mixed =
        nemotron_h(|name| if name.contains("layers.0.") { (&[MXFP8], Some(MXFP8)) } else { (&[FP8], Some(FP8)) });
    assert_eq!(hf_quant_config(&mixed, true).unwrap(), None, "the first linear decides");
    mixed.linears.rotate_left(2);
    assert!(hf_quant_config(&mixed, true).unwrap().is_some(), "the first linear decides");
}

#[test]
fn a_mixture_of_all_formats_reads_as_modelopts() {
    let formats: [(Format, bool); 14] = [
        ((&[FP8], Some(FP8)), false),
        ((&[Scheme::Fp8(Granularity::Channel)], Some(Scheme::Fp8(Granularity::Token))), false),
        ((&[Scheme::Fp8(Granularity::Square(128))], None), false),
        ((&[INT4], None), true),
        ((&[INT4, FP8], Some(FP8)), true),
        ((&[INT8], None), false),
        ((&[INT8], Some(INT8_INPUT)), true),
        ((&[NVFP4], Some(NVFP4)), false),
        ((&[NVFP4], None), false),
        ((&[NVFP4], Some(NVFP4)), true),
        ((&[NVFP4_32], Some(FP8)), false),
        ((&[MXFP4], Some(FP8)), false),
        ((&[MXFP8], Some(MXFP8)), false),
        ((&[MXFP4], Some(MXFP4)), false),
    ];
    let mut exported = Exported { kv: Some(KvFormat::Nvfp4), ..Exported::default() };
    for (i, (format, pre_quant_scale)) in formats.into_iter().enumerate() {
        for module in ["b", "a"] {
            let linear = linear(&format!("model.{i:02}.{module}"), format);
            exported.linears.push(ExportedLinear { pre_quant_scale, ..linear });
        }
    }
    exported.linears.push(linear("lm_head", (&[], None)));
    assert_both(&exported, &fixture(include_str!("modelopt/mixture.json")));
}

#[test]
fn the_cache_and_copied_mtp_layers_are_said() {
    let exported = Exported { kv: Some(KvFormat::Fp8), has_mtp: true, ..llama((&[FP8], Some(FP8)), false) };
    let config = hf_quant_config(&exported, false).unwrap().unwrap();
    assert_eq!(config["quantization"]["kv_cache_quant_algo"], "FP8");
    assert_eq!(config["quantization"]["exclude_modules"], json!(["lm_head", "model.embed_tokens", "mtp*"]));
    let config = quantization_config(&exported, false).unwrap().unwrap();
    assert_eq!(config["kv_cache_scheme"], json!({ "dynamic": false, "num_bits": 8, "type": "float" }));
    assert_eq!(config["ignore"], json!(["lm_head", "model.embed_tokens", "mtp*"]));
}

#[test]
fn a_model_that_is_not_quantized_has_no_config() {
    let exported = llama((&[], Some(FP8)), false);
    assert_eq!(hf_quant_config(&exported, false).unwrap(), None);
    assert_eq!(quantization_config(&exported, false).unwrap(), None);
}

#[test]
fn formats_without_a_name_are_refused_all_together() {
    let mut exported = llama((&[FP8], Some(FP8)), false);
    exported.linears[0].weight = vec![Scheme::Mx(MxElement::Int8)];
    exported.linears[1].input = Some(NVFP4);
    exported.linears[2].pre_quant_scale = true;
    exported.linears[3] = ExportedLinear { cols: 24, ..linear("odd", (&[NVFP4], None)) };
    let Err(Error::Refused(problems)) = hf_quant_config(&exported, false) else { panic!("expected a refusal") };
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let expected = [
        "unified checkpoints have no format with MXINT8 weights and FP8 (per tensor) inputs",
        "unified checkpoints have no format with FP8 (per tensor) weights and NVFP4 (blocks of 16) inputs",
        "the format FP8 has no `pre_quant_scale`, and its input has one",
        "256x24 is no multiple of W4A16_NVFP4's blocks of 1x16",
    ];
    assert_eq!(texts.len(), expected.len());
    for (text, expected) in texts.iter().zip(expected) {
        assert!(text.ends_with(expected), "{text}");
    }
}

#[test]
fn what_is_inserted_leaves_every_other_byte() {
    let value = json!({ "ignore": ["a", "b"], "quant_algo": "FP8" });
    let text = "{\n  \"limit\": [0.0, Infinity],\n  \"n\": NaN\n}\n";
    let expected = "{\n  \"limit\": [0.0, Infinity],\n  \"n\": NaN,\n  \"quantization_config\": {\n    \"ignore\": [\n      \
                    \"a\",\n      \"b\"\n    ],\n    \"quant_algo\": \"FP8\"\n  }\n}\n";
    assert_eq!(insert(text, &value).unwrap(), expected);
    assert_eq!(insert("{\"a\": \"}\"}", &json!(1)).unwrap(), "{\"a\": \"}\", \"quantization_config\": 1}");
    assert_eq!(insert("{}\n", &json!({})).unwrap(), "{\"quantization_config\": {}}\n");
    assert_eq!(insert("{\n}", &json!(1)).unwrap(), "{\"quantization_config\": 1}");
}

#[test]
fn nothing_is_inserted_twice_or_into_something_else() {
    let refused = |text: &str| insert(text, &json!({})).unwrap_err().what;
    assert!(refused("{\"quantization_config\": null}").contains("already"));
    assert_eq!(refused("[]"), "expected an object");
    assert!(refused("{").contains("EOF"));
    assert!(insert("{\"a\": {\"quantization_config\": 1}}", &json!({})).is_ok(), "only the outermost object counts");
}
