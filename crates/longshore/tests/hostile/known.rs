//! What is expected of each entry: a command, its exit status, and a part of what it says.

/// Entry, command, exit status, words.
pub(crate) const KNOWN: &[(&str, &str, i32, &str)] = &[];

/// Options that no model has, with the sound checkpoint.
pub(crate) const OPTIONS: &[(&[&str], &str)] = &[];
