//! Multi-token prediction: kept, left out, or lent by a base folder.

use crate::cut::{cut_options, differences, run, write};
use crate::hf_folder::declared;
use crate::properties::contents;
use crate::random::Random;
use crate::refusals::import_options;
use crate::snapshots::{filters, model};
use longshore_ckpt::{Catalog, Dtype};
use longshore_convert::config::megatron::{Arg, Args};
use longshore_convert::config::{ModelConfig, json};
use longshore_convert::manifest::{self, Manifest};
use longshore_convert::options::{CutOptions, ExportOptions, ImportOptions, MtpChoice};
use longshore_convert::plan::{NoteKind, Plan, plan_cut, plan_export, plan_import};
use longshore_convert::progress::Silent;
use longshore_convert::verify::{VerifyOptions, VerifyReport, verify, verify_against};
use std::path::{Path, PathBuf};

/// A folder with the model at `hf` (both MTP blocks) and at `bare` (the same without), each with its torch_dist form.
struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let case = Self { dir: tempfile::tempdir().unwrap() };
        let (config, tensors) = (model(), declared(&model(), Dtype::Bfloat16));
        write(&case.path("hf"), &config, &tensors, &mut Random(5));
        run(&plan_import(&case.path("hf"), &case.path("mc"), &import_options()).unwrap());
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `mc` without its MTP.
    fn bare(&self) -> PathBuf {
        run(&plan_import(&self.path("hf"), &self.path("bare"), &drop_on_import()).unwrap());
        self.path("bare")
    }

    /// The folder `hf`, its config, and of its tensors only those of the trunk: what transformers saves.
    fn forgetful(&self) -> PathBuf {
        let mut tensors = declared(&model(), Dtype::Bfloat16);
        tensors.retain(|tensor| !tensor.name.starts_with("mtp."));
        write(&self.path("forgetful"), &model(), &tensors, &mut Random(5));
        self.path("forgetful")
    }

    fn refusal(&self, plan: longshore_convert::Result<Plan>) -> String {
        plan.expect_err("a refusal").to_string().replace(self.dir.path().to_str().unwrap(), "[DIR]")
    }
}

fn drop_on_import() -> ImportOptions {
    ImportOptions { mtp: MtpChoice::Drop, ..import_options() }
}

fn verified(folder: &Path, source: &Path) -> VerifyReport {
    let options = VerifyOptions { quick: false, threads: 1 };
    assert_eq!(verify(folder, &options, &Silent).unwrap().problems, vec![]);
    let report = verify_against(folder, source, &options, &Silent).unwrap();
    assert_eq!(report.problems, vec![]);
    report
}

