//! Megatron's keys, shapes, dtypes and bytes, as megatron-core wrote them (`golden/README.md` of the shared data).

use crate::shared_data::shared;
use longshore_ckpt::{Catalog, Dtype};
use longshore_convert::arch::{self, SpecKeys};
use longshore_convert::diff::{DiffEntry, DiffOptions, DiffReport, Difference, Tolerance, diff};
use longshore_convert::mapping::{Declared, Mapping, Precision};
use longshore_convert::model::Model;
use longshore_convert::options::{ExportOptions, ImportOptions, Layout, NormKeys, SpecName};
use longshore_convert::plan::{plan_export, plan_import};
use longshore_convert::progress::Silent;
use longshore_convert::run::{RunOptions, execute};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A key list, and the Hugging Face folder of its model.
struct KeyList {
    name: String,
    keys: BTreeMap<String, Value>,
    hf: PathBuf,
}

/// The entries of a folder whose names begin with `nemotron`, sorted.
fn nemotrons(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_nemotron = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("nemotron");
    let mut found: Vec<_> = entries.filter(is_nemotron).collect();
    found.sort();
    found
}

/// The Hugging Face model a golden was made from: the one whose name its own begins with.
fn source(golden: &Path, name: &str) -> PathBuf {
    let models = nemotrons(&golden.join("hf"));
    let of = |path: &&PathBuf| name.starts_with(path.file_name().unwrap().to_str().unwrap());
    models.iter().filter(of).max_by_key(|path| path.as_os_str().len()).unwrap().clone()
}

fn read_json(path: &Path) -> BTreeMap<String, Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Every list of the keys of a Nemotron-H model: of models (`key_lists`) and of checkpoints (`torch_dist`).
fn key_lists() -> Vec<KeyList> {
    let Some(golden) = shared("golden") else { return Vec::new() };
    let mut lists = Vec::new();
    for version in std::fs::read_dir(golden.join("key_lists")).unwrap() {
        let version = version.unwrap();
        for path in nemotrons(&version.path()) {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let name = format!("{} {stem}", version.file_name().to_str().unwrap());
            lists.push(KeyList { name, keys: read_json(&path), hf: source(&golden, stem) });
        }
    }
    for path in nemotrons(&golden.join("torch_dist")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        lists.push(KeyList { name: name.into(), keys: read_json(&path.join("keys.json")), hf: source(&golden, name) });
    }
    assert!(lists.len() >= 15, "{} lists", lists.len());
    lists
}

fn dims(value: &Value) -> Vec<u64> {
    serde_json::from_value(value.clone()).unwrap()
}

impl KeyList {
    fn is_local(&self) -> bool {
        self.name.contains("local") && !self.is_remapped()
    }

    fn is_remapped(&self) -> bool {
        self.name.contains("remap")
    }

    fn mapping(&self) -> Mapping {
        let keys = SpecKeys {
            norms: if self.is_local() { NormKeys::Separate } else { NormKeys::Fused },
            norm_states: !self.is_local() && !self.is_remapped(),
            single_experts: false,
            core_attention_states: self.name.starts_with("0.12") || self.name.starts_with("0.14"),
        };
        let vocab = dims(&self.keys["embedding.word_embeddings.weight"]["shape"])[0];
        let mut model = Model::from_folder(&self.hf).unwrap();
        if self.name.starts_with("0.16") && !self.keys.keys().any(|key| key.starts_with("mtp.")) {
            // megatron-core builds hybrid models with MTP from 0.17 on.
            model.config.mtp = None;
        }
        (model.architecture.mapping)(&model.config, &keys, vocab)
    }
}

#[test]
fn names_and_shapes_are_megatrons() {
    for list in key_lists() {
        let tensors = |(key, value): (&String, &Value)| Some((key.clone(), dims(value.get("shape")?)));
        let megatrons: BTreeMap<_, _> = list.keys.iter().filter_map(tensors).collect();
        let ours: BTreeMap<_, _> = list.mapping().mc.into_iter().map(|(name, d)| (name, d.shape)).collect();
        assert_eq!(ours, megatrons, "{}", list.name);
    }
}

#[test]
fn extra_states_are_megatrons() {
    for list in key_lists() {
        let objects = list.keys.iter().filter(|(_, value)| value["object"] == Value::Bool(true));
        let megatrons: BTreeSet<_> = objects.map(|(key, _)| key.clone()).collect();
        let ours: BTreeSet<_> = list.mapping().objects.into_keys().collect();
        assert_eq!(ours, megatrons, "{}", list.name);
    }
}

#[test]
fn dtypes_are_megatrons() {
    for list in key_lists() {
        for (name, Declared { precision, .. }) in list.mapping().mc {
            let megatrons = list.keys[&name]["dtype"].as_str().unwrap();
            // Megatron rounds `dt_bias`; ours is float32 where the source is.
            let ours = match precision {
                Precision::Params | Precision::SourceFloat32 => "bfloat16",
                Precision::McFloat32 | Precision::Float32 => "float32",
            };
            assert_eq!(ours, megatrons, "{} {name}", list.name);
        }
    }
}

#[test]
fn the_mapping_of_every_golden_tiles_both_sides() {
    for list in key_lists() {
        assert_eq!(list.mapping().check(), Ok(()), "{}", list.name);
    }
}

