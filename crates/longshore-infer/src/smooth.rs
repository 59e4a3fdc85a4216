//! `SmoothQuant`: scales of input channels that move the magnitudes of the activations into the weight.
//!
//! Reference: ModelOpt 0.47 `torch/quantization/model_calib.py` (`smoothquant`). A linear is smoothed by its own weight, so
//! that linears which read the same (q, k and v of transformers; the experts of a layer) have scales of their own, unless
//! `alpha` is 1 and leaves the weight out. On the Megatron side q, k and v are one linear.

use crate::backend::Backend;
use crate::error::Result;
use crate::model::Model;
use crate::search::{Unit, column_amax};
use longshore_quant::Element;
use std::sync::Arc;

/// Channels whose inputs are below this are not scaled.
const SILENT: f32 = 1.0 / 2_147_483_648.0;

/// How a linear is smoothed.
#[derive(Clone, Debug, PartialEq)]
pub struct Smoothed {
    /// What the input is multiplied with, `[in]`, not rounded to the element type.
    pub pre_quant_scale: Vec<f32>,
    /// The largest magnitude of the scaled input, in the element type.
    pub input_amax: f32,
}

/// Smooths a linear whose input's channels have these largest magnitudes: `[in]`, of routed experts `[experts, in]`, each
/// of which is smoothed by the magnitudes of all of them.
pub fn smooth<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    layer: usize,
    unit: Unit,
    channel_amax: &[f32],
    alpha: f64,
    element: Element,
) -> Result<Smoothed> {
    let weight = column_amax(model, layer, unit, element)?;
    let mut act = vec![0.0f32; weight.len()];
    for row in channel_amax.chunks_exact(act.len()) {
        for (most, x) in act.iter_mut().zip(row) {
            *most = most.max(*x);
        }
    }
    let pre_quant_scale = smooth_scale(&act, &weight, alpha, element);
    let input_amax = act.iter().zip(&pre_quant_scale).fold(0.0f32, |most, (a, s)| most.max(a * s));
    Ok(Smoothed { pre_quant_scale, input_amax: element.round(input_amax) })
}

/// `weight^(1 - alpha) / act^alpha`, between 1e-4 and 1e4. Silent channels are left alone
/// only where some scale is silent too, as ModelOpt has it.
fn smooth_scale(act: &[f32], weight: &[f32], alpha: f64, element: Element) -> Vec<f32> {
    let rest = (1.0 - alpha) as f32;
    let of = |(act, weight): (&f32, &f32)| element.round(weight.powf(rest)) / act.powf(alpha as f32);
    let mut scale: Vec<f32> = act.iter().zip(weight).map(of).collect();
    if scale.iter().any(|&s| s <= SILENT) {
        for (scale, _) in scale.iter_mut().zip(act).filter(|(_, act)| **act <= SILENT) {
            *scale = 1.0;
        }
    }
    scale.iter().map(|s| if s.is_nan() { 1.0 } else { s.clamp(1e-4, 1e4) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_channels_get_the_largest_scale_unless_a_scale_is_silent_too() {
        let scale = |act: &[f32], weight: &[f32], alpha| smooth_scale(act, weight, alpha, Element::Float32);
        assert_eq!(scale(&[2.0, 0.0], &[1.0, 1.0], 1.0), [0.5, 1e4]);
        assert_eq!(scale(&[4.0, 0.0], &[0.0, 1.0], 0.5), [1e-4, 1.0]);
        assert_eq!(scale(&[4.0, 1.0], &[16.0, 1.0], 0.5), [2.0, 1.0]);
    }
}
