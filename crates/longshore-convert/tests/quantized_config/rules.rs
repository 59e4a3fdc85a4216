//! Every rule of the lint, by breaking one thing of a folder without findings.

use longshore_ckpt::Dtype;
use longshore_convert::quantized::lint::{Engine, Finding, Severity, Tensors, lint, rule, table};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A folder in memory.
#[derive(Clone, Default)]
struct Folder {
    tensors: Tensors,
    scales: BTreeMap<String, f32>,
    config: Value,
}

impl Folder {
    fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[u64]) {
        self.tensors.insert(name.to_owned(), (dtype, shape.to_vec()));
    }

    fn scale(&mut self, name: &str, value: f32) {
        self.tensor(name, Dtype::Float32, &[]);
        self.scales.insert(name.to_owned(), value);
    }

    fn remove(&mut self, name: &str) {
        assert!(self.tensors.remove(name).is_some(), "no {name}");
    }

    fn plain(&mut self, module: &str) {
        self.tensors.retain(|name, _| !name.starts_with(&format!("{module}.")));
        self.tensor(&format!("{module}.weight"), Dtype::Bfloat16, &[256, 256]);
    }

    fn fp8(&mut self, module: &str) {
        self.tensor(&format!("{module}.weight"), Dtype::Float8E4m3, &[256, 256]);
        self.scale(&format!("{module}.weight_scale"), 0.25);
        self.scale(&format!("{module}.input_scale"), 0.5);
    }

    fn nvfp4(&mut self, module: &str) {
        self.tensor(&format!("{module}.weight"), Dtype::Uint8, &[256, 128]);
        self.tensor(&format!("{module}.weight_scale"), Dtype::Float8E4m3, &[256, 16]);
        self.scale(&format!("{module}.weight_scale_2"), 0.25);
        self.scale(&format!("{module}.input_scale"), 0.5);
    }

    /// FP8 in squares of 128.
    fn squares(&mut self, module: &str) {
        self.tensor(&format!("{module}.weight"), Dtype::Float8E4m3, &[256, 256]);
        self.tensor(&format!("{module}.weight_scale"), Dtype::Float32, &[2, 1, 2, 1]);
    }

    fn lint(&self) -> Vec<Finding> {
        lint(&self.tensors, &mut |name| Ok(self.scales[name]), &self.config).unwrap()
    }
}

const LINEARS: [&str; 7] = [
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.self_attn.k_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.1.self_attn.o_proj",
    "model.layers.1.mlp.gate_proj",
    "model.layers.1.mlp.up_proj",
    "model.layers.1.mlp.down_proj",
];
const QKV: &str = "model.layers.1.self_attn.q_proj+k_proj+v_proj";
const Q: &str = LINEARS[0];
const DOWN: &str = LINEARS[6];

/// A layer in one format, and what is never quantized.
fn folder(algo: &str, format: fn(&mut Folder, &str)) -> Folder {
    let mut folder = Folder { config: json!({ "quant_algo": algo, "ignore": ["lm_head"] }), ..Folder::default() };
    for module in LINEARS {
        format(&mut folder, module);
    }
    folder.plain("lm_head");
    folder.plain("model.embed_tokens");
    folder.plain("model.layers.1.mlp.gate");
    folder.tensor("model.norm.weight", Dtype::Bfloat16, &[256]);
    folder
}

fn fp8() -> Folder {
    folder("FP8", Folder::fp8)
}

fn nvfp4() -> Folder {
    folder("NVFP4", Folder::nvfp4)
}

/// Two experts beside an FP8 layer.
fn mixture() -> Folder {
    let mut folder = fp8();
    let mut layers = BTreeMap::new();
    for module in LINEARS {
        layers.insert(module.to_owned(), json!({ "quant_algo": "FP8" }));
    }
    for expert in ["backbone.layers.2.mixer.experts.0.up_proj", "backbone.layers.2.mixer.experts.1.up_proj"] {
        folder.nvfp4(expert);
        layers.insert(expert.to_owned(), json!({ "quant_algo": "NVFP4", "group_size": 16 }));
    }
    folder.config = json!({ "quant_algo": "MIXED_PRECISION", "ignore": ["lm_head"], "quantized_layers": layers });
    folder
}

