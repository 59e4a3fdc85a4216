//! Any bytes as a file of answered questions: what is accepted survives being written and read again, and does not differ from
//! itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_eval::compare::compare;
use longshore_eval::mmlu::{read_records, write_record};
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("longshore-fuzz-records-{}.jsonl", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    fs::write(&*FILE, bytes).expect("a writable folder");
    let Ok(records) = read_records(&FILE) else { return };
    let lines: String = records.iter().map(|record| write_record(record).expect("JSON")).collect();
    fs::write(&*FILE, lines).expect("a writable folder");
    assert_eq!(read_records(&FILE).expect("what was accepted"), records);
    if let Ok(same) = compare(&records, &records) {
        assert!(same.flips.is_empty() && same.difference == 0.0 && same.p_value == 1.0);
    }
});
