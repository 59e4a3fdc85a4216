//! What conversion and quantization did to the model, by the commands that users would run: questions and a text.

use super::Demo;
use crate::cli::Cli;
use crate::commands::{self, Answer};
use crate::options::Env;
use crate::report::table;
use anyhow::{Context, Result, ensure};
use clap::Parser;
use longshore_eval::saved;
use serde_json::{Value, json};
use std::path::Path;

/// A text that the model was not trained on.
const TEXT: &str = include_str!("../quantize/held_out.txt");

/// One model's scores.
struct Scores {
    accuracy: Value,
    perplexity: Value,
}

impl Demo<'_> {
    /// MMLU-like questions and perplexity of the source, the converted and the quantized checkpoint; the first two must not
    /// differ in a bit.
    pub(super) fn scores(&self) -> Result<Value> {
        let text = self.folder.join("text.txt");
        std::fs::write(&text, TEXT).with_context(|| format!("writing `{}`", text.display()))?;
        let models = [
            ("source", self.source.to_owned()),
            ("converted", self.folder.join("te")),
            ("quantized", self.folder.join("te-fp8")),
        ];
        let mut rows = vec![["model", "questions right", "perplexity"].map(str::to_owned).to_vec()];
        let mut found = Vec::new();
        for (name, folder) in models {
            let accuracy = self.eval(name, &folder, &["mmlu", "--data", "bundled"])?["scores"]["micro"].clone();
            let text = text.display().to_string();
            let figures = self.eval(name, &folder, &["ppl", "--data", &text, "--ctx", "512"])?["figures"].clone();
            let perplexity = figures["perplexity"].clone();
            let shown = |value: &Value, scale: f64| format!("{:.2}", value.as_f64().unwrap_or(f64::NAN) * scale);
            rows.push(vec![name.to_owned(), format!("{} %", shown(&accuracy, 100.0)), shown(&perplexity, 1.0)]);
            found.push((name, Scores { accuracy, perplexity }));
        }
        let same = |a: &Scores, b: &Scores| a.accuracy == b.accuracy && a.perplexity == b.perplexity;
        ensure!(same(&found[0].1, &found[1].1), "the converted checkpoint scores other than its source");
        self.report.say(&format!("\n{}", table(&rows, &[1, 2])));
        let entry =
            |(name, s): &(&str, Scores)| json!({"model": name, "accuracy": s.accuracy, "perplexity": s.perplexity});
        Ok(found.iter().map(entry).collect())
    }

    /// The report of an `eval` in float32.
    fn eval(&self, name: &str, folder: &Path, task: &[&str]) -> Result<Value> {
        let [kind, rest @ ..] = task else { return Ok(Value::Null) };
        let (checkpoint, file) = (folder.display().to_string(), self.folder.join(format!("{name}-{kind}.json")));
        let run = [&["eval", kind, &checkpoint], rest, &["--precision", "f32"]].concat();
        self.command(&run.join(" "));
        let path = file.display().to_string();
        let args = [&run[..], &["--report", &path, "--no-weights-hash"]].concat();
        let command = Cli::try_parse_from(std::iter::once(&"longshore").chain(&args))?.command;
        ensure!(commands::run(&command, &Env::default(), &self.report.quietly())? == Answer::Yes, "{}", run.join(" "));
        // What a comparison would read, too.
        saved::read(&file)?;
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading `{path}`"))?;
        Ok(serde_json::from_str(&text)?)
    }
}
