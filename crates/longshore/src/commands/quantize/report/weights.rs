//! What quantization did to the weights: read once from the source, band by band, each band packed and unpacked.

use crate::commands::quantize::shown::scheme_name;
use crate::report::Report;
use crate::units::counted;
use longshore_ckpt::{Dtype, Rect};
use longshore_convert::quantized::encode::is_shared;
use longshore_convert::quantized::{Calibrated, QuantLinear, Quantization, WeightAmax};
use longshore_convert::source::Source;
use longshore_infer::site::Site;
use longshore_quant::round_trip::{RoundTrip, packed_size};
use longshore_quant::search::{self, Search, TensorSearch};
use longshore_quant::{Amax, Distortion, Element, Granularity, Scheme, amax};
use serde::Serialize;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Values of a band.
const BAND: u64 = 1 << 18;

/// The weights of a kind in a layer: one, or one of each expert.
#[derive(Clone, Debug, Serialize)]
pub(super) struct WeightRow {
    /// Its label: `3`, `mtp 0.1`, or `output`.
    pub(super) layer: String,
    /// Where that is among the labels.
    #[serde(skip)]
    pub(super) at: usize,
    #[serde(flatten)]
    pub(super) errors: KindRow,
}

/// Weights of one kind.
#[derive(Clone, Debug, Serialize)]
pub(super) struct KindRow {
    pub(super) kind: Site,
    /// E.g. `nvfp4/16`; all that occur, joined by commas.
    pub(super) scheme: String,
    /// How many linears there are.
    pub(super) linears: u64,
    /// How many weights they have.
    pub(super) weights: u64,
    /// Of all of them.
    pub(super) sqnr_db: Option<f64>,
    /// Of the worst linear, the same where it is the only one.
    pub(super) worst_sqnr_db: Option<f64>,
    /// Its module.
    pub(super) worst: String,
    /// Largest absolute error.
    pub(super) max_error: f64,
    /// Largest magnitude of the source.
    pub(super) amax: f64,
    /// With all scales; `None` where exported checkpoints have no encoding.
    pub(super) bits_per_weight: Option<f64>,
}

/// A linear that was measured.
struct One<'a> {
    q: &'a QuantLinear,
    site: Site,
    distortion: Distortion,
    /// Bytes in an exported checkpoint.
    packed: Option<u64>,
}

/// The linears that were measured, in the order of the layers.
pub(super) struct Measured<'a> {
    all: Vec<One<'a>>,
    /// Those that were not, with the reason.
    failed: Vec<(String, String)>,
}

