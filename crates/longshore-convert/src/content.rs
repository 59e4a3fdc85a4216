//! One hash of what a checkpoint's tensors hold: whether two runs had the same weights.
//!
//! It is the SHA-256, in hexadecimal, of a line for each stored piece of a tensor, in the order of names and places:
//! `["name","bfloat16",[shape],[first index],[extent],crc32]`, JSON without blanks, where the CRC-32 is that of the raw data.
//! File names and offsets, configs, opaque objects and training state are not in it. The same weights in another format, or
//! cut otherwise, have another hash.

use crate::Result;
use crate::compare::{Side, check_cancelled, parallel};
use crate::gather::BAND;
use crate::manifest::Manifest;
use crate::model::read_manifest;
use crate::progress::Progress;
use crate::run::crc_of;
use crate::verify::fits_manifest;
use crc32fast::Hasher;
use longshore_ckpt::{Dtype, Extent, Format, torch_dist};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a part, which one thread reads: a checkpoint may be one tensor.
const PART: u64 = BAND as u64;

/// The hash, and what it cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentHash {
    /// The hash.
    pub sha256: String,
    /// Whether the checksums are those of the manifest that a conversion wrote, and no tensor was read.
    pub from_manifest: bool,
    /// Bytes read.
    pub bytes: u64,
}

/// A stored piece of a tensor: name, type, shape, first index, extent, CRC-32.
type Line<'a> = (&'a str, Dtype, &'a [u64], Vec<u64>, Vec<u64>, u32);

/// The hash of the checkpoint at `path`. The manifest's checksums count where there is one whose tables and file lengths
/// are those of the checkpoint; else all tensors are read, in bounded memory.
pub fn content_hash(path: &Path, threads: usize, progress: &dyn Progress) -> Result<ContentHash> {
    let side = Side::open(path)?;
    // A manifest that cannot be read says nothing; the data does.
    if let Ok(Some(manifest)) = read_manifest(&side.catalog.folder)
        && fits_manifest(&side.catalog, &manifest)
    {
        return Ok(ContentHash { sha256: hash(listed(&manifest)), from_manifest: true, bytes: 0 });
    }
    let (lines, bytes) = read(&side, threads, progress)?;
    Ok(ContentHash { sha256: hash(lines), from_manifest: false, bytes })
}

fn hash(mut lines: Vec<Line<'_>>) -> String {
    lines.sort();
    let mut hash = Sha256::new();
    for (name, dtype, shape, start, extent, crc) in lines {
        let line = serde_json::json!([name, dtype.torch_name(), shape, start, extent, crc]);
        hash.update(format!("{line}\n"));
    }
    format!("{:x}", hash.finalize())
}

/// The pieces that a manifest lists.
fn listed(manifest: &Manifest) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    for (name, tensor) in &manifest.tensors {
        for chunk in &tensor.chunks {
            let start = chunk.start.clone().unwrap_or_else(|| vec![0; tensor.shape.len()]);
            let extent = chunk.shape.clone().unwrap_or_else(|| tensor.shape.clone());
            lines.push((name.as_str(), tensor.dtype, tensor.shape.as_slice(), start, extent, chunk.crc32));
        }
    }
    lines
}

/// The pieces that the checkpoint stores, read, and their bytes.
fn read<'a>(side: &'a Side, threads: usize, progress: &dyn Progress) -> Result<(Vec<Line<'a>>, u64)> {
    let mut stored = Vec::new();
    for (name, info) in &side.catalog.tensors {
        for chunk in &info.chunks {
            let extent = match side.catalog.format {
                Format::Safetensors => chunk.extent,
                Format::TorchDist => {
                    torch_dist::locate_payload(&side.files[chunk.extent.file as usize], info, chunk)?.0
                }
            };
            stored.push((name.as_str(), info, chunk, extent));
        }
    }
    // Parts of pieces, each with its checksum once it is read.
    let mut parts: Vec<(Extent, AtomicU32)> = Vec::new();
    for &(.., Extent { file, offset, len }) in &stored {
        for at in (0..len).step_by(BAND) {
            parts.push((Extent { file, offset: offset + at, len: PART.min(len - at) }, AtomicU32::new(0)));
        }
    }
    let names: Vec<PathBuf> = side.catalog.files.iter().map(|file| PathBuf::from(&file.name)).collect();
    let bytes = parts.iter().map(|(extent, _)| extent.len).sum();
    progress.start("Hashing", bytes);
    parallel(threads, parts.len(), |i| {
        check_cancelled(progress)?;
        let (Extent { file, offset, len }, crc) = &parts[i];
        let mut band = vec![0; BAND.min(*len as usize)];
        let found = crc_of(&side.files[*file as usize], *offset, *len, &mut band)?;
        progress.advance(*len, &names[*file as usize]);
        crc.store(found, Ordering::Relaxed);
        Ok(())
    })?;
    let mut parts = parts.into_iter();
    let lines = stored.into_iter().map(|(name, info, chunk, extent)| {
        let mut whole = Hasher::new();
        for (part, crc) in parts.by_ref().take(extent.len.div_ceil(PART) as usize) {
            whole.combine(&Hasher::new_with_initial_len(crc.into_inner(), part.len));
        }
        let (start, sizes) = (chunk.rect.offsets.clone(), chunk.rect.sizes.clone());
        (name, info.dtype, info.shape.as_slice(), start, sizes, whole.finalize())
    });
    Ok((lines.collect(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn a_tensor_larger_than_a_part_has_the_checksum_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..(2 * BAND + 77) as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let header = format!(
            r#"{{"b":{{"dtype":"U8","shape":[{n}],"data_offsets":[0,{n}]}},"a":{{"dtype":"F32","shape":[0,2],"data_offsets":[{n},{n}]}}}}"#,
            n = bytes.len()
        );
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes].concat();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let (n, crc) = (bytes.len(), crc32fast::hash(&bytes));
        let lines = format!("[\"a\",\"float32\",[0,2],[0,0],[0,2],0]\n[\"b\",\"uint8\",[{n}],[0],[{n}],{crc}]\n");
        let sha256 = format!("{:x}", Sha256::digest(lines));
        for threads in [1, 3] {
            let found = content_hash(dir.path(), threads, &Silent).unwrap();
            assert_eq!(found, ContentHash { sha256: sha256.clone(), from_manifest: false, bytes: n as u64 });
        }
    }
}
