//! Flags of `longshore cut`.

use super::{MtpArg, positive};
use crate::units;
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
    #[command(flatten)]
    pub(crate) write: CutWriteArgs,
}

/// As the other writing commands have them, without what changes values.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Writing")]
pub(crate) struct CutWriteArgs {
    /// Largest data file, e.g. 5GB or 4GiB [default: 5GB for safetensors, by the model's size for torch_dist]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    pub(crate) max_file_size: Option<u64>,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Leave out tensors that the architecture does not name; each is reported
    #[arg(long)]
    pub(crate) allow_unmapped: bool,
    /// Replace what the destination holds, once the new is complete
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the plan and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}
