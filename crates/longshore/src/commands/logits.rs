//! `longshore logits`: what one checkpoint computes, or how two differ, layer by layer where asked.

mod save;

use super::Answer;
use crate::cli::run::{EngineArgs, LogitsArgs, PrecisionName};
use crate::engine::{Opened, precision_name, scratch};
use crate::error::UsageError;
use crate::options::Env;
use crate::prompts::Prompt;
use crate::report::{Report, peak_memory, table};
use anyhow::Result;
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::compare::{Comparison, Difference, PositionDifference, compare};
use longshore_infer::memory::Demand;
use longshore_infer::model::Model;
use longshore_infer::sample::top_logprobs;
use longshore_infer::schedule::Schedule;
use longshore_infer::sweep::{Sweep, SweepOptions};
use serde_json::{Value, json};
use std::sync::Arc;

/// Likely tokens that are shown of one checkpoint.
const SHOWN: usize = 5;

pub(super) fn run(args: &LogitsArgs, env: &Env, report: &Report) -> Result<Answer> {
    let a = Opened::new(&args.a, &args.engine, env, report)?;
    let prompts = prompts(args, &a)?;
    let two = args.b.is_some() || args.precision_b.is_some();
    // Both run in step, so each may take half of the memory.
    let models = if two { 2 } else { 1 };
    let b = match &args.b {
        _ if !two => None,
        b => {
            let engine = EngineArgs { precision: args.precision_b.or(Some(name(a.precision))), ..args.engine.clone() };
            Some(Opened::new(b.as_ref().unwrap_or(&args.a), &engine, env, report)?)
        }
    };
    let precisions = [Some(a.precision), b.as_ref().map(|b| b.precision)];
    let options = SweepOptions { batch_tokens: args.engine.batch_tokens as usize, scratch: scratch(&args.engine) };
    let a = a.load(&args.engine, demand(args, &prompts), models, report)?.model;
    if let Some(path) = &args.save {
        save::save(&a, &prompts, &options, path)?;
        report.status("Saved", &path.display().to_string());
    }
    match b {
        Some(b) => {
            let b = b.load(&args.engine, demand(args, &prompts), models, report)?.model;
            differences(args, [&a, &b], precisions, &prompts, &options, report)
        }
        None => likely(&a, &prompts, &options, report),
    }
}

fn name(precision: Precision) -> PrecisionName {
    match precision {
        Precision::Float32 => PrecisionName::F32,
        Precision::Bfloat16 => PrecisionName::Bf16,
    }
}

/// The prompts that are given, else three of token ids that any vocabulary has.
fn prompts(args: &LogitsArgs, opened: &Opened) -> Result<Vec<Vec<u32>>> {
    let given = args.prompt.is_some() || args.prompts.prompt_ids.is_some() || args.prompts.prompt_file.is_some();
    if !given {
        return Ok(built_in(opened.source.model.config.vocab_size));
    }
    let prompts = args.prompts.read(args.prompt.as_ref())?.ok_or(UsageError::NoPrompt)?;
    prompts
        .into_iter()
        .map(|prompt| match prompt {
            Prompt::Ids(ids) => Ok(ids),
            Prompt::Text(text) => args.prompts.encode(opened.tokenizer()?, &text),
            Prompt::Chat(mut conversation) => {
                conversation.next_turn();
                let text = conversation.render(&opened.template()?, &args.prompts.variables())?;
                Ok(opened.tokenizer()?.encode(&text, false)?)
            }
        })
        .collect()
}

/// 5, 23 and 40 tokens by three formulas: those of the reference outputs that the tests compare with.
fn built_in(vocab: u64) -> Vec<Vec<u32>> {
    let rules: [fn(u64) -> u64; 3] =
        [|i| [1, 17, 42, 99, 7][(i % 5) as usize] + i / 5, |i| i * 37 + 11, |i| i * i * 5 + 3 * i + 2];
    let lengths = [5, 23, 40];
    lengths.iter().zip(rules).map(|(&len, rule)| (0..len).map(|i| (rule(i) % vocab) as u32).collect()).collect()
}

fn demand(args: &LogitsArgs, prompts: &[Vec<u32>]) -> Demand {
    Schedule::whole(prompts, args.engine.batch_tokens as usize).demand(32)
}

/// The likeliest tokens after each prompt.
fn likely(model: &Arc<Model<Cpu>>, prompts: &[Vec<u32>], options: &SweepOptions, report: &Report) -> Result<Answer> {
    let mut sweep = Sweep::new(model, prompts, options, false)?;
    sweep.run(&mut ())?;
    let spilled = sweep.spilled_bytes();
    let mut tops = Vec::new();
    let last = |prompt: usize, position: usize| position + 1 == prompts[prompt].len();
    sweep.each_logits(prompts.len().min(32), last, |prompt, _, row| tops.push((prompt, top_logprobs(row, SHOWN))))?;
    if report.is_json() {
        let entry = |(id, logprob): &(u32, f32)| json!({"id": id, "logprob": logprob});
        let prompts: Vec<Value> = tops
            .iter()
            .map(|(p, top)| json!({"ids": prompts[*p], "next": top.iter().map(entry).collect::<Vec<_>>()}))
            .collect();
        let fields = json!({
            "prompts": prompts,
            "peak_memory": peak_memory(),
            "weight_bytes_read": model.source().bytes_read(),
            "spilled_bytes": spilled,
        });
        report.json("logits", &fields)?;
        return Ok(Answer::Yes);
    }
    let mut rows = vec![vec!["prompt".to_owned(), "tokens".to_owned(), "next token: log probability".to_owned()]];
    for (p, top) in &tops {
        let top: Vec<String> = top.iter().map(|(id, logprob)| format!("{id}: {logprob:.4}")).collect();
        rows.push(vec![p.to_string(), prompts[*p].len().to_string(), top.join("  ")]);
    }
    report.data(&table(&rows, &[0, 1]))?;
    Ok(Answer::Yes)
}