/// Engine and rule of every finding.
fn rules(folder: &Folder) -> Vec<(Severity, Engine, &'static str)> {
    folder.lint().iter().map(|finding| (finding.severity, finding.engine, finding.rule)).collect()
}

/// The one finding.
#[track_caller]
fn only(folder: &Folder) -> Finding {
    let mut findings = folder.lint();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings.remove(0)
}

#[track_caller]
fn assert_only(folder: &Folder, engine: Engine, rule: &str, subject: &str) {
    let finding = only(folder);
    assert_eq!((finding.severity, finding.engine, finding.rule), (Severity::Reject, engine, rule), "{finding:?}");
    assert_eq!(finding.subject, subject);
}

const VLLM_WARNS: (Severity, Engine) = (Severity::Warn, Engine::Vllm);

#[test]
fn sound_folders_have_no_findings() {
    assert_eq!(fp8().lint(), []);
    assert_eq!(nvfp4().lint(), []);
    assert_eq!(rules(&mixture()), [(Severity::Warn, Engine::Sglang, rule::ALGORITHM)]);
    let squares = folder("fp8_pb_wo", Folder::squares);
    assert_eq!(rules(&squares), [(Severity::Warn, Engine::Sglang, rule::ALGORITHM)]);
    let mut plain = Folder::default();
    plain.plain(Q);
    assert_eq!(plain.lint(), [], "nothing is packed, so nothing need be said");
}

#[test]
fn packed_weights_without_config_are_rejected_everywhere() {
    let folder = Folder { config: Value::Null, ..nvfp4() };
    let findings = folder.lint();
    assert_eq!(findings.iter().map(|f| f.engine).collect::<Vec<_>>(), Engine::ALL);
    assert!(findings.iter().all(|f| f.rule == rule::NO_CONFIG && f.severity == Severity::Reject && f.more == 6));
}

#[test]
fn unknown_algorithms_are_rejected() {
    let mut folder = folder("W8A16", |folder, module| {
        folder.tensor(&format!("{module}.weight"), Dtype::Int8, &[256, 256]);
        folder.tensor(&format!("{module}.weight_scale"), Dtype::Float32, &[256]);
    });
    let (reject, warn) = (Severity::Reject, Severity::Warn);
    let expected = [(reject, Engine::Vllm, rule::ALGORITHM), (warn, Engine::Sglang, rule::ALGORITHM)];
    assert_eq!(rules(&folder), expected);
    folder.config["quant_algo"] = "W9".into();
    assert_eq!(rules(&folder)[2], (warn, Engine::TensorRtLlm, rule::ALGORITHM));
}

#[test]
fn algorithms_that_vllm_lacks_in_mixtures_are_rejected() {
    let mut folder = mixture();
    folder.squares("model.layers.3.mlp.down_proj");
    folder.config["quantized_layers"]["model.layers.3.mlp.down_proj"] = json!({ "quant_algo": "fp8_pb_wo" });
    let first = &folder.lint()[0];
    assert_eq!((first.engine, first.rule), (Engine::Vllm, rule::ALGORITHM));
    assert_eq!(first.subject, "model.layers.3.mlp.down_proj");
}

#[test]
fn a_mixture_needs_layers() {
    let mut folder = mixture();
    folder.config["quantized_layers"] = json!({});
    let rules = rules(&folder);
    assert!(rules.contains(&(Severity::Reject, Engine::Vllm, rule::MIXED_EMPTY)), "{rules:?}");
}

#[test]
fn nvfp4_needs_its_fields_where_only_the_old_file_speaks() {
    let quantization = json!({
        "quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": null, "exclude_modules": ["lm_head"]
    });
    let mut folder = Folder { config: json!({ "quantization": quantization }), ..nvfp4() };
    assert_eq!(folder.lint(), []);
    let fields = folder.config["quantization"].as_object_mut().unwrap();
    fields.remove("group_size");
    let rejected = |engine| (Severity::Reject, engine, rule::REQUIRED_FIELD);
    assert_eq!(rules(&folder), [rejected(Engine::Vllm), rejected(Engine::Sglang)]);
    folder.plain("lm_head");
    folder.remove("lm_head.weight");
    folder.config["quantization"]["group_size"] = 16.into();
    folder.config["quantization"]["exclude_modules"] = json!([]);
    assert_eq!(rules(&folder), [rejected(Engine::Sglang)], "an empty list");
}

