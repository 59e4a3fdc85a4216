//! Engine.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod activations;
pub mod backend;
pub mod cache;
pub mod chat;
pub mod compare;
pub mod error;
pub mod generate;
pub mod layers;
pub mod memory;
pub mod model;
pub mod mtp;
pub mod sample;
pub mod sweep;
pub mod tokenizer;
mod weights;
