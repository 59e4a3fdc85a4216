//! Peak memory does not grow with the model: a tensor of 300 MB passes through a few megabytes.

#[path = "../../longshore-convert/tests/convert/hf_folder.rs"]
mod hf_folder;
#[path = "support/program.rs"]
mod program;

use longshore_ckpt::Dtype;
use longshore_convert::config::{Activation, Attention, LayerSpec, Mamba, Mlp, ModelConfig, release};
use program::{Dir, LONGSHORE};

/// Bytes.
const LIMIT: u64 = 120 << 20;

/// About 400 MB in bfloat16, 300 MB of it one tensor.
fn model() -> ModelConfig {
    let layers = vec![
        LayerSpec::Mamba(Mamba { heads: 32, head_dim: 64, groups: 8, state: 128, conv_kernel: 4 }),
        LayerSpec::Attention(Attention { heads: 32, kv_heads: 2, head_dim: 128, rotary: None }),
        LayerSpec::Mlp(Mlp { ffn: 16384, activation: Activation::ReluSquared }),
    ];
    let base = ModelConfig::minimal("NemotronHForCausalLM", 1024, 150_000);
    ModelConfig { layers, tie_word_embeddings: true, dtype: Some(Dtype::Bfloat16), ..base }
}

#[test]
fn converting_and_exporting_a_large_tensor_takes_little_memory() {
    let (dir, config) = (Dir::new(), model());
    let text = serde_json::to_string(&release::hf_json(&config).0).unwrap();
    hf_folder::write(&dir.path("hf"), &text, &hf_folder::declared(&config, Dtype::Bfloat16), 1 << 40, None);
    let size = std::fs::metadata(dir.path("hf/model.safetensors")).unwrap().len();
    assert!(size > 380_000_000, "{size}");
    // The cut makes every row of out_proj and linear_fc2 two pieces.
    for args in [&["convert", "hf", "mc", "--tp", "2"][..], &["export", "mc", "back"]] {
        let report = dir.json(LONGSHORE, &[args, &["--threads", "2"]].concat()).0;
        let peak = report["peak_memory"].as_u64().unwrap();
        println!("{}: peak {:.1} MiB", args[0], peak as f64 / f64::from(1 << 20));
        assert!(peak < LIMIT, "{args:?}: {peak} bytes");
    }
}
