//! Any bytes as a run's report and as a file of answered questions: what is accepted of the latter survives being written and
//! read again, and does not differ from itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_eval::compare::{compare, mismatches};
use longshore_eval::mmlu::{read_records, write_record};
use longshore_eval::saved;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("longshore-fuzz-records-{}.jsonl", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    fs::write(&*FILE, bytes).expect("a writable folder");
    let report = FILE.with_extension("json");
    fs::write(&report, bytes).expect("a writable folder");
    if let Ok(run) = saved::read(&report) {
        let found = mismatches(&run, &run);
        assert!(found.is_empty(), "{found:?}");
    }
    let Ok(records) = read_records(&FILE) else { return };
    let lines: String = records.iter().map(|record| write_record(record).expect("JSON")).collect();
    fs::write(&*FILE, lines).expect("a writable folder");
    assert_eq!(read_records(&FILE).expect("what was accepted"), records);
    if let Ok(same) = compare(&records, &records) {
        assert!(same.flips.is_empty() && same.difference == 0.0 && same.p_value == 1.0);
    }
});
