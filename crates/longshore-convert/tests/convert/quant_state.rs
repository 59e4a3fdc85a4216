//! The state of quantizers against a checkpoint that ModelOpt and Megatron-Core wrote.

mod synthetic;

use crate::shared_data::shared;
use longshore_ckpt::fs::ReadFile;
use longshore_ckpt::torch_dist;
use longshore_ckpt::torch_dist::extra_state::{self as items, ExtraState};
use longshore_ckpt::torch_dist::pickle::{Pickle, Plain, View};
use longshore_ckpt::{Catalog, Dtype, safetensors};
use longshore_convert::Error;
use longshore_convert::quantized::state::{
    QuantizerStates, Record, Stage, StageState, StoredTensor, extra_state, record,
};
use longshore_quant::config::{QuantConfig, modelopt_state};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn golden() -> Option<PathBuf> {
    shared("golden/quant/megatron_nemotronh_fp8")
}

/// The tensors of one safetensors file, as f32.
fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let len = safetensors::header_len(bytes[..8].try_into().unwrap(), bytes.len() as u64).unwrap();
    let header = safetensors::parse_header(&bytes[8..][..len as usize], bytes.len() as u64).unwrap();
    let each = header.tensors.iter().map(|entry| {
        let data = &bytes[(header.data_start + entry.begin) as usize..(header.data_start + entry.end) as usize];
        let mut values = vec![0.0; data.len() / entry.dtype.size() as usize];
        longshore_convert::cast::widen(entry.dtype, data, &mut values);
        (entry.name.clone(), values)
    });
    each.collect()
}

fn describe(stage: &Stage) -> Value {
    let a = &stage.attributes;
    serde_json::json!({"enabled": a.enable, "num_bits": a.num_bits, "axis": a.axis, "dynamic": a.dynamic})
}

#[test]
fn every_quantizer_of_the_checkpoint_has_its_attributes_and_its_amax() {
    let Some(golden) = golden() else { return };
    let wanted: BTreeMap<String, Value> =
        serde_json::from_slice(&std::fs::read(golden.join("quantizers.json")).unwrap()).unwrap();
    let values = tensors(&golden.join("quantizer_state.safetensors"));
    let mut catalog = Catalog::open(&golden).unwrap();
    let found = QuantizerStates::read(&mut catalog).unwrap().unwrap();
    let mut with_amax = 0;
    for (name, want) in &wanted {
        let (module, quantizer) = name.rsplit_once('.').unwrap();
        let module = module.replace(".local_experts.", ".experts.");
        let stages = found.stages(&module, quantizer);
        if module == "output_layer" || module.ends_with(".conv1d") {
            assert!(stages.is_empty(), "{name}");
            continue;
        }
        let [stage] = stages else { panic!("{name}: {} stages", stages.len()) };
        for (key, value) in describe(stage).as_object().unwrap() {
            assert_eq!(value, &want[key], "{name} {key}");
        }
        assert!(stage.attributes.block_sizes.is_none() && stage.pre_quant_scale.is_none());
        assert_eq!(stage.amax.is_some(), !want["amax"].is_null(), "{name}");
        if let Some(StoredTensor { values: Some(read), tensor }) = &stage.amax {
            assert_eq!(**read, values[&format!("{name}._amax")], "{name}");
            assert_eq!((tensor.dtype, tensor.shape.as_slice()), (Dtype::Bfloat16, [1].as_slice()));
            with_amax += 1;
        }
    }
    assert_eq!(with_amax, values.len());
    let known: BTreeSet<String> = wanted.keys().map(|n| n.replace(".local_experts.", ".experts.")).collect();
    let mut read = found.modules.iter().flat_map(|(m, q)| q.keys().map(move |q| format!("{m}.{q}")));
    assert_eq!(read.find(|name| !known.contains(name)), None);
    assert!(found.unknown.is_empty());
}

#[test]
fn what_is_left_is_a_plain_checkpoint() {
    let Some(golden) = golden() else { return };
    let mut catalog = Catalog::open(&golden).unwrap();
    let before: BTreeSet<String> = catalog.tensors.keys().cloned().collect();
    QuantizerStates::read(&mut catalog).unwrap();
    let removed: Vec<&String> = before.iter().filter(|name| !catalog.tensors.contains_key(*name)).collect();
    assert_eq!(removed.len(), 56);
    assert!(removed.iter().all(|name| name.ends_with("_quantizer._amax")));
    assert!(!catalog.tensors.keys().any(|name| name.contains("_quantizer")));
    // Nothing to find the second time but the attributes, which now miss their tensors.
    assert!(matches!(QuantizerStates::read(&mut catalog), Err(Error::Refused(problems)) if problems.len() == 56));
}