#[test]
fn names_with_control_characters_are_rejected() {
    let mut folder = fp8();
    folder.config["ignore"] = json!(["lm_head", "model.layers.1.mlp.gate.\0backbone.pt_name_sentinel"]);
    let findings = folder.lint();
    assert_eq!(
        findings.iter().map(|f| (f.engine, f.rule)).collect::<Vec<_>>(),
        Engine::ALL.map(|e| (e, rule::CONTROL_CHARACTER))
    );
    assert!(table(&findings).contains(r"gate.\0backbone"), "{}", table(&findings));
}

#[test]
fn cache_formats_that_config_json_cannot_say_are_warned_of() {
    let mut folder = nvfp4();
    folder.config["kv_cache_scheme"] = "NVFP4".into();
    let warned = |engine| (Severity::Warn, engine, rule::KV_SCHEME);
    assert_eq!(rules(&folder), [warned(Engine::Vllm), warned(Engine::TensorRtLlm)]);
}

#[test]
fn an_excluded_name_within_a_quantized_one_is_rejected() {
    for (entry, how) in [
        (DOWN, "is it"),
        ("layers.1.mlp.down", "occurs in its name"),
        ("model.layers.1.mlp.d*", "occurs in its name"),
        ("*.down_pr?j", "matches it"),
    ] {
        let mut folder = fp8();
        folder.config["ignore"] = json!(["lm_head", entry]);
        assert_only(&folder, Engine::Vllm, rule::EXCLUDED_QUANTIZED, DOWN);
        assert!(only(&folder).text.contains(how), "{entry}");
    }
    let mut folder = mixture();
    folder.config["ignore"] = json!(["lm_head", "backbone.layers.2.mixer.experts.7.up_proj"]);
    let first = &folder.lint()[0];
    assert_eq!((first.rule, first.more), (rule::EXCLUDED_QUANTIZED, 1), "experts are excluded together");
}

#[test]
fn a_plain_linear_that_is_not_excluded_is_rejected() {
    let mut folder = fp8();
    folder.plain(DOWN);
    assert_only(&folder, Engine::Vllm, rule::NOT_EXCLUDED, DOWN);
    let mut folder = fp8();
    folder.plain("mtp.layers.0.eh_proj");
    let finding = only(&folder);
    assert_eq!((finding.severity, finding.rule), (Severity::Warn, rule::NOT_EXCLUDED));
    folder.config["ignore"] = json!(["lm_head", "mtp*"]);
    assert_eq!(folder.lint(), []);
}

#[test]
fn a_packed_layer_that_a_mixture_does_not_list_is_rejected() {
    let mut folder = mixture();
    folder.config["quantized_layers"].as_object_mut().unwrap().remove(DOWN);
    let first = &folder.lint()[0];
    assert_eq!((first.engine, first.rule, first.subject.as_str()), (Engine::Vllm, rule::MIXED_UNLISTED, DOWN));
}

#[test]
fn experts_are_found_under_their_container_or_any_of_them() {
    let mut folder = mixture();
    let layers = folder.config["quantized_layers"].as_object_mut().unwrap();
    layers.remove("backbone.layers.2.mixer.experts.1.up_proj");
    assert_eq!(folder.lint().len(), 1, "another expert is listed");
    let layers = folder.config["quantized_layers"].as_object_mut().unwrap();
    let experts = layers.remove("backbone.layers.2.mixer.experts.0.up_proj").unwrap();
    assert_eq!(folder.lint()[0].rule, rule::MIXED_UNLISTED);
    folder.config["quantized_layers"]["backbone.layers.2.mixer.experts"] = experts;
    assert_eq!(folder.lint().len(), 1, "the container is listed");
}

#[test]
fn a_weight_in_another_format_is_rejected() {
    let mut folder = fp8();
    folder.nvfp4(DOWN);
    assert_only(&folder, Engine::Vllm, rule::FORMAT_MISMATCH, DOWN);
}

#[test]
fn missing_scales_are_rejected() {
    for (folder, suffix) in [
        (fp8(), "weight_scale"),
        (fp8(), "input_scale"),
        (nvfp4(), "weight_scale"),
        (nvfp4(), "weight_scale_2"),
        (nvfp4(), "input_scale"),
    ] {
        let mut folder = folder;
        folder.remove(&format!("{DOWN}.{suffix}"));
        assert_only(&folder, Engine::Vllm, rule::MISSING_SCALE, DOWN);
        assert!(only(&folder).text.contains(&format!("`{suffix}`")));
    }
}

