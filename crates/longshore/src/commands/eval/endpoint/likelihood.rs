//! Windows of a text, read by a server that echoes them with their log-probabilities.

use super::{AnswerSaver, Server, Task, say_lowered};
use anyhow::Result;
use longshore_convert::fingerprint::Fingerprint;
use longshore_endpoint::{Request, likelihood};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;

/// Bytes of an answer: a token takes some hundred, with its alternatives.
const MAX_ANSWER: u64 = 64 << 20;

/// The negative log-likelihoods of the tokens that are scored, window by window; what the report says of the server; and what holds
/// the answers until the result is safe.
pub(in crate::commands::eval) fn likelihoods<'a>(
    server: &Server<'a>,
    prompts: &[Vec<u32>],
    scored: &[Range<usize>],
    scratch: &Path,
) -> Result<(Vec<Vec<f64>>, Value, AnswerSaver<'a>)> {
    let mut key = Fingerprint::default();
    key.add_json(&("ppl", server.identity()));
    for (prompt, scored) in prompts.iter().zip(scored) {
        key.add_json(&(prompt, scored));
    }
    let task = Task { things: "window", items: prompts.len(), key: key.text(), scratch };
    let answer = |item: usize, new_tokens: &u32| {
        let (ids, new) = (&prompts[item], *new_tokens);
        let read = |body: &[u8]| likelihood::read(body, ids.len(), new as usize, &scored[item]);
        server.client.complete(&Request::echo(&server.model, ids, new), MAX_ANSWER, read)
    };
    let settle = |item| match answer(item, &0) {
        Err(error) if error.is_bad_request() => {
            let answered = answer(item, &1)?;
            say_lowered(&error, "asking for a new token too", server.report);
            Ok((1, answered))
        }
        other => Ok((0, other?)),
    };
    let fits = |item: usize, nlls: &Vec<f64>| nlls.len() == scored[item].len() && nlls.iter().all(|x| x.is_finite());
    let asked = server.ask(&task, fits, settle, answer)?;
    Ok((asked.answers, server.told(&json!({ "new_tokens": asked.how })), asked.saver))
}
