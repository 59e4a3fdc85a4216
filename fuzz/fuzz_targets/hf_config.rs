//! Any bytes as config.json: the lenient parser against `serde_json`, then the reader, then the table of the model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_convert::NormKeys;
use longshore_convert::arch::{self, SpecKeys};
use longshore_convert::config::{hf, json};

/// Names that the table of a model may have here: a config of 16 MiB can ask for millions.
const LAYERS: usize = 64;
const EXPERTS: u64 = 64;

fuzz_target!(|bytes: &[u8]| {
    let ours = json::parse(bytes);
    match (&ours, serde_json::from_slice::<serde_json::Value>(bytes)) {
        (Ok(ours), Ok(theirs)) => assert_eq!(*ours, theirs),
        (Ok(_), Err(_)) => {
            // More than JSON: one of the three numbers of Python.
            assert!(["Infinity", "NaN"].iter().any(|word| bytes.windows(word.len()).any(|w| w == word.as_bytes())));
        }
        (Err(error), _) => assert!(error.offset <= bytes.len() as u64 && !error.what.is_empty()),
    }
    let Ok(value) = ours else { return };
    let Ok(read) = hf::read("config.json", &value) else { return };
    let config = read.config;
    let experts =
        config.all_layers().map(|l| if let longshore_convert::config::LayerSpec::Moe(m) = l { m.experts } else { 0 });
    let blocks = config.mtp.as_ref().map_or(0, |m| m.depth);
    if config.layers.len() > LAYERS || blocks > EXPERTS || experts.sum::<u64>() > EXPERTS {
        return;
    }
    let architecture = arch::find(&config.architecture).expect("hf::read knows only what the registry has");
    for norms in [NormKeys::Fused, NormKeys::Separate] {
        let keys = SpecKeys { norms, norm_states: true, core_attention_states: true, single_experts: false };
        let mapping = (architecture.mapping)(&config, &keys, config.vocab_size);
        assert!(mapping.mc.values().chain(mapping.hf.values()).all(|d| !d.shape.contains(&0)));
        // The check walks runs, so only tensors of few rows are checked here.
        let rows =
            mapping.mc.values().chain(mapping.hf.values()).map(|d| d.shape.iter().rev().skip(1).product::<u64>()).max();
        if rows.is_some_and(|rows| rows < 4096) {
            assert_eq!(mapping.check(), Ok(()));
        }
    }
});
