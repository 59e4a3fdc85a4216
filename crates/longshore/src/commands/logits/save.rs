//! What a model computes as a safetensors file, for comparison in other programs. For prompt `i`:
//! `p{i}.input_ids` `[T]`, `p{i}.hidden` `[layers + 1, T, hidden]` (after the embedding and after every layer),
//! `p{i}.logits` `[T, vocab]`, and for MoE layer `l` `p{i}.router.{l}` `[T, experts]`, `p{i}.topk_idx.{l}` and
//! `p{i}.topk_w.{l}` `[T, top_k]`, experts in ascending order.

use anyhow::Result;
use longshore_ckpt::{Dtype, fs, safetensors};
use longshore_infer::backend::Routing;
use longshore_infer::backend::cpu::Cpu;
use longshore_infer::model::{Model, Observer};
use longshore_infer::sweep::{Sweep, SweepOptions};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Tensors by name: dtype, shape, little-endian data.
#[derive(Default)]
struct Tensors(BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)>);

impl Tensors {
    /// Appends rows, `[rows, width]`, to a tensor that grows along its first axis.
    fn rows(&mut self, name: String, width: usize, values: &[f32]) {
        let (_, shape, data) = self.0.entry(name).or_insert((Dtype::Float32, vec![0, width as u64], Vec::new()));
        shape[0] += (values.len() / width) as u64;
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }

    fn integers(&mut self, name: String, width: Option<usize>, values: &[u32]) {
        let first = vec![0].into_iter().chain(width.map(|w| w as u64)).collect();
        let (_, shape, data) = self.0.entry(name).or_insert((Dtype::Int64, first, Vec::new()));
        shape[0] += (values.len() / width.unwrap_or(1)) as u64;
        data.extend(values.iter().flat_map(|&x| i64::from(x).to_le_bytes()));
    }
}

impl Observer for Tensors {
    fn routing(&mut self, layer: usize, rows: &[(usize, Range<usize>)], routing: &Routing) {
        let tokens: usize = rows.iter().map(|r| r.1.len()).sum();
        let (experts, top_k) = (routing.logits.len() / tokens, routing.experts.len() / tokens);
        let mut row = 0;
        for (p, range) in rows {
            let end = row + range.len();
            self.rows(format!("p{p}.router.{layer}"), experts, &routing.logits[row * experts..end * experts]);
            self.rows(format!("p{p}.topk_w.{layer}"), top_k, &routing.weights[row * top_k..end * top_k]);
            let chosen = &routing.experts[row * top_k..end * top_k];
            self.integers(format!("p{p}.topk_idx.{layer}"), Some(top_k), chosen);
            row = end;
        }
    }
}

pub(super) fn save(model: &Arc<Model<Cpu>>, prompts: &[Vec<u32>], options: &SweepOptions, path: &Path) -> Result<()> {
    let mut tensors = Tensors::default();
    for (p, ids) in prompts.iter().enumerate() {
        tensors.integers(format!("p{p}.input_ids"), None, ids);
    }
    let mut sweep = Sweep::new(model, prompts, options, false)?;
    loop {
        for batch in 0..sweep.n_batches() {
            let (names, rows) = sweep.hidden(batch)?;
            for ((p, _), row) in names.into_iter().zip(rows.chunks_exact(model.hidden())) {
                tensors.rows(format!("p{p}.hidden"), model.hidden(), row);
            }
        }
        if !sweep.next_layer(&mut tensors)? {
            break;
        }
    }
    // The rows came layer by layer; the name tells how many layers they are.
    for (p, ids) in prompts.iter().enumerate() {
        if let Some((_, shape, _)) = tensors.0.get_mut(&format!("p{p}.hidden")) {
            *shape = vec![model.n_layers() as u64 + 1, ids.len() as u64, model.hidden() as u64];
        }
    }
    sweep.each_logits(16, |_, _| true, |p, _, row| tensors.rows(format!("p{p}.logits"), model.vocab(), row))?;
    let table: Vec<_> = tensors.0.iter().map(|(name, t)| (name.as_str(), t.0, t.1.as_slice())).collect();
    let mut bytes = safetensors::header_bytes(&table, &BTreeMap::new());
    for (_, _, data) in tensors.0.values() {
        bytes.extend_from_slice(data);
    }
    Ok(fs::write_durable(path, &bytes)?)
}
