//! Calibration and simulated quantization against ModelOpt (`golden/quant` of the shared data, where it is present, and
//! `modelopt_reference.safetensors`, which `modelopt_reference.py` wrote).

#![expect(clippy::print_stderr, reason = "a test says what it skips and how far it was")]

mod calibration;
mod logits;
mod megatron_search;
mod packed;
mod reference;
mod search;
#[path = "../../../longshore-convert/tests/convert/shared_data.rs"]
mod shared_data;
