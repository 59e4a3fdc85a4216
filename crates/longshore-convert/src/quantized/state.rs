//! The state of quantizers as ModelOpt keeps it in a Megatron checkpoint.
//!
//! A quantized module `P` has its weights unchanged and beside them `P.weight_quantizer._amax`, `P.input_quantizer._amax`
//! and `P.input_quantizer._pre_quant_scale`, with a number before the last part where a weight is quantized in sequence.
//! The attributes are pickled in the object `P._extra_state/shard_0_1`, also of a module that is not quantized: for it
//! they are the only record. The config and the algorithm are in the folder `modelopt_state/`. [`read`] takes all of it
//! out of a catalog; [`write`](mod@write) makes the objects and [`record`] the folder.
//!
//! Reference: ModelOpt 0.47 `torch/quantization/plugins/{megatron,transformer_engine,custom}.py`,
//! `torch/opt/plugins/{megatron,mcore_dist_checkpointing}.py`. What Transformer Engine's modules store (grouped experts,
//! `core_attention`) was compared with ModelOpt around modules that have their parameters, but no kernels.

mod attributes;
pub mod read;
pub mod record;
pub mod write;

pub use read::{QuantizerStates, Stage, StoredTensor};
pub(crate) use read::{groups_experts, is_of_quantizer, stored_values};
pub use record::Record;
pub use write::{StageState, extra_state};

use crate::resolve::{OpenFiles, locate};
use crate::{Error, Result};
use longshore_ckpt::Catalog;
use longshore_ckpt::fs::ReadFile;

/// The values of a quantizer's tensor, widened: they are few.
pub fn values(catalog: &Catalog, name: &str) -> Result<Vec<f32>> {
    let tensor = match locate(catalog, &mut OpenFiles::new(catalog), name)? {
        Ok(tensor) => tensor,
        Err(problem) => return Err(Error::Refused(vec![problem])),
    };
    let read =
        |file: u32, offset: u64, bytes: &mut [u8]| ReadFile::open(&catalog.path(file))?.read_exact_at(offset, bytes);
    Ok(stored_values(&tensor, read)?)
}
