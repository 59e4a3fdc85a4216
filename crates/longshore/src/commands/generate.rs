//! `longshore generate`: completes prompts. Tokens go to stdout, everything else to stderr.

use super::Answer;
use crate::cli::run::GenerateArgs;
use crate::engine::{Loaded, Opened, scratch, with_tokenizer};
use crate::error::UsageError;
use crate::extra_args::Job;
use crate::options::{Env, path};
use crate::prompts::Prompt;
use crate::report::{Report, peak_memory};
use crate::units::{bytes, count, counted};
use anyhow::{Context, Result};
use longshore_infer::chat::ChatTemplate;
use longshore_infer::generate::{Finish, GenerateOptions, Generated, Token, generate, generate_with_guesses};
use longshore_infer::memory::Demand;
use longshore_infer::mtp::Mtp;
use longshore_infer::sample::{Sampler, Sampling};
use longshore_infer::tokenizer::{TextStream, Tokenizer};
use serde_json::{Map, Value, json};

pub(super) fn run(args: &GenerateArgs, env: &Env, report: &Report) -> Result<Answer> {
    let checkpoint = path(args.checkpoint.as_ref(), env, &["MLM_MODEL_CKPT", "HF_MODEL_CKPT"], "CKPT")?;
    Sampler::new(sampling(args, 0))?;
    let prompts = args.prompts.read(args.prompt.as_ref().or(args.text.as_ref()))?.ok_or(UsageError::NoPrompt)?;
    let engine = with_tokenizer(&args.engine, &checkpoint, env, report)?;
    let opened = Opened::new(&checkpoint.value, &engine, env, report)?;
    opened.check_arguments(env, Job::Generate, report)?;
    let template = prompts.iter().any(|p| matches!(p, Prompt::Chat(_))).then(|| opened.template()).transpose()?;
    // A prompt's random numbers are its own: they do not depend on the prompts before it, or on the batch.
    let text = |(i, prompt)| Ok(Text::new(prompt, Sampler::new(sampling(args, i))?));
    let mut texts: Vec<Text> = (0..).zip(prompts).map(text).collect::<Result<_>>()?;
    for (i, text) in texts.iter_mut().enumerate() {
        text.next_turn(args, opened.tokenizer.as_ref(), template.as_ref(), &opened)?;
        text.ids.as_ref().map_or(Ok(()), |ids| opened.check_ids(i, ids))?;
    }
    let demand = demand(args, &texts);
    let stop = if args.ignore_eos { Vec::new() } else { opened.stop_ids()? };
    let precision = opened.precision;
    let loaded = opened.load(&args.engine, demand, 1, report)?;
    let mtp = args.mtp.then(|| Mtp::load(&loaded.model)).transpose()?;
    let rows = loaded.real_rows()?;
    let candidates = loaded.tokenizer.as_ref().map_or(rows, |t| rows.min(t.vocab_size()));
    let options = GenerateOptions {
        max_new: args.max_new as usize,
        stop,
        chunk: args.engine.batch_tokens as usize,
        top_logprobs: args.top_logprobs as usize,
        scratch: scratch(&args.engine),
        candidates,
    };

    let (mut total, mut unlikely) = (Generated::default(), 0);
    let several = texts.len() > 1 || texts.iter().any(|text| text.turns_left() > 0);
    for group in texts.chunks_mut(usize::from(args.batch)) {
        while group.iter().any(|text| text.ids.is_some()) {
            let asked: Vec<usize> = (0..group.len()).filter(|&i| group[i].ids.is_some()).collect();
            let ids: Vec<Vec<u32>> = asked.iter().filter_map(|&i| group[i].ids.take()).collect();
            if args.reference_output {
                for &i in &asked {
                    report.text(&format!("{}\n", group[i].read_as))?;
                }
            }
            let mut printer = Printer::new(report, &loaded, args, ids.len() == 1);
            let mut on_token = |prompt: usize, token: &Token| printer.token(prompt, token);
            let generated = match &mtp {
                Some(mtp) => generate_with_guesses(&loaded.model, mtp, &ids[0], &options, &mut on_token),
                None => {
                    let mut samplers: Vec<Sampler> = asked.iter().filter_map(|&i| group[i].sampler.take()).collect();
                    let generated = generate(&loaded.model, &ids, &options, &mut samplers, &mut on_token);
                    for (&i, sampler) in asked.iter().zip(samplers) {
                        group[i].sampler = Some(sampler);
                    }
                    generated
                }
            }?;
            printer.finish()?;
            for (&i, (ids, (tokens, finish))) in asked.iter().zip(ids.into_iter().zip(&generated.texts)) {
                let reply = group[i].answered(&ids, tokens, *finish, loaded.tokenizer.as_ref(), args)?;
                group[i].timed(&generated);
                if asked.len() > 1 && !report.is_json() {
                    report.text(&reply)?;
                }
                if (several || args.reference_output) && !report.is_json() {
                    report.text("\n")?;
                }
            }
            add(&mut total, &generated);
            let tokens = generated.texts.iter().flat_map(|(tokens, _)| tokens);
            unlikely += tokens.filter(|token| !token.logprob.is_finite()).count() as u64;
            for &i in &asked {
                group[i].next_turn_of(args, &loaded, template.as_ref())?;
            }
        }
    }
    if unlikely > 0 {
        let text = format!("the logits of {} are not numbers; the weights may be damaged", counted(unlikely, "token"));
        report.note("NaN", &text);
    }
    finish(args, &texts, &total, precision, report)
}

