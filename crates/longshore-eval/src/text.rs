//! What perplexity and divergence are measured on: a text, or lines of token ids.

use crate::{Error, Problems, Result};
use longshore_ckpt::fs;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// Largest file, and largest text in a compressed one.
const MAX_TEXT: u64 = 1 << 30;

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// A text, to be read as one stream.
    Plain(String),
    /// Token ids, a stream for each line.
    Ids(Vec<Vec<u32>>),
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFile {
    /// What it holds.
    pub text: Text,
    /// The SHA-256 of its bytes, uncompressed, in hexadecimal.
    pub sha256: String,
}

#[derive(Deserialize)]
struct Line {
    input_ids: Vec<u32>,
}

/// Reads a UTF-8 text, or token ids as JSON lines (`{"input_ids": […]}`, of a file named `.jsonl`); plain or gzip. All malformed
/// lines are reported together.
pub fn read(path: &Path) -> Result<TextFile> {
    let bytes = plain(path)?;
    let sha256 = format!("{:x}", Sha256::digest(&bytes));
    let ends = |path: &Path, ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
    let unpacked = path.with_extension("");
    if ends(path, "jsonl") || (ends(path, "gz") && ends(&unpacked, "jsonl")) {
        return Ok(TextFile { text: Text::Ids(ids(path, &bytes)?), sha256 });
    }
    let unreadable = |what: String| Error::Unreadable { path: path.to_owned(), what };
    let text = String::from_utf8(bytes)
        .map_err(|e| unreadable(format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())))?;
    if text.trim().is_empty() {
        return Err(unreadable("there is no text".into()));
    }
    Ok(TextFile { text: Text::Plain(text), sha256 })
}

fn ids(path: &Path, bytes: &[u8]) -> Result<Vec<Vec<u32>>> {
    let (mut problems, mut lines) = (Problems::default(), Vec::new());
    for (number, line) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Line>(line) {
            Ok(Line { input_ids }) if input_ids.len() < 2 => {
                problems.add(
                    path,
                    number,
                    format!("{} token ids; the second is the first that can be scored", input_ids.len()),
                );
            }
            Ok(Line { input_ids }) => lines.push(input_ids),
            Err(e) => problems.add_json(path, number, &e),
        }
    }
    problems.none()?;
    if lines.is_empty() {
        return Err(Error::Unreadable { path: path.to_owned(), what: "there are no token ids".into() });
    }
    Ok(lines)
}

/// The bytes of a file, decompressed.
fn plain(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read_small(path, MAX_TEXT)?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let unreadable = |what: String| Error::Unreadable { path: path.to_owned(), what };
    let mut text = Vec::new();
    // One byte more than may come, so that a longer file is noticed.
    let mut limited = flate2::read::MultiGzDecoder::new(&bytes[..]).take(MAX_TEXT + 1);
    limited.read_to_end(&mut text).map_err(|e| unreadable(format!("gzip: {e}")))?;
    if text.len() as u64 > MAX_TEXT {
        return Err(unreadable(format!("more than {} MiB of text", MAX_TEXT >> 20)));
    }
    Ok(text)
}
