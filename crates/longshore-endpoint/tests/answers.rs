//! Answers that outlive their process.

use longshore_ckpt::fs;
use longshore_endpoint::{Answers, Error};
use std::path::Path;

/// Questions.
const ITEMS: usize = 300;

fn open(folder: &Path, key: &str) -> (Answers, Vec<(usize, f64)>, Option<u32>) {
    let (answers, found) = Answers::open::<u32, f64>(folder, key, ITEMS, |_, x| *x < 0.0).expect("a folder");
    let (how, found) = found.map_or((None, Vec::new()), |found| (Some(found.how), found.answers.into_iter().collect()));
    (answers, found, how)
}

#[test]
fn answers_come_back_to_the_bit_under_their_key_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut answers, found, how) = open(folder.path(), "a");
    assert_eq!((found, how), (Vec::new(), None));
    // Of all lengths: a reader that takes a short way is a bit off in some.
    let values: Vec<f64> = (0..ITEMS).map(|item| -(item as f64 + 1.0).sqrt() / 7.3).collect();
    for (item, value) in values.iter().enumerate().rev() {
        answers.add(item, &20u32, value).expect("written");
    }
    drop(answers);
    let (answers, found, how) = open(folder.path(), "a");
    let want: Vec<_> = values.into_iter().enumerate().collect();
    assert_eq!((found, how), (want, Some(20)));
    assert!(open(folder.path(), "b").1.is_empty());
    let path = answers.path().to_owned();
    answers.discard().expect("removed");
    assert!(!fs::exists(&path));
}

#[test]
fn damaged_torn_and_impossible_lines_are_asked_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut answers, ..) = open(folder.path(), "a");
    for item in 0..4 {
        answers.add(item, &5u32, &-1.5).expect("written");
    }
    // Two that cannot be: a number too large, and a value that does not fit.
    answers.add(ITEMS, &5u32, &-1.5).expect("written");
    answers.add(5, &5u32, &1.5).expect("written");
    let path = answers.path().join("answers.jsonl");
    drop(answers);
    let mut bytes = std::fs::read(&path).expect("the answers");
    // A digit in the second line; the end is torn.
    let ends: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] == b'\n').collect();
    bytes[ends[1] - 2] ^= 1;
    bytes.extend_from_slice(b"12345678 {\"item\": 7");
    std::fs::write(&path, bytes).expect("a file");
    let (mut answers, found, _) = open(folder.path(), "a");
    assert_eq!(found, [(0, -1.5), (2, -1.5), (3, -1.5)]);
    answers.add(1, &5u32, &-2.5).expect("written");
    drop(answers);
    assert_eq!(open(folder.path(), "a").1, [(0, -1.5), (1, -2.5), (2, -1.5), (3, -1.5)]);
}

#[test]
fn a_second_run_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_answers, ..) = open(folder.path(), "a");
    let error = Answers::open::<u32, f64>(folder.path(), "a", 10, |_, _| true).expect_err("the folder is held");
    assert!(matches!(&error, Error::File(error) if fs::is_held(error)), "{error}");
}
