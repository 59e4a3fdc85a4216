//! `scripts/*.sh` as jobs start them: defaults, exit status, ranks, reruns.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/program.rs"]
mod program;

use program::{Dir, LONGSHORE};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const LABEL: &str = "nvidia/some-model";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn model() -> String {
    repository().join("models/nemotron-h-10m").to_str().unwrap().to_owned()
}

struct Job {
    dir: Dir,
}

impl Job {
    fn new() -> Self {
        Self { dir: Dir::new() }
    }

    /// A path in the job's folder.
    fn at(&self, name: &str) -> String {
        self.dir.path(name).to_str().unwrap().to_owned()
    }

    fn command(&self, script: &str, args: &[&str], env: &[(&str, &str)]) -> Command {
        let path = repository().join("scripts").join(format!("{script}.sh"));
        let args: Vec<&str> = std::iter::once(path.to_str().unwrap()).chain(args.iter().copied()).collect();
        let mut command = self.dir.command("/usr/bin/env", &[&["bash"], &args[..]].concat());
        command.env("PATH", "/usr/bin:/bin").env("LONGSHORE", LONGSHORE).env("MLM_WORK_DIR", self.at("work"));
        command.envs(env.iter().copied());
        command
    }

    fn run(&self, script: &str, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
        said(&self.command(script, args, env).output().unwrap())
    }

    /// The bundled model as a Megatron checkpoint.
    fn converted(&self, env: &[(&str, &str)]) -> String {
        let (source, mlm) = (model(), self.at("mlm"));
        let env = [&[("HF_MODEL_CKPT", source.as_str()), ("MLM_MODEL_SAVE", &mlm)], env].concat();
        let (status, _, said) = self.run("convert", &[LABEL], &env);
        assert_eq!(status, 0, "{said}");
        mlm
    }
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Whether a Megatron checkpoint has fused norm names, and how many extra states.
fn keys(job: &Job, checkpoint: &str) -> (bool, u64) {
    let (value, _) = job.dir.json(LONGSHORE, &["inspect", checkpoint]);
    (value["tensors"].to_string().contains("in_proj.layer_norm_weight"), value["objects"].as_u64().unwrap())
}

#[test]
fn every_failure_is_status_1() {
    let job = Job::new();
    for script in ["convert", "quantize", "generate", "mmlu", "export"] {
        let (status, _, said) = job.run(script, &[], &[]);
        assert_eq!(status, 1, "{script}: {said}");
        assert!(said.contains("names the model"), "{script}: {said}");
        let (status, _, said) = job.run(script, &[LABEL], &[("MLM_EXTRA_ARGS", "--no-such-argument")]);
        assert_eq!(status, 1, "{script}: {said}");
        assert!(said.contains("`--no-such-argument` is not known"), "{script}: {said}");
        let (status, _, said) = job.run(script, &[LABEL], &[("MLM_ENV_SETUP", "/no/such/file")]);
        assert_eq!(status, 1, "{script}: {said}");
    }
    let (status, _, said) = job.run("generate", &[LABEL], &[("HF_MODEL_CKPT", &model()), ("DRAFT_LEN", "3")]);
    assert_eq!((status, said.contains("speculative decoding is not supported")), (1, true), "{said}");
    let (status, _, said) = job.run("quantize", &[LABEL, "auto"], &[("HF_MODEL_CKPT", &model())]);
    assert_eq!((status, said.contains("AutoQuantize is not supported")), (1, true), "{said}");
}

#[test]
fn convert_writes_the_local_spec_with_fused_names_and_te_where_it_is_asked_for() {
    let job = Job::new();
    let (fused, states) = keys(&job, &job.converted(&[]));
    assert!(fused);
    for argument in ["--full-te-spec", "--export-default-te-spec", "--export-te-mcore-model --full-te-spec"] {
        // The norms of the four MoE layers have extra states of their own there.
        assert_eq!(keys(&job, &job.converted(&[("MLM_EXTRA_ARGS", argument)])), (true, states + 4), "{argument}");
    }
}

#[test]
fn a_megatron_source_wins_and_is_cut_and_named_anew() {
    let job = Job::new();
    let te = job.converted(&[("MLM_EXTRA_ARGS", "--full-te-spec")]);
    let local = job.at("local");
    let env = [
        ("MLM_MODEL_CKPT", te.as_str()),
        ("HF_MODEL_CKPT", "/no/such/folder"),
        ("MLM_MODEL_SAVE", &local),
        ("TP", "2"),
    ];
    let (status, _, said) = job.run("convert", &[LABEL], &env);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("($MLM_MODEL_CKPT)") && said.contains("local spec"), "{said}");
    let (verified, _) = job.dir.json(LONGSHORE, &["verify", &local, "--against", &model()]);
    assert_eq!(verified["valid"].as_bool().or(verified["equal"].as_bool()), Some(true), "{verified}");
}