/// Measures every linear whose weight is quantized.
pub(super) fn measure<'a>(
    source: &Source,
    quantization: &'a Quantization,
    calibrated: &Calibrated,
    threads: usize,
    report: &Report,
) -> Measured<'a> {
    let linears: Vec<&QuantLinear> = quantization.linears.iter().filter(|q| !q.weight_schemes.is_empty()).collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(linears.len()));
    let work = || {
        while let Some(q) = linears.get(next.fetch_add(1, Ordering::Relaxed)) {
            let at = next.load(Ordering::Relaxed).min(linears.len());
            if at.is_multiple_of(256) {
                report.detail("Report", &format!("{at} of {} weights", linears.len()));
            }
            let result = of_linear(source, q, calibrated);
            results.lock().unwrap_or_else(PoisonError::into_inner).push((&q.linear.module, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let mut results: std::collections::BTreeMap<_, _> =
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect();
    let mut measured = Measured { all: Vec::new(), failed: Vec::new() };
    for &q in &linears {
        let module = &q.linear.module;
        let shared = q.linear.shared_module();
        let site = Site::ALL.into_iter().find(|site| shared.ends_with(site.module()));
        match (results.remove(module), site) {
            (Some(Ok(distortion)), Some(site)) => {
                let packed = packed_size(&q.weight_schemes, q.linear.rows, q.linear.cols);
                measured.all.push(One { q, site, distortion, packed });
            }
            (Some(Err(what)), _) => measured.failed.push((module.clone(), what)),
            _ => measured.failed.push((module.clone(), "it is of no known kind".to_owned())),
        }
    }
    measured
}

/// The part of a tensor that is some rows of a linear.
struct Piece {
    name: String,
    expert: Option<u64>,
    rows: Range<u64>,
}

/// A weight that is read in bands.
struct Weight<'a> {
    source: &'a Source,
    pieces: Vec<Piece>,
    element: Element,
    rows: u64,
    cols: u64,
    /// What its input is multiplied by, and it is divided by.
    columns: Option<&'a [f32]>,
}

impl<'a> Weight<'a> {
    fn new(source: &'a Source, q: &QuantLinear, calibrated: &'a Calibrated) -> Result<Self, String> {
        let linear = &q.linear;
        let whole = format!("{}.weight", linear.grouped_module());
        let names = if source.has(&whole) {
            vec![whole]
        } else if linear.is_output_layer {
            vec!["embedding.word_embeddings.weight".to_owned()]
        } else {
            // An input projection is stored in parts.
            ["z", "x", "B", "C", "dt"].map(|part| format!("{whole}.{part}")).to_vec()
        };
        let (mut pieces, mut rows, mut element) = (Vec::new(), 0, None);
        for name in names {
            if !source.has(&name) {
                return Err(format!("the source has no `{name}`"));
            }
            let (shape, dtype) = source.tensor(&name);
            let (own, cols) = match *shape {
                [own, cols] | [_, own, cols] => (own, cols),
                _ => (0, 0),
            };
            if cols != linear.cols || (shape.len() == 3) != linear.expert.is_some() {
                return Err(format!("`{name}` has the shape {shape:?}"));
            }
            let found = match dtype {
                Dtype::Bfloat16 => Element::Bfloat16,
                Dtype::Float16 => Element::Float16,
                _ => Element::Float32,
            };
            element = Some(element.map_or(found, |before| if before == found { found } else { Element::Float32 }));
            pieces.push(Piece { name, expert: linear.expert, rows: rows..rows + own });
            rows += own;
        }
        if rows != linear.rows {
            return Err(format!("{rows} rows where {} were expected", linear.rows));
        }
        let columns = calibrated.pre_quant_scales.get(&linear.module).filter(|_| !calibrated.weights_are_scaled);
        if columns.is_some_and(|columns| columns.len() as u64 != linear.cols) {
            return Err("a scale for each column is missing".to_owned());
        }
        let (element, columns) = (element.unwrap_or(Element::Float32), columns.map(|columns| &**columns));
        Ok(Self { source, pieces, element, rows, cols: linear.cols, columns })
    }

    /// Rows as they are in the source.
    fn read(&self, rows: &Range<u64>) -> Result<Vec<f32>, String> {
        let mut values = Vec::with_capacity(((rows.end - rows.start) * self.cols) as usize);
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            let (from, to) = (rows.start.max(piece.rows.start), rows.end.min(piece.rows.end));
            if from >= to {
                continue;
            }
            let mut rect = Rect::whole(self.source.tensor(&piece.name).0);
            if let Some(expert) = piece.expert {
                (rect.offsets[0], rect.sizes[0]) = (expert, 1);
            }
            let axis = rect.sizes.len() - 2;
            (rect.offsets[axis], rect.sizes[axis]) = (from - piece.rows.start, to - from);
            bytes.resize((rect.len() * 4) as usize, 0);
            self.source.read(&piece.name, &rect, Dtype::Float32, &mut bytes).map_err(|error| error.to_string())?;
            values.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)));
        }
        Ok(values)
    }

    /// Rows as the quantizer sees them.
    fn scaled(&self, values: &[f32]) -> Vec<f32> {
        let Some(columns) = self.columns else { return values.to_vec() };
        // As they are written: rounded to the dtype after the multiplication with the inverse.
        let scaled = values.iter().zip(columns.iter().cycle()).map(|(x, s)| self.element.round(x * (1.0 / s)));
        scaled.collect()
    }

    /// What quantized rows are to the unscaled input.
    fn unscale(&self, values: &mut [f32]) {
        if let Some(columns) = self.columns {
            for (x, s) in values.iter_mut().zip(columns.iter().cycle()) {
                *x *= s;
            }
        }
    }

    /// Ranges of rows that are read at a time: multiples of `unit` but for the last.
    fn bands(&self, unit: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let (rows, per_band) = (self.rows, (BAND / self.cols.max(1) / unit).max(1) * unit);
        (0..rows.div_ceil(per_band)).map(move |i| i * per_band..((i + 1) * per_band).min(rows))
    }
}