fn depth(folder: &Path) -> Option<u64> {
    json::parse(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()["num_nextn_predict_layers"].as_u64()
}

fn told(plan: &Plan, kind: NoteKind) -> Vec<String> {
    let notes = plan.summary().notes.iter().filter(|note| note.kind == kind && note.text.starts_with("MTP"));
    notes.map(|note| note.text.clone()).collect()
}

#[test]
fn what_is_dropped_is_told_and_neither_arguments_nor_config_say_it() {
    let case = Case::new();
    let plan = plan_import(&case.path("hf"), &case.path("bare"), &drop_on_import()).unwrap();
    let held = contents(&case.path("hf"));
    let bytes: usize = held.iter().filter(|(name, _)| name.starts_with("mtp.")).map(|(_, tensor)| tensor.2.len()).sum();
    let count = held.keys().filter(|name| name.starts_with("mtp.")).count();
    assert_eq!(told(&plan, NoteKind::Dropped), [format!("MTP: depth 2, {count} tensors, {bytes} bytes (--mtp drop)")]);
    run(&plan);
    let catalog = Catalog::open(&case.path("bare")).unwrap();
    assert!(!catalog.tensors.keys().chain(catalog.objects.keys()).any(|name| name.starts_with("mtp.")));
    assert_eq!(depth(&catalog.folder.join("hf")), Some(0));
    let args = Args::from_common(catalog.common.as_ref().unwrap().root());
    assert_eq!(args.values.get("mtp_num_layers"), Some(&Arg::None));
    assert_eq!(args.text("hybrid_layer_pattern"), Some("M*-E"));
    let notes = verified(&case.path("bare"), &case.path("hf")).notes;
    assert!(notes.iter().any(|note| note.contains("of MTP were left out on request")), "{notes:?}");
}

#[test]
fn an_export_and_a_cut_drop_it_too() {
    let case = Case::new();
    let export = ExportOptions { mtp: MtpChoice::Drop, ..ExportOptions::default() };
    run(&plan_export(&case.path("mc"), &case.path("out"), &export).unwrap());
    assert_eq!(depth(&case.path("out")), Some(0));
    verified(&case.path("out"), &case.path("mc"));
    for name in ["hf", "mc"] {
        let (source, out) = (case.path(name), case.path(&format!("{name}-cut")));
        run(&plan_cut(&source, &out, &CutOptions { mtp: MtpChoice::Drop, ..cut_options() }).unwrap());
        verified(&out, &source);
        assert_eq!(differences(&out, &case.path("out")), vec![]);
    }
}

#[test]
fn a_checkpoint_that_lost_it_otherwise_does_not_pass_for_one_that_dropped_it() {
    let case = Case::new();
    let options = VerifyOptions { quick: false, threads: 1 };
    let forgetful = case.forgetful();
    assert!(!verify_against(&forgetful, &case.path("mc"), &options, &Silent).unwrap().problems.is_empty());
}

#[test]
fn a_config_that_promises_what_the_source_lacks_is_one_problem() {
    let case = Case::new();
    let forgetful = case.forgetful();
    let missing =
        "1 problem\n  mtp        `[DIR]/forgetful/config.json` says MTP of depth 2, the source holds no tensor of it";
    let out = case.path("out");
    assert_eq!(case.refusal(plan_import(&forgetful, &out, &import_options())), missing);
    assert_eq!(case.refusal(plan_cut(&forgetful, &out, &cut_options())), missing);
    let export = ExportOptions { base: Some(case.path("hf")), ..ExportOptions::default() };
    assert_eq!(case.refusal(plan_export(&case.bare(), &out, &export)), missing.replace("forgetful", "hf"));
    let plan = plan_import(&forgetful, &out, &drop_on_import()).unwrap();
    assert_eq!(told(&plan, NoteKind::Dropped), ["MTP: depth 2, 0 tensors, 0 bytes (--mtp drop)"]);
    let plan = plan_export(&case.path("bare"), &out, &ExportOptions { mtp: MtpChoice::Drop, ..export }).unwrap();
    run(&plan);
    assert_eq!(depth(&out), Some(0));
}

#[test]
fn tensors_that_the_config_does_not_know_are_dropped_too() {
    let case = Case::new();
    let config = ModelConfig { mtp: None, ..model() };
    write(&case.path("silent"), &config, &declared(&model(), Dtype::Bfloat16), &mut Random(5));
    let plan = plan_import(&case.path("silent"), &case.path("out"), &drop_on_import()).unwrap();
    assert!(told(&plan, NoteKind::Dropped)[0].starts_with("MTP: no MTP in the config, "));
    run(&plan);
    verified(&case.path("out"), &case.path("silent"));
}

#[test]
fn a_base_lends_it_to_an_export() {
    let case = Case::new();
    let export = ExportOptions { base: Some(case.path("hf")), mtp_from_base: true, ..ExportOptions::default() };
    let plan = plan_export(&case.bare(), &case.path("out"), &export).unwrap();
    assert_eq!(plan.summary().source.files, 2, "the checkpoint's own");
    assert!(told(&plan, NoteKind::Warning)[0].contains("they are the base's, not the checkpoint's"));
    run(&plan);
    assert!(contents(&case.path("out")) == contents(&case.path("hf")));
    assert_eq!(depth(&case.path("out")), Some(2));
    let notes = verified(&case.path("out"), &case.path("bare")).notes;
    assert!(notes.iter().any(|note| note.contains("come from a base folder")), "{notes:?}");
    let manifest = Manifest::parse(&std::fs::read(case.path("out").join(manifest::NAME)).unwrap()).unwrap();
    assert!(
        !manifest.origin.from_base.is_empty() && manifest.origin.from_base.iter().all(|name| name.starts_with("mtp."))
    );
}

#[test]
fn a_base_that_cannot_lend_it_is_refused() {
    let case = Case::new();
    let (bare, out) = (case.bare(), case.path("out"));
    let export = |base: Option<PathBuf>| ExportOptions { base, mtp_from_base: true, ..ExportOptions::default() };
    let mut lines = vec![case.refusal(plan_export(&bare, &out, &export(None)))];
    lines.push(case.refusal(plan_export(&case.path("mc"), &out, &export(Some(case.path("hf"))))));
    lines.push(case.refusal(plan_export(&bare, &out, &export(Some(case.forgetful())))));
    write(
        &case.path("none"),
        &ModelConfig { mtp: None, ..model() },
        &declared(&model(), Dtype::Bfloat16),
        &mut Random(5),
    );
    lines.push(case.refusal(plan_export(&bare, &out, &export(Some(case.path("none"))))));
    let mut tensors = declared(&model(), Dtype::Bfloat16);
    tensors.retain(|tensor| tensor.name != "mtp.layers.2.eh_proj.weight");
    for tensor in tensors.iter_mut().filter(|tensor| tensor.name == "mtp.layers.0.enorm.weight") {
        tensor.shape = vec![8];
    }
    write(&case.path("other"), &model(), &tensors, &mut Random(5));
    lines.push(case.refusal(plan_export(&bare, &out, &export(Some(case.path("other"))))));
    assert!(!out.exists());
    filters().bind(|| insta::assert_snapshot!(lines.join("\n")));
}
