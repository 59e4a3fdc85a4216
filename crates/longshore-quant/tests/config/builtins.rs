//! Recipes that are built in. That they say what ModelOpt's loader gives is checked by `interop/recipes.py`.

use std::collections::BTreeSet;

use longshore_quant::config::{BuiltIn, ConfigError, QuantConfig, built_ins};

use crate::recipes::load_named as load;

fn config(name: &str) -> QuantConfig {
    load(name, &[]).unwrap().config
}

fn named(name: &str) -> &'static BuiltIn {
    built_ins().iter().find(|recipe| recipe.name == name).unwrap()
}

#[test]
fn every_recipe_is_implemented_or_refused_by_its_algorithm() {
    let mut refused = Vec::new();
    for recipe in built_ins() {
        let config = recipe.config().unwrap();
        assert_eq!(config.name, recipe.name);
        assert_eq!(config.entries[0].quantizer_name, "*", "{}", recipe.name);
        assert!(
            config.entries.iter().any(|e| e.enable && e.quantizer_name.ends_with("weight_quantizer")),
            "{}",
            recipe.name
        );
        for attributes in config.entries.iter().flat_map(|entry| &entry.cfg) {
            attributes.scheme().unwrap();
        }
        if let Err(error) = config.implemented() {
            refused.push((recipe.name, error.to_string()));
        }
    }
    let refused: Vec<_> = refused.iter().map(|(name, error)| (*name, error.split(';').next().unwrap())).collect();
    assert_eq!(
        refused,
        [
            ("general/ptq/nvfp4_act_headroom-kv_fp8_cast", "algorithm `nvfp4_act_headroom` is not implemented"),
            ("general/ptq/nvfp4_default-kv_none-gptq", "algorithm `gptq` is not implemented"),
        ]
    );
    assert_eq!(built_ins().len(), 29);
}

#[test]
fn a_name_stands_for_one_recipe_with_or_without_its_ending() {
    let mut seen = BTreeSet::new();
    for recipe in built_ins() {
        for name in [recipe.name].iter().chain(recipe.older) {
            assert!(seen.insert(name.replace('-', "_").to_lowercase()), "{name} stands for two recipes");
            for spelling in [format!("{name}.yaml"), format!("{name}.yml"), name.replace('-', "_"), name.to_uppercase()]
            {
                assert_eq!(config(&spelling).name, recipe.name, "{spelling}");
            }
        }
    }
}

#[test]
fn names_of_jobs_and_earlier_releases_are_known() {
    for (older, name) in [
        ("general/ptq/nvfp4_default-fp8_kv", "general/ptq/nvfp4_default-kv_fp8"),
        ("general/ptq/fp8_default-fp8_kv.yml", "general/ptq/fp8_default-kv_fp8"),
        ("general/ptq/nvfp4_default-none_kv_gptq", "general/ptq/nvfp4_default-kv_none-gptq"),
        (
            "models/Nemotron-3-Super-120B-A12B/super-nvfp4",
            "models/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16/ptq/nvfp4-mse",
        ),
        (
            "models/Nemotron-3-Super-120B-A12B/super-nvfp4-max-calib",
            "models/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16/ptq/nvfp4-max-calib",
        ),
        (
            "huggingface/models/nvidia/Nemotron-3-Ultra-550B-A55B-BF16/ptq/nvfp4-4o6",
            "models/nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16/ptq/nvfp4-4o6",
        ),
        (
            "huggingface/models/nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16/ptq/w4a16_nvfp4_4o6",
            "models/nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16/ptq/w4a16_nvfp4_4o6",
        ),
    ] {
        assert_eq!(config(older), named(name).config().unwrap(), "{older}");
    }
}

#[test]
fn a_recipe_is_a_named_config_with_keys_and_values_before_what_is_always_off() {
    let fp8 = QuantConfig::named("fp8").unwrap();
    let kv = QuantConfig::named("fp8_kv").unwrap();
    let recipe = config("general/ptq/fp8_default-kv_fp8");
    let expected: Vec<_> = fp8.entries[..3].iter().chain(&kv.entries).chain(&fp8.entries[3..]).cloned().collect();
    assert_eq!(recipe.entries, expected);
    assert_eq!(recipe.stated_algorithm, fp8.stated_algorithm);
    for (recipe, preset) in [
        ("general/ptq/int4_blockwise_weight_only", "int4_wo"),
        ("general/ptq/mxfp4_mlp_weight_only", "mxfp4_mlp_weight_only"),
        ("general/ptq/nvfp4_mlp_weight_only", "nvfp4_mlp_weight_only"),
        ("general/ptq/nvfp4_weight_only-kv_fp16", "w4a16_nvfp4"),
    ] {
        assert_eq!(config(recipe).dump(), QuantConfig::named(preset).unwrap().dump(), "{recipe}");
    }
}

#[test]
fn a_file_comes_first_then_the_folder_of_recipes_then_what_is_built_in() {
    let name = "general/ptq/fp8_default-kv_fp8";
    let text = |glob: &str| {
        format!(
            "metadata: {{recipe_type: ptq}}\nquantize:\n  quant_cfg:\n  - {{quantizer_name: {glob}, enable: false}}\n"
        )
    };
    let (here, there) = (text("here"), text("there"));
    let (in_place, in_folder) = (format!("{name}.yml"), format!("lib/{name}.yaml"));
    let first = |files: &[(&str, &str)]| {
        let recipe = load(name, files).unwrap();
        (recipe.config.entries[0].quantizer_name.clone(), recipe.file)
    };
    assert_eq!(first(&[(&in_folder, &there), (&in_place, &here)]), ("here".to_owned(), Some(in_place.clone())));
    assert_eq!(first(&[(&in_folder, &there)]), ("there".to_owned(), Some(in_folder.clone())));
    assert_eq!(first(&[]), ("*".to_owned(), None));
    // A file that is there and broken is not passed over.
    assert!(load(name, &[(&in_place, "metadata: 1\n")]).is_err());
}

#[test]
fn what_is_not_built_in_is_refused_with_the_reason() {
    for (name, expected) in [
        (
            "general/auto_quantize/nvfp4_fp8_at_5p4bits",
            "recipe `general/auto_quantize/nvfp4_fp8_at_5p4bits`: it searches for mixed precision (auto_quantize), which is \
             not implemented",
        ),
        (
            "general/qad/nvfp4_lsq-mse_init-fp8_kv.yaml",
            "quantization-aware distillation (QAD), which is not implemented",
        ),
        ("general/distillation/dmd2_qwen_image", "distills a diffusion model, which is not implemented"),
        ("configs/ptq/presets/diffusers/nvfp4", "for diffusion models, which are not implemented"),
        ("general/speculative_decoding/eagle3", "speculative decoding, which is not implemented"),
        ("huggingface/gemma/ptq/int8_sq-kv_fp8_cast", "another architecture, and not built in"),
    ] {
        let error = load(name, &[]).unwrap_err();
        assert!(matches!(error, ConfigError::NotBuiltIn(..)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    for name in ["general/ptq/nvfp4_default-kv_fp9", "fp8.yaml", "/general/ptq/fp8_default-kv_fp8", ".yaml", "/"] {
        let error = load(name, &[]).unwrap_err();
        assert_eq!(error, ConfigError::NoRecipe(name.to_owned()));
    }
}
