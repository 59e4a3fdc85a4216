//! What `quantize` says: the list of configs, the plan, what every layer gets.

use super::Output;
use super::config::Origin;
use crate::commands::{Answer, write};
use crate::report::{Report, table};
use crate::units::counted;
use anyhow::Result;
use longshore_convert::Plan;
use longshore_convert::quantized::{QuantLinear, Quantization};
use longshore_quant::config::{QuantConfig, built_ins, choices};
use longshore_quant::{Granularity, MxElement, Scheme};
use serde_json::{Value, json};

/// The configs that have a name and the recipes that need no file, with what they do.
pub(super) fn list(report: &Report) -> Result<Answer> {
    let mut rows = vec![["name", "short", "weights", "inputs", "algorithm", ""].map(str::to_owned).to_vec()];
    let mut configs = Vec::new();
    for choice in choices() {
        let config = choice.config()?;
        let implemented = config.implemented().is_ok();
        let row = [
            choice.name.to_owned(),
            choice.short(),
            formats(&config, "weight_quantizer"),
            formats(&config, if choice.kv_cache { "bmm_quantizer" } else { "input_quantizer" }),
            algorithm(&config),
            note(implemented),
        ];
        configs.push(json!({
            "name": row[0], "short": row[1], "weights": row[2], "inputs": row[3], "algorithm": row[4],
            "kv_cache": choice.kv_cache, "implemented": implemented,
        }));
        rows.push(row.to_vec());
    }
    let mut recipe_rows =
        vec![["built-in recipe", "weights", "inputs", "keys, values", "algorithm", ""].map(str::to_owned).to_vec()];
    let mut recipes = Vec::new();
    for recipe in built_ins() {
        let config = recipe.config()?;
        let implemented = config.implemented().is_ok();
        let row = [
            recipe.name.to_owned(),
            formats(&config, "weight_quantizer"),
            formats(&config, "input_quantizer"),
            formats(&config, "bmm_quantizer"),
            algorithm(&config),
            note(implemented),
        ];
        recipes.push(json!({
            "name": row[0], "older_names": recipe.older, "weights": row[1], "inputs": row[2], "kv_cache": row[3],
            "algorithm": row[4], "implemented": implemented,
        }));
        recipe_rows.push(row.to_vec());
    }
    if report.is_json() {
        report.json("quantize", &json!({ "configs": configs, "recipes": recipes }))?;
    } else {
        report.data(&format!("{}\n{}", table(&rows, &[]), table(&recipe_rows, &[])))?;
    }
    Ok(Answer::Yes)
}

fn note(implemented: bool) -> String {
    if implemented { String::new() } else { "not implemented".to_owned() }
}

/// What a config's entries turn the quantizers of a role into.
fn formats(config: &QuantConfig, role: &str) -> String {
    let mut found: Vec<String> = Vec::new();
    for entry in config.entries.iter().filter(|e| e.enable && e.quantizer_name.contains(role) && !e.cfg.is_empty()) {
        let stages: Vec<String> = entry.cfg.iter().filter_map(|a| a.scheme().ok().flatten()).map(scheme_name).collect();
        let text = if stages.is_empty() { "unsupported".to_owned() } else { stages.join(" then ") };
        if !found.contains(&text) {
            found.push(text);
        }
    }
    if found.is_empty() { "-".to_owned() } else { found.join(", ") }
}

