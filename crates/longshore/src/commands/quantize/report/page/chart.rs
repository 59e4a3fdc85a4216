//! Plots over the layers, as SVG.

use crate::commands::quantize::report::tables::number;
use crate::page::escape;
use crate::page::plot::{Style, legend, marker, steps, tick_text};
use std::borrow::Cow;
use std::fmt::Write as _;

/// The area of the drawing, and of what is plotted in it.
const SIZE: (f64, f64) = (960.0, 300.0);
const LEFT: f64 = 66.0;
const RIGHT: f64 = 930.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 262.0;
/// Labels that fit below.
const LABELS: usize = 24;

/// A value at a label.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) at: usize,
    pub(super) value: f64,
}

/// Values of one kind.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: Cow<'static, str>,
    pub(super) style: Style,
    pub(super) points: Vec<Point>,
}

/// A plot.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) unit: &'a str,
    /// Whether steps are powers of ten.
    pub(super) log: bool,
    pub(super) labels: &'a [String],
    /// Whether one line goes through the points of all series, in place of one through each.
    pub(super) path: bool,
    pub(super) series: Vec<Series>,
}

/// What markers mean.
pub(super) fn legend_of(series: &[Series], page: &mut String) {
    legend(series.iter().map(|one| (one.style, &*one.name)), page);
}

impl Chart<'_> {
    /// What can be drawn of a value.
    fn height(&self, value: f64) -> Option<f64> {
        let height = if self.log { value.log10() } else { value };
        height.is_finite().then_some(height)
    }

    /// Appends the drawing, or that there is nothing to draw.
    pub(super) fn draw(&self, page: &mut String) {
        let points = || self.series.iter().flat_map(|s| s.points.iter().map(move |p| (s, *p)));
        let heights = || points().filter_map(|(_, p)| self.height(p.value));
        let title = escape(self.title);
        if heights().next().is_none() {
            let _ = writeln!(page, "<p class=\"empty\">{title}: nothing to show.</p>");
            return;
        }
        let low = heights().fold(f64::INFINITY, f64::min);
        let high = heights().fold(f64::NEG_INFINITY, f64::max);
        let (ticks, from, to) = if self.log { decades(low, high) } else { steps(low, high) };
        let n = self.labels.len().max(1);
        let x = |at: usize| LEFT + (at as f64 + 0.5) / n as f64 * (RIGHT - LEFT);
        let y = |height: f64| BOTTOM - (height - from) / (to - from) * (BOTTOM - TOP);
        let (width, height) = SIZE;
        let _ = writeln!(
            page,
            "<figure>\n<figcaption>{title}</figcaption>\n<div class=\"wide\"><svg class=\"plot\" viewBox=\"0 0 {width} {height}\" \
             role=\"img\" aria-label=\"{title}\">\n<g class=\"grid\">"
        );
        for &tick in &ticks {
            let (at, value) = (y(tick), if self.log { 10f64.powf(tick) } else { tick });
            let _ = writeln!(
                page,
                "<path d=\"M{LEFT} {at:.1}H{RIGHT}\"/><text x=\"{:.1}\" y=\"{:.1}\" class=\"e\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                tick_text(value)
            );
        }
        for (i, label) in self.labels.iter().enumerate().step_by(n.div_ceil(LABELS)) {
            let _ = writeln!(
                page,
                "<text x=\"{:.1}\" y=\"{:.1}\" class=\"m\">{}</text>",
                x(i),
                BOTTOM + 18.0,
                escape(label)
            );
        }
        let _ = writeln!(
            page,
            "<text x=\"{:.1}\" y=\"{:.1}\" class=\"m\">layer</text><text x=\"{LEFT}\" y=\"14\">{}</text></g>",
            f64::midpoint(LEFT, RIGHT),
            BOTTOM + 34.0,
            escape(self.unit)
        );
        let line = |points: &[Point]| {
            let mut points: Vec<(usize, f64)> =
                points.iter().filter_map(|p| Some((p.at, self.height(p.value)?))).collect();
            points.sort_by_key(|(at, _)| *at);
            let steps = points
                .iter()
                .enumerate()
                .map(|(i, (at, height))| format!("{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, x(*at), y(*height)));
            steps.collect::<String>()
        };
        if self.path {
            let all: Vec<Point> = points().map(|(_, p)| p).collect();
            let _ = writeln!(page, "<path class=\"line\" d=\"{}\"/>", line(&all));
        }
        for series in &self.series {
            if !self.path {
                let _ = writeln!(page, "<path class=\"line c{}\" d=\"{}\"/>", series.style.color, line(&series.points));
            }
            for point in &series.points {
                let Some(height) = self.height(point.value) else { continue };
                let label = self.labels.get(point.at).map_or("", String::as_str);
                let value = number(point.value);
                let text = format!("layer {label}, {}: {value} {}", series.name, self.unit);
                marker(series.style, x(point.at), y(height), Some(text.trim_end()), page);
                page.push('\n');
            }
        }
        *page += "</svg></div>\n</figure>\n";
    }
}

/// The powers of ten around the values, as exponents; every second or so where there are many.
#[expect(clippy::cast_sign_loss, reason = "no count is negative, and `as` saturates")]
fn decades(low: f64, high: f64) -> (Vec<f64>, f64, f64) {
    let first = low.floor();
    let last = high.ceil().max(first + 1.0);
    let every = ((last - first) / 8.0).ceil().max(1.0);
    let ticks = (0..=((last - first) / every) as u32).map(|i| first + f64::from(i) * every).collect();
    (ticks, first, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_ten_are_few() {
        assert_eq!(decades(-2.5, 0.5), (vec![-3.0, -2.0, -1.0, 0.0, 1.0], -3.0, 1.0));
        assert!(decades(-45.0, 38.0).0.len() <= 9);
        assert_eq!(decades(1.0, 1.0), (vec![1.0, 2.0], 1.0, 2.0));
    }
}
