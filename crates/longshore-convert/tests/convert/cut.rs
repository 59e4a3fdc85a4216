//! Cuts: every tensor of the smaller model is one of the larger, or its first rows, and nothing depends on the format.

use crate::hf_folder::{self, Tensor, declared};
use crate::properties::{Contents, any_bits, case, contents, tensors};
use crate::random::Random;
use crate::refusals::import_options;
use crate::shared_data::shared;
use crate::snapshots::model;
use longshore_ckpt::{Catalog, Dtype, torch_dist};
use longshore_convert::config::megatron::Args;
use longshore_convert::config::{LayerSpec, ModelConfig, json, release};
use longshore_convert::diff::{DiffEntry, DiffOptions, Tolerance, diff};
use longshore_convert::options::{CutOptions, ExportOptions, ImportOptions, Layout, MtpChoice};
use longshore_convert::plan::{Plan, plan_cut, plan_export, plan_import};
use longshore_convert::progress::Silent;
use longshore_convert::run::{RunOptions, execute};
use longshore_convert::verify::{VerifyOptions, verify, verify_against};
use longshore_convert::{Error, Layers, Problem};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) fn cut_options() -> CutOptions {
    CutOptions { layers: None, experts: None, mtp: MtpChoice::Keep, allow_unmapped: false, max_file_size: None }
}

fn layers(text: &str) -> Layers {
    text.parse().unwrap()
}

