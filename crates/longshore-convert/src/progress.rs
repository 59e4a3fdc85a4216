//! How a long run tells its caller where it is.

use std::path::Path;

/// Receives progress from several threads at once.
pub trait Progress: Sync {
    /// A phase begins that will handle `bytes` in total.
    fn start(&self, phase: &str, bytes: u64);
    /// `bytes` more are done, in `file`.
    fn advance(&self, bytes: u64, file: &Path);
    /// Whether the run should stop at the next safe point.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Says nothing and never stops.
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64, _: &Path) {}
}
