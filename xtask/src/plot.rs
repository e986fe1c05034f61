//! Plots as SVG: curves of named lines with a point at each figure, for `smp`, for `bench` and for the pages in docs/.
//!
//! An axis counts evenly, by doublings or by tens, with marks at round numbers: [`Places`] tells the drawing library.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// Pixels.
const SIZE: (u32, u32) = (860, 440);
/// Pixels of the legend, which stands on the right of the plot.
const LEGEND: u32 = 180;
/// The lines' colours, dark enough for white paper.
const COLORS: [RGBColor; 16] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
    RGBColor(168, 170, 24),
    RGBColor(23, 190, 207),
    BLACK,
    RGBColor(0, 80, 0),
    RGBColor(120, 0, 60),
    RGBColor(0, 0, 160),
    RGBColor(235, 170, 0),
    RGBColor(80, 190, 150),
];
/// What a logarithm takes for zero and less.
const LEAST: f64 = 0.01;

/// How an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from 0.
    Even,
    /// By doublings, with a label at each: numbers of CPUs.
    Doublings,
    /// By tens.
    Tens,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Even => value,
            Scale::Doublings => value.max(LEAST).log2(),
            Scale::Tens => value.max(LEAST).log10(),
        }
    }

    /// From where to where an axis with these values goes.
    fn span(self, values: impl Iterator<Item = f64>) -> Range<f64> {
        let places: Vec<f64> = values.map(|value| self.place(value)).collect();
        let most = places.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match self {
            Scale::Even => 0.0..most.max(1e-3) * 1.1,
            Scale::Doublings => -0.1..most.max(1.0) + 0.1,
            Scale::Tens => places.into_iter().fold(f64::INFINITY, f64::min) - 0.15..most + 0.15,
        }
    }
}

/// An axis to the drawing library.
struct Places {
    scale: Scale,
    /// Of places, not of values.
    span: Range<f64>,
}

impl Places {
    fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Places {
        Places { scale, span: scale.span(values) }
    }

    /// The round values by tens: 1, 2 and 5 of each ten, or 1 alone where there are many.
    fn tens(&self) -> Vec<f64> {
        let of_ten: &[f64] = if self.span.end - self.span.start > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let tens = self.span.start.floor() as i32..=self.span.end.floor() as i32;
        let all = tens.flat_map(|ten| of_ten.iter().map(move |of| of * 10_f64.powi(ten)));
        all.filter(|&value| self.span.contains(&self.scale.place(value))).collect()
    }
}

impl Ranged for Places {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (self.scale.place(*value) - self.span.start) / (self.span.end - self.span.start);
        from + (f64::from(to - from) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match self.scale {
            Scale::Even => RangedCoordf64::from(self.span.clone()).key_points(hint),
            Scale::Doublings => (0..=self.span.end as i32).map(|doubling| 2_f64.powi(doubling)).collect(),
            Scale::Tens => self.tens(),
        }
    }

    fn range(&self) -> Range<f64> {
        let value = |place: f64| match self.scale {
            Scale::Even => place,
            Scale::Doublings => place.exp2(),
            Scale::Tens => 10_f64.powf(place),
        };
        value(self.span.start)..value(self.span.end)
    }
}

impl ValueFormatter<f64> for Places {
    fn format_ext(&self, value: &f64) -> String {
        short(*value)
    }
}

/// A number with few digits.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        v if v >= 1e4 => format!("{}k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = if value.abs() < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// An axis: what stands at it, and how it counts.
pub type Axis = (&'static str, Scale);

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// The name of its file, without `.svg`.
    pub name: &'static str,
    /// What stands above it.
    pub title: String,
    /// The axis below.
    pub x: Axis,
    /// The axis on the left.
    pub y: Axis,
    /// The lines by their names, in the order of the legend.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

impl Plot {
    /// Draws it.
    ///
    /// # Errors
    /// When the drawing library refuses; it writes into memory, so the figures themselves would be at fault.
    pub fn svg(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| anyhow::anyhow!("plot {}: {error}", self.name))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let all = || self.lines.iter().flat_map(|(_, points)| points);
        let x = Places::of(self.x.1, all().map(|point| point.0));
        let y = Places::of(self.y.1, all().map(|point| point.1));
        let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .margin_right(LEGEND)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(x, y)?;
        chart.configure_mesh().x_desc(self.x.0).y_desc(self.y.0).light_line_style(TRANSPARENT).draw()?;
        for (number, (name, points)) in self.lines.iter().enumerate() {
            let color = COLORS[number % COLORS.len()];
            chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
            chart.draw_series(points.iter().map(|&at| Circle::new(at, 3, color.filled())))?;
            let (left, middle) = ((SIZE.0 - LEGEND) as i32 + 8, 50 + 18 * number as i32);
            area.draw(&PathElement::new([(left, middle), (left + 16, middle)], color.stroke_width(2)))?;
            area.draw(&Text::new(name.as_str(), (left + 22, middle - 6), ("sans-serif", 12)))?;
        }
        area.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_a_line_each_figure_a_point_and_zero_has_a_place() {
        for scale in [Scale::Even, Scale::Doublings, Scale::Tens] {
            let lines =
                vec![("sheaf".to_owned(), vec![(1.0, 100.0), (16.0, 0.0)]), ("bulk".to_owned(), vec![(0.0, 5.0)])];
            let plot = Plot { name: "a", title: "A".to_owned(), x: ("x", scale), y: ("y", scale), lines };
            let svg = plot.svg().unwrap();
            assert_eq!(svg.matches("<circle").count(), 3, "{scale:?}");
            assert!(svg.contains("sheaf\n") && svg.contains("bulk\n"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn marks_are_round_numbers() {
        let marks = |scale, values: &[f64]| {
            let axis = Places::of(scale, values.iter().copied());
            axis.key_points(10).iter().map(|value| axis.format_ext(value)).collect::<Vec<_>>()
        };
        assert_eq!(marks(Scale::Doublings, &[1.0, 16.0]), ["1", "2", "4", "8", "16"]);
        assert_eq!(marks(Scale::Tens, &[3.0, 40.0]), ["5", "10", "20", "50"]);
        assert_eq!(marks(Scale::Tens, &[0.5, 2e4]), ["1", "10", "100", "1000", "10k"]);
        assert_eq!(marks(Scale::Even, &[0.0, 25_000.0]), ["0", "5000", "10k", "15k", "20k", "25k"]);
        assert_eq!([0.0, 2.5, 12_000.0, 3e6].map(short), ["0", "2.5", "12k", "3M"]);
    }
}
