//! A linear's output under a candidate.

use super::Rows;
use crate::backend::Backend;
use longshore_ckpt::Dtype;
use longshore_quant::fake::fake_quantize;
use longshore_quant::{Amax, Element, Granularity, Result, Scheme, amax};
use std::borrow::Borrow;

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
        element.scale_rows(scale, &mut self.values);
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
    let mut values = rows.values.to_vec();
    element.scale_rows(&rounded(scale, element), &mut values);
    values
}

fn rounded(scale: &[f32], element: Element) -> Vec<f32> {
    scale.iter().map(|&s| element.round(s)).collect()
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

/// A weight to compare, ready for products.
pub(super) struct Candidate<B: Backend> {
    /// What its input is multiplied with.
    scale: Option<Vec<f32>>,
    matrix: B::Matrix,
    out: usize,
}

impl<B: Backend> Candidate<B> {
    /// The weight itself.
    pub(super) fn exact(backend: &B, weight: &Weight, element: Element) -> Self {
        let out = weight.values.len() / weight.cols;
        Self { scale: None, matrix: packed(backend, weight, element), out }
    }

    /// What a trial makes of it.
    pub(super) fn quantized(
        backend: &B,
        weight: &Weight,
        scheme: Scheme,
        element: Element,
        trial: &Trial,
        threads: usize,
    ) -> Result<Self> {
        let mut made = Weight { values: weight.values.clone(), cols: weight.cols };
        let mut inverse = None;
        if let Some(scale) = &trial.scale {
            made.multiply(&rounded(scale, element), element);
            inverse = Some(scale.iter().map(|s| element.round(1.0 / s)).collect());
        }
        let mut amax = amax_of(scheme, made.cols, &made.values, trial.share)?;
        let keeps = longshore_quant::search::keeps_element(scheme);
        for x in amax.values.iter_mut().filter(|_| keeps) {
            *x = element.round(*x);
        }
        quantize(scheme, element, &amax, &mut made, threads)?;
        Ok(Self { scale: inverse, ..Self::exact(backend, &made, element) })
    }

    /// Bytes that one takes.
    pub(super) fn size(backend: &B, weight: &Weight, element: Element) -> u64 {
        let rows = weight.values.len() / weight.cols;
        backend.matrix_size(rows as u64, weight.cols as u64, matrix_type(backend, element).into())
    }
}

/// Squared differences of the outputs from those of the first, row by row, `[others][rows]`, and the outputs of a row.
pub(super) fn errors<B: Backend, C: Borrow<Candidate<B>>>(
    backend: &B,
    candidates: impl Iterator<Item = crate::error::Result<C>>,
    rows: &Rows<'_>,
    element: Element,
) -> crate::error::Result<(Vec<Vec<f64>>, usize)> {
    let (x, count) = (backend.upload(rows.cols, rows.values), rows.batches.len());
    let (mut exact, mut out, mut all) = (None, 0, Vec::new());
    for candidate in candidates {
        let candidate = candidate?;
        let candidate = candidate.borrow();
        let scaled = candidate.scale.as_ref().map(|scale| backend.scaled(&x, scale, element));
        let mut got = backend.buffer(count, candidate.out);
        backend.linear(scaled.as_ref().unwrap_or(&x), &candidate.matrix, &mut got);
        out = candidate.out;
        match &exact {
            None => exact = Some(got),
            Some(exact) => all.push(backend.squared_differences(&got, exact)),
        }
    }
    Ok((all, out))
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

fn matrix_type<B: Backend>(backend: &B, element: Element) -> Dtype {
    backend.matrix_type(if element == Element::Bfloat16 { Dtype::Bfloat16 } else { Dtype::Float32 })
}

fn packed<B: Backend>(backend: &B, weight: &Weight, element: Element) -> B::Matrix {
    let dtype = matrix_type(backend, element);
    let mut matrix = backend.matrix(weight.values.len() / weight.cols, weight.cols, dtype);
    let mut bytes = Vec::with_capacity(weight.values.len() * 4);
    for x in &weight.values {
        if dtype == Dtype::Bfloat16 {
            bytes.extend_from_slice(&half::bf16::from_f32(*x).to_le_bytes());
        } else {
            bytes.extend_from_slice(&x.to_le_bytes());
        }
    }
    backend.pack(&mut matrix, 0, &bytes);
    matrix
}
