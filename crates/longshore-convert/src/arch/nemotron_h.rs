//! Nemotron-H and Nemotron-3 (`NemotronHForCausalLM`): Mamba-2, attention, MLP and MoE layers, optional MTP.
//!
//! Hugging Face names: `backbone.layers.{i}.mixer.…`, `mtp.layers.{flat}.…`. Megatron names: those of `HybridModel` (formerly
//! `MambaModel`), `decoder.layers.{i}.…`, `mtp.layers.{block}.mtp_model_layer.layers.{k}.…`. Sources: transformers
//! `models/nemotron_h`, Megatron-LM `core/ssm/mamba_mixer.py`, `core/models/mamba`, and the key lists of checkpoints that
//! megatron-core 0.12 to main wrote (`docs/torch_dist.md`).

mod structure;

pub use structure::structure;

use crate::arch::SpecKeys;
use crate::config::{Attention, LayerSpec, Mamba, Mlp, ModelConfig, Moe};
use crate::error::Problem;
use crate::mapping::{Mapping, Place, Precision, Scope};
use crate::options::Layout;

/// The whole table. `padded_vocab` is the number of vocabulary rows on the Megatron side.
pub fn mapping(config: &ModelConfig, keys: &SpecKeys, padded_vocab: u64) -> Mapping {
    let mut out = Mapping::default();
    let (h, vocab) = (config.hidden_size, config.vocab_size);
    let mut s = scope(&mut out, keys, String::new(), String::new(), Place::First);
    s.vocabulary("backbone.embeddings.weight", "embedding.word_embeddings.weight", vocab, padded_vocab, h).cut(0);

    for (i, spec) in (0u64..).zip(&config.layers) {
        let (hf, mc) = (format!("backbone.layers.{i}."), format!("decoder.layers.{i}."));
        layer(&mut scope(&mut out, keys, hf, mc, Place::Layer(i)), keys, spec, h);
    }

    let mut s = scope(&mut out, keys, String::new(), String::new(), Place::Last);
    s.rename("backbone.norm_f.weight", "decoder.final_norm.weight", &[h]);
    s.state("decoder.final_norm");
    // The state of the output layer exists even where the embedding takes its place.
    s.state("output_layer");
    if !config.tie_word_embeddings {
        s.vocabulary("lm_head.weight", "output_layer.weight", vocab, padded_vocab, h).cut(0);
    }

    if let Some(mtp) = &config.mtp {
        // Hugging Face numbers MTP layers flat, Megatron nests them as (block, layer in block).
        let depth = mtp.layers.len() as u64;
        for block in 0..mtp.blocks() {
            let (first, last) = (block * depth, block * depth + depth - 1);
            let mc = format!("mtp.layers.{block}.");
            let mut s = scope(&mut out, keys, "mtp.layers.".into(), mc, Place::Last);
            s.norm(&format!("{first}.enorm.weight"), "enorm", None, h);
            s.norm(&format!("{first}.hnorm.weight"), "hnorm", None, h);
            s.rename(&format!("{first}.eh_proj.weight"), "eh_proj.weight", &[h, 2 * h]).cut(0);
            s.state("eh_proj");
            for (k, spec) in (0u64..).zip(&mtp.layers) {
                let hf = format!("mtp.layers.{}.", first + k);
                let mc = format!("mtp.layers.{block}.mtp_model_layer.layers.{k}.");
                layer(&mut scope(&mut out, keys, hf, mc, Place::Last), keys, spec, h);
            }
            let mc = format!("mtp.layers.{block}.");
            let mut s = scope(&mut out, keys, "mtp.layers.".into(), mc, Place::Last);
            s.norm(&format!("{last}.final_layernorm.weight"), "final_layernorm", None, h);
        }
    }
    out
}

fn scope<'a>(out: &'a mut Mapping, keys: &SpecKeys, hf: String, mc: String, place: Place) -> Scope<'a> {
    Scope { out, hf, mc, place, keys: *keys }
}

