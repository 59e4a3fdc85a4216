//! Llama models run and are not converted: what is read of them, and what every plan says.

use crate::llama_folder;
use crate::refusals::import_options;
use longshore_ckpt::{Catalog, Dtype, Rect};
use longshore_convert::Error;
use longshore_convert::config::release;
use longshore_convert::diff::{DiffOptions, Tolerance, diff};
use longshore_convert::options::ExportOptions;
use longshore_convert::plan::{plan_export, plan_import};
use longshore_convert::progress::Silent;
use longshore_convert::run::{RunOptions, execute};
use longshore_convert::source::Source;
use serde_json::{Value, json};
use std::path::Path;

const REFUSAL: &str = "`LlamaForCausalLM` runs from a Hugging Face folder (generate, logits, eval), but it is not converted, \
    exported or quantized yet";

/// A folder with a Llama model at `hf`.
fn case() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("hf")).unwrap();
    llama_folder::write(&dir.path().join("hf"));
    dir
}

fn is_refused<T>(result: Result<T, Error>, folder: &Path) {
    match result.err().expect("a refusal") {
        Error::Model { path, what } => assert_eq!((path.as_path(), what.as_str()), (folder, REFUSAL)),
        other => panic!("{other}"),
    }
}

#[test]
fn gate_and_up_are_the_rows_of_one_tensor() {
    let dir = case();
    let folder = dir.path().join("hf");
    let source = Source::open(&folder, None, false).unwrap();
    let read = |name: &str| {
        let (shape, dtype) = source.tensor(name);
        let mut bytes = vec![0; shape.iter().product::<u64>() as usize * 2];
        source.read(name, &Rect::whole(shape), dtype, &mut bytes).unwrap();
        (shape.to_vec(), dtype, bytes)
    };
    let catalog = Catalog::open(&folder).unwrap();
    let file = std::fs::read(folder.join("model.safetensors")).unwrap();
    let stored = |name: &str| {
        let extent = catalog.tensors[&format!("model.layers.1.{name}.weight")].chunks[0].extent;
        file[extent.offset as usize..(extent.offset + extent.len) as usize].to_vec()
    };
    let rows = [stored("mlp.gate_proj"), stored("mlp.up_proj")].concat();
    assert_eq!(read("decoder.layers.1.mlp.linear_fc1.weight"), (vec![72, 24], Dtype::Bfloat16, rows));
    // Two groups, each of two query heads, a key and a value, of 10 rows of 48 bytes.
    let [q, k, v] = ["q", "k", "v"].map(|part| stored(&format!("self_attn.{part}_proj")));
    let groups = [&q[..960], &k[..480], &v[..480], &q[960..], &k[480..], &v[480..]].concat();
    assert_eq!(read("decoder.layers.1.self_attention.linear_qkv.weight"), (vec![80, 24], Dtype::Bfloat16, groups));
    assert_eq!(read("decoder.final_layernorm.weight").0, [24]);
}

#[test]
fn every_plan_refuses_it_and_nothing_is_written() {
    let dir = case();
    let [hf, out] = ["hf", "out"].map(|name| dir.path().join(name));
    is_refused(plan_import(&hf, &out, &import_options()), &hf);
    // A checkpoint of Megatron that says it is of this architecture.
    let config = crate::snapshots::model();
    let [source, mc] = ["source", "mc"].map(|name| dir.path().join(name));
    let text = serde_json::to_string(&release::hf_json(&config).0).unwrap();
    crate::hf_folder::write(&source, &text, &crate::hf_folder::declared(&config, Dtype::Bfloat16), u64::MAX, None);
    let run = RunOptions { threads: 1, force: false };
    execute(&plan_import(&source, &mc, &import_options()).unwrap(), &run, &Silent).unwrap();
    let base = Some(hf.clone());
    is_refused(
        plan_import(&mc, &out, &longshore_convert::ImportOptions { base: base.clone(), ..import_options() }),
        &hf,
    );
    is_refused(plan_export(&mc, &out, &ExportOptions { base, ..ExportOptions::default() }), &hf);
    is_refused(Source::open(&mc, Some(&hf), false), &hf);
    let options = DiffOptions { glob: None, tolerance: Tolerance::Bits, threads: 1 };
    is_refused(diff(&hf, &mc, &options, &Silent), &hf);
    is_refused(diff(&mc, &hf, &options, &Silent), &hf);
    assert!(!out.exists());
    // Two folders need no table to be compared.
    assert!(diff(&hf, &hf, &options, &Silent).unwrap().entries.is_empty());
}

#[test]
fn quantized_weights_are_refused_before_their_tensors_are_missed() {
    let dir = case();
    let folder = dir.path().join("hf");
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4});
    std::fs::write(&path, config.to_string()).unwrap();
    let error = Source::open(&folder, None, false).err().expect("a refusal").to_string();
    assert!(error.ends_with(": quantized weights of `LlamaForCausalLM` are not read yet"), "{error}");
    config["quantization_config"] = Value::Null;
    std::fs::write(&path, config.to_string()).unwrap();
    Source::open(&folder, None, false).unwrap();
}
