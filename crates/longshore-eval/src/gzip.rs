//! gzip files as streams.

use crate::Result;
use crate::tail::Tail;
use flate2::bufread::MultiGzDecoder;
use longshore_ckpt::fs::ReadFile;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

/// What the file at `path` holds, uncompressed front to back. How much that is, is the reader's to bound.
pub fn open(path: &Path) -> Result<Box<dyn Read + Send>> {
    let file = Arc::new(ReadFile::open(path)?);
    Ok(Box::new(MultiGzDecoder::new(BufReader::new(Tail { file, at: 0 }))))
}
