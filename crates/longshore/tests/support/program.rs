//! Runs the binary in a temporary folder, with nothing of the caller's environment.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A temporary folder, in which the binary runs.
pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The binary with these arguments, or another program that will start it.
    pub(crate) fn command(&self, program: impl AsRef<Path>, args: &[&str]) -> Command {
        let mut command = Command::new(program.as_ref());
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null()).env_clear();
        command.env("HOME", self.0.path()).env("TMPDIR", self.0.path());
        command
    }

    /// The object that a command prints, which must succeed, and what else it says.
    pub(crate) fn json(&self, program: &str, args: &[&str]) -> (Value, String) {
        let args = [args, &["--json", "-q"]].concat();
        let output = self.command(program, &args).output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {}: {said}", output.status);
        (serde_json::from_slice(&output.stdout).expect("an object"), said)
    }
}

/// The binary.
pub(crate) const LONGSHORE: &str = env!("CARGO_BIN_EXE_longshore");
