//! Curves as SVG.

use plotters::prelude::*;

use super::{Measured, tables};

/// Pixels.
const SIZE: (u32, u32) = (720, 440);

/// A plot: its axes and a line for each way.
#[derive(Debug)]
pub struct Plot {
    /// The file's name.
    pub name: &'static str,
    /// What stands above it.
    pub title: &'static str,
    /// What the axes are.
    pub axes: (&'static str, &'static str),
    /// The points of each way.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// The plots of all curves that were measured, by the names of their files.
///
/// # Errors
/// When the drawing library refuses; it writes into memory, so the figures themselves would be at fault.
pub fn all(measured: &Measured) -> anyhow::Result<Vec<(String, String)>> {
    let plots = tables::plots(measured).into_iter();
    plots.filter(|plot| !plot.lines.is_empty()).map(|plot| Ok((plot.name.to_owned(), svg(&plot)?))).collect()
}

/// Draws one, both axes logarithmic.
fn svg(plot: &Plot) -> anyhow::Result<String> {
    let mut text = String::new();
    draw(plot, &mut text).map_err(|error| anyhow::anyhow!("{}: {error}", plot.name))?;
    Ok(text)
}

fn draw(plot: &Plot, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    // A logarithm has no place for 0.
    let at = |&(x, y): &(f64, f64)| (x.max(0.01), y.max(0.1));
    let points: Vec<(f64, f64)> = plot.lines.iter().flat_map(|(_, points)| points).map(at).collect();
    let span = |values: &dyn Fn(&(f64, f64)) -> f64| {
        let least = points.iter().map(values).fold(f64::INFINITY, f64::min);
        let most = points.iter().map(values).fold(0.0, f64::max);
        least / 1.5..most * 1.5
    };
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(plot.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(span(&|p| p.0).log_scale(), span(&|p| p.1).log_scale())?;
    chart.configure_mesh().x_desc(plot.axes.0).y_desc(plot.axes.1).draw()?;
    for (number, (name, points)) in plot.lines.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let points: Vec<(f64, f64)> = points.iter().map(at).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        chart.draw_series(points.into_iter().map(|at| Circle::new(at, 3, color.filled())))?;
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_a_line_and_zero_has_a_place() {
        let lines = vec![("sheaf".to_owned(), vec![(1.0, 100.0), (10.0, 0.0)]), ("bulk".to_owned(), vec![(0.0, 5.0)])];
        let svg = svg(&Plot { name: "a.svg", title: "A", axes: ("x", "y"), lines }).unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("sheaf\n") && svg.contains("bulk\n"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
