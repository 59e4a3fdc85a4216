//! Frequencies of the rotary position embedding (`modeling_rope_utils.py` of transformers 5.23: `default`, `linear`,
//! `llama3`).
//!
//! Angles are multiples of them, so that at the thousandth token a difference in the last place of a frequency is one of
//! thousands in the angle. They are therefore computed in float32 with transformers' order of operations.

use longshore_convert::config::{Rotary, RotaryScaling};
use std::f64::consts::PI;

/// The angle from one token to the next of every pair of channels, `[head_dim / 2]`.
pub(crate) fn frequencies(rotary: &Rotary, head_dim: u64) -> Vec<f32> {
    let base = f64::from(rotary.theta as f32);
    let own = |i: u64| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        1.0 / base.powf(f64::from(exponent)) as f32
    };
    (0..head_dim / 2).map(|i| scaled(own(i), rotary.scaling)).collect()
}

fn scaled(frequency: f32, scaling: RotaryScaling) -> f32 {
    match scaling {
        RotaryScaling::Default => frequency,
        RotaryScaling::Linear { factor } => frequency / factor as f32,
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let context = original_max_position_embeddings as f64;
            // Torch divides a number by a tensor as the number times the reciprocal.
            let wave = (1.0 / frequency) * (2.0 * PI) as f32;
            let factor = factor as f32;
            if wave > (context / low_freq_factor) as f32 {
                frequency / factor
            } else if wave < (context / high_freq_factor) as f32 {
                frequency
            } else {
                let fits = (1.0 / wave) * context as f32;
                let share = (fits - low_freq_factor as f32) / (high_freq_factor - low_freq_factor) as f32;
                (1.0 - share) * frequency / factor + share * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_are_those_of_transformers() {
        let reference: serde_json::Value =
            serde_json::from_str(include_str!("../tests/llama/reference.json")).expect("a reference");
        let cases = reference["rotary"].as_array().expect("configs");
        for case in cases {
            let number = |name: &str| case[name].as_f64().unwrap_or_default();
            let whole = |name: &str| case[name].as_u64().unwrap_or_default();
            let scaling = match case["rope_type"].as_str() {
                Some("linear") => RotaryScaling::Linear { factor: number("factor") },
                Some("llama3") => RotaryScaling::Llama3 {
                    factor: number("factor"),
                    low_freq_factor: number("low_freq_factor"),
                    high_freq_factor: number("high_freq_factor"),
                    original_max_position_embeddings: whole("original_max_position_embeddings"),
                },
                _ => RotaryScaling::Default,
            };
            let rotary = Rotary { theta: number("rope_theta"), scaling };
            let got: Vec<u32> = frequencies(&rotary, whole("head_dim")).iter().map(|x| x.to_bits()).collect();
            assert_eq!(serde_json::json!(got), case["bits"], "{case}");
        }
        assert_eq!(cases.len(), 4);
    }
}
