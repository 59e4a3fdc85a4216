//! `longshore export`, and `convert` in the same direction.

use crate::harness::{Dir, model, snapshot};

fn converted(args: &[&str]) -> Dir {
    let dir = Dir::new();
    dir.ok(&[&["convert", model().to_str().expect("UTF-8"), "mc", "-q"][..], args].concat());
    dir
}

#[test]
fn an_export_says_what_it_reads_writes_and_did() {
    let dir = converted(&[]);
    let said = dir.ok(&["export", "mc", "hf"]);
    snapshot!(format!("{said}\n{}", dir.layout("hf")));
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let dir = converted(&["--spec", "local", "--tp", "2"]);
    snapshot!("export_dry_run", dir.ok(&["export", "mc", "hf", "--dry-run"]));
    assert!(!dir.path("hf").exists());
}

#[test]
fn the_way_back_is_the_identity() {
    for args in [&["--spec", "te"][..], &["--spec", "local"], &["--spec", "local", "--norms", "fused", "--tp", "2"]] {
        let dir = converted(args);
        dir.ok(&["convert", "mc", "hf"]);
        dir.ok(&["diff", model().to_str().expect("UTF-8"), "hf"]);
        for name in ["config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"] {
            let (a, b) = (std::fs::read(model().join(name)), std::fs::read(dir.path("hf").join(name)));
            assert!(a.expect("the source's file") == b.expect("the export's file"), "{name}");
        }
    }
}

#[test]
fn variables_of_the_scripts_do_the_same_as_arguments() {
    let dir = converted(&[])
        .env("MLM_MODEL_CKPT", "mc")
        .env("EXPORT_DIR", "hf")
        .env("HF_MODEL_CKPT", model())
        .env("TP", "8")
        .env("MLM_EXTRA_ARGS", "--export-te-mcore-model");
    snapshot!("export_by_variables", dir.ok(&["export", "-v"]));
}

#[test]
fn a_padded_vocabulary_is_cut_again() {
    let dir = converted(&["--make-vocab-size-divisible-by", "1000"]);
    dir.ok(&["export", "mc", "hf"]);
    dir.ok(&["diff", model().to_str().expect("UTF-8"), "hf"]);
}
