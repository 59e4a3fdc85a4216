//! A calibration that is interrupted goes on with the same command, from the last layer that was saved, and the result is
//! that of an uninterrupted one, byte for byte.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/program.rs"]
mod program;

use program::{Dir, LONGSHORE};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

/// Layers of the bundled model.
const LAYERS: u64 = 12;

/// Every kind of state: magnitudes, scales and shares of blocks, scales from the channels of the input.
const CONFIGS: [&str; 3] = ["FP8_DEFAULT_CFG", "INT4_AWQ_CFG", "INT8_SMOOTHQUANT_CFG"];

struct Bench {
    dir: Dir,
    model: String,
    config: &'static str,
    /// Samples: they decide how long a layer takes.
    size: &'static str,
    /// What is written.
    form: &'static str,
}

impl Bench {
    fn new(config: &'static str, size: &'static str) -> Self {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m");
        Self {
            dir: Dir::new(),
            model: model.canonicalize().unwrap().to_str().unwrap().to_owned(),
            config,
            size,
            form: "torch_dist",
        }
    }

    /// What `more` sets takes the place of what is usual here.
    fn args<'a>(&'a self, to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let usual =
            [("--to", self.form), ("--quant-cfg", self.config), ("--calib-size", self.size), ("--calib-seq", "64")];
        let usual = usual.into_iter().filter(|(flag, _)| !more.contains(flag)).flat_map(|(flag, value)| [flag, value]);
        ["quantize", &self.model, to, "--skip-generate"].into_iter().chain(usual).chain(more.iter().copied()).collect()
    }

    fn start(&self, to: &str, more: &[&str]) -> Child {
        let mut command = self.dir.command(LONGSHORE, &self.args(to, more));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn run(&self, to: &str, more: &[&str]) -> Output {
        self.start(to, more).wait_with_output().unwrap()
    }

    /// What a run that succeeds says.
    fn ok(&self, to: &str, more: &[&str]) -> String {
        let output = self.run(to, more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    /// The object of a run that succeeds.
    fn json(&self, to: &str, more: &[&str]) -> Value {
        self.dir.json(LONGSHORE, &self.args(to, more)).0
    }

    /// Starts a run that saves every layer, and kills it once `is_time` or at its end.
    fn kill(&self, to: &str, is_time: impl Fn(&Self) -> bool) {
        let mut child = self.start(to, &["--save-every", "0", "-q"]);
        while !is_time(self) && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The folders beside the destinations whose names hold `mark`.
    fn beside(&self, mark: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path(".")).unwrap().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(mark)).collect()
    }

    /// Layers that are saved of the first pass.
    fn saved(&self) -> u64 {
        self.saved_of(".calibration-")
    }

    /// Layers that are saved of a pass.
    fn saved_of(&self, mark: &str) -> u64 {
        let state = |folder: &PathBuf| -> Option<u64> {
            let state: Value = serde_json::from_slice(&fs::read(folder.join("state.json")).ok()?).ok()?;
            state["layers"].as_u64()
        };
        self.beside(mark).iter().find_map(state).unwrap_or(0)
    }

    fn files(&self, name: &str) -> Files {
        files(&self.dir.path(name))
    }
}

type Files = BTreeMap<String, Vec<u8>>;

/// Every file below a folder with its bytes; nothing where there is no folder.
fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// Compares without printing megabytes.
fn assert_same(found: &Files, want: &Files, what: &str) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(want), "{what}");
    let differing: Vec<_> = found.iter().filter(|(name, bytes)| want[*name] != **bytes).map(|f| f.0).collect();
    assert!(differing.is_empty(), "{what}: {differing:?} differ");
}

