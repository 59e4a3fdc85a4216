//! The lines of a file, front to back in bounded memory.

use super::error::CalibrationError;
use anyhow::{Context, Result};
use crc32fast::Hasher;
use longshore_ckpt::fs::ReadFile;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Larger files are refused: some hundred million tokens, where a calibration takes less than one million.
pub(super) const MAX_FILE: u64 = 1 << 30;

/// Longer lines are refused: 16 MiB, a few million tokens.
pub(super) const MAX_LINE: usize = 16 << 20;

/// Bytes read at a time.
const BLOCK: u64 = 1 << 20;

/// What may stand before the first character of UTF-8 text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

enum Source {
    File(ReadFile),
    Memory(&'static [u8]),
    /// Of unknown length.
    Gzip {
        path: PathBuf,
        stream: Box<dyn Read + Send>,
    },
}

/// Reads lines one after the other, and sums up the bytes they are made of.
pub(super) struct Lines {
    source: Source,
    len: u64,
    block: Vec<u8>,
    /// Bytes of `block` that lines were made of.
    used: usize,
    /// Bytes that were read into blocks.
    read: u64,
    number: u64,
    crc: Hasher,
}

/// A line without its end; `text` is an error where it is too long or not UTF-8.
pub(super) struct Line {
    /// From 1.
    pub(super) number: u64,
    pub(super) text: Result<String, String>,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = ReadFile::open(path)?;
        let bytes = file.len();
        if bytes > MAX_FILE {
            return Err(CalibrationError::TooLarge { path: path.to_owned(), bytes, limit: MAX_FILE }.into());
        }
        file.advise_sequential();
        Ok(Self::new(Source::File(file), bytes))
    }

    /// The lines of a data set's file, of which the first ones are wanted, however many follow.
    pub(super) fn of_set(path: &Path, is_gzip: bool) -> Result<Self> {
        if is_gzip {
            let stream = longshore_eval::gzip::open(path)?;
            return Ok(Self::new(Source::Gzip { path: path.to_owned(), stream }, u64::MAX));
        }
        let file = ReadFile::open(path)?;
        let bytes = file.len();
        file.advise_sequential();
        Ok(Self::new(Source::File(file), bytes))
    }

    pub(super) fn of_bundled(text: &'static str) -> Self {
        Self::new(Source::Memory(text.as_bytes()), text.len() as u64)
    }

    fn new(source: Source, len: u64) -> Self {
        Self { source, len, block: Vec::new(), used: 0, read: 0, number: 0, crc: Hasher::new() }
    }

    /// Bytes of the whole source.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The next line, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Line>> {
        let start = self.read - (self.block.len() - self.used) as u64;
        let mut line = Vec::new();
        let mut len = 0;
        loop {
            if self.used == self.block.len() && !self.fill()? {
                break;
            }
            let rest = &self.block[self.used..];
            let end = rest.iter().position(|&byte| byte == b'\n');
            let part = &rest[..end.unwrap_or(rest.len())];
            len += part.len();
            if len <= MAX_LINE {
                line.extend_from_slice(part);
            }
            self.used += part.len() + usize::from(end.is_some());
            if end.is_some() {
                break;
            }
        }
        if start == self.read - (self.block.len() - self.used) as u64 {
            return Ok(None);
        }
        self.number += 1;
        let text = if len > MAX_LINE {
            Err(format!("{len} bytes: expected at most {MAX_LINE} in a line"))
        } else {
            self.text(line, start)
        };
        Ok(Some(Line { number: self.number, text }))
    }

    fn text(&self, line: Vec<u8>, start: u64) -> Result<String, String> {
        let mut text = String::from_utf8(line).map_err(|error| {
            let at = start + error.utf8_error().valid_up_to() as u64;
            format!("not UTF-8 text (byte {at} of the file)")
        })?;
        if text.ends_with('\r') {
            text.pop();
        }
        if self.number == 1 && text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(text)
    }

    /// The CRC-32 of everything, also of what is not read yet.
    pub(super) fn finish(mut self) -> Result<u32> {
        while self.fill()? {}
        Ok(self.crc.finalize())
    }

    fn fill(&mut self) -> Result<bool> {
        let mut len = BLOCK.min(self.len - self.read) as usize;
        self.block.resize(len, 0);
        self.used = 0;
        match &mut self.source {
            Source::File(file) => file.read_exact_at(self.read, &mut self.block)?,
            Source::Memory(bytes) => self.block.copy_from_slice(&bytes[self.read as usize..][..len]),
            Source::Gzip { path, stream } => {
                self.block.clear();
                let read = stream.take(BLOCK).read_to_end(&mut self.block);
                len = read.with_context(|| format!("reading `{}` as gzip", path.display()))?;
            }
        }
        self.read += len as u64;
        self.crc.update(&self.block);
        Ok(len > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn lines(bytes: &[u8]) -> Vec<Result<String, String>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut lines = Lines::open(file.path()).unwrap();
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            assert_eq!(line.number, found.len() as u64 + 1);
            found.push(line.text);
        }
        assert_eq!(lines.finish().unwrap(), crc32fast::hash(bytes));
        found
    }

    #[test]
    fn lines_end_as_editors_write_them() {
        let expected = ["a", "", "b", "c"].map(|text| Ok(text.to_owned()));
        assert_eq!(lines("\u{feff}a\r\n\nb\nc".as_bytes()), expected);
        assert_eq!(lines(b"a\n\nb\nc\n"), expected);
        assert!(lines(b"").is_empty());
    }

    #[test]
    fn a_line_longer_than_a_block_is_whole() {
        let long = "x".repeat(3 * BLOCK as usize / 2);
        assert_eq!(lines(format!("a\n{long}\nb").as_bytes()), [Ok("a".to_owned()), Ok(long), Ok("b".to_owned())]);
    }

    #[test]
    fn a_line_longer_than_the_limit_is_refused_and_the_next_one_read() {
        let found = lines(format!("{}\nb", "x".repeat(MAX_LINE + 1)).as_bytes());
        assert_eq!(found[0], Err("16777217 bytes: expected at most 16777216 in a line".to_owned()));
        assert_eq!(found[1], Ok("b".to_owned()));
        assert!(lines("x".repeat(MAX_LINE).as_bytes())[0].is_ok());
    }

    #[test]
    fn what_is_not_utf8_is_named_by_its_offset() {
        let found = lines(b"ab\nc\xffd\ne");
        assert_eq!(found[1], Err("not UTF-8 text (byte 4 of the file)".to_owned()));
        assert_eq!(found[2], Ok("e".to_owned()));
    }

    #[test]
    fn the_checksum_covers_what_was_not_read() {
        let bytes = "ab\n".repeat(BLOCK as usize).into_bytes();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let mut lines = Lines::open(file.path()).unwrap();
        assert_eq!(lines.next().unwrap().unwrap().text, Ok("ab".to_owned()));
        assert_eq!(lines.finish().unwrap(), crc32fast::hash(&bytes));
    }

    #[test]
    fn a_file_larger_than_the_limit_is_refused_unread() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MAX_FILE + 1).unwrap();
        let error = Lines::open(file.path()).err().unwrap();
        assert!(matches!(error.downcast_ref(), Some(CalibrationError::TooLarge { .. })), "{error}");
    }
}
