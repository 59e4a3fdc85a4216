//! Scores from a server that speaks OpenAI's completions protocol, as vLLM, SGLang, TensorRT-LLM and llama.cpp do: the letters of
//! multiple-choice questions ([`letters`]) and the likelihood of prompts ([`likelihood`]).
//!
//! [`Client`] sends one request and repeats it where that may help, [`ask`] sends many at a time, [`Answers`] keeps what was
//! answered on the disk. Nothing a server says is trusted: bodies are bounded, and every number is checked.

#![forbid(unsafe_code)]

mod address;
mod answers;
mod ask;
mod client;
mod error;
pub mod letters;
pub mod likelihood;
mod request;
mod stop;

pub use address::Address;
pub use answers::{Answers, Found};
pub use ask::ask;
pub use client::{Client, Key, Retry, Settings};
pub use error::{Error, Result};
pub use request::{Prompt, Request};
