//! The arguments of every Nemotron model of which NVIDIA publishes them. `published.json` holds facts: what a config.json says
//! (`spec/nemotron_h.md`, section 8) and what `examples/post_training/modelopt/conf/nvidia` says of the model, each argument
//! with its value. What those files say of a run is not in it; `docs/commands/args.md` lists both.

use crate::{outline, shared_data};
use longshore_convert::arguments::{Argument, Purpose, arguments};
use longshore_convert::outline::Outline;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

struct Model {
    name: String,
    config: Value,
    config_in: Option<String>,
    published: BTreeMap<String, Option<String>>,
}

fn models() -> Vec<Model> {
    let facts: Value = serde_json::from_str(include_str!("published.json")).expect("JSON");
    let object = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let model = |model: &Value| {
        let mut config: Map<String, Value> = object(&facts["common"]);
        config.extend(object(&model["config"]));
        config.insert("hybrid_override_pattern".into(), model["pattern"].clone());
        let mut published = object(&facts["always"]);
        if config.contains_key("n_routed_experts") {
            published.extend(object(&facts["experts"]));
        }
        published.extend(object(&model["published"]));
        published.insert("hybrid-layer-pattern".into(), model["pattern"].clone());
        let value = |(name, value): (String, Value)| (name, value.as_str().map(str::to_owned));
        Model {
            name: model["name"].as_str().expect("a name").to_owned(),
            config: Value::Object(config),
            config_in: model["config_in"].as_str().map(str::to_owned),
            published: published.into_iter().map(value).collect(),
        }
    };
    facts["models"].as_array().expect("a list").iter().map(model).collect()
}

/// What Megatron takes where an argument is absent.
fn default(name: &str, said: &BTreeMap<String, Option<String>>) -> Option<String> {
    let value = |name: &str| said.get(name).cloned().flatten();
    match name {
        "num-layers" => value("hybrid-layer-pattern").map(|pattern| pattern.len().to_string()),
        "moe-ffn-hidden-size" => value("ffn-hidden-size"),
        "kv-channels" => {
            let number = |name| value(name).and_then(|text| text.parse::<u64>().ok());
            Some((number("hidden-size")? / number("num-attention-heads")?).to_string())
        }
        "mamba-num-heads" => {
            let hidden: u64 = value("hidden-size")?.parse().ok()?;
            Some((2 * hidden / 64).to_string())
        }
        "mamba-head-dim" => Some("64".into()),
        "mamba-num-groups" => Some("8".into()),
        "mamba-state-dim" => Some("128".into()),
        "norm-epsilon" => Some("1e-5".into()),
        // From the tokenizer, which has as many tokens.
        "padded-vocab-size" => Some("131072".into()),
        _ => None,
    }
}

/// Arguments that are not those of every published file; the reasons are in `docs/commands/args.md`.
const DIFFERS: [&str; 10] = [
    "max-position-embeddings",
    "seq-length",
    "attention-dropout",
    "hidden-dropout",
    "position-embedding-type",
    "use-rotary-position-embeddings",
    "no-position-embedding",
    "rotary-percent",
    "rotary-base",
    "micro-batch-size",
];

fn by_name(said: &[Argument]) -> BTreeMap<String, Option<String>> {
    said.iter().map(|a| (a.name.trim_start_matches("--").to_owned(), a.value.clone())).collect()
}

#[test]
fn the_model_is_described_as_published() {
    for model in models() {
        let outline = outline(&model.config).unwrap_or_else(|e| panic!("{}: {e}", model.name));
        let said = by_name(&arguments(&outline, false).unwrap_or_else(|p| panic!("{}: {p:?}", model.name)));
        for (name, value) in model.published.iter().filter(|(name, _)| !DIFFERS.contains(&name.as_str())) {
            assert_eq!(said.get(name), Some(value), "{}: --{name}", model.name);
        }
        for (name, value) in said.iter().filter(|(name, _)| !DIFFERS.contains(&name.as_str())) {
            if !model.published.contains_key(name) {
                assert_eq!(*value, default(name, &model.published), "{}: --{name} is added", model.name);
            }
        }
        assert_eq!(said["position-embedding-type"].as_deref(), Some("none"), "{}", model.name);
        assert_eq!(said["seq-length"].as_deref(), Some("8192"), "{}", model.name);
    }
}

#[test]
fn released_configs_give_the_arguments_of_the_table() {
    for model in models() {
        let Some(folder) = model.config_in else { continue };
        let Some(folder) = shared_data::shared(&format!("data/configs/nvidia/{folder}")) else { return };
        let [table, released] = [outline(&model.config), Outline::open(&folder, None)].map(|outline| {
            let outline = outline.unwrap_or_else(|e| panic!("{}: {e}", model.name));
            [false, true].map(|mtp| arguments(&outline, mtp).expect("known"))
        });
        assert_eq!(table, released, "{}", model.name);
    }
}

#[test]
fn mtp_is_said_where_it_is_asked_for() {
    for model in models() {
        let outline = outline(&model.config).expect("a config");
        let [without, with] = [false, true].map(|mtp| by_name(&arguments(&outline, mtp).expect("known")));
        if outline.model.config.mtp.is_none() {
            assert_eq!(without, with, "{}", model.name);
            continue;
        }
        let pattern =
            |said: &BTreeMap<String, Option<String>>| said["hybrid-layer-pattern"].clone().expect("a pattern");
        assert_eq!(pattern(&with), pattern(&without) + "/*E", "{}", model.name);
        assert_eq!(with["mtp-num-layers"].as_deref(), Some("1"));
        assert!(!without.keys().any(|name| name.contains("mtp")), "{without:?}");
    }
}

#[test]
fn purposes_come_one_after_the_other() {
    for model in models() {
        let said = arguments(&outline(&model.config).expect("a config"), true).expect("known");
        let mut purposes: Vec<Purpose> = said.iter().map(|a| a.purpose).collect();
        purposes.dedup();
        let has_experts = model.config.get("n_routed_experts").is_some();
        assert_eq!(purposes.len(), if has_experts { 3 } else { 2 }, "{}", model.name);
    }
}
