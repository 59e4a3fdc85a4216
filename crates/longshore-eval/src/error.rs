//! What can be wrong with data, options or logits.

use std::fmt;
use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened or is too large.
    #[error(transparent)]
    File(#[from] longshore_ckpt::Error),
    /// A file or folder as a whole is not what was expected.
    #[error("{}: {what}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Malformed rows, all of them.
    #[error("{0}")]
    Rows(Problems),
    /// An option, or a combination of options and data, that has no result.
    #[error("{0}")]
    Invalid(String),
    /// A number that cannot be scored.
    #[error("{what} is NaN")]
    NotANumber {
        /// Which number.
        what: String,
    },
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One malformed row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// The line where the row begins, or for a format without lines the row; from 1.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
}

/// Malformed rows: the first [`Problems::SHOWN`], and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// The first ones.
    pub first: Vec<Problem>,
    /// How many there are.
    pub count: usize,
}

impl Problems {
    /// How many are kept: a file of another kind has as many as it has lines.
    pub const SHOWN: usize = 20;

    pub(crate) fn add(&mut self, path: &Path, line: u64, what: impl Into<String>) {
        self.count += 1;
        if self.first.len() < Self::SHOWN {
            self.first.push(Problem { path: path.to_owned(), line, what: what.into() });
        }
    }

    /// A line that is not the JSON that was expected.
    pub(crate) fn add_json(&mut self, path: &Path, line: u64, error: &serde_json::Error) {
        // Its own place, line 1 of this line, would mislead.
        let what = error.to_string();
        self.add(path, line, what.rsplit_once(" at line ").map_or(&*what, |(what, _)| what));
    }

    /// An error if there are any.
    pub(crate) fn none(self) -> Result<()> {
        if self.count == 0 { Ok(()) } else { Err(Error::Rows(self)) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = if self.count == 1 { "row" } else { "rows" };
        write!(f, "{} malformed {rows}", self.count)?;
        for Problem { path, line, what } in &self.first {
            write!(f, "\n  {}:{line}: {what}", path.display())?;
        }
        match self.count - self.first.len() {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}
