//! The manifest `longshore.json`: what a conversion wrote, tensor by tensor, with checksums. No times, no paths, so that
//! equal input gives equal bytes.

use longshore_ckpt::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the manifest, in the folder of the data files.
pub const NAME: &str = "longshore.json";
/// Largest manifest read: 200 bytes a chunk and a million chunks.
pub const MAX_SIZE: u64 = 512 << 20;

/// A stored piece of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Index into [`Manifest::files`] by name order.
    pub file: u32,
    /// First byte of the raw data in the file.
    pub offset: u64,
    /// First index on every axis; absent where the chunk is the whole tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Vec<u64>>,
    /// Extent on every axis; absent where the chunk is the whole tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<u64>>,
    /// CRC-32 of the raw data.
    pub crc32: u32,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, in elements.
    pub shape: Vec<u64>,
    /// The pieces.
    pub chunks: Vec<Chunk>,
}

/// A file of the folder, subfolders included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Name, with `/` for a subfolder.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// CRC-32 of the whole file.
    pub crc32: u32,
}

/// What the way back needs and the tensors do not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The architecture's Hugging Face class.
    pub architecture: String,
    /// Rows of the vocabulary that mean a token.
    pub vocab_size: u64,
    /// Source tensors whose dtype is not that of the tensor that holds them here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dtypes: BTreeMap<String, Dtype>,
    /// Source tensors left out on request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<String>,
    /// Tensors here that are those of a base folder and not of the source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_base: Vec<String>,
    /// Whether nothing recorded which dtypes the Hugging Face tensors had: an export then decides by the values.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dtypes_unknown: bool,
}

/// The whole manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout: 1.
    pub schema: u32,
    /// `longshore` and its version.
    pub program: String,
    /// The fingerprint of the plan.
    pub fingerprint: String,
    /// Identifies what was computed with before there was a plan ([`crate::Plan::with_inputs`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<String>,
    /// About the source.
    pub origin: Origin,
    /// All files but the manifest itself, by name.
    pub files: Vec<File>,
    /// All tensors.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Manifest {
    /// The bytes of `longshore.json`: one line per file and tensor.
    pub fn to_json(&self) -> Vec<u8> {
        let text = |value: serde_json::Result<String>| value.unwrap_or_default();
        let inputs = self
            .inputs
            .as_ref()
            .map_or_else(String::new, |inputs| format!("\"inputs\":{},", text(serde_json::to_string(inputs))));
        let mut out = format!(
            "{{\"schema\":{},\"program\":{},\"fingerprint\":{},{inputs}\n\"origin\":{},\n\"files\":[",
            self.schema,
            text(serde_json::to_string(&self.program)),
            text(serde_json::to_string(&self.fingerprint)),
            text(serde_json::to_string(&self.origin)),
        );
        for (i, file) in self.files.iter().enumerate() {
            out += if i == 0 { "\n" } else { ",\n" };
            out += &text(serde_json::to_string(file));
        }
        out += "],\n\"tensors\":{";
        for (i, (name, tensor)) in self.tensors.iter().enumerate() {
            out += if i == 0 { "\n" } else { ",\n" };
            out += &text(serde_json::to_string(name));
            out += ":";
            out += &text(serde_json::to_string(tensor));
        }
        out += "}}\n";
        out.into_bytes()
    }

    /// Parses a manifest. Errors: no JSON of this layout.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if manifest.schema != 1 {
            return Err(format!("schema {} is not 1", manifest.schema));
        }
        if let Some(pair) = manifest.files.windows(2).find(|pair| pair[0].name >= pair[1].name) {
            return Err(format!(
                "the file `{}` comes after `{}`, not in the order of names",
                pair[1].name, pair[0].name
            ));
        }
        Ok(manifest)
    }
}
