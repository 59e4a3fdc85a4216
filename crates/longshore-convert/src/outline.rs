//! What a checkpoint says of its model, without its weights: what the launch arguments and the sizes of ranks follow from.

use crate::Result;
use crate::model::{self, Model, stored_vocab};
use crate::options::SpecName;
use crate::plan::{Note, NoteKind};
use longshore_ckpt::{Catalog, Dtype, Format, fs};
use std::path::Path;

/// A model as its checkpoint describes it.
pub struct Outline {
    /// Its config and architecture.
    pub model: Model,
    /// Rows of the vocabulary that Megatron has to have, padding included.
    pub vocab_rows: u64,
    /// The element type of the parameters, where the config or the embedding shows it.
    pub dtype: Option<Dtype>,
    /// The module layout that the checkpoint was written for; te for a Hugging Face folder.
    pub spec: SpecName,
}

impl Outline {
    /// Reads the headers of a checkpoint of either format, and its config in `base` where that is given. A folder that has a
    /// config.json and no weights is enough.
    pub fn open(path: &Path, base: Option<&Path>) -> Result<Self> {
        let catalog = match Catalog::open(path) {
            Ok(catalog) => catalog,
            Err(longshore_ckpt::Error::NotFound { .. }) if fs::exists(&path.join("config.json")) => {
                let mut model = Model::from_folder(base.unwrap_or(path))?;
                model.notes.push(Note::new(NoteKind::Inferred, "there are no weights: the config alone is read"));
                let (vocab_rows, dtype) = (model.config.vocab_size, model.config.dtype);
                return Ok(Self { model, vocab_rows, dtype, spec: SpecName::Te });
            }
            Err(error) => return Err(error.into()),
        };
        let embedding;
        let (model, vocab_rows, spec) = match catalog.format {
            Format::Safetensors => {
                let mut model = Model::from_folder(base.unwrap_or(&catalog.folder))?;
                let per_block = model.config.mtp.as_ref().map_or(1, |m| m.layers.len() as u64);
                model.settle_mtp(catalog.tensors.keys(), per_block);
                let rows = model.config.vocab_size;
                embedding = catalog.tensors.get("backbone.embeddings.weight");
                (model, rows, SpecName::Te)
            }
            Format::TorchDist => {
                let mut model = Model::from_torch_dist(&catalog, base)?;
                model.settle_mtp(catalog.tensors.keys(), 1);
                let rows = stored_vocab(&catalog).unwrap_or(model.config.vocab_size).max(model.config.vocab_size);
                model::check_vocabulary(&model.config, rows, &catalog.folder)?;
                embedding = catalog.tensors.get("embedding.word_embeddings.weight");
                (model, rows, model::spec(&catalog))
            }
        };
        let dtype = model.config.dtype.or(embedding.map(|info| info.dtype));
        Ok(Self { model, vocab_rows, dtype, spec })
    }
}
