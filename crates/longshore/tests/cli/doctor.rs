//! `longshore doctor`.

use crate::harness::{Dir, model, snapshot};
use crate::variant::with_tensors;

fn source() -> String {
    model().display().to_string()
}

#[test]
fn the_bundled_model_is_sound_in_both_formats() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "mc", "-q"]);
    snapshot!("doctor_sound", dir.ok(&["doctor", &source()]));
    snapshot!("doctor_sound_mc", dir.ok(&["doctor", "mc", "--against", &source(), "-q"]));
}

#[test]
fn what_is_wrong_is_said_with_its_cause() {
    let dir = Dir::new();
    with_tensors(&dir, "damaged", |tensors| {
        // The pre-norms of Mamba layers at one, in bfloat16, and one of two MLPs gone.
        for layer in [0, 4, 6, 10] {
            let norm = tensors.get_mut(&format!("backbone.layers.{layer}.norm.weight")).expect("a norm");
            norm.2 = [0x80, 0x3f].repeat(256);
        }
        tensors.get_mut("backbone.layers.3.mixer.up_proj.weight").expect("a linear").2.fill(0);
    });
    snapshot!("doctor_damaged", dir.run(&["doctor", "damaged"]));
    snapshot!("doctor_against", dir.run(&["doctor", "damaged", "--against", &source(), "-v"]));
    let object = dir.json(&["doctor", "damaged", "--against", &source()]);
    assert_eq!(object["sound"], false);
    let findings = object["result"]["findings"].as_array().expect("findings");
    let checks: Vec<_> = findings.iter().map(|finding| finding["check"].as_str().expect("a name")).collect();
    assert_eq!(checks, ["all_zero", "norms_at_one", "router_bias_at_zero"]);
    assert_eq!(findings[1]["severity"], "broken");
    assert_eq!(findings[1]["tensors"].as_array().map(Vec::len), Some(4));
    assert_eq!(object["result"]["differing"].as_array().map(Vec::len), Some(5));
    assert_eq!(object["result"]["differing"][0]["explained_by"], "norms_at_one");
}

#[test]
fn what_is_no_checkpoint_is_an_error() {
    let dir = Dir::new();
    snapshot!(
        "doctor_nothing",
        [dir.run(&["doctor", "."]), dir.run(&["doctor", &source(), "--against", "."])].join("\n")
    );
}
