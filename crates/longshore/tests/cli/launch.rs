//! `longshore args` and `longshore fit`.

use crate::harness::{Dir, model, snapshot};
use serde_json::json;
use std::process::Command;

fn source() -> String {
    model().display().to_string()
}

#[test]
fn arguments_in_three_forms() {
    let dir = Dir::new();
    snapshot!("args_conf", dir.ok(&["args", &source()]));
    snapshot!("args_line", dir.ok(&["args", &source(), "--form", "args"]));
    snapshot!("args_run_config", dir.ok(&["args", &source(), "--form", "run-config"]));
}

#[test]
fn a_megatron_checkpoint_has_the_arguments_of_its_source() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "mc", "-q"]);
    let arguments = |checkpoint: &str| dir.json(&["args", checkpoint])["arguments"].clone();
    assert_eq!(arguments("mc"), arguments(&source()));
    assert!(dir.ok(&["args", "mc"]).contains("HF_MODEL_CKPT=mc/release/hf\n"));
    // From the stored arguments alone.
    std::fs::remove_dir_all(dir.path("mc/release/hf")).expect("it was there");
    assert_eq!(arguments("mc"), arguments(&source()));
    assert!(dir.ok(&["args", "mc"]).contains("${HF_MODEL_CKPT:?"));
}

#[test]
fn bash_sources_the_file() {
    let dir = Dir::new();
    std::fs::write(dir.path("conf.sh"), dir.output(&["args", &source()]).stdout).expect("a writable folder");
    let script = "set -e; source ./conf.sh; printf '%s\\n' \"$TOKENIZER_MODEL\" ${MODEL_ARGS}";
    let output = Command::new("bash").args(["-c", script]).current_dir(dir.path("")).output().expect("there is a bash");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (tokenizer, words) = text.split_once('\n').expect("lines");
    assert_eq!(tokenizer, source());
    let line = dir.output(&["args", &source(), "--form", "args"]).stdout;
    let line = String::from_utf8(line).expect("UTF-8").replace('\'', "");
    assert_eq!(words.lines().collect::<Vec<_>>(), line.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn what_is_left_out_or_unknown_is_said() {
    let dir = Dir::new();
    let config = std::fs::read_to_string(model().join("config.json")).expect("a config");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config["num_nextn_predict_layers"] = json!(1);
    std::fs::create_dir(dir.path("mtp")).expect("a new folder");
    std::fs::write(dir.path("mtp/config.json"), config.to_string()).expect("a writable folder");
    let said = dir.json(&["args", "mtp"]);
    assert_eq!(said["notes"].as_array().map(Vec::len), Some(2), "{said}");
    assert!(dir.ok(&["args", "mtp", "--mtp"]).contains("--hybrid-layer-pattern ME*-MEM*E-ME/*E \\"));
    config["conv_kernel"] = json!(3);
    config.as_object_mut().expect("an object").remove("dtype");
    std::fs::write(dir.path("mtp/config.json"), config.to_string()).expect("a writable folder");
    snapshot!("args_unknown", dir.run(&["args", "mtp"]));
}

#[test]
fn layouts_that_fit() {
    let dir = Dir::new();
    snapshot!("fit", dir.ok(&["fit", &source(), "--gpus", "4x24M"]));
    let said = dir.json(&["fit", &source(), "--gpus", "4x24M"]);
    assert_eq!(said["recommended"], said["layouts"][0]);
    assert_eq!(said["layouts"].as_array().map(Vec::len), Some(19));
    assert_eq!(dir.ok(&["fit", &source(), "--gpus", "4x24M", "--all"]).matches("  fits").count(), 18);
}

#[test]
fn nothing_that_fits_is_the_answer_no() {
    let dir = Dir::new();
    snapshot!(
        "fit_nothing",
        [
            dir.run(&["fit", &source(), "--gpus", "2x1M"]),
            dir.run(&["fit", &source(), "--gpus", "8x80G", "--tp", "3"]),
            dir.run(&["fit", &source(), "--gpus", "4x80G", "--tp", "2", "--pp", "4"]),
            dir.run(&["fit", &source(), "--gpus", "eight"]),
        ]
        .join("\n")
    );
}
