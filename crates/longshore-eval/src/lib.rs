//! Evaluation without a model: what is asked, in which words, and what the answers are worth.
//!
//! [`mmlu`] reads the questions, writes the prompts and scores the logits. [`perplexity`] cuts a token stream into windows
//! and sums what a model made of them, [`divergence`] sets two models' distributions side by side, [`compare`] two lists
//! of answers, [`saved`] reads back what a run has found, [`parquet`] and [`gzip`] read the files of data sets. Slices and strings in,
//! numbers out; files are opened through [`longshore_ckpt::fs`] alone.

#![forbid(unsafe_code)]

pub mod compare;
pub mod divergence;
mod error;
pub mod gzip;
pub mod mmlu;
pub mod parquet;
pub mod perplexity;
pub mod saved;
mod statistics;
mod tail;
pub mod text;

pub use error::{Error, Problem, Problems, Result};