/// The magnitude of all of a weight, where its config says so: what is calibrated, else what it has.
fn whole_amax(weight: &Weight<'_>, q: &QuantLinear, calibrated: &Calibrated) -> Result<Option<f32>, String> {
    if !q.weight_schemes.iter().any(|&scheme| is_shared(scheme)) {
        return Ok(None);
    }
    let mut known = (0..q.weight_schemes.len()).filter_map(|i| calibrated.weights.get(&(q.linear.module.clone(), i)));
    if let Some(WeightAmax::Tensor(value)) = known.next() {
        return Ok(Some(*value));
    }
    let cols = weight.cols as usize;
    let mut total = Amax { values: vec![0.0], global: None };
    for band in weight.bands(1) {
        let values = weight.scaled(&weight.read(&band)?);
        amax::observe(Scheme::Fp8(Granularity::Tensor), cols, &values, &mut total)
            .map_err(|error| error.to_string())?;
    }
    let largest = total.values.first().copied().unwrap_or_default();
    let search = match (search_of(q, calibrated), q.weight_schemes.as_slice()) {
        (Some(search), &[scheme]) => TensorSearch::new(search, scheme, largest),
        _ => None,
    };
    let Some(mut search) = search else { return Ok(Some(largest)) };
    for band in weight.bands(1) {
        search.add(cols, &weight.scaled(&weight.read(&band)?));
    }
    Ok(Some(search.finish(weight.element)))
}

/// What is tried in place of the largest magnitudes. Weights that are quantized in sequence are left out.
fn search_of<'a>(q: &QuantLinear, calibrated: &'a Calibrated) -> Option<&'a Search> {
    calibrated.weight_search.as_ref().filter(|_| q.weight_schemes.len() == 1)
}

fn of_linear(source: &Source, q: &QuantLinear, calibrated: &Calibrated) -> Result<Distortion, String> {
    let weight = Weight::new(source, q, calibrated)?;
    let stored = |i| calibrated.weights.get(&(q.linear.module.clone(), i));
    if (0..q.weight_schemes.len()).any(|i| stored(i).is_some_and(|amax| !matches!(amax, WeightAmax::Tensor(_)))) {
        return Err("the source has scales of its own for it".to_owned());
    }
    if calibrated.weights_are_values {
        return Err("the source's weights are packed already".to_owned());
    }
    let whole = whole_amax(&weight, q, calibrated)?;
    let trip = RoundTrip::new(&q.weight_schemes, weight.element, weight.rows, weight.cols);
    let cols = weight.cols as usize;
    let mut distortion = Distortion::default();
    for band in weight.bands(trip.band_rows() as u64) {
        let values = weight.read(&band)?;
        let scaled = weight.scaled(&values);
        let mut amaxes = Vec::with_capacity(q.weight_schemes.len());
        for (stage, &scheme) in q.weight_schemes.iter().enumerate() {
            let is_static = matches!(scheme, Scheme::Nvfp4Static { .. });
            let mut found = Amax::default();
            if let Some(value) = whole.filter(|_| is_shared(scheme) && !is_static) {
                found.values.push(value);
            } else {
                amax::observe(scheme, cols, &scaled, &mut found).map_err(|error| error.to_string())?;
                found.global = whole.filter(|_| is_static);
                if let Some(search) = search_of(q, calibrated).filter(|search| search.applies(scheme)) {
                    search::refine(search, scheme, weight.element, cols, &scaled, &mut found);
                }
            }
            if let Some(clipped) = calibrated.clipped.get(&q.linear.module).filter(|_| stage == 0) {
                let per_row = found.values.len() / (values.len() / cols.max(1)).max(1);
                let shares = clipped.index.iter().skip(band.start as usize * per_row);
                for (x, &share) in found.values.iter_mut().zip(shares) {
                    *x *= clipped.shares.get(usize::from(share)).copied().unwrap_or(1.0);
                }
            }
            amaxes.push(found);
        }
        let mut became = trip.apply(&amaxes, &scaled).map_err(|error| error.to_string())?;
        weight.unscale(&mut became);
        distortion.add(&values, &became);
    }
    Ok(distortion)
}

/// Linears taken together.
struct Sum {
    distortion: Distortion,
    linears: u64,
    packed: Option<u64>,
    schemes: Vec<String>,
    worst: Option<(f64, String)>,
}

