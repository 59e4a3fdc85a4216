//! `longshore inspect` and `arch`.

use crate::harness::{Dir, model, snapshot};
use std::io::Read;
use std::process::Stdio;

fn source() -> String {
    model().display().to_string()
}

#[test]
fn a_hugging_face_folder() {
    snapshot!("inspect_hf", Dir::new().ok(&["inspect", &source()]));
}

#[test]
fn a_megatron_folder_by_its_root_and_by_its_inner_folder() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "mc", "-q"]);
    let said = dir.ok(&["inspect", "mc"]);
    assert_eq!(said, dir.ok(&["inspect", "mc/release"]));
    snapshot!("inspect_mc", said);
    snapshot!("inspect_mc_files", dir.ok(&["inspect", "mc", "--files"]));
    snapshot!("inspect_mc_raw", dir.ok(&["inspect", "mc", "--raw"]));
}

#[test]
fn the_modules_of_a_model() {
    let dir = Dir::new();
    let folder = dir.ok(&["inspect", &source(), "--structure"]);
    dir.ok(&["convert", &source(), "te", "-q"]);
    dir.ok(&["convert", &source(), "local", "--spec", "local", "-q"]);
    // A folder shows what a conversion of it is loaded by.
    assert_eq!(folder, dir.ok(&["inspect", "te", "--structure"]));
    assert!(
        folder.contains("(in_proj): TELayerNormColumnParallelLinear  layer_norm_weight [256], weight ["),
        "{folder}"
    );
    let local = dir.ok(&["inspect", "local", "--structure"]);
    assert!(local.contains("(in_proj): ColumnParallelLinear  weight ["), "{local}");
    assert!(local.contains(" x MLP\n"), "{local}");
    let object = dir.json(&["inspect", "local", "--structure"]);
    assert_eq!(object["structure"]["class"], "MambaModel");
    dir.ok(&["quantize", &source(), "fp8", "--quant-cfg", "mxfp8", "--skip-generate", "-q"]);
    let quantized = dir.ok(&["inspect", "fp8", "--structure"]);
    assert!(quantized.contains("(weight_quantizer): TensorQuantizer  mxfp8\n"), "{quantized}");
}

#[test]
fn a_pattern_selects_tensors() {
    let dir = Dir::new();
    snapshot!("inspect_glob", dir.ok(&["inspect", &source(), "*.layers.1?.norm.weight"]));
    let object = dir.json(&["inspect", &source(), "*.norm_f.weight"]);
    assert_eq!(object["tensors"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_folder_without_a_config_is_shown_too() {
    let dir = Dir::new();
    let folder = dir.model_with("bare", |_| {});
    std::fs::remove_file(folder.join("config.json")).expect("it was there");
    snapshot!("inspect_without_config", dir.ok(&["inspect", "bare", "*.norm_f.weight"]));
}

#[test]
fn a_folder_without_a_checkpoint_is_no_checkpoint() {
    snapshot!("inspect_nothing", Dir::new().run(&["inspect", "."]));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let dir = Dir::new();
    let mut child = dir.command(&["inspect", &source(), "--json"]).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0; 1]).expect("a byte");
    drop(stdout);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn architectures_and_their_rules() {
    let dir = Dir::new();
    snapshot!("arch_list", dir.ok(&["arch", "list"]));
    snapshot!("arch_show", dir.ok(&["arch", "show", "NemotronHForCausalLM"]));
    snapshot!("arch_rules", dir.ok(&["arch", "rules", "nemotron_h"]));
    snapshot!("arch_show_llama", dir.ok(&["arch", "show", "llama"]));
    snapshot!("arch_rules_llama", dir.ok(&["arch", "rules", "LlamaForCausalLM"]));
}
