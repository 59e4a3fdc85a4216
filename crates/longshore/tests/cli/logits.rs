//! `longshore logits`: how two checkpoints differ, and where.

use crate::generate::shown;
use crate::harness::{Dir, model};
use crate::variant::{self, Tensors};
use serde_json::{Value, json};

fn source() -> String {
    model().display().to_string()
}

fn object(dir: &Dir, args: &[&str]) -> Value {
    let object = dir.json(&[&["logits"], args].concat());
    assert_eq!(object["error"], Value::Null, "{args:?}");
    object
}

/// A copy of the model with one bfloat16 of a tensor set.
fn with_value(dir: &Dir, name: &str, tensor: &str, index: usize, bits: u16) {
    variant::with_tensors(dir, name, |tensors| {
        let data = &mut tensors.get_mut(tensor).expect("a tensor").2;
        data[2 * index..2 * index + 2].copy_from_slice(&bits.to_le_bytes());
    });
}

/// A tensor that all tokens pass.
const LAYER_5: &str = "backbone.layers.5.norm.weight";

#[test]
fn one_checkpoint_shows_its_likely_tokens() {
    let dir = Dir::new();
    shown!("logits_one", dir.ok(&["logits", &source()]));
    let object = object(&dir, &[&source(), "--prompt", "hello world"]);
    let generated = dir.json(&["generate", &source(), "hello world", "--max-new", "1", "--top-logprobs", "5"]);
    assert_eq!(object["prompts"][0]["ids"], generated["prompt_ids"]);
    assert_eq!(object["prompts"][0]["next"], generated["top_logprobs"][0]);
}

#[test]
fn equal_checkpoints_differ_by_nothing() {
    let dir = Dir::new();
    dir.ok(&["convert", &source(), "mc", "-q"]);
    shown!("logits_equal", dir.ok(&["logits", &source(), "mc", "--per-layer", "--tolerance", "0"]));
}

#[test]
fn the_first_layer_that_differs_is_the_changed_one() {
    let dir = Dir::new();
    with_value(&dir, "other", LAYER_5, 10, 0x4000);
    let args = [&source(), "other", "--per-layer", "--precision", "f32"];
    let object = object(&dir, &args);
    let max = |layer: &Value| layer["hidden"]["max"].as_f64().expect("a number");
    let layers = object["layers"].as_array().expect("layers");
    let different: Vec<bool> = layers.iter().map(|layer| max(layer) > 0.0).collect();
    assert_eq!(different, (0..12).map(|layer| layer >= 5).collect::<Vec<_>>());
    assert!(object["prompts"][0]["logits"]["max"].as_f64() > Some(0.0), "{object}");
    assert!(object["prompts"][0]["kl_max"].as_f64() > Some(0.0), "{object}");
}

#[test]
fn tokens_that_go_to_other_experts_are_counted() {
    let dir = Dir::new();
    variant::with_tensors(&dir, "other", |tensors| {
        let (_, _, gate) = tensors.get_mut("backbone.layers.5.mixer.gate.weight").expect("a router");
        gate.rotate_left(512);
    });
    let object = object(&dir, &[&source(), "other", "--per-layer"]);
    let rerouted: Vec<&Value> = object["layers"].as_array().expect("layers").iter().map(|l| &l["rerouted"]).collect();
    assert_eq!(rerouted[..5], [&Value::Null, &0.into(), &Value::Null, &Value::Null, &Value::Null]);
    assert!(rerouted[5].as_u64() > Some(0), "{rerouted:?}");
}

#[test]
fn a_tolerance_decides_the_exit_status() {
    let dir = Dir::new();
    with_value(&dir, "other", LAYER_5, 10, 0x4000);
    let run = |tolerance: &str| dir.output(&["logits", &source(), "other", "--tolerance", tolerance]).status.code();
    assert_eq!([run("1000"), run("1e-9")], [Some(0), Some(1)]);
    assert_eq!(dir.output(&["logits", &source(), "other"]).status.code(), Some(0));
    assert_eq!(dir.json(&["logits", &source(), "other", "--tolerance", "0"])["within_tolerance"], false);
}

#[test]
fn logits_that_are_no_numbers_are_no_agreement() {
    let dir = Dir::new();
    with_value(&dir, "nan", LAYER_5, 10, 0x7fc0);
    let run = |a: &str, b: &str| dir.output(&["logits", a, b, "--tolerance", "1000"]).status.code();
    assert_eq!([run(&source(), "nan"), run("nan", &source())], [Some(1), Some(1)]);
    shown!("logits_nan", dir.run(&["logits", &source(), "nan", "--tolerance", "1000"]));
}

