//! `longshore demo`.

use crate::harness::{Dir, snapshot};

#[test]
fn the_demo_proves_both_specs_and_leaves_nothing() {
    let dir = Dir::new();
    let said = dir.ok(&["demo"]);
    let process = said.split("longshore-demo-").nth(1).and_then(|rest| rest.split('/').next()).expect("a folder");
    // Calibration runs in bfloat16, whose last bits are the processor's.
    let scores = said.lines().find(|line| line.starts_with("quantized ")).expect("its scores");
    snapshot!("demo", said.replace(process, "[PID]").replace(scores, "quantized [SCORES]"));
    assert_eq!(dir.layout("."), "");
}

#[test]
fn the_demo_keeps_what_it_wrote_on_request() {
    let dir = Dir::new();
    assert_eq!(dir.json(&["demo", "--dir", "kept"])["equal"], true);
    dir.ok(&["verify", "kept/local"]);
}