fn sampling(args: &GenerateArgs, prompt: u64) -> Sampling {
    Sampling {
        temperature: args.temperature,
        top_k: args.top_k as usize,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed.wrapping_add(prompt),
    }
}

/// What memory has to hold; the turns of a conversation are taken to be as long as the longest first one.
fn demand(args: &GenerateArgs, texts: &[Text]) -> Demand {
    let batch = u64::from(args.batch).min(texts.len() as u64);
    let longest = texts.iter().filter_map(|t| t.ids.as_ref()).map(Vec::len).max().unwrap_or(0) as u64;
    let turns = texts.iter().map(Text::turns_left).max().unwrap_or(0) as u64 + 1;
    Demand {
        states: batch,
        state_tokens: (longest + u64::from(args.max_new)) * turns * batch,
        prompt_tokens: longest * turns * batch,
        batch_tokens: u64::from(args.engine.batch_tokens),
        logits: batch,
        decode: true,
    }
}

/// A prompt, or a conversation, and what was generated.
struct Text {
    prompt: Prompt,
    /// What to read next, if anything.
    ids: Option<Vec<u32>>,
    /// The same as text.
    read_as: String,
    turns: Vec<Value>,
    sampler: Option<Sampler>,
}

impl Text {
    fn new(prompt: Prompt, sampler: Sampler) -> Self {
        Self { prompt, ids: None, read_as: String::new(), turns: Vec::new(), sampler: Some(sampler) }
    }

    /// Messages that come after this turn.
    fn turns_left(&self) -> usize {
        if let Prompt::Chat(conversation) = &self.prompt { conversation.messages_left() } else { 0 }
    }

    /// Prepares the next turn, if there is one.
    fn next_turn(
        &mut self,
        args: &GenerateArgs,
        tokenizer: Option<&Tokenizer>,
        template: Option<&ChatTemplate>,
        opened: &Opened,
    ) -> Result<()> {
        // Says what to do where a text meets a model without tokenizer.
        if !matches!(self.prompt, Prompt::Ids(_)) {
            opened.tokenizer()?;
        }
        self.prepare(args, tokenizer, template)
    }

