//! What a user can ask of a conversion. Every field is resolved: no option here means "default".

use longshore_ckpt::Dtype;
use serde::Serialize;
use std::path::PathBuf;

/// The module layout of the Megatron side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SpecName {
    /// The full Transformer-Engine spec.
    Te,
    /// ModelOpt's local spec.
    Local,
}

/// Where a layer's pre-norm lives on the Megatron side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NormKeys {
    /// Fused into the next linear (`…linear_qkv.layer_norm_weight`): the TE spec, and local with `--export-te-mcore-model`.
    Fused,
    /// Its own module (`input_layernorm.weight`): the local spec.
    Separate,
}

/// Parallel sizes: `tp` cuts tensors, the others group files; all are stored in the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Tensor parallel size.
    pub tp: u64,
    /// Pipeline parallel size.
    pub pp: u64,
    /// Expert parallel size.
    pub ep: u64,
    /// Expert tensor parallel size.
    pub etp: u64,
}

/// The element type of the parameters in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// As in the source.
    Keep,
    /// Cast to this type, but for parameters that must stay float32.
    Cast(Dtype),
}

/// Options of Hugging Face → torch_dist.
#[derive(Clone, Debug, Serialize)]
pub struct ImportOptions {
    /// Module layout to write for.
    pub spec: SpecName,
    /// Names of the pre-norms.
    pub norms: NormKeys,
    /// Parallel sizes.
    pub layout: Layout,
    /// Lowers sizes that the model cannot have to the largest that it can, each with a line in the report.
    #[serde(skip)]
    pub lower_layout: bool,
    /// Element type.
    pub dtype: DtypeChoice,
    /// Pads the vocabulary to a multiple of this times tp, with zero rows.
    pub make_vocab_size_divisible_by: Option<u64>,
    /// Writes `iter_N` instead of `release`.
    pub iteration: Option<u64>,
    /// Also writes `core_attention._extra_state`, which megatron-core 0.12 to 0.14 ask for (`--mcore 0.14`).
    pub core_attention_states: bool,
    /// Stores packed weights as the values that they stand for.
    pub dequantize: bool,
    /// Leaves source tensors out that the architecture does not name, each with a line in the report.
    pub allow_unmapped: bool,
    /// A folder whose config, tokenizer and other files are used instead of the source's own.
    pub base: Option<PathBuf>,
    /// Largest data file in bytes; `None` derives it from the size of the model.
    pub max_file_size: Option<u64>,
}

/// Options of torch_dist → Hugging Face.
#[derive(Clone, Debug, Serialize)]
pub struct ExportOptions {
    /// A Hugging Face folder that supplies config, tokenizer and other files, and the dtypes of its tensors.
    pub base: Option<PathBuf>,
    /// Element type; [`DtypeChoice::Keep`] restores the source's own.
    pub dtype: DtypeChoice,
    /// Rows of the vocabulary, where the checkpoint is padded and nothing else says.
    pub vocab_size: Option<u64>,
    /// Leaves source tensors out that the architecture does not name, each with a line in the report.
    pub allow_unmapped: bool,
    /// Largest safetensors file in bytes (5 GB in releases).
    pub max_file_size: u64,
    /// Reproduces known defects of ModelOpt's export of quantized checkpoints.
    pub compat_modelopt: bool,
}
