//! From the values of a recipe to entries, attributes and algorithms, with ModelOpt's checks.

use super::algorithm::Algorithm;
use super::yaml::{Node, Value};
use super::{ConfigError, Entry, Plain, QuantConfig};
use crate::{Attributes, Bias, BlockSizes, NumBits};

type Result<T> = std::result::Result<T, ConfigError>;

/// A config: `quant_cfg`, `algorithm`, `effective_bits`.
pub(super) fn config(node: &Node, name: &str) -> Result<QuantConfig> {
    let mut config = QuantConfig {
        name: name.to_owned(),
        entries: vec![],
        algorithm: vec![],
        stated_algorithm: Plain::str("max"),
        effective_bits: None,
    };
    let mut algorithm_at = node;
    let mut quant_cfg = None;
    for (key, value) in fields(node, "a config")? {
        match text(key, "a field's name")? {
            "quant_cfg" => quant_cfg = Some(entries(value)?),
            "algorithm" => {
                algorithm_at = value;
                config.stated_algorithm = plain(value);
            }
            "effective_bits" => config.effective_bits = effective_bits(value)?,
            other => return Err(key.at.error(unknown(other, "a config", "quant_cfg, algorithm, effective_bits"))),
        }
    }
    config.entries = quant_cfg.ok_or_else(|| node.at.error("`quant_cfg` is missing"))?;
    config.algorithm = Algorithm::list(&config.stated_algorithm).map_err(|e| algorithm_at.at.error(e.to_string()))?;
    Ok(config)
}

fn entries(node: &Node) -> Result<Vec<Entry>> {
    match &node.value {
        Value::List(items) => items.iter().map(entry).collect(),
        Value::Map(_) => {
            Err(node.at.error("quant_cfg: the old form, a mapping, is not supported; write a list of entries"))
        }
        _ => Err(node.at.error("quant_cfg: not a list")),
    }
}

fn entry(node: &Node) -> Result<Entry> {
    let mut name = None;
    let mut parent_class = None;
    let mut enable = None;
    let mut cfg_at = None;
    for (key, value) in fields(node, "an entry of quant_cfg")? {
        match text(key, "a field's name")? {
            "quantizer_name" => name = Some(text(value, "quantizer_name")?.to_owned()),
            "parent_class" if matches!(value.value, Value::Null) => {}
            "parent_class" => parent_class = Some(text(value, "parent_class")?.to_owned()),
            "enable" => enable = Some(boolean(value, "enable")?),
            "cfg" => cfg_at = Some(value),
            other => {
                let known = "quantizer_name, parent_class, cfg, enable";
                return Err(key.at.error(unknown(other, "an entry of quant_cfg", known)));
            }
        }
    }
    let quantizer_name = name.ok_or_else(|| node.at.error("an entry of quant_cfg has no `quantizer_name`"))?;
    if cfg_at.is_none() && enable.is_none() {
        return Err(node.at.error(format!("`{quantizer_name}`: an entry needs `cfg`, `enable` or both")));
    }
    let is_empty = |node: &Node| matches!(&node.value, Value::Map(fields) if fields.is_empty());
    let cfg = match cfg_at.map(|node| (node, &node.value)) {
        None | Some((_, Value::Null)) => vec![],
        Some((node, value)) => {
            let empty = match value {
                Value::List(items) => items.iter().all(is_empty),
                _ => is_empty(node),
            };
            match value {
                _ if empty && enable == Some(false) => vec![],
                _ if empty => {
                    let advice = "leave it out to keep the attributes";
                    return Err(node.at.error(format!("`{quantizer_name}`: `cfg` is empty; {advice}")));
                }
                // A list of one would make a sequence of one.
                Value::List(items) if items.len() == 1 => {
                    return Err(node.at.error(format!("`{quantizer_name}`: a sequence needs two or more `cfg`")));
                }
                Value::List(items) => items.iter().map(attributes).collect::<Result<_>>()?,
                _ => vec![attributes(node)?],
            }
        }
    };
    Ok(Entry { quantizer_name, parent_class, cfg, enable: enable.unwrap_or(true) })
}

