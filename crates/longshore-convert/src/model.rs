//! What model a checkpoint holds: its config, its architecture and, on the Megatron side, its keys.

use crate::arch::{self, Architecture, SpecKeys};
use crate::config::pruned::{Change, pruned};
use crate::config::{ModelConfig, hf, json, megatron, run_config};
use crate::manifest::{self, Manifest};
use crate::options::{NormKeys, SpecName};
use crate::plan::{Note, NoteKind};
use crate::quantized::state::groups_experts;
use crate::{Error, Result};
use longshore_ckpt::error::ParseError;
use longshore_ckpt::{Catalog, Format, fs};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder inside a torch_dist checkpoint in which the Hugging Face files travel.
pub const TRAVELLING: &str = "hf";
/// The folder inside a torch_dist checkpoint in which Megatron stores the tokenizer.
pub(crate) const TOKENIZER: &str = "tokenizer";
const MAX_CONFIG: u64 = 16 << 20;

/// A model as its checkpoint describes it.
pub struct Model {
    /// The config.
    pub config: ModelConfig,
    /// The architecture.
    pub architecture: &'static Architecture,
    /// The folder with the config.json that was read; `None` where it was rebuilt from stored arguments.
    pub folder: Option<PathBuf>,
    /// What the checkpoint, which was pruned, has otherwise than that config.json.
    pub changes: Vec<Change>,
    /// What was inferred, assumed or ignored.
    pub notes: Vec<Note>,
}

impl Model {
    /// The model of a folder with a `config.json`.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !fs::exists(&path) {
            return Err(Error::Model { path: folder.into(), what: "there is no config.json".into() });
        }
        let bytes = fs::read_small(&path, MAX_CONFIG)?;
        let value = json::parse(&bytes).map_err(|e| e.in_file(&path, 0))?;
        let read = hf::read(&path.display().to_string(), &value).map_err(Error::Refused)?;
        let notes = read.notes.into_iter().map(|n| Note::new(NoteKind::Inferred, n)).collect();
        Self::new(read.config, Some(folder.into()), notes, &path)
    }

    /// The model of a torch_dist checkpoint: from `base`, else the config that travels with it, else its arguments.
    ///
    /// Where its arguments and tensors agree on a smaller model than the config describes, it was pruned, and its own sizes
    /// are right.
    pub fn from_torch_dist(catalog: &Catalog, base: Option<&Path>) -> Result<Self> {
        let travelling = catalog.folder.join(TRAVELLING);
        let folder = base.or_else(|| fs::exists(&travelling.join("config.json")).then_some(&travelling));
        let Stored { args, notes } = Stored::of(catalog)?;
        let keys: BTreeMap<String, Vec<u64>> =
            catalog.tensors.iter().map(|(k, t)| (k.clone(), t.shape.clone())).collect();
        let mut model = match folder {
            Some(folder) => {
                let mut model = Self::from_folder(folder)?;
                model.prune(&args, &keys);
                model
            }
            None => {
                let (config, assumed) = megatron::read(&args, &keys).map_err(Error::Refused)?;
                let assumed = assumed.into_iter().map(|n| Note::new(NoteKind::Inferred, n));
                let notes = notes.into_iter().chain(assumed).collect();
                Self::new(config, None, notes, &catalog.folder)?
            }
        };
        if let Some(prefix) = catalog.prefix {
            let text = format!("every key begins with `{prefix}`, which is left out, as in NeMo's checkpoints");
            model.notes.push(Note::new(NoteKind::Inferred, text));
        }
        Ok(model)
    }

    /// Takes the sizes of the checkpoint where it holds what pruning left of the model.
    fn prune(&mut self, args: &megatron::Args, keys: &BTreeMap<String, Vec<u64>>) {
        if args.values.is_empty() {
            return;
        }
        let Ok((stored, _)) = megatron::read(args, keys) else { return };
        if let Some((config, changes)) = pruned(&self.config, &stored) {
            let pruned = changes.iter().map(|change| Note::new(NoteKind::Inferred, format!("pruned: {change}")));
            self.notes.extend(pruned);
            (self.config, self.changes) = (config, changes);
        }
    }

    fn new(config: ModelConfig, folder: Option<PathBuf>, notes: Vec<Note>, path: &Path) -> Result<Self> {
        let Some(architecture) = arch::find(&config.architecture) else {
            let known: Vec<_> = arch::list().iter().map(|a| a.hf_class).collect();
            let what = format!("architecture `{}` is not one of {}", config.architecture, known.join(", "));
            return Err(Error::Model { path: path.into(), what });
        };
        Ok(Self { config, architecture, folder, changes: Vec::new(), notes })
    }

    /// Refuses a model that runs but is not converted: no checkpoint of Megatron is read or written for it.
    pub fn check_converted(&self, path: &Path) -> Result<()> {
        if self.architecture.is_converted() {
            return Ok(());
        }
        let class = self.architecture.hf_class;
        let what = format!(
            "`{class}` runs from a Hugging Face folder (generate, logits, eval), but it is not converted, exported or quantized yet"
        );
        Err(Error::Model { path: self.folder.clone().unwrap_or_else(|| path.into()), what })
    }

    /// Settles whether MTP blocks are repeated from the number of blocks that the source holds, where the config is
    /// silent. `names` are tensor names; `layers_per_block` maps an index after `mtp.layers.` to a block.
    pub fn settle_mtp<'a>(&mut self, names: impl Iterator<Item = &'a String>, indices_per_block: u64) {
        let Some(mtp) = &mut self.config.mtp else { return };
        let index =
            |name: &String| -> Option<u64> { name.strip_prefix("mtp.layers.")?.split('.').next()?.parse().ok() };
        let blocks =
            names.filter_map(index).max().map_or(0, |last| (last / indices_per_block.max(1)).saturating_add(1));
        if mtp.repeated.is_none() && mtp.depth > 1 {
            mtp.repeated = Some(blocks == 1);
            let how = if blocks == 1 { "one block, applied repeatedly" } else { "a block for each depth" };
            let text = format!("MTP depth {}: {how} (the source holds {blocks})", mtp.depth);
            self.notes.push(Note::new(NoteKind::Inferred, text));
        }
    }
}

