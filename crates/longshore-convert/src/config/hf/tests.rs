use super::nemotron_h::{Reduced, reduced_fields};
use super::*;
use crate::config::{LayerSpec, ModelConfig, Moe, json, text};
use serde_json::json;
use std::path::{Path, PathBuf};

/// The folder of shared goldens; without it the tests that need it say so and pass.
pub(crate) fn shared() -> Option<PathBuf> {
    let sibling = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var_os("LONGSHORE_DATA").map_or_else(sibling, PathBuf::from);
    let found = folder.join("data/configs/nvidia").is_dir();
    if !found {
        let line = format!("skipped: shared data not present ({})\n", folder.display());
        std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
    }
    found.then_some(folder)
}

pub(crate) fn read_file(folder: &Path) -> Read {
    let bytes = std::fs::read(folder.join("config.json")).unwrap();
    read("config.json", &json::parse(&bytes).unwrap()).unwrap_or_else(|p| panic!("{}: {p:?}", folder.display()))
}

/// A small model with every kind of layer.
fn example() -> Map<String, Value> {
    let value = json!({
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "torch_dtype": "bfloat16",
        "hidden_size": 64, "vocab_size": 256, "hybrid_override_pattern": "ME*-E", "num_hidden_layers": 5,
        "max_position_embeddings": 512, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": false,
        "intermediate_size": 96, "mlp_hidden_act": "relu2", "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16,
        "conv_kernel": 4, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3,
        "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 48, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": true, "routed_scaling_factor": 2.5
    });
    value.as_object().unwrap().clone()
}

#[expect(clippy::needless_pass_by_value, reason = "`json!` at every call")]
fn with(changes: Value) -> Result<Read, Vec<Problem>> {
    let mut object = example();
    for (name, value) in changes.as_object().unwrap() {
        object.insert(name.clone(), value.clone());
    }
    read("config.json", &Value::Object(object))
}

fn without(name: &str) -> Result<Read, Vec<Problem>> {
    let mut object = example();
    object.shift_remove(name).unwrap();
    read("config.json", &Value::Object(object))
}

fn fields(result: Result<Read, Vec<Problem>>) -> Vec<String> {
    let name = |p| if let Problem::Config { field, .. } = p { field } else { panic!("{p}") };
    result.unwrap_err().into_iter().map(name).collect()
}

#[test]
fn every_nemotron_config_of_nvidia_is_read() {
    let Some(shared) = shared() else { return };
    // Mamba, MoE, attention and MLP layers, MTP depth (spec, table of models).
    let table = [
        ("Nemotron-3-Nano-30B", [23, 23, 6, 0], 0),
        ("Nemotron-3-Super-120B", [40, 40, 8, 0], 1),
        ("Nemotron-3-Ultra-550B", [48, 48, 12, 0], 1),
        ("Nemotron-3.5-Lightning-30B", [23, 23, 6, 0], 1),
        ("Nemotron-H-56B", [54, 0, 10, 54], 0),
    ];
    let mut read = 0;
    for entry in std::fs::read_dir(shared.join("data/configs/nvidia")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap();
        let Some((_, counts, depth)) = table.iter().find(|row| name.contains(row.0)) else { continue };
        let Read { config, notes } = read_file(&folder);
        let count = |letter| config.pattern().chars().filter(|c| *c == letter).count();
        assert_eq!(['M', 'E', '*', '-'].map(count), *counts, "{name}");
        assert_eq!(config.mtp.as_ref().map_or(0, |m| m.depth), *depth, "{name}");
        assert!(config.mtp.is_none_or(|m| crate::config::letters(&m.layers) == "*E"), "{name}");
        assert_eq!(config.dtype, Some(Dtype::Bfloat16), "{name}");
        let inferred: Vec<_> = notes.iter().filter(|n| !n.contains("is assumed")).collect();
        assert!(inferred.is_empty(), "{name}: {inferred:?}");
        read += 1;
    }
    assert_eq!(read, 9);
}

