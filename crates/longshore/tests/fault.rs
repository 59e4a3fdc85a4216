//! Whatever happens to a run, the destination holds what it held before or the complete result, and the same command
//! finishes the work with the same bytes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../longshore-convert/tests/convert/hf_folder.rs"]
mod hf_folder;
#[path = "support/program.rs"]
mod program;
#[path = "../../longshore-convert/tests/convert/random.rs"]
mod random;

use longshore_ckpt::Dtype;
use longshore_convert::config::{Activation, Attention, LayerSpec, Mamba, Mlp, ModelConfig, Moe, release};
use program::{Dir, LONGSHORE};
use random::Random;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

/// Exit status of a refusal or failure; a panic is 101.
const FAILED: Option<i32> = Some(2);

/// A model of every kind of layer; the dense ones make up about `megabytes`.
fn model(megabytes: u64) -> ModelConfig {
    let mlp = LayerSpec::Mlp(Mlp { ffn: 1024, activation: Activation::ReluSquared });
    let moe = Moe {
        experts: 4,
        top_k: 2,
        expert_ffn: 64,
        shared_ffn: 64,
        latent: None,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: true,
        routed_scaling_factor: 1.0,
    };
    let mut layers = vec![
        LayerSpec::Mamba(Mamba { heads: 8, head_dim: 64, groups: 2, state: 64, conv_kernel: 4 }),
        LayerSpec::Attention(Attention { heads: 4, kv_heads: 2, head_dim: 64, rotary: None }),
        LayerSpec::Moe(moe),
    ];
    // Two matrices of 512 KiB each.
    layers.resize(3 + megabytes as usize, mlp);
    ModelConfig { layers, dtype: Some(Dtype::Bfloat16), ..ModelConfig::minimal("NemotronHForCausalLM", 256, 1000) }
}

/// A folder with a random model at `hf`.
struct Bench {
    dir: Dir,
    megabytes: u64,
}

impl Bench {
    fn new(megabytes: u64) -> Self {
        let bench = Self { dir: Dir::new(), megabytes };
        bench.write_source(1);
        bench
    }

    fn write_source(&self, seed: u64) {
        let (config, rng) = (model(self.megabytes), &mut Random(seed));
        let text = serde_json::to_string(&release::hf_json(&config).0).unwrap();
        let tensors = hf_folder::declared(&config, Dtype::Bfloat16);
        let fill = &mut |tensor: &hf_folder::Tensor, bytes: &mut [u8]| rng.finite(tensor, bytes);
        hf_folder::write(&self.path("hf"), &text, &tensors, 1 << 40, Some(fill));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path(name)
    }

    /// Arguments of a conversion into many small files.
    fn args<'a>(to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["convert", "hf", to, "--max-file-size", "2MB"][..], more].concat()
    }

    fn convert(&self, to: &str, more: &[&str]) -> Output {
        self.start(to, more).wait_with_output().unwrap()
    }

    fn start(&self, to: &str, more: &[&str]) -> Child {
        let mut command = self.dir.command(LONGSHORE, &[&Self::args(to, more)[..], &["-q"]].concat());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Starts a conversion and returns once its staging folder holds a file of data.
    fn start_writing(&self, to: &str) -> Child {
        let mut child = self.start(to, &["--threads", "1"]);
        while self.stagings().iter().all(|staging| !staging.join("files/release").is_dir()) {
            assert_eq!(child.try_wait().unwrap(), None, "it ended before it wrote");
        }
        child
    }

    /// Whatever lies below, at any depth, that has the name of a staging folder.
    fn stagings(&self) -> Vec<PathBuf> {
        let folders = [self.path("."), self.path("parent")];
        let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(".partial-")).collect()
    }

    fn is_valid(&self, name: &str) -> bool {
        self.dir.command(LONGSHORE, &["verify", name, "-q"]).output().unwrap().status.success()
    }

    fn files(&self, name: &str) -> Files {
        files(&self.path(name))
    }
}

type Files = BTreeMap<String, Vec<u8>>;

/// Every file below a folder with its bytes; nothing where there is no folder.
fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    found
}

