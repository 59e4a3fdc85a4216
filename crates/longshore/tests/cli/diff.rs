//! `longshore diff`.

use crate::harness::{Dir, model, snapshot};
use serde_json::json;
use std::os::unix::fs::FileExt;

fn source() -> String {
    model().display().to_string()
}

#[test]
fn equal_checkpoints_are_equal_across_formats() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "mc", "-q"]);
    snapshot!("diff_equal", dir.ok(&["diff", &source(), "mc"]));
    snapshot!("diff_equal_other_way", dir.ok(&["diff", "mc", &source()]));
}

#[test]
fn every_difference_is_listed() {
    let dir = Dir::new();
    let folder = dir.model_with("other", |header| {
        let entry = header.remove("backbone.layers.0.norm.weight").expect("a norm");
        header.insert("backbone.layers.0.other.weight".into(), entry);
        let norm = header.get_mut("backbone.layers.1.norm.weight").expect("a norm");
        norm["shape"] = json!([2, 128]);
    });
    // Two bytes of the last tensor: one bfloat16 becomes 1.0.
    let file = std::fs::OpenOptions::new().write(true).open(folder.join("model.safetensors")).expect("the file");
    let len = file.metadata().expect("its length").len();
    file.write_all_at(&[0x80, 0x3f], len - 2).expect("a writable file");
    snapshot!("diff_different", dir.run(&["diff", &source(), "other"]));
    let object = dir.json(&["diff", &source(), "other"]);
    assert_eq!(object["equal"], false);
}

#[test]
fn a_tolerance_forgives_rounding() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "mc", "-q", "--dtype", "fp16"]);
    assert!(dir.run(&["diff", &source(), "mc", "--tolerance", "bits"]).starts_with("exit 1\n"));
    dir.ok(&["diff", &source(), "mc", "--tolerance", "1"]);
}

#[test]
fn nothing_compared_proves_nothing() {
    snapshot!("diff_nothing", Dir::new().run(&["diff", &source(), &source(), "no.such.*"]));
}
