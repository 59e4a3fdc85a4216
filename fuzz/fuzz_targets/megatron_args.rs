//! Any bytes as the pickle of a common state, whose `args` are read as a model's, with and without tensor names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore_ckpt::torch_dist::pickle::Pickle;
use longshore_convert::config::megatron::{Args, hf_json, read};
use std::collections::BTreeMap;

fuzz_target!(|input: (Vec<(u8, u64, u64)>, &[u8])| {
    let (shapes, bytes) = input;
    let Ok(pickle) = Pickle::parse(bytes) else { return };
    let args = Args::from_common(pickle.root());
    let named = |&(i, rows, columns): &(u8, u64, u64)| {
        (NAMES[usize::from(i) % NAMES.len()].replace('@', &(i / 64).to_string()), vec![rows, columns, 1 + rows % 5])
    };
    for keys in [BTreeMap::new(), shapes.iter().map(named).collect()] {
        if let Ok((config, _)) = read(&args, &keys) {
            let _ = hf_json(&config);
        }
    }
});

const NAMES: [&str; 16] = [
    "embedding.word_embeddings.weight",
    "output_layer.weight",
    "decoder.layers.@.mixer.A_log",
    "decoder.layers.@.mixer.in_proj.weight.x",
    "decoder.layers.@.mixer.in_proj.weight.B",
    "decoder.layers.@.mixer.conv1d.weight.x",
    "decoder.layers.@.self_attention.linear_qkv.weight",
    "decoder.layers.@.self_attention.linear_proj.weight",
    "decoder.layers.@.mlp.linear_fc1.weight",
    "decoder.layers.@.mlp.router.weight",
    "decoder.layers.@.mlp.experts.experts.linear_fc1.weight",
    "decoder.layers.@.mlp.shared_experts.linear_fc1.weight",
    "decoder.layers.@.mlp.fc1_latent_proj.weight",
    "mtp.layers.@.mtp_model_layer.layers.0.mlp.router.weight",
    "mtp.layers.0.mtp_model_layer.layers.@.self_attention.linear_qkv.weight",
    "mtp.layers.18446744073709551615.eh_proj.weight",
];
