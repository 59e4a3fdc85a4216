//! The report on a terminal.

use super::weights::KindRow;
use super::{QuantReport, decibels};
use crate::report::table;
use crate::units::{bytes, count};
use std::fmt::Write as _;

/// What all readers want, then the kinds, then with `by_layer` every layer.
pub(super) fn render(report: &QuantReport, by_layer: bool) -> String {
    let mut text = table(&summary(report), &[]);
    if !report.kinds.is_empty() {
        let mut rows = vec![head("linears of")];
        rows.extend(report.kinds.iter().map(|row| errors(row.kind.module().to_owned(), row)));
        let _ = write!(text, "\n{}", table(&rows, &[2, 3, 4, 5, 6, 7]));
    }
    if by_layer && !report.weights.is_empty() {
        let mut rows = vec![head("layer")];
        rows.extend(report.weights.iter().map(|row| {
            let name = format!("{} {}", row.layer, row.errors.kind.module());
            errors(name, &row.errors)
        }));
        let _ = write!(text, "\n{}", table(&rows, &[2, 3, 4, 5, 6, 7]));
    }
    if let (true, Some(outputs)) = (by_layer, &report.outputs) {
        let head = ["layer", "kind", "SQNR dB", "max |error|", "std", "rerouted"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(outputs.layers.iter().map(|row| {
            let rerouted = row.rerouted.map(percent).unwrap_or_default();
            let numbers = [decibels(row.sqnr_db), number(row.max_error), number(row.deviation), rerouted];
            [row.layer.to_string(), row.kind.to_string()].into_iter().chain(numbers).collect()
        }));
        let _ = write!(text, "\n{}", table(&rows, &[0, 2, 3, 4, 5]));
    }
    text
}

/// Name and value of what is true of the model as a whole.
pub(super) fn summary(report: &QuantReport) -> Vec<Vec<String>> {
    let mut rows = vec![("config", report.config.clone()), ("files", sizes(report.bytes))];
    if let Some(bits) = report.bits_per_weight {
        rows.push(("bits per quantized weight", format!("{bits:.3}, scales included")));
    }
    if let Some(o) = &report.outputs {
        let tokens = count(o.tokens);
        rows.push(("compared on", format!("{}, {tokens} tokens", o.text)));
        let kl = format!("{} nats, at most {}", number(o.kl_mean), number(o.kl_max));
        rows.push(("KL(source || result)", kl));
        rows.push(("KL(result || source)", format!("{} nats", number(o.kl_reverse_mean))));
        rows.push(("same most likely token", percent(o.top1_agreement)));
        if let Some([source, result]) = o.perplexity {
            rows.push(("perplexity", format!("{source:.3} -> {result:.3}")));
        }
    }
    rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect()
}

fn sizes([before, after]: [u64; 2]) -> String {
    let share = after as f64 / before.max(1) as f64;
    format!("{} -> {} ({})", bytes(before), bytes(after), percent(share))
}

fn head(first: &str) -> Vec<String> {
    [first, "format", "linears", "SQNR dB", "worst", "max |error|", "amax", "bits"].map(str::to_owned).to_vec()
}

/// Cells of a row: name, format, how many, SQNR, that of the worst, largest error, amax, bits.
pub(super) fn errors(name: String, row: &KindRow) -> Vec<String> {
    let bits = row.bits_per_weight.map_or_else(|| "-".to_owned(), |bits| format!("{bits:.2}"));
    let [sqnr, worst] = [row.sqnr_db, row.worst_sqnr_db].map(decibels);
    vec![name, row.scheme.clone(), count(row.linears), sqnr, worst, number(row.max_error), number(row.amax), bits]
}

/// Three digits, whatever the size.
pub(super) fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        size if !size.is_finite() => x.to_string(),
        size if (0.001..10.0).contains(&size) => format!("{x:.4}"),
        size if (10.0..100_000.0).contains(&size) => format!("{x:.1}"),
        _ => format!("{x:.2e}"),
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_few_digits() {
        let shown = [0.0, 0.5, -12.25, 1e-5, 1e9, f64::INFINITY].map(number);
        assert_eq!(shown, ["0", "0.5000", "-12.2", "1.00e-5", "1.00e9", "inf"]);
    }
}
