//! `config.json` of `LlamaForCausalLM`.
//!
//! Field names and defaults are those of transformers 5.23 `models/llama/configuration_llama.py` and
//! `modeling_rope_utils.py`. The rotary embedding comes in two forms: one object `rope_parameters`, or in published files
//! `rope_theta` beside `rope_scaling`. A block is two layers here, as the engine runs it: attention, then MLP.

use super::Fields;
use crate::config::{Activation, Attention, Forward, LayerSpec, MAX_LAYERS, Mlp, ModelConfig, Rotary, RotaryScaling};
use serde_json::Value;

/// `architectures[0]`.
pub(crate) const ARCHITECTURE: &str = "LlamaForCausalLM";

/// Reads the fields.
pub(super) fn read(f: &mut Fields<'_>) -> ModelConfig {
    let architecture = f.architecture(ARCHITECTURE);
    let hidden_size = f.size(&["hidden_size"]);
    let vocab_size = f.size(&["vocab_size"]);
    let max_position_embeddings =
        f.optional_size(&["max_position_embeddings"]).unwrap_or_else(|| f.inferred("max_position_embeddings", 2048));
    let blocks = f.blocks();
    let attention = f.rotary_attention(hidden_size, max_position_embeddings);
    let mlp = Mlp { ffn: f.size(&["intermediate_size"]), activation: Activation::SwiGlu };
    f.refuse(&SUPPORTED_FLAGS, &SUPPORTED_ACTIVATIONS, &REFUSED);
    f.note_unknown(&KNOWN);
    // transformers asks for it even where `head_dim` is given.
    if f.problems.is_empty() && !hidden_size.is_multiple_of(attention.heads) {
        let what = format!("{} heads do not divide the hidden size {hidden_size}", attention.heads);
        f.problem("num_attention_heads", what);
    }
    ModelConfig {
        architecture,
        hidden_size,
        vocab_size,
        layers: [LayerSpec::Attention(attention), LayerSpec::Mlp(mlp)].repeat(blocks),
        mtp: None,
        tie_word_embeddings: f.flag("tie_word_embeddings").unwrap_or(false),
        norm_eps: f.positive(&["rms_norm_eps"]).unwrap_or_else(|| f.inferred("rms_norm_eps", 1e-6)),
        max_position_embeddings,
        dtype: f.dtype(),
        intermediate_size: Some(mlp.ffn),
        forward: Forward {
            bos_token_id: f.tokens("bos_token_id").first().copied(),
            eos_token_id: f.tokens("eos_token_id"),
            pad_token_id: f.tokens("pad_token_id").first().copied(),
            ..Forward::default()
        },
    }
}

