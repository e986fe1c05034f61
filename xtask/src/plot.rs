//! Plots as SVG: curves of named lines with a point at each figure, for `smp`, for `bench` and for the pages in docs/.
//!
//! An axis counts evenly, by doublings or by tens. The drawing library is given the logarithm and the labels are turned back,
//! so that all kinds are one type.

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

    fn label(self, place: f64) -> String {
        match self {
            Scale::Even => short(place),
            Scale::Doublings if (place - place.round()).abs() < 1e-6 => short(place.exp2()),
            Scale::Doublings => String::new(),
            Scale::Tens => short(10_f64.powf(place)),
        }
    }

    /// From where to where the axis goes.
    fn span(self, places: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
        let most = places.clone().fold(f64::NEG_INFINITY, f64::max);
        match self {
            Scale::Even => 0.0..most.max(1e-3) * 1.1,
            Scale::Doublings => -0.1..most.max(1.0) + 0.1,
            Scale::Tens => places.fold(f64::INFINITY, f64::min) - 0.15..most + 0.15,
        }
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
        let (x, y) = (self.x.1, self.y.1);
        let place = |&(a, b): &(f64, f64)| (x.place(a), y.place(b));
        let all: Vec<(f64, f64)> = self.lines.iter().flat_map(|(_, points)| points).map(place).collect();
        let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let width = x.span(all.iter().map(|point| point.0));
        let marks = if x == Scale::Doublings { width.end as usize + 1 } else { 10 };
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .margin_right(LEGEND)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(width, y.span(all.iter().map(|point| point.1)))?;
        chart
            .configure_mesh()
            .x_desc(self.x.0)
            .y_desc(self.y.0)
            .x_labels(marks)
            .x_label_formatter(&|&at| x.label(at))
            .y_label_formatter(&|&at| y.label(at))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (number, (name, points)) in self.lines.iter().enumerate() {
            let color = COLORS[number % COLORS.len()];
            let points: Vec<(f64, f64)> = points.iter().map(place).collect();
            chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?;
            chart.draw_series(points.into_iter().map(|at| Circle::new(at, 3, color.filled())))?;
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
    fn labels_are_the_values_and_not_their_logarithms() {
        assert_eq!(Scale::Doublings.label(4.0), "16");
        assert_eq!(Scale::Doublings.label(4.5), "");
        assert_eq!(Scale::Tens.label(3.0), "1000");
        assert_eq!(Scale::Tens.label(-1.0), "0.1");
        assert_eq!([0.0, 2.5, 12_000.0, 3e6].map(|value| Scale::Even.label(value)), ["0", "2.5", "12k", "3M"]);
    }
}
