//! Configs by name.

use longshore_quant::config::{Algorithm, ConfigError, Method, Plain, QuantConfig, choices, modelopt_state};

use crate::fixture::{CHOICES, compare, quantize_mode};

/// The names of ModelOpt's configs in the fixture; the others are made up there.
fn is_modelopts(name: &str) -> bool {
    name.ends_with("_CFG") || name.ends_with("_CONFIG")
}

#[test]
fn every_config_of_modelopts_list_expands_to_the_same() {
    let mut compared = 0;
    for (name, dumped) in CHOICES["configs"].as_object().unwrap().iter().filter(|(name, _)| is_modelopts(name)) {
        compare(&QuantConfig::named(name).unwrap(), dumped, &CHOICES["attributes"]);
        compared += 1;
    }
    assert_eq!(compared, 39);
}

#[test]
fn no_config_has_a_name_that_modelopt_does_not_know_but_the_two_caches_with_a_constant_amax() {
    let known = CHOICES["configs"].as_object().unwrap();
    let own: Vec<_> = choices().iter().map(|c| c.name).filter(|name| !known.contains_key(*name)).collect();
    assert_eq!(own, ["FP8_CAST_KV_CFG", "NVFP4_CAST_KV_CFG"]);
}

#[test]
fn short_names_are_those_of_modelopts_presets() {
    for (short, name) in [
        ("fp8", "FP8_DEFAULT_CFG"),
        ("NVFP4", "NVFP4_DEFAULT_CFG"),
        ("int4_awq", "INT4_AWQ_CFG"),
        ("w4a8-awq-beta", "W4A8_AWQ_BETA_CFG"),
        ("w4a8_awq", "W4A8_AWQ_BETA_CFG"),
        ("int8_smoothquant", "INT8_SMOOTHQUANT_CFG"),
        ("int8_sq", "INT8_SMOOTHQUANT_CFG"),
        ("mamba_moe_nvfp4_conservative", "MAMBA_MOE_NVFP4_CONSERVATIVE_CFG"),
        ("nvfp4_svdquant", "NVFP4_SVDQUANT_DEFAULT_CFG"),
        ("nvfp4_fp8_mha", "NVFP4_FP8_MHA_CONFIG"),
        ("nvfp4_default_cfg", "NVFP4_DEFAULT_CFG"),
        ("fp8_kv", "FP8_KV_CFG"),
    ] {
        assert_eq!(QuantConfig::named(short).unwrap().name, name);
    }
    let mut names: Vec<_> = choices().iter().flat_map(|c| c.aliases.iter().map(|a| (*a).to_owned())).collect();
    names.extend(choices().iter().map(longshore_quant::config::Choice::short));
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "a name stands for two configs");
}

#[test]
fn an_unknown_name_is_refused_with_the_list() {
    let error = QuantConfig::named("fp9").unwrap_err();
    assert!(matches!(error, ConfigError::Unknown(..)));
    assert!(error.to_string().contains("mamba_moe_fp8_aggressive, "), "{error}");
}

#[test]
fn methods_carry_the_settings_that_change_numbers() {
    let method = |name: &str| QuantConfig::named(name).unwrap().algorithm.remove(0).method;
    assert_eq!(method("int8_smoothquant"), Method::SmoothQuant { alpha: 1.0 });
    assert_eq!(method("int4_awq"), Method::AwqLite { alpha_step: 0.1 });
    assert_eq!(method("mxfp4"), Method::None);
    let Method::Mse(sweep) = method("nvfp4_4o6") else { panic!() };
    assert_eq!((sweep.start, sweep.stop, sweep.step, sweep.fp8_scale_sweep), (1.0, 1.5, 0.5, false));
    let Method::AwqFull { clip, .. } = method("nvfp4_awq_full") else { panic!() };
    assert_eq!((clip.min_clip_ratio, clip.shrink_step, clip.max_tokens_per_batch), (0.5, 0.05, 64));
}

#[test]
fn what_is_not_implemented_is_refused_by_name_with_the_list() {
    let refused: Vec<_> =
        choices().iter().filter(|c| c.config().unwrap().implemented().is_err()).map(|c| c.name).collect();
    assert_eq!(refused, ["NVFP4_SVDQUANT_DEFAULT_CFG", "NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG"]);
    let error = QuantConfig::named("nvfp4_svdquant").unwrap().implemented().unwrap_err().to_string();
    assert_eq!(
        error,
        "algorithm `svdquant` is not implemented; implemented: \
         max, mse, smoothquant, awq_lite, awq_clip, awq_full, or none"
    );
}

#[test]
fn settings_are_checked() {
    let refuse = |settings: &[(&str, Plain)]| {
        Algorithm::new(&Plain::dict(settings.iter().map(|(name, value)| (*name, value.clone()))))
            .unwrap_err()
            .to_string()
    };
    let method = |name: &str| ("method", Plain::str(name));
    let cases: [(&[(&str, Plain)], &str); 9] = [
        (&[method("maximum")], "algorithm: no method `maximum`: max, mse"),
        (&[("alpha", Plain::Float(1.0))], "algorithm: it has no `method`"),
        (&[method("max"), ("alpha", Plain::Float(1.0))], "algorithm: max has no setting `alpha`: moe_calib"),
        (&[method("smoothquant"), ("alpha", Plain::Float(1.5))], "`alpha` must be a number from 0 to 1"),
        (&[method("smoothquant"), ("alpha", Plain::Float(f64::NAN))], "`alpha` must be a number from 0 to 1"),
        (&[method("awq_lite"), ("alpha_step", Plain::Int(0))], "`alpha_step` must be a number above 0, at most 1"),
        (&[method("awq_clip"), ("min_clip_ratio", Plain::Int(1))], "`min_clip_ratio` must be a number between 0 and 1"),
        (&[method("mse"), ("fp8_scale_sweep", Plain::Int(1))], "`fp8_scale_sweep` must be true or false"),
        (&[method("max"), ("layerwise", Plain::Bool(true))], "layerwise: it is not a mapping"),
    ];
    for (settings, expected) in cases {
        let error = refuse(settings);
        assert!(error.contains(expected), "{error}\n{expected}");
    }
}

#[test]
fn modelopt_state_is_the_list_of_modes() {
    let config = QuantConfig::named("fp8").unwrap();
    let state = modelopt_state(&config, "0.47.0");
    assert_eq!(state.get("modelopt_version"), Some(&Plain::str("0.47.0")));
    let Some(Plain::List(modes)) = state.get("modelopt_state_dict") else { panic!() };
    let [Plain::Tuple(quantize), Plain::Tuple(calibrate)] = modes.as_slice() else { panic!() };
    assert_eq!(quantize[0], Plain::str("quantize"));
    let dumped = &CHOICES["configs"]["FP8_DEFAULT_CFG"];
    assert_eq!(quantize[1].get("config"), Some(&quantize_mode(dumped, &CHOICES["attributes"])));
    assert_eq!(quantize[1].get("metadata"), Some(&Plain::Dict(vec![])));
    assert_eq!(calibrate[0], Plain::str("max_calibrate"));
}
