//! Any bytes as `model.safetensors.index.json`, with two sound shards beside it; and as `model.safetensors`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_ckpt::{Dtype, safetensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("longshore-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for the shards");
    for (file, tensor) in [("a.safetensors", "a"), ("b.safetensors", "b")] {
        let mut bytes = safetensors::header_bytes(&[(tensor, Dtype::Uint8, &[1])], &BTreeMap::new());
        bytes.push(0);
        fs::write(folder.join(file), bytes).expect("a writable folder");
    }
    folder
});

fuzz_target!(|bytes: &[u8]| {
    fs::write(FOLDER.join("model.safetensors.index.json"), bytes).expect("a writable folder");
    let Ok(catalog) = safetensors::open(&FOLDER) else { return };
    assert!(catalog.tensors.keys().all(|name| name == "a" || name == "b"));
    assert!(catalog.files.iter().all(|file| !file.name.contains('/')));
});