#[test]
fn a_run_killed_after_any_layer_goes_on_with_the_same_bytes() {
    for config in CONFIGS {
        let bench = Bench::new(config, "8");
        assert_eq!(bench.json("whole", &["--save-every", "0"])["calibration"]["resumed_layers"], 0);
        let whole = bench.files("whole");
        for layer in 1..=LAYERS {
            bench.kill("out", |bench| bench.saved() >= layer);
            assert!(!bench.dir.path("out").exists(), "{config}: it ended before it was killed");
            assert!(bench.saved() >= layer, "{config}");
        }
        // Everything is calibrated, and something is written.
        bench.kill("out", |bench| !bench.beside(".partial-").is_empty());
        assert!(!bench.dir.path("out").exists() && bench.saved() == LAYERS, "{config}");
        let said = bench.ok("out", &["--save-every", "0"]);
        assert!(said.contains("   Resumed  after layer 12 of 12\n"), "{said}");
        assert_same(&bench.files("out"), &whole, config);
        assert_eq!(bench.beside("out."), Vec::<PathBuf>::new(), "{config}");
    }
}

#[test]
fn a_run_killed_while_it_compares_or_clips_goes_on_with_the_same_bytes() {
    for (config, form, marks) in [
        ("INT4_AWQ_CFG", "hf", &[".comparison-"][..]),
        ("NVFP4_AWQ_FULL_CFG", "torch_dist", &[".comparison-", ".clipping-"]),
    ] {
        let bench = Bench { form, ..Bench::new(config, "8") };
        bench.ok("whole", &["--save-every", "0"]);
        let whole = bench.files("whole");
        for mark in marks {
            for layer in [1, 5, LAYERS] {
                bench.kill("out", |bench| bench.saved_of(mark) >= layer);
                assert!(!bench.dir.path("out").exists(), "{config}: it ended before it was killed");
                // The next one may have been saved before it was killed.
                let saved = bench.saved_of(mark);
                assert!(saved >= layer && bench.saved() == LAYERS, "{config} {mark}: {saved}");
                let said = bench.ok("out", &["--save-every", "0"]);
                for layer in [LAYERS, saved] {
                    assert!(said.contains(&format!("   Resumed  after layer {layer} of 12\n")), "{mark}: {said}");
                }
                assert_same(&bench.files("out"), &whole, config);
                assert_eq!(bench.beside("out."), Vec::<PathBuf>::new(), "{config}");
                fs::remove_dir_all(bench.dir.path("out")).unwrap();
            }
        }
    }
}

#[test]
fn a_run_killed_at_any_time_goes_on_with_the_same_bytes() {
    for config in CONFIGS {
        let bench = Bench::new(config, "8");
        let started = Instant::now();
        bench.ok("whole", &["--save-every", "0"]);
        let (took, whole) = (started.elapsed(), bench.files("whole"));
        for kill in 1..8 {
            let started = Instant::now();
            bench.kill("out", |_| started.elapsed() > took * kill / 8);
            if bench.dir.path("out").exists() {
                assert_same(&bench.files("out"), &whole, config);
                fs::remove_dir_all(bench.dir.path("out")).unwrap();
            }
            let saved = bench.saved();
            let report = bench.json("out", &["--save-every", "0"]);
            assert_eq!(report["calibration"]["resumed_layers"], saved, "{config}");
            assert_same(&bench.files("out"), &whole, config);
            assert_eq!(bench.beside("out."), Vec::<PathBuf>::new(), "{config}");
            fs::remove_dir_all(bench.dir.path("out")).unwrap();
        }
    }
}

