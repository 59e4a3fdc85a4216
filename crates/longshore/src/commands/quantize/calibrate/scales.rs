//! What the config's algorithm makes of a layer: scales of input channels, shares of the weights' magnitudes.

use anyhow::Result;
use longshore_convert::quantized::linear::Naming;
use longshore_convert::quantized::{BlockShares, Calibrated, QuantLinear, Quantization, WeightAmax};
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::calibrate::LayerStats;
use longshore_infer::model::Model;
use longshore_infer::search::{Awq, Channels, Clipped, Found, Targets, Unit, share_input_amax};
use longshore_infer::site::Site;
use longshore_infer::smooth::smooth;
use longshore_infer::stats::InputStats;
use longshore_quant::config::{Method, QuantConfig};
use longshore_quant::{Element, Granularity, Scheme};
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// `batch`: prompts of a batch.
    pub(super) fn of(config: &QuantConfig, precision: Precision, weighted: bool, batch: usize) -> Self {
        let element = element(precision);
        let awq = |alpha_step, clip| Self::Awq(Awq { alpha_step, clip, element, weighted, batch });
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

    /// The linears that AWQ searches.
    pub(super) fn targets(&self) -> Targets {
        let target = |(unit, q): (&Unit, &&QuantLinear)| Some((unit.0, *q.weight_schemes.first()?));
        self.by_unit.iter().filter_map(target).collect()
    }

    /// Whether these can be the inputs of its linears.
    pub(super) fn fits(&self, channels: &[(Unit, Channels)]) -> bool {
        channels.iter().all(|(unit, channels)| {
            let q = self.by_unit.get(unit);
            q.is_some_and(|q| channels.count() == Some(q.linear.cols as usize))
        })
    }

    /// Whether this can have been found for its linears.
    pub(super) fn could_find(&self, found: &[(Unit, Found)]) -> bool {
        found.iter().all(|(unit, found)| {
            let q = self.by_unit.get(unit);
            q.is_some_and(|q| found.fits(q.linear.rows as usize, q.linear.cols as usize, q.weight_schemes.first()))
        })
    }

    /// Takes over what AWQ found.
    pub(super) fn keep(&self, mut found: BTreeMap<Unit, Found>, stats: &LayerStats, awq: &Awq, into: &mut Calibrated) {
        for (unit, q) in self.by_unit.iter().filter(|_| awq.alpha_step.is_some()) {
            let found = found.entry(*unit).or_default();
            if found.pre_quant_scale.is_none() {
                // An expert that no token chose.
                found.pre_quant_scale = Some(vec![1.0; q.linear.cols as usize]);
                let amax = |stats: &InputStats| stats.weighted_amax.filter(|_| awq.weighted).unwrap_or(stats.amax);
                found.input_amax = stats.get(&unit.0).map(amax);
            }
        }
        if awq.alpha_step.is_some() && awq.clip.is_some() {
            share_input_amax(&mut found);
        }
        for (unit, q) in &self.by_unit {
            let module = q.linear.module.clone();
            let found = found.remove(unit).unwrap_or_default();
            if let (Some(amax), Some(_)) = (found.input_amax, q.input_scheme) {
                into.inputs.insert(module.clone(), awq.element.round(amax));
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
            let smoothed = smooth(model, self.layer, *unit, channels, alpha, element(precision))?;
            into.inputs.insert(q.linear.module.clone(), smoothed.input_amax);
            into.pre_quant_scales.insert(q.linear.module.clone(), smoothed.pre_quant_scale.into());
        }
        Ok(())
    }
}
