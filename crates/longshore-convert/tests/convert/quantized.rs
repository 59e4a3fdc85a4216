//! Quantized checkpoints: what is written against what ModelOpt wrote, what is read back, and what is refused.

use crate::shared_data::shared;
use longshore_ckpt::{Catalog, Dtype, Rect};
use longshore_convert::model::Model;
use longshore_convert::options::{ExportOptions, ImportOptions, SpecName};
use longshore_convert::plan::Quantized;
use longshore_convert::progress::Silent;
use longshore_convert::quantized::linear::Naming;
use longshore_convert::quantized::{Calibrated, Quantization, WeightAmax};
use longshore_convert::run::{RunOptions, execute};
use longshore_convert::source::Source;
use longshore_convert::{Error, Plan, Problem, plan_export, plan_import, plan_quantized_export, plan_quantized_import};
use longshore_quant::config::{Entry, QuantConfig};
use longshore_quant::unpack::{Encoding, unpack};
use longshore_quant::{Element, Scheme};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tiny model that ModelOpt quantized, and the folder of what it made of it.
fn golden() -> Option<(PathBuf, PathBuf)> {
    let folder = shared("golden/quant")?;
    Some((folder.join("tiny_hf/nemotron_h/base"), folder))
}

fn run(plan: &Plan) {
    execute(plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap();
}

fn decide(folder: &Path, naming: Naming, config: &QuantConfig) -> Quantization {
    Quantization::decide(&Model::from_folder(folder).unwrap(), naming, config).unwrap()
}

/// Every tensor of a Hugging Face folder: dtype, shape and bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)>;

fn tensors(folder: &Path) -> Tensors {
    let catalog = Catalog::open(folder).unwrap();
    let read = |name: &String| {
        let info = &catalog.tensors[name];
        let extent = info.chunks[0].extent;
        let file = longshore_ckpt::fs::ReadFile::open(&catalog.path(extent.file)).unwrap();
        let mut bytes = vec![0; extent.len as usize];
        file.read_exact_at(extent.offset, &mut bytes).unwrap();
        (info.dtype, info.shape.clone(), bytes)
    };
    catalog.tensors.keys().map(|name| (name.clone(), read(name))).collect()
}

/// The first value of every one of the tensors in a file of quantizer states, which are bfloat16.
fn states(path: &Path) -> BTreeMap<String, f32> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(path, folder.path().join("model.safetensors")).unwrap();
    let first = |(dtype, _, bytes): &(Dtype, Vec<u64>, Vec<u8>)| {
        let mut value = [0.0];
        longshore_convert::cast::widen(*dtype, &bytes[..dtype.size() as usize], &mut value);
        value[0]
    };
    tensors(folder.path()).iter().map(|(name, tensor)| (name.clone(), first(tensor))).collect()
}

/// Names of tensors that are not the same in both.
fn differing(a: &Tensors, b: &Tensors) -> Vec<String> {
    let names = a.keys().chain(b.keys());
    let mut found: Vec<String> = names.filter(|name| a.get(*name) != b.get(*name)).cloned().collect();
    found.dedup();
    found
}

