//! The residual stream between layers, for more tokens than memory holds: blocks of rows, in memory up to a budget and in
//! a scratch file beyond it.

use crate::error::Result;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use longshore_ckpt::fs::ScratchFile;
use std::path::Path;

/// How an element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As it is.
    Float32,
    /// As bfloat16: exact where the residual stream is rounded to it anyway.
    Bfloat16,
}

impl Storage {
    /// The type of elements of this many bytes that loses nothing, see
    /// [`Backend::activation_size`](crate::backend::Backend::activation_size).
    pub(crate) fn of_size(bytes: u64) -> Self {
        if bytes == 2 { Self::Bfloat16 } else { Self::Float32 }
    }

    /// Bytes of an element.
    pub fn size(self) -> u64 {
        match self {
            Self::Float32 => 4,
            Self::Bfloat16 => 2,
        }
    }
}

/// Blocks of rows by index.
pub struct Activations {
    storage: Storage,
    blocks: Vec<Block>,
    scratch: Option<ScratchFile>,
}

enum Block {
    Float32(Vec<f32>),
    Bfloat16(Vec<bf16>),
    /// At this byte of the scratch file, this many elements.
    Spilled(u64, usize),
}

impl Activations {
    /// Blocks of these many elements. Those from the first on that fit `budget` bytes together stay in memory, the others
    /// go to a nameless file in `folder`.
    pub fn new(storage: Storage, sizes: &[usize], budget: u64, folder: &Path) -> Result<Self> {
        let (mut left, mut offset, mut spilled) = (budget, 0, false);
        let blocks = sizes
            .iter()
            .map(|&len| {
                let bytes = len as u64 * storage.size();
                if !spilled && bytes <= left {
                    left -= bytes;
                    return match storage {
                        Storage::Float32 => Block::Float32(Vec::new()),
                        Storage::Bfloat16 => Block::Bfloat16(Vec::new()),
                    };
                }
                spilled = true;
                offset += bytes;
                Block::Spilled(offset - bytes, len)
            })
            .collect();
        let scratch = if spilled { Some(ScratchFile::create(folder)?) } else { None };
        Ok(Self { storage, blocks, scratch })
    }

    /// Bytes that are not in memory.
    pub fn spilled_bytes(&self) -> u64 {
        let size = |block: &Block| if let Block::Spilled(_, len) = block { *len as u64 } else { 0 };
        self.blocks.iter().map(size).sum::<u64>() * self.storage.size()
    }

    /// Stores the elements of a block.
    pub fn put(&mut self, index: usize, values: &[f32]) -> Result<()> {
        match &mut self.blocks[index] {
            Block::Float32(block) => {
                block.clear();
                block.extend_from_slice(values);
            }
            Block::Bfloat16(block) => {
                block.resize(values.len(), bf16::ZERO);
                block.convert_from_f32_slice(values);
            }
            Block::Spilled(offset, _) => {
                let bytes: Vec<u8> = match self.storage {
                    Storage::Float32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                    Storage::Bfloat16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
                };
                if let Some(scratch) = &self.scratch {
                    scratch.write_at(*offset, &bytes)?;
                }
            }
        }
        Ok(())
    }

    /// The elements of a block that was put.
    pub fn get(&self, index: usize) -> Result<Vec<f32>> {
        Ok(match &self.blocks[index] {
            Block::Float32(block) => block.clone(),
            Block::Bfloat16(block) => block.iter().map(|x| x.to_f32()).collect(),
            Block::Spilled(..) => {
                let bytes = self.stored(index)?;
                match self.storage {
                    Storage::Float32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
                    Storage::Bfloat16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
                }
            }
        })
    }

    /// Blocks.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of a block that was put, as it is stored.
    pub(crate) fn stored_size(&self, index: usize) -> u64 {
        let len = match &self.blocks[index] {
            Block::Float32(block) => block.len(),
            Block::Bfloat16(block) => block.len(),
            Block::Spilled(_, len) => *len,
        };
        len as u64 * self.storage.size()
    }

    /// The bytes of a block that was put, little-endian: what [`Activations::put_stored`] takes.
    pub(crate) fn stored(&self, index: usize) -> Result<Vec<u8>> {
        Ok(match &self.blocks[index] {
            Block::Float32(block) => block.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Block::Bfloat16(block) => block.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Block::Spilled(offset, _) => {
                let mut bytes = vec![0; self.stored_size(index) as usize];
                if let Some(scratch) = &self.scratch {
                    scratch.read_at(*offset, &mut bytes)?;
                }
                bytes
            }
        })
    }

    /// Stores a block in the form of [`Activations::stored`].
    pub(crate) fn put_stored(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        match &mut self.blocks[index] {
            Block::Float32(block) => *block = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Block::Bfloat16(block) => *block = bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b)).collect(),
            Block::Spilled(offset, _) => {
                if let Some(scratch) = &self.scratch {
                    scratch.write_at(*offset, bytes)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_beyond_the_budget_come_back_from_disk() {
        let folder = tempfile::tempdir().unwrap();
        for storage in [Storage::Float32, Storage::Bfloat16] {
            let mut acts = Activations::new(storage, &[4, 4, 2], 4 * storage.size() + 1, folder.path()).unwrap();
            assert_eq!(acts.spilled_bytes(), 6 * storage.size());
            let blocks = [vec![1.0, -2.0, 0.5, 3.0], vec![f32::INFINITY, 0.0, -0.0, 7.0], vec![9.0, 10.0]];
            for round in 0..2 {
                for (i, block) in blocks.iter().enumerate() {
                    acts.put(i, block).unwrap();
                }
                for (i, block) in blocks.iter().enumerate() {
                    assert_eq!(&acts.get(i).unwrap(), block, "{storage:?} round {round}");
                }
                assert_eq!(acts.len(), blocks.len());
                for (i, block) in blocks.iter().enumerate() {
                    let bytes = acts.stored(i).unwrap();
                    assert_eq!(bytes.len() as u64, acts.stored_size(i));
                    acts.put(i, &vec![4.0; block.len()]).unwrap();
                    acts.put_stored(i, &bytes).unwrap();
                    assert_eq!(acts.stored(i).unwrap(), bytes, "{storage:?} round {round}");
                }
            }
        }
    }
}
