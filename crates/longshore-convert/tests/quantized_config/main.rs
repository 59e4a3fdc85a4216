//! Configs of quantized folders against ModelOpt's, and the lint of such folders.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests stop at the first error and say what they skip")]

mod hf_config;
mod lint;
mod rules;
#[path = "../convert/shared_data.rs"]
mod shared_data;