pub(crate) fn run(plan: &Plan) {
    execute(plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap();
}

fn check_verified(folder: &Path, source: Option<&Path>) {
    let options = VerifyOptions { quick: false, threads: 1 };
    assert_eq!(verify(folder, &options, &Silent).unwrap().problems, vec![]);
    if let Some(source) = source {
        assert_eq!(verify_against(folder, source, &options, &Silent).unwrap().problems, vec![]);
    }
}

pub(crate) fn differences(a: &Path, b: &Path) -> Vec<DiffEntry> {
    let report = diff(a, b, &DiffOptions { glob: None, tolerance: Tolerance::Bits, threads: 1 }, &Silent).unwrap();
    assert!(report.compared > 0);
    report.entries
}

/// Writes the Hugging Face folder of a model.
pub(crate) fn write(folder: &Path, config: &ModelConfig, tensors: &[Tensor], rng: &mut Random) {
    let text = serde_json::to_string(&release::hf_json(config).0).unwrap();
    hf_folder::write(folder, &text, tensors, 1 << 20, Some(&mut |tensor, bytes| any_bits(rng, tensor, bytes)));
}

/// What the cut must hold, from the names and shapes of Hugging Face alone.
fn expected(whole: &Contents, kept: &[u64], experts: Option<u64>, mtp: MtpChoice) -> Contents {
    let mut out = BTreeMap::new();
    for (name, (dtype, shape, bytes)) in whole {
        let parts: Vec<&str> = name.split('.').collect();
        let number = |i: usize| parts[i].parse::<u64>().unwrap();
        let mut new: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        if name.starts_with("backbone.layers.") {
            let Some(index) = kept.iter().position(|&layer| layer == number(2)) else { continue };
            new[2] = index.to_string();
        }
        if name.starts_with("mtp.") && mtp == MtpChoice::Drop {
            continue;
        }
        let expert = parts.iter().position(|part| *part == "experts");
        if expert.is_some_and(|at| experts.is_some_and(|experts| number(at + 1) >= experts)) {
            continue;
        }
        let (mut shape, mut bytes) = (shape.clone(), bytes.clone());
        if let (true, Some(experts)) = (name.contains(".mixer.gate."), experts) {
            bytes.truncate((bytes.len() as u64 / shape[0] * experts) as usize);
            shape[0] = experts;
        }
        out.insert(new.join("."), (*dtype, shape, bytes));
    }
    out
}

fn has_experts(config: &ModelConfig, kept: &[u64], mtp: MtpChoice) -> Option<u64> {
    let trunk = kept.iter().map(|&i| &config.layers[i as usize]);
    let block = config.mtp.iter().filter(|_| mtp == MtpChoice::Keep).flat_map(|m| &m.layers);
    trunk.chain(block).find_map(|layer| if let LayerSpec::Moe(moe) = layer { Some(moe.experts) } else { None })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_cut_is_a_part_of_its_source_in_both_formats((config, options) in case(), seed in any::<u64>()) {
        let rng = &mut Random(seed);
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut tensors = tensors(&config, rng);
        // Experts are one tensor of Megatron's, whose dtype holds all of them: with fewer it could be another.
        for tensor in tensors.iter_mut().filter(|tensor| tensor.name.contains(".mixer.experts.")) {
            tensor.dtype = Dtype::Float16;
        }
        write(&at("hf"), &config, &tensors, rng);
        run(&plan_import(&at("hf"), &at("mc"), &options).unwrap());

        let mtp = if rng.next().is_multiple_of(2) { MtpChoice::Keep } else { MtpChoice::Drop };
        let count = config.layers.len() as u64;
        let mut kept: Vec<u64> = (0..count).filter(|_| rng.next().is_multiple_of(2)).collect();
        if kept.is_empty() {
            kept.push(rng.next() % count);
        }
        let experts = has_experts(&config, &kept, mtp).map(|all| 1 + rng.next() % all);
        let list = kept.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let (layers, max_file_size) = (Some(layers(&list)), Some(1 + seed % 3000));
        let cut = CutOptions { layers, experts, mtp, max_file_size, ..cut_options() };

        run(&plan_cut(&at("hf"), &at("cut"), &cut).unwrap());
        check_verified(&at("cut"), None);
        prop_assert!(contents(&at("cut")) == expected(&contents(&at("hf")), &kept, experts, mtp));

        // First cut, then converted, and the other way round.
        run(&plan_cut(&at("mc"), &at("mc-cut"), &cut).unwrap());
        check_verified(&at("mc-cut"), Some(&at("cut")));
        run(&plan_import(&at("cut"), &at("cut-mc"), &options).unwrap());
        prop_assert_eq!(differences(&at("cut-mc"), &at("mc-cut")), vec![]);
        let [a, b] = ["cut-mc", "mc-cut"].map(|name| torch_dist::inner_folder(&at(name)).unwrap());
        prop_assert_eq!(a.file_name(), b.file_name());
        for name in ["common.pt", "hf/config.json"] {
            prop_assert_eq!(std::fs::read(a.join(name)).unwrap(), std::fs::read(b.join(name)).unwrap(), "{}", name);
        }
        let objects = |folder: &Path| Catalog::open(folder).unwrap().objects.into_keys().collect::<Vec<_>>();
        prop_assert_eq!(objects(&a), objects(&b));

        // The way back restores the dtypes too.
        run(&plan_export(&at("mc-cut"), &at("back"), &ExportOptions::default()).unwrap());
        prop_assert!(contents(&at("cut")) == contents(&at("back")));
    }
}

/// A source in both formats, and where results go.
fn sources(config: &ModelConfig, import: &ImportOptions) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("hf"), config, &declared(config, Dtype::Bfloat16), &mut Random(3));
    run(&plan_import(&dir.path().join("hf"), &dir.path().join("mc"), import).unwrap());
    dir
}

fn notes(plan: &Plan) -> Vec<String> {
    plan.summary().notes.iter().map(|note| note.text.clone()).collect()
}

#[test]
fn a_cut_that_keeps_everything_is_its_source() {
    let dir = sources(&model(), &import_options());
    for name in ["hf", "mc"] {
        let (source, out) = (dir.path().join(name), dir.path().join(format!("{name}-cut")));
        let plan =
            plan_cut(&source, &out, &CutOptions { layers: Some(layers("0..4")), experts: Some(4), ..cut_options() });
        let plan = plan.unwrap();
        assert_eq!(notes(&plan), [""; 0]);
        run(&plan);
        check_verified(&out, Some(&source));
        assert_eq!(differences(&source, &out), vec![]);
        let config = |folder: &Path| {
            let inner = if name == "mc" { torch_dist::inner_folder(folder).unwrap().join("hf") } else { folder.into() };
            std::fs::read(inner.join("config.json")).unwrap()
        };
        assert_eq!(config(&source), config(&out));
    }
}

