//! Plans of the largest models from their headers alone: sparse files with the real names, shapes and sizes.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips or measures"
)]

#[path = "../../longshore-convert/tests/convert/hf_folder.rs"]
mod hf_folder;
#[path = "support/program.rs"]
mod program;
#[path = "../../longshore-convert/tests/convert/shared_data.rs"]
mod shared_data;

use hf_folder::Tensor;
use longshore_ckpt::Dtype;
use longshore_convert::config::{ModelConfig, hf, json};
use program::{Dir, LONGSHORE};
use serde_json::Value;
use shared_data::shared;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Peak memory of a plan with its catalog of names, in bytes.
const LIMIT: u64 = 500 << 20;

/// A released config, as text and as read, without what says that the weights are quantized.
fn config(folder: &Path) -> (String, ModelConfig) {
    let mut value = json::parse(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    value.as_object_mut().unwrap().shift_remove("quantization_config");
    let config = hf::read("config.json", &value).unwrap().config;
    (serde_json::to_string(&value).unwrap(), config)
}

/// Name and shape of every tensor of the trunk, as transformers derives them.
fn derived(path: &Path) -> BTreeMap<String, Vec<u64>> {
    let output = Command::new("gzip").arg("-dc").arg(path).output().expect("gzip is installed");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| {
        let (name, shape) = line.split_once('\t').unwrap();
        (name.to_owned(), shape.split('x').map(|dim| dim.parse().unwrap()).collect())
    };
    text.lines().map(row).collect()
}

/// Plans the model, and returns how many tensors it has.
fn plan(name: &str) -> Option<u64> {
    let (text, config) = config(&shared(&format!("data/configs/nvidia/{name}"))?);
    let names = derived(&shared(&format!("data/derived_tensor_names/{name}.tsv.gz"))?);
    let tensors = hf_folder::declared(&config, Dtype::Bfloat16);
    let trunk = |tensor: &&Tensor| !tensor.name.starts_with("mtp.");
    let ours: BTreeMap<_, _> = tensors.iter().filter(trunk).map(|t| (t.name.clone(), t.shape.clone())).collect();
    assert!(ours == names, "the names or shapes of {name} are not those of transformers");

    let dir = Dir::new();
    hf_folder::write(&dir.path("hf"), &text, &tensors, 50_000_000_000, None);
    for more in [&[][..], &["--tp", "8", "--pp", "4", "--ep", "8", "--spec", "local"]] {
        let (report, cpu) = dry_run(&dir, more);
        check(name, &report, cpu, tensors.len() as u64);
    }
    assert!(!dir.path("mc").exists());
    Some(tensors.len() as u64)
}

/// The object that a dry run prints, and the seconds of processor time it took, which other work on the machine does not
/// change as much as it does the time.
fn dry_run(dir: &Dir, more: &[&str]) -> (Value, f64) {
    let script = "\"$@\" && times >&2";
    let args = ["-c", script, "sh", LONGSHORE, "convert", "hf", "mc", "--dry-run"];
    let (report, said) = dir.json("/bin/sh", &[&args[..], more].concat());
    // Two lines: the shell itself, then its children; each `0m1.23s 0m0.45s`, user and system.
    let seconds = |part: &str| {
        let (minutes, seconds) = part.trim_end_matches('s').split_once('m').unwrap();
        minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
    };
    let cpu = said.lines().last().unwrap().split_whitespace().map(seconds).sum();
    (report, cpu)
}

fn check(name: &str, report: &Value, cpu: f64, tensors: u64) {
    let (seconds, peak) =
        (report["timings"]["plan_seconds"].as_f64().unwrap(), report["peak_memory"].as_u64().unwrap());
    let (source, chunks) = (&report["summary"]["source"], &report["summary"]["chunks"]);
    let mib = peak as f64 / f64::from(1 << 20);
    println!("{name}: {source}, {chunks} chunks: {seconds:.2} s, {cpu:.2} s of processor time, {mib:.0} MiB");
    assert_eq!(source["tensors"].as_u64(), Some(tensors));
    assert!(peak < LIMIT, "{peak} bytes");
    // 2 s in a release build are the aim; this only catches what grows with the square of the tensors.
    assert!(cpu < 10.0, "{cpu} s");
}

#[test]
fn nano_30b() {
    let count = plan("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16");
    assert!(count.is_none_or(|count| count == 6243), "{count:?}");
}

#[test]
fn super_120b() {
    let count = plan("NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4");
    assert!(count.is_none_or(|count| count == 42_683), "{count:?}");
}

#[test]
fn ultra_550b() {
    let count = plan("NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16");
    assert!(count.is_none_or(|count| count > 49_983), "{count:?}");
}
