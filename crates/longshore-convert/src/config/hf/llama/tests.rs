use super::super::read;
use super::super::tests::{read_file, shared};
use crate::config::hf::Read;
use crate::config::{Activation, Attention, LayerSpec, Mlp, ModelConfig, Rotary, RotaryScaling, json};
use crate::error::Problem;
use longshore_ckpt::Dtype;
use serde_json::{Map, Value, json};

/// A small model in the form of published files.
fn example() -> Map<String, Value> {
    let value = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 64,
        "vocab_size": 256, "num_hidden_layers": 3, "intermediate_size": 96, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
        "rope_theta": 500_000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128
        }
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

/// The example with changes to its `rope_scaling`.
#[expect(clippy::needless_pass_by_value, reason = "`json!` at every call")]
fn scaled(changes: Value) -> Result<Read, Vec<Problem>> {
    let mut scaling = example()["rope_scaling"].clone();
    for (name, value) in changes.as_object().unwrap() {
        scaling[name] = value.clone();
    }
    with(json!({ "rope_scaling": scaling }))
}

fn fields(result: Result<Read, Vec<Problem>>) -> Vec<String> {
    let name = |p| if let Problem::Config { field, .. } = p { field } else { panic!("{p}") };
    result.unwrap_err().into_iter().map(name).collect()
}

fn attention(config: &ModelConfig) -> Attention {
    let LayerSpec::Attention(attention) = config.layers[0] else { panic!("{:?}", config.layers) };
    attention
}

const LLAMA3: RotaryScaling = RotaryScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 128,
};

