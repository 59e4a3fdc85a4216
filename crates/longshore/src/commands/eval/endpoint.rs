//! Scores by a server in the engine's place: who is asked, what is saved, how far it is.

mod likelihood;
mod mmlu;
mod progress;

pub(super) use likelihood::likelihoods;
pub(super) use mmlu::letters;

use crate::cli::eval::EndpointArgs;
use crate::error::{Unanswered, UsageError};
use crate::options::Env;
use crate::report::Report;
use crate::units::{count, seconds};
use anyhow::Result;
use longshore_ckpt::fs;
use longshore_endpoint::{Address, Answers, Client, Error, Found, Key, Retry, Settings, ask};
use progress::Progress;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The variable that OpenAI's own programs read.
const KEY: &str = "OPENAI_API_KEY";
/// Before the second try.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// A server and the model that it is asked for.
pub(super) struct Server<'a> {
    client: Client<'a>,
    model: String,
    report: &'a Report,
}

impl<'a> Server<'a> {
    pub(super) fn new(url: &str, args: &EndpointArgs, env: &Env, report: &'a Report) -> Result<Self> {
        let settings = Settings {
            timeout: Duration::from_secs(u64::from(args.timeout.unwrap_or(120))),
            retries: args.retries.unwrap_or(5),
            concurrency: usize::from(args.concurrency.unwrap_or(16)),
            first_wait: FIRST_WAIT,
        };
        let said = |retry: &Retry<'_>| {
            let text = format!("in {}: {}", seconds(retry.wait.as_secs_f64()), retry.what);
            // The first tells why nothing moves; there may be thousands.
            if retry.before == 0 { report.note("Retrying", &text) } else { report.detail("Retrying", &text) }
        };
        let client = Client::new(Address::parse(url)?, key(args, env)?, settings, Box::new(said));
        let model = match &args.model {
            Some(model) => model.clone(),
            None => match <[String; 1]>::try_from(client.models()?) {
                Ok([model]) => model,
                Err(models) => return Err(UsageError::Models { url: client.address().to_string(), models }.into()),
            },
        };
        report.status("Endpoint", &format!("{}, model {model}", client.address()));
        Ok(Self { client, model, report })
    }

    /// What decides the answers, but for the questions.
    fn identity(&self) -> (&'static str, String, &str) {
        (env!("CARGO_PKG_VERSION"), self.client.address().to_string(), &self.model)
    }

    /// What the report says of it; `more` is what a task adds.
    fn told(&self, more: &Value) -> Value {
        let mut object = json!({
            "url": self.client.address().to_string(), "model": self.model, "retries": self.client.retried(),
        });
        if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
            object.extend(more.clone());
        }
        object
    }

    /// Asks all of `task`, but what an earlier run has found. `settle` answers one question and finds out how the server wants to
    /// be asked, `answer` the others.
    fn ask<H, T>(
        &self,
        task: &Task<'_>,
        fits: impl Fn(usize, &T) -> bool,
        settle: impl FnOnce(usize) -> longshore_endpoint::Result<(H, T)>,
        answer: impl Fn(usize, &H) -> longshore_endpoint::Result<T> + Sync,
    ) -> Result<Asked<'a, H, T>>
    where
        H: Serialize + DeserializeOwned + Sync,
        T: Serialize + DeserializeOwned + Send,
    {
        let (mut saver, found) = AnswerSaver::open(task, fits, self.report)?;
        let (mut how, mut answers) = match found {
            Some(Found { how, answers }) => (Some(how), answers),
            None => (None, BTreeMap::new()),
        };
        let before = answers.len();
        if before > 0 {
            self.report.status("Resumed", &format!("{} of {} answers", count(before as u64), count(task.items as u64)));
        }
        let progress = Progress::begin(task.things, before, task.items, self.report);
        let mut missing: Vec<usize> = (0..task.items).filter(|item| !answers.contains_key(item)).collect();
        let mut result = Ok(());
        if let (None, Some(&first)) = (&how, missing.first()) {
            match settle(first) {
                Ok((settled, answer)) => {
                    saver.add(first, &settled, &answer);
                    answers.insert(first, answer);
                    missing.remove(0);
                    how = Some(settled);
                    progress.show(answers.len());
                }
                Err(error) => result = Err(error),
            }
        }
        if let (Ok(()), Some(how)) = (&result, &how) {
            result = ask(
                &self.client,
                &missing,
                |item| answer(item, how),
                |item, answer| {
                    saver.add(item, how, &answer);
                    answers.insert(item, answer);
                    progress.show(answers.len());
                },
            );
        }
        match (result, how) {
            (Ok(()), Some(how)) => {
                progress.end(self.client.retried());
                Ok(Asked { how, answers: answers.into_values().collect(), saver })
            }
            (Err(error), _) => Err(saver.failed(error, answers.len(), task.items)),
            // Nothing was asked.
            (Ok(()), None) => Err(Error::Invalid(format!("there are no {}s", task.things)).into()),
        }
    }
}