#[test]
fn all_that_is_wrong_with_a_cut_comes_at_once() {
    let dir = sources(&model(), &import_options());
    let refused = |options: &CutOptions| {
        let Err(Error::Refused(problems)) = plan_cut(&dir.path().join("hf"), &dir.path().join("out"), options) else {
            panic!("a refusal")
        };
        assert!(!dir.path().join("out").exists());
        problems.iter().map(Problem::to_string).collect::<Vec<_>>()
    };
    let wrong =
        CutOptions { layers: Some(layers("2..9,11,12..18446744073709551615")), experts: Some(5), ..cut_options() };
    let problems = [
        "option     `--layers`: 2..9 ends behind the model, which has 4 layers",
        "option     `--layers`: there is no layer 11: the model has 4, numbered from 0",
        "option     `--layers`: 12..18446744073709551615 ends behind the model, which has 4 layers",
        "option     `--experts`: expected 1 to 4, found 5",
    ];
    assert_eq!(refused(&wrong), problems);
    assert_eq!(
        refused(&CutOptions { experts: Some(0), ..cut_options() }),
        ["option     `--experts`: expected 1 to 4, found 0"]
    );
    let no_experts =
        CutOptions { layers: Some(layers("0..3")), experts: Some(2), mtp: MtpChoice::Drop, ..cut_options() };
    assert_eq!(refused(&no_experts), ["option     `--experts`: none of the layers that are kept has experts"]);
}

#[test]
fn a_model_without_experts_has_none_to_keep() {
    let config = ModelConfig { layers: model().layers[..3].to_vec(), mtp: None, ..model() };
    let dir = sources(&config, &import_options());
    let error =
        plan_cut(&dir.path().join("hf"), &dir.path().join("out"), &CutOptions { experts: Some(1), ..cut_options() });
    assert!(error.unwrap_err().to_string().contains("`--experts`: the model has no experts"));
}

/// The model with these numbers of experts, groups, chosen groups and choices.
fn with_moe(experts: u64, n_group: u64, topk_group: u64, top_k: u64) -> ModelConfig {
    let mut config = ModelConfig { mtp: None, ..model() };
    for layer in &mut config.layers {
        if let LayerSpec::Moe(moe) = layer {
            (moe.experts, moe.n_group, moe.topk_group, moe.top_k) = (experts, n_group, topk_group, top_k);
        }
    }
    config
}

#[test]
fn groups_and_choices_become_what_the_experts_allow() {
    for ((n_group, topk_group, top_k), experts, expected, count) in [
        ((1, 1, 6), 4, [1, 1, 4], 2),
        ((1, 1, 6), 1, [1, 1, 1], 3),
        ((4, 2, 4), 8, [4, 2, 4], 1),
        ((4, 2, 4), 6, [3, 2, 4], 2),
        ((4, 3, 4), 2, [1, 1, 2], 4),
        ((4, 2, 4), 5, [1, 1, 4], 3),
    ] {
        let dir = sources(&with_moe(12, n_group, topk_group, top_k), &import_options());
        for name in ["hf", "mc"] {
            let out = dir.path().join(format!("{name}-out"));
            let options = CutOptions { experts: Some(experts), ..cut_options() };
            let plan = plan_cut(&dir.path().join(name), &out, &options).unwrap();
            // The reader of the config says of groups that they are scored otherwise.
            let found: Vec<String> = notes(&plan).into_iter().filter(|note| !note.starts_with("`n_group`")).collect();
            assert_eq!(found.len(), count, "{found:?}");
            run(&plan);
            let inner = if name == "mc" { out.join("release/hf") } else { out };
            let config = json::parse(&std::fs::read(inner.join("config.json")).unwrap()).unwrap();
            let found = ["n_group", "topk_group", "num_experts_per_tok"].map(|field| config[field].as_u64().unwrap());
            assert_eq!((found, config["n_routed_experts"].as_u64()), (expected, Some(experts)));
        }
    }
}

