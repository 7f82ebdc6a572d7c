//! Cost against N, both axes logarithmic: our way and the usual one, as an SVG that needs nothing else.
//!
//! In colours that stand out from white and from black alike, without a background of its own.

use super::error::Error;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

const SIZE: (u32, u32) = (720, 400);
const OURS: RGBColor = RGBColor(0x2d, 0x9c, 0x5a);
const USUAL: RGBColor = RGBColor(0xd9, 0x6a, 0x2b);
const INK: RGBColor = RGBColor(0x80, 0x86, 0x8e);

/// What N vectors took, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub count: usize,
    pub ours: f64,
    pub usual: f64,
}

/// Draws `points`, in the order of their counts, into a file at `path`. `title` says what was measured, and where.
pub fn draw(path: &Path, points: &[Point], title: [&str; 2]) -> Result<(), Error> {
    let failed = |why: String| Error::Plot { path: path.to_owned(), why };
    let svg = svg(points, title).map_err(|error| failed(error.to_string()))?;
    std::fs::write(path, svg).map_err(|error| failed(error.to_string()))
}

fn svg(points: &[Point], [title, host]: [&str; 2]) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let text = |size: u32| ("sans-serif", size).into_font().color(&INK);
        let centred = |size| text(size).pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(title.to_owned(), (SIZE.0 as i32 / 2, 10), centred(17)))?;
        area.draw(&Text::new(host.to_owned(), (SIZE.0 as i32 / 2, 34), centred(12)))?;
        let (mut least, mut most) = (f64::INFINITY, 0f64);
        for point in points {
            least = least.min(point.ours).min(point.usual);
            most = most.max(point.ours).max(point.usual);
        }
        let last = points.last().map_or(1, |point| point.count) as f64;
        let mut chart = ChartBuilder::on(&area)
            .margin_top(60)
            .margin_right(110)
            .margin_bottom(10)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d((1.0..last * 1.1).log_scale(), (decade_below(least)..most * 1.6).log_scale())?;
        chart
            .configure_mesh()
            .bold_line_style(INK.mix(0.25))
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(text(12))
            .x_desc("vectors")
            .axis_desc_style(text(13))
            .x_label_formatter(&|count| thousands(*count))
            .y_label_formatter(&|nanoseconds| duration(*nanoseconds))
            .draw()?;
        let side = Pos::new(HPos::Left, VPos::Center);
        for (name, colour, of) in [
            ("a commit each", USUAL, (|point: &Point| point.usual) as fn(&Point) -> f64),
            ("irqfabric", OURS, |point: &Point| point.ours),
        ] {
            let line: Vec<_> = points.iter().map(|point| (point.count as f64, of(point))).collect();
            chart.draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?;
            chart.draw_series(line.iter().map(|&at| Circle::new(at, 4, colour.filled())))?;
            if let Some(&end) = line.last() {
                let (x, y) = chart.backend_coord(&end);
                let label = format!("{name}: {}", duration(end.1));
                let (name, value) = label.split_once(": ").unwrap_or((&label, ""));
                let style = text(13).color(&colour).pos(side);
                area.draw(&Text::new(name.to_owned(), (x + 10, y - 8), style.clone()))?;
                area.draw(&Text::new(value.to_owned(), (x + 10, y + 8), style))?;
            }
        }
        area.present()?;
    }
    Ok(svg)
}

/// The power of ten at or below `value`.
fn decade_below(value: f64) -> f64 {
    10f64.powf(value.log10().floor())
}

fn thousands(count: f64) -> String {
    if count < 1000.0 {
        format!("{count:.0}")
    } else {
        format!("{:.0},{:03.0}", (count / 1000.0).floor(), count % 1000.0)
    }
}

/// Three figures at the most, for an axis.
fn duration(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        ns if ns < 999.5 => (ns, "ns"),
        ns if ns < 999.5e3 => (ns / 1e3, "µs"),
        ns if ns < 999.5e6 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = if value < 9.95 && value.fract() != 0.0 { 1 } else { 0 };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_is_one_file_with_both_lines_and_their_ends() {
        let point = |count, ours, usual| Point { count, ours, usual };
        let points = [point(1, 1e5, 1e5), point(16, 3e5, 5e5), point(4000, 2.3e7, 1.76e9)];
        let svg = svg(&points, ["what", "where"]).unwrap();
        for part in ["<svg", "irqfabric", "23 ms", "a commit each", "1.8 s", "what", "where", "1,000"] {
            assert!(svg.contains(part), "no {part} in\n{svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(!svg.contains("href"), "it needs nothing else");
    }

    #[test]
    fn labels_are_round() {
        assert_eq!([1e3, 1e5, 2.34e7, 1.76e9].map(duration), ["1 µs", "100 µs", "23 ms", "1.8 s"]);
        assert_eq!([1.0, 100.0, 1000.0, 4000.0].map(thousands), ["1", "100", "1,000", "4,000"]);
    }
}
