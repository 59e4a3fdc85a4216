//! The names of formats.

use super::ExportedLinear;
use longshore_quant::{Granularity, MxElement, Scheme};
use serde_json::{Map, Value, json};

/// A format of a linear, as ModelOpt names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algo {
    /// `quant_algo`.
    pub name: &'static str,
    /// Columns of a block, where the config says it.
    pub group_size: Option<usize>,
    /// Whether the config says that there is a `pre_quant_scale`: always for AWQ, also where it was folded away.
    pub pre_quant_scale: bool,
}

impl Algo {
    /// The entry of `quantized_layers`; `quant_algo` comes first.
    pub(super) fn entry(self) -> Map<String, Value> {
        let mut entry = Map::new();
        entry.insert("quant_algo".into(), self.name.into());
        if let Some(size) = self.group_size {
            entry.insert("group_size".into(), size.into());
        }
        if self.pre_quant_scale {
            entry.insert("has_zero_point".into(), false.into());
            entry.insert("pre_quant_scale".into(), true.into());
        }
        entry
    }

    /// The entry of `config_groups`, in the words of compressed-tensors. ModelOpt says eight bits for the inputs of
    /// `NVFP4_AWQ`, which have four.
    pub(super) fn group(self, targets: Vec<&str>) -> Value {
        let numbers = |bits: u8, kind: &str, group_size: Option<usize>, strategy: Option<&str>| {
            let mut numbers = json!({ "dynamic": false, "num_bits": bits, "type": kind });
            if let Some(size) = group_size {
                numbers["group_size"] = size.into();
            }
            if let Some(strategy) = strategy {
                numbers["strategy"] = strategy.into();
            }
            numbers
        };
        let size = self.group_size;
        let channel = Some("channel");
        let fp8 = || Some(numbers(8, "float", None, None));
        let (inputs, weights) = match self.name {
            "FP8" => (fp8(), numbers(8, "float", None, None)),
            "FP8_PER_CHANNEL_PER_TOKEN" => (fp8(), numbers(8, "float", None, channel)),
            "NVFP4" => (Some(numbers(4, "float", size, None)), numbers(4, "float", size, None)),
            "NVFP4_AWQ" | "W4A8_AWQ" => (Some(numbers(8, "float", size, None)), numbers(4, "float", size, None)),
            "W4A16_AWQ" => (None, numbers(4, "int", size, None)),
            "W4A16_NVFP4" => (None, numbers(4, "float", size, None)),
            "W4A8_NVFP4_FP8" | "W4A8_MXFP4_FP8" => (fp8(), numbers(4, "float", size, None)),
            "MXFP8" => (Some(numbers(8, "float", size, None)), numbers(8, "float", size, None)),
            "W8A16" => (None, numbers(8, "int", None, None)),
            "W8A8_SQ_PER_CHANNEL" => (Some(numbers(8, "int", None, None)), numbers(8, "int", None, channel)),
            // Formats that ModelOpt's table of groups lacks.
            _ => return json!({ "quant_algo": self.name, "targets": targets }),
        };
        let mut group = Map::new();
        if let Some(inputs) = inputs {
            group.insert("input_activations".into(), inputs);
        }
        group.insert("weights".into(), weights);
        group.insert("targets".into(), targets.into());
        group.into()
    }
}

