//! The engine against what transformers computed (`golden/hf` of the shared data, where it is present).

#![expect(clippy::print_stderr, reason = "a test says what it skips and how far it was")]

mod logits;
#[path = "../../../longshore-convert/tests/convert/shared_data.rs"]
mod shared_data;
