//! The lint on folders: ModelOpt's own exports, and the configs of released checkpoints.

use crate::shared_data::shared;
use longshore_convert::quantized::lint::{Engine, Finding, Severity, Tensors, lint, lint_folder, rule};
use serde_json::{Value, json};
use std::path::Path;

fn rejected_by(findings: &[Finding], engine: Engine) -> Vec<&'static str> {
    let mut rules: Vec<_> =
        findings.iter().filter(|f| f.severity == Severity::Reject && f.engine == engine).map(|f| f.rule).collect();
    rules.dedup();
    rules
}

/// What vLLM rejects in a folder of which only the config is known.
fn config_alone(config: &Value) -> Vec<&'static str> {
    let findings = lint(&Tensors::new(), &mut |name| panic!("{name} is read"), config).unwrap();
    rejected_by(&findings, Engine::Vllm)
}

#[test]
fn released_configs_are_accepted_but_for_shortened_ones() {
    let Some(configs) = shared("data/configs/nvidia") else { return };
    let mut seen = 0;
    for entry in std::fs::read_dir(configs).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(text) = std::fs::read(folder.join("hf_quant_config.json")) else { continue };
        let config: Value = serde_json::from_slice(&text).unwrap();
        // The copies of these have lost their lists.
        let is_short =
            config["quantization"].get("exclude_modules").is_none() && config["quantization"]["quant_algo"] == "NVFP4";
        let expected: &[&str] = if is_short { &[rule::REQUIRED_FIELD] } else { &[] };
        assert_eq!(config_alone(&config), expected, "{}", folder.display());
        let text = std::fs::read(folder.join("config.json")).unwrap();
        let config = longshore_convert::config::json::parse(&text).unwrap();
        assert_eq!(config_alone(&config["quantization_config"]), [""; 0], "{}", folder.display());
        seen += 1;
    }
    assert!(seen >= 11, "{seen} configs");
}

#[test]
fn the_config_of_every_golden_export_is_judged() {
    let cases: [(&str, &[&str]); 5] = [
        ("llama/INT8_SMOOTHQUANT_CFG", &[rule::ALGORITHM]),
        ("llama/INT4_AWQ_CFG/export", &[rule::ALGORITHM]),
        ("nemotron_h/FP8_DEFAULT_CFG__FP8_KV_CFG", &[rule::CONTROL_CHARACTER]),
        ("nemotron_h/NVFP4_DEFAULT_CFG", &[rule::CONTROL_CHARACTER]),
        ("nemotron_h/RECIPE_SUPER_NVFP4_MAX/export", &[rule::CONTROL_CHARACTER]),
    ];
    for (name, expected) in cases {
        let Some(path) = shared(&format!("golden/quant/tiny_hf/{name}/hf_quant_config.json")) else { return };
        let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(config_alone(&config), expected, "{name}");
    }
}

#[test]
fn modelopts_hugging_face_export_of_the_recipe_of_super_cannot_be_loaded() {
    let Some(folder) = shared("golden/quant/tiny_hf/nemotron_h/RECIPE_SUPER_NVFP4_MAX/export") else { return };
    let findings = lint_folder(&folder).unwrap();
    // Its names carry a sentinel. Experts are found all the same, because their container begins the name.
    assert_eq!(rejected_by(&findings, Engine::Vllm), [rule::CONTROL_CHARACTER, rule::MIXED_UNLISTED]);
    let unlisted = findings.iter().filter(|f| f.rule == rule::MIXED_UNLISTED).map(|f| f.more + 1).sum::<usize>();
    assert_eq!(unlisted, 8, "shared experts and Mamba");
    assert!(findings.iter().any(|f| f.rule == rule::KV_SCALE_SMALL), "this export does not raise them");
}

#[test]
fn modelopts_int4_export_is_rejected_for_its_format_only() {
    let Some(folder) = shared("golden/quant/tiny_hf/llama/INT4_AWQ_CFG/export") else { return };
    let findings = lint_folder(&folder).unwrap();
    assert_eq!(rejected_by(&findings, Engine::Vllm), [rule::ALGORITHM]);
    assert_eq!(rejected_by(&findings, Engine::TensorRtLlm), [""; 0]);
}

/// A folder with one FP8 linear.
fn write_folder(folder: &Path, configs: &[(&str, Value)]) {
    let header = json!({
        "a.input_scale": { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] },
        "a.weight": { "dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [4, 8] },
        "a.weight_scale": { "dtype": "BF16", "shape": [], "data_offsets": [8, 10] },
    });
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((-0.5f32).to_le_bytes());
    bytes.extend([0x38; 4]);
    bytes.extend(0x3f80u16.to_le_bytes());
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    for (name, config) in configs {
        std::fs::write(folder.join(name), config.to_string()).unwrap();
    }
}

#[test]
fn a_folder_is_read_with_either_config() {
    let quantization = json!({ "quant_algo": "FP8", "exclude_modules": [] });
    let legacy = ("hf_quant_config.json", json!({ "quantization": quantization }));
    let inline = ("config.json", json!({ "quantization_config": { "quant_algo": "FP8", "ignore": [] } }));
    for configs in [vec![legacy.clone()], vec![inline.clone()], vec![inline, legacy]] {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &configs);
        let findings = lint_folder(folder.path()).unwrap();
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(findings.iter().all(|f| f.rule == rule::BAD_SCALE && f.text.contains("`input_scale` is -0.5")));
    }
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &[("config.json", json!({}))]);
    assert!(lint_folder(folder.path()).unwrap().iter().all(|f| f.rule == rule::NO_CONFIG));
}

#[test]
fn configs_that_disagree_are_warned_of() {
    let legacy = ("hf_quant_config.json", json!({ "quantization": { "quant_algo": "FP8", "exclude_modules": ["b"] } }));
    let inline = ("config.json", json!({ "quantization_config": { "quant_algo": "fp8", "ignore": [] } }));
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &[legacy, inline]);
    let findings = lint_folder(folder.path()).unwrap();
    let disagreeing: Vec<_> = findings.iter().filter(|f| f.rule == rule::CONFIGS_DISAGREE).collect();
    assert_eq!(disagreeing.iter().map(|f| f.engine).collect::<Vec<_>>(), [Engine::Vllm, Engine::TensorRtLlm]);
    assert!(disagreeing.iter().all(|f| f.subject == "exclude_modules"));
}

#[test]
fn a_megatron_checkpoint_is_no_such_folder() {
    let Some(folder) = shared("golden/quant/megatron_nemotronh_fp8") else { return };
    assert!(lint_folder(&folder).unwrap_err().to_string().contains("expected a Hugging Face folder"));
}
