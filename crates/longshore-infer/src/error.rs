//! Why a model cannot be run.

use std::path::PathBuf;

/// Every way in which loading or running a model fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint cannot be read, or is not what its config says.
    #[error(transparent)]
    Convert(#[from] longshore_convert::Error),
    /// Reading or writing a file failed.
    #[error(transparent)]
    Checkpoint(#[from] longshore_ckpt::Error),
    /// Fields that decide the function are not stored, and no tensor shows them.
    #[error("`{}` does not say {}", path.display(), fields.join(" and "))]
    NotStored {
        /// The checkpoint.
        path: PathBuf,
        /// Their names in config.json.
        fields: Vec<&'static str>,
    },
    /// A token that the model does not have.
    #[error("token {id} at position {position} of prompt {prompt}: expected an id below {vocab}")]
    Token {
        /// Index of the prompt.
        prompt: usize,
        /// Position in it.
        position: usize,
        /// The id.
        id: u32,
        /// Tokens of the model.
        vocab: u64,
    },
    /// A prompt without tokens.
    #[error("prompt {prompt} has no tokens")]
    EmptyPrompt {
        /// Index of the prompt.
        prompt: usize,
    },
    /// The budget is too small for one layer and the smallest piece of work.
    #[error("{what} needs {} of memory, {} are allowed", bytes(*needed), bytes(*budget))]
    Memory {
        /// What needs it.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// The threads could not be started.
    #[error("starting threads: {0}")]
    Threads(std::io::Error),
    /// Two models of different shapes.
    #[error("the models cannot be compared: {what}")]
    Incomparable {
        /// Their shapes.
        what: String,
    },
    /// A linear or a quantizer that the model does not have, or whose state does not fit it.
    #[error("quantization of `{module}`: {what}")]
    QuantState {
        /// Its module path.
        module: String,
        /// What is wrong.
        what: String,
    },
    /// A tensor cannot be quantized as its quantizer says.
    #[error("quantization of `{module}`: {error}")]
    Quantize {
        /// The linear's or the quantizer's module path.
        module: String,
        /// Why.
        error: longshore_quant::Error,
    },
    /// An activation that has no amax.
    #[error("the input of `{module}` has values that are not finite")]
    NotFinite {
        /// The linear's module path.
        module: String,
    },
    /// A record that cannot be saved.
    #[error("saving to `{}`: {what}", path.display())]
    NotSaved {
        /// The folder.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// The model has no MTP layers.
    #[error("the model has no multi-token prediction layers")]
    NoMtp,
}

fn bytes(n: u64) -> String {
    if n < 1_000_000 { format!("{n} bytes") } else { format!("{:.1} MB", n as f64 / 1e6) }
}

/// The result of every fallible function of the engine.
pub type Result<T> = std::result::Result<T, Error>;