#[test]
fn the_same_command_again_writes_nothing_and_another_one_replaces() {
    let job = Job::new();
    let mlm = job.converted(&[]);
    let manifest = Path::new(&mlm).join("release/longshore.json");
    let written = fs::metadata(&manifest).unwrap().modified().unwrap();
    job.converted(&[]);
    assert_eq!(fs::metadata(&manifest).unwrap().modified().unwrap(), written);
    job.converted(&[("TP", "2")]);
    assert_ne!(fs::metadata(&manifest).unwrap().modified().unwrap(), written);
    // What is read is never overwritten.
    let env = [("MLM_MODEL_CKPT", mlm.as_str()), ("MLM_MODEL_SAVE", mlm.as_str())];
    let (status, _, said) = job.run("convert", &[LABEL], &env);
    assert_eq!((status, said.contains("is the source")), (1, true), "{said}");
}

#[test]
fn an_identical_quantization_is_not_computed_again() {
    let job = Job::new();
    let (source, fp8) = (model(), job.at("fp8"));
    let extra = ("MLM_EXTRA_ARGS", "--calib-size 4 --calib-max-sequence-length 32");
    let env = [("HF_MODEL_CKPT", source.as_str()), ("MLM_MODEL_SAVE", &fp8), extra];
    let (status, out, said) = job.run("quantize", &[LABEL, "fp8"], &env);
    assert_eq!(status, 0, "{said}");
    assert!(out.contains(" TensorQuantizers found in model\n") && out.matches("\n['").count() == 2, "{out}");
    assert!(said.contains("Calibrated") && said.contains("Time"), "{said}");
    let (status, _, said) = job.run("quantize", &[LABEL, "fp8"], &env);
    assert_eq!((status, said.contains("by an earlier run"), said.contains("Calibrated")), (0, true, false), "{said}");
    let other = [env[0], env[1], ("MLM_EXTRA_ARGS", "--calib-size 5 --calib-max-sequence-length 32")];
    let (status, _, said) = job.run("quantize", &[LABEL, "fp8"], &other);
    assert_eq!((status, said.contains("Calibrated")), (0, true), "{said}");
}

#[test]
fn texts_are_compared_with_references() {
    let job = Job::new();
    let (source, fp8) = (model(), job.at("fp8"));
    let extra =
        ("MLM_EXTRA_ARGS", "--calib-size 2 --calib-max-sequence-length 16 --generate-output-len 4 --prompts 'A|B'");
    let env = [("HF_MODEL_CKPT", source.as_str()), ("MLM_MODEL_SAVE", &fp8), extra];
    let (status, out, said) = job.run("quantize", &[LABEL, "fp8"], &env);
    assert_eq!(status, 0, "{said}");
    let text = |line: &str| line.trim_start_matches("['").trim_end_matches("']").replace("\\n", "\n");
    let texts: Vec<String> = out.lines().filter(|line| line.starts_with("['")).map(text).collect();
    assert_eq!(texts.len(), 2, "{out}");
    let again = |references: &str| {
        fs::remove_dir_all(&fp8).unwrap();
        job.run("quantize", &[LABEL, "fp8"], &[&env[..], &[("MLM_REF_LABEL", references)]].concat())
    };
    let (status, _, said) = again(&texts.join("|"));
    assert_eq!(status, 0, "{said}");
    let (status, _, said) = again("one|other");
    assert_eq!((status, said.contains("is not the reference")), (1, true), "{said}");
}