/// One hybrid layer. The trunk and MTP differ only in the two prefixes.
fn layer(s: &mut Scope<'_>, keys: &SpecKeys, spec: &LayerSpec, h: u64) {
    match *spec {
        LayerSpec::Mamba(Mamba { heads, head_dim, groups, state, conv_kernel }) => {
            let (inner, bc) = (heads * head_dim, groups * state);
            let conv = [("x", inner), ("B", bc), ("C", bc)];
            let projected = [("z", inner), ("x", inner), ("B", bc), ("C", bc), ("dt", heads)];
            s.norm("norm.weight", "norm", Some("mixer.in_proj"), h);
            // torch_dist keeps the parts as tensors of their own, so that any TP size can cut each of them.
            s.split("mixer.in_proj.weight", "mixer.in_proj.weight", &projected, &[h]).cut(0);
            s.split("mixer.conv1d.weight", "mixer.conv1d.weight", &conv, &[1, conv_kernel]).cut(0);
            s.split("mixer.conv1d.bias", "mixer.conv1d.bias", &conv, &[]).cut(0);
            s.rename("mixer.A_log", "mixer.A_log", &[heads]).cut(0).precision(Precision::McFloat32);
            s.rename("mixer.D", "mixer.D", &[heads]).cut(0).precision(Precision::McFloat32);
            s.rename("mixer.dt_bias", "mixer.dt_bias", &[heads]).cut(0).precision(Precision::SourceFloat32);
            s.rename("mixer.norm.weight", "mixer.norm.weight", &[inner]).cut(0);
            s.rename("mixer.out_proj.weight", "mixer.out_proj.weight", &[h, inner]).cut(1);
            s.state("mixer.in_proj");
            s.state("mixer.out_proj");
        }
        LayerSpec::Attention(Attention { heads, kv_heads, head_dim, .. }) => {
            let qkv = ["mixer.q_proj.weight", "mixer.k_proj.weight", "mixer.v_proj.weight"];
            s.norm("norm.weight", "input_layernorm", Some("self_attention.linear_qkv"), h);
            s.qkv(qkv, "self_attention.linear_qkv.weight", heads, kv_heads, head_dim, h).cut(0);
            s.rename("mixer.o_proj.weight", "self_attention.linear_proj.weight", &[h, heads * head_dim]).cut(1);
            s.state("self_attention.linear_qkv");
            s.state("self_attention.linear_proj");
            if keys.core_attention_states {
                s.state("self_attention.core_attention");
            }
        }
        LayerSpec::Mlp(Mlp { ffn, .. }) => {
            s.norm("norm.weight", "pre_mlp_layernorm", Some("mlp.linear_fc1"), h);
            s.rename("mixer.up_proj.weight", "mlp.linear_fc1.weight", &[ffn, h]).cut(0);
            s.rename("mixer.down_proj.weight", "mlp.linear_fc2.weight", &[h, ffn]).cut(1);
            s.state("mlp.linear_fc1");
            s.state("mlp.linear_fc2");
        }
        LayerSpec::Moe(Moe { experts, expert_ffn, shared_ffn, latent, .. }) => {
            let l = latent.unwrap_or(h);
            // The router reads the norm too, so it never fuses.
            s.norm("norm.weight", "pre_mlp_layernorm", None, h);
            s.rename("mixer.gate.weight", "mlp.router.weight", &[experts, h]);
            s.rename("mixer.gate.e_score_correction_bias", "mlp.router.expert_bias", &[experts])
                .precision(Precision::Float32);
            if latent.is_some() {
                s.rename("mixer.fc1_latent_proj.weight", "mlp.fc1_latent_proj.weight", &[l, h]);
                s.rename("mixer.fc2_latent_proj.weight", "mlp.fc2_latent_proj.weight", &[h, l]);
                s.state("mlp.fc1_latent_proj");
                s.state("mlp.fc2_latent_proj");
            }
            let up = |e| format!("mixer.experts.{e}.up_proj.weight");
            let down = |e| format!("mixer.experts.{e}.down_proj.weight");
            s.experts(up, "mlp.experts.experts", "linear_fc1", experts, &[expert_ffn, l], 0);
            s.experts(down, "mlp.experts.experts", "linear_fc2", experts, &[l, expert_ffn], 1);
            s.rename("mixer.shared_experts.up_proj.weight", "mlp.shared_experts.linear_fc1.weight", &[shared_ffn, h])
                .cut(0);
            s.rename("mixer.shared_experts.down_proj.weight", "mlp.shared_experts.linear_fc2.weight", &[h, shared_ffn])
                .cut(1);
            s.state("mlp.shared_experts.linear_fc1");
            s.state("mlp.shared_experts.linear_fc2");
        }
    }
}

/// Parallel sizes that no Megatron model of this config can have.
pub fn check_layout(config: &ModelConfig, layout: Layout) -> Vec<Problem> {
    let Layout { tp, pp, ep, etp } = layout;
    let mut problems = Vec::new();
    let mut need = |option: &str, ok: bool, what: String| {
        if !ok {
            let problem = Problem::Option { option: option.into(), what };
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    };
    let divides = |what: &str, n: u64, by: u64| format!("{by} does not divide {what} ({n})");
    let layers = config.layers.len() as u64;
    need("--pp", pp <= layers, format!("{pp} stages for {layers} layers"));
    if config.mtp.is_some() {
        // Rows of `eh_proj`.
        need("--tp", config.hidden_size.is_multiple_of(tp), divides("hidden_size", config.hidden_size, tp));
    }
    for spec in config.layers.iter().chain(config.mtp.iter().flat_map(|m| &m.layers)) {
        match *spec {
            LayerSpec::Mamba(m) => {
                need("--tp", m.heads.is_multiple_of(tp), divides("mamba_num_heads", m.heads, tp));
                need("--tp", m.groups.is_multiple_of(tp), divides("n_groups", m.groups, tp));
            }
            LayerSpec::Attention(a) => {
                need("--tp", a.heads.is_multiple_of(tp), divides("num_attention_heads", a.heads, tp));
                let whole = a.kv_heads.is_multiple_of(tp) || tp.is_multiple_of(a.kv_heads);
                need(
                    "--tp",
                    whole,
                    format!("{tp} neither divides num_key_value_heads ({}) nor is a multiple of it", a.kv_heads),
                );
            }
            LayerSpec::Mlp(m) => need("--tp", m.ffn.is_multiple_of(tp), divides("intermediate_size", m.ffn, tp)),
            LayerSpec::Moe(m) => {
                need("--ep", m.experts.is_multiple_of(ep), divides("n_routed_experts", m.experts, ep));
                need("--etp", m.expert_ffn.is_multiple_of(etp), divides("moe_intermediate_size", m.expert_ffn, etp));
                need(
                    "--tp",
                    m.shared_ffn.is_multiple_of(tp),
                    divides("moe_shared_expert_intermediate_size", m.shared_ffn, tp),
                );
            }
        }
    }
    problems
}
