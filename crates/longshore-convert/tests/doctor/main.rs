//! `doctor`: the bundled model is sound, and damaged one way each it has exactly that finding, in both formats.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests stop at the first error and say what they skip")]

mod against;
mod alone;
mod damaged;
mod golden;
#[path = "../convert/shared_data.rs"]
mod shared_data;
