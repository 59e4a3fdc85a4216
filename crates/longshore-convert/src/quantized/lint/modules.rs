//! The linears of a folder and how their weights are stored.

use super::Tensors;
use longshore_ckpt::Dtype;

/// What a weight and its scales look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Not quantized.
    Plain,
    /// E4M3 under one scale.
    Fp8,
    /// E4M3 with a scale per row.
    Fp8Rows,
    /// E4M3 with a scale per square.
    Fp8Squares,
    /// E4M3 with powers of two.
    Mxfp8,
    /// E2M1 with E4M3 block scales.
    Nvfp4,
    /// E2M1 with powers of two.
    Mxfp4,
    /// INT4 in blocks.
    Int4,
    /// INT8 with a scale per row.
    Int8,
    /// Packed, but without `weight_scale`.
    Unscaled,
}

impl Stored {
    /// In words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Fp8 => "FP8 under one scale",
            Self::Fp8Rows => "FP8 with a scale per row",
            Self::Fp8Squares => "FP8 with a scale per square",
            Self::Mxfp8 => "MXFP8",
            Self::Nvfp4 => "NVFP4",
            Self::Mxfp4 => "MXFP4",
            Self::Int4 => "INT4",
            Self::Int8 => "INT8",
            Self::Unscaled => "packed without scales",
        }
    }

    /// Whether it is what `algo` says, in upper case. Formats that are not known here cannot be told apart.
    pub(super) fn fits(self, algo: &str) -> bool {
        let expected = match algo {
            "FP8" => Self::Fp8,
            "FP8_PER_CHANNEL_PER_TOKEN" => Self::Fp8Rows,
            "FP8_PB_WO" => Self::Fp8Squares,
            "MXFP8" => Self::Mxfp8,
            "NVFP4" | "NVFP4_AWQ" | "NVFP4_SVD" | "W4A16_NVFP4" | "W4A8_NVFP4_FP8" => Self::Nvfp4,
            "MXFP4" | "W4A8_MXFP4_FP8" => Self::Mxfp4,
            "W4A16_AWQ" | "W4A8_AWQ" => Self::Int4,
            "W8A8_SQ_PER_CHANNEL" | "W8A16" => Self::Int8,
            _ => return true,
        };
        self == expected
    }
}

/// A linear of the folder.
pub(super) struct Module<'a> {
    /// Its name, without `.weight`.
    pub(super) name: &'a str,
    /// The shape of its weight, as stored.
    pub(super) shape: &'a [u64],
    /// How its weight is stored.
    pub(super) stored: Stored,
    /// Dtype and shape of `weight_scale`.
    pub(super) scale: Option<&'a (Dtype, Vec<u64>)>,
    /// Whether there is a `weight_scale_2`.
    pub(super) has_scale_2: bool,
    /// Whether there is an `input_scale`.
    pub(super) has_input_scale: bool,
}

impl Module<'_> {
    /// Whether its weight is packed.
    pub(super) fn is_packed(&self) -> bool {
        self.stored != Stored::Plain
    }
}

/// Modules that look like linears, but take no quantization in any engine: embeddings and routers.
const NEVER: [&str; 7] =
    ["embeddings", "embed_tokens", "gate", "router", "shared_expert_gate", "wte", "word_embeddings"];

/// All modules whose weight is a matrix, embeddings and routers left out while they are plain.
pub(super) fn of(tensors: &Tensors) -> Vec<Module<'_>> {
    let mut modules = Vec::new();
    for (tensor, (dtype, shape)) in tensors {
        let Some(name) = tensor.strip_suffix(".weight").filter(|_| shape.len() == 2) else { continue };
        let scale = tensors.get(&format!("{name}.weight_scale"));
        let stored = stored(*dtype, scale);
        let last = name.rsplit('.').next().unwrap_or(name);
        if stored == Stored::Plain && NEVER.contains(&last) {
            continue;
        }
        let has = |suffix: &str| tensors.contains_key(&format!("{name}.{suffix}"));
        let (has_scale_2, has_input_scale) = (has("weight_scale_2"), has("input_scale"));
        modules.push(Module { name, shape, stored, scale, has_scale_2, has_input_scale });
    }
    modules
}

fn stored(weight: Dtype, scale: Option<&(Dtype, Vec<u64>)>) -> Stored {
    let is_packed = matches!(weight, Dtype::Float8E4m3 | Dtype::Uint8 | Dtype::Int8);
    let Some((dtype, shape)) = scale.filter(|_| is_packed) else {
        return if is_packed { Stored::Unscaled } else { Stored::Plain };
    };
    let is_power = matches!(dtype, Dtype::Uint8 | Dtype::Float8E8m0);
    match (weight, shape.as_slice()) {
        (Dtype::Float8E4m3, _) if is_power => Stored::Mxfp8,
        (Dtype::Float8E4m3, [] | [1]) => Stored::Fp8,
        (Dtype::Float8E4m3, [_]) => Stored::Fp8Rows,
        (Dtype::Float8E4m3, _) => Stored::Fp8Squares,
        (Dtype::Uint8, _) if is_power => Stored::Mxfp4,
        (Dtype::Uint8, _) if *dtype == Dtype::Float8E4m3 => Stored::Nvfp4,
        (Dtype::Uint8, _) => Stored::Int4,
        _ => Stored::Int8,
    }
}
