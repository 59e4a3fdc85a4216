//! `longshore verify`.

use crate::harness::{Dir, model, snapshot};
use std::os::unix::fs::FileExt;

fn converted() -> Dir {
    let dir = Dir::new();
    dir.ok(&["convert", model().to_str().expect("UTF-8"), "mc", "-q", "--threads", "1"]);
    dir
}

/// Flips a bit in the middle of the first data file.
fn damage(dir: &Dir) {
    let object = dir.json(&["inspect", "mc"]);
    let name = object["files"][0]["name"].as_str().expect("a file");
    let path = dir.path("mc/release").join(name);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the file");
    let middle = file.metadata().expect("its length").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], middle).expect("a writable file");
}

#[test]
fn a_whole_checkpoint_passes() {
    let dir = converted();
    snapshot!("verify", dir.ok(&["verify", "mc"]));
    snapshot!("verify_quick", dir.ok(&["verify", "mc", "--quick"]));
    snapshot!("verify_against", dir.ok(&["verify", "mc", "--against", model().to_str().expect("UTF-8")]));
}

#[test]
fn without_a_manifest_it_says_what_it_could_not_check() {
    let dir = converted();
    std::fs::remove_file(dir.path("mc/release/longshore.json")).expect("it was there");
    snapshot!("verify_without_manifest", dir.ok(&["verify", "mc"]));
    snapshot!("verify_hf_without_manifest", dir.ok(&["verify", model().to_str().expect("UTF-8")]));
}

#[test]
fn a_flipped_bit_is_found() {
    let dir = converted();
    damage(&dir);
    snapshot!("verify_damaged", dir.run(&["verify", "mc"]));
    snapshot!("verify_damaged_against", dir.run(&["verify", "mc", "--against", model().to_str().expect("UTF-8")]));
    let object = dir.json(&["verify", "mc"]);
    assert_eq!((&object["valid"], object["result"]["problems"].as_array().map(Vec::len)), (&false.into(), Some(1)));
}

#[test]
fn a_missing_file_is_found() {
    let dir = converted();
    std::fs::remove_file(dir.path("mc/release/hf/tokenizer.json")).expect("it was there");
    snapshot!("verify_missing_file", dir.run(&["verify", "mc"]));
}
