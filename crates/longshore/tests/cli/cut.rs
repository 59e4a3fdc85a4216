//! `longshore cut`, and `--mtp` of the other writing commands.

use crate::harness::{Dir, model, snapshot};
use crate::variant::{read, with_guesses};
use serde_json::json;

fn source() -> String {
    model().display().to_string()
}

#[test]
fn a_cut_says_what_it_keeps_and_runs_in_both_formats() {
    let dir = Dir::new();
    let cut = ["--layers", "0..4,7,8", "--experts", "3"];
    let said = dir.ok(&[&["cut", &source(), "hf"][..], &cut].concat());
    snapshot!(format!("{said}\n{}", dir.layout("hf")));
    dir.ok(&["convert", &source(), "whole", "-q"]);
    dir.ok(&[&["cut", "whole", "mc", "-q"][..], &cut].concat());
    for name in ["hf", "mc"] {
        dir.ok(&["verify", name, "-q"]);
    }
    dir.ok(&["diff", "hf", "mc"]);
    let text = |name| dir.ok(&["generate", name, "Once upon a time", "--max-new", "8", "-q"]);
    assert_eq!(text("hf"), text("mc"));
    assert!(text("hf").len() > 20);
    // The same command again finds its result.
    assert!(dir.ok(&[&["cut", &source(), "hf"][..], &cut].concat()).contains("Complete"));
    assert!(dir.run(&["cut", &source(), "hf", "--layers", "0"]).starts_with("exit 2"));
    dir.ok(&["cut", &source(), "hf", "--layers", "0", "--force"]);
    assert_eq!(dir.json(&["inspect", "hf"])["tensors"].as_array().map(Vec::len), Some(3 + 9));
}

#[test]
fn a_dry_run_of_a_cut_plans_and_writes_nothing() {
    let dir = Dir::new();
    let said = dir.ok(&["cut", &source(), "out", "--layers", "1,2", "--experts", "2", "--dry-run", "--threads", "1"]);
    assert!(!dir.path("out").exists());
    snapshot!(said);
}

#[test]
fn the_object_of_a_cut_has_what_is_kept() {
    let dir = Dir::new();
    let said = dir.json(&["cut", &source(), "out", "--layers", "2..5", "--mtp", "drop"]);
    assert_eq!(said["command"], "cut");
    assert_eq!(said["options"]["layers"], json!({"value": "2..5", "origin": "flag"}));
    assert_eq!(said["options"]["mtp"], json!({"value": "drop", "origin": "flag"}));
    assert_eq!(said["summary"]["layers"], "12 layers: 4 M, 4 E, 2 *, 2 -");
    assert_eq!(said["summary"]["target_layers"], "3 layers: 1 M, 1 *, 1 -");
    assert_eq!(said["result"]["already_complete"], false);
}

#[test]
fn a_cut_that_cannot_be_is_refused() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "mc", "-q"]);
    let quantize = ["--quant-cfg", "MXFP8_DEFAULT_CFG", "--skip-generate", "-q"];
    dir.ok(&[&["quantize", &source(), "quantized"][..], &quantize].concat());
    let said = [
        dir.run(&["cut", &source(), "out", "--layers", "0..13,14,20..30", "--experts", "9"]),
        dir.run(&["cut", "mc", "out", "--layers", "0..2", "--experts", "9"]),
        dir.run(&["cut", &source(), "out", "--layers", "4..4,x,1,0"]),
        dir.run(&["cut", &source(), "out", "--experts", "0"]),
        dir.run(&["cut", "quantized", "out", "--layers", "0..2"]),
        dir.run(&["cut", "absent", "out", "--layers", "0..2"]),
    ];
    assert!(!dir.path("out").exists());
    snapshot!(said.join("\n"));
}

#[test]
fn mtp_is_dropped_missed_and_lent() {
    let dir = Dir::new();
    with_guesses(&dir, "hf");
    let dropped = dir.ok(&["convert", "hf", "mc", "--mtp", "drop"]);
    let said = [
        dropped,
        dir.ok(&["verify", "mc", "--against", "hf"]),
        dir.run(&["export", "mc", "out", "--base", "hf"]),
        dir.run(&["export", "mc", "out", "--mtp-from-base"]),
        dir.run(&["convert", "hf", "out", "--mtp-from-base"]),
        dir.ok(&["export", "mc", "out", "--base", "hf", "--mtp-from-base"]),
        dir.ok(&["verify", "out", "--against", "mc"]),
    ];
    snapshot!(said.join("\n"));
    dir.ok(&["diff", "hf", "out"]);
    assert!(read(&dir.path("hf/model.safetensors")) == read(&dir.path("out/model.safetensors")));
    dir.ok(&["export", "mc", "bare", "--base", "hf", "--mtp", "drop"]);
    dir.ok(&["generate", "bare", "Once upon a time", "--max-new", "2", "-q"]);
}

#[test]
fn help_of_cut() {
    snapshot!(Dir::new().ok(&["cut", "--help"]));
}
