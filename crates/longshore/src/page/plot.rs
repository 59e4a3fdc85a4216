//! What plots are made of, as SVG: markers that are told apart without colour too, axes, and rows of values.

use super::escape;
use std::fmt::Write as _;

/// How a series is told from others: neither by colour alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    /// The class `c0` to `c6`.
    pub(crate) color: usize,
    /// Dot, open square, triangle.
    pub(crate) shape: usize,
}

impl Style {
    /// That of the `i`-th of several.
    pub(crate) fn nth(i: usize) -> Self {
        Self { color: i % 7, shape: i % 3 }
    }
}

/// What markers mean.
pub(crate) fn legend<'a>(series: impl IntoIterator<Item = (Style, &'a str)>, page: &mut String) {
    let mut items = String::new();
    for (style, name) in series {
        let mut symbol = String::new();
        marker(style, 8.0, 8.0, None, &mut symbol);
        let name = escape(name);
        let _ = writeln!(
            items,
            "<li><svg width=\"16\" height=\"16\" viewBox=\"0 0 16 16\" aria-hidden=\"true\">{symbol}</svg>{name}</li>"
        );
    }
    if !items.is_empty() {
        let _ = write!(page, "<ul class=\"legend\">\n{items}</ul>\n");
    }
}

/// A value of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// Which of the series.
    pub(crate) series: usize,
    pub(crate) value: f64,
    /// One standard error.
    pub(crate) error: Option<f64>,
}

/// Rows with a label each, and values along them.
pub(crate) struct Rows<'a> {
    pub(crate) title: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) series: &'a [(Style, String)],
    /// Bars from zero, in place of markers with error bars.
    pub(crate) bars: bool,
    pub(crate) rows: Vec<(String, Vec<Mark>)>,
}

impl Rows<'_> {
    const WIDTH: f64 = 960.0;
    const LEFT: f64 = 270.0;
    const RIGHT: f64 = 940.0;
    const TOP: f64 = 8.0;
    /// Height of a value, and of the space between rows.
    const STEP: f64 = 12.0;
    const GAP: f64 = 8.0;
    /// Characters of a label that fit.
    const LABEL: usize = 38;

    /// Appends the drawing, or that there is nothing to draw.
    pub(crate) fn draw(&self, page: &mut String) {
        let title = escape(self.title);
        let marks = || self.rows.iter().flat_map(|(_, marks)| marks).filter(|mark| mark.value.is_finite());
        let ends = |mark: &Mark| {
            let error = mark.error.filter(|e| e.is_finite()).unwrap_or(0.0);
            [mark.value - error, mark.value + error]
        };
        let zero = self.bars.then_some(0.0);
        let low = marks().flat_map(ends).chain(zero).fold(f64::INFINITY, f64::min);
        let high = marks().flat_map(ends).chain(zero).fold(f64::NEG_INFINITY, f64::max);
        if marks().next().is_none() {
            let _ = writeln!(page, "<p class=\"empty\">{title}: nothing to show.</p>");
            return;
        }
        let (ticks, from, to) = steps(low, high);
        let x = |value: f64| Self::LEFT + (value - from) / (to - from) * (Self::RIGHT - Self::LEFT);
        // A row is as high as its values are many; bars of a row lie on one line.
        let of_row = |marks: &[Mark]| if self.bars { 1.0 } else { marks.len().max(1) as f64 } * Self::STEP + Self::GAP;
        let bottom = Self::TOP + self.rows.iter().map(|(_, marks)| of_row(marks)).sum::<f64>();
        let (width, height) = (Self::WIDTH, bottom + 40.0);
        let _ = writeln!(
            page,
            "<figure>\n<figcaption>{title}</figcaption>\n<div class=\"wide\"><svg class=\"plot\" viewBox=\"0 0 {width} {height:.0}\" \
             role=\"img\" aria-label=\"{title}\">\n<g class=\"grid\">"
        );
        for &tick in &ticks {
            let at = x(tick);
            let class = if tick == 0.0 { " class=\"zero\"" } else { "" };
            let _ = writeln!(
                page,
                "<path{class} d=\"M{at:.1} {}V{bottom:.1}\"/><text x=\"{at:.1}\" y=\"{:.1}\" class=\"m\">{}</text>",
                Self::TOP,
                bottom + 16.0,
                escape(&tick_text(tick))
            );
        }
        let (middle, below) = (f64::midpoint(Self::LEFT, Self::RIGHT), bottom + 34.0);
        let _ = writeln!(page, "<text x=\"{middle:.1}\" y=\"{below:.1}\" class=\"m\">{}</text>", escape(self.unit));
        let mut top = Self::TOP;
        for (label, marks) in &self.rows {
            let middle = top + of_row(marks) / 2.0;
            let mut shown: String = label.chars().take(Self::LABEL).collect();
            if shown.len() < label.len() {
                shown.push('…');
            }
            let (x, y) = (Self::LEFT - 10.0, middle + 4.0);
            let _ = writeln!(page, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"e\">{}</text>", escape(&shown));
            top += of_row(marks);
        }
        *page += "</g>\n";
        let mut top = Self::TOP;
        for (label, marks) in &self.rows {
            for (i, mark) in marks.iter().enumerate().filter(|(_, mark)| mark.value.is_finite()) {
                let line = if self.bars { 0.0 } else { i as f64 };
                self.mark(label, mark, &x, top + Self::GAP / 2.0 + (line + 0.5) * Self::STEP, page);
            }
            top += of_row(marks);
        }
        *page += "</svg></div>\n</figure>\n";
    }

    fn mark(&self, label: &str, mark: &Mark, x: &impl Fn(f64) -> f64, y: f64, page: &mut String) {
        let Some((style, name)) = self.series.get(mark.series) else { return };
        let (value, color) = (mark.value, style.color);
        let error = mark.error.filter(|e| e.is_finite());
        let within = error.map(|e| format!(" ± {e:.3}")).unwrap_or_default();
        let title = format!("{label}, {name}: {} {}{within}", short(value), self.unit);
        if self.bars {
            let (begin, end) = (x(value.min(0.0)), x(value.max(0.0)));
            let _ = writeln!(
                page,
                "<rect class=\"f c{color}\" x=\"{begin:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                y - Self::STEP / 2.0,
                end - begin,
                Self::STEP,
                escape(&title)
            );
            return;
        }
        if let Some(e) = error {
            let (from, to) = (x(value - e), x(value + e));
            let _ = writeln!(page, "<path class=\"error c{color}\" d=\"M{from:.1} {y:.1}H{to:.1}\"/>");
        }
        marker(*style, x(value), y, Some(&title), page);
        page.push('\n');
    }
}

