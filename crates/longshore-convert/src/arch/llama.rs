//! Llama (`LlamaForCausalLM`): blocks of attention with rotary embedding and a gated MLP.
//!
//! Hugging Face names: `model.layers.{i}.{self_attn,mlp}.…` (transformers `models/llama`). Megatron names: those of
//! `GPTModel` with a key for each layer, `decoder.layers.{i}.…` (Megatron-LM `core/models/gpt`). They serve the engine alone:
//! checkpoints of Megatron stack the layers of this model in one tensor, which is neither read nor written yet.

use crate::arch::SpecKeys;
use crate::config::{Attention, LayerSpec, ModelConfig};
use crate::mapping::{Mapping, Place, Scope};

/// The norm before the output layer.
pub(super) const FINAL_NORM: &str = "decoder.final_layernorm";

/// What the Megatron names of a layer begin with: a block is two of the config's layers, attention and MLP.
pub(super) fn prefix(layer: u64) -> String {
    format!("decoder.layers.{}.", layer / 2)
}

/// The whole table. `padded_vocab` is the number of vocabulary rows on the Megatron side.
pub fn mapping(config: &ModelConfig, keys: &SpecKeys, padded_vocab: u64) -> Mapping {
    let mut out = Mapping::default();
    let (h, vocab) = (config.hidden_size, config.vocab_size);
    let mut s = scope(&mut out, keys, String::new(), String::new(), Place::First);
    s.vocabulary("model.embed_tokens.weight", "embedding.word_embeddings.weight", vocab, padded_vocab, h).cut(0);
    for (i, spec) in (0u64..).zip(&config.layers) {
        let hf = format!("model.layers.{}.", i / 2);
        layer(&mut scope(&mut out, keys, hf, prefix(i), Place::Layer(i)), spec, h);
    }
    let mut s = scope(&mut out, keys, String::new(), String::new(), Place::Last);
    s.norm("model.norm.weight", FINAL_NORM, None, h);
    if !config.tie_word_embeddings {
        s.vocabulary("lm_head.weight", "output_layer.weight", vocab, padded_vocab, h).cut(0);
    }
    out
}

fn scope<'a>(out: &'a mut Mapping, keys: &SpecKeys, hf: String, mc: String, place: Place) -> Scope<'a> {
    Scope { out, hf, mc, place, keys: *keys }
}

/// Half a block.
fn layer(s: &mut Scope<'_>, spec: &LayerSpec, h: u64) {
    match *spec {
        LayerSpec::Attention(Attention { heads, kv_heads, head_dim, .. }) => {
            let qkv = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"];
            s.norm("input_layernorm.weight", "input_layernorm", Some("self_attention.linear_qkv"), h);
            s.qkv(qkv, "self_attention.linear_qkv.weight", heads, kv_heads, head_dim, h).cut(0);
            s.rename("self_attn.o_proj.weight", "self_attention.linear_proj.weight", &[h, heads * head_dim]).cut(1);
        }
        LayerSpec::Mlp(mlp) => {
            let parts = [("mlp.gate_proj.weight", mlp.ffn), ("mlp.up_proj.weight", mlp.ffn)];
            s.norm("post_attention_layernorm.weight", "pre_mlp_layernorm", Some("mlp.linear_fc1"), h);
            s.join(&parts, "mlp.linear_fc1.weight", &[h]).cut(0);
            s.rename("mlp.down_proj.weight", "mlp.linear_fc2.weight", &[h, mlp.ffn]).cut(1);
        }
        LayerSpec::Mamba(_) | LayerSpec::Moe(_) => {}
    }
}