    fn next_turn_of(&mut self, args: &GenerateArgs, loaded: &Loaded, template: Option<&ChatTemplate>) -> Result<()> {
        self.prepare(args, loaded.tokenizer.as_ref(), template)
    }

    fn prepare(
        &mut self,
        args: &GenerateArgs,
        tokenizer: Option<&Tokenizer>,
        template: Option<&ChatTemplate>,
    ) -> Result<()> {
        let first = self.turns.is_empty();
        self.ids = match (&mut self.prompt, tokenizer, template) {
            (Prompt::Ids(ids), ..) => {
                self.read_as = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                first.then(|| ids.clone())
            }
            (Prompt::Text(text), Some(tokenizer), _) if first => {
                self.read_as.clone_from(text);
                Some(args.prompts.encode(tokenizer, text)?)
            }
            (Prompt::Chat(conversation), Some(tokenizer), Some(template)) => {
                if conversation.next_turn() {
                    let text = conversation.render(template, &args.prompts.variables())?;
                    // The template writes the special tokens itself.
                    let ids = tokenizer.encode(&text, false)?;
                    self.read_as = text;
                    Some(ids)
                } else {
                    None
                }
            }
            _ => None,
        };
        Ok(())
    }

    /// Takes note of a reply and gives its text.
    fn answered(
        &mut self,
        prompt_ids: &[u32],
        tokens: &[Token],
        finish: Option<Finish>,
        tokenizer: Option<&Tokenizer>,
        args: &GenerateArgs,
    ) -> Result<String> {
        let ids: Vec<u32> = tokens.iter().map(|t| t.id).collect();
        let text = match tokenizer {
            Some(tokenizer) => Some(tokenizer.decode(&ids, !args.show_special)?),
            None => None,
        };
        let mut turn = Map::new();
        turn.insert("prompt_ids".into(), json!(prompt_ids));
        turn.insert("ids".into(), json!(ids));
        turn.insert("text".into(), json!(text));
        turn.insert("logprobs".into(), json!(tokens.iter().map(|t| t.logprob).collect::<Vec<_>>()));
        if args.top_logprobs > 0 {
            let entry = |(id, logprob): &(u32, f32)| json!({"id": id, "logprob": logprob});
            let top: Vec<Vec<Value>> = tokens.iter().map(|t| t.top.iter().map(entry).collect()).collect();
            turn.insert("top_logprobs".into(), json!(top));
        }
        let reason = match finish {
            Some(Finish::Stop) => Some("stop"),
            Some(Finish::Length) => Some("length"),
            None => None,
        };
        turn.insert("finish".into(), json!(reason));
        self.turns.push(Value::Object(turn));
        let reply = text.unwrap_or_else(|| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
        if let Prompt::Chat(conversation) = &mut self.prompt {
            conversation.reply(&reply);
        }
        Ok(reply)
    }
}

impl Text {
    /// Notes the time of the turn just answered, that of its whole batch.
    fn timed(&mut self, generated: &Generated) {
        if let Some(Value::Object(turn)) = self.turns.last_mut() {
            turn.insert("prefill_seconds".into(), json!(generated.prefill.as_secs_f64()));
            turn.insert("decode_seconds".into(), json!(generated.decode.as_secs_f64()));
        }
    }
}

/// Shows tokens as they come, where one text is generated at a time.
struct Printer<'a> {
    report: &'a Report,
    stream: Option<TextStream<'a>>,
    shown: bool,
    first: bool,
    problem: Option<anyhow::Error>,
}

impl<'a> Printer<'a> {
    fn new(report: &'a Report, loaded: &'a Loaded, args: &GenerateArgs, alone: bool) -> Self {
        let shown = alone && !report.is_json();
        let stream = loaded.tokenizer.as_ref().map(|t| t.stream(!args.show_special));
        Self { report, stream: stream.filter(|_| shown), shown, first: true, problem: None }
    }

