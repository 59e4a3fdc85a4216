//! What can be wrong with a checkpoint: facts with their place. Advice belongs to the program, not here.

use crate::other_format::OtherFormat;
use std::path::PathBuf;

/// Every way in which reading or writing a checkpoint fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation.
    #[error("{op} `{}`: {source}", path.display())]
    Io {
        /// What was attempted, e.g. `reading`.
        op: &'static str,
        /// The path it was attempted on.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Bytes that break the rules of their format.
    #[error("`{}` at byte {offset}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes from its start.
        offset: u64,
        /// The rule that is broken.
        what: String,
    },
    /// Legal, but nothing this program handles.
    #[error("`{}`: {what} is not supported", path.display())]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// The construct.
        what: String,
    },
    /// A checkpoint of another format, which this program knows by name only.
    #[error("`{}` is {format}, which is not read", path.display())]
    OtherFormat {
        /// The file or folder.
        path: PathBuf,
        /// The format.
        format: OtherFormat,
    },
    /// A pickle holds an object of an unknown class where a plain value is needed.
    #[error("`{}`: {what} is an opaque object of class `{global}`", path.display())]
    Opaque {
        /// The file.
        path: PathBuf,
        /// The place inside the pickle.
        what: String,
        /// `module.name` of the class.
        global: String,
    },
    /// No checkpoint was found where one was expected.
    #[error("`{}`: {what}", path.display())]
    NotFound {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        what: String,
    },
}

/// Why bytes could not be parsed; the caller adds the path to make an [`Error::Malformed`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}: {what}")]
pub struct ParseError {
    /// Position in the parsed bytes.
    pub offset: u64,
    /// The rule that is broken.
    pub what: String,
}

impl ParseError {
    /// A broken rule `what` at byte `offset`.
    pub fn new(offset: impl TryInto<u64>, what: impl Into<String>) -> Self {
        Self { offset: offset.try_into().unwrap_or(u64::MAX), what: what.into() }
    }

    /// Places the error in a file whose parsed bytes began at `base`.
    pub fn in_file(self, path: impl Into<PathBuf>, base: u64) -> Error {
        Error::Malformed { path: path.into(), offset: base.saturating_add(self.offset), what: self.what }
    }
}