#[test]
fn fusion_partners_must_be_quantized_alike() {
    let mut folder = fp8();
    folder.plain(Q);
    folder.config["ignore"] = json!(["lm_head", Q]);
    assert_only(&folder, Engine::Vllm, rule::FUSION_PARTNERS, QKV);
    assert!(only(&folder).text.starts_with("1 of 3"));

    let mut folder = mixture();
    folder.nvfp4(Q);
    folder.config["quantized_layers"][Q] = json!({ "quant_algo": "NVFP4" });
    let first = &folder.lint()[0];
    assert_eq!((first.rule, first.subject.as_str()), (rule::FUSION_PARTNERS, QKV));
    assert!(first.text.ends_with("FP8 under one scale; NVFP4"), "{}", first.text);

    let mut folder = mixture();
    for module in LINEARS {
        folder.nvfp4(module);
    }
    for (i, module) in LINEARS.iter().enumerate() {
        folder.config["quantized_layers"][*module] =
            json!({ "quant_algo": if i == 0 { "NVFP4" } else { "W4A16_NVFP4" } });
    }
    let first = &folder.lint()[0];
    assert!(first.text.ends_with("different for the config: NVFP4; W4A16_NVFP4"), "{}", first.text);
}

#[test]
fn experts_of_a_layer_must_be_quantized_alike() {
    let mut folder = mixture();
    folder.plain("backbone.layers.2.mixer.experts.1.up_proj");
    let findings = folder.lint();
    let experts = findings.iter().find(|f| f.rule == rule::EXPERTS_DIFFER).unwrap();
    assert_eq!((experts.severity, experts.subject.as_str()), (Severity::Reject, "backbone.layers.2.mixer.experts"));
}

#[test]
fn nvfp4_needs_a_multiple_of_16_columns() {
    let mut folder = nvfp4();
    folder.tensor(&format!("{DOWN}.weight"), Dtype::Uint8, &[256, 12]);
    let rejected = |engine| (Severity::Reject, engine, rule::NVFP4_COLUMNS);
    assert_eq!(rules(&folder), [rejected(Engine::Vllm), rejected(Engine::Sglang)]);
}

#[test]
fn nvfp4_needs_blocks_of_16() {
    let mut folder = nvfp4();
    folder.tensor(&format!("{DOWN}.weight_scale"), Dtype::Float8E4m3, &[256, 8]);
    assert_only(&folder, Engine::Vllm, rule::NVFP4_BLOCK, DOWN);
    let mut folder = nvfp4();
    folder.config["group_size"] = 32.into();
    assert_eq!(only(&folder).more, 6);
    assert_eq!(only(&folder).rule, rule::NVFP4_BLOCK);
}

#[test]
fn fp8_in_squares_needs_whole_squares_and_four_dimensional_scales() {
    let squares = || {
        let mut folder = folder("FP8_PB_WO", Folder::squares);
        folder.config["quant_algo"] = "FP8_PB_WO".into();
        folder
    };
    for (suffix, dtype, shape) in
        [("weight", Dtype::Float8E4m3, vec![256, 200]), ("weight_scale", Dtype::Float32, vec![2, 2])]
    {
        let mut folder = squares();
        folder.tensor(&format!("{DOWN}.{suffix}"), dtype, &shape);
        let first = &folder.lint()[0];
        assert_eq!((first.engine, first.rule, first.subject.as_str()), (Engine::Vllm, rule::FP8_SQUARES, DOWN));
    }
}

#[test]
fn different_weight_scales_of_fused_linears_cost_precision_in_fp8_and_are_wrong_in_nvfp4() {
    let mut folder = fp8();
    folder.scale(&format!("{Q}.weight_scale"), 0.125);
    let warned = |engine| (Severity::Warn, engine, rule::FUSED_WEIGHT_SCALES);
    assert_eq!(rules(&folder), [warned(Engine::Vllm), warned(Engine::Sglang)]);
    let mut folder = nvfp4();
    folder.scale(&format!("{Q}.weight_scale_2"), 0.125);
    let rejected = |engine| (Severity::Reject, engine, rule::FUSED_WEIGHT_SCALES);
    assert_eq!(rules(&folder), [rejected(Engine::Vllm), rejected(Engine::TensorRtLlm)]);
    assert_eq!(folder.lint()[0].subject, QKV);
    assert!(folder.lint()[0].text.contains("the largest"));
}

