//! Recipes in files. `interop/recipes.py` compares those of an installed ModelOpt with what its loader gives.

use std::collections::HashMap;
use std::io;

use longshore_quant::NumBits;
use longshore_quant::config::{
    ConfigError, Method, Plain,
    recipe::{Library, Recipe},
};

/// The recipe `main.yaml` among `files`.
fn load(files: &[(&str, &str)]) -> Result<Recipe, ConfigError> {
    load_named("main.yaml", files)
}

/// The recipe `name` where there are these files, `lib` a folder of recipes.
pub(crate) fn load_named(name: &str, files: &[(&str, &str)]) -> Result<Recipe, ConfigError> {
    let files: HashMap<_, _> = files.iter().copied().collect();
    let read = |path: &str| files.get(path).map(|t| (*t).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into());
    Library { read: &read, dirs: vec!["lib".to_owned()] }.load(name)
}

/// The error of a recipe whose `quant_cfg` has the one entry `entry`, indented by six.
fn refused(entry: &str) -> String {
    let text =
        format!("metadata:\n  recipe_type: ptq\nquantize:\n  quant_cfg:\n    - {}\n", entry.replace('\n', "\n      "));
    load(&[("main.yaml", &text)]).unwrap_err().to_string()
}

const HEAD: &str = "metadata:\n  recipe_type: ptq\n";

#[test]
fn imports_are_spliced_appended_and_overlaid() {
    let main = "\
imports:
  deny: units/off
  one: units/one.yml
  fp8: fp8
  twice: twice
metadata:
  recipe_type: ptq
  description: >-
    Two lines
    are one.
quantize:
  algorithm: {method: smoothquant, alpha: 0.5}
  quant_cfg:
    - $import: deny
    - $import: one
    - quantizer_name: '*input_quantizer'
      cfg:
        $import: fp8
        axis: 0
    - quantizer_name: '*out*'
      cfg: [{$import: fp8}, {$import: twice}]
    - quantizer_name: '*in*'
      cfg:
        $import: [fp8, twice]
        fake_quant: no
";
    let entries = "# modelopt-schema: modelopt.torch.quantization.config.QuantizerCfgListConfig\n";
    let attributes = "# modelopt-schema: modelopt.torch.quantization.config.QuantizerAttributeConfig\n";
    let recipe = load(&[
        ("main.yaml", main),
        // The recipe's own folder comes before the library.
        ("units/off.yaml", &format!("{entries}imports:\n  fp8: fp8\n---\n- quantizer_name: '*'\n  enable: false\n- quantizer_name: a\n  cfg: {{$import: fp8}}\n")),
        ("lib/units/off.yml", "not: read"),
        ("lib/units/one.yml", "# x\n\n# modelopt-schema: modelopt.torch.quantization.config.QuantizerCfgEntry\nquantizer_name: b\nenable: true\n"),
        ("lib/fp8.yaml", &format!("{attributes}num_bits: e4m3\n")),
        ("lib/twice.yaml", &format!("{attributes}imports: {{fp8: fp8}}\n---\n$import: fp8\nnum_bits: E2M1\nblock_sizes: {{-1: 16, type: dynamic, scale_bits: [4, 3]}}\n")),
    ])
    .unwrap();
    assert_eq!(recipe.description.as_deref(), Some("Two lines are one."));
    let config = &recipe.config;
    assert_eq!(config.algorithm[0].method, Method::SmoothQuant { alpha: 0.5 });
    let names: Vec<_> = config.entries.iter().map(|e| (e.quantizer_name.as_str(), e.enable, e.cfg.len())).collect();
    assert_eq!(
        names,
        [
            ("*", false, 0),
            ("a", true, 1),
            ("b", true, 0),
            ("*input_quantizer", true, 1),
            ("*out*", true, 2),
            ("*in*", true, 1)
        ]
    );
    let fp8 = NumBits::Float(4, 3);
    assert_eq!((config.entries[3].cfg[0].num_bits, config.entries[3].cfg[0].axis), (fp8, Some(0)));
    let last = &config.entries[5].cfg[0];
    assert_eq!((last.num_bits, last.fake_quant), (NumBits::Float(2, 1), false));
    assert_eq!(last.block_sizes.as_ref().unwrap().scale_bits, Some(fp8));
}

