//! The arguments of `doctor`.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Checkpoint: a folder, or `org/name` from the Hugging Face cache
    #[arg(value_name = "CKPT")]
    pub(crate) checkpoint: PathBuf,
    /// A checkpoint that is known to be right, in either format: also say which mistake explains each difference
    #[arg(long, value_name = "SRC")]
    pub(crate) against: Option<PathBuf>,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
}
