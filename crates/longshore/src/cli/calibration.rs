//! Flags that say what a model is calibrated on.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Where calibration samples come from, how many there are and how long. [`crate::calibration`] reads them.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Calibration")]
pub(crate) struct CalibArgs {
    /// Samples: `.jsonl` (a text, prompt, conversation or token ids a line), a text file, a data set's folder, or its
    /// `org/name` or `ModelOpt`'s name in the Hugging Face cache, several with commas; `random`: random ids [default: a
    /// bundled text]
    #[arg(long, value_name = "DATA", aliases = ["calib-data", "calib_data", "calib-dataset", "calib_dataset"])]
    pub(crate) calib: Option<PathBuf>,
    /// Samples at most
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    #[arg(alias = "calib_size")]
    pub(crate) calib_size: u32,
    /// Tokens of a sample at most; longer ones are cut
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    #[arg(alias = "calib_seq")]
    pub(crate) calib_seq: u32,
    /// Samples of a batch, over which AWQ averages first; nothing else depends on it
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(aliases = ["calib_batch", "calib-batch-size", "calib_batch_size"])]
    pub(crate) calib_batch: u16,
    /// `on` joins the samples with the token that ends texts and cuts rows of --calib-seq tokens
    #[arg(long, value_enum, value_name = "off|on", default_value = "off", hide_possible_values = true)]
    pub(crate) pack: Pack,
    /// 0 takes the first samples in the file's order; another number draws samples and their order
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
}

/// The value of `--pack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pack {
    Off,
    On,
}
