//! MMLU's questions, asked of a server: the letters among the most likely next tokens.

use super::{AnswerSaver, Server, Task, say_lowered};
use crate::report::Report;
use crate::units::counted;
use anyhow::Result;
use longshore_convert::fingerprint::Fingerprint;
use longshore_endpoint::letters::{self, Letters, Spelling};
use longshore_endpoint::{Error, Prompt, Request};
use longshore_eval::mmlu::{Given, LETTERS};
use serde_json::{Value, json};
use std::path::Path;

/// Bytes of an answer.
const MAX_ANSWER: u64 = 4 << 20;
/// What servers allow: vLLM 20, OpenAI 5.
const USUAL: [u32; 2] = [20, 5];

/// What the letters got after each prompt, by the `top` most likely tokens; what the report says of the server; and what holds the
/// answers until the result is safe.
pub(in crate::commands::eval) fn letters<'a>(
    server: &Server<'a>,
    prompts: &[String],
    top: u32,
    scratch: &Path,
) -> Result<(Vec<Given>, Value, AnswerSaver<'a>)> {
    let mut key = Fingerprint::default();
    key.add_json(&("mmlu", server.identity(), top));
    for prompt in prompts {
        key.add(prompt.as_bytes());
    }
    let task = Task { things: "question", items: prompts.len(), key: key.text(), scratch };
    let answer = |item: usize, top: &u32| {
        let prompt = Prompt::Text(&prompts[item]);
        let request = Request::next_token(&server.model, prompt, *top);
        server.client.complete(&request, MAX_ANSWER, |body| letters::read(body, &LETTERS))
    };
    let asked = server.ask(
        &task,
        |_, letters: &Letters| letters.fit(),
        |item| settle(item, top, answer, server.report),
        answer,
    )?;
    let spelling = Spelling::of(&asked.answers);
    let given: Vec<Given> = asked.answers.iter().map(|letters| Given::LogProbs(letters.spelt(spelling))).collect();
    let absent: usize = given.iter().map(Given::absent).sum();
    let unanswered = given.iter().filter(|given| given.absent() == LETTERS.len()).count();
    if absent > 0 {
        let without = match unanswered {
            0 => String::new(),
            n => format!(
                "; {} without any count{} as wrong",
                counted(n as u64, "question"),
                if n == 1 { "s" } else { "" }
            ),
        };
        let text =
            format!("{} not among the {} most likely tokens{without}", counted(absent as u64, "letter"), asked.how);
        server.report.note("Absent", &text);
    }
    let told = server.told(&json!({
        "top_logprobs": asked.how, "letters": spelling, "absent_letters": absent, "questions_without_letter": unanswered,
    }));
    Ok((given, told, asked.saver))
}

/// The first answer, and how many tokens the server names.
fn settle(
    item: usize,
    top: u32,
    answer: impl Fn(usize, &u32) -> longshore_endpoint::Result<Letters>,
    report: &Report,
) -> Result<(u32, Letters), Error> {
    let lower = USUAL.into_iter().filter(|&n| n < top);
    let mut now = top;
    for next in lower {
        match answer(item, &now) {
            Err(error) if error.is_bad_request_about("logprobs") => {
                say_lowered(&error, &format!("asking for {next} tokens instead of {now}"), report);
                now = next;
            }
            other => return Ok((now, other?)),
        }
    }
    Ok((now, answer(item, &now)?))
}