/// The server's address, where one is to be asked; else flags about it, and those in `more`, are refused.
pub(super) fn address<'a>(args: &'a EndpointArgs, more: &[&'static str]) -> Result<Option<&'a str>, UsageError> {
    let options = [args.given(), more.to_vec()].concat();
    match &args.endpoint {
        None if !options.is_empty() => Err(UsageError::NoEndpoint { options }),
        endpoint => Ok(endpoint.as_deref()),
    }
}

/// The key for the server, if there is one.
fn key(args: &EndpointArgs, env: &Env) -> Result<Option<Key>, UsageError> {
    let variable = args.api_key_env.as_deref().unwrap_or(KEY);
    let wrong = |what| UsageError::Key { variable: variable.to_owned(), what };
    match env.secret(variable) {
        None if args.api_key_env.is_some() => Err(wrong("is not set; --api-key-env names it")),
        None => Ok(None),
        Some(text) => {
            let key = text.ok().and_then(|text| Key::new(text.trim()));
            key.map(Some).ok_or_else(|| wrong("is not a key: expected one line of visible ASCII characters"))
        }
    }
}

/// What is asked.
struct Task<'a> {
    /// What one of them is called.
    things: &'a str,
    items: usize,
    /// Identifies everything that decides the answers.
    key: String,
    scratch: &'a Path,
}

/// All answers, in order.
struct Asked<'a, H, T> {
    how: H,
    answers: Vec<T>,
    saver: AnswerSaver<'a>,
}

/// Saves answers, unless the disk does not let it.
pub(super) struct AnswerSaver<'a> {
    answers: Option<Answers>,
    has_failed: bool,
    report: &'a Report,
}

impl<'a> AnswerSaver<'a> {
    /// Another run of the same task is an error; whatever else is wrong with the folder is not.
    fn open<H: DeserializeOwned, T: DeserializeOwned>(
        task: &Task<'_>,
        fits: impl Fn(usize, &T) -> bool,
        report: &'a Report,
    ) -> Result<(Self, Option<Found<H, T>>)> {
        match Answers::open(task.scratch, &task.key, task.items, fits) {
            Ok((answers, found)) => Ok((Self { answers: Some(answers), has_failed: false, report }, found)),
            Err(Error::File(error)) if fs::is_held(&error) => Err(error.into()),
            Err(error) => {
                report.note("Warning", &format!("an interruption will cost all answers: {error}"));
                Ok((Self { answers: None, has_failed: true, report }, None))
            }
        }
    }

    fn add(&mut self, item: usize, how: &impl Serialize, answer: &impl Serialize) {
        let Some(answers) = self.answers.as_mut().filter(|_| !self.has_failed) else { return };
        if let Err(error) = answers.add(item, how, answer) {
            self.has_failed = true;
            self.report.note("Warning", &format!("an interruption will cost the answers from here on: {error}"));
        }
    }

    /// The error of a run, with what is left of it.
    fn failed(self, error: Error, saved: usize, all: usize) -> anyhow::Error {
        if saved == 0 {
            self.discard();
            return error.into();
        }
        if self.has_failed { error.into() } else { Unanswered { error, saved, all }.into() }
    }

    /// Once the result is safe.
    pub(super) fn discard(self) {
        let Some(answers) = self.answers else { return };
        let path = answers.path().to_owned();
        if let Err(error) = answers.discard() {
            self.report.note("Warning", &format!("`{}` is left: {error}", path.display()));
        }
    }
}

/// What a server refused and was asked instead.
fn say_lowered(error: &Error, instead: &str, report: &Report) {
    report.note("Lowered", &format!("{instead}, since the server says: {error}"));
}