#[test]
fn parallel_sizes_that_no_longer_fit_are_reduced() {
    let layout = Layout { tp: 2, pp: 4, ep: 4, etp: 1 };
    let dir = sources(&model(), &ImportOptions { layout, iteration: Some(12), ..import_options() });
    let out = dir.path().join("out");
    let plan = plan_cut(
        &dir.path().join("mc"),
        &out,
        &CutOptions { layers: Some(layers("0,3")), experts: Some(2), ..cut_options() },
    );
    let plan = plan.unwrap();
    assert_eq!(
        notes(&plan)[2..],
        [
            "pipeline parallel size from 4 to 2: there are 2 layers",
            "expert parallel size from 4 to 2: there are 2 experts"
        ]
    );
    run(&plan);
    let catalog = Catalog::open(&out).unwrap();
    assert!(catalog.folder.ends_with("iter_0000012"));
    let args = Args::from_common(catalog.common.as_ref().unwrap().root());
    for (name, value) in [
        ("tensor_model_parallel_size", 2),
        ("pipeline_model_parallel_size", 2),
        ("expert_model_parallel_size", 2),
        ("expert_tensor_parallel_size", 1),
        ("num_layers", 2),
        ("num_experts", 2),
    ] {
        assert_eq!(args.int(name), Some(value), "{name}");
    }

    // Three experts are not shared by two ranks, although there are more experts than ranks.
    let two = Layout { ep: 2, ..Layout::default() };
    let dir = sources(&model(), &ImportOptions { layout: two, ..import_options() });
    let options = CutOptions { experts: Some(3), ..cut_options() };
    let plan = plan_cut(&dir.path().join("mc"), &dir.path().join("out"), &options).unwrap();
    assert!(
        notes(&plan).contains(&"expert parallel size from 2 to 1: there are 3 experts".to_owned()),
        "{:?}",
        notes(&plan)
    );
}

#[test]
fn a_quantized_source_is_refused_by_name() {
    let export = "golden/quant/tiny_hf/nemotron_h/RECIPE_SUPER_NVFP4_MAX/export";
    let Some(quantized) = shared(export) else { return };
    let out = tempfile::tempdir().unwrap();
    let error = plan_cut(&quantized, &out.path().join("out"), &cut_options()).unwrap_err().to_string();
    assert!(error.contains("it is quantized, and only plain checkpoints are cut"), "{error}");
}

#[test]
fn a_cut_of_megatrons_checkpoint_exports_as_the_cut_of_its_source() {
    let Some(golden) = shared("golden") else { return };
    for (mc, hf, list) in [
        ("nemotron_h_latent_mtp_te", "nemotron_h_latent_mtp", "1..4"),
        ("nemotron_h_moe_te_tp2_ep2_etp1", "nemotron_h_moe", "0..2,3"),
        ("nemotron_h_moe_local_ep2_iter", "nemotron_h_moe", "1..4"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = CutOptions { layers: Some(layers(list)), experts: Some(3), ..cut_options() };
        let at = |name: &str| dir.path().join(name);
        run(&plan_cut(&golden.join("torch_dist").join(mc), &at("mc"), &options).unwrap());
        run(&plan_cut(&golden.join("hf").join(hf), &at("hf"), &options).unwrap());
        let mut export = ExportOptions { base: Some(at("hf")), ..ExportOptions::default() };
        run(&plan_export(&at("mc"), &at("back"), &export).unwrap());
        assert_eq!(differences(&at("hf"), &at("back")), vec![], "{mc}");
        // Without any record of the dtypes the values decide, as for Megatron's own checkpoints.
        export.base = None;
        let vocab = json::parse(&std::fs::read(at("hf/config.json")).unwrap()).unwrap()["vocab_size"].as_u64();
        export.vocab_size = vocab;
        run(&plan_export(&at("mc"), &at("alone"), &export).unwrap());
        assert_eq!(differences(&at("hf"), &at("alone")), vec![], "{mc}");
    }
}
