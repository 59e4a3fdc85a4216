//! The report as one page: no script, nothing to load, plots drawn here. It is well-formed XML too, so that anything can
//! read it.

mod chart;
mod heat;

use super::tables::{errors, number, percent, summary};
use super::weights::WeightRow;
use super::{QuantReport, decibels};
use crate::page::plot::Style;
use crate::page::{document, escape, table};
use chart::{Chart, Point, Series};
use longshore_infer::site::Site;
use std::fmt::Write as _;

/// The whole page.
pub(super) fn render(report: &QuantReport) -> String {
    let mut page = format!("<h1>What quantization did to {}</h1>\n", escape(&report.folders[0]));
    header(report, &mut page);
    weights(report, &mut page);
    outputs(report, &mut page);
    inputs(report, &mut page);
    heat::section(&report.experts, &mut page);
    tables(report, &mut page);
    document(&format!("{} as {}: quantization report", report.folders[0], report.config), &page)
}

/// The model, the numbers that matter, and the warnings.
fn header(report: &QuantReport, page: &mut String) {
    let layers = report.pattern.len();
    let pattern: String = report.pattern.iter().collect();
    let _ = writeln!(
        page,
        "<p class=\"sub\">{}, {layers} layers <code>{}</code>, written to <code>{}</code></p>\n<dl class=\"facts\">",
        escape(&report.architecture),
        escape(&pattern),
        escape(&report.folders[1])
    );
    for row in summary(report) {
        let [name, value] = row.as_slice() else { continue };
        let _ = writeln!(page, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    *page += "</dl>\n";
    for note in &report.notes {
        let _ = writeln!(page, "<p class=\"note\" role=\"note\">{}</p>", escape(note));
    }
}

fn weights(report: &QuantReport, page: &mut String) {
    *page += "<h2>Weights</h2>\n<p>Every quantized weight is packed as it is exported and unpacked as servers do it. SQNR is \
              10 log<sub>10</sub> of the power of the weight over that of its error: 6 dB more is half the error. \
              Experts of a layer are taken together.</p>\n";
    let series = |value: &dyn Fn(&WeightRow) -> Option<f64>| {
        by_site(report.weights.iter().filter_map(|row| {
            let value = value(row)?;
            Some((row.errors.kind, row.at, value))
        }))
    };
    let sqnr = series(&|row| row.errors.sqnr_db);
    let error = series(&|row| Some(row.errors.max_error));
    chart::legend_of(&sqnr, page);
    let chart = |title, unit, log, series| Chart { title, unit, log, labels: &report.axis, path: false, series };
    chart("SQNR of the weights by layer and kind", "dB", false, sqnr).draw(page);
    chart("Largest absolute error of the weights by layer and kind", "", true, error).draw(page);
}

fn outputs(report: &QuantReport, page: &mut String) {
    *page += "<h2>Outputs</h2>\n";
    let Some(outputs) = &report.outputs else {
        *page += "<p>Source and result were not run against each other.</p>\n";
        return;
    };
    let _ = writeln!(
        page,
        "<p>Source and result ran side by side on {} that calibration has not seen. What a layer adds to the residual \
         stream carries its own error and that of all layers before it.</p>",
        escape(&outputs.text)
    );
    let of = |value: &dyn Fn(&super::outputs::OutputRow) -> Option<f64>| {
        let mut series: Vec<Series> = Vec::new();
        for row in &outputs.layers {
            let name = layer_kind(row.kind);
            let Some(value) = value(row) else { continue };
            let at = series.iter().position(|s| s.name == name).unwrap_or(series.len());
            if at == series.len() {
                series.push(Series { name: name.into(), style: layer_style(row.kind), points: Vec::new() });
            }
            series[at].points.push(Point { at: row.layer, value });
        }
        series
    };
    let sqnr = of(&|row| row.sqnr_db);
    chart::legend_of(&sqnr, page);
    let chart = |title, unit, log, series| Chart { title, unit, log, labels: &report.axis, path: true, series };
    chart("SQNR of the residual stream after each layer", "dB", false, sqnr).draw(page);
    let error = of(&|row| Some(row.max_error));
    chart("Largest absolute error of the residual stream after each layer", "", true, error).draw(page);
}

fn inputs(report: &QuantReport, page: &mut String) {
    *page += "<h2>Inputs</h2>\n";
    if report.inputs.is_empty() {
        *page += "<p>Nothing was observed: this config finds its scales in the weights or at run time.</p>\n";
        return;
    }
    *page += "<p>The largest magnitude that each linear has read while calibrating: what the scale of its input is made \
              of.</p>\n";
    let output = report.axis.iter().position(|label| label == "output").unwrap_or(report.axis.len());
    let series = by_site(report.inputs.iter().map(|row| (row.kind, row.layer.unwrap_or(output), f64::from(row.amax))));
    chart::legend_of(&series, page);
    let mut labels = report.axis.clone();
    if output == labels.len() {
        labels.push("output".to_owned());
    }
    let (title, unit) = ("Largest magnitude of the inputs (amax) by layer", "");
    Chart { title, unit, log: true, labels: &labels, path: false, series }.draw(page);
}

/// The numbers behind the plots.
fn tables(report: &QuantReport, page: &mut String) {
    *page += "<h2>Numbers</h2>\n";
    let head = ["format", "linears", "SQNR dB", "worst dB", "max |error|", "amax", "bits"];
    let kinds = report.kinds.iter().map(|row| errors(site_name(row.kind).to_owned(), row)).collect();
    table("Weights by kind", &[&["linears of"], &head[..]].concat(), 2, kinds, true, page);
    let rows = report.weights.iter().map(|row| {
        let cells = errors(site_name(row.errors.kind).to_owned(), &row.errors);
        [vec![row.layer.clone()], cells, vec![row.errors.worst.clone()]].concat()
    });
    let heads = [&["layer", "linears of"], &head[..], &["worst linear"]].concat();
    table("Weights by layer and kind", &heads, 3, rows.collect(), false, page);
    if let Some(outputs) = &report.outputs {
        let rows = outputs.layers.iter().map(|row| {
            let rerouted = row.rerouted.map_or_else(|| "-".to_owned(), percent);
            let numbers = [decibels(row.sqnr_db), number(row.max_error), number(row.deviation), rerouted];
            [row.layer.to_string(), layer_kind(row.kind).to_owned()].into_iter().chain(numbers).collect()
        });
        let heads = ["layer", "kind", "SQNR dB", "max |error|", "standard deviation", "tokens sent to other experts"];
        table("Residual stream by layer", &heads, 2, rows.collect(), false, page);
    }
    let rows = report.inputs.iter().map(|row| {
        let layer = row.layer.map_or_else(|| "output".to_owned(), |layer| layer.to_string());
        let weighted = row.weighted_amax.map_or_else(|| "-".to_owned(), |amax| number(f64::from(amax)));
        vec![layer, site_name(row.kind).to_owned(), row.tokens.to_string(), number(f64::from(row.amax)), weighted]
    });
    let heads = ["layer", "input of", "rows", "amax", "amax times router weight"];
    table("Inputs by layer", &heads, 2, rows.collect(), false, page);
    let rows = report.experts.iter().filter(|layer| !layer.few.is_empty()).map(|layer| {
        let few: Vec<String> = layer.few.iter().map(|&e| format!("{e} ({})", layer.tokens[e])).collect();
        vec![layer.layer.to_string(), few.len().to_string(), layer.none.len().to_string(), few.join(", ")]
    });
    let heads = ["layer", "experts with few tokens", "with none", "which (tokens)"];
    table("Experts that saw few tokens", &heads, 1, rows.collect(), false, page);
}

/// Series of values by site, in the order of the sites.
fn by_site(values: impl Iterator<Item = (Site, usize, f64)>) -> Vec<Series> {
    let mut found: std::collections::BTreeMap<Site, Vec<Point>> = std::collections::BTreeMap::new();
    for (site, at, value) in values {
        found.entry(site).or_default().push(Point { at, value });
    }
    found
        .into_iter()
        .map(|(site, points)| Series { name: site_name(site).into(), style: style(site), points })
        .collect()
}

fn site_name(site: Site) -> &'static str {
    match site {
        Site::MambaIn => "Mamba in",
        Site::MambaOut => "Mamba out",
        Site::Qkv => "attention qkv",
        Site::Proj => "attention proj",
        Site::Fc1 => "MLP fc1",
        Site::Fc2 => "MLP fc2",
        Site::ExpertFc1 => "experts fc1",
        Site::ExpertFc2 => "experts fc2",
        Site::SharedFc1 => "shared expert fc1",
        Site::SharedFc2 => "shared expert fc2",
        Site::LatentDown => "latent down",
        Site::LatentUp => "latent up",
        Site::Query => "queries",
        Site::Key => "keys",
        Site::Value => "values",
        Site::Output => "output layer",
    }
}

/// A colour for what belongs together, a shape for which of it.
fn style(site: Site) -> Style {
    let (color, shape) = match site {
        Site::MambaIn => (0, 0),
        Site::MambaOut => (0, 1),
        Site::Qkv => (1, 0),
        Site::Proj => (1, 1),
        Site::Fc1 => (2, 0),
        Site::Fc2 => (2, 1),
        Site::ExpertFc1 => (3, 0),
        Site::ExpertFc2 => (3, 1),
        Site::SharedFc1 => (4, 0),
        Site::SharedFc2 => (4, 1),
        Site::LatentDown => (5, 0),
        Site::LatentUp => (5, 1),
        Site::Query => (1, 2),
        Site::Key => (6, 2),
        Site::Value => (4, 2),
        Site::Output => (6, 0),
    };
    Style { color, shape }
}

fn layer_kind(letter: char) -> &'static str {
    match letter {
        'M' => "Mamba",
        '*' => "attention",
        '-' => "MLP",
        'E' => "MoE",
        _ => "other",
    }
}

fn layer_style(letter: char) -> Style {
    let (color, shape) = match letter {
        'M' => (0, 0),
        '*' => (1, 1),
        '-' => (2, 0),
        'E' => (3, 2),
        _ => (6, 0),
    };
    Style { color, shape }
}
