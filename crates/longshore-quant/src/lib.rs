//! Quantization, bit for bit as NVIDIA ModelOpt 0.47 computes it: number formats, amax, fake quantization, packed
//! weights, and the configs that say which tensor gets which. Slices in, slices out: files and models are not known here.

pub mod amax;
mod attributes;
pub mod config;
mod element;
mod error;
mod scheme;

pub use amax::Amax;
pub use attributes::{Attributes, BlockSizes, NumBits};
pub use element::Element;
pub use error::{Error, Result};
pub use scheme::{Granularity, MxElement, Scheme};
