//! Flags of the commands that say how Megatron is started: its arguments, and the parallel sizes that fit.

use super::positive;
use crate::units;
use clap::{Args, ValueEnum};
use longshore_convert::fit::{Gpus, MAX_GPUS};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct ArgumentsArgs {
    /// Checkpoint: a folder, or `org/name` from the Hugging Face cache; a config.json is enough
    #[arg(value_name = "CKPT")]
    pub(crate) checkpoint: PathBuf,
    /// What to write: conf (a file of ModelOpt's examples), args (one line) or run-config (Megatron-Bridge's YAML)
    #[arg(long, value_enum, value_name = "FORM", default_value = "conf", hide_possible_values = true)]
    pub(crate) form: Form,
    /// Say the MTP layers too; NVIDIA's own files leave them out, run-config always has them
    #[arg(long)]
    pub(crate) mtp: bool,
    /// Folder with config.json, where the checkpoint has none or another is wanted
    #[arg(long, value_name = "DIR")]
    pub(crate) base: Option<PathBuf>,
}

/// The form of the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Conf,
    Args,
    RunConfig,
}

#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    /// Checkpoint: a folder, or `org/name` from the Hugging Face cache; a config.json is enough
    #[arg(value_name = "CKPT")]
    pub(crate) checkpoint: PathBuf,
    /// Number and memory of the GPUs, e.g. 8x80G
    #[arg(long, value_name = "NxSIZE", value_parser = parse_gpus)]
    pub(crate) gpus: Gpus,
    /// Tensor parallel size [default: all that divide the number of GPUs]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) tp: Option<u64>,
    /// Pipeline parallel size [default: likewise]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) pp: Option<u64>,
    /// Expert parallel size [default: likewise]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) ep: Option<u64>,
    /// Expert tensor parallel size [default: likewise]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) etp: Option<u64>,
    /// Percent of a GPU's memory that is kept for everything but weights
    #[arg(long, value_name = "PERCENT", default_value = "20", value_parser = clap::value_parser!(u64).range(..100))]
    pub(crate) reserve: u64,
    /// Pad the vocabulary with zero rows to a multiple of N times TP [default: no padding]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) make_vocab_size_divisible_by: Option<u64>,
    /// Folder with config.json, where the checkpoint has none or another is wanted
    #[arg(long, value_name = "DIR")]
    pub(crate) base: Option<PathBuf>,
    /// Show every layout, not only the first ones
    #[arg(long)]
    pub(crate) all: bool,
}

fn parse_gpus(text: &str) -> Result<Gpus, String> {
    let expected = "expected a number of GPUs and the memory of each, such as 8x80G";
    let (count, size) = text.split_once(['x', 'X']).ok_or(expected)?;
    let count: u64 = count.parse().map_err(|_| expected.to_owned())?;
    if !(1..=MAX_GPUS).contains(&count) {
        return Err(format!("expected 1 to {MAX_GPUS} GPUs"));
    }
    Ok(Gpus { count, size: units::parse_size(size)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_a_number_and_a_size() {
        assert_eq!(parse_gpus("8x80G"), Ok(Gpus { count: 8, size: 80 << 30 }));
        assert_eq!(parse_gpus("1X141GB"), Ok(Gpus { count: 1, size: 141_000_000_000 }));
        for bad in ["", "8", "x80G", "8x", "0x80G", "5000x80G", "8x80X", "-1x80G"] {
            assert!(parse_gpus(bad).is_err(), "{bad}");
        }
    }
}
