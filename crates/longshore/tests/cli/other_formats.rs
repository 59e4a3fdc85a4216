//! Checkpoints that are recognised and refused by name, whatever the command.

use crate::harness::{Dir, model, snapshot};
use std::fs;
use std::os::unix::fs::symlink;

/// Any program that unpickles this runs a command.
const HOSTILE: &str = "cos\nsystem\n(S'touch unpickled'\ntR.";

/// Folders of every format. No file of theirs could be opened without an error that says so.
fn formats(dir: &Dir) {
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a writable folder");
        fs::write(path, bytes).expect("a writable folder");
    };
    write("ranks/latest_checkpointed_iteration.txt", b"5");
    write("ranks/iter_0000005/mp_rank_00/model_optim_rng.pt", HOSTILE.as_bytes());
    write("no-tracker/iter_0000005/mp_rank_00_000/model_optim_rng.pt", HOSTILE.as_bytes());
    write("no-tracker/latest_train_state.pt", HOSTILE.as_bytes());
    write("zarr/metadata.json", br#"{"sharded_backend": "zarr", "sharded_backend_version": 1}"#);
    write("zarr/common.pt", HOSTILE.as_bytes());
    write("model.nemo", HOSTILE.as_bytes());
    write("archive/model.nemo", HOSTILE.as_bytes());
    write("nemo/model_weights.ckpt", HOSTILE.as_bytes());
    write("nemo/model_config.yaml", b"hidden_size: 8\n");
    write("hostile-table/.metadata", HOSTILE.as_bytes());
    // The table of a real checkpoint, and the same with a key of Megatron-FSDP in the place of one as long.
    dir.ok(&["convert", &model().display().to_string(), "mc", "-q"]);
    let table = fs::read(dir.path("mc/release/.metadata")).expect("a table");
    write("dcp/iter_0000003/.metadata", &table);
    let (ours, theirs) = (b"embedding.word_embeddings.weight", b"model.module.embedding.we.weight");
    let mut fsdp = table;
    for at in 0..fsdp.len() - ours.len() {
        if fsdp[at..].starts_with(ours) {
            fsdp[at..at + theirs.len()].copy_from_slice(theirs);
        }
    }
    write("fsdp/.metadata", &fsdp);
}

#[test]
fn every_other_format_is_refused_by_name() {
    let dir = Dir::new();
    formats(&dir);
    let mut said = String::new();
    let folders = ["ranks", "ranks/iter_0000005", "ranks/iter_0000005/mp_rank_00", "no-tracker", "fsdp", "dcp", "zarr"];
    for folder in folders.iter().chain(&["model.nemo", "archive", "nemo", "hostile-table"]) {
        said.extend(["$ longshore inspect ", folder, "\n", &dir.run(&["inspect", folder]), "\n"]);
    }
    snapshot!("other_formats", said);
    assert!(!dir.path("unpickled").exists());
}

#[test]
fn every_command_refuses_them_with_status_2() {
    let dir = Dir::new();
    formats(&dir);
    let source = model().display().to_string();
    for folder in ["ranks", "no-tracker", "fsdp", "dcp", "zarr", "model.nemo", "nemo"] {
        for command in [
            &["convert", folder, "out"][..],
            &["convert", "--to", "torch_dist", folder, "out"],
            &["export", folder, "out"],
            &["verify", folder],
            &["diff", &source, folder],
            &["generate", folder, "--prompt-ids", "1"],
            &["quantize", folder, "out", "--quant-cfg", "FP8_DEFAULT_CFG"],
        ] {
            let said = dir.run(command);
            assert!(said.starts_with("exit 2\n"), "{command:?}: {said}");
            assert!(said.contains(", which is not read\n"), "{command:?}: {said}");
            assert!(said.contains("hint: "), "{command:?}: {said}");
        }
    }
    assert!(!dir.path("out").exists() && !dir.path("unpickled").exists());
}

#[test]
fn a_link_to_another_format_is_that_format() {
    let dir = Dir::new();
    formats(&dir);
    symlink(dir.path("ranks"), dir.path("link")).expect("a writable folder");
    assert!(dir.run(&["inspect", "link"]).contains("a legacy Megatron checkpoint"));
}
