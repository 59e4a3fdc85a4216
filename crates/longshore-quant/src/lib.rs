//! Quantization, bit for bit as NVIDIA ModelOpt 0.47 computes it: number formats, amax, fake quantization, packed
//! weights, and the configs that say which tensor gets which. Slices in, slices out: files and models are not known here.

#![deny(unsafe_code)]

pub mod amax;
mod attributes;
mod blocks;
pub mod config;
mod distortion;
mod element;
mod error;
pub mod fake;
mod isa;
pub mod number;
pub mod pack;
pub mod round_trip;
mod scheme;
pub mod search;
pub mod unpack;

pub use amax::Amax;
pub use attributes::{Attributes, Bias, BlockSizes, NumBits};
pub use distortion::Distortion;
pub use element::Element;
pub use error::{Error, Result};
pub use scheme::{Granularity, MxElement, Scheme};