#[test]
fn mistakes_in_entries_are_told_with_line_and_field() {
    for (entry, expected) in [
        ("enable: false", "main.yaml:5: an entry of quant_cfg has no `quantizer_name`"),
        ("quantizer_name: a", "main.yaml:5: `a`: an entry needs `cfg`, `enable` or both"),
        (
            "quantizer_name: a\nenabled: true",
            "main.yaml:6: an entry of quant_cfg has no field `enabled`: quantizer_name",
        ),
        ("quantizer_name: a\nenable: 1", "main.yaml:6: enable: neither true nor false"),
        ("quantizer_name: a\ncfg: {}", "main.yaml:6: `a`: `cfg` is empty"),
        ("quantizer_name: a\ncfg: [{num_bits: 8}]", "main.yaml:6: `a`: a sequence needs two"),
        ("quantizer_name: a\ncfg: {enable: true}", "main.yaml:6: cfg: `enable: true` alone"),
        ("quantizer_name: a\ncfg: {num_bit: 8}", "main.yaml:6: cfg: a quantizer has no attribute `num_bit`"),
        ("quantizer_name: a\ncfg:\n  num_bits: e9m9", "main.yaml:7: cfg: num_bits: not one of e4m3"),
        ("quantizer_name: a\ncfg:\n  num_bits: e3m2", "main.yaml:7: cfg: num_bits: this format needs"),
        ("quantizer_name: a\ncfg:\n  num_bits: 0", "main.yaml:7: num_bits: neither a number of bits"),
        ("quantizer_name: a\ncfg: {axis: 0, block_sizes: {-1: 16}}", "main.yaml:6: cfg: axis and block_sizes exclude"),
        ("quantizer_name: a\ncfg: {block_sizes: {-1: 0}}", "main.yaml:6: block_sizes: 0 is no size"),
        ("quantizer_name: a\ncfg: {block_sizes: {kind: x}}", "main.yaml:6: block_sizes: neither an axis nor"),
        ("quantizer_name: a\ncfg: {block_sizes: {-1: 8, -2: 8, type: dynamic}}", "have one axis"),
        ("quantizer_name: a\ncfg: {bias: {type: static}}", "main.yaml:6: bias: no axis"),
        ("quantizer_name: a\ncfg: {type: slow}", "main.yaml:6: type: `slow` is neither static nor dynamic"),
        ("quantizer_name: a\ncfg: {backend: mine}", "main.yaml:6: backend: this value is not supported"),
        ("quantizer_name: a\ncfg: {constant_amax: 0}", "main.yaml:6: constant_amax: not a number above 0"),
        ("quantizer_name: a\ncfg: {constant_amax: 1, use_constant_amax: true}", "constant_amax exclude each other"),
        ("quantizer_name: a\ncfg: {effective_bits: 17}", "main.yaml:6: effective_bits: not a number"),
        ("quantizer_name: a\nquantizer_name: b\nenable: true", "main.yaml:6: this key is there twice"),
    ] {
        let error = refused(entry);
        assert!(error.contains(expected), "{error}\n{expected}");
    }
}

#[test]
fn mistakes_of_whole_recipes_are_told() {
    let attributes = "# modelopt-schema: modelopt.torch.quantization.config.QuantizerAttributeConfig\n";
    let imports = "imports: {x: x}\nmetadata: {recipe_type: ptq}\nquantize: {quant_cfg: [{$import: x}]}\n";
    let many = |depth: usize| format!("{HEAD}a: {}{}", "[".repeat(depth), "]".repeat(depth));
    let deep = many(70);
    let line = |i: u8| {
        let (new, old) = ((b'a' + i) as char, (b'a' + i - 1) as char);
        format!("{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n")
    };
    let bomb = format!("a: &a [x, x, x, x, x, x, x, x, x]\n{}", (1..9).map(line).collect::<Vec<_>>().concat());
    let (misfit, itself) = (format!("{attributes}- a\n"), format!("{attributes}imports: {{x: x}}\n"));
    let cases: Vec<(Vec<(&str, &str)>, &str)> = vec![
        (vec![], "no recipe `main.yaml`: no such file"),
        (vec![("main.yaml", "")], "main.yaml:1: a recipe needs `metadata.recipe_type`"),
        (vec![("main.yaml", "metadata: {recipe_type: speculative_eagle}\n")], "`speculative_eagle` is not supported"),
        (vec![("main.yaml", HEAD)], "main.yaml:1: `quantize` is missing"),
        (vec![("main.yaml", "metadata: {recipe_type: ptq}\nquantize: {}\n")], "main.yaml:2: `quant_cfg` is missing"),
        (
            vec![(
                "main.yaml",
                "metadata: {recipe_type: ptq}\nquantize: {quant_cfg: [], algorithm: {method: mse, x: 1}}\n",
            )],
            "main.yaml:2: algorithm: mse has no setting `x`",
        ),
        (
            vec![("main.yaml", "metadata: {recipe_type: ptq}\nquantize: {quant_cfg: {'*': {enable: false}}}\n")],
            "the old form",
        ),
        (vec![("main.yaml", "a: b: c\n")], "main.yaml:1: not valid YAML"),
        (vec![("main.yaml", "a: !tag b\n")], "main.yaml:1: tags are not supported"),
        (vec![("main.yaml", &deep)], "nested more than 64 deep"),
        (vec![("main.yaml", &bomb)], "too many values"),
        (vec![("main.yaml", imports)], "main.yaml:1: imports.x: no file `x` below ., lib"),
        (vec![("main.yaml", imports), ("x.yaml", "num_bits: 8\n")], "main.yaml:1: imports.x: `x` has no comment"),
        (
            vec![("main.yaml", imports), ("x.yml", "# modelopt-schema: a.B\n- a\n")],
            "`x` holds a a.B, which is not supported",
        ),
        (vec![("main.yaml", imports), ("x.yml", &misfit)], "x.yml:2: this does not fit"),
        (vec![("main.yaml", imports), ("x.yml", &itself)], "x.yml:2: imports.x: `x` imports itself"),
        (vec![("main.yaml", "imports: {x: ../x}\n")], "`../x` is not a path below"),
        (vec![("main.yaml", "imports: {x: /etc/x}\n")], "`/etc/x` is not a path below"),
        (
            vec![("main.yaml", "metadata: {recipe_type: ptq}\nquantize:\n  $import: y\n")],
            "main.yaml:3: $import: `y` is not among the imports: none",
        ),
        (vec![("main.yaml", "a: 1\n---\nb: 2\n---\nc: 3\n")], "3 documents"),
    ];
    for (files, expected) in cases {
        let error = load(&files).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\n{expected}");
    }
}