impl Sum {
    fn of<'b>(all: impl Iterator<Item = &'b One<'b>>) -> Self {
        let (distortion, schemes) = (Distortion::default(), Vec::new());
        let mut sum = Self { distortion, linears: 0, packed: Some(0), schemes, worst: None };
        for one in all {
            sum.distortion.merge(&one.distortion);
            sum.linears += 1;
            sum.packed = sum.packed.zip(one.packed).map(|(a, b)| a + b);
            let names: Vec<String> = one.q.weight_schemes.iter().map(|&scheme| scheme_name(scheme)).collect();
            let scheme = names.join(" then ");
            if !sum.schemes.contains(&scheme) {
                sum.schemes.push(scheme);
            }
            // What is exact is better than any number.
            let sqnr = one.distortion.sqnr().unwrap_or(f64::INFINITY);
            if sum.worst.as_ref().is_none_or(|(worst, _)| sqnr < *worst) {
                sum.worst = Some((sqnr, one.q.linear.module.clone()));
            }
        }
        sum
    }

    fn bits(&self) -> Option<f64> {
        self.packed
            .filter(|_| self.distortion.values > 0)
            .map(|bytes| bytes as f64 * 8.0 / self.distortion.values as f64)
    }

    fn row(self, kind: Site) -> KindRow {
        let bits_per_weight = self.bits();
        let (worst_sqnr, worst) = self.worst.unwrap_or_default();
        KindRow {
            kind,
            scheme: self.schemes.join(", "),
            linears: self.linears,
            weights: self.distortion.values,
            sqnr_db: self.distortion.sqnr(),
            worst_sqnr_db: (worst_sqnr < f64::INFINITY).then_some(worst_sqnr),
            worst,
            max_error: self.distortion.max_error,
            amax: self.distortion.largest,
            bits_per_weight,
        }
    }
}

/// The label of the layer that a module is in, from the path before its site.
fn label(prefix: &str) -> String {
    let numbers: Vec<&str> = prefix.split('.').filter(|part| part.parse::<u64>().is_ok()).collect();
    match prefix.split('.').next() {
        Some("decoder") => numbers.join("."),
        Some("mtp") => format!("mtp {}", numbers.join(".")),
        _ => "output".to_owned(),
    }
}

impl Measured<'_> {
    /// A row for every layer and kind, in order. Labels that `axis` has not are put behind it.
    pub(super) fn rows(&self, axis: &mut Vec<String>) -> Vec<WeightRow> {
        let mut groups: Vec<(String, Site, Vec<&One<'_>>)> = Vec::new();
        let mut places = std::collections::BTreeMap::new();
        for one in &self.all {
            let module = one.q.linear.shared_module();
            let next = groups.len();
            let at = *places.entry(module.clone()).or_insert(next);
            if at == next {
                let prefix = module.strip_suffix(one.site.module()).unwrap_or_default();
                groups.push((label(prefix), one.site, Vec::new()));
            }
            groups[at].2.push(one);
        }
        let mut rows = Vec::with_capacity(groups.len());
        for (layer, kind, ones) in groups {
            let at = axis.iter().position(|label| *label == layer).unwrap_or(axis.len());
            if at == axis.len() {
                axis.push(layer.clone());
            }
            rows.push(WeightRow { layer, at, errors: Sum::of(ones.into_iter()).row(kind) });
        }
        rows
    }

    /// A row for every kind.
    pub(super) fn kinds(&self) -> Vec<KindRow> {
        let of = |site: &Site| self.all.iter().any(|one| one.site == *site);
        let row = |site: Site| Sum::of(self.all.iter().filter(|one| one.site == site)).row(site);
        Site::ALL.into_iter().filter(of).map(row).collect()
    }

    /// Bits of a quantized weight with its scales; `None` where nothing is packed.
    pub(super) fn bits_per_weight(&self) -> Option<f64> {
        Sum::of(self.all.iter()).bits()
    }

    /// What was not measured.
    pub(super) fn notes(&self) -> Option<String> {
        let (module, what) = self.failed.first()?;
        let n = counted(self.failed.len() as u64, "weight");
        Some(format!("{n} not measured, the first is `{module}`: {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_labelled_by_their_numbers() {
        assert_eq!(label("decoder.layers.17."), "17");
        assert_eq!(label("mtp.layers.0.mtp_model_layer.layers.1."), "mtp 0.1");
        assert_eq!(label(""), "output");
    }
}
