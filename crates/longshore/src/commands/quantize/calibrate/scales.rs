//! What the config's algorithm makes of a layer: scales of input channels, shares of the weights' magnitudes.

use anyhow::Result;
use longshore_convert::quantized::linear::Naming;
use longshore_convert::quantized::{BlockShares, Calibrated, QuantLinear, Quantization, WeightAmax};
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::calibrate::{Calibrator, LayerStats};
use longshore_infer::model::Model;
use longshore_infer::search::{Awq, Clipped, Found, Targets, Unit, column_amax};
use longshore_infer::site::Site;
use longshore_quant::config::{Method, QuantConfig};
use longshore_quant::{Element, Granularity, Scheme};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Channels whose inputs are below this are not scaled (ModelOpt 0.47 `smoothquant`).
const SILENT: f32 = 1.0 / 2_147_483_648.0;

/// What is done to every layer.
pub(super) enum Scaling {
    /// Nothing beside magnitudes.
    None,
    /// `SmoothQuant`, with the share of the activations.
    Smooth { alpha: f64 },
    /// AWQ's searches.
    Awq(Awq),
}

impl Scaling {
    pub(super) fn of(config: &QuantConfig, precision: Precision, weighted: bool) -> Self {
        let element = element(precision);
        let awq = |alpha_step, clip| Self::Awq(Awq { alpha_step, clip, element, weighted });
        let found = config.algorithm.iter().find_map(|algorithm| match algorithm.method {
            Method::SmoothQuant { alpha } => Some(Self::Smooth { alpha }),
            Method::AwqLite { alpha_step } => Some(awq(Some(alpha_step), None)),
            Method::AwqClip(clip) => Some(awq(None, Some(clip))),
            Method::AwqFull { alpha_step, clip } => Some(awq(Some(alpha_step), Some(clip))),
            _ => None,
        });
        found.unwrap_or(Self::None)
    }

    /// Passes over a layer beyond the one that computes it.
    pub(super) fn needs_channels(&self) -> bool {
        matches!(self, Self::Smooth { .. })
    }
}

fn element(precision: Precision) -> Element {
    if precision == Precision::Float32 { Element::Float32 } else { Element::Bfloat16 }
}

/// The linears of a layer that are scaled, by where they stand.
pub(super) struct Scaled<'a> {
    by_unit: BTreeMap<Unit, &'a QuantLinear>,
    layer: usize,
}

impl<'a> Scaled<'a> {
    pub(super) fn of(quantization: &'a Quantization, layer: usize, scaling: &Scaling) -> Self {
        let prefix = format!("decoder.layers.{layer}.");
        let mut by_unit = BTreeMap::new();
        for q in &quantization.linears {
            // ModelOpt leaves out experts that are one module for all of them.
            let alone = q.linear.expert.is_none() || quantization.naming == Naming::MegatronLocal;
            let Some(path) = q.linear.module.strip_prefix(&prefix).filter(|_| alone && q.is_quantized()) else {
                continue;
            };
            let path = match q.linear.expert {
                Some(e) => path.replace(&format!(".experts.experts.{e}."), ".experts."),
                None => path.to_owned(),
            };
            let Some(site) = Site::ALL.into_iter().find(|site| site.module() == path) else { continue };
            let fits = match (scaling, &q.weight_schemes[..], q.input_scheme) {
                (Scaling::Smooth { .. }, [Scheme::Int8(_)], Some(Scheme::Int8(Granularity::Tensor))) => true,
                (Scaling::Awq(awq), [first, ..], _) => {
                    awq.alpha_step.is_some() || matches!(first, Scheme::Int4 { .. } | Scheme::Nvfp4 { .. })
                }
                _ => false,
            };
            if fits {
                by_unit.insert((site, q.linear.expert.map(|e| e as usize)), q);
            }
        }
        Self { by_unit, layer }
    }

    /// What AWQ finds, before the layer is computed.
    pub(super) fn search(&self, calibrator: &mut Calibrator<Cpu>, scaling: &Scaling) -> Result<BTreeMap<Unit, Found>> {
        let Scaling::Awq(awq) = scaling else { return Ok(BTreeMap::new()) };
        let target = |(unit, q): (&Unit, &&QuantLinear)| Some((unit.0, *q.weight_schemes.first()?));
        let targets: Targets = self.by_unit.iter().filter_map(target).collect();
        Ok(calibrator.search_layer(&targets, awq)?)
    }

    /// Takes over what AWQ found.
    pub(super) fn keep(&self, mut found: BTreeMap<Unit, Found>, stats: &LayerStats, awq: &Awq, into: &mut Calibrated) {
        for (unit, q) in &self.by_unit {
            let module = q.linear.module.clone();
            let mut found = found.remove(unit).unwrap_or_default();
            if awq.alpha_step.is_some() && found.pre_quant_scale.is_none() {
                // An expert that no token chose.
                found.pre_quant_scale = Some(vec![1.0; q.linear.cols as usize]);
                found.input_amax = stats.get(&unit.0).map(|stats| stats.amax);
            }
            if let (Some(amax), Some(_)) = (found.input_amax, q.input_scheme) {
                into.inputs.insert(module.clone(), amax);
            }
            match found.clipped {
                Some(Clipped::Tensor(amax)) => {
                    into.weights.insert((module.clone(), 0), WeightAmax::Tensor(amax));
                }
                Some(Clipped::Blocks { shares, index }) => {
                    into.clipped.insert(module.clone(), BlockShares { shares: shares.into(), index: index.into() });
                }
                None => {}
            }
            if let Some(scale) = found.pre_quant_scale {
                into.pre_quant_scales.insert(module, scale.into());
            }
        }
    }

    /// `SmoothQuant`'s scales from the magnitudes of the channels.
    pub(super) fn smooth(
        &self,
        model: &Arc<Model<Cpu>>,
        precision: Precision,
        alpha: f64,
        stats: &LayerStats,
        into: &mut Calibrated,
    ) -> Result<()> {
        for (unit, q) in &self.by_unit {
            let Some(channels) = stats.get(&unit.0).and_then(|stats| stats.channel_amax.as_ref()) else { continue };
            // Experts have an input quantizer each, whose magnitudes are those of all of them.
            let mut act = vec![0.0f32; q.linear.cols as usize];
            for row in channels.chunks_exact(act.len()) {
                for (most, x) in act.iter_mut().zip(row) {
                    *most = most.max(*x);
                }
            }
            let weight = column_amax(model, self.layer, *unit, element(precision))?;
            let scale = smooth_scale(&act, &weight, alpha, element(precision));
            let amax = act.iter().zip(&scale).fold(0.0f32, |most, (a, s)| most.max(a * s));
            into.inputs.insert(q.linear.module.clone(), amax);
            into.pre_quant_scales.insert(q.linear.module.clone(), scale.into());
        }
        Ok(())
    }
}

/// `weight^(1 - alpha) / act^alpha`, between 1e-4 and 1e4 (ModelOpt 0.47 `smoothquant`). Silent channels are left alone
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