fn differences(
    args: &LogitsArgs,
    models: [&Arc<Model<Cpu>>; 2],
    precisions: [Option<Precision>; 2],
    prompts: &[Vec<u32>],
    options: &SweepOptions,
    report: &Report,
) -> Result<Answer> {
    let layers = models[0].n_layers();
    let mut after_layer = |layer: usize| report.detail("Layer", &format!("{} of {layers}", layer + 1));
    let result = compare(models, prompts, options, args.per_layer, &mut after_layer)?;
    let worst = result.prompts.iter().map(|p| p.logits.max / p.logits.deviation.max(1e-30)).fold(0.0, f64::max);
    let within = args.tolerance.is_none_or(|tolerance| worst <= f64::from(tolerance));
    if report.is_json() {
        report.json("logits", &as_json(&result, precisions, worst, within))?;
    } else {
        if args.per_layer {
            report.data(&layer_table(&result))?;
            report.data("\n")?;
        }
        report.data(&prompt_table(&result))?;
    }
    let text = format!("largest difference {worst:.2e} standard deviations of the logits");
    if within {
        report.status("Compared", &text);
        return Ok(Answer::Yes);
    }
    report.note("Differs", &text);
    Ok(Answer::No)
}

fn layer_table(result: &Comparison) -> String {
    let head = ["layer", "kind", "max |diff|", "mean |diff|", "std", "max / std", "rerouted"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for l in &result.layers {
        let routes = l.routes.map_or_else(String::new, |(other, all)| format!("{other} of {all}"));
        let [max, mean, std, relative] = numbers(&l.hidden);
        rows.push(vec![l.layer.to_string(), l.kind.to_string(), max, mean, std, relative, routes]);
    }
    table(&rows, &[0, 2, 3, 4, 5, 6])
}

fn prompt_table(result: &Comparison) -> String {
    let head = ["prompt", "tokens", "max |diff|", "mean |diff|", "std", "max / std", "KL mean", "KL max", "same top"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (i, p) in result.prompts.iter().enumerate() {
        let [max, mean, std, relative] = numbers(&p.logits);
        let (kl_mean, kl_max) = (format!("{:.2e}", p.kl_mean), format!("{:.2e}", p.kl_max));
        let same = format!("{} of {}", p.same_top, p.positions);
        rows.push(vec![i.to_string(), p.positions.to_string(), max, mean, std, relative, kl_mean, kl_max, same]);
    }
    table(&rows, &[0, 1, 2, 3, 4, 5, 6, 7, 8])
}

fn numbers(d: &Difference) -> [String; 4] {
    let relative = d.max / d.deviation.max(1e-30);
    [format!("{:.2e}", d.max), format!("{:.2e}", d.mean), format!("{:.3}", d.deviation), format!("{relative:.2e}")]
}

fn as_json(result: &Comparison, precisions: [Option<Precision>; 2], worst: f64, within: bool) -> Value {
    let difference = |d: &Difference| json!({"max": d.max, "mean": d.mean, "deviation": d.deviation});
    let layers: Vec<Value> = result
        .layers
        .iter()
        .map(|l| {
            let rerouted = l.routes.map(|r| r.0);
            json!({"layer": l.layer, "kind": l.kind, "hidden": difference(&l.hidden), "rerouted": rerouted})
        })
        .collect();
    let prompts: Vec<Value> = result
        .prompts
        .iter()
        .map(|p| {
            let each =
                |p: &PositionDifference| json!({"max": p.max, "mean": p.mean, "kl": p.kl, "same_top": p.same_top});
            json!({"positions": p.positions, "logits": difference(&p.logits), "kl_mean": p.kl_mean,
                   "kl_max": p.kl_max, "same_top": p.same_top, "each": p.each.iter().map(each).collect::<Vec<_>>()})
        })
        .collect();
    json!({
        "precisions": precisions.map(|p| p.map(precision_name)),
        "largest_in_deviations": worst,
        "within_tolerance": within,
        "layers": layers,
        "prompts": prompts,
        "peak_memory": peak_memory(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_prompts_are_those_of_the_references() {
        let prompts = built_in(256);
        assert_eq!(prompts[0], [1, 17, 42, 99, 7]);
        assert_eq!(prompts[1][..4], [11, 48, 85, 122]);
        assert_eq!(prompts[2][..6], [2, 10, 28, 56, 94, 142]);
        assert_eq!([prompts[1].len(), prompts[2].len()], [23, 40]);
    }
}