/// What a torch_dist checkpoint says of its model apart from tensors.
pub(crate) struct Stored {
    pub(crate) args: megatron::Args,
    /// Where that was found, if not among the arguments.
    notes: Vec<Note>,
}

impl Stored {
    /// The arguments in the common state, else what Megatron-Bridge keeps in their place.
    pub(crate) fn of(catalog: &Catalog) -> Result<Self> {
        let common = catalog.common.as_ref().map(|common| megatron::Args::from_common(common.root()));
        let path = catalog.folder.join(run_config::NAME);
        if let Some(args) = common.filter(|args| !args.values.is_empty()) {
            return Ok(Self { args, notes: Vec::new() });
        }
        if !fs::exists(&path) {
            return Ok(Self { args: megatron::Args::default(), notes: Vec::new() });
        }
        let bytes = fs::read_small(&path, run_config::MAX_SIZE)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| ParseError::new(e.valid_up_to(), "expected UTF-8").in_file(&path, 0))?;
        let (args, origin) = run_config::read(text).map_err(|problem| Error::Refused(vec![problem]))?;
        let origin = origin.map(|id| format!(", made from `{id}`")).unwrap_or_default();
        let text = format!("the model is that of Megatron-Bridge's `{}`{origin}", run_config::NAME);
        Ok(Self { args, notes: vec![Note::new(NoteKind::Inferred, text)] })
    }
}

/// The tokenizer that Megatron stores with a checkpoint (`--save-tokenizer-assets`, and Megatron-Bridge always).
pub fn tokenizer_folder(catalog: &Catalog) -> Option<PathBuf> {
    let folder = catalog.folder.join(TOKENIZER);
    (catalog.format == Format::TorchDist && fs::is_dir(&folder)).then_some(folder)
}

/// The keys that a torch_dist checkpoint uses.
pub fn spec_keys(catalog: &Catalog) -> SpecKeys {
    let fused = catalog.tensors.keys().any(|k| k.ends_with(".layer_norm_weight"));
    let norms = if fused { NormKeys::Fused } else { NormKeys::Separate };
    let has = |suffix: &str| catalog.objects.keys().any(|k| k.contains(suffix));
    // The state of the last norm exists in every layout.
    let norm_states = |key: &String| key.contains("norm._extra_state") && !key.starts_with("decoder.final_norm.");
    SpecKeys {
        norms,
        norm_states: catalog.objects.keys().any(norm_states),
        core_attention_states: has("core_attention._extra_state"),
        single_experts: catalog.tensors.keys().any(|k| k.contains(".mlp.experts.experts.0.")),
    }
}

/// The module layout that a torch_dist checkpoint was written for: what its arguments say, else what its keys show.
pub fn spec(catalog: &Catalog) -> SpecName {
    let keys = spec_keys(catalog);
    let arguments = catalog.common.as_ref().map(|common| megatron::Args::from_common(common.root()));
    let local = arguments.as_ref().and_then(|a| a.get("transformer_impl")).map(|name| name.to_string() == "local");
    // Of experts with a tensor each, those with quantizers say whether they were one module.
    let grouped = || !keys.single_experts || groups_experts(catalog).unwrap_or(false);
    let is_local = local.unwrap_or_else(|| keys.norms == NormKeys::Separate || !grouped());
    if is_local { SpecName::Local } else { SpecName::Te }
}

/// Refuses a vocabulary that no tensor can have, be it a manifest or a table that claims it.
pub(crate) fn check_vocabulary(config: &ModelConfig, rows: u64, path: &Path) -> Result<()> {
    // As for the sizes of a config: no number of bytes may overflow.
    if config.vocab_size > 0 && rows.checked_mul(config.hidden_size).is_some_and(|n| n < 1 << 60) {
        return Ok(());
    }
    let what = format!("expected a vocabulary, found one of {} in {rows} rows", config.vocab_size);
    Err(Error::Model { path: path.into(), what })
}

/// Rows of the vocabulary as a torch_dist checkpoint stores it.
pub fn stored_vocab(catalog: &Catalog) -> Option<u64> {
    catalog.tensors.get("embedding.word_embeddings.weight").and_then(|t| t.shape.first().copied())
}

/// The manifest of a checkpoint, if it has one.
pub fn read_manifest(folder: &Path) -> Result<Option<Manifest>> {
    let path = folder.join(manifest::NAME);
    if !fs::exists(&path) {
        return Ok(None);
    }
    let bytes = fs::read_small(&path, manifest::MAX_SIZE)?;
    let parsed = Manifest::parse(&bytes);
    Ok(Some(parsed.map_err(|what| longshore_ckpt::Error::Malformed { path, offset: 0, what })?))
}
