//! The binary as users run it. One file per command; whole outputs are snapshots.

mod convert;
mod cut;
mod demo;
mod diff;
mod doctor;
mod eval;
mod eval_compare;
mod export;
mod generate;
mod harness;
mod inspect;
mod launch;
mod llama;
mod logits;
mod other_formats;
mod quantize;
mod refused;
mod usage;
mod variant;
mod verify;
