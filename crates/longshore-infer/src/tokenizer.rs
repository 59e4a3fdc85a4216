//! Tokenizers: text to ids and back, by the Rust core that transformers' own tokenizers run on (`tokenizers`), and the
//! special tokens that a model's files name.
//!
//! Source: `tokenizer.json` as that crate reads it; `tokenizer_config.json`, `generation_config.json` and `config.json`
//! as transformers 5.23 reads them. Truncation and padding of `tokenizer.json` are not applied, as transformers does by
//! default.

mod files;
mod stream;

pub(crate) use files::read_config;
pub use files::{special_tokens, stop_ids};
pub use stream::TextStream;

use longshore_ckpt::fs;
use std::path::{Path, PathBuf};

/// The file of a tokenizer.
pub const NAME: &str = "tokenizer.json";

/// Larger files are no tokenizer: 64 MiB. The largest seen have 40.
pub const MAX_SIZE: u64 = 64 << 20;

/// Ids from here on are refused: a table with a row for each of them would not fit. The largest vocabularies have 2^18.
const MAX_IDS: usize = 1 << 24;

/// What is wrong with a tokenizer's files, or with what it was given.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] longshore_ckpt::Error),
    /// A file whose content is not as expected.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// An id that no token has.
    #[error("the id {id}: expected a token of the vocabulary, whose ids are below {vocab_size}")]
    UnknownId {
        /// The id.
        id: u32,
        /// One more than the largest id.
        vocab_size: usize,
    },
    /// Text that the tokenizer fails on.
    #[error("tokenizing: {what}")]
    Encode {
        /// What the tokenizer says.
        what: String,
    },
    /// Ids whose text the tokenizer cannot make.
    #[error("making text of ids: {what}")]
    Decode {
        /// What the tokenizer says.
        what: String,
    },
}

/// The tokenizer of one model.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
    /// How text is made of tokens.
    joining: stream::Joining,
}

impl Tokenizer {
    /// The tokenizer of `tokenizer.json` in `folder`; `None` where there is none.
    pub fn load(folder: &Path) -> Result<Option<Self>, TokenizerError> {
        let path = folder.join(NAME);
        if !fs::exists(&path) {
            return Ok(None);
        }
        let bytes = fs::read_small(&path, MAX_SIZE)?;
        Self::parse(&bytes).map(Some).map_err(|what| TokenizerError::Malformed { path, what })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        if vocab_size > MAX_IDS {
            return Err(format!("expected ids below {MAX_IDS}, found {}", vocab_size - 1));
        }
        let joining = stream::Joining::of(&inner);
        Ok(Self { inner, vocab_size, joining })
    }

    /// The token that the tokenizer's own rules put before every text, if any.
    pub fn begin_of_text(&self) -> Result<Option<u32>, TokenizerError> {
        let [with, without] = [self.encode("a", true)?, self.encode("a", false)?];
        // Others end texts only.
        Ok(with.split_first().filter(|(_, rest)| rest.starts_with(&without)).map(|(first, _)| *first))
    }

    /// The ids of a text. `add_special_tokens` adds what the tokenizer's post-processor adds (BOS, for most); tokens
    /// that are written out in the text are found in either case.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        let encoding = encoding.map_err(|error| TokenizerError::Encode { what: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids. Bytes that are not UTF-8 become U+FFFD; ids of the vocabulary that no token has are left out, as
    /// transformers does.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        let mut known = Vec::with_capacity(ids.len());
        for &id in ids {
            known.extend(self.known(id)?.map(|_| id));
        }
        self.inner
            .decode(&known, skip_special_tokens)
            .map_err(|error| TokenizerError::Decode { what: error.to_string() })
    }

    /// One more than the largest id, added tokens included. A model may have more rows than that, which no token uses.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token, written as `tokenizer.json` writes it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, written as `tokenizer.json` writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Text piece by piece, as ids come in.
    pub fn stream(&self, skip_special_tokens: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special_tokens)
    }

    /// The token of an id; `None` where the vocabulary has a hole.
    fn known(&self, id: u32) -> Result<Option<String>, TokenizerError> {
        match self.token(id) {
            None if id as usize >= self.vocab_size => {
                Err(TokenizerError::UnknownId { id, vocab_size: self.vocab_size })
            }
            token => Ok(token),
        }
    }
}