#[test]
fn a_block_is_two_layers() {
    let Read { config, notes } = with(json!({})).unwrap();
    assert_eq!((config.pattern().as_str(), config.norm_eps, config.dtype), ("*-*-*-", 1e-5, Some(Dtype::Bfloat16)));
    let rotary = Some(Rotary { theta: 500_000.0, scaling: LLAMA3 });
    assert_eq!(attention(&config), Attention { heads: 4, kv_heads: 2, head_dim: 32, rotary });
    assert_eq!(config.layers[5], LayerSpec::Mlp(Mlp { ffn: 96, activation: Activation::SwiGlu }));
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn every_llama_config_of_the_shared_data_is_read() {
    let Some(shared) = shared() else { return };
    let at = |model: &str| read_file(&shared.join("data/configs/meta-llama").join(model));
    let llama3 = |factor| RotaryScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    for (model, blocks, heads, scaling) in [
        ("Llama-3.2-1B-Instruct", 16, [32, 8, 64], llama3(32.0)),
        ("Meta-Llama-3.1-8B", 32, [32, 8, 128], llama3(8.0)),
        ("Meta-Llama-3.1-70B", 80, [64, 8, 128], llama3(8.0)),
        ("Meta-Llama-3.1-405B", 126, [128, 8, 128], llama3(8.0)),
    ] {
        let Read { config, notes } = at(model);
        let Attention { heads: q, kv_heads, head_dim, rotary } = attention(&config);
        assert_eq!((config.layers.len(), [q, kv_heads, head_dim]), (2 * blocks, heads), "{model}");
        assert_eq!(rotary, Some(Rotary { theta: 500_000.0, scaling }), "{model}");
        assert!(notes.is_empty(), "{model}: {notes:?}");
    }
    for model in ["llama", "llama_tied"] {
        let Read { config, notes } = read_file(&shared.join("golden/hf").join(model));
        assert_eq!((config.layers.len(), config.tie_word_embeddings), (6, model == "llama_tied"), "{model}");
        assert!(notes.is_empty(), "{model}: {notes:?}");
    }
}

#[test]
fn both_forms_of_the_rotary_embedding_agree() {
    let mut scaling = example()["rope_scaling"].clone();
    let expected = with(json!({})).unwrap().config;
    // The form of transformers 5, and the older name of the type.
    scaling["rope_theta"] = json!(500_000);
    let new = with(json!({"rope_theta": null, "rope_scaling": null, "rope_parameters": scaling.clone()}));
    assert_eq!(new.unwrap().config, expected);
    assert_eq!(scaled(json!({"rope_type": null, "type": "llama3"})).unwrap().config, expected);
    // One context for both is an old form, too.
    let outer = json!({"original_max_position_embeddings": 128, "rope_scaling": {
        "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}});
    assert_eq!(with(outer).unwrap().config, expected);
    let rotary = |changes| attention(&with(changes).unwrap().config).rotary.unwrap();
    assert_eq!(rotary(json!({"rope_scaling": null})), Rotary { theta: 500_000.0, scaling: RotaryScaling::Default });
    let linear = json!({"rope_scaling": {"type": "linear", "factor": 4}});
    assert_eq!(rotary(linear).scaling, RotaryScaling::Linear { factor: 4.0 });
    let default = json!({"rope_scaling": {"rope_type": "default", "rope_theta": 500_000.0}});
    assert_eq!(rotary(default).scaling, RotaryScaling::Default);
}

#[test]
fn what_is_not_given_is_transformers_default() {
    let mut object = example();
    for name in [
        "architectures",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "hidden_act",
        "attention_bias",
        "mlp_bias",
        "rope_theta",
        "rope_scaling",
        "torch_dtype",
    ] {
        object.shift_remove(name).unwrap();
    }
    let Read { config, notes } = read("config.json", &Value::Object(object.clone())).unwrap();
    let rotary = Some(Rotary { theta: 10_000.0, scaling: RotaryScaling::Default });
    assert_eq!(attention(&config), Attention { heads: 4, kv_heads: 4, head_dim: 16, rotary });
    assert_eq!((config.norm_eps, config.max_position_embeddings, config.tie_word_embeddings), (1e-6, 2048, false));
    assert_eq!(notes.len(), 4, "{notes:?}");
    for name in object.keys().filter(|name| *name != "model_type") {
        let mut without = object.clone();
        without.shift_remove(name);
        assert_eq!(fields(read("config.json", &Value::Object(without))), [name.as_str()]);
    }
}

#[test]
fn a_field_that_is_not_supported_is_refused_by_its_name() {
    let refused = json!({
        "attention_bias": true, "mlp_bias": true, "hidden_act": "gelu", "sliding_window": 4096, "head_dim": 7,
        "architectures": ["LlamaForSequenceClassification"], "hidden_size": 0, "vocab_size": 0, "intermediate_size": 0,
        "num_attention_heads": 5, "num_key_value_heads": 3, "num_hidden_layers": 4097, "rms_norm_eps": 0,
        "rope_theta": 0, "rope_scaling": "llama3", "partial_rotary_factor": 0.5, "tie_word_embeddings": "yes",
        "torch_dtype": "bf16", "max_position_embeddings": -1
    });
    for (name, value) in refused.as_object().unwrap() {
        assert_eq!(fields(with(json!({ name: value }))), [name.as_str()], "{name}");
    }
    for theta in ["0", "-1", "NaN", "Infinity", "-Infinity", "1e39", "0.5", "\"big\"", "true"] {
        let text = format!(
            r#"{{"model_type": "llama", "hidden_size": 8, "vocab_size": 8, "num_hidden_layers": 1, "rope_theta": {theta},
            "intermediate_size": 8, "num_attention_heads": 2}}"#
        );
        assert_eq!(fields(read("config.json", &json::parse(text.as_bytes()).unwrap())), ["rope_theta"], "{theta}");
    }
    // Sizes that no computer holds, each below the limit of its own.
    let most = (1u64 << 31) - 1;
    let large = json!({"hidden_size": 1 << 30, "intermediate_size": most, "vocab_size": most, "head_dim": most - 1});
    assert_eq!(fields(with(large)), ["vocab_size", "num_attention_heads", "intermediate_size"]);
    let gated = json!({"hidden_size": 1 << 29, "intermediate_size": 1 << 30});
    assert_eq!(fields(with(gated)), ["intermediate_size"], "gate and up together");
    // More blocks than memory would hold as a list.
    assert_eq!(fields(with(json!({"num_hidden_layers": most}))), ["num_hidden_layers"]);
}

#[test]
fn a_rotary_embedding_that_is_not_known_is_refused_by_its_name() {
    for kind in ["yarn", "dynamic", "longrope", "mrope", "su", ""] {
        let problems = scaled(json!({"rope_type": kind})).unwrap_err();
        assert!(problems[0].to_string().contains(&format!("found \"{kind}\": not supported")), "{problems:?}");
        assert_eq!(fields(Err(problems)), ["rope_scaling.rope_type"]);
    }
    let refused = json!({
        "rope_type": 3, "factor": 0.5, "low_freq_factor": 0, "high_freq_factor": 1, "rope_theta": 10_000,
        "original_max_position_embeddings": 0, "partial_rotary_factor": 0.25, "type": "linear"
    });
    for (name, value) in refused.as_object().unwrap() {
        assert_eq!(fields(scaled(json!({ name: value }))), [format!("rope_scaling.{name}")], "{name}");
    }
    for name in ["factor", "low_freq_factor", "high_freq_factor"] {
        assert_eq!(fields(scaled(json!({ name: null }))), [format!("rope_scaling.{name}")], "{name}");
    }
    let other = with(json!({"rope_parameters": {"rope_type": "default"}}));
    assert_eq!(fields(other), ["rope_parameters"], "two that disagree");
}

#[test]
fn all_problems_come_together() {
    let result = with(json!({
        "hidden_size": null, "num_attention_heads": 0, "rope_theta": -1, "rope_scaling": {"type": "linear", "factor": 0},
        "attention_bias": true, "hidden_act": "relu"
    }));
    let expected =
        ["hidden_size", "num_attention_heads", "rope_theta", "rope_scaling.factor", "attention_bias", "hidden_act"];
    assert_eq!(fields(result), expected);
}

#[test]
fn fields_that_nobody_reads_are_noted() {
    let notes =
        with(json!({"some_new_field": 1, "rope_scaling": {"rope_type": "default", "beta_fast": 32}})).unwrap().notes;
    let unknown = |name: &str| format!("`{name}` is not known and not taken into account");
    assert_eq!(notes, [unknown("rope_scaling.beta_fast"), unknown("some_new_field")]);
}