/// A value with a few digits.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Appends a marker; `title` is shown where one points at it.
pub(crate) fn marker(Style { color, shape }: Style, x: f64, y: f64, title: Option<&str>, page: &mut String) {
    let (tag, class, place) = match shape {
        0 => ("circle", "f", format!("cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"")),
        1 => ("rect", "o", format!("x=\"{:.1}\" y=\"{:.1}\" width=\"6.4\" height=\"6.4\"", x - 3.2, y - 3.2)),
        _ => ("path", "f", format!("d=\"M{:.1} {:.1}l4.5 7.8h-9z\"", x, y - 5.2)),
    };
    let title = title.map(|title| format!("<title>{}</title>", escape(title))).unwrap_or_default();
    let _ = write!(page, "<{tag} class=\"{class} c{color}\" {place}>{title}</{tag}>");
}

pub(crate) fn tick_text(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if (0.001..100_000.0).contains(&size) => {
            // Steps are 1, 2 or 5 times a power of ten: rounding takes off what binary fractions add.
            let text = format!("{value:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{value:.0e}"),
    }
}

/// About five steps of 1, 2 or 5 times a power of ten around the values, and where the axis begins and ends.
#[expect(clippy::cast_sign_loss, reason = "no count is negative, and `as` saturates")]
pub(crate) fn steps(low: f64, high: f64) -> (Vec<f64>, f64, f64) {
    let range = if high > low { high - low } else { high.abs().max(1.0) };
    let rough = range / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough).unwrap_or(10.0 * power);
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    // Never more than a dozen, whatever rounding does to huge values.
    let last = last.max(first + 1.0).min(first + 12.0);
    let ticks = (0..=(last - first) as u32).map(|i| (first + f64::from(i)) * step).collect();
    (ticks, first * step, last * step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_its_values_in_few_round_steps() {
        for (low, high) in [(17.3, 44.9), (0.0, 0.0), (-3.0, -2.9), (1e-30, 2e-30), (-1e9, 1e9), (31.6, 31.6)] {
            let (ticks, from, to) = steps(low, high);
            assert!(from <= low && high <= to && (2..=13).contains(&ticks.len()), "{low} {high}: {ticks:?}");
        }
        assert_eq!(steps(17.3, 44.9).0, [10.0, 20.0, 30.0, 40.0, 50.0]);
    }

    #[test]
    fn ticks_are_short() {
        assert_eq!([0.0, 0.1 + 0.2, 50.0, 1e-7, 1e6, 1000.0].map(tick_text), ["0", "0.3", "50", "1e-7", "1e6", "1000"]);
    }
}
