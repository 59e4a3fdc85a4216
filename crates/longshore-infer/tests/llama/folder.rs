//! A small Llama model in a folder: `config.json` beside this file, weights of the formula in `make_reference.py`.

use longshore_ckpt::{Dtype, safetensors};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the folder, which must be there.
pub(crate) fn write(folder: &Path) {
    let config = include_str!("config.json");
    std::fs::write(folder.join("config.json"), config).expect("a writable folder");
    let tensors = tensors();
    let entries: Vec<_> = tensors.iter().map(|(name, shape)| (name.as_str(), Dtype::Bfloat16, &shape[..])).collect();
    let mut bytes = safetensors::header_bytes(&entries, &BTreeMap::new());
    for (number, (_, shape)) in (0u32..).zip(&tensors) {
        let len = u32::try_from(shape.iter().product::<u64>()).expect("a small tensor");
        for i in 0..len {
            // A bfloat16 is the upper half of a float32, and these numbers have no lower one.
            let value = value(number, i, shape.len() == 1).to_le_bytes();
            bytes.extend_from_slice(&value[2..]);
        }
    }
    std::fs::write(folder.join("model.safetensors"), bytes).expect("a writable folder");
}

/// Names and shapes in the order that numbers them.
fn tensors() -> Vec<(String, Vec<u64>)> {
    let (hidden, ffn, q, kv, vocab) = (24, 36, 40, 20, 40);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for i in 0..2 {
        let mut add =
            |name: &str, shape: &[u64]| tensors.push((format!("model.layers.{i}.{name}.weight"), shape.to_vec()));
        add("input_layernorm", &[hidden]);
        add("self_attn.q_proj", &[q, hidden]);
        add("self_attn.k_proj", &[kv, hidden]);
        add("self_attn.v_proj", &[kv, hidden]);
        add("self_attn.o_proj", &[hidden, q]);
        add("post_attention_layernorm", &[hidden]);
        add("mlp.gate_proj", &[ffn, hidden]);
        add("mlp.up_proj", &[ffn, hidden]);
        add("mlp.down_proj", &[hidden, ffn]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    tensors
}

fn value(tensor: u32, i: u32, is_norm: bool) -> f32 {
    let x = (i + 7919 * tensor + 1).wrapping_mul(2_654_435_761);
    let x = (x ^ (x >> 15)).wrapping_mul(2_246_822_519);
    let x = ((x ^ (x >> 13)) & 255) as u8;
    if is_norm { 1.0 + (f32::from(x / 2) - 64.0) / 128.0 } else { (f32::from(x) - 128.0) / 256.0 }
}