fn algorithm(config: &QuantConfig) -> String {
    let names: Vec<&str> = config.algorithm.iter().map(longshore_quant::config::Algorithm::name).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

/// A scheme in a word or two.
pub(in crate::commands) fn scheme_name(scheme: Scheme) -> String {
    let granularity = |g: Granularity| match g {
        Granularity::Tensor => String::new(),
        Granularity::Channel => "/channel".to_owned(),
        Granularity::Token => "/token".to_owned(),
        Granularity::Square(n) => format!("/{n}x{n}"),
    };
    match scheme {
        Scheme::Fp8(g) => format!("fp8{}", granularity(g)),
        Scheme::Int8(g) => format!("int8{}", granularity(g)),
        Scheme::Int4 { block } => format!("int4/{block}"),
        Scheme::Nvfp4 { block } => format!("nvfp4/{block}"),
        Scheme::Nvfp4Static { four_over_six: false } => "nvfp4-static/16".to_owned(),
        Scheme::Nvfp4Static { four_over_six: true } => "nvfp4-4o6/16".to_owned(),
        Scheme::Mx(element) => match element {
            MxElement::E4m3 => "mxfp8",
            MxElement::E3m2 => "mxfp6",
            MxElement::E2m3 => "mxfp6-e2m3",
            MxElement::E2m1 => "mxfp4",
            MxElement::Int8 => "mxint8",
        }
        .to_owned(),
    }
}

/// The config, the source and the outputs.
pub(super) fn say_plan(
    config: &QuantConfig,
    recipe: Option<&Origin>,
    quantization: &Quantization,
    plans: &[Plan],
    jobs: &[Output],
    report: &Report,
) {
    for (i, (plan, job)) in plans.iter().zip(jobs).enumerate() {
        if i == 0 {
            report.status("Source", &write::source_line(plan.summary(), &job.paths));
        }
        report.status("Target", &write::target_line(plan.summary(), &job.paths, &job.options));
        for note in &plan.summary().notes {
            report.note(write::note_word(note.kind), &note.text);
        }
    }
    if let Some(recipe) = recipe {
        report.status("Recipe", &recipe.describe());
    }
    let quantized = quantization.linears.iter().filter(|q| q.is_quantized()).count() as u64;
    let all = quantization.linears.len() as u64;
    let of = counted(all, "linear");
    report.status("Config", &format!("{}: {quantized} of {of} quantized{}", config.name, kv_text(quantization)));
    for warning in &quantization.warnings {
        report.note("Warning", warning);
    }
}

fn kv_text(quantization: &Quantization) -> String {
    let first = quantization.kv.iter().find_map(|kv| kv.schemes[1]);
    first.map(|scheme| format!(", keys and values {}", scheme_name(scheme))).unwrap_or_default()
}

/// What every linear gets.
pub(super) fn dry_run(quantization: &Quantization, mut fields: Value, report: &Report) -> Result<Answer> {
    let weight = |q: &QuantLinear| {
        let names: Vec<String> = q.weight_schemes.iter().map(|s| scheme_name(*s)).collect();
        if names.is_empty() { "-".to_owned() } else { names.join(" then ") }
    };
    let input = |q: &QuantLinear| q.input_scheme.map_or_else(|| "-".to_owned(), scheme_name);
    let mut rows = vec![["linear", "weight", "input", "shape"].map(str::to_owned).to_vec()];
    // Experts that are alike share a line.
    let mut last: Option<(String, usize)> = None;
    for q in &quantization.linears {
        let name = match q.linear.expert {
            Some(_) => q.linear.grouped_module().replace(".experts.experts.", ".experts.*."),
            None => q.linear.module.clone(),
        };
        let shape = format!("{} x {}", q.linear.rows, q.linear.cols);
        let row = vec![name.clone(), weight(q), input(q), shape];
        match &mut last {
            Some((before, count)) if *before == name && rows.last().is_some_and(|r| r[1..3] == row[1..3]) => {
                *count += 1;
                if let Some(previous) = rows.last_mut() {
                    previous[3] = format!("{count} of {}", row[3]);
                }
            }
            _ => {
                rows.push(row);
                last = Some((name, 1));
            }
        }
    }
    if report.is_json() {
        let linears: Vec<Value> = quantization
            .linears
            .iter()
            .map(|q| json!({"module": q.linear.module, "hf": q.linear.hf, "weight": weight(q), "input": input(q)}))
            .collect();
        fields["linears"] = json!(linears);
        report.json("quantize", &fields)?;
    } else {
        report.data(&table(&rows, &[]))?;
    }
    Ok(Answer::Yes)
}
