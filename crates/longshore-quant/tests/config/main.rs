//! Configs against what ModelOpt 0.47 makes of them (`tests/fixtures/config/make.py`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod applied;
mod builtins;
mod choices;
mod fixture;
mod glob;
mod modifiers;
mod recipes;
mod scheme;
