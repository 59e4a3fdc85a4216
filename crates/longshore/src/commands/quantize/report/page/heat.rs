//! How many tokens each expert saw, as a map of cells: layers down, experts across.

use crate::commands::quantize::report::calibration::ExpertTokens;
use crate::page::escape;
use crate::units::count;
use std::fmt::Write as _;

/// Cells that are drawn; beyond it experts share one, which shows the least of them.
const CELLS: usize = 1 << 16;
const LEFT: f64 = 66.0;
const WIDTH: f64 = 882.0;
const TOP: f64 = 8.0;

/// Classes of cells: none, few, then shares of the layer's mean below these, and above.
const SHARES: [f64; 5] = [0.25, 0.5, 1.0, 2.0, 4.0];
const NAMES: [&str; 8] =
    ["no token", "few", "below 1/4 of the mean", "to 1/2", "to the mean", "to 2 times", "to 4 times", "above"];

/// Appends the section.
#[expect(clippy::cast_sign_loss, reason = "no count is negative, and `as` saturates")]
pub(super) fn section(experts: &[ExpertTokens], page: &mut String) {
    *page += "<h2>Experts</h2>\n";
    let widest = experts.iter().map(|layer| layer.tokens.len()).max().unwrap_or(0);
    if widest == 0 {
        *page += "<p>No routed experts were observed.</p>\n";
        return;
    }
    let group = (widest * experts.len()).div_ceil(CELLS);
    *page += "<p>Tokens that the router sent to each expert while calibrating, against the mean of its layer. The scales of \
              an expert that saw few are a guess.";
    if group > 1 {
        let _ = write!(page, " A cell stands for the least of {group} experts.");
    }
    *page += "</p>\n<ul class=\"legend\">\n";
    for (class, name) in NAMES.iter().enumerate() {
        let _ = writeln!(
            page,
            "<li><svg width=\"16\" height=\"16\" viewBox=\"0 0 16 16\" aria-hidden=\"true\"><rect class=\"h{class}\" \
             width=\"16\" height=\"16\"/></svg>{name}</li>"
        );
    }
    *page += "</ul>\n";
    let row_height = (560.0 / experts.len() as f64).clamp(5.0, 24.0);
    let height = TOP + row_height * experts.len() as f64 + 40.0;
    let title = "Tokens of every expert by layer";
    let _ = writeln!(
        page,
        "<figure>\n<figcaption>{title}</figcaption>\n<div class=\"wide\"><svg class=\"plot\" viewBox=\"0 0 960 {height:.0}\" \
         role=\"img\" aria-label=\"{title}\">"
    );
    let columns = widest.div_ceil(group);
    let cell = WIDTH / columns as f64;
    let _ = writeln!(
        page,
        "<g transform=\"translate({LEFT} {TOP}) scale({cell:.5} {row_height:.3})\" shape-rendering=\"crispEdges\">"
    );
    for (class, path) in cells(experts, group).iter().enumerate().filter(|(_, path)| !path.is_empty()) {
        let _ = writeln!(page, "<path class=\"h{class}\" d=\"{path}\"/>");
    }
    for (row, layer) in experts.iter().enumerate() {
        let _ = writeln!(
            page,
            "<rect class=\"row\" y=\"{row}\" width=\"{columns}\" height=\"1\"><title>{}</title></rect>",
            escape(&told(layer))
        );
    }
    *page += "</g>\n<g class=\"grid\">\n";
    // Labels need more height than many rows have.
    let every = (12.0 / row_height).ceil().max(1.0) as usize;
    for (row, layer) in experts.iter().enumerate().step_by(every) {
        let y = TOP + row_height * (row as f64 + 0.5) + 4.0;
        let _ = writeln!(page, "<text x=\"{:.1}\" y=\"{y:.1}\" class=\"e\">layer {}</text>", LEFT - 8.0, layer.layer);
    }
    let below = TOP + row_height * experts.len() as f64 + 16.0;
    let step = (widest as f64 / 16.0).log2().ceil().max(0.0).exp2() as usize;
    for expert in (0..widest).step_by(step.max(1)) {
        let x = LEFT + (expert as f64 / group as f64 + 0.5) * cell;
        let _ = writeln!(page, "<text x=\"{x:.1}\" y=\"{below:.1}\" class=\"m\">{expert}</text>");
    }
    let _ = writeln!(
        page,
        "<text x=\"{:.1}\" y=\"{:.1}\" class=\"m\">expert</text></g>\n</svg></div>\n</figure>",
        LEFT + WIDTH / 2.0,
        below + 16.0
    );
}

/// A path for each class, in units of cells: runs of one class are one rectangle.
fn cells(experts: &[ExpertTokens], group: usize) -> [String; 8] {
    let mut paths: [String; 8] = std::array::from_fn(|_| String::new());
    for (row, layer) in experts.iter().enumerate() {
        let mean = layer.mean();
        let mut few = vec![false; layer.tokens.len()];
        for &expert in &layer.few {
            few[expert] = true;
        }
        let class_of = |(tokens, few): (&[u64], &[bool])| {
            let least = tokens.iter().copied().min().unwrap_or(0);
            class(least, few.contains(&true), mean)
        };
        let classes: Vec<usize> = layer.tokens.chunks(group).zip(few.chunks(group)).map(class_of).collect();
        let mut start = 0;
        for run in classes.chunk_by(|a, b| a == b) {
            let _ = write!(paths[run[0]], "M{start} {row}h{}v1h-{}z", run.len(), run.len());
            start += run.len();
        }
    }
    paths
}

fn class(tokens: u64, few: bool, mean: f64) -> usize {
    match tokens {
        0 => 0,
        _ if few => 1,
        _ => 2 + SHARES.iter().filter(|share| tokens as f64 >= *share * mean).count(),
    }
}

/// A layer in a line.
fn told(layer: &ExpertTokens) -> String {
    let (least, most) = (layer.tokens.iter().min().copied(), layer.tokens.iter().max().copied());
    format!(
        "layer {}: {} experts, {} to {} tokens, mean {:.1}; {} with few, {} with none",
        layer.layer,
        layer.tokens.len(),
        count(least.unwrap_or(0)),
        count(most.unwrap_or(0)),
        layer.mean(),
        layer.few.len(),
        layer.none.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_class_are_one_rectangle() {
        let experts = [ExpertTokens::new(2, vec![0, 0, 100, 100, 100, 20]), ExpertTokens::new(5, vec![40, 40, 5, 40])];
        let paths = cells(&experts, 1);
        assert_eq!(paths[0], "M0 0h2v1h-2z");
        assert_eq!(paths[1], "M2 1h1v1h-1z");
        // Means are 53.3 and 31.25.
        assert_eq!(paths[5], "M2 0h3v1h-3zM0 1h2v1h-2zM3 1h1v1h-1z");
        assert_eq!(paths[3], "M5 0h1v1h-1z");
    }

    #[test]
    fn a_shared_cell_shows_the_least() {
        let experts = [ExpertTokens::new(0, vec![100, 0, 100, 100])];
        let paths = cells(&experts, 2);
        assert_eq!((paths[0].as_str(), paths[5].as_str()), ("M0 0h1v1h-1z", "M1 0h1v1h-1z"));
    }
}
