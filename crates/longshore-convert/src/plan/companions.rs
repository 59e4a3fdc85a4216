//! The small files that travel with the weights: config, generation config, tokenizer, template, custom code.

use super::{Content, Note, NoteKind, SmallFile, model_error};
use crate::config::hf::nemotron_h::{Reduced, reduced_fields};
use crate::config::pruned::{Change, rewrite};
use crate::config::{ModelConfig, hf, json, text};
use crate::quantized::hf_config::remove;
use crate::quantized::state::record::FOLDER as MODELOPT_STATE;
use crate::{Error, Result};
use longshore_ckpt::fs;
use std::path::{Path, PathBuf};

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

/// What ModelOpt recorded of a quantized checkpoint, as it is: nothing in it depends on spec or layout.
pub(super) fn modelopt_state(checkpoint: &Path, notes: &mut Vec<Note>) -> Result<Vec<SmallFile>> {
    let folder = checkpoint.join(MODELOPT_STATE);
    if !fs::is_dir(&folder) {
        let text = format!("there is no `{MODELOPT_STATE}`, without which ModelOpt does not restore quantizers");
        notes.push(Note::new(NoteKind::Warning, text));
        return Ok(Vec::new());
    }
    let copy = |name: String| {
        let path = folder.join(&name);
        if fs::is_link(&folder) || fs::is_link(&path) || fs::is_dir(&path) {
            let what = format!("expected files in `{MODELOPT_STATE}`");
            return Err(longshore_ckpt::Error::Unsupported { path, what }.into());
        }
        let crc = crc32fast::hash(&fs::read_small(&path, MAX_SIZE)?);
        Ok(SmallFile { name: format!("{MODELOPT_STATE}/{name}"), content: Content::Path(path, crc) })
    };
    fs::list(&folder)?.into_iter().map(copy).collect()
}

/// Makes the small files those of a model that is not quantized.
pub(super) fn dequantized(small: &mut Vec<SmallFile>) -> Result<()> {
    small.retain(|file| !file.is("hf_quant_config.json"));
    for file in small.iter_mut().filter(|file| file.is("config.json")) {
        let text = String::from_utf8_lossy(&file.bytes()?).into_owned();
        if let Some(removed) = remove(&text) {
            file.content = Content::Bytes(removed.into_bytes());
        }
    }
    Ok(())
}

/// Makes config.json that of a model made of parts of the one it describes. It is read back: what a field elsewhere says
/// could make another model of it.
pub(super) fn reduced(small: &mut [SmallFile], reduced: &Reduced<'_>) -> Result<()> {
    for file in small.iter_mut().filter(|file| file.is("config.json")) {
        let (path, old) = (file.path(), String::from_utf8_lossy(&file.bytes()?).into_owned());
        let parse = |text: &str| json::parse(text.as_bytes()).map_err(|e| e.in_file(&path, 0));
        let fields = parse(&old)?.as_object().map(|object| reduced_fields(object, reduced)).unwrap_or_default();
        if fields.is_empty() {
            continue;
        }
        let new = text::replace(&old, &fields).map_err(|e| e.in_file(&path, 0))?;
        let read = hf::read(&path.display().to_string(), &parse(&new)?).map_err(crate::Error::Refused)?.config;
        let wanted = reduced.config;
        let same_mtp =
            read.mtp.as_ref().map(|m| (m.depth, &m.layers)) == wanted.mtp.as_ref().map(|m| (m.depth, &m.layers));
        if read.layers != wanted.layers || !same_mtp {
            return Err(model_error(&path, "its fields cannot be changed to describe the smaller model"));
        }
        file.content = Content::Bytes(new.into_bytes());
    }
    Ok(())
}

/// Writes the sizes of a pruned model into its config.json.
pub(super) fn resized(small: &mut [SmallFile], changes: &[Change], config: &ModelConfig) -> Result<()> {
    for file in small.iter_mut().filter(|file| !changes.is_empty() && file.is("config.json")) {
        let text = String::from_utf8_lossy(&file.bytes()?).into_owned();
        let rewritten = rewrite(&text, changes, config, "config.json").map_err(Error::Refused)?;
        file.content = Content::Bytes(rewritten.into_bytes());
    }
    Ok(())
}

impl SmallFile {
    /// Whether it is the file of this name, in whatever folder.
    fn is(&self, name: &str) -> bool {
        self.name.rsplit('/').next() == Some(name)
    }

    /// Where it comes from, for messages.
    pub(super) fn path(&self) -> PathBuf {
        match &self.content {
            Content::Path(path, _) => path.clone(),
            Content::Bytes(_) => PathBuf::from(&self.name),
        }
    }

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
