//! Hugging Face folders made of a config alone: every tensor that the mapping declares, with bytes of the test's choice.

use longshore_ckpt::{Dtype, safetensors};
use longshore_convert::NormKeys;
use longshore_convert::arch::{self, SpecKeys};
use longshore_convert::config::ModelConfig;
use longshore_convert::mapping::Precision;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// A tensor to write.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// In elements.
    pub(crate) shape: Vec<u64>,
}

impl Tensor {
    pub(crate) fn size(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.size()
    }
}

/// Fills the next bytes of a tensor. Without one the data is a hole in the file.
pub(crate) type Fill<'a> = &'a mut dyn FnMut(&Tensor, &mut [u8]);

/// The tensors of a model in the order of a release: the params dtype, but float32 where releases have it.
pub(crate) fn declared(config: &ModelConfig, params: Dtype) -> Vec<Tensor> {
    let keys = SpecKeys { norms: NormKeys::Fused, norm_states: true, ..SpecKeys::CANONICAL };
    let architecture = arch::find(&config.architecture).expect("a supported architecture");
    let mapping = (architecture.mapping)(config, &keys, config.vocab_size);
    let tensor = |name: &String| {
        let declared = &mapping.hf[name];
        let dtype = if declared.precision == Precision::Float32 { Dtype::Float32 } else { params };
        Tensor { name: name.clone(), dtype, shape: declared.shape.clone() }
    };
    mapping.hf_order.iter().map(tensor).collect()
}

/// Writes the folder: `config.json` and the tensors, in files of at most `shard_size` bytes, with an index if several.
pub(crate) fn write(folder: &Path, config: &str, tensors: &[Tensor], shard_size: u64, mut fill: Option<Fill<'_>>) {
    std::fs::create_dir_all(folder).expect("a new folder");
    std::fs::write(folder.join("config.json"), config).expect("a writable folder");
    let mut shards: Vec<Vec<&Tensor>> = vec![Vec::new()];
    let mut size = 0;
    for tensor in tensors {
        if size > 0 && size + tensor.size() > shard_size {
            shards.push(Vec::new());
            size = 0;
        }
        size += tensor.size();
        shards.last_mut().expect("at least one").push(tensor);
    }
    let mut weight_map = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), name.clone())));
        write_shard(&folder.join(&name), shard, &mut fill);
    }
    if shards.len() > 1 {
        let total = tensors.iter().map(Tensor::size).sum();
        let index = safetensors::index_json(total, &weight_map);
        std::fs::write(folder.join("model.safetensors.index.json"), index).expect("a writable folder");
    }
}

fn write_shard(path: &Path, tensors: &[&Tensor], fill: &mut Option<Fill<'_>>) {
    let entries: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice())).collect();
    let header = safetensors::header_bytes(&entries, &BTreeMap::new());
    let mut file = File::create(path).expect("a writable folder");
    file.write_all(&header).expect("room on the disk");
    let Some(fill) = fill else {
        let size: u64 = tensors.iter().map(|tensor| tensor.size()).sum();
        return file.set_len(header.len() as u64 + size).expect("a filesystem with holes");
    };
    let mut buffer = vec![0; 1 << 20];
    for tensor in tensors {
        let mut left = tensor.size();
        while left > 0 {
            let part = &mut buffer[..left.min(1 << 20) as usize];
            fill(tensor, part);
            file.write_all(part).expect("room on the disk");
            left -= part.len() as u64;
        }
    }
}
