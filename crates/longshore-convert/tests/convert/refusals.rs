//! Sources that are wrong: refused with everything that is wrong at once, and nothing is written.

use crate::hf_folder::{self, Tensor, declared};
use crate::random::Random;
use crate::snapshots::{filters, model};
use longshore_ckpt::Dtype;
use longshore_convert::config::{ModelConfig, release};
use longshore_convert::diff::{DiffOptions, Difference, Tolerance, diff};
use longshore_convert::options::{DtypeChoice, ExportOptions, ImportOptions, Layout, SpecName};
use longshore_convert::plan::{Plan, plan_export, plan_import};
use longshore_convert::progress::Silent;
use longshore_convert::run::{RunOptions, execute};
use longshore_convert::{Error, Result};
use std::path::PathBuf;

/// A folder with a source at `hf`.
struct Case {
    dir: tempfile::TempDir,
    config: ModelConfig,
    tensors: Vec<Tensor>,
}

pub(crate) fn import_options() -> ImportOptions {
    ImportOptions::new(SpecName::Te)
}

impl Case {
    fn new() -> Self {
        let config = model();
        Self { dir: tempfile::tempdir().unwrap(), tensors: declared(&config, Dtype::Bfloat16), config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    fn remove(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    fn write_in_shards(&self, shard_size: u64) {
        let text = serde_json::to_string(&release::hf_json(&self.config).0).unwrap();
        let rng = &mut Random(7);
        let fill = &mut |tensor: &Tensor, bytes: &mut [u8]| rng.finite(tensor, bytes);
        hf_folder::write(&self.path("hf"), &text, &self.tensors, shard_size, Some(fill));
    }

    fn import(&self, options: &ImportOptions) -> Result<Plan> {
        self.write_in_shards(u64::MAX);
        plan_import(&self.path("hf"), &self.path("mc"), options)
    }

    /// The text of the refusal; nothing but the source is in the folder.
    fn refusal(&self, options: &ImportOptions) -> String {
        let text = self.import(options).expect_err("a refusal").to_string();
        self.check_untouched(1);
        text.replace(self.dir.path().to_str().unwrap(), "[DIR]")
    }

    fn check_untouched(&self, entries: usize) {
        assert_eq!(std::fs::read_dir(self.dir.path()).unwrap().count(), entries);
    }
}

macro_rules! snapshot {
    ($text:expr) => {
        filters().bind(|| insta::assert_snapshot!($text))
    };
}

#[test]
fn every_problem_of_a_source_comes_at_once() {
    let mut case = Case::new();
    case.remove("backbone.layers.0.mixer.D");
    case.remove("backbone.layers.3.mixer.experts.1.up_proj.weight");
    case.tensor("backbone.layers.1.mixer.k_proj.weight").shape = vec![16, 8];
    case.tensor("backbone.layers.2.mixer.up_proj.weight").dtype = Dtype::Int32;
    case.tensor("backbone.layers.3.mixer.experts.2.down_proj.weight").dtype = Dtype::Float8E4m3;
    case.tensor("lm_head.weight").name = "lm_head.wieght".into();
    let layout = Layout { tp: 3, pp: 9, ep: 3, etp: 3 };
    snapshot!(case.refusal(&ImportOptions { layout, ..import_options() }));
}

#[test]
fn numbers_that_are_no_floats_are_refused_one_and_all() {
    let mut case = Case::new();
    for tensor in case.tensors.iter_mut().filter(|tensor| tensor.name.contains("layers.1.mixer")) {
        tensor.dtype = Dtype::Uint8;
    }
    snapshot!(case.refusal(&import_options()));
}

#[test]
fn a_tied_model_has_no_output_layer() {
    let mut case = Case::new();
    case.config.tie_word_embeddings = true;
    snapshot!(case.refusal(&import_options()));
}

#[test]
fn mtp_that_the_config_promises_must_be_there() {
    let mut case = Case::new();
    case.tensors.retain(|tensor| !tensor.name.starts_with("mtp."));
    snapshot!(case.refusal(&import_options()));
}

#[test]
fn mtp_that_the_config_does_not_know_is_unmapped() {
    let mut case = Case::new();
    case.config.mtp = None;
    snapshot!(case.refusal(&import_options()));
}

#[test]
fn a_vocabulary_multiple_that_no_computer_holds_is_refused() {
    let case = Case::new();
    for n in [0, u64::MAX / 2, u64::MAX] {
        let options = ImportOptions { make_vocab_size_divisible_by: Some(n), ..import_options() };
        let Err(Error::Refused(problems)) = case.import(&options) else { panic!("{n} is taken") };
        assert!(problems[0].to_string().contains("--make-vocab-size-divisible-by"), "{problems:?}");
    }
}

#[test]
fn an_architecture_without_a_table_is_refused() {
    let case = Case::new();
    case.write_in_shards(u64::MAX);
    let path = case.path("hf/config.json");
    let text = std::fs::read_to_string(&path).unwrap().replace("NemotronHForCausalLM", "MambaForCausalLM");
    std::fs::write(&path, text).unwrap();
    let error = plan_import(&case.path("hf"), &case.path("mc"), &import_options()).unwrap_err().to_string();
    case.check_untouched(1);
    snapshot!(error.replace(case.dir.path().to_str().unwrap(), "[DIR]"));
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let mut case = Case::new();
    let twice = case.tensor("backbone.norm_f.weight").clone();
    case.tensors.insert(0, twice);
    case.write_in_shards(3000);
    let error = plan_import(&case.path("hf"), &case.path("mc"), &import_options()).unwrap_err().to_string();
    case.check_untouched(1);
    snapshot!(error.replace(case.dir.path().to_str().unwrap(), "[DIR]"));
}

#[test]
fn a_shorter_or_longer_file_is_refused() {
    for (by, want) in [(-1, "found a file of"), (1, "found a file of")] {
        let case = Case::new();
        case.write_in_shards(u64::MAX);
        let file = std::fs::OpenOptions::new().write(true).open(case.path("hf/model.safetensors")).unwrap();
        file.set_len(file.metadata().unwrap().len().checked_add_signed(by).unwrap()).unwrap();
        let error = plan_import(&case.path("hf"), &case.path("mc"), &import_options()).unwrap_err().to_string();
        assert!(error.contains(want) && error.contains("model.safetensors"), "{error}");
        case.check_untouched(1);
    }
}

#[test]
fn a_shard_that_is_not_there_is_named() {
    let case = Case::new();
    case.write_in_shards(3000);
    std::fs::remove_file(case.path("hf/model-00002-of-00012.safetensors")).unwrap();
    let error = plan_import(&case.path("hf"), &case.path("mc"), &import_options()).unwrap_err().to_string();
    assert!(error.contains("`model-00002-of-00012.safetensors`"), "{error}");
    case.check_untouched(1);
}

#[test]
fn a_cast_that_would_make_numbers_infinite_publishes_nothing() {
    let case = Case::new();
    let text = serde_json::to_string(&release::hf_json(&case.config).0).unwrap();
    let fill = &mut |tensor: &Tensor, bytes: &mut [u8]| {
        // 2^16, which bfloat16 holds and float16 does not.
        let large = tensor.name == "backbone.norm_f.weight";
        bytes.chunks_exact_mut(2).for_each(|b| b.copy_from_slice(&if large { 0x4780u16 } else { 0 }.to_le_bytes()));
    };
    hf_folder::write(&case.path("hf"), &text, &case.tensors, u64::MAX, Some(fill));
    let options = ImportOptions { dtype: DtypeChoice::Cast(Dtype::Float16), ..import_options() };
    let plan = plan_import(&case.path("hf"), &case.path("mc"), &options).unwrap();
    let error = execute(&plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap_err().to_string();
    assert!(!case.path("mc").exists());
    snapshot!(error);
}

/// A converted case, its config.json taken away from it so that options and stored arguments decide.
fn converted(options: &ImportOptions) -> Case {
    let case = Case::new();
    let plan = case.import(options).unwrap();
    execute(&plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap();
    std::fs::remove_dir_all(case.path("mc/release/hf")).unwrap();
    case
}

fn export_refusal(case: &Case, options: &ExportOptions) -> String {
    let error = plan_export(&case.path("mc"), &case.path("out"), options).expect_err("a refusal").to_string();
    case.check_untouched(2);
    error.replace(case.dir.path().to_str().unwrap(), "[DIR]")
}

#[test]
fn rows_past_the_vocabulary_must_be_zero() {
    let case = converted(&import_options());
    let vocab_size = Some(case.config.vocab_size - 2);
    snapshot!(export_refusal(&case, &ExportOptions { vocab_size, ..ExportOptions::default() }));
}

#[test]
fn padding_comes_off_again() {
    let case = converted(&ImportOptions { make_vocab_size_divisible_by: Some(100), ..import_options() });
    let plan = plan_export(&case.path("mc"), &case.path("out"), &ExportOptions::default()).unwrap();
    let embedding = plan.tensors().into_iter().find(|row| row.name == "backbone.embeddings.weight").unwrap();
    assert_eq!(embedding.shape, [case.config.vocab_size, case.config.hidden_size]);
}

#[test]
fn every_chunk_that_is_damaged_is_named() {
    let case = converted(&ImportOptions { layout: Layout { tp: 1, pp: 4, ep: 1, etp: 1 }, ..import_options() });
    let path = case.path("mc/release/__1_0.distcp");
    let len = std::fs::metadata(&path).unwrap().len();
    std::fs::write(&path, vec![0; len as usize]).unwrap();
    snapshot!(export_refusal(&case, &ExportOptions::default()));
}

#[test]
fn the_base_of_another_model_is_refused() {
    let case = converted(&import_options());
    let mut other = Case::new();
    other.config.hidden_size -= 8;
    other.tensors = declared(&other.config, Dtype::Bfloat16);
    other.write_in_shards(u64::MAX);
    let base = Some(other.path("hf"));
    let error = export_refusal(&case, &ExportOptions { base, ..ExportOptions::default() });
    let shapes = error.lines().filter(|line| line.trim_start().starts_with("shape")).count();
    assert!(shapes > 20, "{error}");
}

#[test]
fn a_comparison_with_numbers_that_nothing_casts_says_so() {
    let mut case = converted(&import_options());
    case.tensor("backbone.layers.3.mixer.experts.2.down_proj.weight").dtype = Dtype::Uint8;
    case.write_in_shards(u64::MAX);
    let options = DiffOptions { glob: None, tolerance: Tolerance::Bits, threads: 2 };
    let report = diff(&case.path("mc"), &case.path("hf"), &options, &Silent).unwrap();
    let unreadable = report.entries.iter().filter(|entry| matches!(entry.what, Difference::Unreadable { .. }));
    assert_eq!(unreadable.count(), 1, "{:?}", report.entries);
}

#[test]
fn two_16_bit_dtypes_in_one_tensor_widen_without_loss() {
    let mut case = Case::new();
    case.tensor("backbone.layers.1.mixer.k_proj.weight").dtype = Dtype::Float16;
    let plan = case.import(&import_options()).unwrap();
    let row = plan.tensors().into_iter().find(|row| row.name.ends_with("layers.1.self_attention.linear_qkv.weight"));
    assert_eq!(row.unwrap().dtype, Dtype::Float32);
    assert_eq!(plan.summary().casts, 1 + 2, "A_log and D too");
    let notes: Vec<_> = plan.summary().notes.iter().map(|note| note.text.clone()).collect();
    snapshot!(notes.join("\n"));
}
