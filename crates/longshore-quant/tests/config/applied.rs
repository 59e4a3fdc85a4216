//! Configs applied to the quantizers of a tiny Nemotron-H.

use longshore_quant::Attributes;
use longshore_quant::config::{ConfigError, Entry, Plain, QuantConfig, QuantizerSite, QuantizerState};
use serde_json::Value;

use crate::fixture::{CHOICES, buffers, index, list, plain, quantize_mode, sorted};

/// The quantizers of a model.
pub(crate) fn sites(model: &str) -> Vec<QuantizerSite> {
    let site = |site: &Value| QuantizerSite {
        name: site[0].as_str().unwrap().to_owned(),
        parent_class: list(&site[1]).first().map_or("", |class| class.as_str().unwrap().to_owned().leak()),
    };
    list(&CHOICES["models"][model]["sites"]).iter().map(site).collect()
}

/// The config of the fixture that ModelOpt does not have.
fn own(name: &str, dumped: &Value) -> QuantConfig {
    let bits = |value: Option<&Plain>| match value {
        Some(Plain::Tuple(both)) => match both.as_slice() {
            [Plain::Int(e), Plain::Int(m)] => {
                longshore_quant::NumBits::Float(u8::try_from(*e).unwrap(), u8::try_from(*m).unwrap())
            }
            _ => panic!(),
        },
        Some(Plain::Int(n)) => longshore_quant::NumBits::Int(u8::try_from(*n).unwrap()),
        other => panic!("{other:?}"),
    };
    let is_true = |value: Option<&Plain>| value == Some(&Plain::Bool(true));
    let attributes = |dump: &Plain| Attributes {
        num_bits: bits(dump.get("num_bits")),
        axis: (dump.get("axis") == Some(&Plain::Int(0))).then_some(0),
        unsigned: is_true(dump.get("unsigned")),
        rotate: is_true(dump.get("rotate")),
        block_sizes: dump.get("block_sizes").filter(|blocks| **blocks != Plain::None).map(|_| {
            longshore_quant::BlockSizes { axes: vec![(-1, Some(128))], dynamic: Some(false), ..Default::default() }
        }),
        ..Attributes::default()
    };
    let Some(Plain::List(entries)) = quantize_mode(dumped, &CHOICES["attributes"]).get("quant_cfg").cloned() else {
        panic!()
    };
    let entry = |entry: &Plain| Entry {
        quantizer_name: match entry.get("quantizer_name") {
            Some(Plain::Str(name)) => name.clone(),
            other => panic!("{other:?}"),
        },
        parent_class: match entry.get("parent_class") {
            Some(Plain::Str(class)) => Some(class.clone()),
            _ => None,
        },
        cfg: match entry.get("cfg") {
            Some(Plain::None) => vec![],
            Some(Plain::List(all)) => all.iter().map(attributes).collect(),
            one => vec![attributes(one.unwrap())],
        },
        enable: is_true(entry.get("enable")),
    };
    let max = QuantConfig::named("fp8").unwrap();
    QuantConfig { name: name.to_owned(), entries: entries.iter().map(entry).collect(), ..max }
}

fn state(attributes: &Attributes) -> Plain {
    sorted(QuantizerState { attributes, input_dtype: None, buffers: &[], rows: 0 }.dump())
}

#[test]
fn every_quantizer_gets_modelopts_attributes() {
    let states: Vec<_> = list(&CHOICES["states"]).iter().map(|state| sorted(plain(state))).collect();
    let (mut configs, mut quantizers, mut refused) = (0, 0, 0);
    for (name, dumped) in CHOICES["configs"].as_object().unwrap() {
        let config = QuantConfig::named(name).unwrap_or_else(|_| own(name, dumped));
        assert_eq!(config.dump().get("quant_cfg"), quantize_mode(dumped, &CHOICES["attributes"]).get("quant_cfg"));
        configs += 1;
        for model in ["hf", "megatron"] {
            let sites = sites(model);
            let expected = &dumped["applied"][model];
            let resolution = match config.resolve(&sites) {
                Err(ConfigError::NoWeights(_)) => {
                    assert_eq!(expected["took_effect"], false, "{name} {model}");
                    refused += 1;
                    continue;
                }
                other => other.unwrap(),
            };
            assert_eq!(expected["took_effect"], true, "{name} {model}");
            for group in list(&expected["groups"]) {
                let stages: Vec<_> = list(&group[0]).iter().map(|number| &states[index(number)]).collect();
                for site in list(&group[1]).iter().map(index) {
                    let found: Vec<_> = resolution.stages[site].iter().map(state).collect();
                    assert_eq!(found.iter().collect::<Vec<_>>(), stages, "{name} {}", sites[site].name);
                    quantizers += 1;
                }
            }
        }
    }
    // 39 of ModelOpt and 22 made up, on 78 and 93 quantizers, less those that ModelOpt refuses.
    assert_eq!((configs, refused), (61, 13));
    assert_eq!(quantizers, 61 * (78 + 93) - 6 * 78 - 7 * 93);
}

