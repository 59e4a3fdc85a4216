//! Flags of `longshore cut`.

use super::{MtpArg, OutputArgs, positive};
use clap::Args;
use longshore_convert::Layers;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
pub(crate) struct CutArgs {
    /// Checkpoint to read: a folder, or `org/name` from the Hugging Face cache
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// Folder to write, absent or empty; the format is that of SRC
    #[arg(value_name = "DST")]
    pub(crate) destination: PathBuf,
    /// Layers to keep, numbered from 0, e.g. 0..4,10,12..14; a range ends before its second number, so 0..7 is the first
    /// seven [default: all]
    #[arg(long, value_name = "LIST")]
    pub(crate) layers: Option<Layers>,
    /// Routed experts to keep in each MoE layer, the first N [default: all]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) experts: Option<u64>,
    /// Multi-token prediction: keep or drop [default: keep]
    #[arg(long, value_enum, value_name = "WHAT", hide_possible_values = true)]
    pub(crate) mtp: Option<MtpArg>,
    #[command(flatten, next_help_heading = "Writing")]
    pub(crate) output: OutputArgs,
}