#[test]
fn megatrons_checkpoint_and_its_source_give_the_same_export() {
    let Some((base, folder)) = golden() else { return };
    let megatron = folder.join("megatron_nemotronh_fp8");
    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions { base: Some(base.clone()), ..ExportOptions::default() };
    run(&plan_export(&megatron, &out.path().join("stored"), &options).unwrap());

    let config = QuantConfig::named("FP8_DEFAULT_CFG").unwrap();
    let quantization = decide(&base, Naming::MegatronLocal, &config);
    let stored = states(&megatron.join("quantizer_state.safetensors"));
    let amax = |name: &str| stored[&format!("{}._amax", name.replace(".experts.experts.", ".experts.local_experts."))];
    let quantized = quantization.linears.iter().filter(|q| q.input_scheme.is_some());
    let inputs = quantized.map(|q| (q.linear.module.clone(), amax(&format!("{}.input_quantizer", q.linear.module))));
    let calibrated = Calibrated { inputs: inputs.collect(), ..Calibrated::default() };
    let quantized = Quantized { quantization: &quantization, calibrated: &calibrated, config: &config };
    run(&plan_quantized_export(&base, &out.path().join("own"), &ExportOptions::default(), &quantized).unwrap());

    let (a, b) = (tensors(&out.path().join("stored")), tensors(&out.path().join("own")));
    assert_eq!(a.len(), 115, "names of ModelOpt's export");
    // The one has the dtype that the base has, the other the one that servers read.
    let is_bias = |name: &String| name.ends_with("e_score_correction_bias");
    let differing: Vec<String> = differing(&a, &b).into_iter().filter(|name| !is_bias(name)).collect();
    assert_eq!(differing, [] as [String; 0]);
}

#[test]
fn a_mixture_of_formats_is_modelopts_byte_for_byte() {
    let Some((base, folder)) = golden() else { return };
    let folder = folder.join("tiny_hf/nemotron_h/RECIPE_SUPER_NVFP4_MAX");
    let cfg = |name: &str, role: &str| {
        let config = QuantConfig::named(name).unwrap();
        config.entries.into_iter().find(|e| e.enable && e.quantizer_name.contains(role)).unwrap().cfg
    };
    let mut entries = vec![Entry::off("*")];
    for (module, format) in [
        ("*mixer.experts.*", "NVFP4_DEFAULT_CFG"),
        ("*mixer.shared_experts.*", "FP8_DEFAULT_CFG"),
        ("*mixer.in_proj*", "FP8_DEFAULT_CFG"),
        ("*mixer.out_proj*", "FP8_DEFAULT_CFG"),
    ] {
        for role in ["weight_quantizer", "input_quantizer"] {
            entries.push(Entry::on(format!("{module}{role}*"), cfg(format, role)));
        }
    }
    let config = QuantConfig { entries, ..QuantConfig::named("FP8_DEFAULT_CFG").unwrap() };
    let config = config.with_kv_cache("fp8").unwrap();
    let quantization = decide(&base, Naming::HuggingFace, &config);
    let stored = states(&folder.join("quantizer_state.safetensors"));
    let mut calibrated = Calibrated::default();
    for q in quantization.linears.iter().filter(|q| q.input_scheme.is_some()) {
        let name = &q.linear.quantizers(Naming::HuggingFace, longshore_convert::quantized::linear::Role::Input)[0];
        calibrated.inputs.insert(q.linear.module.clone(), stored[&format!("{name}._amax")]);
    }
    for layer in &quantization.kv {
        let amax = |letter: &str| Some(stored[&format!("model.layers.2.mixer.{letter}_bmm_quantizer._amax")]);
        calibrated.kv.insert(layer.module.clone(), [None, amax("k"), amax("v")]);
    }
    let out = tempfile::tempdir().unwrap();
    let quantized = Quantized { quantization: &quantization, calibrated: &calibrated, config: &config };
    run(&plan_quantized_export(&base, &out.path().join("hf"), &ExportOptions::default(), &quantized).unwrap());
    let (ours, theirs) = (tensors(&out.path().join("hf")), tensors(&folder.join("export")));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    // Scales of inputs have the shape of the Megatron export, `[1]`, and here that of the other, `[]`.
    let bytes =
        |all: &Tensors| all.iter().map(|(k, (d, _, b))| (k.clone(), (*d, b.clone()))).collect::<BTreeMap<_, _>>();
    let (ours, theirs) = (bytes(&ours), bytes(&theirs));
    let differing: Vec<&String> = ours.keys().filter(|name| ours[*name] != theirs[*name]).collect();
    assert_eq!(differing, [] as [&String; 0]);
}

