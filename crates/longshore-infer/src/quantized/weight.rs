//! Quantizing a weight while it is loaded, a band of rows at a time: into the values that codes stand for (simulation), or
//! into the codes.

use super::WeightStage;
use crate::error::{Error, Result};
use longshore_quant::fake::fake_quantize;
use longshore_quant::pack::{self, PackedType, QuantizedRows};
use longshore_quant::{Amax, Element, Granularity, Scheme, amax};
use std::ops::Range;

/// Values of a band.
const BAND: usize = 1 << 22;

/// Whether one amax serves the whole tensor.
pub(super) fn is_whole(scheme: Scheme) -> bool {
    matches!(scheme, Scheme::Fp8(Granularity::Tensor) | Scheme::Int8(Granularity::Tensor) | Scheme::Nvfp4 { .. })
}

/// A weight `[rows, cols]` that is quantized while it is read.
pub(crate) struct WeightBands<'a> {
    pub(crate) module: &'a str,
    pub(crate) element: Element,
    pub(crate) stages: &'a [WeightStage],
    /// `[cols]`.
    pub(crate) scale: Option<&'a [f32]>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl WeightBands<'_> {
    /// Simulates: `take(first row, values)` gets whole rows, in order, from the rows that `read` gives.
    pub(crate) fn each_simulated(
        &self,
        read: impl Fn(Range<usize>) -> Result<Vec<f32>>,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.each(read, |row, mut values, amaxes| {
            for (stage, amax) in self.stages.iter().zip(amaxes) {
                fake_quantize(stage.scheme, self.element, amax, self.cols, &mut values);
            }
            take(row, &values);
            Ok(())
        })
    }

    /// Packs: `take(first row, rows)` gets the codes and scales of whole rows, in order.
    pub(crate) fn each_packed(
        &self,
        read: impl Fn(Range<usize>) -> Result<Vec<f32>>,
        mut take: impl FnMut(usize, &QuantizedRows),
    ) -> Result<()> {
        let schemes: Vec<Scheme> = self.stages.iter().map(|stage| stage.scheme).collect();
        self.each(read, |row, values, amaxes| {
            let rows = values.len() / self.cols.max(1);
            let layout = pack::layout(&schemes, rows as u64, self.cols as u64).map_err(|e| self.error(e))?;
            let zeros = |part: &pack::Part| {
                let element = if part.dtype == PackedType::F32 { 4 } else { 1 };
                vec![0; part.shape.iter().product::<u64>() as usize * element]
            };
            let mut packed = QuantizedRows {
                weight: zeros(&layout.weight),
                scale: layout.scale.as_ref().map(zeros).unwrap_or_default(),
                scale_2: pack::scale_2(&schemes, amaxes),
            };
            let (weight, scale) = (&mut packed.weight, &mut packed.scale);
            pack::pack(&schemes, self.element, amaxes, self.cols, &values, weight, scale).map_err(|e| self.error(e))?;
            take(row, &packed);
            Ok(())
        })
    }

    /// `take(first row, values, an amax for each stage)` gets whole rows, in order. Rows are read twice where an amax of the
    /// whole weight is to be found first.
    fn each(
        &self,
        read: impl Fn(Range<usize>) -> Result<Vec<f32>>,
        mut take: impl FnMut(usize, Vec<f32>, &[Amax]) -> Result<()>,
    ) -> Result<()> {
        self.check()?;
        // Squares, and rows that share bytes, begin in the first row of a band.
        let square = |stage: &WeightStage| match stage.scheme {
            Scheme::Fp8(Granularity::Square(n)) | Scheme::Int8(Granularity::Square(n)) => n,
            scheme => pack::band_rows(&[scheme]),
        };
        let whole = self.stages.iter().map(square).max().unwrap_or(1);
        let band = (BAND / self.cols.max(1) / whole).max(1) * whole;
        let starts = || (0..self.rows).step_by(band).map(|start| start..(start + band).min(self.rows));
        let mut tensor = Amax::default();
        let of_tensor = |scheme: Scheme| is_whole(scheme) || matches!(scheme, Scheme::Nvfp4Static { .. });
        if self.stages.iter().any(|stage| stage.amax.is_none() && of_tensor(stage.scheme)) {
            for range in starts() {
                let values = self.scaled(read(range)?);
                let scheme = Scheme::Fp8(Granularity::Tensor);
                amax::observe(scheme, self.cols, &values, &mut tensor).map_err(|e| self.error(e))?;
            }
        }
        for range in starts() {
            let values = self.scaled(read(range.clone())?);
            let mut amaxes = Vec::with_capacity(self.stages.len());
            // All from the values before the first stage, as a calibration sees them.
            for stage in self.stages {
                amaxes.push(match &stage.amax {
                    Some(amax) => self.of_rows(amax, stage.scheme, &range)?,
                    None if is_whole(stage.scheme) => tensor.clone(),
                    None => {
                        let global = of_tensor(stage.scheme).then(|| tensor.values.first().copied()).flatten();
                        let mut amax = Amax { values: Vec::new(), global };
                        amax::observe(stage.scheme, self.cols, &values, &mut amax).map_err(|e| self.error(e))?;
                        amax
                    }
                });
            }
            take(range.start, values, &amaxes)?;
        }
        Ok(())
    }

    /// Errors: sizes that do not fit the weight's.
    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::QuantState { module: self.module.to_owned(), what });
        if self.scale.is_some_and(|s| s.len() != self.cols) {
            return wrong(format!("the weight's scale has not {} values", self.cols));
        }
        for stage in self.stages {
            let count = amax::count(stage.scheme, self.rows, self.cols).map_err(|e| self.error(e))?;
            let given = stage.amax.as_ref().map_or(count, |amax| amax.values.len());
            if given != count {
                return wrong(format!("the weight has {given} amax values, expected {count}"));
            }
        }
        Ok(())
    }

    fn error(&self, error: longshore_quant::Error) -> Error {
        Error::Quantize { module: self.module.to_owned(), error }
    }

    fn scaled(&self, mut values: Vec<f32>) -> Vec<f32> {
        if let Some(scale) = self.scale {
            for row in values.chunks_exact_mut(self.cols) {
                for (x, s) in row.iter_mut().zip(scale) {
                    *x = self.element.round(*x * s);
                }
            }
        }
        values
    }

    /// The amax of some rows out of that of the whole weight.
    fn of_rows(&self, amax: &Amax, scheme: Scheme, rows: &Range<usize>) -> Result<Amax> {
        if is_whole(scheme) {
            return Ok(amax.clone());
        }
        let count = |rows| amax::count(scheme, rows, self.cols).map_err(|e| self.error(e));
        Ok(Amax { values: amax.values[count(rows.start)?..count(rows.end)?].to_vec(), global: amax.global })
    }
}
