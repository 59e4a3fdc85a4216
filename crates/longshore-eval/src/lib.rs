//! Evaluation without a model: what is asked, in which words, and what the answers are worth.
//!
//! [`mmlu`] reads the questions, writes the prompts and scores the logits. Slices and strings in, numbers out; files are
//! opened through [`longshore_ckpt::fs`] alone.

#![forbid(unsafe_code)]

mod error;
pub mod mmlu;

pub use error::{Error, Problem, Problems, Result};