#[test]
fn what_is_written_for_megatron_is_read_back() {
    let Some((base, _)) = golden() else { return };
    for (spec, naming, name, kv) in [
        (SpecName::Local, Naming::MegatronLocal, "FP8_DEFAULT_CFG", Some("fp8")),
        (SpecName::Te, Naming::MegatronTe, "FP8_DEFAULT_CFG", Some("fp8")),
        (SpecName::Te, Naming::MegatronTe, "NVFP4_DEFAULT_CFG", None),
        (SpecName::Local, Naming::MegatronLocal, "INT8_WEIGHT_ONLY_CFG", None),
        (SpecName::Te, Naming::MegatronTe, "FP8_PER_CHANNEL_PER_TOKEN_CFG", None),
        (SpecName::Local, Naming::MegatronLocal, "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", None),
        (SpecName::Te, Naming::MegatronTe, "MXFP8_DEFAULT_CFG", None),
    ] {
        let config = QuantConfig::named(name).unwrap().with_kv_cache(kv.unwrap_or("none")).unwrap();
        let quantization = decide(&base, naming, &config);
        let mut calibrated = Calibrated::default();
        // Values that bfloat16 holds; experts share theirs.
        for (i, q) in quantization.linears.iter().enumerate().filter(|(_, q)| q.input_scheme.is_some()) {
            let value = if q.linear.expert.is_some() { 3.5 } else { 1.0 + i as f32 / 8.0 };
            let has_amax =
                !matches!(q.input_scheme, Some(Scheme::Mx(_) | Scheme::Fp8(longshore_quant::Granularity::Token)));
            if has_amax {
                calibrated.inputs.insert(q.linear.module.clone(), value);
            }
        }
        for layer in quantization.kv.iter().filter(|layer| layer.schemes[1].is_some()) {
            calibrated.kv.insert(layer.module.clone(), [Some(0.5), Some(1.5), Some(2.5)]);
        }
        let out = tempfile::tempdir().unwrap();
        let quantized = Quantized { quantization: &quantization, calibrated: &calibrated, config: &config };
        let plan = plan_quantized_import(&base, &out.path().join("mc"), &ImportOptions::new(spec), &quantized).unwrap();
        run(&plan);
        let source = Source::open(&out.path().join("mc"), None, false).unwrap();
        let (read, found) = source.quantized.as_ref().unwrap();
        let schemes = |q: &Quantization| -> Vec<_> {
            q.linears.iter().map(|q| (q.linear.module.clone(), q.input_scheme, q.weight_schemes.clone())).collect()
        };
        assert_eq!(schemes(read), schemes(&quantization), "{name}");
        assert_eq!(found.inputs, calibrated.inputs, "{name}");
        let enabled = |kv: &BTreeMap<String, [Option<f32>; 3]>| kv.values().map(|v| [v[1], v[2]]).collect::<Vec<_>>();
        assert_eq!(enabled(&found.kv), enabled(&calibrated.kv), "{name}");
        for q in quantization.linears.iter().filter(|q| !q.weight_schemes.is_empty()) {
            let stored = found.weights.get(&(q.linear.module.clone(), 0));
            match q.weight_schemes[0] {
                Scheme::Mx(_) => assert!(stored.is_none(), "{name}"),
                Scheme::Fp8(longshore_quant::Granularity::Tensor) | Scheme::Nvfp4 { .. } => {
                    assert!(matches!(stored, Some(WeightAmax::Tensor(v)) if *v > 0.0), "{name} {}", q.linear.module);
                }
                _ => assert!(matches!(stored, Some(WeightAmax::Rows(_))), "{name} {}", q.linear.module),
            }
        }
        // The weights are those of the source.
        let plain = Source::open(&base, None, false).unwrap();
        let tensor = "decoder.layers.1.mlp.experts.experts.linear_fc1.weight";
        let rect = Rect::whole(plain.tensor(tensor).0);
        let bytes = |source: &Source| {
            let mut bytes = vec![0; rect.len() as usize * 2];
            source.read(tensor, &rect, Dtype::Bfloat16, &mut bytes).unwrap();
            bytes
        };
        assert!(bytes(&source) == bytes(&plain), "{name}");
    }
}

