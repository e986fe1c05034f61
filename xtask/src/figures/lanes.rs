//! A picture of things that go on beside each other: a lane for each, with bars, dots, lines between lanes, and words.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Pixels of a lane's height, of the width, and of what is above and below the lanes.
const LANE: u32 = 30;
const WIDTH: u32 = 960;
const AROUND: u32 = 120;
/// Of the width, what is left of the lanes.
const NAMES: u32 = 216;

/// The colours that have a meaning in some figure, as indices for [`Bar::color`].
const COLORS: [RGBColor; 5] = [
    RGBColor(0xdd, 0xdd, 0xdd),
    RGBColor(0xf2, 0xb1, 0x34),
    RGBColor(0x4c, 0x8b, 0xc9),
    RGBColor(0x5b, 0xa8, 0x66),
    RGBColor(0xc4, 0x5a, 0x4a),
];

/// A stretch of a lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// The lane, counted from the top.
    pub lane: usize,
    /// From where to where.
    pub span: (f64, f64),
    /// Which of the figure's [`Lanes::colors`].
    pub color: usize,
    /// Words on it.
    pub text: String,
}

/// A figure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lanes {
    /// What stands above it.
    pub title: String,
    /// What goes from left to right.
    pub axis: &'static str,
    /// Names of the lanes, from the top.
    pub lanes: Vec<String>,
    /// What the colours of bars mean.
    pub colors: Vec<&'static str>,
    /// Bars, drawn first.
    pub bars: Vec<Bar>,
    /// Lines from one lane to another: where, and between which.
    pub lines: Vec<(f64, usize, usize)>,
    /// Dots.
    pub dots: Vec<(f64, usize)>,
}

impl Lanes {
    /// Draws it.
    ///
    /// # Errors
    /// When the drawing library refuses; it writes into memory, so the figure itself would be at fault.
    pub fn svg(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| anyhow::anyhow!("{}: {error}", self.title))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let height = |lane: usize| (self.lanes.len() - lane) as f64 - 0.5;
        let ends = self.bars.iter().map(|bar| bar.span.1).chain(self.dots.iter().map(|dot| dot.0));
        let starts = self.bars.iter().map(|bar| bar.span.0).chain(self.dots.iter().map(|dot| dot.0));
        let (first, last) = (starts.fold(f64::INFINITY, f64::min), ends.fold(f64::NEG_INFINITY, f64::max));
        let size = (WIDTH, AROUND + LANE * self.lanes.len() as u32);
        let area = SVGBackend::with_string(text, size).into_drawing_area();
        area.fill(&WHITE)?;
        let (head, body) = area.split_vertically(56);
        head.draw(&Text::new(self.title.clone(), (12, 8), ("sans-serif", 17)))?;
        self.legend(&head)?;
        let mut chart = ChartBuilder::on(&body)
            .margin_right(12)
            .x_label_area_size(44)
            .y_label_area_size(NAMES)
            .build_cartesian_2d(first..last, 0.0..self.lanes.len() as f64)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_desc(self.axis)
            .x_label_formatter(&|x| format!("{}", (x * 1e3).round() / 1e3))
            .light_line_style(WHITE)
            .draw()?;
        let (plane, y_of) = (chart.plotting_area(), |lane| height(lane));
        for (lane, name) in self.lanes.iter().enumerate() {
            let (_, y) = plane.map_coordinate(&(first, y_of(lane)));
            // In the coordinates of the body, left of the plane.
            let (_, top) = body.get_base_pixel();
            let style = ("sans-serif", 13).into_text_style(&body).pos(Pos::new(HPos::Right, VPos::Center));
            body.draw(&Text::new(name.clone(), (NAMES as i32 - 8, y - top), style))?;
        }
        for bar in &self.bars {
            let (low, high) = (y_of(bar.lane) - 0.36, y_of(bar.lane) + 0.36);
            let color = COLORS[bar.color % COLORS.len()];
            chart.draw_series([Rectangle::new([(bar.span.0, low), (bar.span.1, high)], color.filled())])?;
            let style = ("sans-serif", 12).into_text_style(&body).pos(Pos::new(HPos::Left, VPos::Center));
            let at = (bar.span.0 + (last - first) / 300.0, y_of(bar.lane));
            chart.draw_series([Text::new(bar.text.clone(), at, style)])?;
        }
        for &(x, from, to) in &self.lines {
            chart.draw_series([PathElement::new([(x, y_of(from)), (x, y_of(to))], BLACK.stroke_width(1))])?;
        }
        chart.draw_series(self.dots.iter().map(|&(x, lane)| Circle::new((x, y_of(lane)), 3, BLACK.filled())))?;
        area.present()?;
        Ok(())
    }

    /// What the colours mean, beside each other.
    fn legend<DB: DrawingBackend>(
        &self,
        area: &DrawingArea<DB, plotters::coord::Shift>,
    ) -> Result<(), Box<dyn std::error::Error>>
    where
        DB::ErrorType: 'static,
    {
        let mut x = 12;
        for (color, meaning) in self.colors.iter().enumerate() {
            let color = COLORS[color % COLORS.len()];
            area.draw(&Rectangle::new([(x, 34), (x + 14, 46)], color.filled()))?;
            area.draw(&Text::new(*meaning, (x + 20, 34), ("sans-serif", 13)))?;
            x += 44 + 7 * meaning.len() as i32;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bar_dot_line_and_lane_is_drawn_once() {
        let bar = |lane, from, to| Bar { lane, span: (from, to), color: lane, text: format!("bar {lane}") };
        let lanes = Lanes {
            title: "A".to_owned(),
            axis: "ms",
            lanes: vec!["upper".to_owned(), "lower".to_owned()],
            colors: vec!["waits"],
            bars: vec![bar(0, 0.0, 2.0), bar(1, 1.0, 3.0)],
            lines: vec![(1.5, 0, 1)],
            dots: vec![(1.5, 0), (2.5, 1)],
        };
        let svg = lanes.svg().unwrap();
        assert_eq!(svg.matches("<circle").count(), 2);
        for text in ["upper\n", "lower\n", "bar 0\n", "bar 1\n", "waits\n"] {
            assert_eq!(svg.matches(text).count(), 1, "{text}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
