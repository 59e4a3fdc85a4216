//! The folder with all entries, how they are made, and how the binary is run on them.

use longshore_ckpt::torch_dist::item;
use longshore_ckpt::torch_dist::metadata_json;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// KiB of address space that the binary gets: no entry is an excuse for more.
const ADDRESS_SPACE: &str = "1500000";
/// Seconds of processor time.
const SECONDS: &str = "10";

/// A temporary folder with every entry, and two sound checkpoints.
pub(crate) struct Corpus {
    temp: tempfile::TempDir,
    names: Vec<String>,
}

/// How the binary ended.
pub(crate) struct Run {
    pub(crate) exit: Option<i32>,
    pub(crate) timed_out: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// The beginning of both outputs.
    pub(crate) fn shown(&self) -> String {
        let cut = |text: &str| text.chars().take(1500).collect::<String>();
        format!("    exit {:?}\n    stdout: {}\n    stderr: {}", self.exit, cut(&self.stdout), cut(&self.stderr))
    }
}

impl Corpus {
    /// The two sound checkpoints alone.
    pub(crate) fn sound() -> Self {
        let corpus = Self { temp: tempfile::tempdir().unwrap(), names: Vec::new() };
        crate::hf::sound(&corpus.path("sound"));
        let made = corpus.run(&["convert", "@", "sound-mc"], "sound");
        assert_eq!(made.exit, Some(0), "{}", made.shown());
        corpus
    }

    pub(crate) fn whole() -> Self {
        let mut corpus = Self::sound();
        crate::pickles::make(&mut corpus);
        crate::tables::make(&mut corpus);
        crate::zips::make(&mut corpus);
        crate::hf::make(&mut corpus);
        crate::folders::make(&mut corpus);
        crate::bridge::make(&mut corpus);
        corpus.found_by_fuzzing();
        corpus
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// A new, empty entry.
    pub(crate) fn entry(&mut self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        self.names.push(name.to_owned());
        path
    }

    /// An entry that is a copy of the sound Hugging Face folder.
    pub(crate) fn sound_hf(&mut self, name: &str) -> PathBuf {
        let path = self.entry(name);
        copy(&self.path("sound"), &path);
        path
    }

    /// An entry that is a copy of the sound Megatron root; `release/` is its inner folder.
    pub(crate) fn sound_mc(&mut self, name: &str) -> PathBuf {
        let path = self.entry(name);
        copy(&self.path("sound-mc"), &path);
        path
    }

    /// A Megatron inner folder with this table.
    pub(crate) fn table(&mut self, name: &str, table: &[u8]) -> PathBuf {
        let path = self.entry(name);
        fs::write(path.join("metadata.json"), metadata_json()).unwrap();
        fs::write(path.join(".metadata"), table).unwrap();
        path
    }

    /// A Megatron inner folder without tensors whose `common.pt` holds this pickle.
    pub(crate) fn common(&mut self, name: &str, pickle: &[u8]) -> PathBuf {
        let path = self.table(
            name,
            &longshore_ckpt::torch_dist::metadata::write(&longshore_ckpt::torch_dist::metadata::Metadata::default()),
        );
        fs::write(path.join("common.pt"), item::object_item(pickle)).unwrap();
        path
    }

    /// `tests/hostile/PLACE/FILE`: an input of the parser that PLACE names.
    fn found_by_fuzzing(&mut self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/hostile");
        for place in fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
            let kind = place.file_name().unwrap().to_str().unwrap().to_owned();
            for file in fs::read_dir(&place).unwrap().map(|e| e.unwrap().path()) {
                let bytes = fs::read(&file).unwrap();
                let name = format!("found/{kind}-{}", file.file_stem().unwrap().to_str().unwrap());
                match kind.as_str() {
                    "metadata" => drop(self.table(&name, &bytes)),
                    "pickle" => drop(self.common(&name, &bytes)),
                    "item" => drop(crate::zips::item_entry(self, &name, &bytes)),
                    "safetensors" => fs::write(self.entry(&name).join("model.safetensors"), &bytes).unwrap(),
                    "config" => fs::write(self.sound_hf(&name).join("config.json"), &bytes).unwrap(),
                    "run_config" => {
                        fs::write(crate::bridge::folder(self, &name).join("run_config.yaml"), &bytes).unwrap();
                    }
                    "manifest" => fs::write(self.sound_mc(&name).join("release/longshore.json"), &bytes).unwrap(),
                    other => panic!("tests/hostile/{other}: no such kind"),
                }
            }
        }
    }

    /// Runs the binary in the temporary folder, without the caller's environment, with little memory and time.
    pub(crate) fn run(&self, words: &[&str], entry: &str) -> Run {
        let [out, err] = ["out", "err"].map(|_| tempfile::NamedTempFile::new_in(self.temp.path()).unwrap());
        let limits = format!("ulimit -v {ADDRESS_SPACE}; ulimit -t {SECONDS}; ulimit -c 0; exec \"$0\" \"$@\"");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &limits, env!("CARGO_BIN_EXE_longshore")]);
        command.args(words.iter().map(|word| match *word {
            "@" => entry,
            "@hf" => "sound",
            "@mc" => "sound-mc",
            other => other,
        }));
        command.env_clear().env("HOME", self.temp.path()).current_dir(self.temp.path()).stdin(Stdio::null());
        command.stdout(out.reopen().unwrap()).stderr(err.reopen().unwrap());
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(40);
        let mut timed_out = false;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                timed_out = true;
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let text = |mut file: tempfile::NamedTempFile| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Run { exit: status.code(), timed_out, stdout: text(out), stderr: text(err) }
    }
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A named pipe: whoever opens it for reading waits for a writer that never comes.
pub(crate) fn fifo(path: &Path) {
    let _ = fs::remove_file(path);
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

/// A symbolic link.
pub(crate) fn link(target: &str, path: &Path) {
    let _ = fs::remove_file(path);
    std::os::unix::fs::symlink(target, path).unwrap();
}

/// A file of `size` bytes that takes no space and begins with `head`.
pub(crate) fn sparse(path: &Path, head: &[u8], size: u64) {
    fs::write(path, head).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(size).unwrap();
}