/// Quantizes the tiny model to a Hugging Face folder.
fn packed(base: &Path, name: &str, destination: &Path) {
    let config = QuantConfig::named(name).unwrap();
    let quantization = decide(base, Naming::HuggingFace, &config);
    let inputs = quantization.linears.iter().filter(|q| q.input_scheme.is_some());
    let calibrated =
        Calibrated { inputs: inputs.map(|q| (q.linear.module.clone(), 7.0)).collect(), ..Calibrated::default() };
    let quantized = Quantized { quantization: &quantization, calibrated: &calibrated, config: &config };
    run(&plan_quantized_export(base, destination, &ExportOptions::default(), &quantized).unwrap());
}

#[test]
fn packed_weights_are_read_as_the_values_they_stand_for() {
    let Some((base, _)) = golden() else { return };
    for name in [
        "FP8_DEFAULT_CFG",
        "FP8_PER_CHANNEL_PER_TOKEN_CFG",
        "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
        "INT8_WEIGHT_ONLY_CFG",
        "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
        "NVFP4_DEFAULT_CFG",
        "W4A8_NVFP4_FP8_CFG",
        "MXFP8_DEFAULT_CFG",
        "MXFP4_DEFAULT_CFG",
    ] {
        let out = tempfile::tempdir().unwrap();
        let config = QuantConfig::named(name).unwrap();
        if Quantization::decide(&Model::from_folder(&base).unwrap(), Naming::HuggingFace, &config).is_err() {
            // The input projection's 584 rows are no multiple of 128.
            assert_eq!(name, "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG");
            continue;
        }
        packed(&base, name, &out.path().join("hf"));
        let (source, plain) =
            (Source::open(&out.path().join("hf"), None, false).unwrap(), Source::open(&base, None, false).unwrap());
        let (mut signal, mut noise) = (0.0, 0.0);
        for tensor in [
            "decoder.layers.0.mixer.in_proj.weight.dt",
            "decoder.layers.1.mlp.experts.experts.linear_fc2.weight",
            "decoder.layers.2.self_attention.linear_qkv.weight",
            "decoder.layers.3.mlp.linear_fc1.weight",
        ] {
            let rect = Rect::whole(plain.tensor(tensor).0);
            let values = |source: &Source| {
                let mut bytes = vec![0; rect.len() as usize * 4];
                source.read(tensor, &rect, Dtype::Float32, &mut bytes).unwrap();
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<f32>>()
            };
            let (was, is) = (values(&plain), values(&source));
            signal += was.iter().map(|x| f64::from(x * x)).sum::<f64>();
            noise += was.iter().zip(&is).map(|(a, b)| f64::from((a - b) * (a - b))).sum::<f64>();
        }
        let bits = if name.contains('4') && !name.contains("FP8_2D") { 4 } else { 8 };
        let ratio = 10.0 * (signal / noise).log10();
        assert!(ratio > if bits == 4 { 14.0 } else { 29.0 } && ratio < 60.0, "{name}: {ratio} dB");
        let inputs = source.quantized.as_ref().unwrap().1.inputs.values().copied().collect::<Vec<_>>();
        assert!(inputs.iter().all(|&amax| (amax - 7.0).abs() < 1e-5), "{name}: {inputs:?}");
    }
}

