//! The binary as users run it. One file per command; whole outputs are snapshots.

mod convert;
mod demo;
mod diff;
mod export;
mod harness;
mod inspect;
mod usage;
mod verify;