impl Fields<'_> {
    fn blocks(&mut self) -> usize {
        let blocks = self.size(&["num_hidden_layers"]);
        if blocks <= MAX_LAYERS / 2 {
            return blocks as usize;
        }
        // Refused before there are so many.
        self.problem("num_hidden_layers", format!("{blocks} layers, expected at most {}", MAX_LAYERS / 2));
        0
    }

    fn rotary_attention(&mut self, hidden: u64, context: u64) -> Attention {
        let heads = self.size(&["num_attention_heads"]);
        Attention {
            heads,
            kv_heads: self.optional_size(&["num_key_value_heads"]).unwrap_or(heads),
            head_dim: self.optional_size(&["head_dim"]).unwrap_or(hidden / heads),
            rotary: Some(self.rotary(context)),
        }
    }

    /// From either form.
    fn rotary(&mut self, context: u64) -> Rotary {
        self.whole_heads();
        let outer = self.stretch("rope_theta");
        let context = self.optional_size(&["original_max_position_embeddings"]).unwrap_or(context);
        let (mut theta, mut scaling) = (outer, RotaryScaling::Default);
        match self.pick(&["rope_scaling", "rope_parameters"]) {
            None => {}
            Some((name, Value::Object(object))) => {
                let mut own = Fields::new(self.file, format!("{name}."), object);
                own.whole_heads();
                theta = own.stretch("rope_theta").or(outer);
                scaling = own.scaling(context);
                own.note_unknown(&KNOWN_ROTARY);
                if let (Some(a), Some(b)) = (theta, outer)
                    && a.total_cmp(&b).is_ne()
                {
                    own.problem("rope_theta", format!("{a} contradicts `rope_theta` {b}"));
                }
                self.problems.append(&mut own.problems);
                self.notes.append(&mut own.notes);
            }
            Some((name, other)) => self.problem(name, format!("expected an object, found {other}")),
        }
        Rotary { theta: theta.unwrap_or_else(|| self.inferred("rope_theta", 10_000.0)), scaling }
    }

    /// What follows `rope_type`; `context` stands for a missing `original_max_position_embeddings`.
    fn scaling(&mut self, context: u64) -> RotaryScaling {
        let Some((name, value)) = self.pick(&["rope_type", "type"]) else { return RotaryScaling::Default };
        match value.as_str() {
            Some("default") => RotaryScaling::Default,
            Some("linear") => RotaryScaling::Linear { factor: self.factor("factor") },
            Some("llama3") => {
                let factor = self.factor("factor");
                let (low, high) = (self.border("low_freq_factor"), self.border("high_freq_factor"));
                if let (Some(low), Some(high)) = (low, high)
                    && low >= high
                {
                    let what = format!("expected a number above `low_freq_factor` {low}, found {high}");
                    self.problem("high_freq_factor", what);
                }
                RotaryScaling::Llama3 {
                    factor,
                    low_freq_factor: low.unwrap_or(1.0),
                    high_freq_factor: high.unwrap_or(4.0),
                    original_max_position_embeddings: self
                        .optional_size(&["original_max_position_embeddings"])
                        .unwrap_or(context),
                }
            }
            _ => {
                self.problem(
                    name,
                    format!("expected \"default\", \"linear\" or \"llama3\", found {value}: not supported"),
                );
                RotaryScaling::Default
            }
        }
    }

    /// A number that stretches waves: at least 1, in float32 too.
    fn stretch(&mut self, name: &'static str) -> Option<f64> {
        let number = self.float(&[name])?;
        if number >= 1.0 && number <= f64::from(f32::MAX) {
            return Some(number);
        }
        self.problem(name, format!("expected a number of at least 1, found {number}"));
        None
    }

    fn factor(&mut self, name: &'static str) -> f64 {
        if self.field(name).is_none() {
            self.problem(name, "missing");
        }
        self.stretch(name).unwrap_or(1.0)
    }

    fn border(&mut self, name: &'static str) -> Option<f64> {
        if self.field(name).is_none() {
            self.problem(name, "missing");
        }
        self.positive(&[name])
    }

    /// Refuses heads that are rotated in part.
    fn whole_heads(&mut self) {
        if self.float(&["partial_rotary_factor"]).is_some_and(|share| share.total_cmp(&1.0).is_ne()) {
            self.problem("partial_rotary_factor", "only 1 is supported");
        }
    }
}

const SUPPORTED_FLAGS: [(&str, bool); 2] = [("attention_bias", false), ("mlp_bias", false)];

const SUPPORTED_ACTIVATIONS: [(&str, &str); 1] = [("hidden_act", "silu")];

const REFUSED: [(&str, &str); 1] = [("sliding_window", "attention inside a window is not supported")];

/// Every field that releases carry: read above, or without any influence on what is computed.
#[rustfmt::skip]
const KNOWN: [&str; 34] = [
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_bias", "attention_dropout",
    "bos_token_id", "dtype", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "mlp_bias", "model_type", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "original_max_position_embeddings", "pad_token_id",
    "partial_rotary_factor", "pretraining_tp", "quantization_config", "rms_norm_eps", "rope_parameters",
    "rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings", "torch_dtype", "transformers_version",
    "use_cache", "vocab_size",
];

/// The same of the rotary embedding's own object.
#[rustfmt::skip]
const KNOWN_ROTARY: [&str; 8] = [
    "factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings", "partial_rotary_factor",
    "rope_theta", "rope_type", "type",
];

#[cfg(test)]
mod tests;