#[test]
fn imports_cannot_grow_without_end() {
    let entries = "# modelopt-schema: modelopt.torch.quantization.config.QuantizerCfgListConfig\n";
    let names: Vec<_> = (0..12).map(|i| format!("f{i}.yaml")).collect();
    let texts: Vec<_> = (0..12)
        .map(|i| {
            let splice = "- $import: next\n".repeat(10);
            if i == 11 {
                format!("{entries}- quantizer_name: a\n  enable: false\n")
            } else {
                format!("{entries}imports: {{next: f{}}}\n---\n{splice}", i + 1)
            }
        })
        .collect();
    let mut files: Vec<_> = names.iter().map(String::as_str).zip(texts.iter().map(String::as_str)).collect();
    let main = format!("imports: {{x: f0}}\n{HEAD}quantize: {{quant_cfg: [{{$import: x}}]}}\n");
    files.push(("main.yaml", &main));
    let error = load(&files).unwrap_err().to_string();
    assert!(error.contains("too many values after imports"), "{error}");
}

#[test]
fn scalars_are_those_of_yaml_1_1() {
    let parse = |text: &str| {
        let text = format!(
            "{HEAD}quantize:\n  algorithm: {{method: nvfp4_act_headroom, weight_scale_algorithm: {text}}}\n  quant_cfg: []\n"
        );
        load(&[("main.yaml", &text)]).unwrap().config.stated_algorithm.get("weight_scale_algorithm").cloned().unwrap()
    };
    for (text, expected) in [
        ("~", Plain::None),
        ("yes", Plain::Bool(true)),
        ("Off", Plain::Bool(false)),
        ("'no'", Plain::str("no")),
        ("y", Plain::str("y")),
        ("12", Plain::Int(12)),
        ("-1_000", Plain::Int(-1000)),
        ("0x1F", Plain::Int(31)),
        ("017", Plain::Int(15)),
        ("0b11", Plain::Int(3)),
        ("09", Plain::str("09")),
        ("1.5", Plain::Float(1.5)),
        (".5", Plain::Float(0.5)),
        ("1.", Plain::Float(1.0)),
        ("1e3", Plain::str("1e3")),
        ("1.0e3", Plain::str("1.0e3")),
        ("1.0e+3", Plain::Float(1000.0)),
        ("-.inf", Plain::Float(f64::NEG_INFINITY)),
        ("1.2.3", Plain::str("1.2.3")),
        ("e4m3", Plain::str("e4m3")),
        ("[1, a]", Plain::List(vec![Plain::Int(1), Plain::str("a")])),
    ] {
        assert_eq!(parse(text), expected, "{text}");
    }
}

#[test]
fn aliases_stand_for_what_they_name() {
    let text = format!(
        "{HEAD}quantize:\n  quant_cfg:\n  - {{quantizer_name: a, cfg: &f {{num_bits: e4m3}}}}\n  - {{quantizer_name: b, cfg: *f}}\n"
    );
    let config = load(&[("main.yaml", &text)]).unwrap().config;
    assert_eq!(config.entries[0].cfg, config.entries[1].cfg);
    assert_eq!(config.stated_algorithm, Plain::str("max"));
}