/// The format of a linear; nothing where its weight is not quantized, and what is wrong where no name says it exactly.
///
/// ModelOpt (`get_quantization_format`) names some combinations after something else, such as integers in MX blocks
/// `W8A8_SQ_PER_CHANNEL`; no engine could read those, so they are errors here.
pub fn quant_algo(linear: &ExportedLinear) -> Result<Option<Algo>, String> {
    use Granularity::{Channel, Square, Tensor, Token};
    use MxElement::{E2m1, E4m3};
    use Scheme::{Fp8, Int4, Int8, Mx, Nvfp4, Nvfp4Static};

    let plain = |name| Algo { name, group_size: None, pre_quant_scale: false };
    let blocks = |name, block| Algo { name, group_size: Some(block), pre_quant_scale: false };
    let smoothed = |name, block| Algo { name, group_size: Some(block), pre_quant_scale: true };
    let algo = match (linear.weight.as_slice(), linear.input) {
        ([], _) => return Ok(None),
        ([Int4 { block }, Fp8(Tensor)], Some(Fp8(Tensor))) => smoothed("W4A8_AWQ", *block),
        ([Int4 { block }], None) => smoothed("W4A16_AWQ", *block),
        ([Int8(Channel)], Some(Int8(Tensor))) => plain("W8A8_SQ_PER_CHANNEL"),
        ([Int8(Channel)], None) => plain("W8A16"),
        ([Fp8(Tensor)], None | Some(Fp8(Tensor))) => plain("FP8"),
        ([Fp8(Channel)], Some(Fp8(Token))) => plain("FP8_PER_CHANNEL_PER_TOKEN"),
        ([Fp8(Square(128))], None) => plain("fp8_pb_wo"),
        ([weight @ (Nvfp4 { .. } | Nvfp4Static { .. })], Some(Nvfp4 { block })) if nvfp4_block(*weight) == block => {
            if linear.pre_quant_scale {
                smoothed("NVFP4_AWQ", block)
            } else {
                blocks("NVFP4", block)
            }
        }
        ([weight @ (Nvfp4 { .. } | Nvfp4Static { .. })], None) => blocks("W4A16_NVFP4", nvfp4_block(*weight)),
        ([Nvfp4 { block }], Some(Fp8(Tensor))) => blocks("W4A8_NVFP4_FP8", *block),
        ([Mx(E4m3)], None | Some(Mx(E4m3))) => blocks("MXFP8", MX_BLOCK),
        ([Mx(E2m1)], Some(Fp8(Tensor))) => blocks("W4A8_MXFP4_FP8", MX_BLOCK),
        ([Mx(E2m1)], None | Some(Mx(E2m1))) => plain("mxfp4"),
        (weight, input) => {
            let weight = weight.iter().map(|scheme| describe(*scheme)).collect::<Vec<_>>().join(", then ");
            let input = input.map_or_else(|| "an input that is not quantized".to_owned(), |i| describe(i) + " inputs");
            return Err(format!("unified checkpoints have no format with {weight} weights and {input}"));
        }
    };
    let may_be_smoothed = algo.pre_quant_scale || algo.name == "W8A8_SQ_PER_CHANNEL";
    if linear.pre_quant_scale && !may_be_smoothed {
        return Err(format!("the format {} has no `pre_quant_scale`, and its input has one", algo.name));
    }
    let (row_block, column_block) =
        if algo.name == "fp8_pb_wo" { (128, 128) } else { (1, algo.group_size.unwrap_or(1)) };
    if !linear.rows.is_multiple_of(row_block) || !linear.cols.is_multiple_of(column_block as u64) {
        let shape = format!("{}x{}", linear.rows, linear.cols);
        return Err(format!("{shape} is no multiple of {}'s blocks of {row_block}x{column_block}", algo.name));
    }
    Ok(Some(algo))
}

/// Columns of a block in every MX format.
const MX_BLOCK: usize = 32;

/// Columns of a block of an NVFP4 weight; static ones have 16.
fn nvfp4_block(weight: Scheme) -> usize {
    if let Scheme::Nvfp4 { block } = weight { block } else { 16 }
}

fn describe(scheme: Scheme) -> String {
    let per = |granularity| match granularity {
        Granularity::Tensor => "per tensor".to_owned(),
        Granularity::Channel => "per channel".to_owned(),
        Granularity::Token => "per token".to_owned(),
        Granularity::Square(side) => format!("per {side}x{side}"),
    };
    match scheme {
        Scheme::Fp8(granularity) => format!("FP8 ({})", per(granularity)),
        Scheme::Int8(granularity) => format!("INT8 ({})", per(granularity)),
        Scheme::Int4 { block } => format!("INT4 (blocks of {block})"),
        Scheme::Nvfp4 { block } => format!("NVFP4 (blocks of {block})"),
        Scheme::Nvfp4Static { .. } => "static NVFP4 (blocks of 16)".to_owned(),
        Scheme::Mx(element) => {
            let element = match element {
                MxElement::E4m3 => "MXFP8",
                MxElement::E3m2 | MxElement::E2m3 => "MXFP6",
                MxElement::E2m1 => "MXFP4",
                MxElement::Int8 => "MXINT8",
            };
            element.to_owned()
        }
    }
}
