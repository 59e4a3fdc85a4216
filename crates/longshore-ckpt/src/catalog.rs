//! The catalog: what a checkpoint holds and where, without its data.

use crate::tensor::{Dtype, Rect, check_tiling};
use crate::torch_dist::pickle::Pickle;
use crate::{OtherFormat, Result, safetensors, torch_dist};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The two checkpoint formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A Hugging Face folder of safetensors files.
    Safetensors,
    /// A Megatron-Core distributed checkpoint.
    TorchDist,
}

impl Format {
    /// The format of the checkpoint at `path`, by its files. One of another format is refused by name; where nothing marks
    /// one, a Hugging Face folder is expected.
    pub fn of(path: &Path) -> Result<Self> {
        if safetensors::is_marked(path) && !torch_dist::is_marked(path) {
            return Ok(Self::Safetensors);
        }
        if torch_dist::folder::find(path)?.is_some() {
            return Ok(Self::TorchDist);
        }
        match OtherFormat::find(path)? {
            Some((found, format)) => Err(format.refused(&found)),
            None => Ok(Self::Safetensors),
        }
    }
}

/// A data file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataFile {
    /// Name relative to [`Catalog::folder`].
    pub name: String,
    /// Length in bytes.
    pub size: u64,
}

/// A byte range of one data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Extent {
    /// Index into [`Catalog::files`].
    pub file: u32,
    /// First byte, from the file's start.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One stored piece of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Which elements of the tensor.
    pub rect: Rect,
    /// Where they lie. In safetensors this is the raw row-major little-endian data; in torch_dist it is the zip archive
    /// around it, see [`torch_dist::locate_payload`].
    pub extent: Extent,
}

/// A tensor as the checkpoint declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Global shape, in elements.
    pub shape: Vec<u64>,
    /// The stored pieces, in the order of the checkpoint.
    pub chunks: Vec<Chunk>,
}

impl TensorInfo {
    /// Size of all elements in bytes (0 where it overflows, which [`TensorInfo::check`] reports).
    pub fn size(&self) -> u64 {
        crate::tensor::element_count(&self.shape).and_then(|n| n.checked_mul(self.dtype.size())).unwrap_or(0)
    }

    /// Whether the chunks tile the tensor exactly once; otherwise the rule that is broken.
    pub fn check(&self) -> std::result::Result<(), String> {
        check_tiling(&self.shape, &self.chunks.iter().map(|c| &c.rect).collect::<Vec<_>>())
    }
}

/// Every tensor and object of a checkpoint and where it lies.
#[derive(Debug)]
pub struct Catalog {
    /// The format found.
    pub format: Format,
    /// The folder that holds the data files: for torch_dist the inner one (`release`, `iter_*`).
    pub folder: PathBuf,
    /// The data files, sorted by name.
    pub files: Vec<DataFile>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Opaque objects of torch_dist (`KEY/shard_o_n`) by name.
    pub objects: BTreeMap<String, Extent>,
    /// The common state of torch_dist (`common.pt` or the object `common_state`), parsed, never executed.
    pub common: Option<Pickle>,
    /// What every key of the model begins with in the files of torch_dist and not here, as NeMo writes them.
    pub prefix: Option<&'static str>,
}

impl Catalog {
    /// Opens the checkpoint at `path`: a Hugging Face folder, a Megatron root or one of its inner folders. Reads headers
    /// and metadata only.
    pub fn open(path: &Path) -> Result<Self> {
        match Format::of(path)? {
            Format::TorchDist => torch_dist::open(path),
            Format::Safetensors => safetensors::open(path),
        }
    }

    /// The full path of a data file.
    pub fn path(&self, file: u32) -> PathBuf {
        self.folder.join(&self.files[file as usize].name)
    }

    /// Bytes of all tensors together; `u64::MAX` where the claimed shapes add up to more.
    pub fn total_size(&self) -> u64 {
        self.tensors.values().fold(0, |sum, info| sum.saturating_add(info.size()))
    }
}
