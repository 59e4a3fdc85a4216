//! The arguments of published models against NVIDIA's own, and the layouts that fit GPUs.

#![expect(clippy::print_stderr, reason = "absent data is said")]

mod fit;
mod published;
mod refused;
#[path = "../convert/shared_data.rs"]
mod shared_data;

use longshore_convert::outline::Outline;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The model that the repository bundles.
fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m")
}

/// The outline of a folder that holds this config.json and nothing else.
fn outline(config: &Value) -> longshore_convert::Result<Outline> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("a writable folder");
    Outline::open(folder.path(), None)
}

/// The bundled model's config with other fields; `pattern` replaces its layers.
fn changed(pattern: &str, changes: &Value) -> Value {
    let text = std::fs::read_to_string(bundled().join("config.json")).expect("the bundled config");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config.as_object_mut().expect("an object").remove("layers_block_type");
    config["hybrid_override_pattern"] = json!(pattern);
    config["num_hidden_layers"] = json!(pattern.len());
    for (name, value) in changes.as_object().expect("an object") {
        config[name] = value.clone();
    }
    config
}