    /// Shows a token; whether to go on.
    fn token(&mut self, _prompt: usize, token: &Token) -> bool {
        if self.shown {
            self.problem = self.show(token).err();
        }
        self.problem.is_none()
    }

    fn show(&mut self, token: &Token) -> Result<()> {
        match &mut self.stream {
            Some(stream) => {
                if let Some(text) = stream.push(token.id)? {
                    self.report.text(&text)?;
                }
            }
            None => {
                let comma = if self.first { "" } else { "," };
                self.report.text(&format!("{comma}{}", token.id))?;
            }
        }
        self.first = false;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if let Some(stream) = self.stream {
            self.report.text(&stream.finish()?)?;
        }
        Ok(())
    }
}

fn add(total: &mut Generated, new: &Generated) {
    if total.prompt_tokens == 0 {
        total.first_token = new.first_token;
    }
    total.prompt_tokens += new.prompt_tokens;
    total.prefill += new.prefill;
    total.decoded += new.decoded;
    total.decode += new.decode;
    if let Some((made, right)) = new.guesses {
        let before = total.guesses.unwrap_or_default();
        total.guesses = Some((before.0 + made, before.1 + right));
    }
}

fn finish(
    args: &GenerateArgs,
    texts: &[Text],
    total: &Generated,
    precision: longshore_infer::backend::cpu::Precision,
    report: &Report,
) -> Result<Answer> {
    let per_second = |n: usize, time: std::time::Duration| n as f64 / time.as_secs_f64().max(1e-9);
    let prefill = per_second(total.prompt_tokens, total.prefill);
    let decode = per_second(total.decoded, total.decode);
    if report.is_json() {
        let mut fields = json!({
            "precision": crate::engine::precision_name(precision),
            "timings": {
                "prompt_tokens": total.prompt_tokens,
                "prefill_seconds": total.prefill.as_secs_f64(),
                "prefill_tokens_per_second": prefill,
                "first_token_seconds": total.first_token.as_secs_f64(),
                "decoded_tokens": total.decoded,
                "decode_seconds": total.decode.as_secs_f64(),
                "decode_tokens_per_second": decode,
            },
            "peak_memory": peak_memory(),
        });
        if let Some((made, right)) = total.guesses {
            fields["mtp"] = json!({"guessed": made, "right": right, "acceptance": rate(made, right)});
        }
        match texts {
            [Text { turns, .. }] if turns.len() == 1 => {
                if let (Value::Object(fields), Value::Object(turn)) = (&mut fields, &turns[0]) {
                    fields.extend(turn.clone());
                }
            }
            _ => {
                let turns = |text: &Text| json!({"turns": text.turns});
                fields["results"] = json!(texts.iter().map(turns).collect::<Vec<_>>());
            }
        }
        report.json("generate", &fields)?;
    } else if report.is_terminal() {
        report.text("\n").context("writing to stdout")?;
    }
    let tokens = |n: usize, rate: f64, time: std::time::Duration| {
        format!("{}  {:.1} tokens/s  in {:.2}s", counted(n as u64, "token"), rate, time.as_secs_f64())
    };
    report.status("Prefill", &tokens(total.prompt_tokens, prefill, total.prefill));
    let first = format!("after {:.3}s", total.first_token.as_secs_f64());
    if args.max_new > 0 {
        report.status("First", &first);
    }
    if total.decoded > 0 {
        report.status("Decode", &tokens(total.decoded, decode, total.decode));
    }
    if let Some((made, right)) = total.guesses {
        let text = format!("{} of {} right ({:.1} %)", count(right), count(made), 100.0 * rate(made, right));
        report.status("Guesses", &text);
    }
    if let Some(peak) = peak_memory() {
        report.status("Peak", &format!("{} of memory", bytes(peak)));
    }
    Ok(Answer::Yes)
}

fn rate(made: u64, right: u64) -> f64 {
    if made == 0 { 0.0 } else { right as f64 / made as f64 }
}
