//! Any bytes as a file of MMLU questions, in each of the published forms: what is accepted reads the same as JSON lines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_eval::{mmlu, parquet};
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

/// A folder for each form, and one for what was read.
static FOLDERS: LazyLock<[PathBuf; 4]> = LazyLock::new(|| {
    // The decoder of parquet asserts what files should hold, in a thread of its own that may end by it.
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(parquet::DECODER_THREAD) {
            shown(panic);
        }
    }));
    let folder = std::env::temp_dir().join(format!("longshore-fuzz-mmlu-{}", std::process::id()));
    ["jsonl", "csv/test", "parquet/all", "again"].map(|name| {
        fs::create_dir_all(folder.join(name)).expect("a folder");
        folder.join(name)
    })
});

fuzz_target!(|bytes: &[u8]| {
    let [jsonl, csv, tables, again] = &*FOLDERS;
    let Some((form, bytes)) = bytes.split_first() else { return };
    let (file, folder) = match form % 3 {
        0 => (jsonl.join("mmlu_test.jsonl"), jsonl.as_path()),
        1 => (csv.join("a_test.csv"), csv.parent().expect("its folder")),
        _ => (tables.join("test-0.parquet"), tables.parent().expect("its folder")),
    };
    fs::write(file, bytes).expect("a writable folder");
    let Ok(read) = mmlu::read(folder) else { return };
    let lines: Vec<String> = read.test.iter().map(|q| serde_json::to_string(q).expect("JSON")).collect();
    fs::write(again.join("mmlu_test.jsonl"), lines.join("\n")).expect("a writable folder");
    let lines = mmlu::read(again).expect("what was accepted");
    assert_eq!((&lines.test, lines.sha256()), (&read.test, read.sha256()));
});
