//! `longshore convert` and `plan`.

use crate::harness::{Dir, model, snapshot};
use serde_json::{Value, json};
use std::process::Stdio;

fn source() -> String {
    model().display().to_string()
}

/// The header entry of an embedding.
const EMBEDDING: &str = "backbone.embeddings.weight";

#[test]
fn a_conversion_says_what_it_reads_writes_and_did() {
    let dir = Dir::new();
    let said = dir.ok(&["convert", &source(), "out"]);
    snapshot!(format!("{said}\n{}", dir.layout("out")));
}

#[test]
fn the_tracker_names_the_folder() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "a"]);
    dir.ok(&["convert", &source(), "b", "--iteration", "7"]);
    let tracker = |name: &str| std::fs::read_to_string(dir.path(name).join("latest_checkpointed_iteration.txt"));
    assert_eq!((tracker("a").expect("a file").as_str(), tracker("b").expect("a file").as_str()), ("release", "7"));
    assert!(dir.path("b/iter_0000007/.metadata").is_file());
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let dir = Dir::new();
    let said = dir.ok(&["convert", &source(), "out", "--dry-run", "--threads", "1"]);
    assert!(!dir.path("out").exists());
    assert_eq!(said, dir.ok(&["plan", &source(), "out", "--threads", "1"]));
    snapshot!(said);
}

#[test]
fn a_verbose_dry_run_names_every_tensor() {
    let said = Dir::new().ok(&["convert", &source(), "out", "--spec", "local", "--dry-run", "-v"]);
    snapshot!(said);
}

#[test]
fn variables_of_the_scripts_do_the_same_as_arguments() {
    let dir = Dir::new()
        .env("HF_MODEL_CKPT", model())
        .env("MLM_MODEL_SAVE", "out")
        .env("TP", "2")
        .env("PP", "1")
        .env("CP", "1")
        .env("MLM_EXTRA_ARGS", "--export-te-mcore-model --sequence-parallel --num-layers 12 --bf16");
    snapshot!(dir.ok(&["convert", "--spec", "local", "-v"]));
}

#[test]
fn model_arguments_that_contradict_the_model_are_refused() {
    let dir = Dir::new().env("MLM_EXTRA_ARGS", "--num-layers 24 --hidden-size 256 --swiglu");
    snapshot!(dir.run(&["convert", &source(), "out"]));
    assert!(!dir.path("out").exists());
}

#[test]
fn options_of_the_layout_are_shown() {
    let args = ["--tp", "2", "--ep", "2", "--etp", "1", "--make-vocab-size-divisible-by", "1000", "--dtype", "fp32"];
    let dir = Dir::new();
    snapshot!(dir.ok(&[&["convert", &source(), "out"][..], &args].concat()));
    let object = dir.json(&[&["convert", &source(), "out", "--dry-run"][..], &args].concat());
    assert_eq!(object["options"]["tp"], json!({"value": 2, "origin": "flag"}));
    assert_eq!(object["options"]["pp"], json!({"value": 1, "origin": "default"}));
}

#[test]
fn the_object_of_a_run_has_everything() {
    let dir = Dir::new();
    let output = dir.run(&["convert", &source(), "out", "--json", "--quiet", "--threads", "1"]);
    snapshot!(output);
}

#[test]
fn the_same_command_again_finds_the_result_complete() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "out"]);
    snapshot!(dir.ok(&["convert", &source(), "out"]));
}

#[test]
fn another_destination_is_replaced_only_by_force() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "out"]);
    snapshot!(dir.run(&["convert", &source(), "out", "--spec", "local"]));
    dir.ok(&["convert", &source(), "out", "--spec", "local", "--force"]);
    dir.ok(&["verify", "out", "--against", &source()]);
}

#[test]
fn all_problems_of_a_source_come_at_once() {
    let dir = Dir::new();
    dir.model_with("bad", |header| {
        let entry = header.remove(EMBEDDING).expect("the embedding");
        header.insert("backbone.embedding.weight".into(), entry);
        let norm = header.get_mut("backbone.norm_f.weight").expect("the last norm");
        norm["shape"] = json!([2, 128]);
    });
    snapshot!(dir.run(&["convert", "bad", "out"]));
    snapshot!("all_problems_as_an_object", dir.run(&["convert", "bad", "out", "--json", "-q"]));
    assert!(!dir.path("out").exists());
}

#[test]
fn a_tensor_too_many_is_refused_unless_it_may_be_dropped() {
    let dir = Dir::new();
    dir.model_with("more", |header| {
        let end = header.values().filter_map(|entry| entry["data_offsets"][1].as_u64()).max().expect("an end");
        header.insert("backbone.extra".into(), json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]}));
    });
    snapshot!(dir.run(&["convert", "more", "out"]));
    snapshot!("a_tensor_that_may_be_dropped", dir.ok(&["convert", "more", "out", "--allow-unmapped"]));
}

#[test]
fn quiet_says_nothing() {
    assert_eq!(Dir::new().ok(&["convert", &source(), "out", "--quiet"]), "exit 0\n");
}

#[test]
fn a_truncated_source_is_named() {
    let dir = Dir::new();
    let folder = dir.model_with("short", |_| {});
    let file = std::fs::OpenOptions::new().write(true).open(folder.join("model.safetensors")).expect("the file");
    file.set_len(file.metadata().expect("its length").len() - 1).expect("a shorter file");
    snapshot!(dir.run(&["convert", "short", "out"]));
}

#[test]
fn ctrl_c_leaves_what_the_same_command_takes_up() {
    let dir = Dir::new();
    dir.model_of_size("large", 200_000);
    let args = ["convert", "large", "out", "--max-file-size", "10MB", "--threads", "1"];
    let mut child = dir.command(&args).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let staging = || {
        let names =
            std::fs::read_dir(dir.path(".")).expect("a folder").filter_map(|entry| Some(entry.ok()?.file_name()));
        names.filter_map(|name| name.into_string().ok()).find(|name| name.starts_with("out.partial-"))
    };
    // Two finished files are enough to resume with.
    let finished = || {
        let folder = dir.path(&staging()?).join("files/release");
        Some(std::fs::read_dir(folder).ok()?.count() > 2)
    };
    while finished() != Some(true) {
        assert_eq!(child.try_wait().expect("it runs"), None, "it ended before it could be interrupted");
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130));
    assert!(!dir.path("out").exists());
    let said = String::from_utf8(output.stderr).expect("UTF-8").replace(&staging().expect("a folder"), "[STAGING]");
    snapshot!("interrupted", said);
    let again = dir.json(&args);
    assert!(again["result"]["resumed_files"].as_u64().is_some_and(|files| files > 0), "{again}");
    assert_eq!(staging(), None);
    dir.ok(&["verify", "out", "--against", "large"]);
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let dir = Dir::new();
    let files = |name: &str, threads: &str| -> Value {
        let size = ["--max-file-size", "2MB", "--tp", "2"];
        dir.json(&[&["convert", &source(), name, "--threads", threads][..], &size].concat())["result"]["files"].clone()
    };
    let one = files("one", "1");
    assert!(one.as_array().is_some_and(|files| files.len() > 10), "{one}");
    assert_eq!(one, files("four", "4"));
}
