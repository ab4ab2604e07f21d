//! Plots, as data that the report keeps, and as SVG.

use anyhow::{Result, anyhow, ensure};
use plotters::coord::ranged1d::{KeyPointHint, Ranged, ValueFormatter};
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use crate::stats::Series;

/// The size of a plot, and of what is in it, in pixels.
const WIDTH: u32 = 860;
const LINES_HEIGHT: u32 = 420;
const BAR_HEIGHT: u32 = 30;
const FONT: &str = "sans-serif";
const TEXT: i32 = 14;

/// Of the lines, in their order: the first is that of the counters. Told apart by people who see few
/// colours, too (Okabe and Ito's palette).
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
    RGBColor(0, 0, 0),
];

/// A plot. `name` is that of its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plot {
    pub(crate) name: String,
    pub(crate) title: String,
    /// What the values are.
    pub(crate) of: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Bars(Vec<Bar>),
    Lines {
        /// What goes to the right.
        along: String,
        /// The names of places that are no numbers: 0, 1, 2, ...
        places: Vec<String>,
        lines: Vec<Line>,
    },
}

/// A median, with the lowest and the highest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    low: f64,
    high: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Bar {
    pub(crate) fn new(name: &str, series: &Series) -> Self {
        Self {
            name: name.to_owned(),
            value: series.median,
            low: series.min,
            high: series.max,
        }
    }
}

impl Line {
    pub(crate) fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        let name = name.into();
        Self { name, points }
    }
}

impl Plot {
    pub(crate) fn bars(name: &str, title: &str, of: &str, bars: Vec<Bar>) -> Self {
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            of: of.to_owned(),
            kind: Kind::Bars(bars),
        }
    }

    /// Over numbers.
    pub(crate) fn lines(name: &str, title: &str, of: &str, along: &str, lines: Vec<Line>) -> Self {
        Self::over(name, title, of, along, Vec::new(), lines)
    }

    /// Over places with names, of which a line has one value each.
    pub(crate) fn over(
        name: &str,
        title: &str,
        of: &str,
        along: &str,
        places: Vec<String>,
        lines: Vec<Line>,
    ) -> Self {
        let along = along.to_owned();
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            of: of.to_owned(),
            kind: Kind::Lines {
                along,
                places,
                lines,
            },
        }
    }

    pub(crate) fn file(&self) -> String {
        format!("{}.svg", self.name)
    }

    /// # Errors
    /// There is nothing to plot, or something that is no number.
    pub(crate) fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        let drawn = match &self.kind {
            Kind::Bars(bars) => self.draw_bars(&mut svg, bars),
            Kind::Lines {
                along,
                places,
                lines,
            } => self.draw_lines(&mut svg, along, places, lines),
        };
        drawn.map_err(|error| anyhow!("could not plot \"{}\": {error}", self.title))?;
        Ok(svg)
    }

    fn draw_bars(&self, svg: &mut String, bars: &[Bar]) -> Result<()> {
        let values = bars.iter().flat_map(|bar| [bar.value, bar.low, bar.high]);
        let most = most(values)?;
        let height = BAR_HEIGHT * bars.len() as u32 + 100;
        let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(plain)?;
        let count = bars.len() as f64;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, (FONT, TEXT + 4))
            .margin(12)
            .margin_right(30)
            .x_label_area_size(40)
            .y_label_area_size(230)
            // Downwards, so that the first one is on top.
            .build_cartesian_2d(0.0..most * 1.12, Downwards(count))
            .map_err(plain)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .y_labels(0)
            .x_desc(&self.of)
            .x_label_formatter(&|value| short(*value))
            .label_style((FONT, TEXT))
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(plain)?;
        let ours = |bar: &Bar| bar.name.starts_with("counter");
        let boxes = bars.iter().enumerate().map(|(place, bar)| {
            let color = if ours(bar) { COLORS[0] } else { COLORS[6] };
            let top = place as f64 + 0.2;
            Rectangle::new(
                [(0.0, top), (bar.value, top + 0.6)],
                color.mix(0.85).filled(),
            )
        });
        chart.draw_series(boxes).map_err(plain)?;
        let spreads = bars.iter().enumerate().map(|(place, bar)| {
            let middle = place as f64 + 0.5;
            PathElement::new(
                [(bar.low, middle), (bar.high, middle)],
                BLACK.stroke_width(1),
            )
        });
        chart.draw_series(spreads).map_err(plain)?;
        for (place, bar) in bars.iter().enumerate() {
            let middle = place as i32 * 2 + 1;
            let (x, y) = chart.plotting_area().get_pixel_range();
            let at = y.start + (y.end - y.start) * middle / (2 * bars.len() as i32) - TEXT / 2;
            let text = TextStyle::from((FONT, TEXT).into_font());
            let right = text.pos(plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Right,
                plotters::style::text_anchor::VPos::Top,
            ));
            root.draw_text(&bar.name, &right, (x.start - 8, at))
                .map_err(plain)?;
            let end = chart.backend_coord(&(bar.value.max(bar.high), 0.0)).0;
            let text = TextStyle::from((FONT, TEXT - 1).into_font());
            root.draw_text(&short(bar.value), &text, (end + 6, at + 1))
                .map_err(plain)?;
        }
        root.present().map_err(plain)
    }

    fn draw_lines(
        &self,
        svg: &mut String,
        along: &str,
        places: &[String],
        lines: &[Line],
    ) -> Result<()> {
        let points = || lines.iter().flat_map(|line| &line.points);
        let top = most(points().map(|point| point.1))? * 1.08;
        let right = if places.is_empty() {
            most(points().map(|point| point.0))?
        } else {
            places.len() as f64 - 0.8
        };
        let left = if places.is_empty() { 0.0 } else { -0.2 };
        let root = SVGBackend::with_string(svg, (WIDTH, LINES_HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(plain)?;
        // The lines' names stand beside them, where they hide nothing.
        let (area, legend) = root.split_horizontally(WIDTH as i32 - 240);
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, (FONT, TEXT + 4))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(
                Places {
                    range: (left, right),
                    count: places.len(),
                },
                0.0..top,
            )
            .map_err(plain)?;
        chart
            .configure_mesh()
            .x_desc(along)
            .y_desc(&self.of)
            .x_label_formatter(&|value| {
                let name = places.get(value.round().max(0.0) as usize);
                name.map_or_else(|| short(*value), Clone::clone)
            })
            .y_label_formatter(&|value| short(*value))
            .label_style((FONT, TEXT - 1))
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(plain)?;
        for (number, line) in lines.iter().enumerate() {
            let color = COLORS[number % COLORS.len()];
            let style = color.stroke_width(2);
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), style))
                .map_err(plain)?;
            if line.points.len() <= 12 {
                let dots = line
                    .points
                    .iter()
                    .map(|&at| Circle::new(at, 3, color.filled()));
                chart.draw_series(dots).map_err(plain)?;
            }
            let y = 44 + number as i32 * 24;
            legend
                .draw(&PathElement::new([(0, y), (22, y)], style))
                .map_err(plain)?;
            legend
                .draw_text(
                    &line.name,
                    &TextStyle::from((FONT, TEXT - 1).into_font()),
                    (28, y - TEXT / 2),
                )
                .map_err(plain)?;
        }
        root.present().map_err(plain)
    }
}

