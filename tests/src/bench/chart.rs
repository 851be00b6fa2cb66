//! The scaling curve of case 2 as an SVG: a panel for each shape, a line for each contender.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::contender::Contender;
use super::report::Table;
use super::rules::Shape;

/// A setting of case 2.
pub struct Point<'a> {
    /// Which panel.
    pub shape: Shape,
    /// Where on it.
    pub rules: usize,
    /// What was measured.
    pub table: &'a Table,
}

const CONTENDERS: [(Contender, RGBColor); 6] = [
    (Contender::IptablesLegacy, RGBColor(0xd5, 0x5e, 0x00)),
    (Contender::IptablesNft, RGBColor(0xe6, 0x9f, 0x00)),
    (Contender::Nft, RGBColor(0xcc, 0x79, 0xa7)),
    (Contender::FwbpfTcx, RGBColor(0x56, 0xb4, 0xe9)),
    (Contender::FwbpfXdp, RGBColor(0x00, 0x72, 0xb2)),
    (Contender::FloorDrop, RGBColor(0x80, 0x80, 0x80)),
];

const FONT: &str = "sans-serif";

/// Draws the points of one IP version. Both axes are logarithmic.
pub fn draw(path: &Path, title: &str, points: &[Point<'_>]) -> Result<()> {
    let root = SVGBackend::new(path, (1_000, 760)).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", path.display());
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let root = root
        .titled(title, (FONT, 20))
        .map_err(|error| failed(&error))?;
    for (panel, shape) in root.split_evenly((2, 2)).iter().zip(Shape::ALL) {
        let points: Vec<_> = points.iter().filter(|point| point.shape == shape).collect();
        draw_panel(panel, shape, &points).map_err(|error| failed(&error))?;
    }
    root.present().map_err(|error| failed(&error))
}

type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw_panel<'a>(
    panel: &DrawingArea<SVGBackend<'a>, Shift>,
    shape: Shape,
    points: &[&Point<'_>],
) -> Drawn<'a> {
    let mut chart = ChartBuilder::on(panel)
        .caption(shape.name(), (FONT, 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(58)
        .build_cartesian_2d(
            (80f64..130_000f64).log_scale(),
            (90f64..400_000f64).log_scale(),
        )?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("rules")
        .y_desc("ns per packet")
        .draw()?;
    for (contender, colour) in CONTENDERS {
        let line: Vec<(f64, f64)> = points
            .iter()
            .filter_map(|point| Some((point.rules as f64, point.table.median(contender)?)))
            .collect();
        chart
            .draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)).point_size(3))?
            .label(contender.name())
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2))
            });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .draw()
}
