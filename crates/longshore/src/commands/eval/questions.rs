//! MMLU's questions: which are asked in which words, the tokens of the prompts, and the answers.

use super::provenance::last_component;
use crate::cli::eval::AskArgs;
use anyhow::Result;
use longshore_eval::mmlu::{self, LETTERS, Mmlu, Prompts, Record, Row, Selection, Style};
use longshore_eval::saved;
use longshore_infer::tokenizer::Tokenizer;
use std::path::Path;

/// The data set at a path, or the one that is bundled.
pub(super) fn read(data: &Path) -> Result<Mmlu> {
    Ok(if data == Path::new("bundled") { mmlu::bundled()? } else { mmlu::read(data)? })
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

    /// The prompts in tokens.
    pub(super) fn encode(&self, tokenizer: &Tokenizer) -> Result<Encoded> {
        let letters = letters(tokenizer)?;
        let (mut ids, mut hashes) = (Vec::with_capacity(self.rows.len()), Vec::with_capacity(self.rows.len()));
        for row in &self.rows {
            let prompt = self.prompts.prompt(row.question)?;
            // Special tokens as the tokenizer's own rules have them: a begin-of-text token if it adds one.
            ids.push(tokenizer.encode(&prompt.text(), true)?);
            hashes.push(prompt.hash());
        }
        Ok(Encoded { ids, hashes, letters })
    }

    /// The answers to the prompts with these hashes, by the logits of the letters.
    pub(super) fn records(&self, hashes: &[String], logits: &[[f32; 4]]) -> Result<Vec<Record>> {
        let mut records = Vec::with_capacity(self.rows.len());
        for ((row, hash), logits) in self.rows.iter().zip(hashes).zip(logits) {
            records.push(Record::new(*row, hash.clone(), *logits)?);
        }
        Ok(records)
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

    /// The letters' logits of a row.
    pub(super) fn of(&self, row: &[f32]) -> [f32; 4] {
        self.letters.map(|id| row[id as usize])
    }
}

fn letters(tokenizer: &Tokenizer) -> Result<[u32; 4]> {
    let mut encoded = Vec::with_capacity(4);
    for letter in LETTERS {
        encoded.push(tokenizer.encode(&format!(" {letter}"), false)?);
    }
    Ok(mmlu::letter_ids([0, 1, 2, 3].map(|i| encoded[i].as_slice()))?)
}
