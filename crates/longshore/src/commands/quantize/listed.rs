//! Every quantizer of a result in a line, as ModelOpt's `print_quant_summary` lists those of a model.

use anyhow::Result;
use longshore_ckpt::Catalog;
use longshore_convert::quantized::Quantization;
use longshore_convert::quantized::linear::Role;
use longshore_quant::{Attributes, NumBits, Scheme};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// The quantizers in the order of the layers, and how many there are. Magnitudes are those that the result has stored;
/// Hugging Face folders store scales instead, so that theirs are not shown.
pub(super) fn summary(quantization: &Quantization, result: &Path) -> Result<String> {
    let catalog = Catalog::open(result)?;
    let (mut text, mut seen) = (String::new(), BTreeSet::new());
    // A quantizer has a name in the model and another one in the checkpoint.
    let mut add = |name: &str, stored: &str, stages: &[Attributes]| -> Result<()> {
        for (at, attributes) in stages.iter().enumerate() {
            let number = if stages.len() > 1 { format!(".{at}") } else { String::new() };
            let (name, stored) = (format!("{name}{number}"), format!("{stored}{number}"));
            // Grouped experts share the one of their inputs.
            if seen.insert(name.clone()) {
                let is_first_weight = at == 0 && name.contains("weight_quantizer");
                let notation = if is_first_weight { Notation::of_weight(attributes) } else { Notation::Scientific };
                let described = described(&stored, attributes, notation, &catalog)?;
                let _ = writeln!(text, "{name:80} {}({described})", notation.class());
            }
        }
        Ok(())
    };
    for q in &quantization.linears {
        for (role, stages) in [(Role::Input, &q.input), (Role::Weight, &q.weight), (Role::Output, &q.output)] {
            let module =
                if role == Role::Weight { q.linear.module.clone() } else { quantization.input_module(&q.linear) };
            for name in q.linear.quantizers(quantization.naming, role) {
                add(&name, &format!("{module}.{}", role.quantizer()), stages)?;
            }
        }
    }
    for kv in &quantization.kv {
        for (name, stages) in ["q", "k", "v"].into_iter().zip(&kv.attributes) {
            let name = format!("{}.{name}_bmm_quantizer", kv.module);
            add(&name, &name, stages)?;
        }
    }
    let _ = writeln!(text, "{} TensorQuantizers found in model", seen.len());
    Ok(text)
}

/// How ModelOpt's classes of quantizers print magnitudes.
#[derive(Clone, Copy)]
enum Notation {
    /// Two digits and an exponent.
    Scientific,
    /// Four digits.
    Fixed,
}

impl Notation {
    /// Weights with a magnitude for each block that are integers or NVFP4 have a class of their own
    /// (`promote_static_block_weight_quantizers` of ModelOpt 0.47).
    fn of_weight(attributes: &Attributes) -> Self {
        let is_static = attributes.block_sizes.as_ref().is_some_and(|blocks| blocks.dynamic != Some(true));
        let scheme = attributes.scheme().ok().flatten();
        let is_promoted =
            matches!(attributes.num_bits, NumBits::Int(_)) || matches!(scheme, Some(Scheme::Nvfp4Static { .. }));
        if attributes.enable && attributes.fake_quant && is_static && is_promoted {
            Self::Fixed
        } else {
            Self::Scientific
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Scientific => "TensorQuantizer",
            Self::Fixed => "StaticBlockScaleQuantizer",
        }
    }

    fn write(self, value: f32) -> String {
        match self {
            Self::Scientific => python(value),
            Self::Fixed => format!("{value:.4}"),
        }
    }
}

/// What stands in the brackets.
fn described(name: &str, attributes: &Attributes, notation: Notation, catalog: &Catalog) -> Result<String> {
    if !attributes.enable {
        return Ok("disabled".to_owned());
    }
    let mut text = String::new();
    let _ = write!(text, "{}{} bit", if attributes.unsigned { "unsigned " } else { "" }, attributes.num_bits);
    text += if attributes.narrow_range { " narrow" } else { "" };
    text += if attributes.fake_quant { " fake" } else { "" };
    match (&attributes.block_sizes, attributes.axis) {
        // One for each token: all axes of the input but the last, of which routed experts get two.
        (Some(blocks), _) if blocks.axes.iter().all(|(_, block)| block.is_none()) => {
            text += if name.contains(".experts.experts.") { " axis=(0,)" } else { " axis=(0, 1)" };
        }
        (Some(blocks), _) => {
            let size = |block: Option<u32>| block.map_or_else(|| "None".to_owned(), |block| block.to_string());
            let mut parts: Vec<String> =
                blocks.axes.iter().map(|(axis, block)| format!("{axis}: {}", size(*block))).collect();
            let kind = |dynamic| if dynamic { "'type': 'dynamic'" } else { "'type': 'static'" };
            parts.extend(blocks.dynamic.map(kind).map(str::to_owned));
            parts.extend(blocks.scale_bits.map(|bits| format!("'scale_bits': {bits}")));
            let _ = write!(text, " block_sizes={{{}}},", parts.join(", "));
        }
        (None, Some(axis)) => {
            let _ = write!(text, " axis={axis}");
        }
        (None, None) => text += " per-tensor",
    }
    let _ = write!(text, " amax={}", amax(name, attributes, notation, catalog)?);
    if let Some(scale) = short(&format!("{name}._pre_quant_scale"), Notation::Scientific, catalog)? {
        let _ = write!(text, " pre_quant_scale={scale}");
    }
    Ok(text + " calibrator=MaxCalibrator quant")
}

fn amax(name: &str, attributes: &Attributes, notation: Notation, catalog: &Catalog) -> Result<String> {
    if matches!(attributes.scheme(), Ok(Some(Scheme::Mx(_)))) {
        return Ok("None".to_owned());
    }
    if attributes.use_constant_amax {
        return Ok("4.48e+02(const)".to_owned());
    }
    Ok(short(&format!("{name}._amax"), notation, catalog)?.unwrap_or_else(|| "dynamic".to_owned()))
}

/// A tensor's only value, or its smallest and largest with their number.
fn short(name: &str, notation: Notation, catalog: &Catalog) -> Result<Option<String>> {
    if !catalog.tensors.contains_key(name) {
        return Ok(None);
    }
    let values = longshore_convert::quantized::state::values(catalog, name)?;
    let smallest = values.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    Ok(Some(match values.as_slice() {
        [value] => notation.write(*value),
        _ => format!("[{}, {}]({})", notation.write(smallest), notation.write(largest), values.len()),
    }))
}

/// Python's `.2e`.
fn python(value: f32) -> String {
    let text = format!("{value:.2e}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    format!("{digits}e{sign}{exponent:0>2}")
}