fn copy(files: &Files, to: &Path) {
    for (name, bytes) in files {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The error of a run that failed in order.
fn failure(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), FAILED, "{said}");
    said
}

/// Compares without printing megabytes.
fn assert_same(found: &Files, want: &Files, what: &str) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(want), "{what}");
    let differing: Vec<_> = found.iter().filter(|(name, bytes)| want[*name] != **bytes).map(|f| f.0).collect();
    assert!(differing.is_empty(), "{what}: {differing:?} differ");
}

#[test]
fn a_run_killed_anywhere_leaves_nothing_or_everything_and_is_resumed() {
    let bench = Bench::new(48);
    let started = Instant::now();
    succeeded(&bench.convert("whole", &[]));
    let (took, whole) = (started.elapsed(), bench.files("whole"));
    assert!(whole.len() > 20, "{} files", whole.len());
    for kill in 0..10 {
        let mut child = bench.start("out", &[]);
        // Every run goes on from the last one, so its middle comes early.
        std::thread::sleep(took * (kill % 5) / 6);
        child.kill().unwrap();
        child.wait().unwrap();
        if bench.path("out").exists() {
            assert_same(&bench.files("out"), &whole, "after a kill");
            fs::remove_dir_all(bench.path("out")).unwrap();
        }
    }
    for finished in [1, 4, 10] {
        let mut child = bench.start_writing("out");
        let lines =
            |staging: &PathBuf| fs::read(staging.join("journal")).map_or(0, |j| j.split(|&b| b == b'\n').count() - 1);
        while bench.stagings().iter().all(|staging| lines(staging) < finished) {}
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!bench.path("out").exists());
        // One of the finished files is damaged before the work goes on.
        let first = files(&bench.stagings()[0].join("files/release")).into_keys().find(|name| name.ends_with("distcp"));
        let file =
            File::options().write(true).open(bench.stagings()[0].join("files/release").join(first.unwrap())).unwrap();
        file.write_all_at(b"\xff\xff\xff\xff", 1000).unwrap();
        let report = bench.dir.json(LONGSHORE, &Bench::args("out", &[])).0;
        assert!(report["result"]["resumed_files"].as_u64().unwrap() >= finished as u64 - 1);
        assert_same(&bench.files("out"), &whole, "resumed");
        assert_eq!(bench.stagings(), Vec::<PathBuf>::new());
        fs::remove_dir_all(bench.path("out")).unwrap();
    }
}