#[test]
fn names_and_shapes_of_hugging_face_are_those_of_transformers() {
    let Some(golden) = shared("golden") else { return };
    let llamas = ["llama", "llama_tied"].map(|name| golden.join("hf").join(name));
    for folder in nemotrons(&golden.join("hf")).into_iter().chain(llamas) {
        let keys = SpecKeys { norms: NormKeys::Fused, norm_states: true, ..SpecKeys::CANONICAL };
        let model = Model::from_folder(&folder).unwrap();
        let mapping = (model.architecture.mapping)(&model.config, &keys, 512);
        let ours: BTreeMap<_, _> = mapping.hf.into_iter().map(|(n, d)| (n, d.shape)).collect();
        let stored = Catalog::open(&folder).unwrap().tensors.into_iter().map(|(n, t)| (n, t.shape)).collect();
        assert_eq!(ours, stored, "{}", folder.display());
    }
}

#[test]
fn the_mapping_of_every_example_tiles_both_sides() {
    for architecture in arch::list() {
        let config = (architecture.example)();
        let fused = SpecKeys { norms: NormKeys::Fused, norm_states: true, ..SpecKeys::CANONICAL };
        for keys in [SpecKeys::CANONICAL, fused] {
            let mapping = (architecture.mapping)(&config, &keys, config.vocab_size + 3);
            assert_eq!(mapping.check(), Ok(()), "{}", architecture.name);
        }
    }
}

#[test]
fn tables_list_no_architecture_twice() {
    let names: BTreeSet<_> = arch::list().iter().flat_map(|a| [a.name, a.hf_class]).collect();
    assert_eq!(names.len(), 2 * arch::list().len());
}

fn compared(a: &Path, b: &Path) -> DiffReport {
    let options = DiffOptions { glob: None, tolerance: Tolerance::Bits, threads: 2 };
    diff(a, b, &options, &Silent).unwrap()
}

/// What differs between a model with a float32 `dt_bias` and Megatron's copy of it, which it rounds to bfloat16.
fn is_rounded_dt_bias(entry: &DiffEntry) -> bool {
    let kind = matches!(entry.what, Difference::Dtype { .. } | Difference::Values { .. });
    entry.tensor.ends_with("mixer.dt_bias") && kind
}

/// The differences that the reference explains: `dt_bias` of the model with a float32 one, and no others.
fn check(name: &str, report: &DiffReport) {
    assert!(report.compared > 20, "{name}: {}", report.compared);
    let (rounded, others): (Vec<_>, Vec<_>) = report.entries.iter().partition(|entry| is_rounded_dt_bias(entry));
    assert_eq!(others, Vec::<&DiffEntry>::new(), "{name}");
    assert_eq!(!rounded.is_empty(), name.contains("fp32_ssm"), "{name}");
}

#[test]
fn an_export_of_megatrons_checkpoint_is_the_model_it_was_made_from() {
    let Some(golden) = shared("golden") else { return };
    for path in nemotrons(&golden.join("torch_dist")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let base = source(&golden, name);
        let out = tempfile::tempdir().unwrap();
        let options = ExportOptions { base: Some(base.clone()), ..ExportOptions::default() };
        let plan = plan_export(&path, &out.path().join("hf"), &options).unwrap();
        execute(&plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap();
        check(name, &compared(&base, &out.path().join("hf")));
    }
}

#[test]
fn a_float32_dt_bias_comes_back_as_megatron_rounded_it() {
    let Some(golden) = shared("golden") else { return };
    let (path, base) = (golden.join("torch_dist/nemotron_h_fp32_ssm_te"), golden.join("hf/nemotron_h_fp32_ssm"));
    for entry in compared(&base, &path).entries {
        match entry.what {
            // Half a unit in the last of bfloat16's 8 bits.
            Difference::Values { max_rel, .. } => assert!(max_rel > 0.0 && max_rel <= 1.0 / 256.0, "{max_rel}"),
            Difference::Dtype { a, b } => assert_eq!((a, b), (Dtype::Float32, Dtype::Bfloat16)),
            other => panic!("{other:?}"),
        }
        assert!(entry.tensor.ends_with("mixer.dt_bias"), "{}", entry.tensor);
    }
}

#[test]
fn a_conversion_equals_the_checkpoint_that_megatron_wrote() {
    let Some(golden) = shared("golden") else { return };
    for path in nemotrons(&golden.join("torch_dist")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let out = tempfile::tempdir().unwrap();
        let tp = if name.contains("tp2") { 2 } else { 1 };
        let spec = if name.contains("local") { SpecName::Local } else { SpecName::Te };
        let options = ImportOptions {
            layout: Layout { tp, ..Layout::default() },
            make_vocab_size_divisible_by: Some(128),
            max_file_size: Some(1 << 16),
            ..ImportOptions::new(spec)
        };
        let plan = plan_import(&source(&golden, name), &out.path().join("mc"), &options).unwrap();
        execute(&plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap();
        check(name, &compared(&path, &out.path().join("mc")));
        let objects = |folder: &Path| Catalog::open(folder).unwrap().objects.into_keys().collect::<BTreeSet<_>>();
        assert_eq!(objects(&out.path().join("mc")), objects(&path), "{name}");
    }
}