/// The attributes of a quantizer.
fn attributes(node: &Node) -> Result<Attributes> {
    let mut a = Attributes::default();
    let all = fields(node, "cfg")?;
    if let [(key, value)] = all
        && key.is("enable")
        && matches!(value.value, Value::Bool(true))
    {
        return Err(node.at.error("cfg: `enable: true` alone says nothing"));
    }
    for (key, value) in all {
        let name = text(key, "a field's name")?;
        let only = |allowed: bool| {
            if allowed { Ok(()) } else { Err(value.at.error(format!("{name}: this value is not supported"))) }
        };
        let null = matches!(value.value, Value::Null);
        match name {
            "enable" => a.enable = boolean(value, name)?,
            "num_bits" => a.num_bits = num_bits(value, name)?,
            "effective_bits" => a.effective_bits = effective_bits(value)?,
            "axis" => a.axis = if null { None } else { Some(axis(value, name)?) },
            "fake_quant" => a.fake_quant = boolean(value, name)?,
            "unsigned" => a.unsigned = boolean(value, name)?,
            "narrow_range" => a.narrow_range = boolean(value, name)?,
            "learn_amax" => only(!boolean(value, name)?)?,
            "type" => a.dynamic = is_dynamic(value, name)?,
            "block_sizes" => a.block_sizes = if null { None } else { Some(block_sizes(value)?) },
            "bias" => a.bias = if null { None } else { Some(bias(value)?) },
            "trt_high_precision_dtype" => only(value.is("Float"))?,
            "calibrator" => {
                only(value.is("max") || value.is("histogram"))?;
                text(value, name)?.clone_into(&mut a.calibrator);
            }
            "rotate" => a.rotate = boolean(value, name)?,
            "pass_through_bwd" => a.pass_through_bwd = boolean(value, name)?,
            "backend" | "backend_extra_args" => only(null)?,
            "use_constant_amax" => a.use_constant_amax = boolean(value, name)?,
            "constant_amax" if null => a.constant_amax = None,
            "constant_amax" => {
                a.constant_amax = Some(
                    number(value)
                        .filter(|n| *n > 0.0)
                        .ok_or_else(|| value.at.error("constant_amax: not a number above 0"))?,
                );
            }
            other => {
                return Err(key.at.error(format!("cfg: a quantizer has no attribute `{other}`")));
            }
        }
    }
    check(&a).map_err(|what| node.at.error(format!("cfg: {what}")))?;
    Ok(a)
}

/// What attributes exclude each other.
fn check(a: &Attributes) -> std::result::Result<(), &'static str> {
    let dynamic_blocks = a.block_sizes.as_ref().is_some_and(|blocks| blocks.dynamic == Some(true));
    if let NumBits::Float(exponent, mantissa) = a.num_bits {
        match (exponent, mantissa) {
            (4, 3) | (2, 1) => {}
            (5 | 3 | 1, 2) | (2, 3) if dynamic_blocks => {}
            (5 | 3 | 1, 2) | (2, 3) => return Err("num_bits: this format needs block_sizes of type dynamic"),
            _ => return Err("num_bits: not one of e4m3, e5m2, e3m2, e2m3, e2m1, e1m2"),
        }
    }
    if a.axis.is_some() && a.block_sizes.is_some() {
        return Err("axis and block_sizes exclude each other");
    }
    if dynamic_blocks && a.block_sizes.as_ref().is_some_and(|blocks| blocks.axes.len() != 1) {
        return Err("block_sizes: blocks of type dynamic have one axis");
    }
    if a.use_constant_amax && a.constant_amax.is_some() {
        return Err("use_constant_amax and constant_amax exclude each other");
    }
    Ok(())
}

fn block_sizes(node: &Node) -> Result<BlockSizes> {
    let mut blocks = BlockSizes::default();
    for (key, value) in fields(node, "block_sizes")? {
        match &key.value {
            Value::Int(_) => {
                let block = match &value.value {
                    Value::Null => None,
                    Value::Int(n) => Some(
                        u32::try_from(*n)
                            .ok()
                            .filter(|n| *n > 0)
                            .ok_or_else(|| value.at.error(format!("block_sizes: {n} is no size of a block")))?,
                    ),
                    _ => return Err(value.at.error("block_sizes: a block's size is a whole number")),
                };
                blocks.axes.push((axis(key, "block_sizes")?, block));
            }
            Value::Text(name) if name == "type" => blocks.dynamic = Some(is_dynamic(value, "block_sizes.type")?),
            Value::Text(name) if name == "scale_bits" => {
                blocks.scale_bits = Some(num_bits(value, "block_sizes.scale_bits")?);
            }
            Value::Text(name) if name == "four_over_six" => {
                let on = match value.value {
                    Value::Int(n @ (0 | 1)) => n == 1,
                    _ => boolean(value, "block_sizes.four_over_six")?,
                };
                blocks.four_over_six = Some(on);
            }
            _ => return Err(key.at.error("block_sizes: neither an axis nor one of type, scale_bits, four_over_six")),
        }
    }
    Ok(blocks)
}

