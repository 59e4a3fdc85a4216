//! The main job on real input: the bundled trained model, and layers of the shapes of Nemotron-3-Nano.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says what it skips")]

#[path = "../../longshore-convert/tests/convert/hf_folder.rs"]
mod hf_folder;
#[path = "support/program.rs"]
mod program;
#[path = "../../longshore-convert/tests/convert/random.rs"]
mod random;
#[path = "../../longshore-convert/tests/convert/shared_data.rs"]
mod shared_data;

use longshore_ckpt::Dtype;
use longshore_convert::config::{hf, json};
use program::{Dir, LONGSHORE};
use random::Random;
use serde_json::json;
use std::path::{Path, PathBuf};

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m").canonicalize().unwrap()
}

/// Converts, proves every element, exports, and compares every tensor and every other file with the source's.
fn there_and_back(dir: &Dir, source: &Path, options: &[&str]) {
    let source_name = source.to_str().unwrap();
    dir.json(LONGSHORE, &[&["convert", source_name, "mc"][..], options].concat());
    assert_eq!(dir.json(LONGSHORE, &["verify", "mc", "--against", source_name]).0["valid"], true);
    dir.json(LONGSHORE, &["export", "mc", "back"]);
    assert_eq!(dir.json(LONGSHORE, &["diff", source_name, "back"]).0["result"]["entries"], json!([]));
    for entry in std::fs::read_dir(dir.path("back")).unwrap() {
        let name = entry.unwrap().file_name();
        if name == "longshore.json" || name == "model.safetensors" {
            continue;
        }
        let (ours, theirs) = (std::fs::read(dir.path("back").join(&name)), std::fs::read(source.join(&name)));
        assert!(ours.unwrap() == theirs.unwrap(), "{options:?}: {} differs", name.display());
    }
    for name in ["mc", "back"] {
        std::fs::remove_dir_all(dir.path(name)).unwrap();
    }
}

#[test]
fn the_bundled_model_comes_back_file_for_file() {
    let dir = Dir::new();
    for options in [
        &["--tp", "2", "--pp", "2"][..],
        &["--spec", "local", "--make-vocab-size-divisible-by", "128", "--max-file-size", "1MB"],
        &["--dtype", "fp32", "--mcore", "0.14"],
    ] {
        there_and_back(&dir, &bundled(), options);
    }
}

/// Megatron's published jobs run Nano at `TP 4`, more ranks than it has query groups.
#[test]
fn layers_of_nanos_shapes_come_back_file_for_file() {
    let Some(folder) = shared_data::shared("data/configs/nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16") else { return };
    let mut value = json::parse(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    for (name, cut) in [
        ("hybrid_override_pattern", json!("M*E")),
        ("num_hidden_layers", json!(3)),
        ("n_routed_experts", json!(6)),
        ("vocab_size", json!(4000)),
    ] {
        value[name] = cut;
    }
    let config = hf::read("config.json", &value).unwrap().config;
    let (dir, rng) = (Dir::new(), &mut Random(3));
    let tensors = hf_folder::declared(&config, Dtype::Bfloat16);
    let fill = &mut |tensor: &hf_folder::Tensor, bytes: &mut [u8]| rng.finite(tensor, bytes);
    hf_folder::write(&dir.path("hf"), &serde_json::to_string(&value).unwrap(), &tensors, 1 << 40, Some(fill));
    there_and_back(&dir, &dir.path("hf"), &["--tp", "4", "--ep", "2", "--etp", "1"]);
}
