//! Conversion between Hugging Face and Megatron-Core checkpoints: names, shapes, plans and their execution.
//!
//! The line of a conversion: [`config`] reads what the source says of itself; [`arch`] turns it into a
//! [`mapping::Mapping`], a list of equalities between [`region::Region`]s of the two sides; [`resolve`] checks it against
//! the source's catalog; [`plan`] lays out every output file; [`run`] writes them and publishes the folder whole.
//! [`verify`](mod@verify) and [`diff`](mod@diff) read checkpoints back through the same mapping.

#![forbid(unsafe_code)]

pub mod arch;
pub mod arguments;
pub mod cast;
mod compare;
pub mod config;
pub mod content;
pub mod diff;
pub mod doctor;
pub mod error;
pub mod fingerprint;
pub mod fit;
pub mod gather;
pub mod manifest;
pub mod mapping;
pub mod model;
pub mod options;
pub mod outline;
pub mod plan;
mod produce;
pub mod progress;
pub mod quantized;
pub mod region;
pub mod resolve;
pub mod run;
pub mod source;
pub mod structure;
pub mod verify;

pub use error::{Error, Problem};
pub use options::{
    CutOptions, DtypeChoice, ExportOptions, ImportOptions, Layers, Layout, MtpChoice, NormKeys, SpecName,
};
pub use plan::{Plan, plan_cut, plan_export, plan_import, plan_quantized_export, plan_quantized_import};
pub use progress::Progress;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;
