//! A Llama folder: what runs, and what is refused before anything is written.

#[path = "../../../longshore-infer/tests/llama/folder.rs"]
mod folder;

use crate::harness::{Dir, snapshot};

/// A folder with a Llama model at `hf`.
fn dir() -> Dir {
    let dir = Dir::new();
    std::fs::create_dir(dir.path("hf")).expect("a new folder");
    folder::write(&dir.path("hf"));
    dir
}

#[test]
fn it_runs() {
    let dir = dir();
    let said = dir.json(&[
        "generate",
        "hf",
        "--prompt-ids",
        "1,17,5,39",
        "--max-new",
        "6",
        "--ignore-eos",
        "--precision",
        "f32",
    ]);
    assert_eq!(said["ids"], serde_json::json!([31, 9, 29, 34, 21, 3]), "{said}");
    std::fs::write(dir.path("ids.jsonl"), "{\"input_ids\": [1, 17, 5, 39, 2, 3, 4]}\n").expect("a writable folder");
    dir.ok(&["logits", "hf", "hf", "--prompt-file", "ids.jsonl", "--per-layer"]);
    dir.ok(&["eval", "ppl", "hf", "--data", "ids.jsonl"]);
    let kl = dir.json(&["eval", "kl", "hf", "hf", "--data", "ids.jsonl"]);
    assert_eq!(kl["schema"], 1, "{kl}");
}

#[test]
fn it_is_inspected_and_compared() {
    let dir = dir();
    snapshot!("llama_inspect", dir.ok(&["inspect", "hf", "model.layers.0.*"]));
    dir.ok(&["diff", "hf", "hf"]);
    dir.ok(&["verify", "hf"]);
}

#[test]
fn what_writes_refuses_it() {
    let dir = dir();
    let commands: [&[&str]; 5] = [
        &["convert", "hf", "out"],
        &["plan", "hf", "out"],
        &["convert", "hf", "out", "--spec", "local", "--tp", "2", "--dry-run"],
        &["quantize", "hf", "out", "--quant-cfg", "FP8_DEFAULT_CFG"],
        &["quantize", "hf", "out", "--quant-cfg", "NVFP4_DEFAULT_CFG", "--dry-run"],
    ];
    let said = commands.map(|args| format!("$ longshore {}\n{}", args.join(" "), dir.run(args)));
    assert_eq!(dir.layout("."), "hf/config.json\nhf/model.safetensors");
    snapshot!("llama_refused", said.join("\n"));
}

#[test]
fn a_config_that_is_not_supported_says_all_of_it() {
    let dir = dir();
    let path = dir.path("hf/config.json");
    let config = std::fs::read_to_string(&path).expect("a config");
    let config = config.replace("\"llama3\"", "\"yarn\"").replace("1000.0", "NaN").replace("\"silu\"", "\"gelu\"");
    std::fs::write(&path, config.replace("\"mlp_bias\": false", "\"mlp_bias\": true")).expect("a writable folder");
    snapshot!("llama_problems", dir.run(&["generate", "hf", "--prompt-ids", "1"]));
}
