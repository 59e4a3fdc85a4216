//! Checkpoints of other formats, told by their files so that they are refused by name. No pickle of theirs is read but the
//! table of a DCP folder, and that is parsed, never executed.
//!
//! Reference: Megatron-LM main of August 2026, `training/checkpointing.py` (`_get_checkpoint_format`); NeMo's archives.

use crate::torch_dist::folder::{INNER, is_inner};
use crate::torch_dist::{MAX_TABLE, TABLE, metadata};
use crate::{Error, Result, fs};
use std::path::{Path, PathBuf};

/// A format that is recognised and not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherFormat {
    /// Megatron's oldest, `--ckpt-format torch`.
    MegatronRanks,
    /// Megatron-FSDP's.
    FsdpDtensor,
    /// Any other folder of torch's distributed checkpointing.
    TorchDcp,
    /// megatron-core's before torch_dist, removed in 0.16.
    Zarr,
    /// NeMo's tar archive.
    NemoArchive,
    /// NeMo's weights outside of a distributed checkpoint.
    NemoPickle,
}

impl std::fmt::Display for OtherFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::MegatronRanks => "a legacy Megatron checkpoint with a pickle for each rank (`mp_rank_*`)",
            Self::FsdpDtensor => "a checkpoint of Megatron-FSDP (`fsdp_dtensor`)",
            Self::TorchDcp => {
                "a checkpoint of torch's own distributed format (`torch_dcp`), without Megatron's `metadata.json`"
            }
            Self::Zarr => "a distributed checkpoint with the backend `zarr`",
            Self::NemoArchive => "a `.nemo` archive",
            Self::NemoPickle => "a NeMo checkpoint whose weights are one pickle (`model_weights.ckpt`)",
        })
    }
}

impl OtherFormat {
    /// The error that refuses this format at `path`.
    pub fn refused(self, path: &Path) -> Error {
        Error::OtherFormat { path: path.to_owned(), format: self }
    }

    /// What lies at `path` or in one of the folders in which a checkpoint keeps its data, where it is one of these.
    pub fn find(path: &Path) -> Result<Option<(PathBuf, Self)>> {
        if !fs::is_dir(path) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let format = if is_nemo(name) { Some(Self::NemoArchive) } else { Self::by_file(name) };
            return Ok(format.map(|format| (path.to_owned(), format)));
        }
        let names = fs::list(path)?;
        if let Some(format) = Self::of_folder(path, &names)? {
            return Ok(Some((path.to_owned(), format)));
        }
        for name in names.iter().filter(|name| is_inner(name) || INNER.contains(&name.as_str())) {
            let inner = path.join(name);
            if !fs::is_dir(&inner) {
                continue;
            }
            if let Some(format) = Self::of_folder(&inner, &fs::list(&inner)?)? {
                return Ok(Some((inner, format)));
            }
        }
        let archive = names.iter().find(|name| is_nemo(name));
        Ok(archive.map(|name| (path.join(name), Self::NemoArchive)))
    }

    fn of_folder(folder: &Path, names: &[String]) -> Result<Option<Self>> {
        if let Some(format) = names.iter().find_map(|name| Self::by_file(name)) {
            return Ok(Some(format));
        }
        if !names.iter().any(|name| name == TABLE) {
            return Ok(None);
        }
        // A table that cannot be read is no torch_dist checkpoint either.
        let table = metadata::parse(&fs::read_small(&folder.join(TABLE), MAX_TABLE)?);
        let is_fsdp = |key: &String| key.starts_with("model.module.");
        Ok(Some(match table {
            Ok(table) if table.tensors.keys().any(is_fsdp) => Self::FsdpDtensor,
            _ => Self::TorchDcp,
        }))
    }

    /// By the name of a file, which for Megatron may be a folder too.
    fn by_file(name: &str) -> Option<Self> {
        if name.starts_with("mp_rank_") || name == "model_optim_rng.pt" {
            Some(Self::MegatronRanks)
        } else if name == "model_weights.ckpt" {
            Some(Self::NemoPickle)
        } else {
            None
        }
    }
}

fn is_nemo(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "nemo")
}
