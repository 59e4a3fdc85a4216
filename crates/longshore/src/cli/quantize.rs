//! Flags of `quantize`.

use super::calibration::CalibArgs;
use super::run::{EngineArgs, SaveArgs};
use super::{MegatronArgs, Target};
use crate::units;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `quantize`.
#[derive(Clone, Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// Checkpoint to read: a folder, or `org/name` from the Hugging Face cache [env: MLM_MODEL_CKPT, else HF_MODEL_CKPT]
    #[arg(value_name = "SRC")]
    pub(crate) source: Option<PathBuf>,
    /// Folder to write, absent or empty [env: MLM_MODEL_SAVE]
    #[arg(value_name = "DST")]
    pub(crate) destination: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) what: WhatArgs,
    #[command(flatten)]
    pub(crate) calib: CalibArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) smoke: SmokeArgs,
    #[command(flatten)]
    pub(crate) megatron: MegatronArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) save: SaveArgs,
}

impl QuantizeArgs {
    /// Whether a routed expert's second input counts times the router's weight.
    pub(crate) fn is_weighted(&self) -> bool {
        self.what.fc2_amax == Fc2Amax::Megatron
    }
}

/// What is quantized how.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Quantization")]
pub(crate) struct WhatArgs {
    /// A config by name (FP8_DEFAULT_CFG, or fp8; see --list), or a recipe: a .yaml file, or the name of one that is built in
    /// (general/ptq/nvfp4_default-kv_fp8) [env: QUANT_CFG]
    #[arg(long, value_name = "NAME|FILE", aliases = ["format", "recipe", "quant_cfg", "export-quant-cfg"])]
    pub(crate) quant_cfg: Option<String>,
    /// Folder in which recipes and their imports are found, such as modelopt_recipes [default: that of the recipe]
    #[arg(long, value_name = "DIR")]
    pub(crate) recipe_dir: Option<PathBuf>,
    /// Quantize keys and values too: none, fp8, nvfp4, fp8_cast, nvfp4_cast [default: as the config says]
    #[arg(long, value_name = "NAME", aliases = ["export-kv-cache-quant", "kv_cache_qformat"])]
    pub(crate) kv_cache: Option<String>,
    /// Leave the inputs as they are
    #[arg(long)]
    pub(crate) weight_only: bool,
    /// Leave attention as it is
    #[arg(long)]
    pub(crate) disable_qkv_quant: bool,
    /// Leave out quantizers whose full name matches; `*` is any text. May be repeated
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<String>,
    /// Route every token to every expert while calibrating
    #[arg(long)]
    pub(crate) all_experts: bool,
    /// What a routed expert's second input is: `unscaled` as servers quantize it, or `megatron`, times the router's weight
    #[arg(long, value_enum, value_name = "WHICH", default_value = "unscaled", hide_possible_values = true)]
    pub(crate) fc2_amax: Fc2Amax,
    /// Reproduce a known defect of the reference's export: `modelopt`
    #[arg(long, value_enum, value_name = "PROGRAM", hide_possible_values = true)]
    pub(crate) compat: Option<Compat>,
    /// List the configs and the recipes that are built in, and end
    #[arg(long)]
    pub(crate) list: bool,
}

/// The value of `--fc2-amax`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fc2Amax {
    #[default]
    Unscaled,
    Megatron,
}

/// The value of `--compat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compat {
    Modelopt,
}

/// What is written.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Writing")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct OutputArgs {
    /// Format to write: torch_dist, or hf, the unified checkpoint that servers load [default: torch_dist]
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    pub(crate) to: Option<Target>,
    /// Also write a unified Hugging Face checkpoint to this folder, from the same calibration
    #[arg(long, value_name = "DIR")]
    pub(crate) also_hf: Option<PathBuf>,
    /// Largest data file, e.g. 5GB or 4GiB [default: 5GB for safetensors, by the model's size for torch_dist]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    pub(crate) max_file_size: Option<u64>,
    /// Replace what the destination holds, once the new is complete
    #[arg(long)]
    pub(crate) force: bool,
    /// Print what will be quantized how, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not generate from source and result afterwards
    #[arg(long)]
    pub(crate) skip_generate: bool,
    /// Print what ModelOpt's quantize.py prints: every quantizer, their number, the generated texts; and how long calibration
    /// will take, before it
    #[arg(long, conflicts_with = "json")]
    pub(crate) reference_output: bool,
    /// Do not compare result and source
    #[arg(long, conflicts_with = "report")]
    pub(crate) skip_report: bool,
    /// Write the report as a page that any browser opens
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

/// What is generated from the result once it is written.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Writing")]
pub(crate) struct SmokeArgs {
    /// Prompts to complete afterwards, with `|` between them [default: Hello!|Born in California, Soyer trained as a]
    #[arg(long, value_name = "TEXTS", conflicts_with = "skip_generate")]
    pub(crate) prompts: Option<String>,
    /// What the result must complete them to, with `|` between them: else the exit status is 1
    #[arg(long, value_name = "TEXTS", conflicts_with = "skip_generate")]
    pub(crate) references: Option<String>,
    /// New tokens of each
    #[arg(long, value_name = "N", default_value = "32")]
    pub(crate) generate_len: u32,
}
