//! What users read before anything is converted: help and the mistakes of a command line.

use crate::harness::{Dir, model, snapshot};

#[test]
fn help() {
    snapshot!(Dir::new().ok(&["--help"]));
}

#[test]
fn help_of_convert() {
    snapshot!(Dir::new().ok(&["convert", "--help"]));
}

#[test]
fn help_of_export() {
    snapshot!(Dir::new().ok(&["export", "--help"]));
}

#[test]
fn help_of_the_reading_commands() {
    let dir = Dir::new();
    let names = ["inspect", "args", "fit", "verify", "diff", "doctor", "arch", "demo"];
    snapshot!(names.map(|name| dir.ok(&[name, "--help"])).join("\n"));
}

#[test]
fn help_env() {
    snapshot!(Dir::new().ok(&["help", "env"]));
}

#[test]
fn a_missing_path_names_its_variable() {
    let dir = Dir::new();
    snapshot!([dir.run(&["convert"]), dir.run(&["convert", "."]), dir.run(&["export", "."])].join("\n"));
}

#[test]
fn a_repository_that_is_not_cached_comes_with_the_download() {
    let dir = Dir::new();
    snapshot!([dir.run(&["inspect", "org/name"]), dir.run(&["inspect", "/no/such/folder"])].join("\n"));
}

#[test]
fn a_cached_repository_is_found_by_its_id() {
    let dir = Dir::new();
    let repo = dir.path(".cache/huggingface/hub/models--org--name");
    std::fs::create_dir_all(repo.join("snapshots")).expect("a new folder");
    std::fs::create_dir(repo.join("refs")).expect("a new folder");
    std::fs::write(repo.join("refs/main"), "0123abcd").expect("a new file");
    std::os::unix::fs::symlink(model(), repo.join("snapshots/0123abcd")).expect("a new link");
    let object = dir.json(&["inspect", "org/name"]);
    assert_eq!(object["tensors"].as_array().map(Vec::len), Some(139));
}

#[test]
fn a_variable_of_the_wrong_kind_is_named() {
    let dir = Dir::new().env("TP", "two");
    snapshot!(dir.run(&["convert", model().to_str().expect("UTF-8"), "out"]));
}

#[test]
fn unknown_extra_arguments_are_refused_together() {
    let dir = Dir::new().env("MLM_EXTRA_ARGS", "--num-layer 24 --sequence-parallel --export-quant-cfg fp8 --qwerty");
    snapshot!(dir.run(&["convert", model().to_str().expect("UTF-8"), "out"]));
}

#[test]
fn the_same_format_and_flags_without_effect_are_refused() {
    let (dir, model) = (Dir::new(), model());
    let model = model.to_str().expect("UTF-8");
    let runs = [
        dir.run(&["convert", model, "out", "--to", "hf"]),
        dir.run(&["export", model, "out"]),
        dir.run(&["convert", model, "out", "--vocab-size", "5"]),
        dir.run(&["convert", model, "out", "--mcore", "0.11"]),
    ];
    snapshot!(runs.join("\n"));
}

#[test]
fn an_error_is_an_object_too() {
    let dir = Dir::new();
    snapshot!(dir.run(&["convert", "org/name", "out", "--json"]));
}

#[test]
fn an_unknown_architecture_comes_with_the_nearest() {
    snapshot!(Dir::new().run(&["arch", "show", "nemotron-h"]));
}

#[test]
fn colour_is_for_terminals_unless_it_is_asked_for() {
    let (dir, model) = (Dir::new(), model());
    let plan = ["convert", model.to_str().expect("UTF-8"), "out", "--dry-run"];
    let always = dir.ok(&[&plan[..], &["--color", "always"]].concat());
    assert!(always.contains("\x1b[1;32mSource\x1b[0m  safetensors"), "{always}");
    for plain in [dir.ok(&plan), dir.env("NO_COLOR", "1").ok(&[&plan[..], &["--color", "never"]].concat())] {
        assert!(!plain.contains('\x1b'), "{plain}");
    }
}
