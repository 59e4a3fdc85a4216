//! MMLU's questions: which are asked in which words, the tokens of the prompts, and the answers.

use super::provenance::last_component;
use crate::cli::eval::AskArgs;
use crate::locate;
use crate::options::Env;
use anyhow::Result;
use longshore_ckpt::fs;
use longshore_eval::mmlu::{self, Given, LETTERS, Mmlu, Prompts, Record, Row, Selection, Style};
use longshore_eval::saved;
use longshore_infer::tokenizer::Tokenizer;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The data set that is named, by a path, a repository or the environment, or the one that is bundled; and its path.
pub(super) fn read(given: Option<&Path>, env: &Env) -> Result<(Mmlu, PathBuf)> {
    const BUNDLED: &str = "bundled";
    let named = given.map(Path::to_owned).or_else(|| env.path("MMLU_DATASET"));
    if named.is_some_and(|name| name == Path::new(BUNDLED)) {
        return Ok((mmlu::bundled()?, PathBuf::from(BUNDLED)));
    }
    let path = locate::mmlu(given, env)?;
    Ok((mmlu::read(&path)?, path))
}

/// The questions that are asked, and the words.
pub(super) struct Chosen<'a> {
    pub(super) data: &'a Mmlu,
    pub(super) style: Style,
    pub(super) rows: Vec<Row<'a>>,
    prompts: Prompts,
}

impl<'a> Chosen<'a> {
    pub(super) fn new(data: &'a Mmlu, args: &AskArgs, limit: Option<usize>) -> Result<Self> {
        let style: Style = args.style.parse()?;
        let selection = Selection { fraction: args.fraction, subjects: args.subjects.clone(), limit };
        let rows = mmlu::select(&data.test, &selection)?;
        let subjects = rows.iter().map(|row| row.question.subject.as_str());
        let prompts = Prompts::new(style, args.few_shots, &data.dev, subjects)?;
        Ok(Self { data, style, rows, prompts })
    }

    /// The prompts in words, and their hashes.
    pub(super) fn texts(&self) -> Result<(Vec<String>, Vec<String>)> {
        let (mut texts, mut hashes) = (Vec::with_capacity(self.rows.len()), Vec::with_capacity(self.rows.len()));
        for row in &self.rows {
            let prompt = self.prompts.prompt(row.question)?;
            texts.push(prompt.text());
            hashes.push(prompt.hash());
        }
        Ok((texts, hashes))
    }

    /// The prompts in tokens.
    pub(super) fn encode(&self, tokenizer: &Tokenizer) -> Result<Encoded> {
        let (before, letters) = letters(self.style, tokenizer)?;
        let (texts, hashes) = self.texts()?;
        let mut ids = Vec::with_capacity(texts.len());
        for text in texts {
            // Special tokens as the tokenizer's own rules have them: a begin-of-text token if it adds one.
            let mut prompt = tokenizer.encode(&text, true)?;
            prompt.extend(&before);
            ids.push(prompt);
        }
        Ok(Encoded { ids, hashes, letters })
    }

    /// The answers to the prompts with these hashes, by what the letters got.
    pub(super) fn records<G: Into<Given>>(&self, hashes: &[String], given: Vec<G>) -> Result<Vec<Record>> {
        let answers = self.rows.iter().zip(hashes).zip(given);
        let record = |((row, hash), given): ((&Row<'_>, &String), G)| Record::new(*row, hash.clone(), given);
        Ok(answers.map(record).collect::<longshore_eval::Result<_>>()?)
    }

    /// What a report says of it.
    pub(super) fn asked(&self, data: &Path, args: &AskArgs, limit: Option<usize>) -> saved::Asked {
        saved::Asked {
            data: last_component(data),
            data_sha256: self.data.sha256(),
            style: self.style.to_string(),
            few_shots: args.few_shots,
            fraction: args.fraction,
            subjects: args.subjects.clone(),
            limit,
            ties: "first".to_owned(),
        }
    }
}

/// Prompts in tokens.
pub(super) struct Encoded {
    pub(super) ids: Vec<Vec<u32>>,
    pub(super) hashes: Vec<String>,
    /// The tokens of the four letters.
    pub(super) letters: [u32; 4],
}

impl Encoded {
    pub(super) fn tokens(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }

    /// Writes the prompts as lines of `{"input_ids": [...]}`.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let mut lines = Vec::new();
        for ids in &self.ids {
            serde_json::to_writer(&mut lines, &json!({"input_ids": ids}))?;
            lines.push(b'\n');
        }
        Ok(fs::write_output(path, &lines)?)
    }

    /// The letters' logits of a row.
    pub(super) fn of(&self, row: &[f32]) -> [f32; 4] {
        self.letters.map(|id| row[id as usize])
    }
}

/// What comes between prompt and letter, and the tokens of the four letters.
fn letters(style: Style, tokenizer: &Tokenizer) -> Result<(Vec<u32>, [u32; 4])> {
    // The end of every prompt, beyond which tokens do not reach.
    let context = if style == Style::LmEval { "Answer:" } else { "" };
    let mut encoded = Vec::with_capacity(4);
    for letter in LETTERS {
        encoded.push(tokenizer.encode(&format!("{context} {letter}"), false)?);
    }
    let encoded = [0, 1, 2, 3].map(|i| encoded[i].as_slice());
    Ok(match style {
        Style::LmEval => mmlu::continuations(&tokenizer.encode(context, false)?, encoded)?,
        Style::ModelOpt | Style::ModelOptExact => (Vec::new(), mmlu::letter_ids(encoded)?),
    })
}
