//! The bundled model with something changed: what users bring that is not quite as it should be.

use crate::harness::{Dir, model};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Dtype, shape and little-endian data of every tensor of `model.safetensors`.
pub(crate) type Tensors = BTreeMap<String, (String, Vec<u64>, Vec<u8>)>;

/// A copy of the model with other texts for some files; `None` takes a file away.
pub(crate) fn with_files(dir: &Dir, name: &str, files: &[(&str, Option<&str>)]) {
    let folder = dir.model_with(name, |_| {});
    for (file, text) in files {
        match text {
            Some(text) => std::fs::write(folder.join(file), text).expect("a writable folder"),
            None => std::fs::remove_file(folder.join(file)).expect("it was there"),
        }
    }
}

/// A copy of the model with a field of a JSON file set.
pub(crate) fn with_field(dir: &Dir, name: &str, file: &str, field: &str, value: &Value) {
    let text = std::fs::read_to_string(model().join(file)).expect("a file of the model");
    let mut fields: Value = serde_json::from_str(&text).expect("JSON");
    fields[field] = value.clone();
    with_files(dir, name, &[(file, Some(&fields.to_string()))]);
}

/// A copy of the model with other tensors.
pub(crate) fn with_tensors(dir: &Dir, name: &str, change: impl FnOnce(&mut Tensors)) {
    let mut tensors = read(&model().join("model.safetensors"));
    change(&mut tensors);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (tensor, (dtype, shape, bytes)) in &tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        header.insert(tensor.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let header = serde_json::to_vec(&header).expect("JSON");
    let folder = dir.model_with(name, |_| {});
    let file = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &data].concat();
    std::fs::write(folder.join("model.safetensors"), file).expect("a writable folder");
}

/// The tensors of a safetensors file.
pub(crate) fn read(path: &std::path::Path) -> Tensors {
    let bytes = std::fs::read(path).expect("a file");
    let len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))).expect("a length");
    let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + len]).expect("a header");
    let at = |value: &Value| 8 + len + usize::try_from(value.as_u64().expect("an offset")).expect("an offset");
    let tensor = |entry: &Value| {
        let dtype = entry["dtype"].as_str().expect("a dtype").to_owned();
        let shape = entry["shape"].as_array().expect("a shape").iter().map(|n| n.as_u64().expect("a size")).collect();
        let [begin, end] = [0, 1].map(|i| at(&entry["data_offsets"][i]));
        (dtype, shape, bytes[begin..end].to_vec())
    };
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    tensors.map(|(name, entry)| (name.clone(), tensor(entry))).collect()
}

/// A copy of the model with a layer that guesses, which is made of its own layers and knows nothing.
pub(crate) fn with_guesses(dir: &Dir, name: &str) {
    with_tensors(dir, name, |tensors| {
        for (from, to) in [("backbone.layers.7.", "mtp.layers.0."), ("backbone.layers.8.", "mtp.layers.1.")] {
            let copies: Vec<_> = tensors.iter().filter(|(name, _)| name.starts_with(from)).collect();
            let copies: Tensors = copies.into_iter().map(|(name, t)| (name.replace(from, to), t.clone())).collect();
            tensors.extend(copies);
        }
        let norm = tensors["backbone.norm_f.weight"].clone();
        for name in ["mtp.layers.0.enorm.weight", "mtp.layers.0.hnorm.weight", "mtp.layers.1.final_layernorm.weight"] {
            tensors.insert(name.to_owned(), norm.clone());
        }
        // It takes the embedding of the next token and drops the state: a model of two layers.
        let one = |i: usize| if i % 512 == i / 512 { 0x3f80_u16 } else { 0 };
        let eh_proj: Vec<u8> = (0..256 * 512).flat_map(|i| one(i).to_le_bytes()).collect();
        tensors.insert("mtp.layers.0.eh_proj.weight".to_owned(), ("BF16".to_owned(), vec![256, 512], eh_proj));
    });
    let path = dir.path(name).join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a config")).expect("JSON");
    config["num_nextn_predict_layers"] = 1.into();
    std::fs::write(path, config.to_string()).expect("a writable folder");
}
