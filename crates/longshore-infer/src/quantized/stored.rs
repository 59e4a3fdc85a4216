//! The quantization of a checkpoint that has quantizers.

use super::{ExpertInput, LinearQuant, QuantState, RoutedFc2, WeightQuant, WeightStage};
use crate::error::Result;
use longshore_ckpt::Format;
use longshore_convert::quantized::{Calibrated, QuantLinear, Quantization, WeightAmax};
use longshore_convert::source::Source;
use longshore_quant::{Amax, Element, Scheme};

impl QuantState {
    /// What the quantizers of a checkpoint do, for values that are rounded to `element` in between; `None` where it has
    /// none. A torch_dist checkpoint runs as Megatron runs it: the router's weight is multiplied before the second linear.
    pub fn of(source: &Source, element: Element) -> Result<Option<Self>> {
        let Some((quantization, calibrated)) = &source.quantized else { return Ok(None) };
        let mut state = Self::new(element);
        if source.catalog.format == Format::TorchDist {
            state.routed_fc2 = RoutedFc2::WeightBefore;
        }
        for q in quantization.linears.iter().filter(|q| q.is_quantized() || q.has_pre_quant_scale) {
            let stages = if calibrated.weights_are_values { Vec::new() } else { stages(source, q, calibrated)? };
            let linear = state.linears.entry(q.linear.shared_module()).or_insert_with(|| LinearQuant {
                input: q.input_scheme.map(|scheme| (scheme, input_amax(q, calibrated))),
                pre_quant_scale: calibrated.pre_quant_scales.get(&q.linear.module).map(|s| s.to_vec()),
                ..LinearQuant::default()
            });
            if q.linear.expert.is_some() {
                let pre_quant_scale = calibrated.pre_quant_scales.get(&q.linear.module).map(|s| s.to_vec());
                let input = q.input_scheme.map(|scheme| (scheme, input_amax(q, calibrated)));
                linear.expert_inputs.push(ExpertInput { input, pre_quant_scale });
            }
            match q.linear.expert {
                None => linear.weight = WeightQuant::Same(stages),
                Some(_) => match &mut linear.weight {
                    WeightQuant::PerExpert(experts) => experts.push(stages),
                    WeightQuant::Same(_) => linear.weight = WeightQuant::PerExpert(vec![stages]),
                },
            }
        }
        for linear in state.linears.values_mut() {
            // Where experts agree, a token's row is quantized once for all of its experts.
            if linear.expert_inputs.windows(2).all(|pair| pair[0] == pair[1]) {
                linear.expert_inputs.clear();
            }
        }
        state.operands(quantization, calibrated);
        Ok(Some(state))
    }

    fn operands(&mut self, quantization: &Quantization, calibrated: &Calibrated) {
        for kv in &quantization.kv {
            for (of, letter) in ["q", "k", "v"].into_iter().enumerate() {
                if let (Some(scheme), Some(amax)) = (kv.schemes[of], kv.amax_in_use(calibrated, of)) {
                    let amax = Amax { values: vec![amax], global: None };
                    self.attention.insert(format!("{}.{letter}_bmm_quantizer", kv.module), (scheme, amax));
                }
            }
        }
    }
}

/// The amax of an input; schemes that find it while quantizing have none.
fn input_amax(q: &QuantLinear, calibrated: &Calibrated) -> Amax {
    let found = calibrated.inputs.get(&q.linear.module).filter(|_| !matches!(q.input_scheme, Some(Scheme::Mx(_))));
    Amax { values: found.copied().into_iter().collect(), global: None }
}

fn stages(source: &Source, q: &QuantLinear, calibrated: &Calibrated) -> Result<Vec<WeightStage>> {
    let mut stages = Vec::with_capacity(q.weight_schemes.len());
    for (i, &scheme) in q.weight_schemes.iter().enumerate() {
        // A vocabulary may have rows past its tokens, which are not read.
        let count = longshore_quant::amax::count(scheme, q.linear.rows as usize, q.linear.cols as usize);
        let values = |tensor| -> Result<Vec<f32>> {
            let mut values = source.values(tensor)?;
            if let (true, Ok(count)) = (q.linear.is_output_layer, &count) {
                values.truncate(*count);
            }
            Ok(values)
        };
        let amax = match calibrated.weights.get(&(q.linear.module.clone(), i)) {
            None => None,
            Some(WeightAmax::Tensor(value)) => Some(Amax { values: vec![*value], global: None }),
            Some(WeightAmax::Rows(tensor)) => Some(Amax { values: values(tensor)?, global: None }),
            Some(WeightAmax::Blocks { blocks, global }) => {
                Some(Amax { values: values(blocks)?, global: Some(*global) })
            }
        };
        stages.push(WeightStage { scheme, amax });
    }
    Ok(stages)
}
