//! Hostile checkpoints: what a file can lie about, through the whole program.
//!
//! `pickles`, `tables`, `zips`, `hf`, `folders`, `bridge` make the corpus in a temporary folder, because much of it is large, sparse
//! or no regular file; `tests/hostile/` in the root of the repository adds the inputs that fuzzing found, byte for byte.
//! `known` says what is expected of each. Every command runs over every entry with little address space and time, and
//! may answer, but never be killed, panic, run out of memory or execute a payload.

#![expect(clippy::unwrap_used, reason = "a corpus that cannot be made is a failed test")]

mod bridge;
mod corpus;
mod folders;
mod hf;
mod known;
mod pickles;
mod tables;
mod zips;

use corpus::{Corpus, Run};
use known::{HARMLESS, KNOWN, OPTIONS};
use std::sync::Mutex;

/// The commands that read a checkpoint. `@` is the entry, `@hf` and `@mc` are sound checkpoints of the same model.
const COMMANDS: [&[&str]; 14] = [
    &["inspect", "@"],
    &["inspect", "--raw", "@"],
    &["inspect", "--json", "@"],
    &["verify", "--threads=2", "@"],
    &["convert", "--dry-run", "--threads=2", "@", "out"],
    &["export", "--dry-run", "--threads=2", "@", "out"],
    &["convert", "--dry-run", "--threads=2", "--to=torch_dist", "--spec=local", "@", "out"],
    &["cut", "--dry-run", "--threads=2", "--layers=0..1", "@", "out"],
    &["inspect", "--structure", "@"],
    &["doctor", "@"],
    &["args", "@"],
    &["fit", "--gpus=2x80G", "@"],
    &["diff", "--threads=2", "@", "@hf"],
    &["diff", "--threads=2", "@mc", "@"],
];

#[test]
fn every_entry_is_known_and_breaks_no_command() {
    let corpus = Corpus::whole();
    let mut names = corpus.names();
    names.sort();
    let mut known: Vec<&str> = KNOWN.iter().map(|k| k.0).collect();
    known.sort_unstable();
    assert_eq!(names, known, "each entry of the corpus needs a line in known.rs, and the other way round");

    let failures: Mutex<Vec<String>> = Mutex::default();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        while let Some(&(name, command, exit, says)) =
            KNOWN.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
        {
            let found = check(&corpus, name, command, exit, says);
            failures.lock().unwrap().extend(found);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    assert!(!corpus.path("executed").exists(), "a payload was executed");
    assert!(!corpus.path("out").exists(), "a dry run wrote something");
}

/// What is wrong with the commands on one entry; `command` must exit with `exit` and say `says`.
fn check(corpus: &Corpus, name: &str, command: &str, exit: i32, says: &str) -> Vec<String> {
    let mut failures = Vec::new();
    for words in COMMANDS {
        let run = corpus.run(words, name);
        let json = words.contains(&"--json");
        let mut fail = |what: &str| failures.push(format!("{name}: {}: {what}\n{}", words.join(" "), run.shown()));
        match run.exit {
            Some(0..=2) => {}
            Some(code) => fail(&format!("exit {code}")),
            None => fail(if run.timed_out { "did not end" } else { "was killed" }),
        }
        if run.stderr.contains("panicked") {
            fail("panicked");
        }
        if [&run.stdout, &run.stderr].into_iter().any(|text| text.contains(['\x1b', '\x07', '\0', '\u{202e}'])) && !json
        {
            fail("let the file speak to the terminal");
        }
        let entry = name.rsplit('/').next().unwrap_or(name);
        if run.exit == Some(2) && !run.stderr.contains(entry) && !names_config_field(&run) {
            fail("the error does not name the file");
        }
        if words[..].join(" ").starts_with(command) && !words.contains(&"--raw") && !words.contains(&"--json") {
            if run.exit != Some(exit) {
                fail(&format!("expected exit {exit}"));
            }
            if !run.stdout.contains(says) && !run.stderr.contains(says) {
                fail(&format!("expected it to say `{says}`"));
            }
        }
    }
    failures
}

/// A refused plan names tensors and rules, or the other checkpoint's file, not the folder that the user has just typed.
fn names_config_field(run: &Run) -> bool {
    ["problem", "expected", "is torch_dist already", "is safetensors already", "not a torch_dist", "`--raw`"]
        .iter()
        .any(|word| run.stderr.contains(word))
}

#[test]
fn absurd_options_are_refused() {
    let corpus = Corpus::sound();
    for &(options, says) in OPTIONS {
        let words: Vec<&str> = options.split(' ').collect();
        let run = corpus.run(&words, "sound");
        assert_eq!(run.exit, Some(2), "{words:?}\n{}", run.shown());
        assert!(run.stderr.contains(says) && !run.stderr.contains("panicked"), "{words:?}\n{}", run.shown());
    }
}

#[test]
fn options_of_any_size_are_survived() {
    let corpus = Corpus::sound();
    for options in HARMLESS {
        let words: Vec<&str> = options.split(' ').collect();
        let run = corpus.run(&words, "sound");
        assert_eq!(run.exit, Some(0), "{words:?}\n{}", run.shown());
    }
}
