//! The engine against what transformers computed (`golden/hf` of the shared data, where it is present).

mod logits;
mod shared_data;
