//! Arguments of `script`.

use clap::{Args, ValueEnum};

/// `script`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ScriptArgs {
    /// Whose job it is
    #[arg(value_enum)]
    pub(crate) name: ScriptName,
    /// The script's own arguments: the model's name; of quantize.sh a config too; then flags of the command
    #[arg(value_name = "ARG", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) rest: Vec<String>,
}

/// A script of Megatron-LM's `examples/post_training/modelopt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScriptName {
    Convert,
    Quantize,
    Generate,
    Mmlu,
    Export,
}
