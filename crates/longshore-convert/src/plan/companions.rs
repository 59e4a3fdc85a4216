//! The small files that travel with the weights: config, generation config, tokenizer, template, custom code.

use super::{Content, SmallFile};
use crate::config::ModelConfig;
use crate::config::pruned::{Change, rewrite};
use crate::quantized::hf_config::remove;
use crate::{Error, Result};
use longshore_ckpt::fs;
use std::path::Path;

/// Largest companion: tokenizers of 250k tokens are about 35 MB.
const MAX_SIZE: u64 = 256 << 20;

/// Names that travel, as prefixes and suffixes; weights and their index never match.
const EXACT: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "hf_quant_config.json",
    "vocab.json",
    "merges.txt",
];
const PREFIXES: [&str; 5] = ["tokenizer", "chat_template", "LICENSE", "NOTICE", "vocab."];
const SUFFIXES: [&str; 4] = [".py", ".jinja", ".model", ".tiktoken"];

fn travels(name: &str) -> bool {
    EXACT.contains(&name) || PREFIXES.iter().any(|p| name.starts_with(p)) || SUFFIXES.iter().any(|s| name.ends_with(s))
}

/// What to do with symbolic links.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    Follow,
    Refuse,
}

/// The companions in `folder`, each to be stored under `prefix`.
///
/// Links are followed in a folder that the user named (the Hugging Face cache is made of them), never in one that came
/// inside a checkpoint: there a link could carry a private file of the reader's into the export.
pub(super) fn collect(folder: &Path, prefix: &str, links: Links) -> Result<Vec<SmallFile>> {
    let mut found = Vec::new();
    for name in fs::list(folder)? {
        let path = folder.join(&name);
        if travels(&name) && links == Links::Refuse && (fs::is_link(folder) || fs::is_link(&path)) {
            let what = "a symbolic link inside a checkpoint".into();
            return Err(longshore_ckpt::Error::Unsupported { path, what }.into());
        }
        if travels(&name) && !fs::is_dir(&path) {
            let crc = crc32fast::hash(&fs::read_small(&path, MAX_SIZE)?);
            found.push(SmallFile { name: format!("{prefix}{name}"), content: Content::Path(path, crc) });
        }
    }
    Ok(found)
}

/// Makes the small files those of a model that is not quantized.
pub(super) fn dequantized(small: &mut Vec<SmallFile>) -> Result<()> {
    let is = |file: &SmallFile, name: &str| file.name == name || file.name.ends_with(&format!("/{name}"));
    small.retain(|file| !is(file, "hf_quant_config.json"));
    for file in small.iter_mut().filter(|file| is(file, "config.json")) {
        let text = String::from_utf8_lossy(&file.bytes()?).into_owned();
        if let Some(removed) = remove(&text) {
            file.content = Content::Bytes(removed.into_bytes());
        }
    }
    Ok(())
}

/// Writes the sizes of a pruned model into its config.json.
pub(super) fn resized(small: &mut [SmallFile], changes: &[Change], config: &ModelConfig) -> Result<()> {
    let is_config = |file: &&mut SmallFile| file.name == "config.json" || file.name.ends_with("/config.json");
    for file in small.iter_mut().filter(|file| !changes.is_empty() && is_config(file)) {
        let text = String::from_utf8_lossy(&file.bytes()?).into_owned();
        let rewritten = rewrite(&text, changes, config, "config.json").map_err(Error::Refused)?;
        file.content = Content::Bytes(rewritten.into_bytes());
    }
    Ok(())
}

impl SmallFile {
    /// The bytes to write. Errors: the file changed since the plan was made.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        match &self.content {
            Content::Bytes(bytes) => Ok(bytes.clone()),
            Content::Path(path, crc) => {
                let bytes = fs::read_small(path, MAX_SIZE)?;
                if crc32fast::hash(&bytes) != *crc {
                    let what = "its checksum differs".into();
                    return Err(Error::SourceChanged { path: path.clone(), what });
                }
                Ok(bytes)
            }
        }
    }
}
