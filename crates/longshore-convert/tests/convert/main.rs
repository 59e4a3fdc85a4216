//! The library against Megatron's own checkpoints, against its definition, and against sources that are wrong.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says what it skips")]

mod bridge_listing;
mod casts;
mod cut;
mod gather;
mod golden;
mod hf_folder;
mod llama;
#[path = "../../../longshore-infer/tests/llama/folder.rs"]
mod llama_folder;
mod mtp;
mod properties;
mod quant_state;
mod quantized;
mod random;
mod recut;
mod refusals;
mod shared_data;
mod snapshots;
mod stored_forms;
mod structure;
