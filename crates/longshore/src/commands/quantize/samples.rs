//! A few words from the source and from the result, side by side: a broken quantization shows in them at once.

use crate::cli::run::EngineArgs;
use crate::engine::{Opened, scratch};
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
/// New tokens of each.
const NEW_TOKENS: usize = 32;

/// What a prompt was completed to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    prompt: &'static str,
    source: String,
    result: String,
}

/// Generates from both checkpoints; `None` where one has no tokenizer, or has to be read anew for every token.
pub(super) fn run(
    source: &Path,
    result: &Path,
    args: &EngineArgs,
    env: &Env,
    report: &Report,
) -> Result<Option<Vec<Sample>>> {
    let Some(before) = texts(source, args, env, report)? else { return Ok(None) };
    let Some(after) = texts(result, args, env, report)? else { return Ok(None) };
    let samples: Vec<Sample> = PROMPTS
        .into_iter()
        .zip(before.into_iter().zip(after))
        .map(|(prompt, (source, result))| Sample { prompt, source, result })
        .collect();
    for sample in &samples {
        report.status("Prompt", &format!("{:?}", sample.prompt));
        report.status("Source", &format!("{:?}", sample.source));
        report.status("Result", &format!("{:?}", sample.result));
    }
    Ok(Some(samples))
}

/// The greedy completions of the prompts.
fn texts(checkpoint: &Path, args: &EngineArgs, env: &Env, report: &Report) -> Result<Option<Vec<String>>> {
    let quiet = report.quietly();
    let opened = Opened::new(checkpoint, args, env, &quiet)?;
    let Some(tokenizer) = &opened.tokenizer else {
        report.note("Skipped", "generating: there is no tokenizer");
        return Ok(None);
    };
    let prompts: Vec<Vec<u32>> = PROMPTS.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<_, _>>()?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let stop = opened.stop_ids()?;
    let demand = Demand {
        states: PROMPTS.len() as u64,
        state_tokens: (PROMPTS.len() * (longest + NEW_TOKENS)) as u64,
        prompt_tokens: prompts.iter().map(Vec::len).sum::<usize>() as u64,
        batch_tokens: u64::from(args.batch_tokens),
        logits: PROMPTS.len() as u64,
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
        max_new: NEW_TOKENS,
        stop,
        chunk: args.batch_tokens as usize,
        top_logprobs: 0,
        scratch: scratch(args),
        candidates: loaded.model.vocab().min(tokenizer.vocab_size()),
    };
    let greedy = || Sampler::new(Sampling::default());
    let mut samplers = PROMPTS.iter().map(|_| greedy()).collect::<Result<Vec<_>, _>>()?;
    let generated = generate(&loaded.model, &prompts, &options, &mut samplers, &mut |_, _: &Token| true)?;
    let text = |(tokens, _): &(Vec<Token>, _)| {
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        tokenizer.decode(&ids, true)
    };
    Ok(Some(generated.texts.iter().map(text).collect::<Result<_, _>>()?))
}
