//! A linear's output under a candidate.

use super::Rows;
use crate::backend::Backend;
use crate::model::Model;
use longshore_ckpt::Dtype;
use longshore_quant::fake::fake_quantize;
use longshore_quant::{Amax, Element, Granularity, Result, Scheme, amax};
use std::sync::Arc;

/// A weight `[out, in]` in its element type.
pub(super) struct Weight {
    pub(super) values: Vec<f32>,
    pub(super) cols: usize,
}

impl Weight {
    /// Columns divided by a `pre_quant_scale`, as they are stored.
    pub(super) fn scaled_back(mut self, scale: Option<&[f32]>, element: Element) -> Self {
        if let Some(scale) = scale {
            let inverse: Vec<f32> = scale.iter().map(|s| 1.0 / s).collect();
            self.multiply(&inverse, element);
        }
        self
    }

    fn multiply(&mut self, scale: &[f32], element: Element) {
        for row in self.values.chunks_exact_mut(self.cols) {
            for (x, s) in row.iter_mut().zip(scale) {
                *x = element.round(*x * s);
            }
        }
    }
}

/// A candidate.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    /// What the weight's columns are multiplied and the input's divided by.
    pub(super) scale: Option<Vec<f32>>,
    /// The share of the largest magnitude that is the magnitude.
    pub(super) share: f32,
}

/// Rows times a scale, rounded.
pub(super) fn scaled_rows(rows: &Rows<'_>, scale: &[f32], element: Element) -> Vec<f32> {
    let scale: Vec<f32> = scale.iter().map(|&s| element.round(s)).collect();
    let row = |row: &[f32]| row.iter().zip(&scale).map(|(x, s)| element.round(x * s)).collect::<Vec<_>>();
    rows.values.chunks_exact(rows.cols).flat_map(row).collect()
}

/// The largest magnitudes that a quantizer of weights finds, times a share.
pub(super) fn amax_of(scheme: Scheme, cols: usize, values: &[f32], share: f32) -> Result<Amax> {
    let mut found = Amax::default();
    let of_tensor = matches!(scheme, Scheme::Nvfp4 { .. });
    amax::observe(if of_tensor { Scheme::Fp8(Granularity::Tensor) } else { scheme }, cols, values, &mut found)?;
    for x in &mut found.values {
        *x *= share;
    }
    Ok(found)
}

/// Squared differences of the outputs, row by row, trial by trial `[trials][rows]`.
pub(super) fn errors<B: Backend + 'static>(
    model: &Arc<Model<B>>,
    backend: &B,
    weight: &Weight,
    scheme: Scheme,
    element: Element,
    trials: &[Trial],
    rows: &Rows<'_>,
) -> Result<Vec<Vec<f64>>> {
    let exact = product(backend, weight, element, rows.values);
    let out = weight.values.len() / weight.cols;
    let mut all = Vec::with_capacity(trials.len());
    for trial in trials {
        let mut candidate = Weight { values: weight.values.clone(), cols: weight.cols };
        let mut scaled = None;
        if let Some(scale) = &trial.scale {
            let forward: Vec<f32> = scale.iter().map(|&s| element.round(s)).collect();
            candidate.multiply(&forward, element);
            let inverse: Vec<f32> = scale.iter().map(|s| 1.0 / s).collect();
            scaled = Some(scaled_rows(rows, &inverse, element));
        }
        let mut amax = amax_of(scheme, candidate.cols, &candidate.values, trial.share)?;
        let keeps = longshore_quant::search::keeps_element(scheme);
        for x in amax.values.iter_mut().filter(|_| keeps) {
            *x = element.round(*x);
        }
        quantize(scheme, element, &amax, &mut candidate, model.threads())?;
        let got = product(backend, &candidate, element, scaled.as_deref().unwrap_or(rows.values));
        let square = |(got, exact): (&[f32], &[f32])| {
            got.iter().zip(exact).map(|(a, b)| f64::from((a - b) * (a - b))).sum::<f64>()
        };
        all.push(got.chunks_exact(out).zip(exact.chunks_exact(out)).map(square).collect());
    }
    Ok(all)
}

/// Quantizes in place, on several threads.
pub(super) fn quantize(
    scheme: Scheme,
    element: Element,
    amax: &Amax,
    weight: &mut Weight,
    threads: usize,
) -> Result<()> {
    let (cols, rows) = (weight.cols, weight.values.len() / weight.cols);
    let per_task = rows.div_ceil(threads.max(1)).max(1);
    let per_row = amax::count(scheme, rows, cols)? / rows.max(1);
    std::thread::scope(|scope| {
        for (i, band) in weight.values.chunks_mut(per_task * cols).enumerate() {
            let count = band.len() / cols;
            let values = if amax.values.len() == 1 {
                amax.values.clone()
            } else {
                amax.values[i * per_task * per_row..][..count * per_row].to_vec()
            };
            let amax = Amax { values, global: amax.global };
            scope.spawn(move || fake_quantize(scheme, element, &amax, cols, band));
        }
    });
    Ok(())
}

/// `x W^T`.
fn product<B: Backend>(backend: &B, weight: &Weight, element: Element, x: &[f32]) -> Vec<f32> {
    let (rows, count) = (weight.values.len() / weight.cols, x.len() / weight.cols);
    let dtype = backend.matrix_type(if element == Element::Bfloat16 { Dtype::Bfloat16 } else { Dtype::Float32 });
    let bytes: Vec<u8> = if dtype == Dtype::Bfloat16 {
        weight.values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
    } else {
        weight.values.iter().flat_map(|x| x.to_le_bytes()).collect()
    };
    let mut matrix = backend.matrix(rows, weight.cols, dtype);
    backend.pack(&mut matrix, 0, &bytes);
    let mut out = backend.buffer(count, rows);
    backend.linear(&backend.upload(weight.cols, x), &matrix, &mut out);
    backend.download(&out, 0..count)
}
