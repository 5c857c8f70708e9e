//! Plots as SVG: bars of a figure by peer, and curves of percentiles.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::peer::Peer;
use crate::report::{Row, show};
use crate::stats::Summary;

const WIDTH: u32 = 760;
/// Height of a bar and of the space around the bars, in pixels.
const BAR: u32 = 24;
const AROUND: u32 = 56;
/// Room for the names of peers.
const NAMES: u32 = 190;
/// Colours that people who confuse red and green tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
];
const THEIRS: RGBColor = RGBColor(160, 160, 160);

fn failed(e: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("drawing a plot: {e}")
}

/// A bar for each peer, ours in colour, with the least and the greatest of the rounds.
pub(crate) fn bars(rows: &[Row]) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let height = AROUND + BAR * rows.len() as u32;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let most = rows.iter().map(|r| r.figure.max).fold(0.0, f64::max);
        let most = if most > 0.0 { most * 1.08 } else { 1.0 };
        let count = rows.len() as f64;
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(NAMES)
            .build_cartesian_2d(0.0..most, 0.0..count)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_labels(6)
            .x_label_formatter(&|v| show(*v))
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(failed)?;
        for (i, row) in rows.iter().enumerate() {
            let middle = count - i as f64 - 0.5;
            let colour = if row.peer.is_ours() {
                COLOURS[0]
            } else {
                THEIRS
            };
            let f = &row.figure;
            let bar = [(0.0, middle - 0.35), (f.median, middle + 0.35)];
            let range = [(f.min, middle), (f.max, middle)];
            chart
                .draw_series([Rectangle::new(bar, colour.filled())])
                .map_err(failed)?;
            chart
                .draw_series([PathElement::new(range, BLACK)])
                .map_err(failed)?;
            let at = chart.backend_coord(&(0.0, middle));
            let name = format!("{}  {}", row.peer.name(), show(f.median));
            let style = ("sans-serif", 13).into_font().color(&BLACK);
            let style = style.pos(plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Right,
                plotters::style::text_anchor::VPos::Center,
            ));
            root.draw(&Text::new(name, (at.0 - 6, at.1), style))
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Percentiles drawn so that each further nine takes the same room.
#[derive(Clone, Copy)]
struct Nines;

/// The last percentile that is drawn: four nines.
const LAST: f64 = 4.0;

/// Nines of a percentile: 0 of 0, 1 of 90, 2 of 99.
fn nines(percent: f64) -> f64 {
    (-(1.0 - percent / 100.0).max(1e-9).log10()).min(LAST)
}

impl Ranged for Nines {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (f64::from(limit.1 - limit.0) * value / LAST).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, _: H) -> Vec<f64> {
        [0.0, 50.0, 90.0, 99.0, 99.9, 99.99].map(nines).to_vec()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..LAST
    }
}

impl ValueFormatter<f64> for Nines {
    fn format_ext(&self, value: &f64) -> String {
        let percent = (1.0 - 10f64.powf(-value)) * 100.0;
        format!("{}", (percent * 1e4).round() / 1e4)
    }
}

/// A curve for each peer: percentiles to the right, microseconds upwards, both logarithmic.
pub(crate) fn curves(curves: &[(Peer, Vec<(f64, f64)>)]) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, 420)).into_drawing_area();
        let all = || curves.iter().flat_map(|(_, c)| c.iter().map(|(_, v)| *v));
        let least = all().fold(f64::MAX, f64::min).max(0.1);
        let most = all().fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d(Nines, (least * 0.8..most * 1.2).log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("percentile")
            .y_desc("microseconds")
            .y_label_formatter(&|v| show(*v))
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(failed)?;
        for (i, (peer, points)) in curves.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let line = points.iter().map(|(p, v)| (nines(*p), *v));
            let width = if peer.is_ours() { 3 } else { 1 };
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(width)))
                .map_err(failed)?
                .label(peer.name())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(width))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .draw()
            .map_err(failed)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// A curve of cost against size: sizes to the right, logarithmic; the least and the greatest of the rounds at each point.
pub(crate) fn growth(points: &[(f64, Summary)], of: &str, unit: &str) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, 280)).into_drawing_area();
        let least = points.iter().map(|p| p.0).fold(f64::MAX, f64::min);
        let greatest = points.iter().map(|p| p.0).fold(1.0, f64::max);
        let most = points.iter().map(|p| p.1.max).fold(0.0, f64::max) * 1.15;
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d(
                (least * 0.8..greatest * 1.25).log_scale(),
                0.0..most.max(1.0),
            )
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc(of)
            .y_desc(unit)
            .x_label_formatter(&|v| format!("{v:.0}"))
            .y_label_formatter(&|v| format!("{v:.0}"))
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(failed)?;
        let line = points.iter().map(|(size, cost)| (*size, cost.median));
        chart
            .draw_series(LineSeries::new(line.clone(), COLOURS[0].stroke_width(3)))
            .map_err(failed)?;
        let ranges = points
            .iter()
            .map(|(size, c)| PathElement::new([(*size, c.min), (*size, c.max)], BLACK));
        chart.draw_series(ranges).map_err(failed)?;
        let dots = line.map(|at| Circle::new(at, 4, COLOURS[0].filled()));
        chart.draw_series(dots).map_err(failed)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_figure() {
        let row = |peer, median| Row {
            peer,
            figure: Summary {
                median,
                min: median,
                max: median,
            },
            ratio: None,
        };
        let svg = bars(&[row(Peer::VswitchTap, 20.0), row(Peer::Bridge, 10.0)]).unwrap();
        let width = |colour: &str| -> f64 {
            let bar = svg.lines().find(|l| l.contains(colour)).expect(colour);
            let after = bar.split("width=\"").nth(1).expect("a width");
            after.split('"').next().unwrap().parse().unwrap()
        };
        let (ours, theirs) = (width("#0072B2"), width("#A0A0A0"));
        assert!((ours / theirs - 2.0).abs() < 0.02, "{ours} {theirs}");
        assert!(svg.contains("vswitch-tap  20.0"));
    }

    #[test]
    fn every_nine_takes_the_same_room() {
        let at = |p| Nines.map(&nines(p), (0, 400));
        assert_eq!([at(0.0), at(90.0), at(99.0), at(99.9)], [0, 100, 200, 300]);
        let curve = vec![(0.0, 10.0), (50.0, 20.0), (99.99, 900.0), (100.0, 1000.0)];
        let svg = curves(&[(Peer::Bridge, curve)]).unwrap();
        assert!(svg.contains("99.99") && svg.contains("bridge"));
    }
}