#[test]
fn different_weight_scales_of_an_experts_gate_take_the_gates() {
    let mut folder = nvfp4();
    folder.nvfp4("model.layers.2.mlp.experts.0.gate_proj");
    folder.nvfp4("model.layers.2.mlp.experts.0.up_proj");
    assert_eq!(folder.lint(), []);
    folder.scale("model.layers.2.mlp.experts.0.up_proj.weight_scale_2", 2.0);
    assert!(folder.lint()[0].text.contains("the gate's is used"));
}

#[test]
fn different_input_scales_of_fused_linears_are_warned_of() {
    let warned = |engine| (Severity::Warn, engine, rule::FUSED_INPUT_SCALES);
    let mut folder = fp8();
    folder.scale(&format!("{Q}.input_scale"), 0.125);
    assert_eq!(rules(&folder), [warned(Engine::Vllm), warned(Engine::Sglang)]);
    let mut folder = nvfp4();
    folder.scale(&format!("{Q}.input_scale"), 0.125);
    let rejected = (Severity::Reject, Engine::TensorRtLlm, rule::FUSED_INPUT_SCALES);
    assert_eq!(rules(&folder), [rejected, warned(Engine::Vllm), warned(Engine::Sglang)]);
}

#[test]
fn different_input_scales_of_experts_are_warned_of() {
    let mut folder = mixture();
    folder.scale("backbone.layers.2.mixer.experts.1.up_proj.input_scale", 0.125);
    let findings = folder.lint();
    let (severity, engine) = VLLM_WARNS;
    let finding = findings.iter().find(|f| f.rule == rule::EXPERTS_INPUT_SCALES).unwrap();
    assert_eq!((finding.severity, finding.engine), (severity, engine));
    assert_eq!(finding.subject, "backbone.layers.2.mixer.experts.*.up_proj");
}

#[test]
fn scales_that_are_no_positive_numbers_are_rejected() {
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let mut folder = fp8();
        folder.scale(&format!("{DOWN}.input_scale"), scale);
        let findings = folder.lint();
        assert_eq!(findings.iter().map(|f| f.engine).collect::<Vec<_>>(), Engine::ALL);
        assert!(findings.iter().all(|f| f.rule == rule::BAD_SCALE && f.subject == DOWN), "{scale}");
    }
}

#[test]
fn an_fp8_cache_needs_scales_of_at_least_one() {
    let (k, v) = ("model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj");
    let mut folder = fp8();
    folder.config["kv_cache_scheme"] = json!({ "dynamic": false, "num_bits": 8, "type": "float" });
    assert_eq!(rules(&folder), [(Severity::Warn, Engine::Vllm, rule::KV_SCALE); 2]);
    folder.scale(&format!("{k}.k_scale"), 1.0);
    folder.scale("model.layers.1.self_attn.v_scale", 1.0);
    assert_eq!(folder.lint(), []);
    folder.scale(&format!("{k}.k_scale"), 0.5);
    let finding = only(&folder);
    assert_eq!((finding.rule, finding.subject.as_str()), (rule::KV_SCALE_SMALL, k));
    folder.scale(&format!("{k}.k_scale"), 1.0);
    folder.scale(&format!("{v}.v_scale"), -1.0);
    let finding = only(&folder);
    assert_eq!((finding.rule, finding.subject.as_str()), (rule::KV_SCALE, v));
}

#[test]
fn the_table_has_a_line_per_finding_and_counts_the_rest() {
    assert_eq!(table(&[]), "");
    let mut folder = nvfp4();
    folder.config["group_size"] = 32.into();
    let expected = "severity  engine        rule         subject                                  finding\n\
                    reject    vLLM          nvfp4-block  model.layers.1.mlp.down_proj and 6 more  \
                    blocks of 32 columns, where kernels have 16\n";
    assert_eq!(table(&folder.lint()), expected);
    let json = serde_json::to_value(folder.lint()).unwrap();
    assert_eq!(json[0]["engine"], "vllm");
    assert_eq!(json[0]["severity"], "reject");
    assert_eq!(json[0]["more"], 6);
}
