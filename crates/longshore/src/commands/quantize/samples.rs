//! A few words from the source and from the result, side by side: a broken quantization shows in them at once.

use crate::cli::quantize::QuantizeArgs;
use crate::cli::run::EngineArgs;
use crate::commands::Answer;
use crate::engine::{Opened, scratch};
use crate::error::UsageError;
use crate::options::Env;
use crate::report::Report;
use anyhow::Result;
use longshore_infer::generate::{GenerateOptions, Token, generate};
use longshore_infer::memory::Demand;
use longshore_infer::sample::{Sampler, Sampling};
use serde::Serialize;
use std::path::Path;

/// The prompts that the reference's script tries after it has quantized.
const PROMPTS: [&str; 2] = ["Hello!", "Born in California, Soyer trained as a"];
/// What stands between prompts, and between references.
const BETWEEN: char = '|';

/// What a prompt was completed to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    prompt: String,
    source: String,
    result: String,
}

/// Generates from both checkpoints; `None` where one has no tokenizer, or has to be read anew for every token.
pub(super) fn run(
    source: &Path,
    result: &Path,
    (engine, args): (&EngineArgs, &QuantizeArgs),
    env: &Env,
    report: &Report,
) -> Result<Option<Vec<Sample>>> {
    let prompts: Vec<String> = match &args.smoke.prompts {
        Some(prompts) => prompts.split(BETWEEN).map(str::to_owned).collect(),
        None => PROMPTS.map(str::to_owned).to_vec(),
    };
    let new = args.smoke.generate_len as usize;
    let Some(before) = texts(source, (&prompts, new), engine, env, report)? else { return Ok(None) };
    let Some(after) = texts(result, (&prompts, new), engine, env, report)? else { return Ok(None) };
    let samples: Vec<Sample> = prompts
        .into_iter()
        .zip(before.into_iter().zip(after))
        .map(|(prompt, (source, result))| Sample { prompt, source, result })
        .collect();
    for sample in &samples {
        report.status("Prompt", &format!("{:?}", sample.prompt));
        report.status("Source", &format!("{:?}", sample.source));
        report.status("Result", &format!("{:?}", sample.result));
    }
    if args.output.reference_output {
        for sample in &samples {
            // As Python prints a list of one text.
            report.data(&format!(
                "['{}']\n",
                sample.result.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n")
            ))?;
        }
    }
    Ok(Some(samples))
}

/// Compares the result's texts with `--references`, of which an empty one asks for nothing.
pub(super) fn check(samples: Option<&[Sample]>, args: &QuantizeArgs, report: &Report) -> Result<Answer> {
    let Some(references) = args.smoke.references.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(Answer::Yes);
    };
    let references: Vec<&str> = references.split(BETWEEN).collect();
    let samples = samples.unwrap_or_default();
    if samples.len() != references.len() {
        return Err(UsageError::References { texts: samples.len(), references: references.len() }.into());
    }
    let mut answer = Answer::Yes;
    for (sample, reference) in samples.iter().zip(references).filter(|(sample, reference)| sample.result != **reference)
    {
        report.note("Differs", &format!("{:?} is not the reference {reference:?}", sample.result));
        answer = Answer::No;
    }
    Ok(answer)
}

/// The greedy completions of the prompts.
fn texts(
    checkpoint: &Path,
    (texts, new): (&[String], usize),
    args: &EngineArgs,
    env: &Env,
    report: &Report,
) -> Result<Option<Vec<String>>> {
    let quiet = report.quietly();
    let opened = Opened::new(checkpoint, args, env, &quiet)?;
    let Some(tokenizer) = &opened.tokenizer else {
        report.note("Skipped", "generating: there is no tokenizer");
        return Ok(None);
    };
    let prompts: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<_, _>>()?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let stop = opened.stop_ids()?;
    let demand = Demand {
        states: prompts.len() as u64,
        state_tokens: (prompts.len() * (longest + new)) as u64,
        prompt_tokens: prompts.iter().map(Vec::len).sum::<usize>() as u64,
        batch_tokens: u64::from(args.batch_tokens),
        logits: prompts.len() as u64,
        decode: true,
    };
    let loaded = opened.load(args, demand, 1, &quiet)?;
    let (resident, layers) = loaded.model.resident_layers();
    if resident < layers {
        let text = format!("generating: {} of {layers} layers would be read for every token", layers - resident);
        report.note("Skipped", &text);
        return Ok(None);
    }
    let Some(tokenizer) = &loaded.tokenizer else { return Ok(None) };
    let options = GenerateOptions {
        max_new: new,
        stop,
        chunk: args.batch_tokens as usize,
        top_logprobs: 0,
        scratch: scratch(args),
        candidates: loaded.model.vocab().min(tokenizer.vocab_size()),
    };
    let greedy = || Sampler::new(Sampling::default());
    let mut samplers = prompts.iter().map(|_| greedy()).collect::<Result<Vec<_>, _>>()?;
    let generated = generate(&loaded.model, &prompts, &options, &mut samplers, &mut |_, _: &Token| true)?;
    let text = |(tokens, _): &(Vec<Token>, _)| {
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        tokenizer.decode(&ids, true)
    };
    Ok(Some(generated.texts.iter().map(text).collect::<Result<_, _>>()?))
}