#[test]
fn a_run_killed_over_an_older_checkpoint_leaves_the_old_or_the_new() {
    let bench = Bench::new(10);
    succeeded(&bench.convert("new", &[]));
    for older in [&["--spec", "local"][..], &["--iteration", "5"]] {
        fs::remove_dir_all(bench.path("out")).ok();
        succeeded(&bench.convert("out", older));
        let old = bench.files("out");
        let started = Instant::now();
        succeeded(&bench.convert("out", &["--force"]));
        let (took, new) = (started.elapsed(), bench.files("out"));
        for kill in 0..10 {
            fs::remove_dir_all(bench.path("out")).unwrap();
            copy(&old, &bench.path("out"));
            let mut child = bench.start("out", &["--force"]);
            if kill < 4 {
                std::thread::sleep(took * kill / 4);
            } else {
                // The moments of publishing: the manifest is the last file.
                let staged = || bench.stagings().iter().any(|path| path.join("files/release/longshore.json").exists());
                while !staged() && child.try_wait().unwrap().is_none() {}
                std::thread::sleep(Duration::from_micros(400) * (kill - 4));
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let tracker = |files: &Files| files["latest_checkpointed_iteration.txt"].clone();
            let found = bench.files("out");
            // Where the inner folder is another one, it may be there already; the tracker says what counts.
            if found != old && (tracker(&found) == tracker(&new) || tracker(&old) == b"release") {
                assert_same(&found, &new, "after a kill");
            }
            assert!(bench.is_valid("out"), "what is there is not loadable");
            succeeded(&bench.convert("out", &["--force"]));
            assert_same(&bench.files("out"), &new, "finished");
            assert_eq!(bench.stagings(), Vec::<PathBuf>::new());
        }
    }
}

#[test]
fn nothing_of_what_was_replaced_gets_into_the_next_result() {
    let bench = Bench::new(1);
    succeeded(&bench.convert("out", &["--iteration", "5"]));
    succeeded(&bench.convert("out", &["--force"]));
    let new = bench.files("out");
    fs::write(bench.path("out/latest_checkpointed_iteration.txt"), "5").unwrap();
    // A run that died between the exchange of the folders and the tracker has the old folder in its staging.
    let mut child = bench.start_limited("out", &["--force"]);
    child.wait().unwrap();
    let staging = bench.stagings().pop().unwrap();
    fs::create_dir_all(staging.join("files/release/hf")).unwrap();
    fs::write(staging.join("files/release/__9_9.distcp"), "old").unwrap();
    fs::write(staging.join("files/release/hf/tokenizer.json"), "old").unwrap();
    succeeded(&bench.convert("out", &["--force"]));
    assert_same(&bench.files("out"), &new, "finished");
}

impl Bench {
    /// A run that may write no file of more than 100 blocks, of 512 or 1024 bytes as the shell has them.
    fn start_limited(&self, to: &str, more: &[&str]) -> Child {
        let script = "trap '' XFSZ; ulimit -f 100; exec \"$@\"";
        let args = [&["-c", script, "sh", LONGSHORE][..], &Self::args(to, more)].concat();
        let mut command = self.dir.command("/bin/sh", &args);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

#[test]
fn a_disk_that_takes_no_more_is_an_error_and_the_work_goes_on_from_there() {
    let bench = Bench::new(2);
    let output = bench.start_limited("out", &[]).wait_with_output().unwrap();
    let said = failure(&output);
    assert!(said.contains("reserving space for") || said.contains("writing"), "{said}");
    assert!(!bench.path("out").exists());
    succeeded(&bench.convert("out", &[]));
    assert!(bench.is_valid("out"));
    assert_eq!(bench.stagings(), Vec::<PathBuf>::new());
}

#[test]
fn a_parent_that_may_not_be_written_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new(0);
    fs::create_dir(bench.path("parent")).unwrap();
    fs::set_permissions(bench.path("parent"), fs::Permissions::from_mode(0o555)).unwrap();
    if File::create(bench.path("parent/probe")).is_ok() {
        eprintln!("skipped: this user may write anywhere");
        return;
    }
    assert!(failure(&bench.convert("parent/out", &[])).contains("ermission denied"));
}

#[test]
fn a_parent_that_vanishes_is_an_error() {
    let bench = Bench::new(48);
    let child = bench.start_writing("parent/out");
    // The run goes on creating files meanwhile.
    while bench.path("parent").exists() {
        fs::remove_dir_all(bench.path("parent")).ok();
    }
    let said = failure(&child.wait_with_output().unwrap());
    assert!(said.contains("o such file or directory"), "{said}");
    assert!(!bench.path("parent/out").exists());
}

#[test]
fn a_source_that_is_touched_meanwhile_is_an_error() {
    let bench = Bench::new(48);
    let child = bench.start_writing("out");
    let source = File::options().write(true).open(bench.path("hf/model.safetensors")).unwrap();
    source.set_modified(std::time::SystemTime::now() + Duration::from_secs(5)).unwrap();
    let said = failure(&child.wait_with_output().unwrap());
    assert!(said.contains("changed while it was read"), "{said}");
    assert!(!bench.path("out").exists());
    assert_eq!(bench.stagings(), Vec::<PathBuf>::new(), "what was written may mix old and new");
}

#[test]
fn a_source_that_is_replaced_meanwhile_is_an_error() {
    let bench = Bench::new(48);
    let child = bench.start_writing("out");
    fs::copy(bench.path("hf/model.safetensors"), bench.path("hf/copy")).unwrap();
    fs::rename(bench.path("hf/copy"), bench.path("hf/model.safetensors")).unwrap();
    let said = failure(&child.wait_with_output().unwrap());
    assert!(said.contains("changed while it was read"), "{said}");
    assert!(!bench.path("out").exists());
}

#[test]
fn a_source_that_is_cut_meanwhile_is_an_error() {
    let bench = Bench::new(48);
    let child = bench.start_writing("out");
    let source = File::options().write(true).open(bench.path("hf/model.safetensors")).unwrap();
    source.set_len(1 << 20).unwrap();
    let said = failure(&child.wait_with_output().unwrap());
    assert!(said.contains("model.safetensors"), "{said}");
    assert!(!bench.path("out").exists());
}

#[test]
fn a_config_that_changes_meanwhile_is_an_error() {
    let bench = Bench::new(48);
    let child = bench.start_writing("out");
    fs::write(bench.path("hf/config.json"), "{}").unwrap();
    let said = failure(&child.wait_with_output().unwrap());
    assert!(said.contains("config.json") && said.contains("changed while it was read"), "{said}");
    assert!(!bench.path("out").exists());
}

#[test]
fn of_two_equal_runs_at_once_one_wins_and_the_other_says_why_not() {
    let bench = Bench::new(4);
    succeeded(&bench.convert("whole", &[]));
    let whole = bench.files("whole");
    for _ in 0..4 {
        let outputs = [bench.start("out", &[]), bench.start("out", &[])].map(|run| run.wait_with_output().unwrap());
        assert!(outputs.iter().any(|output| output.status.success()));
        for output in outputs.iter().filter(|output| !output.status.success()) {
            assert!(failure(output).contains("another run holds"));
        }
        assert_same(&bench.files("out"), &whole, "both ended");
        assert_eq!(bench.stagings(), Vec::<PathBuf>::new());
        fs::remove_dir_all(bench.path("out")).unwrap();
    }
}

#[test]
fn of_two_different_runs_at_once_only_one_publishes() {
    let bench = Bench::new(4);
    for _ in 0..3 {
        let runs = [bench.start("out", &["--spec", "te"]), bench.start("out", &["--spec", "local"])];
        let outputs = runs.map(|run| run.wait_with_output().unwrap());
        let (won, lost): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
        assert_eq!(won.len(), 1, "without --force nothing is replaced");
        let said = failure(lost[0]);
        // As longshore sees it, or as the system says in the last moment.
        assert!(said.contains("is not empty") || said.contains("Directory not empty"), "{said}");
        assert!(bench.is_valid("out"));
        fs::remove_dir_all(bench.path("out")).unwrap();
        for staging in bench.stagings() {
            fs::remove_dir_all(staging).unwrap();
        }
    }
}

#[test]
fn a_link_in_the_place_of_the_staging_folder_is_not_followed() {
    let bench = Bench::new(1);
    bench.start_limited("out", &[]).wait().unwrap();
    let staging = bench.stagings().pop().unwrap();
    fs::remove_dir_all(&staging).unwrap();
    fs::create_dir(bench.path("victim")).unwrap();
    std::os::unix::fs::symlink(bench.path("victim"), &staging).unwrap();
    assert!(failure(&bench.convert("out", &[])).contains("symbolic link"));
    assert_eq!(files(&bench.path("victim")), Files::new());
    assert!(!bench.path("out").exists());
}

#[test]
fn the_same_command_again_writes_nothing() {
    let bench = Bench::new(2);
    succeeded(&bench.convert("out", &[]));
    let modified = || fs::metadata(bench.path("out/release/.metadata")).unwrap().modified().unwrap();
    let before = modified();
    for more in [&[][..], &["--force"]] {
        let report = bench.dir.json(LONGSHORE, &Bench::args("out", more)).0;
        assert_eq!(report["result"]["already_complete"], true);
        assert_eq!(modified(), before);
    }
}

#[test]
fn the_result_of_another_source_is_replaced_only_by_force() {
    let bench = Bench::new(2);
    succeeded(&bench.convert("out", &[]));
    let old = bench.files("out");
    bench.write_source(2);
    assert!(failure(&bench.convert("out", &[])).contains("--force"));
    assert_same(&bench.files("out"), &old, "refused");
    succeeded(&bench.convert("out", &["--force"]));
    succeeded(&bench.convert("new", &[]));
    assert_same(&bench.files("out"), &bench.files("new"), "replaced");
}
