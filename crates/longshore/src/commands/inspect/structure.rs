//! `longshore inspect --structure`: the modules of a model, as text and as an object.

use crate::commands::quantize::scheme_name;
use longshore_convert::structure::{Module, Parameter};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A line for each module, the ones inside it below it.
pub(super) fn text(module: &Module) -> String {
    let mut out = String::new();
    add(&mut out, module, 0);
    out
}

fn add(out: &mut String, module: &Module, depth: usize) {
    let indent = "  ".repeat(depth);
    let name = if module.names.is_empty() { String::new() } else { format!("({}): ", ranges(&module.names)) };
    let count = if module.names.len() > 1 { format!("{} x ", module.names.len()) } else { String::new() };
    let parameters = module.parameters.iter().map(parameter).collect::<Vec<_>>().join(", ");
    let gap = if parameters.is_empty() { "" } else { "  " };
    let _ = writeln!(out, "{indent}{name}{count}{}{gap}{parameters}", module.class);
    for (name, schemes) in &module.quantizers {
        let _ = writeln!(out, "{indent}  ({name}): TensorQuantizer  {}", scheme_names(schemes).join(", then "));
    }
    for module in &module.modules {
        add(out, module, depth + 1);
    }
}

/// `weight [32, 64]`, or `weight0-7: 8 x [32, 64]`.
fn parameter(parameter: &Parameter) -> String {
    let Parameter { name, shape, count } = parameter;
    match count {
        None => format!("{name} {shape:?}"),
        Some(count) => format!("{name}0-{}: {count} x {shape:?}", count.saturating_sub(1)),
    }
}

fn scheme_names(schemes: &[longshore_quant::Scheme]) -> Vec<String> {
    schemes.iter().map(|scheme| scheme_name(*scheme)).collect()
}

/// `0, 2, 5-7` of indices in order; other names as they are.
fn ranges(names: &[String]) -> String {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for name in names {
        let Ok(index) = name.parse() else { return names.join(", ") };
        match out.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => out.push((index, index)),
        }
    }
    let range = |(first, last): &(u64, u64)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    out.iter().map(range).collect::<Vec<_>>().join(", ")
}

/// The same facts; nothing is shortened but modules that are alike, which have several names.
pub(super) fn object(module: &Module) -> Value {
    let parameters = module.parameters.iter().map(|p| json!({"name": p.name, "shape": p.shape, "count": p.count}));
    let quantizers =
        module.quantizers.iter().map(|(name, schemes)| json!({"name": name, "schemes": scheme_names(schemes)}));
    json!({
        "names": module.names,
        "class": module.class,
        "parameters": parameters.collect::<Vec<_>>(),
        "quantizers": quantizers.collect::<Vec<_>>(),
        "modules": module.modules.iter().map(object).collect::<Vec<_>>(),
    })
}
