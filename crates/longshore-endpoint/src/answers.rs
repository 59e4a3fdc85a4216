//! Answers that outlive their process: each is a line of a file as soon as it is there.
//!
//! ```text
//! <scratch>/longshore-eval.answers-<key>/
//!     lock             held while a run lasts
//!     answers.jsonl    a line for each: the CRC-32 of what follows, a blank, JSON
//! ```
//!
//! The key tells apart whatever gives another result. A damaged line counts as not answered.

use crate::Result;
use longshore_ckpt::fs::{LinesFile, LockedFolder};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

const FOLDER: &str = "longshore-eval";
const MARK: &str = ".answers-";
const FILE: &str = "answers.jsonl";
/// Bytes of a line: the largest window takes a hundredth.
const LONGEST: u64 = 64 << 20;

/// The saved answers of a run, locked.
#[derive(Debug)]
pub struct Answers {
    folder: LockedFolder,
    file: LinesFile,
}

/// A line. `how` is what was settled with the server: the same in all lines, since later runs take it over.
#[derive(Serialize, Deserialize)]
struct Line<H, T> {
    item: usize,
    how: H,
    answer: T,
}

/// What an earlier process has found.
#[derive(Debug)]
pub struct Found<H, T> {
    /// How it asked.
    pub how: H,
    /// The answers by item.
    pub answers: BTreeMap<usize, T>,
}

impl Answers {
    /// Opens or creates the answers to `items` questions under this key, in the scratch folder. Another run there is an error
    /// ([`longshore_ckpt::fs::is_held`]). Gives what an earlier process has found, of which `fits` says whether it can be.
    pub fn open<H: DeserializeOwned, T: DeserializeOwned>(
        scratch: &Path,
        key: &str,
        items: usize,
        fits: impl Fn(usize, &T) -> bool,
    ) -> Result<(Self, Option<Found<H, T>>)> {
        let folder = LockedFolder::open(&scratch.join(FOLDER), MARK, key)?;
        let mut found: Option<Found<H, T>> = None;
        let file = LinesFile::open(&folder.path().join(FILE), LONGEST, |line| {
            let Some(Line { item, how, answer }) = parse(line) else { return };
            if item >= items || !fits(item, &answer) {
                return;
            }
            let found = found.get_or_insert_with(|| Found { how, answers: BTreeMap::new() });
            found.answers.insert(item, answer);
        })?;
        Ok((Self { folder, file }, found))
    }

    /// Adds an answer.
    pub fn add<H: Serialize, T: Serialize>(&mut self, item: usize, how: &H, answer: &T) -> Result<()> {
        let json =
            serde_json::to_string(&Line { item, how, answer }).map_err(|e| crate::Error::Invalid(e.to_string()))?;
        let line = format!("{:08x} {json}", crc32fast::hash(json.as_bytes()));
        Ok(self.file.add(line.into_bytes())?)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes the folder: the result is safe elsewhere.
    pub fn discard(self) -> Result<()> {
        Ok(self.folder.discard(FILE)?)
    }
}

/// A line with the right checksum.
fn parse<L: DeserializeOwned>(line: &[u8]) -> Option<L> {
    let (crc, json) = line.split_at_checked(9)?;
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?.strip_suffix(' ')?, 16).ok()?;
    (crc32fast::hash(json) == crc).then(|| serde_json::from_slice(json).ok())?
}