#[test]
fn a_checkpoint_without_quantizers_has_no_state() {
    let Some(plain) = shared("golden/torch_dist") else { return };
    let mut checked = 0;
    for entry in std::fs::read_dir(plain).unwrap() {
        let Ok(mut catalog) = Catalog::open(&entry.unwrap().path()) else { continue };
        let before = catalog.tensors.len();
        assert!(QuantizerStates::read(&mut catalog).unwrap().is_none());
        assert_eq!(catalog.tensors.len(), before);
        checked += 1;
    }
    assert!(checked > 3, "{checked} checkpoints");
}

#[test]
fn the_record_names_config_algorithm_and_version() {
    let Some(golden) = golden() else { return };
    let found = Record::read(&golden.join("release")).unwrap().unwrap();
    assert_eq!(found.version, "0.47.0");
    assert_eq!(found.modes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["quantize", "max_calibrate"]);
    assert_eq!(found.algorithm(), Some(&Plain::Str("max".into())));
    let entries = found.entries();
    let summary = |i: usize| (entries[i].quantizer_name, entries[i].parent_class, entries[i].enable);
    assert_eq!(entries.len(), 27);
    assert_eq!(summary(0), ("*", None, false));
    assert_eq!(summary(1), ("*weight_quantizer", None, true));
    assert!(matches!(entries[1].cfg, Plain::Dict(fields) if fields.len() == 19));
    assert_eq!(summary(26), ("*", Some("nn.Embedding"), false));
}

/// The pickle of the object `key`.
fn stored(catalog: &Catalog, key: &str) -> Pickle {
    let extent = catalog.objects[key];
    let file = ReadFile::open(&catalog.path(extent.file)).unwrap();
    let ExtraState::Pickled(pickle) = torch_dist::read_extra_state(&file, extent).unwrap() else {
        panic!("{key} is empty")
    };
    pickle
}

/// What `inner` becomes on disk, read back.
fn written(inner: &Plain) -> Pickle {
    let item = items::write(inner);
    let read = items::read(item.len() as u64, &mut |at, buffer| {
        buffer.copy_from_slice(&item[at as usize..][..buffer.len()]);
        Ok(())
    });
    let ExtraState::Pickled(pickle) = read.unwrap() else { panic!("nothing was written") };
    pickle
}

/// A value with dicts sorted: ModelOpt writes their keys in the order of a set.
fn sorted(view: View<'_>) -> String {
    let Some(entries) = view.entries() else { return view.to_text() };
    let lines: BTreeSet<String> = entries.map(|(k, v)| format!("{}: {}\n", k.to_text(), sorted(v))).collect();
    format!("{{{}}}", lines.into_iter().collect::<String>())
}

/// What a writer knows of a stage that was read.
fn again(stage: &Stage) -> StageState<'_> {
    let tensor =
        |name, stored: &Option<StoredTensor>| stored.as_ref().map(|s| (name, s.tensor.dtype, s.tensor.shape.clone()));
    let tensors = [
        tensor("_amax", &stage.amax),
        tensor("_global_amax", &stage.global_amax),
        tensor("_pre_quant_scale", &stage.pre_quant_scale),
    ];
    StageState { attributes: &stage.attributes, tensors: tensors.into_iter().flatten().collect() }
}

#[test]
fn written_states_equal_modelopts() {
    let Some(golden) = golden() else { return };
    let mut catalog = Catalog::open(&golden).unwrap();
    let found = QuantizerStates::read(&mut catalog).unwrap().unwrap();
    assert_eq!(found.modules.len(), 28);
    for (module, quantizers) in &found.modules {
        let theirs = stored(&catalog, &format!("{module}._extra_state/shard_0_1"));
        let stages: Vec<(&str, Vec<StageState<'_>>)> =
            quantizers.iter().map(|(name, stages)| (name.as_str(), stages.iter().map(again).collect())).collect();
        let named: Vec<(&str, &[StageState<'_>])> = stages.iter().map(|(n, s)| (*n, s.as_slice())).collect();
        let ours = written(&extra_state(&named, 0, Dtype::Bfloat16));
        assert_eq!(sorted(ours.root()), sorted(theirs.root()), "{module}");
    }
}

#[test]
fn a_written_record_equals_modelopts() {
    let Some(golden) = golden() else { return };
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join(record::FOLDER);
    std::fs::create_dir(&inner).unwrap();
    for (name, bytes) in record::files(modelopt_state(&QuantConfig::named("FP8_DEFAULT_CFG").unwrap(), "0.47.0")) {
        std::fs::write(inner.join(name), bytes).unwrap();
    }
    let theirs = Record::read(&golden.join("release")).unwrap();
    assert_eq!(Record::read(folder.path()).unwrap(), theirs);
    let common = |path: &Path| sorted(torch_dist::open(path).unwrap().common.unwrap().root());
    assert_eq!(common(&inner), common(&golden.join("release/modelopt_state")));
}