fn object_of_one_precision(dir: &Dir) -> Value {
    object(dir, &[&source(), "--precision", "f32", "--precision-b", "f32"])
}

#[test]
fn two_precisions_of_one_checkpoint_are_close() {
    let dir = Dir::new();
    let object = object(&dir, &[&source(), "--precision", "f32", "--precision-b", "bf16"]);
    assert_eq!(object["precisions"], json!(["f32", "bf16"]));
    for prompt in object["prompts"].as_array().expect("prompts") {
        let kl = prompt["kl_mean"].as_f64().expect("a number");
        assert!(kl > 0.0 && kl < 0.01, "{prompt}");
    }
    let same = object_of_one_precision(&dir);
    assert_eq!(same["largest_in_deviations"], 0.0);
}

#[test]
fn prompts_are_those_of_generate() {
    let dir = Dir::new();
    let lines = "{\"input_ids\": [1, 17, 42]}\n\"hello world\"\n{\"turns\": [\"Who?\", \"And then?\"]}\n";
    std::fs::write(dir.path("p.jsonl"), lines).expect("a writable folder");
    let args = ["--prompt-file", "p.jsonl"];
    let of_logits = object(&dir, &[&[source().as_str()], &args[..]].concat());
    let of_generate = dir.json(&[&["generate", &source()], &args[..], &["--max-new", "1"]].concat());
    for i in 0..3 {
        let (ids, turn) = (&of_logits["prompts"][i]["ids"], &of_generate["results"][i]["turns"][0]);
        assert_eq!(ids, &turn["prompt_ids"]);
        assert_eq!(of_logits["prompts"][i]["next"][0]["id"], turn["ids"][0]);
    }
}

/// The values of a tensor of float32.
fn floats(tensors: &Tensors, name: &str) -> Vec<f32> {
    tensors[name].2.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn what_is_saved_has_the_documented_shapes() {
    let dir = Dir::new();
    dir.ok(&["logits", &source(), "--save", "out.safetensors"]);
    let tensors = variant::read(&dir.path("out.safetensors"));
    let table: Vec<String> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| format!("{name}  {dtype}  {shape:?}  {}", data.len()))
        .collect();
    shown!("logits_saved", table.join("\n"));
    let ids = |prompt: &str| tensors[&format!("{prompt}.input_ids")].2.as_chunks::<8>().0.to_vec();
    assert_eq!(ids("p0"), [1_i64, 17, 42, 99, 7].map(i64::to_le_bytes));
    // The last row's logits are those that the command shows.
    let shown = object(&dir, &[&source()]);
    let logits = floats(&tensors, "p0.logits");
    let last = &logits[logits.len() - 4096..];
    let most = last.iter().copied().fold(f32::MIN, f32::max);
    let id = last.iter().position(|&x| x == most).expect("it is one of them");
    assert_eq!(shown["prompts"][0]["next"][0]["id"], id);
    // Weights of the chosen experts sum to 1, as the config asks.
    for weights in floats(&tensors, "p2.topk_w.5").chunks(2) {
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-3, "{weights:?}");
    }
}

#[test]
fn batches_and_memory_change_no_bit() {
    let dir = Dir::new();
    let save = |name: &str, more: &[&str]| {
        dir.ok(&[&["logits", &source(), "--save", name], more].concat());
        std::fs::read(dir.path(name)).expect("it was saved")
    };
    let expected = save("a", &["--threads", "1"]);
    for more in [["--batch-tokens", "3"], ["--memory", "6M"], ["--threads", "3"]] {
        assert!(save("b", &more) == expected, "{more:?}");
    }
}

#[test]
fn the_object_has_every_position() {
    let (dir, source) = (Dir::new(), source());
    let object = object(&dir, &[&source, "--precision-b", "f32"]);
    for (prompt, positions) in object["prompts"].as_array().expect("a list").iter().zip([5, 23, 40]) {
        let each = prompt["each"].as_array().expect("a list");
        assert_eq!((each.len(), &prompt["positions"]), (positions, &json!(positions)));
        let most = |name: &str| each.iter().filter_map(|p| p[name].as_f64()).fold(0.0, f64::max);
        assert_eq!(
            (most("max"), most("kl")),
            (prompt["logits"]["max"].as_f64().expect("a number"), prompt["kl_max"].as_f64().expect("a number"))
        );
        let same = each.iter().filter(|p| p["same_top"] == true).count();
        assert_eq!(json!(same), prompt["same_top"]);
    }
}
