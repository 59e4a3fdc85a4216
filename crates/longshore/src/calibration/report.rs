//! What a model was calibrated on, for people and for programs.

use crate::units::{count, counted};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// What was taken of one split of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SplitReport {
    /// As it was asked for, or its repository.
    pub(crate) source: String,
    /// The folder or file.
    pub(crate) path: PathBuf,
    /// `None` for a single file.
    pub(crate) split: Option<String>,
    pub(crate) rows: u64,
}

/// What became of the calibration data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CalibrationReport {
    /// What the samples were made of.
    pub(crate) source: String,
    /// The rows of each split of a data set; empty for other sources.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) splits: Vec<SplitReport>,
    /// The CRC-32 of the whole file or of the bundled text; of data sets that of the rows taken, as lines of JSON with the
    /// columns that are read. Random ids have none.
    pub(crate) crc32: Option<u32>,
    /// Bytes that the checksum covers.
    pub(crate) bytes: Option<u64>,
    /// Samples that the source holds, where they were counted.
    pub(crate) available: Option<u64>,
    /// Rows for the engine.
    pub(crate) samples: u64,
    /// Tokens of all rows.
    pub(crate) tokens: u64,
    /// Tokens of the longest row.
    pub(crate) longest: u64,
    /// Samples of which the end was cut off.
    pub(crate) truncated: u64,
    /// Empty texts, which are left out.
    pub(crate) skipped: u64,
    /// Whether samples were joined and cut into rows.
    pub(crate) packed: bool,
    /// What decided which samples are taken, and in which order.
    pub(crate) seed: u64,
    /// What the user should know of it.
    pub(crate) warnings: Vec<String>,
}

impl fmt::Display for CalibrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = counted(self.samples, if self.packed { "packed row" } else { "sample" });
        write!(f, "{rows} of {}, {}", self.source, counted(self.tokens, "token"))?;
        if self.truncated > 0 {
            write!(f, ", {} cut to {}", count(self.truncated), counted(self.longest, "token"))?;
        }
        if self.skipped > 0 {
            write!(f, ", {} empty left out", count(self.skipped))?;
        }
        match self.available.filter(|&available| !self.packed && available > self.samples + self.skipped) {
            Some(available) if self.seed == 0 => write!(f, ", the first of {}", count(available))?,
            Some(available) => write!(f, ", drawn from {} with seed {}", count(available), self.seed)?,
            None => {}
        }
        self.crc32.map_or(Ok(()), |crc32| write!(f, ", CRC-32 {crc32:08x}"))
    }
}
