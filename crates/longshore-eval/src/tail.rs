//! A file from an offset on, for decoders that read front to back.

use longshore_ckpt::fs::ReadFile;
use std::io::{self, Read};
use std::sync::Arc;

pub(crate) struct Tail {
    pub(crate) file: Arc<ReadFile>,
    pub(crate) at: u64,
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.file.len().saturating_sub(self.at);
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.read_exact_at(self.at, &mut buffer[..len]).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}
