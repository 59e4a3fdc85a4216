//! Whatever a person reads from the library: the table of an architecture, the summary of a plan, problems and errors.

use crate::hf_folder::{self, declared};
use crate::refusals::import_options;
use longshore_ckpt::Dtype;
use longshore_convert::arch::{self, RuleRow};
use longshore_convert::config::{Activation, Attention, LayerSpec, Mamba, Mlp, ModelConfig, Moe, Mtp, release};
use longshore_convert::options::{DtypeChoice, ImportOptions, Layout};
use longshore_convert::plan::plan_import;
use longshore_convert::{Error, Problem};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Lines of the tables move, and hashes of plans change with the version.
pub(crate) fn filters() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.add_filter(r"arch/(\w+)\.rs:\d+", "arch/$1.rs:[LINE]");
    settings
}

/// A model with every kind of layer and two MTP blocks.
pub(crate) fn model() -> ModelConfig {
    let attention = LayerSpec::Attention(Attention { heads: 4, kv_heads: 2, head_dim: 8, rotary: None });
    let moe = LayerSpec::Moe(Moe {
        experts: 4,
        top_k: 2,
        expert_ffn: 8,
        shared_ffn: 16,
        latent: Some(8),
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: true,
        routed_scaling_factor: 2.5,
    });
    let mamba = LayerSpec::Mamba(Mamba { heads: 4, head_dim: 4, groups: 2, state: 4, conv_kernel: 4 });
    ModelConfig {
        layers: vec![mamba, attention, LayerSpec::Mlp(Mlp { ffn: 16, activation: Activation::ReluSquared }), moe],
        mtp: Some(Mtp { depth: 2, layers: vec![attention, moe], repeated: Some(false) }),
        dtype: Some(Dtype::Bfloat16),
        ..ModelConfig::minimal("NemotronHForCausalLM", 16, 50)
    }
}

fn snapshot(name: &str, text: &str) {
    filters().bind(|| insta::assert_snapshot!(name, text));
}

fn table(rows: &[RuleRow]) -> String {
    let line = |row: &RuleRow| format!("{} {:<10} {:>3}  {} = {}\n", row.rule, row.word, row.count, row.hf, row.mc);
    rows.iter().map(line).collect()
}

#[test]
fn the_table_of_nemotron_h() {
    snapshot("the_table_of_nemotron_h", &table(&arch::rules("nemotron_h").unwrap()));
}

#[test]
fn the_summary_of_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    let (source, config) = (dir.path().join("hf"), model());
    let text = serde_json::to_string(&release::hf_json(&config).0).unwrap();
    hf_folder::write(&source, &text, &declared(&config, Dtype::Bfloat16), 3000, None);
    let options = ImportOptions {
        layout: Layout { tp: 2, pp: 2, ep: 2, etp: 1 },
        dtype: DtypeChoice::Cast(Dtype::Float16),
        make_vocab_size_divisible_by: Some(32),
        core_attention_states: true,
        dequantize: false,
        ..import_options()
    };
    let plan = plan_import(&source, &dir.path().join("mc"), &options).unwrap();
    let mut summary = serde_json::to_value(plan.summary()).unwrap();
    summary["free_space"] = "[BYTES]".into();
    summary["fingerprint"] = "[HASH]".into();
    let mut text = serde_json::to_string_pretty(&summary).unwrap() + "\n\n" + &table(&plan.rules()) + "\n";
    for row in plan.tensors() {
        writeln!(text, "{} {} {:?} {} {}", row.file, row.name, row.shape, row.dtype, row.from.len()).unwrap();
    }
    snapshot("the_summary_of_a_plan", &text.replace(dir.path().to_str().unwrap(), "[DIR]"));
}

fn problems() -> Vec<Problem> {
    let (tensor, file) = (|| "backbone.norm_f.weight".to_owned(), || "model.safetensors".to_owned());
    let rule = || "arch/nemotron_h.rs:31".to_owned();
    let what = |text: &str| text.to_owned();
    vec![
        Problem::Missing { tensor: tensor(), rule: rule() },
        Problem::Unmapped { tensor: tensor(), file: file() },
        Problem::Shape { tensor: tensor(), file: file(), expected: vec![16], found: vec![16, 1], rule: rule() },
        Problem::Dtype {
            tensor: tensor(),
            file: file(),
            found: Dtype::Int8,
            what: what("expected a float"),
            rule: rule(),
        },
        Problem::Cover { tensor: tensor(), what: what("the chunks hold 8 of 12 elements") },
        Problem::Damaged { tensor: tensor(), file: file(), what: what("the checksum differs") },
        Problem::Config { file: what("config.json"), field: what("hidden_size"), what: what("missing") },
        Problem::Loss { tensor: tensor(), what: what("3 values are too large for float16") },
        Problem::Mtp { config: what("config.json"), depth: 2 },
        Problem::Option { option: what("--tp"), what: what("3 does not divide num_attention_heads (4)") },
    ]
}

#[test]
fn the_text_of_every_problem_and_error() {
    let path = || PathBuf::from("models/nano");
    let what = |text: &str| text.to_owned();
    let errors = [
        Error::Refused(problems()),
        Error::Refused(problems()[..1].to_vec()),
        Error::Checkpoint(longshore_ckpt::Error::NotFound { path: path(), what: what("no such file or folder") }),
        Error::Model { path: path(), what: what("there is no config.json") },
        Error::Destination { path: path(), what: what("is not empty; --force replaces it") },
        Error::SourceChanged { path: path(), what: what("its size, time or inode differs") },
        Error::Interrupted { staging: path() },
    ];
    snapshot("the_text_of_every_problem_and_error", &errors.map(|error| error.to_string()).join("\n\n"));
}

#[test]
fn every_problem_as_json() {
    snapshot("every_problem_as_json", &serde_json::to_string_pretty(&problems()).unwrap());
}