#[test]
fn eight_starts_give_one_result() {
    for ranked in [false, true] {
        let job = Job::new();
        let (source, mlm) = (model(), job.at("mlm"));
        let start = |rank: u32| {
            let rank = rank.to_string();
            let mut env = vec![("HF_MODEL_CKPT", source.as_str()), ("MLM_MODEL_SAVE", &mlm), ("TP", "2")];
            if ranked {
                env.extend([("RANK", rank.as_str()), ("WORLD_SIZE", "8"), ("MASTER_PORT", "29500")]);
            }
            let mut command = job.command("convert", &[LABEL], &env);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        // Rank 0 is the last to come.
        let all: Vec<_> = (0..8).rev().map(start).collect();
        let outputs: Vec<_> = all.into_iter().map(|child| said(&child.wait_with_output().unwrap())).collect();
        assert!(outputs.iter().all(|(status, ..)| *status == 0), "{outputs:?}");
        let published = outputs.iter().filter(|(_, _, said)| said.contains("Published")).count();
        assert_eq!(published, 1, "{outputs:?}");
        let (verified, _) = job.dir.json(LONGSHORE, &["verify", &mlm, "--against", &source]);
        assert!(verified.to_string().contains("true"), "{verified}");
        let left: Vec<_> = fs::read_dir(job.dir.path(".")).unwrap().map(|e| e.unwrap().file_name()).collect();
        let expected = if ranked { 2 } else { 1 };
        assert_eq!(left.len(), expected, "{left:?}");
    }
}

#[test]
fn ranks_end_with_the_status_of_rank_0() {
    let job = Job::new();
    let env = |rank: &'static str| {
        vec![("HF_MODEL_CKPT", "/no/such/folder"), ("SLURM_PROCID", rank), ("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "2")]
    };
    let mut second = job.command("convert", &[LABEL], &env("1"));
    let second = second.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (status, _, first) = job.run("convert", &[LABEL], &env("0"));
    assert_eq!((status, first.contains("no such folder")), (1, true), "{first}");
    let (status, _, silent) = said(&second.wait_with_output().unwrap());
    assert_eq!((status, silent.as_str()), (1, ""));
}

#[test]
fn variables_of_a_file_count_and_the_default_folders_are_the_scripts_own() {
    let job = Job::new();
    fs::write(job.at("setup.sh"), format!("HF_MODEL_CKPT={}\nTP=2\n", model())).unwrap();
    let (status, _, said) = job.run("convert", &["org/name"], &[("MLM_ENV_SETUP", &job.at("setup.sh"))]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("tp 2 ($TP)"), "{said}");
    let mlm = job.at("work/org/name_mlm");
    assert!(Path::new(&mlm).join("release/.metadata").exists(), "{said}");
    let (status, _, said) = job.run("export", &["org/name"], &[("MLM_MODEL_CKPT", &mlm)]);
    assert_eq!(status, 0, "{said}");
    assert!(Path::new(&job.at("work/org/name_export")).join("config.json").exists(), "{said}");
}

#[test]
fn generate_shows_the_prompt_and_mmlu_the_references_table() {
    let job = Job::new();
    let mlm = job.converted(&[]);
    let source = model();
    let env = [("MLM_MODEL_CKPT", mlm.as_str()), ("HF_MODEL_CKPT", &source), ("MMLU_DATASET", "bundled")];
    let (status, out, said) = job.run("generate", &[LABEL], &[&env[..], &[("MLM_EXTRA_ARGS", "--osl 4")]].concat());
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("Tokenizer") && said.contains("($HF_MODEL_CKPT)"), "{said}");
    assert!(out.contains("Write an email to a wine expert, requesting a guest article"), "{out}");
    let (status, out, said) = job.run("mmlu", &[LABEL], &env);
    assert_eq!(status, 0, "{said}");
    assert!(out.lines().last().is_some_and(|line| line.starts_with("average  ")), "{out}");
    let bound = ("MLM_EXTRA_ARGS", "--lower-bound 1.0");
    assert_eq!(job.run("mmlu", &[LABEL], &[&env[..], &[bound]].concat()).0, 1);
}

#[test]
fn model_arguments_are_checked_where_they_decide_shapes() {
    let job = Job::new();
    let source = model();
    let env = |extra: &'static str| [("HF_MODEL_CKPT", source.clone()), ("MLM_EXTRA_ARGS", extra.to_owned())];
    let run = |script: &str, extra: &'static str| {
        let env = env(extra);
        job.run(script, &[LABEL], &env.each_ref().map(|(name, value)| (*name, value.as_str())))
    };
    let (status, _, said) = run("convert", "--num-layers 24 --hidden-size 7 --seq-length 4096");
    assert_eq!(status, 1);
    assert!(
        said.contains("--num-layers 24") && said.contains("--hidden-size 7") && !said.contains("seq-length"),
        "{said}"
    );
    let (status, _, said) = run("generate", "--num-layers 24 --osl 1");
    assert_eq!((status, said.contains("--num-layers 24")), (1, true), "{said}");
    let (status, _, said) = run("convert", "--moe-router-topk 5 --num-layers 12");
    assert_eq!((status, said.contains("`--moe-router-topk 5` has no effect")), (0, true), "{said}");
}