#[test]
fn every_golden_config_is_read() {
    let Some(shared) = shared() else { return };
    let mut patterns = Vec::new();
    for entry in std::fs::read_dir(shared.join("golden/hf")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("nemotron_h_") {
            let config = read_file(&folder).config;
            assert_eq!(config.forward.time_step_limit, Some([0.0, f64::INFINITY]), "{name}");
            patterns.push((name, config.pattern(), config.mtp.is_some()));
        }
    }
    patterns.sort();
    let found: Vec<_> = patterns.iter().map(|(name, pattern, mtp)| (&name[11..], pattern.as_str(), *mtp)).collect();
    let expected = [
        ("dense", "M-M*-M-", false),
        ("dtclamp", "MM*-", false),
        ("fp32_ssm", "M*-M", false),
        ("latent_mtp", "MEM*E", true),
        ("moe", "MEM*EME", false),
        ("moe_groups", "ME*E", false),
        ("moe_sharded", "MEM*EM", false),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_field_that_is_not_supported_is_refused_by_its_name() {
    let refused = json!({
        "use_bias": true, "mlp_bias": true, "use_conv_bias": false, "mamba_conv_bias": false, "block_configs": [{}],
        "mlp_hidden_act": "silu", "mamba_hidden_act": "gelu", "n_shared_experts": 2, "sliding_window": 4096,
        "intermediate_size": [96], "moe_intermediate_size": [32, 48],
        "architectures": ["NemotronHPuzzleForCausalLM"], "hybrid_override_pattern": "MEGGE", "torch_dtype": "bf16",
        "tie_word_embeddings": 1, "hidden_size": 0, "vocab_size": 2_147_483_648_u64, "conv_kernel": 4.0,
        "routed_scaling_factor": -1, "time_step_limit": [0.0], "num_hidden_layers": 6, "n_group": 3, "topk_group": 2,
        "num_experts_per_tok": 9, "num_key_value_heads": 3, "n_groups": 3, "n_routed_experts": 1_048_576 * 4,
        "model_type": "mistral", "layer_norm_epsilon": "small", "eos_token_id": "2"
    });
    for (name, value) in refused.as_object().unwrap() {
        assert_eq!(fields(with(json!({ name: value }))), [name.as_str()], "{name}");
    }
    assert_eq!(fields(with(json!({"n_shared_experts": 0}))), ["n_shared_experts"]);
    assert!(with(json!({"n_shared_experts": 2, "hybrid_override_pattern": "M-*-M"})).is_ok(), "no experts, no matter");
}

#[test]
fn every_required_field_is_missed() {
    let optional = [
        "architectures",
        "torch_dtype",
        "num_hidden_layers",
        "max_position_embeddings",
        "layer_norm_epsilon",
        "tie_word_embeddings",
        "mlp_hidden_act",
        "n_shared_experts",
        "n_group",
        "topk_group",
        "norm_topk_prob",
        "routed_scaling_factor",
    ];
    for name in example().keys() {
        if optional.contains(&name.as_str()) {
            assert!(without(name).is_ok(), "{name}");
        } else {
            assert_eq!(fields(without(name)), [name.as_str()]);
        }
    }
}

#[test]
fn all_problems_come_together() {
    let result = with(json!({
        "use_bias": true, "conv_kernel": null, "mamba_d_conv": null, "head_dim": null, "n_group": "x", "mlp_bias": 3
    }));
    assert_eq!(fields(result), ["conv_kernel", "head_dim", "n_group", "use_bias", "mlp_bias"]);
}

#[test]
fn names_of_a_field_must_agree() {
    for (name, old) in [
        ("n_groups", "mamba_n_groups"),
        ("conv_kernel", "mamba_d_conv"),
        ("head_dim", "attention_head_dim"),
        ("layer_norm_epsilon", "norm_eps"),
        ("layer_norm_epsilon", "rms_norm_eps"),
        ("torch_dtype", "dtype"),
        ("n_routed_experts", "num_local_experts"),
    ] {
        let mut object = example();
        let value = object[name].clone();
        object.insert(old.into(), value.clone());
        let both = read("config.json", &Value::Object(object.clone())).unwrap();
        object.shift_remove(name);
        assert_eq!(read("config.json", &Value::Object(object.clone())).unwrap().config, both.config, "{old}");
        object.insert(name.into(), if value.is_string() { json!("float32") } else { json!(16) });
        assert!(fields(read("config.json", &Value::Object(object))).contains(&old.to_owned()), "{old}");
    }
}

#[test]
fn all_forms_of_the_layer_list_agree() {
    let expected = with(json!({})).unwrap().config;
    for form in [
        json!({"hybrid_override_pattern": "M|E*|-E"}),
        json!({"hybrid_override_pattern": null, "hybrid_layer_pattern": "ME*-E"}),
        json!({"hybrid_override_pattern": null, "layers_block_type": ["mamba", "moe", "attention", "mlp", "moe"]}),
        json!({"layer_types": ["linear_attention", "moe", "full_attention", "mlp", "moe"], "num_hidden_layers": null}),
    ] {
        assert_eq!(with(form).unwrap().config, expected);
    }
    assert_eq!(
        fields(with(json!({"layers_block_type": ["mamba", "moe", "attention", "mlp", "mlp"]}))),
        ["layers_block_type"]
    );
}

#[test]
fn mtp_is_found_in_every_form() {
    let mtp = |changes| {
        let read = with(changes).unwrap();
        read.config.mtp.map(|m| (m.depth, crate::config::letters(&m.layers), m.repeated, read.notes.len()))
    };
    let names = json!(["attention", "moe"]);
    assert_eq!(mtp(json!({"mtp_hybrid_override_pattern": "*E"})), None);
    assert_eq!(mtp(json!({"mtp_hybrid_override_pattern": "*E", "num_nextn_predict_layers": 0})), None);
    assert_eq!(mtp(json!({"num_nextn_predict_layers": 1})), Some((1, "*E".into(), None, 1)));
    assert_eq!(
        mtp(json!({"num_nextn_predict_layers": 2, "mtp_layers_block_type": names})),
        Some((2, "*E".into(), None, 0))
    );
    assert_eq!(mtp(json!({"hybrid_override_pattern": "ME*-E/*-/*-"})), Some((2, "*-".into(), None, 0)));
    let repeated =
        json!({"num_nextn_predict_layers": 3, "mtp_hybrid_override_pattern": "M", "mtp_use_repeated_layer": true});
    assert_eq!(mtp(repeated), Some((3, "M".into(), Some(true), 0)));
    let depths = json!({"hybrid_override_pattern": "ME*-E/*-/*-", "num_nextn_predict_layers": 1});
    assert_eq!(fields(with(depths)), ["hybrid_override_pattern"]);
    let letters =
        json!({"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*-", "mtp_layers_block_type": names});
    assert_eq!(fields(with(letters)), ["mtp_layers_block_type"]);
}

#[test]
fn fields_that_nobody_reads_are_noted() {
    let Read { config, notes } = with(json!({
        "attention_bias": true, "mamba_proj_bias": true, "residual_in_fp32": true, "some_new_field": 1, "norm_topk_prob": false
    })).unwrap();
    assert_eq!(config.forward.residual_in_fp32, Some(true));
    assert_eq!(notes.len(), 5, "{notes:?}");
    assert!(with(json!({})).unwrap().notes.is_empty());
}

#[test]
fn a_rebuilt_config_reads_back_as_the_same_model() {
    let mtp =
        json!({"num_nextn_predict_layers": 2, "mtp_hybrid_override_pattern": "*E", "mtp_use_repeated_layer": true});
    for changes in [json!({}), mtp, json!({"moe_latent_size": 16, "eos_token_id": [2, 11], "chunk_size": 256})] {
        let before = with(changes).unwrap().config;
        let (value, assumed) = crate::config::release::hf_json(&before);
        let after = read("config.json", &value).unwrap();
        assert!(after.notes.is_empty(), "{:?}", after.notes);
        assert_eq!(assumed.iter().any(|line| line == "chunk_size = 128"), before.forward.chunk_size.is_none());
        assert_eq!(ModelConfig { forward: before.forward.clone(), ..after.config }, before);
    }
}

#[test]
fn problems_read_as_sentences() {
    let problems = with(
        json!({"use_bias": true, "num_hidden_layers": 6, "hybrid_override_pattern": "MEG", "head_dim": "x", "dtype": "float16"}),
    );
    let text: Vec<String> = problems.unwrap_err().iter().map(ToString::to_string).collect();
    let expected = [
        "config     `hybrid_override_pattern` in `config.json`: the layer letter `G` (gated delta net) is not supported, expected `M`, `*`, `-` or `E`",
        "config     `use_bias` in `config.json`: expected false, found true: not supported",
        "config     `dtype` in `config.json`: \"float16\" contradicts `torch_dtype` \"bfloat16\"",
    ];
    assert_eq!(text, expected);
}

/// A config of a model with every second layer of another, half of its experts and no MTP.
fn halved(whole: &ModelConfig) -> (ModelConfig, Vec<usize>, Option<Moe>) {
    let kept: Vec<usize> = (0..whole.layers.len()).step_by(2).collect();
    let moe = whole.kinds().moe.map(|m| {
        let (experts, n_group) = (m.experts.div_ceil(2), 1);
        Moe { experts, top_k: m.top_k.min(experts), n_group, topk_group: 1, ..m }
    });
    let mut layers: Vec<LayerSpec> = kept.iter().map(|&i| whole.layers[i]).collect();
    for layer in &mut layers {
        if let (LayerSpec::Moe(_), Some(moe)) = (&layer, moe) {
            *layer = LayerSpec::Moe(moe);
        }
    }
    (ModelConfig { layers, mtp: None, ..whole.clone() }, kept, moe)
}

/// Every field of the text that is no longer what it was.
fn changed(old: &str, new: &str) -> Vec<String> {
    let parse = |text: &str| json::parse(text.as_bytes()).unwrap();
    let (old, new) = (parse(old), parse(new));
    let (old, new) = (old.as_object().unwrap(), new.as_object().unwrap());
    assert!(old.keys().eq(new.keys()), "no field comes, goes or moves");
    old.iter().filter(|(name, value)| new[*name] != **value).map(|(name, _)| name.clone()).collect()
}

fn reduce(text: &str, reduced: &Reduced<'_>) -> (String, Read) {
    let value = json::parse(text.as_bytes()).unwrap();
    let new = text::replace(text, &reduced_fields(value.as_object().unwrap(), reduced)).unwrap();
    let read = read("config.json", &json::parse(new.as_bytes()).unwrap()).unwrap();
    (new, read)
}

#[test]
fn every_config_of_nvidia_can_describe_half_of_its_model() {
    let Some(shared) = shared() else { return };
    let mut seen = 0;
    for entry in std::fs::read_dir(shared.join("data/configs/nvidia")).unwrap() {
        let path = entry.unwrap().path().join("config.json");
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let Ok(whole) = read("config.json", &json::parse(text.as_bytes()).unwrap()) else { continue };
        if whole.config.architecture != nemotron_h::ARCHITECTURE {
            continue;
        }
        let value = json::parse(text.as_bytes()).unwrap();
        let found: Map<String, Value> =
            text::entries(&text).into_iter().map(|e| (e.key, json::parse(text[e.value].as_bytes()).unwrap())).collect();
        assert_eq!(Value::Object(found), value);
        let (config, kept, moe) = halved(&whole.config);
        let (new, read) = reduce(&text, &Reduced { config: &config, kept, moe });
        assert_eq!(read.config, config, "{}", path.display());
        let known = [
            "hybrid_override_pattern",
            "layers_block_type",
            "num_hidden_layers",
            "n_routed_experts",
            "num_experts_per_tok",
            "n_group",
            "topk_group",
            "num_nextn_predict_layers",
        ];
        let changed = changed(&text, &new);
        assert!(changed.iter().all(|name| known.contains(&name.as_str())), "{}: {changed:?}", path.display());
        assert!(changed.contains(&"num_hidden_layers".to_owned()) || !text.contains("num_hidden_layers"));

        let all = reduce(
            &text,
            &Reduced {
                config: &whole.config,
                kept: (0..whole.config.layers.len()).collect(),
                moe: whole.config.kinds().moe,
            },
        );
        assert_eq!(all.0, text, "a model that is the same has the same config");
        seen += 1;
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn a_pattern_keeps_its_form_when_layers_or_mtp_go() {
    let text = |pattern: &str| {
        let mut object = example();
        object.insert("hybrid_override_pattern".into(), pattern.into());
        Value::Object(object).to_string()
    };
    let pattern =
        |text: &str| json::parse(text.as_bytes()).unwrap()["hybrid_override_pattern"].as_str().unwrap().to_owned();
    let old = text("ME*|-E/*E/*E");
    let whole = read("config.json", &json::parse(old.as_bytes()).unwrap()).unwrap().config;
    let (without, read) = reduce(&old, &Reduced::without_mtp(&ModelConfig { mtp: None, ..whole.clone() }));
    assert_eq!((pattern(&without).as_str(), read.config.mtp), ("ME*|-E", None));
    let config = ModelConfig { layers: whole.layers[1..].to_vec(), ..whole.clone() };
    let (cut, read) = reduce(&old, &Reduced { config: &config, kept: (1..5).collect(), moe: whole.kinds().moe });
    assert_eq!((pattern(&cut).as_str(), read.config), ("E*-E/*E/*E", config));
}