fn bias(node: &Node) -> Result<Bias> {
    let mut bias = Bias::default();
    for (key, value) in fields(node, "bias")? {
        match &key.value {
            Value::Int(_) if matches!(value.value, Value::Null) => bias.axes.push(axis(key, "bias")?),
            Value::Text(name) if name == "type" => bias.dynamic = Some(is_dynamic(value, "bias.type")?),
            Value::Text(name) if name == "method" && (value.is("mean") || value.is("max_min")) => {
                bias.method = Some(text(value, "bias.method")?.to_owned());
            }
            _ => return Err(key.at.error("bias: neither an axis without a value nor one of type, method")),
        }
    }
    if bias.axes.is_empty() { Err(node.at.error("bias: no axis")) } else { Ok(bias) }
}

/// An integer, `e4m3`, or a list of two.
fn num_bits(node: &Node, name: &str) -> Result<NumBits> {
    let wrong = || node.at.error(format!("{name}: neither a number of bits nor a format such as e4m3"));
    match &node.value {
        Value::Int(n) => u8::try_from(*n).ok().filter(|n| *n > 0).map(NumBits::Int).ok_or_else(wrong),
        Value::Text(text) => {
            let (exponent, mantissa) =
                text.strip_prefix(['e', 'E']).and_then(|rest| rest.split_once(['m', 'M'])).ok_or_else(wrong)?;
            let digits = |text: &str| text.parse().map_err(|_| wrong());
            Ok(NumBits::Float(digits(exponent)?, digits(mantissa)?))
        }
        Value::List(items) => match items.as_slice() {
            [Node { value: Value::Int(exponent), .. }, Node { value: Value::Int(mantissa), .. }] => {
                let small = |n: &i64| u8::try_from(*n).map_err(|_| wrong());
                Ok(NumBits::Float(small(exponent)?, small(mantissa)?))
            }
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

fn effective_bits(node: &Node) -> Result<Option<f64>> {
    match (&node.value, number(node)) {
        (Value::Null, _) => Ok(None),
        (_, Some(bits)) if bits > 0.0 && bits <= 16.0 => Ok(Some(bits)),
        _ => Err(node.at.error("effective_bits: not a number above 0, at most 16")),
    }
}

fn axis(node: &Node, name: &str) -> Result<i32> {
    let axis = if let Value::Int(n) = node.value { i32::try_from(n).ok() } else { None };
    axis.filter(|axis| axis.abs() < 16).ok_or_else(|| node.at.error(format!("{name}: not an axis")))
}

fn is_dynamic(node: &Node, name: &str) -> Result<bool> {
    match text(node, name)? {
        "dynamic" => Ok(true),
        "static" => Ok(false),
        other => Err(node.at.error(format!("{name}: `{other}` is neither static nor dynamic"))),
    }
}

pub(super) fn fields<'a>(node: &'a Node, what: &str) -> Result<&'a [(Node, Node)]> {
    match &node.value {
        Value::Map(fields) => Ok(fields),
        _ => Err(node.at.error(format!("{what}: not a mapping"))),
    }
}

pub(super) fn text<'a>(node: &'a Node, name: &str) -> Result<&'a str> {
    match &node.value {
        Value::Text(text) => Ok(text),
        _ => Err(node.at.error(format!("{name}: not a text"))),
    }
}

fn boolean(node: &Node, name: &str) -> Result<bool> {
    match node.value {
        Value::Bool(value) => Ok(value),
        _ => Err(node.at.error(format!("{name}: neither true nor false"))),
    }
}

fn number(node: &Node) -> Option<f64> {
    match node.value {
        Value::Int(n) => Some(n as f64),
        Value::Float(n) => Some(n),
        _ => None,
    }
}

fn unknown(field: &str, what: &str, known: &str) -> String {
    format!("{what} has no field `{field}`: {known}")
}

/// The value as Python holds it.
pub(super) fn plain(node: &Node) -> Plain {
    match &node.value {
        Value::Null => Plain::None,
        Value::Bool(value) => Plain::Bool(*value),
        Value::Int(value) => Plain::Int(*value),
        Value::Float(value) => Plain::Float(*value),
        Value::Text(value) => Plain::str(value),
        Value::List(items) => Plain::List(items.iter().map(plain).collect()),
        Value::Map(fields) => Plain::Dict(fields.iter().map(|(key, value)| (plain(key), plain(value))).collect()),
    }
}
