//! Any bytes as a text, as token ids and as either of them compressed: reading ends, and lines of ids hold two at least.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_eval::text::{self, Text};
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("longshore-fuzz-text-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    for name in ["text.txt", "ids.jsonl"] {
        let file = FOLDER.join(name);
        fs::write(&file, bytes).expect("a writable folder");
        match text::read(&file).map(|read| read.text) {
            Ok(Text::Ids(lines)) => assert!(lines.iter().all(|ids| ids.len() >= 2)),
            Ok(Text::Plain(text)) => assert!(!text.trim().is_empty()),
            Err(_) => {}
        }
    }
});
