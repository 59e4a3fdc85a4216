//! AWQ where some quantizers are not searched.
//!
//! ModelOpt's `awq_lite` runs the model twice. The first run, which collects magnitudes, computes what the unquantized model
//! does. In the second, which compares scales, every searched linear passes its unquantized result on, but quantizers of
//! other modules are on by then: those of experts that are one module, and of keys and values. So the second run is one of a
//! model that has these quantized. `awq_clip` switches them off again.

use super::places;
use super::scales::{Scaled, Scaling};
use crate::cli::quantize::QuantizeArgs;
use crate::cli::run::{EngineArgs, QuantizedWeights};
use crate::engine::{Opened, load};
use crate::passes::Progress;
use crate::report::Report;
use crate::saving::Saver;
use anyhow::Result;
use longshore_convert::quantized::linear::Naming;
use longshore_convert::quantized::{Calibrated, QuantLinear, Quantization};
use longshore_convert::source::Source;
use longshore_infer::backend::cpu::{Cpu, Precision};
use longshore_infer::memory::Demand;
use longshore_infer::model::Model;
use longshore_infer::search::{self, Awq, Channels, Found, Unit};
use longshore_infer::sweep::{Sweep, SweepOptions};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// How the model is run.
pub(super) struct Run<'a, 'r> {
    pub(super) args: &'a QuantizeArgs,
    pub(super) samples: &'a [Vec<u32>],
    pub(super) demand: Demand,
    pub(super) precision: Precision,
    pub(super) sweep: SweepOptions,
    /// What identifies the calibration, and where its passes are saved.
    pub(super) key: &'a str,
    pub(super) destination: &'a Path,
    pub(super) report: &'r Report,
}

/// What was found in a layer.
type OfLayer = BTreeMap<Unit, Found>;

impl<'r> Run<'_, 'r> {
    fn load(&self, source: Source) -> Result<(Arc<Model<Cpu>>, Sweep<Cpu>)> {
        let engine = EngineArgs { weights: QuantizedWeights::Simulated, ..self.args.engine.clone() };
        let model = load(source, self.precision, &engine, self.demand.clone(), 1)?;
        let sweep = Sweep::new(&model, self.samples, &self.sweep, false)?;
        Ok((model, sweep))
    }

    /// A pass over the model that finds something in every layer, the `number`-th that can be saved.
    fn pass(
        &self,
        (number, what): (usize, &'static str),
        source: Source,
        fits: impl Fn(usize, &Vec<(Unit, Found)>) -> bool,
        mut find: impl FnMut(&Arc<Model<Cpu>>, &mut Sweep<Cpu>, usize) -> Result<OfLayer>,
    ) -> Result<(Vec<OfLayer>, Saver<'r>)> {
        let place = places(self.destination)[number];
        let mut saver = Saver::open(place, self.key, &self.args.save, self.report)?;
        let (model, mut sweep) = self.load(source)?;
        let layers = model.n_layers();
        let before = saver.resume(layers, |saved| sweep.resume(saved, fits))?;
        let mut found: Vec<OfLayer> = before.into_iter().map(|layer| layer.into_iter().collect()).collect();
        let progress = Progress::begin(what, found.len(), layers);
        for layer in found.len()..layers {
            let of_layer = find(&model, &mut sweep, layer)?;
            sweep.next_layer(&mut ())?;
            saver.save(|saved| sweep.save(saved, &of_layer.iter().collect::<Vec<_>>()));
            found.push(of_layer);
            progress.show(layer + 1, self.report);
        }
        Ok((found, saver))
    }
}

/// The quantizers that are on while scales are compared.
pub(super) struct Beside {
    quantizers: Quantization,
    /// To compare on.
    compared: Source,
    /// To clip on, where that is asked for.
    clipped: Option<Source>,
}

impl Beside {
    /// `None` where nothing is compared, or everything that is quantized is searched.
    pub(super) fn of(
        scaling: &Scaling,
        quantization: &Quantization,
        opened: &Opened,
        args: &QuantizeArgs,
    ) -> Result<Option<Self>> {
        let Scaling::Awq(awq) = scaling else { return Ok(None) };
        let is_one_module = quantization.naming != Naming::MegatronLocal;
        let unsearched = |q: &&QuantLinear| is_one_module && q.linear.expert.is_some() && q.is_quantized();
        let mut linears: Vec<QuantLinear> = quantization.linears.iter().filter(unsearched).cloned().collect();
        for q in &mut linears {
            // Of quantizers in sequence AWQ leaves the first one only.
            q.weight_schemes.truncate(1);
        }
        if awq.alpha_step.is_none() || (linears.is_empty() && quantization.kv.is_empty()) {
            return Ok(None);
        }
        let again = || opened.source_again(&args.engine);
        let (compared, clipped) = (again()?, awq.clip.map(|_| again()).transpose()?);
        let (naming, kv) = (quantization.naming, quantization.kv.clone());
        let quantizers = Quantization { naming, linears, kv, warnings: Vec::new() };
        Ok(Some(Self { quantizers, compared, clipped }))
    }

    /// What is found for every layer, and what holds it until it is written. `calibrated` has the magnitudes of the first
    /// run, `observed` what it saw besides.
    pub(super) fn search<'r>(
        self,
        run: &Run<'_, 'r>,
        quantization: &Quantization,
        calibrated: &Calibrated,
        observed: &[BTreeMap<Unit, Channels>],
        awq: &Awq,
    ) -> Result<(Vec<OfLayer>, Vec<Saver<'r>>)> {
        let scaling = Scaling::Awq(*awq);
        let scaled = |layer| Scaled::of(quantization, layer, &scaling);
        let fits = |layer, found: &Vec<(Unit, Found)>| scaled(layer).could_find(found);
        let mut source = self.compared;
        source.quantized = Some((self.quantizers, calibrated.clone()));
        let (found, saver) = run.pass((1, "Comparing"), source, fits, |model, sweep, layer| {
            Ok(search::compare(model, sweep, layer, &scaled(layer).targets(), awq, &observed[layer])?)
        })?;
        let Some(source) = self.clipped else { return Ok((found, vec![saver])) };
        let (clipped, last) = run.pass((2, "Clipping"), source, fits, |model, sweep, layer| {
            let mut of_layer = found[layer].clone();
            search::clip(model, sweep, layer, &scaled(layer).targets(), awq, &mut of_layer)?;
            Ok(of_layer)
        })?;
        Ok((clipped, vec![saver, last]))
    }
}
