//! Any text as the `run_config.yaml` of Megatron-Bridge, whose fields are read as a model's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_convert::config::megatron::{hf_json, read};
use longshore_convert::config::run_config;
use std::collections::BTreeMap;

fuzz_target!(|text: &str| {
    let Ok((args, _)) = run_config::read(text) else { return };
    if let Ok((config, _)) = read(&args, &BTreeMap::new()) {
        let _ = hf_json(&config);
    }
});
