//! Every quantizer of a result in a line, as ModelOpt's `print_quant_summary` lists those of a model.

use anyhow::Result;
use longshore_ckpt::Catalog;
use longshore_convert::quantized::Quantization;
use longshore_quant::Attributes;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// The quantizers in the order of the layers, and how many there are. Magnitudes are those that the result has stored;
/// Hugging Face folders store scales instead, so that theirs are not shown.
pub(super) fn summary(quantization: &Quantization, result: &Path) -> Result<String> {
    let catalog = Catalog::open(result)?;
    let (mut text, mut seen) = (String::new(), BTreeSet::new());
    let mut add = |name: &str, stages: &[Attributes]| -> Result<()> {
        for (at, attributes) in stages.iter().enumerate() {
            let stage = if stages.len() > 1 { format!("{name}.{at}") } else { name.to_owned() };
            // Grouped experts share the one of their inputs.
            if seen.insert(stage.clone()) {
                let _ = writeln!(text, "{stage:80} TensorQuantizer({})", described(&stage, attributes, &catalog)?);
            }
        }
        Ok(())
    };
    for q in &quantization.linears {
        let module = &q.linear.module;
        add(&format!("{}.input_quantizer", quantization.input_module(&q.linear)), &q.input)?;
        add(&format!("{module}.weight_quantizer"), &q.weight)?;
        add(&format!("{module}.output_quantizer"), &q.output)?;
    }
    for kv in &quantization.kv {
        for (name, stages) in ["q", "k", "v"].into_iter().zip(&kv.attributes) {
            add(&format!("{}.{name}_bmm_quantizer", kv.module), stages)?;
        }
    }
    let _ = writeln!(text, "{} TensorQuantizers found in model", seen.len());
    Ok(text)
}

/// What stands in the brackets.
fn described(name: &str, attributes: &Attributes, catalog: &Catalog) -> Result<String> {
    if !attributes.enable {
        return Ok("disabled".to_owned());
    }
    let mut text = String::new();
    let _ = write!(text, "{}{} bit", if attributes.unsigned { "unsigned " } else { "" }, attributes.num_bits);
    text += if attributes.narrow_range { " narrow" } else { "" };
    text += if attributes.fake_quant { " fake" } else { "" };
    match (&attributes.block_sizes, attributes.axis) {
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
    let _ = write!(text, " amax={}", amax(name, attributes, catalog)?);
    if let Some(scale) = short(&format!("{name}._pre_quant_scale"), catalog)? {
        let _ = write!(text, " pre_quant_scale={scale}");
    }
    Ok(text + " quant")
}

fn amax(name: &str, attributes: &Attributes, catalog: &Catalog) -> Result<String> {
    if attributes.use_constant_amax {
        return Ok("4.48e+02(const)".to_owned());
    }
    Ok(short(&format!("{name}._amax"), catalog)?.unwrap_or_else(|| "dynamic".to_owned()))
}

/// A tensor's only value, or its smallest and largest with their number.
fn short(name: &str, catalog: &Catalog) -> Result<Option<String>> {
    if !catalog.tensors.contains_key(name) {
        return Ok(None);
    }
    let values = longshore_convert::quantized::state::values(catalog, name)?;
    let smallest = values.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    Ok(Some(match values.as_slice() {
        [value] => python(*value),
        _ => format!("[{}, {}]({})", python(smallest), python(largest), values.len()),
    }))
}

/// Python's `.2e`.
fn python(value: f32) -> String {
    let text = format!("{value:.2e}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    format!("{digits}e{sign}{exponent:0>2}")
}
