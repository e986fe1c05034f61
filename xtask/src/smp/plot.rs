//! The experiment as a plot: time to all CPUs online over the number of CPUs, a line for each number of nodes.

use plotters::prelude::*;

use super::Row;

/// Pixels.
const SIZE: (u32, u32) = (720, 440);

/// Draws the plot.
///
/// # Errors
/// When the drawing library refuses; it writes into memory, so the figures themselves would be at fault.
pub fn svg(rows: &[Row]) -> anyhow::Result<String> {
    let mut text = String::new();
    draw(rows, &mut text).map_err(|error| anyhow::anyhow!("plot: {error}"))?;
    Ok(text)
}

fn draw(rows: &[Row], text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let point = |row: &Row| (f64::from(row.cpus).log2(), row.online_ms());
    let widest = rows.iter().map(|row| point(row).0).fold(1.0, f64::max);
    let highest = rows.iter().map(|row| point(row).1).fold(1.0, f64::max) * 1.1;
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("From QEMU's start to all CPUs online", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.1..widest + 0.1, 0.0..highest)?;
    chart
        .configure_mesh()
        .x_desc("CPUs")
        .y_desc("ms")
        .x_labels(widest as usize + 1)
        .x_label_formatter(&|x| if x.fract().abs() < 1e-6 { format!("{:.0}", x.exp2()) } else { String::new() })
        .draw()?;
    let mut nodes: Vec<u32> = rows.iter().map(|row| row.nodes).collect();
    nodes.dedup();
    for (number, &nodes) in nodes.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let points: Vec<(f64, f64)> = rows.iter().filter(|row| row.nodes == nodes).map(point).collect();
        let name = format!("{nodes} node{}", if nodes == 1 { "" } else { "s" });
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
    use crate::smp::measure::Figures;
    use std::time::Duration;

    #[test]
    fn each_number_of_nodes_is_a_line_and_each_shape_a_point() {
        let row = |cpus, nodes| Row {
            cpus,
            nodes,
            engine: "tcg",
            boots: vec![Figures {
                online: Duration::from_millis(100 * u64::from(cpus)),
                guest_ms: 1,
                views: serde_json::Value::Null,
            }],
        };
        let svg = svg(&[row(1, 1), row(2, 1), row(4, 1), row(2, 2), row(4, 2)]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 5);
        assert!(svg.contains("1 node\n") && svg.contains("2 nodes\n"), "{svg}");
    }
}
