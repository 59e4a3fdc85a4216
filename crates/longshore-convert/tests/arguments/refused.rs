//! What no argument can say is refused, everything at once.

use crate::{bundled, changed, outline, shared_data};
use longshore_convert::Problem;
use longshore_convert::arguments::{arguments, conf, run_config};
use longshore_convert::outline::Outline;
use serde_json::{Value, json};

fn fields(problems: &[Problem]) -> Vec<&str> {
    fn field(problem: &Problem) -> &str {
        if let Problem::Config { field, .. } = problem { field } else { "" }
    }
    problems.iter().map(field).collect()
}

#[test]
fn everything_unknown_is_named_at_once() {
    let mut config = changed(
        "MM-",
        &json!({"conv_kernel": 3, "num_nextn_predict_layers": 2, "mtp_hybrid_override_pattern": "M-", "mtp_layers_block_type": null}),
    );
    config.as_object_mut().expect("an object").remove("dtype");
    let outline = outline(&config).unwrap_or_else(|e| panic!("{e}"));
    let expected = ["torch_dtype", "num_attention_heads", "conv_kernel", "mtp_use_repeated_layer"];
    assert_eq!(fields(&arguments(&outline, false).expect_err("unknown")), expected);
    assert_eq!(fields(&run_config(&outline).expect_err("unknown")), expected);
}

#[test]
fn what_a_megatron_checkpoint_does_not_store_can_come_from_a_base() {
    let Some(stored) = shared_data::shared("golden/torch_dist/nemotron_h_moe_te_tp2_ep2_etp1") else { return };
    let Some(base) = shared_data::shared("golden/hf/nemotron_h_moe") else { return };
    let outline = Outline::open(&stored, None).expect("a checkpoint");
    let problems = arguments(&outline, false).expect_err("no top-k is stored");
    assert_eq!(fields(&problems), ["moe_router_topk", "moe_router_topk_scaling_factor"]);
    let outline = Outline::open(&stored, Some(&base)).expect("a checkpoint");
    assert!(arguments(&outline, false).is_ok());
}

fn llama(scaling: &Value) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128_256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "hidden_act": "silu", "tie_word_embeddings": false, "rope_scaling": scaling
    })
}

#[test]
fn llama_is_a_gpt_model() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let outline = outline(&llama(&scaling)).unwrap_or_else(|e| panic!("{e}"));
    let said = arguments(&outline, false).unwrap_or_else(|p| panic!("{p:?}"));
    let words: Vec<String> =
        said.iter().map(|a| a.value.as_ref().map_or_else(|| a.name.clone(), |v| format!("{} {v}", a.name))).collect();
    for expected in [
        "--num-layers 32",
        "--ffn-hidden-size 14336",
        "--group-query-attention",
        "--num-query-groups 8",
        "--position-embedding-type rope",
        "--rotary-base 500000",
        "--use-rope-scaling",
        "--rope-scaling-factor 8.0",
        "--swiglu",
        "--untie-embeddings-and-output-weights",
        "--export-model-type GPTModel",
    ] {
        assert!(words.iter().any(|word| word == expected), "{expected}: {words:?}");
    }
    assert_eq!(fields(&run_config(&outline).expect_err("another family")), ["architectures"]);
}

#[test]
fn rotary_scaling_without_an_argument_is_refused() {
    let other = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 4096});
    let half = json!({"rope_type": "linear", "factor": 2.5});
    for (scaling, field) in [(other, "rope_scaling"), (half, "rope_scaling.factor")] {
        let outline = outline(&llama(&scaling)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(fields(&arguments(&outline, false).expect_err("no argument")), [field]);
    }
    let whole = outline(&llama(&json!({"rope_type": "linear", "factor": 2.0}))).unwrap_or_else(|e| panic!("{e}"));
    let said = arguments(&whole, false).unwrap_or_else(|p| panic!("{p:?}"));
    let factor = said.iter().find(|a| a.name == "--rotary-seq-len-interpolation-factor").expect("it is said");
    assert_eq!(factor.value.as_deref(), Some("2"));
}

#[test]
fn without_a_tokenizer_the_file_asks_for_one() {
    let outline = Outline::open(&bundled(), None).expect("the bundled model");
    let said = arguments(&outline, false).expect("known");
    assert!(conf(&said, None).contains("${HF_MODEL_CKPT:?"));
    assert!(conf(&said, Some("a b")).contains("HF_MODEL_CKPT='a b'\n"));
}