#[test]
fn a_damaged_state_is_not_trusted() {
    let bench = Bench::new("FP8_DEFAULT_CFG", "4");
    bench.ok("whole", &[]);
    for name in ["state.json", "stream-", "layers-"] {
        bench.kill("out", |bench| bench.saved() >= 2);
        let folder = bench.beside(".calibration-").pop().unwrap();
        // Others may be left of a save that was not finished.
        let file = if name.ends_with('-') { format!("{name}{}", bench.saved()) } else { name.to_owned() };
        let mut bytes = fs::read(folder.join(&file)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(folder.join(&file), bytes).unwrap();
        let said = bench.ok("out", &[]);
        assert!(said.contains("Restarted  an interrupted run cannot be resumed: "), "{said}");
        assert!(!said.contains("Resumed"), "{said}");
        assert_same(&bench.files("out"), &bench.files("whole"), name);
        fs::remove_dir_all(bench.dir.path("out")).unwrap();
    }
}

#[test]
fn what_decides_the_result_decides_whether_a_run_goes_on() {
    let bench = Bench::new("FP8_DEFAULT_CFG", "4");
    let interrupt = || {
        bench.kill("out", |bench| bench.saved() >= 2);
        bench.beside(".calibration-").pop().unwrap()
    };
    for more in [
        &["--all-experts"][..],
        &["--calib-seq", "63"],
        &["--precision", "f32"],
        &["--batch-tokens", "511"],
        &["--exclude", "*.0.*"],
        &["--dt-min", "0.001"],
        &["--quant-cfg", "mxfp8"],
    ] {
        let folder = interrupt();
        let said = bench.ok("out", more);
        let removed = format!("{}`, which is of an interrupted run", folder.file_name().unwrap().display());
        assert!(said.contains(&removed) && !said.contains("Resumed"), "{more:?}: {said}");
        assert_eq!(bench.beside("out."), Vec::<PathBuf>::new(), "{more:?}");
        fs::remove_dir_all(bench.dir.path("out")).unwrap();
    }
    for more in [&["--memory", "1G"][..], &["--threads", "1"], &["--save-every", "5"], &["--also-hf", "hf"]] {
        interrupt();
        let said = bench.ok("out", more);
        assert!(said.contains("Resumed  after layer "), "{more:?}: {said}");
        fs::remove_dir_all(bench.dir.path("out")).unwrap();
    }
}

#[test]
fn a_short_run_writes_nothing_unless_it_is_told_to() {
    let bench = Bench::new("FP8_DEFAULT_CFG", "512");
    let mut child = bench.start("out", &["-q"]);
    let mut seen = false;
    while child.try_wait().unwrap().is_none() {
        for folder in bench.beside(".calibration-") {
            // It may be gone by now.
            let names = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
            assert!(names.into_iter().all(|name| name == "lock"));
            seen = true;
        }
    }
    assert!(seen && child.wait().unwrap().success());
    assert_eq!(bench.beside("out."), Vec::<PathBuf>::new());
}

#[test]
fn a_second_run_is_refused_while_the_first_calibrates() {
    let bench = Bench::new("INT4_AWQ_CFG", "512");
    let mut first = bench.start("out", &["--save-every", "0", "-q"]);
    while bench.saved() == 0 {}
    for more in [&[][..], &["--quant-cfg", "fp8"], &["--quant-cfg", "mxfp8"], &["--force"]] {
        let output = bench.run("out", more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{more:?}: {said}");
        assert!(said.contains("another run holds"), "{more:?}: {said}");
    }
    assert_eq!(first.try_wait().unwrap(), None);
    assert_eq!(bench.beside("out.").len(), 1, "nothing is left of the others");
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn a_disk_that_takes_no_more_does_not_end_a_calibration() {
    let bench = Bench::new("FP8_DEFAULT_CFG", "64");
    bench.ok("whole", &[]);
    // No file of more than 100 blocks, of 512 or 1024 bytes as the shell has them: the residual stream is larger.
    let script = "trap '' XFSZ; ulimit -f 100; exec \"$@\"";
    let args = [&["-c", script, "sh", LONGSHORE][..], &bench.args("out", &["--save-every", "0"])].concat();
    let output = bench.dir.command("/bin/sh", &args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let warning = said.find("an interruption will cost what is done from here on");
    let calibrated = said.find("Calibrated  12 layers");
    assert!(warning.is_some() && warning < calibrated, "{said}");
    // The checkpoint does not fit either.
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(bench.beside(".calibration-"), Vec::<PathBuf>::new());
    bench.ok("out", &[]);
    assert_same(&bench.files("out"), &bench.files("whole"), "after all");
    assert_eq!(bench.beside("out."), Vec::<PathBuf>::new());
}

#[test]
fn ctrl_c_leaves_the_state() {
    // A search takes long enough for the signal to come before the end, also on a busy machine.
    let bench = Bench::new("INT4_AWQ_CFG", "64");
    let mut child = bench.start("out", &["--save-every", "0", "-q"]);
    while bench.saved() < 1 {}
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(bench.ok("out", &[]).contains("Resumed  after layer "));
}
