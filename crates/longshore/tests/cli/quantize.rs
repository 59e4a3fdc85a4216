//! `longshore quantize`, `export` and `lint` of what it writes.

use crate::harness::{Dir, model};

fn source() -> String {
    model().to_str().expect("UTF-8").to_owned()
}

const FEW: [&str; 4] = ["--calib-size", "3", "--calib-seq", "48"];

#[test]
fn a_quantized_checkpoint_is_exported_linted_verified_and_run() {
    let dir = Dir::new();
    let said =
        dir.ok(
            &[&["quantize", &source(), "mc", "--quant-cfg", "FP8_DEFAULT_CFG", "--kv-cache", "fp8"], &FEW[..]].concat()
        );
    for part in [
        "88 of 89 linears quantized, keys and values fp8",
        "Calibrated  12 layers",
        "KL(source || result)",
        "Born in California",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    dir.ok(&["verify", "mc"]);
    dir.ok(&["export", "mc", "hf"]);
    dir.ok(&["verify", "hf"]);
    let linted = dir.json(&["lint", "hf"]);
    assert_eq!(linted["accepted"], true, "{linted}");
    for name in ["mc", "hf"] {
        let text = dir.ok(&["generate", name, "Once upon a time", "--max-new", "8", "-q"]);
        assert!(text.len() > 20, "{name}: {text}");
    }
    let config = std::fs::read_to_string(dir.path("hf/config.json")).expect("a config");
    assert!(config.contains("\"quant_algo\": \"FP8\""), "{config}");
}

#[test]
fn both_forms_of_one_calibration_hold_the_same() {
    // AWQ scales no inputs of experts that are one module.
    for config in ["NVFP4_AWQ_LITE_CFG", "nvfp4"] {
        let dir = Dir::new();
        let args = ["quantize", &source(), "mc", "--quant-cfg", config, "--also-hf", "hf", "--skip-generate", "-q"];
        dir.ok(&[&args[..], &FEW].concat());
        dir.ok(&["export", "mc", "again", "-q"]);
        for file in ["model.safetensors", "config.json", "hf_quant_config.json"] {
            let read = |name: &str| std::fs::read(dir.path(name).join(file)).expect("a file");
            assert!(read("hf") == read("again"), "{config}: {file}");
        }
    }
}

#[test]
fn the_same_command_again_finds_its_calibration() {
    let dir = Dir::new();
    dir.ok(&[&["quantize", &source(), "mc", "--quant-cfg", "nvfp4", "--skip-generate", "-q"], &FEW[..]].concat());
    let said =
        dir.ok(
            &[&["quantize", &source(), "mc", "--quant-cfg", "nvfp4", "--skip-generate", "--force"], &FEW[..]].concat()
        );
    assert!(said.contains("by an earlier run"), "{said}");
}

#[test]
fn a_format_without_calibration_runs_no_model() {
    let dir = Dir::new();
    let said = dir.ok(&["quantize", &source(), "hf", "--quant-cfg", "mxfp8", "--to", "hf", "--skip-generate"]);
    assert!(said.contains("nothing: the scales of this config are found in the weights"), "{said}");
    dir.ok(&["convert", "hf", "mc", "--dequantize", "-q"]);
    dir.ok(&["verify", "mc", "-q"]);
}

#[test]
fn a_dry_run_shows_what_every_linear_gets() {
    let dir = Dir::new();
    let said = dir.ok(&["quantize", &source(), "mc", "--quant-cfg", "MAMBA_MOE_NVFP4_CONSERVATIVE_CFG", "--dry-run"]);
    let line = |module: &str| said.lines().find(|l| l.contains(module)).unwrap_or_default().to_owned();
    assert!(!line("decoder.layers.0.mixer.in_proj").contains("nvfp4"), "{said}");
    assert!(line("mlp.experts.*.linear_fc1").contains("nvfp4/16"), "{said}");
    assert!(!dir.path("mc").exists());
}

#[test]
fn a_recipe_is_a_file_by_its_path_or_below_a_folder_or_built_in() {
    let dir = Dir::new();
    let name = "general/ptq/nvfp4_default-fp8_kv";
    let source = source();
    let dry = |args: &[&str]| dir.json(&[&["quantize", &source, "mc", "--dry-run", "--quant-cfg"], args].concat());
    let built_in = dry(&[name]);
    let canonical = "general/ptq/nvfp4_default-kv_fp8";
    assert_eq!(built_in["recipe"], serde_json::json!({"name": canonical, "built_in": true}), "{built_in}");
    let by_config = dry(&["nvfp4", "--kv-cache", "fp8"]);
    assert_eq!(by_config["recipe"], serde_json::Value::Null);
    assert!(!built_in["linears"].as_array().expect("a list").is_empty(), "{built_in}");
    assert_eq!(built_in["linears"], by_config["linears"]);
    let said = dir.ok(&["quantize", &source, "mc", "--dry-run", "--quant-cfg", name]);
    for part in [
        "Recipe  built-in equivalent of ModelOpt's general/ptq/nvfp4_default-kv_fp8\n",
        "88 of 89 linears quantized, keys and values fp8",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    let text = |weights: &str| {
        let entry = format!("{{quantizer_name: '*mlp*weight_quantizer', cfg: {{num_bits: {weights}}}}}");
        format!(
            "metadata: {{recipe_type: ptq}}\nquantize:\n  quant_cfg:\n  - {{quantizer_name: '*', enable: false}}\n  - {entry}\n"
        )
    };
    let write = |path: String, text: String| {
        let path = dir.path(&path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    };
    write(format!("recipes/{name}.yaml"), text("e4m3"));
    let below = dry(&[name, "--recipe-dir", "recipes"]);
    let file = format!("recipes/{name}.yaml");
    assert_eq!(below["recipe"], serde_json::json!({"name": file, "built_in": false}), "{below}");
    write(format!("{name}.yml"), text("8, axis: 0"));
    let here = dry(&[name, "--recipe-dir", "recipes"]);
    assert_eq!(here["recipe"]["name"], format!("{name}.yml"));
    assert_ne!(here["linears"], below["linears"]);
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_written() {
    let dir = Dir::new();
    std::fs::write(dir.path("bad.jsonl"), "{\"text\": \"a\"}\n{\"text\": \n").expect("a file");
    std::fs::write(dir.path("empty.jsonl"), "").expect("a file");
    dir.ok(&["quantize", &source(), "hf", "--quant-cfg", "mxfp8", "--to", "hf", "--skip-generate", "-q"]);
    for (args, said) in [
        (vec![source().as_str(), "mc"], "--quant-cfg"),
        (vec![source().as_str(), "mc", "--quant-cfg", "fp9"], "no quantization config is called `fp9`"),
        (vec![source().as_str(), "mc", "--quant-cfg", "NVFP4_SVDQUANT_DEFAULT_CFG"], "not implemented"),
        (
            vec![source().as_str(), "mc", "--quant-cfg", "general/ptq/nvfp4_default-kv_none-gptq"],
            "general/ptq/nvfp4_default-kv_none-gptq: algorithm `gptq` is not implemented",
        ),
        (
            vec![source().as_str(), "mc", "--quant-cfg", "general/ptq/nvfp4_default-kv_fp9"],
            "hint: did you mean `general/ptq/nvfp4_default-kv_fp8`? `longshore quantize --list` shows what is built in; \
             `--recipe-dir DIR`",
        ),
        (
            vec![source().as_str(), "mc", "--quant-cfg", "general/qad/nvfp4_default-kv_fp8"],
            "(QAD), which is not implemented",
        ),
        (vec![source().as_str(), "mc", "--quant-cfg", "fp8", "--calib", "bad.jsonl"], "bad.jsonl"),
        (vec![source().as_str(), "mc", "--quant-cfg", "fp8", "--calib", "empty.jsonl"], "empty.jsonl"),
        (vec!["hf", "mc", "--quant-cfg", "fp8"], "quantized already"),
        (vec![source().as_str(), "mc", "--quant-cfg", "fp8", "--to", "hf", "--tp", "2"], "--tp"),
    ] {
        let text = dir.run(&[&["quantize"], &args[..]].concat());
        assert!(text.starts_with("exit 2\n") && text.contains(said), "{args:?}: {text}");
        assert!(!dir.path("mc").exists(), "{args:?}");
    }
}

#[test]
fn the_list_is_made_from_the_code() {
    let list = Dir::new().json(&["quantize", "--list"]);
    let configs = list["configs"].as_array().expect("configs");
    assert!(configs.len() >= 39, "{}", configs.len());
    let fp8 = configs.iter().find(|c| c["name"] == "FP8_DEFAULT_CFG").expect("FP8");
    assert_eq!((&fp8["weights"], &fp8["inputs"]), (&"fp8".into(), &"fp8".into()));
    let recipes = list["recipes"].as_array().expect("recipes");
    let named = |ending: &str| {
        recipes.iter().find(|r| r["name"].as_str().is_some_and(|name| name.ends_with(ending))).expect("a recipe")
    };
    let ultra = named("ptq/nvfp4-4o6");
    let shown = ["weights", "inputs", "kv_cache", "algorithm"].map(|field| ultra[field].as_str().expect("a text"));
    assert_eq!(shown, ["nvfp4-4o6/16, fp8", "nvfp4/16, fp8", "fp8", "mse"]);
    let refused: Vec<_> = recipes.iter().filter(|r| r["implemented"] == false).collect();
    assert_eq!(refused, [named("act_headroom-kv_fp8_cast"), named("kv_none-gptq")]);
}

#[test]
fn weights_that_stay_in_codes_say_the_same() {
    let dir = Dir::new();
    for (config, form) in
        [("int8_wo", "hf"), ("fp8", "hf"), ("fp8", "torch_dist"), ("mxfp8", "hf"), ("nvfp4", "torch_dist")]
    {
        let args =
            ["quantize", &source(), "q", "--quant-cfg", config, "--to", form, "--skip-generate", "--force", "-q"];
        dir.ok(&[&args[..], &FEW].concat());
        let generate = ["generate", "q", "Once upon a time", "--max-new", "12", "--weights"];
        let [simulated, packed] =
            ["simulated", "packed"].map(|weights| dir.json(&[&generate[..], &[weights]].concat()));
        let text = |json: &serde_json::Value| json["text"].clone();
        assert!(text(&simulated).as_str().is_some_and(|text| text.len() > 20), "{config} {form}: {simulated}");
        assert_eq!(text(&packed), text(&simulated), "{config} {form}");
        let said = dir.run(&[&generate[..], &["packed"]].concat());
        assert!(said.contains("32 of 33 linears stay in codes"), "{config} {form}: {said}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_all_named_and_nothing_is_left() {
    let dir = Dir::new();
    let folder = dir.model_with("nan", |_| {});
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("weights");
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..header]).expect("a header");
    let [nan, infinite] = ["backbone.layers.0.mixer.out_proj.weight", "backbone.layers.3.mixer.up_proj.weight"];
    for (name, upper) in [(nan, 0x7fc0_u16), (infinite, 0x7f80)] {
        let at = header + tensors[name]["data_offsets"][0].as_u64().expect("an offset") as usize + 10;
        bytes[at..at + 2].copy_from_slice(&upper.to_le_bytes());
    }
    std::fs::write(&path, bytes).expect("weights");
    for args in
        [&["fp8"][..], &["fp8", "--to", "hf"], &["int4_awq"], &["mxfp8", "--to", "hf"], &["fp8", "--weight-only"]]
    {
        let text = dir.run(&[&["quantize", "nan", "q", "--skip-generate", "--quant-cfg"], args, &FEW[..]].concat());
        assert!(text.starts_with("exit 2\n"), "{args:?}: {text}");
        assert!(text.contains(nan) && text.contains(infinite), "{args:?}: {text}");
        let left: Vec<_> =
            std::fs::read_dir(dir.path(".")).expect("a folder").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["nan"], "{args:?}");
    }
}