/// The highest of all, which are numbers and not below zero.
fn most(values: impl Iterator<Item = f64>) -> Result<f64> {
    let mut most: f64 = 0.0;
    for value in values {
        ensure!(
            value.is_finite() && value >= 0.0,
            "{value} cannot be plotted"
        );
        most = most.max(value);
    }
    ensure!(most > 0.0, "there is nothing to plot");
    Ok(most)
}

/// plotters' errors borrow what they tell of.
fn plain(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

/// 1234567 is `1.23M`.
fn short(value: f64) -> String {
    let (value, unit) = match value {
        1e9.. => (value / 1e9, "G"),
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let places = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    let text = format!("{value:.places$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{unit}")
}

/// From 0 at the top to so many at the bottom.
struct Downwards(f64);

impl Ranged for Downwards {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        // The limit's first is the bottom's pixel.
        limit.1 + ((value / self.0) * f64::from(limit.0 - limit.1)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        Vec::new()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.0
    }
}

impl ValueFormatter<f64> for Downwards {}

/// Numbers; or places, with a tick at each and nowhere else.
struct Places {
    range: (f64, f64),
    count: usize,
}

impl Ranged for Places {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let (from, to) = self.range;
        limit.0 + ((value - from) / (to - from) * f64::from(limit.1 - limit.0)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if self.count > 0 {
            (0..self.count).map(|place| place as f64).collect()
        } else {
            let range: plotters::coord::types::RangedCoordf64 = self.range().into();
            range.key_points(hint)
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.0..self.range.1
    }
}

impl ValueFormatter<f64> for Places {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Unit;

    #[test]
    fn short_numbers() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (42.0, "42"),
            (100.0, "100"),
            (1000.0, "1k"),
            (28_700.0, "28.7k"),
            (1_234_567.0, "1.23M"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn bars_stand_in_their_order() {
        let bar = |name: &str, value| {
            Bar::new(
                name,
                &Series::new(name, Unit::PerSecond, vec![value]).unwrap(),
            )
        };
        let bars = vec![bar("first", 3.0), bar("second <&>", 1.0)];
        let svg = Plot::bars("x", "Title", "per second", bars).svg().unwrap();
        assert!(
            svg.starts_with("<svg") && svg.ends_with("</svg>\n"),
            "{svg}"
        );
        let height = |name: &str| -> i32 {
            let text = svg.lines().zip(svg.lines().skip(1));
            let (tag, _) = text
                .into_iter()
                .find(|(_, line)| line.contains(name))
                .unwrap();
            let from = tag.find(" y=\"").unwrap() + 4;
            tag[from..].split('"').next().unwrap().parse().unwrap()
        };
        assert!(height("first") < height("second"));
        assert!(svg.contains("&lt;&amp;&gt;"));
    }

    #[test]
    fn lines_have_their_places() {
        let places = ["1", "8", "32"].map(String::from).to_vec();
        let line = Line::new("a", vec![(0.0, 1.0), (1.0, 4.0), (2.0, 3.0)]);
        let plot = Plot::over("x", "T", "y", "clients", places, vec![line]);
        let svg = plot.svg().unwrap();
        assert!(svg.contains("polyline") && svg.contains("\n32\n"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3);
        let empty = Plot::lines("x", "T", "y", "x", vec![Line::new("a", vec![])]);
        assert!(empty.svg().is_err());
    }

    #[test]
    fn a_plot_survives_the_report() {
        let plot = Plot::lines("x", "T", "y", "s", vec![Line::new("a", vec![(1.0, 2.0)])]);
        let json = serde_json::to_string(&plot).unwrap();
        assert_eq!(serde_json::from_str::<Plot>(&json).unwrap(), plot);
    }
}
