//! What the options of a command add to a config.

use longshore_quant::config::{ConfigError, Plain, QuantConfig};

use crate::applied::sites;

/// The names of a model's quantizers that are on.
fn on(config: &QuantConfig, model: &str) -> Vec<String> {
    let sites = sites(model);
    let resolution = config.resolve(&sites).unwrap();
    let on = sites.into_iter().zip(resolution.stages).filter(|(_, stages)| stages.iter().any(|stage| stage.enable));
    on.map(|(site, _)| site.name).collect()
}

fn named(name: &str) -> QuantConfig {
    QuantConfig::named(name).unwrap()
}

#[test]
fn weight_only_leaves_weights() {
    let on = on(&named("fp8").weight_only(), "megatron");
    assert!(!on.is_empty());
    assert!(on.iter().all(|name| name.ends_with("weight_quantizer")), "{on:?}");
}

#[test]
fn attention_can_be_left_out_where_megatron_names_it() {
    let config = named("fp8").disable_qkv_quant();
    let on = on(&config, "megatron");
    assert!(!on.iter().any(|name| name.contains("self_attention")), "{on:?}");
    assert!(on.iter().any(|name| name.contains("in_proj")));
}

#[test]
fn what_is_excluded_is_off() {
    let on = on(&named("fp8").exclude("*.layers.[45].*"), "hf");
    assert!(on.iter().any(|name| name.contains("layers.3.")));
    assert!(!on.iter().any(|name| name.contains("layers.4.") || name.contains("layers.5.")));
}

#[test]
fn the_kv_cache_comes_last_and_brings_a_calibration() {
    let before = named("mxfp8");
    let config = before.clone().with_kv_cache("fp8").unwrap();
    assert_eq!(config.entries[..before.entries.len()], before.entries);
    assert_eq!(config.entries.last().unwrap().quantizer_name, "*[kv]_bmm_quantizer");
    assert_eq!((before.stated_algorithm, config.stated_algorithm), (Plain::None, Plain::str("max")));
    assert_eq!(config.algorithm[0].mode().0, "max_calibrate");
    assert!(on(&config_of("fp8", "fp8"), "hf").contains(&"model.layers.2.mixer.k_bmm_quantizer".to_owned()));
}

fn config_of(name: &str, kv: &str) -> QuantConfig {
    named(name).with_kv_cache(kv).unwrap()
}

#[test]
fn kv_caches_have_short_names() {
    for (short, name) in [
        ("fp8", "FP8_KV_CFG"),
        ("fp8_affine", "FP8_AFFINE_KV_CFG"),
        ("NVFP4", "NVFP4_KV_CFG"),
        ("nvfp4_affine", "NVFP4_AFFINE_KV_CFG"),
        ("nvfp4-rotate", "NVFP4_KV_ROTATE_CFG"),
    ] {
        let entries = config_of("fp8", short).entries;
        assert_eq!(entries[named("fp8").entries.len()..], named(name).entries, "{short}");
        assert_eq!(config_of("fp8", name).entries, entries);
    }
    assert_eq!(config_of("fp8", "none"), named("fp8"));
    let cast = config_of("fp8", "nvfp4_cast");
    assert!(cast.entries.last().unwrap().cfg[0].use_constant_amax);
    let error = named("fp8").with_kv_cache("int8").unwrap_err();
    assert!(matches!(&error, ConfigError::Unknown(name, _) if name == "int8"));
    assert!(
        error
            .to_string()
            .ends_with("known: none, fp8, fp8_affine, nvfp4, nvfp4_affine, nvfp4_rotate, fp8_cast, nvfp4_cast")
    );
}