#[test]
fn entries_that_match_nothing_are_told_and_the_routine_ones_kept_apart() {
    let config = QuantConfig::named("fp8").unwrap().exclude("*embeding*");
    let resolution = config.resolve(&sites("hf")).unwrap();
    let name = |index: &usize| config.entries[*index].quantizer_name.as_str();
    assert_eq!(resolution.unexpected.iter().map(name).collect::<Vec<_>>(), ["*embeding*"]);
    assert!(resolution.unmatched.iter().map(name).any(|name| name == "*vision_tower*"));
    assert!(!resolution.unmatched.iter().map(name).any(|name| name == "*lm_head*"));
    let head = sites("hf").iter().position(|site| site.name == "lm_head.weight_quantizer").unwrap();
    assert_eq!(resolution.decided_by[head].as_ref().map(name), Some("*lm_head*"));
}

#[test]
fn the_error_names_the_patterns_that_ask_for_weights() {
    let error = QuantConfig::named("nvfp4_mlp_weight_only").unwrap().resolve(&sites("hf")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no weight is quantized, though the config asks for it with \
         `*block_sparse_moe*weight_quantizer`, `*mlp*weight_quantizer`"
    );
}

#[test]
fn a_sequence_inside_a_sequence_is_refused() {
    let mut config = QuantConfig::named("w4a8_awq_beta").unwrap();
    let weights = config.entries[1].clone();
    config.entries.push(weights);
    assert!(matches!(config.resolve(&sites("hf")), Err(ConfigError::Nested(_, _))));
}

#[test]
fn states_of_calibrated_quantizers_are_modelopts() {
    let sites = ["weight_quantizer", "input_quantizer", "output_quantizer"]
        .map(|name| QuantizerSite { name: format!("m.mlp.down_proj.{name}"), parent_class: "nn.Linear" });
    let mut compared = 0;
    for (i, dumped) in list(&CHOICES["calibrated"]).iter().enumerate() {
        let config = QuantConfig::named(dumped[0].as_str().unwrap()).unwrap();
        let resolution = config.resolve(&sites).unwrap();
        let stages = &resolution.stages[i % 3];
        for (attributes, expected) in stages.iter().zip(list(&dumped[1])) {
            let Plain::Dict(mut entries) = plain(expected) else { panic!() };
            // What is left of the search; loading does not need it.
            entries.retain(|(key, _)| *key != Plain::str("_amax_for_smoothing"));
            let expected = Plain::Dict(entries);
            let buffers = buffers(&expected);
            let input_dtype = match expected.get("_input_dtype") {
                Some(Plain::Dtype(name)) => Some(name.as_str()),
                _ => None,
            };
            // down_proj is [128, 256].
            let found = QuantizerState { attributes, input_dtype, buffers: &buffers, rows: 128 }.dump();
            assert_eq!(sorted(found), sorted(expected), "{} {i}", config.name);
            compared += 1;
        }
        assert_eq!(stages.len(), list(&dumped[1]).len());
    }
    assert_eq!(compared, 8 * 3 + 1);
}

/// Seen in checkpoints that ModelOpt saved of models with the Transformer Engine's modules: `interop/quantize.py`.
#[test]
fn a_linear_that_no_entry_gives_attributes_has_an_axis_of_rows() {
    let site = |name: &str, parent_class| QuantizerSite { name: format!("decoder.layers.0.mlp.{name}"), parent_class };
    let sites = [
        site("linear_fc1.weight_quantizer", "te_mcore_Linear"),
        site("linear_fc1.weight_quantizer", "megatron_ColumnParallelLinear"),
        site("linear_fc1.input_quantizer", "te_mcore_Linear"),
    ];
    let config = QuantConfig::named("nvfp4_experts_only").unwrap();
    let config = QuantConfig { entries: config.entries[..1].to_vec(), ..config };
    let stages = config.resolve(&sites).unwrap().stages;
    let seen: Vec<_> = stages.iter().map(|stages| (stages[0].axis, stages[0].enable)).collect();
    assert_eq!(seen, [(Some(0), false), (Some(0), false), (None, false)]);
}
