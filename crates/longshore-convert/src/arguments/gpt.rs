//! The attributes of a model of gated MLPs and rotary attention (Llama), for Megatron's `GPTModel`.

use crate::config::megatron::Arg;
use crate::config::{ModelConfig, RotaryScaling};
use crate::error::Problem;

/// What `--use-rope-scaling` computes with beside its factor (Megatron-LM
/// `core/models/common/embeddings/rotary_pos_embedding.py`): no argument changes these.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const ORIGINAL_CONTEXT: u64 = 8192;

/// The attributes; what no argument can say becomes a problem in `file`.
pub(super) fn model(config: &ModelConfig, file: &str, problems: &mut Vec<Problem>) -> Vec<(&'static str, Arg)> {
    let kinds = config.kinds();
    let mut out: Vec<(&'static str, Arg)> = vec![
        // Hugging Face's layer is attention and MLP, two here.
        ("num_layers", (config.layers.len() as u64 / 2).into()),
        ("hidden_size", config.hidden_size.into()),
        ("ffn_hidden_size", kinds.mlp.map(|m| m.ffn).into()),
        ("max_position_embeddings", config.max_position_embeddings.into()),
        ("position_embedding_type", "rope".into()),
        ("normalization", "RMSNorm".into()),
        ("norm_epsilon", config.norm_eps.into()),
        ("swiglu", true.into()),
        ("add_bias_linear", false.into()),
        ("untie_embeddings_and_output_weights", (!config.tie_word_embeddings).into()),
    ];
    let Some(attention) = kinds.attention else { return out };
    out.push(("num_attention_heads", attention.heads.into()));
    out.push(("kv_channels", attention.head_dim.into()));
    if attention.kv_heads < attention.heads {
        out.push(("group_query_attention", true.into()));
        out.push(("num_query_groups", attention.kv_heads.into()));
    }
    let Some(rotary) = attention.rotary else { return out };
    let mut problem =
        |field: &str, what: String| problems.push(Problem::Config { file: file.into(), field: field.into(), what });
    match whole(rotary.theta) {
        Some(base) => out.push(("rotary_base", base)),
        None => problem("rope_theta", format!("{}: `--rotary-base` takes whole numbers", rotary.theta)),
    }
    match rotary.scaling {
        RotaryScaling::Default => {}
        RotaryScaling::Linear { factor } => match whole(factor) {
            Some(factor) => out.push(("rotary_seq_len_interpolation_factor", factor)),
            None => problem(
                "rope_scaling.factor",
                format!("{factor}: `--rotary-seq-len-interpolation-factor` takes whole numbers"),
            ),
        },
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            out.push(("use_rope_scaling", true.into()));
            out.push(("rope_scaling_factor", factor.into()));
            let found = (low_freq_factor, high_freq_factor, original_max_position_embeddings);
            if found != (LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, ORIGINAL_CONTEXT) {
                let what = format!(
                    "low_freq_factor {low_freq_factor}, high_freq_factor {high_freq_factor}, original context {original_max_position_embeddings}: `--use-rope-scaling` knows only 1, 4 and {ORIGINAL_CONTEXT}"
                );
                problem("rope_scaling", what);
            }
        }
    }
    out
}

/// A number that an argument of whole numbers takes.
fn whole(number: f64) -> Option<Arg> {
    let fits = number.fract() == 0.0 && (0.0..9e15).contains(&number);
    fits.then_some(Arg::Int(number as i64))
}
