//! Checkpoints as tables of byte ranges.
//!
//! Both formats that longshore knows reduce to one thing: a [`Catalog`], the dtype and shape of every tensor and the
//! [`Extent`]s of its [`Chunk`]s in the files of a folder. [`safetensors`] and [`torch_dist`] read and write the two
//! formats' framing; they take and give bytes. [`fs`] is the only module that opens a path. Nothing here knows a model.

#![forbid(unsafe_code)]

pub mod catalog;
pub mod error;
pub mod fs;
pub mod hub_cache;
pub mod other_format;
pub mod safetensors;
pub mod tensor;
pub mod torch_dist;

pub use catalog::{Catalog, Chunk, Extent, Format, TensorInfo};
pub use error::Error;
pub use other_format::OtherFormat;
pub use tensor::{Dtype, Rect};

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;