#[test]
fn dequantizing_is_asked_for_and_exact() {
    let Some((base, _)) = golden() else { return };
    let out = tempfile::tempdir().unwrap();
    let hf = out.path().join("hf");
    packed(&base, "FP8_DEFAULT_CFG", &hf);
    let refused = plan_import(&hf, &out.path().join("mc"), &ImportOptions::new(SpecName::Te)).unwrap_err();
    assert!(refused.to_string().contains("--dequantize"), "{refused}");
    let options = ImportOptions { dequantize: true, ..ImportOptions::new(SpecName::Te) };
    run(&plan_import(&hf, &out.path().join("mc"), &options).unwrap());
    run(&plan_export(&out.path().join("mc"), &out.path().join("back"), &ExportOptions::default()).unwrap());
    let (packed, back) = (tensors(&hf), tensors(&out.path().join("back")));
    for name in ["backbone.layers.0.mixer.in_proj.weight", "backbone.layers.5.mixer.experts.3.down_proj.weight"] {
        let (_, shape, weight) = &packed[name];
        let mut values = vec![0.0; weight.len()];
        let scale = &packed[&format!("{name}_scale")].2;
        unpack(Encoding::Fp8, Element::Bfloat16, shape[1] as usize, weight, scale, 1.0, &mut values);
        let mut bytes = vec![0; weight.len() * 2];
        longshore_convert::cast::narrow(&values, Dtype::Bfloat16, &mut bytes);
        assert_eq!(back[name], (Dtype::Bfloat16, shape.clone(), bytes), "{name}");
    }
    let config = std::fs::read_to_string(out.path().join("back/config.json")).unwrap();
    assert!(!config.contains("quantization_config") && !out.path().join("back/hf_quant_config.json").exists());
}

#[test]
fn what_cannot_be_quantized_is_refused_before_anything_is_written() {
    let Some((base, _)) = golden() else { return };
    let out = tempfile::tempdir().unwrap();
    let problems = |error: Error| if let Error::Refused(problems) = error { problems } else { panic!("{error}") };
    let model = Model::from_folder(&base).unwrap();
    // Rows that are no multiple of 128.
    let config = QuantConfig::named("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG").unwrap();
    let found = Quantization::decide(&model, Naming::HuggingFace, &config).unwrap_err();
    let names: Vec<&str> =
        found.iter().map(|p| if let Problem::Quantize { tensor, .. } = p { tensor } else { "" }).collect();
    assert!(names.contains(&"decoder.layers.0.mixer.in_proj"), "{names:?}");
    // Quantized already, in both formats.
    packed(&base, "FP8_DEFAULT_CFG", &out.path().join("hf"));
    let config = QuantConfig::named("FP8_DEFAULT_CFG").unwrap();
    let (quantization, calibrated) = (decide(&base, Naming::HuggingFace, &config), Calibrated::default());
    let quantized = Quantized { quantization: &quantization, calibrated: &calibrated, config: &config };
    let again =
        plan_quantized_export(&out.path().join("hf"), &out.path().join("x"), &ExportOptions::default(), &quantized);
    assert!(again.unwrap_err().to_string().contains("quantized already"));
    let again = plan_quantized_import(
        &out.path().join("hf"),
        &out.path().join("x"),
        &ImportOptions::new(SpecName::Te),
        &quantized,
    );
    assert!(again.unwrap_err().to_string().contains("quantized already"));
    // A weight that is not a number: the tensor is named, and nothing is published.
    let broken = out.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(base.join(name), broken.join(name)).unwrap();
    }
    let catalog = Catalog::open(&broken).unwrap();
    let offset = catalog.tensors["backbone.layers.3.mixer.up_proj.weight"].chunks[0].extent.offset as usize;
    let mut bytes = std::fs::read(broken.join("model.safetensors")).unwrap();
    bytes[offset + 10..offset + 12].copy_from_slice(&[0xc0, 0x7f]);
    std::fs::write(broken.join("model.safetensors"), bytes).unwrap();
    let plan = plan_quantized_export(&broken, &out.path().join("y"), &ExportOptions::default(), &quantized).unwrap();
    let error = execute(&plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap_err();
    assert_eq!(
        problems(error),
        [Problem::Quantize {
            tensor: "backbone.layers.3.mixer.up_proj.weight".into(),
            what: "NaN at row 0, column 5".into()
        }]
    );
    assert!(!out.path().join("y").exists());
}
