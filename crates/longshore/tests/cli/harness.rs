//! Runs the binary: one temporary folder per test, nothing of the caller's environment, whole outputs.

use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The bundled model.
pub(crate) fn model() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m");
    path.canonicalize().expect("the repository bundles its demo model")
}

/// A temporary folder, in which the binary runs.
pub(crate) struct Dir {
    temp: tempfile::TempDir,
    env: Vec<(String, String)>,
}

impl Dir {
    pub(crate) fn new() -> Self {
        Self { temp: tempfile::tempdir().expect("a temporary folder"), env: Vec::new() }
    }

    /// The same folder with a variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        self.env.push((name.to_owned(), value.as_ref().to_str().expect("UTF-8").to_owned()));
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
        command.args(args).current_dir(self.temp.path()).stdin(Stdio::null()).env_clear();
        command.env("HOME", self.temp.path()).env("TMPDIR", self.temp.path());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(crate) fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the binary runs")
    }

    /// Runs the binary and gives exit status, stdout and stderr as one text, without what differs from run to run.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let mut text = format!("exit {}\n", output.status.code().expect("an exit status"));
        for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            if !bytes.is_empty() {
                let _ = write!(text, "--- {name}\n{}", String::from_utf8_lossy(bytes));
            }
        }
        let model = model().display().to_string();
        text.replace(self.temp.path().to_str().expect("UTF-8"), "[DIR]").replace(&model, "[MODEL]")
    }

    /// Runs the binary, which must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let text = self.run(args);
        assert!(text.starts_with("exit 0\n"), "{args:?}: {text}");
        text
    }

    /// Runs the binary with `--json` and gives the object on stdout.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.output(&[args, &["--json", "-q"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {output:?}"))
    }

    /// A writable copy of the bundled model, whose safetensors header `change` has changed.
    pub(crate) fn model_with(&self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir(&folder).expect("a new folder");
        for entry in std::fs::read_dir(model()).expect("a folder") {
            let entry = entry.expect("an entry");
            if entry.file_name() != "model.safetensors" {
                std::fs::write(folder.join(entry.file_name()), std::fs::read(entry.path()).expect("a file"))
                    .expect("a writable folder");
            }
        }
        let bytes = std::fs::read(model().join("model.safetensors")).expect("the model's data");
        let len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))).expect("a length");
        let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + len]).expect("a header");
        change(&mut header);
        let header = serde_json::to_vec(&header).expect("JSON");
        let changed = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &bytes[8 + len..]].concat();
        std::fs::write(folder.join("model.safetensors"), changed).expect("a writable folder");
        folder
    }

    /// The bundled model with a vocabulary of `rows`, whose embeddings are holes in the file: large, and no work to make.
    pub(crate) fn model_of_size(&self, name: &str, rows: u64) -> PathBuf {
        const WIDTH: u64 = 256 * 2;
        let large = ["backbone.embeddings.weight", "lm_head.weight"];
        let mut old = Vec::new();
        let folder = self.model_with(name, |header| {
            let mut entries: Vec<(String, Value)> = std::mem::take(header).into_iter().collect();
            entries.retain(|(name, _)| name != "__metadata__");
            entries.sort_by_key(|(_, entry)| entry["data_offsets"][0].as_u64());
            let mut end = 0;
            for (name, mut entry) in entries {
                let is_large = large.contains(&name.as_str());
                let range = [0, 1].map(|i| entry["data_offsets"][i].as_u64().expect("an offset"));
                let size = if is_large { rows * WIDTH } else { range[1] - range[0] };
                if is_large {
                    entry["shape"][0] = rows.into();
                } else {
                    old.push((range, end));
                }
                entry["data_offsets"] = serde_json::json!([end, end + size]);
                header.insert(name, entry);
                end += size;
            }
            old.push(([0, 0], end));
        });
        let data = |path: &Path| {
            let bytes = std::fs::read(path.join("model.safetensors")).expect("the model's data");
            let start = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
            (bytes, start)
        };
        let ((original, from), (changed, to)) = (data(&model()), data(&folder));
        let index = |n: u64| usize::try_from(n).expect("a length");
        let path = folder.join("model.safetensors");
        let file = std::fs::File::create(path).expect("a writable folder");
        file.write_all_at(&changed[..index(to)], 0).expect("a writable file");
        for (range, at) in old {
            file.write_all_at(&original[index(from + range[0])..index(from + range[1])], to + at)
                .expect("a writable file");
            file.set_len(file.metadata().expect("its length").len().max(to + at)).expect("a writable file");
        }
        let config = std::fs::read_to_string(folder.join("config.json")).expect("a config");
        let mut config: Value = serde_json::from_str(&config).expect("JSON");
        config["vocab_size"] = rows.into();
        std::fs::write(folder.join("config.json"), config.to_string()).expect("a writable folder");
        folder
    }

    /// Every file below a folder with its size, sorted by name.
    pub(crate) fn layout(&self, name: &str) -> String {
        fn walk(folder: &Path, prefix: &str, lines: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let entry = entry.expect("an entry");
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if entry.path().is_dir() {
                    walk(&entry.path(), &format!("{name}/"), lines);
                } else {
                    lines.push(name);
                }
            }
        }
        let mut lines = Vec::new();
        walk(&self.path(name), "", &mut lines);
        lines.sort();
        lines.join("\n")
    }
}

/// Filters times, rates, memory, source lines and fingerprints out of snapshots.
pub(crate) fn filters() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.add_filter(r"in \d+\.\ds", "in [TIME]");
    settings.add_filter(r"\([\d.]+ .?B/s, peak [\d.]+ MB\)", "([RATE], peak [MEMORY])");
    settings.add_filter(r"(arch/\w+\.rs:)\d+  +", "$1[LINE]  ");
    settings.add_filter(r"(arch/\w+\.rs:)\d+", "$1[LINE]");
    settings.add_filter(r#""(peak_memory|\w*seconds|free_space)": [\d.e-]+"#, r#""$1": [VALUE]"#);
    settings.add_filter(r#""fingerprint": "[0-9a-f]+""#, r#""fingerprint": "[HASH]""#);
    settings.add_filter(r"crc32 [0-9a-f]{8}", "crc32 [CRC]");
    settings.add_filter(r#""crc32": \d+"#, r#""crc32": [CRC]"#);
    settings
}

/// Compares a text with the stored snapshot of the test, or of the given name.
macro_rules! snapshot {
    ($text:expr) => {
        $crate::harness::filters().bind(|| insta::assert_snapshot!($text))
    };
    ($name:expr, $text:expr) => {
        $crate::harness::filters().bind(|| insta::assert_snapshot!($name, $text))
    };
}

pub(crate) use snapshot;
