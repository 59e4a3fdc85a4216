//! What a user can ask of a conversion. Every field is resolved: none means "whatever is usual".

use longshore_ckpt::Dtype;
use serde::Serialize;
use std::ops::Range;
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

impl NormKeys {
    /// Those that a spec reads.
    pub fn of(spec: SpecName) -> Self {
        match spec {
            SpecName::Te => Self::Fused,
            SpecName::Local => Self::Separate,
        }
    }
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

impl Default for Layout {
    /// One rank.
    fn default() -> Self {
        Self { tp: 1, pp: 1, ep: 1, etp: 1 }
    }
}

/// The element type of the parameters in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// As in the source.
    #[default]
    Keep,
    /// Cast to this type, but for parameters that must stay float32.
    Cast(Dtype),
}

/// What becomes of a source's multi-token prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MtpChoice {
    /// It is written as the source has it; a config that promises more than the source holds is refused.
    #[default]
    Keep,
    /// Its tensors are left out, and the config of the result says none.
    Drop,
}

/// Options of Hugging Face → torch_dist.
#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
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
    /// What becomes of multi-token prediction.
    pub mtp: MtpChoice,
    /// A folder whose config, tokenizer and other files are used instead of the source's own.
    pub base: Option<PathBuf>,
    /// Largest data file in bytes; `None` derives it from the size of the model.
    pub max_file_size: Option<u64>,
}

impl ImportOptions {
    /// Those of a spec where nobody says more: its own norms, one rank, everything as the source has it.
    pub fn new(spec: SpecName) -> Self {
        Self {
            spec,
            norms: NormKeys::of(spec),
            layout: Layout::default(),
            lower_layout: false,
            dtype: DtypeChoice::Keep,
            make_vocab_size_divisible_by: None,
            iteration: None,
            core_attention_states: false,
            dequantize: false,
            allow_unmapped: false,
            mtp: MtpChoice::Keep,
            base: None,
            max_file_size: None,
        }
    }
}

/// Options of torch_dist → Hugging Face.
#[derive(Clone, Debug, Serialize)]
pub struct ExportOptions {
    /// A Hugging Face folder that supplies config, tokenizer and other files, and the dtypes of its tensors.
    pub base: Option<PathBuf>,
    /// Element type; [`DtypeChoice::Keep`] restores the source's own.
    pub dtype: DtypeChoice,
    /// What becomes of multi-token prediction.
    pub mtp: MtpChoice,
    /// Copies the tensors of multi-token prediction from `base`, for a checkpoint that holds none. Not with
    /// [`MtpChoice::Drop`].
    pub mtp_from_base: bool,
    /// Rows of the vocabulary, where the checkpoint is padded and nothing else says.
    pub vocab_size: Option<u64>,
    /// Leaves source tensors out that the architecture does not name, each with a line in the report.
    pub allow_unmapped: bool,
    /// Largest safetensors file in bytes (5 GB in releases).
    pub max_file_size: u64,
    /// Reproduces known defects of ModelOpt's export of quantized checkpoints.
    pub compat_modelopt: bool,
}

impl Default for ExportOptions {
    /// Everything as the source has it.
    fn default() -> Self {
        Self {
            base: None,
            dtype: DtypeChoice::Keep,
            mtp: MtpChoice::Keep,
            mtp_from_base: false,
            vocab_size: None,
            allow_unmapped: false,
            max_file_size: HF_FILE_SIZE,
            compat_modelopt: false,
        }
    }
}

/// Largest safetensors file in bytes where none is asked for, as in Hugging Face releases.
pub const HF_FILE_SIZE: u64 = 5_000_000_000;

/// Options of a cut: a smaller model of the source's format.
#[derive(Clone, Debug, Serialize)]
pub struct CutOptions {
    /// The layers to keep, in the model's order; `None` keeps all.
    pub layers: Option<Layers>,
    /// Keeps this many routed experts of every MoE layer, the first ones.
    pub experts: Option<u64>,
    /// What becomes of multi-token prediction.
    pub mtp: MtpChoice,
    /// Leaves source tensors out that the architecture does not name, each with a line in the report.
    pub allow_unmapped: bool,
    /// Largest data file in bytes; `None` is [`HF_FILE_SIZE`] for safetensors and derived from the model's size for torch_dist.
    pub max_file_size: Option<u64>,
}

/// A choice of layers: ranges `a..b` without their end and single numbers, ascending, e.g. `0..4,10,12..14`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layers(Vec<Range<u64>>);

impl Layers {
    /// The ranges, ascending and without overlap; none is empty.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }
}

impl std::str::FromStr for Layers {
    type Err = String;

    /// Errors: everything that is wrong with the text, at once.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut ranges, mut wrong) = (Vec::<Range<u64>>::new(), Vec::new());
        for item in text.split(',').map(str::trim) {
            let range = match item.split_once("..") {
                Some((from, to)) => from.parse().ok().zip(to.parse().ok()).map(|(from, to)| from..to),
                None => item.parse::<u64>().ok().and_then(|layer| Some(layer..layer.checked_add(1)?)),
            };
            match range {
                None => wrong.push(format!("`{item}` is neither a layer nor a range such as 0..4")),
                Some(range) if range.is_empty() => {
                    wrong.push(format!("`{item}` holds no layer: a range ends before its second number"));
                }
                Some(range) if ranges.last().is_some_and(|last| range.start < last.end) => {
                    wrong.push(format!("`{item}` begins before the end of what stands before it"));
                }
                Some(range) => ranges.push(range),
            }
        }
        if wrong.is_empty() { Ok(Self(ranges)) } else { Err(wrong.join("; ")) }
    }
}

impl std::fmt::Display for Layers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if range.end - range.start == 1 {
                write!(f, "{comma}{}", range.start)?;
            } else {
                write!(f, "{comma}{}..{}", range.start, range.end)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Layers;

    #[test]
    fn layers_are_read_as_they_are_shown() {
        for text in ["0..7", "3", "0..4,10,12..14", "0,1,2"] {
            assert_eq!(text.parse::<Layers>().unwrap().to_string(), text);
        }
        assert_eq!(" 1 , 2..5".parse::<Layers>().unwrap().ranges(), [1..2, 2..5]);
    }

    #[test]
    fn all_that_is_wrong_with_a_list_is_told_at_once() {
        let wrong = |text: &str| text.parse::<Layers>().unwrap_err();
        assert_eq!(
            wrong("0..4,4..4,x,2"),
            "`4..4` holds no layer: a range ends before its second number; \
             `x` is neither a layer nor a range such as 0..4; \
             `2` begins before the end of what stands before it"
        );
        for text in ["", "..4", "4..", "0..=4", "-1", "1,1", "18446744073709551615", "1..2..3"] {
            wrong(text);
        }
    }
}
