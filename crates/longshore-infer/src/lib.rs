//! Runs models of known layer kinds from Hugging Face and Megatron-Core checkpoints. `docs/engine.md` has the formulas.
//!
//! [`model::Model`] holds a checkpoint's weights on a [`backend::Backend`], as many as memory allows. [`model::Model::step`]
//! takes some rows through all layers (decoding); [`sweep::Sweep`] takes all rows through one layer after the other
//! (logits, evaluation, calibration, models larger than memory). Both run [`layers`], whose weights come by name from
//! [`longshore_convert::source::Source`]. [`generate`](mod@generate) turns steps into tokens, with [`mtp`] guessing ahead;
//! [`compare`](mod@compare) runs two models side by side. [`tokenizer`], [`chat`] and [`sample`] stand between text and ids.
//! [`calibrate`] counts what the linears read; [`quantized`] makes them compute as if they were quantized. [`schedule`] says
//! which rows a sweep computes, [`rate`] how long that takes; [`resume`] keeps it on disk.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod activations;
pub mod backend;
pub mod cache;
pub mod calibrate;
pub mod chat;
pub mod compare;
pub mod error;
pub mod generate;
pub mod layers;
pub mod memory;
pub mod model;
pub mod mtp;
pub mod quantized;
pub mod rate;
pub mod resume;
mod rotary;
pub mod sample;
pub mod schedule;
pub mod search;
pub mod site;
pub mod smooth;
pub mod stats;
pub mod sweep;
pub mod tokenizer;
mod weights;
