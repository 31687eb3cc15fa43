//! Pages of panels with axes, as SVG.
//!
//! Whoever draws a figure says what stands where, in the units of its axes. Coordinates become
//! whole pixels of a large page, so a last digit that differs does not show.

use super::FigureError;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Display;

/// The colour of a mark: one of Okabe and Ito's (2008), which people tell apart however they see
/// colours. The page is white in a dark window too.
pub(super) type Colour = RGBColor;
pub(super) const BLUE: Colour = RGBColor(0, 114, 178);
pub(super) const VERMILION: Colour = RGBColor(213, 94, 0);
pub(super) const GREEN: Colour = RGBColor(0, 158, 115);
pub(super) const ORANGE: Colour = RGBColor(230, 159, 0);
pub(super) const PURPLE: Colour = RGBColor(204, 121, 167);
pub(super) const GREY: Colour = RGBColor(140, 140, 140);
pub(super) const INK: Colour = RGBColor(34, 34, 34);
const GRID: RGBColor = RGBColor(225, 225, 225);
const PAPER: RGBColor = RGBColor(255, 255, 255);

const PANEL: (i32, i32) = (620, 510);
const MARGIN: i32 = 24;
const TITLE: i32 = 34;
const TEXT: i32 = 25;
const SMALL: i32 = 22;

/// How numbers become a mark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// A line through the points.
    Line,
    /// A dashed one.
    Dashed,
    /// What lies between the points and 0.
    Area,
    /// A dot at each point.
    Dots,
}

/// Numbers on a panel.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) form: Form,
    pub(super) colour: Colour,
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    pub(super) fn new(form: Form, colour: Colour, points: Vec<(f64, f64)>) -> Self {
        Self {
            form,
            colour,
            points,
        }
    }
}

/// How far an axis goes and what its numbers are.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) label: String,
    pub(super) from: f64,
    pub(super) to: f64,
    /// The axis has powers of ten; `from` and `to`, and the points, are their exponents.
    pub(super) powers: bool,
}

impl Axis {
    pub(super) fn new(label: impl Display, from: f64, to: f64) -> Self {
        Self {
            label: label.to_string(),
            from,
            to,
            powers: false,
        }
    }

    /// An axis of powers of ten.
    pub(super) fn powers(label: impl Display, from: f64, to: f64) -> Self {
        Self {
            powers: true,
            ..Self::new(label, from, to)
        }
    }

    fn number(&self, at: f64) -> String {
        if self.powers {
            let power = at.round();
            // Between powers there is nothing to read.
            return if (at - power).abs() > 1e-6 {
                String::new()
            } else if (-4.0..4.0).contains(&power) {
                format!("{}", 10f64.powi(power as i32))
            } else {
                format!("1e{power}")
            };
        }
        let whole = (self.to - self.from) >= 5.0;
        // A zero is no -0.
        let at = if at.abs() < 1e-9 { 0.0 } else { at };
        if whole {
            format!("{at:.0}")
        } else {
            format!("{}", (at * 1e6).round() / 1e6)
        }
    }
}

/// One plot.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    /// Lines beneath the title.
    pub(super) notes: Vec<String>,
    pub(super) x: Axis,
    pub(super) y: Axis,
    /// The first lies undermost.
    pub(super) series: Vec<Series>,
}

/// A figure.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) title: String,
    /// What the marks are, line by line.
    pub(super) legend: Vec<Vec<(Form, Colour, String)>>,
    pub(super) columns: usize,
    pub(super) panels: Vec<Panel>,
}

impl Page {
    /// The page as an SVG document.
    ///
    /// # Errors
    /// [`FigureError::Plot`].
    pub(super) fn svg(&self) -> Result<String, FigureError> {
        let failed = |error: &dyn Display| FigureError::Plot(error.to_string());
        let mut svg = String::new();
        self.paint(&mut svg).map_err(|error| failed(&error))?;
        Ok(svg)
    }

    fn paint(&self, svg: &mut String) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let columns = self.columns.max(1) as i32;
        let rows = (self.panels.len() as i32 + columns - 1) / columns;
        let width = columns * PANEL.0 + 2 * MARGIN;
        let line = TEXT + 14;
        let top = MARGIN + 2 * TITLE + self.legend.len() as i32 * line;
        let height = top + rows * PANEL.1 + MARGIN;
        let root = SVGBackend::with_string(svg, (width as u32, height as u32)).into_drawing_area();
        root.fill(&PAPER)?;
        root.draw_text(
            &self.title,
            &text(TITLE, HPos::Left),
            (MARGIN, MARGIN + TITLE / 2),
        )?;
        for (row, entries) in self.legend.iter().enumerate() {
            let (mut x, y) = (MARGIN, MARGIN + 2 * TITLE + row as i32 * line);
            for (form, colour, label) in entries {
                swatch(&root, *form, *colour, (x, y))?;
                let at = (x + SWATCH + 10, y);
                root.draw_text(label, &text(TEXT, HPos::Left), at)?;
                // No font is at hand to measure it with: about half as wide as high, on the average.
                x += SWATCH + 10 + label.chars().count() as i32 * TEXT * 46 / 100 + 36;
            }
        }
        for (index, panel) in self.panels.iter().enumerate() {
            let (column, row) = (index as i32 % columns, index as i32 / columns);
            let corner = (MARGIN + column * PANEL.0, top + row * PANEL.1);
            let area = root
                .clone()
                .shrink(corner, (PANEL.0 as u32, PANEL.1 as u32));
            panel.paint(&area)?;
        }
        root.present()
    }
}

const SWATCH: i32 = 44;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Painted<T = ()> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

fn text(size: i32, at: HPos) -> TextStyle<'static> {
    ("sans-serif", f64::from(size))
        .into_font()
        .color(&INK)
        .pos(Pos::new(at, VPos::Center))
}

fn stroke(colour: Colour) -> ShapeStyle {
    colour.stroke_width(4)
}

fn swatch(root: &Area<'_>, form: Form, colour: Colour, (x, y): (i32, i32)) -> Painted {
    let ends = [(x, y), (x + SWATCH, y)];
    match form {
        Form::Line => root.draw(&PathElement::new(ends, stroke(colour))),
        Form::Dashed => {
            for from in [0, 16, 32] {
                let dash = [(x + from, y), (x + (from + 12).min(SWATCH), y)];
                root.draw(&PathElement::new(dash, stroke(colour)))?;
            }
            Ok(())
        }
        Form::Area => {
            let corners = [(x, y - 11), (x + SWATCH, y + 11)];
            root.draw(&Rectangle::new(corners, colour.mix(0.3).filled()))
        }
        Form::Dots => root.draw(&Circle::new((x + SWATCH / 2, y), 5, colour.filled())),
    }
}

impl Panel {
    fn paint(&self, area: &Area<'_>) -> Painted {
        let line = SMALL + 8;
        let middle = PANEL.0 / 2 + 30;
        area.draw_text(
            &self.title,
            &text(TEXT, HPos::Center),
            (middle, line / 2 + 4),
        )?;
        for (row, note) in self.notes.iter().enumerate() {
            let at = (middle, (row as i32 + 1) * line + line / 2 + 6);
            area.draw_text(note, &text(SMALL, HPos::Center), at)?;
        }
        let head = (self.notes.len() as i32 + 1) * line + 8;
        let mut chart = ChartBuilder::on(area)
            .margin_top(head)
            .margin_right(22)
            .margin_bottom(14)
            .margin_left(4)
            .x_label_area_size(64)
            .y_label_area_size(88)
            .build_cartesian_2d(self.x.from..self.x.to, self.y.from..self.y.to)?;
        let (x, y) = (&self.x, &self.y);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK.stroke_width(2))
            .label_style(text(SMALL, HPos::Center))
            .axis_desc_style(text(SMALL, HPos::Center))
            .x_desc(&x.label)
            .y_desc(&y.label)
            .x_labels(if x.powers {
                (x.to - x.from) as usize + 1
            } else {
                6
            })
            .y_labels(if y.powers {
                (y.to - y.from) as usize + 1
            } else {
                6
            })
            .x_label_formatter(&|at| x.number(*at))
            .y_label_formatter(&|at| y.number(*at))
            .draw()?;
        for series in &self.series {
            let points = &series.points;
            match series.form {
                Form::Line => {
                    for part in self.inside(points) {
                        chart.draw_series(LineSeries::new(part, stroke(series.colour)))?;
                    }
                }
                Form::Dashed => {
                    for part in self.inside(points) {
                        let dashes = DashedLineSeries::new(part, 12, 9, stroke(series.colour));
                        chart.draw_series(dashes)?;
                    }
                }
                Form::Area => {
                    let fill = series.colour.mix(0.3);
                    for part in self.inside(points) {
                        let ground = self.y.from.max(0.0);
                        chart.draw_series(AreaSeries::new(part, ground, fill))?;
                    }
                }
                Form::Dots => {
                    let within = |&&(x, y): &&(f64, f64)| {
                        (self.x.from..=self.x.to).contains(&x)
                            && (self.y.from..=self.y.to).contains(&y)
                    };
                    let dot =
                        |&at: &(f64, f64)| Circle::new(at, 3, series.colour.mix(0.6).filled());
                    chart.draw_series(points.iter().filter(within).map(dot))?;
                }
            }
        }
        Ok(())
    }

    /// The parts of a line that lie on the panel, cut where it crosses the upper or lower edge.
    fn inside(&self, points: &[(f64, f64)]) -> Vec<Vec<(f64, f64)>> {
        let (low, high) = (self.y.from, self.y.to);
        let mut parts = vec![Vec::new()];
        let mut last: Option<(f64, f64)> = None;
        for &(x, y) in points {
            if !(x.is_finite() && y.is_finite()) {
                last = None;
                parts.push(Vec::new());
                continue;
            }
            let inside = |y: f64| (low..=high).contains(&y);
            if let Some((x0, y0)) = last.filter(|last| inside(last.1) != inside(y)) {
                let outer = if inside(y) { y0 } else { y };
                let edge = if outer > high { high } else { low };
                let crossing = (x0 + (x - x0) * (edge - y0) / (y - y0), edge);
                if inside(y) {
                    parts.push(vec![crossing]);
                } else if let Some(part) = parts.last_mut() {
                    part.push(crossing);
                }
            }
            if let Some(part) = parts.last_mut().filter(|_| inside(y)) {
                part.push((x, y));
            }
            last = Some((x, y));
        }
        parts.retain(|part| part.len() > 1);
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(series: Vec<Series>) -> Panel {
        Panel {
            title: "KL(p ‖ q) < 1 & more".to_owned(),
            notes: vec!["a note".to_owned()],
            x: Axis::new("x", 0.0, 4.0),
            y: Axis::new("y", -1.0, 1.0),
            series,
        }
    }

    #[test]
    fn a_line_is_cut_where_it_leaves_the_panel() {
        let points = [
            (0.0, 0.0),
            (1.0, 2.0),
            (2.0, 0.0),
            (3.0, f64::NAN),
            (4.0, 0.0),
        ];
        let parts = panel(Vec::new()).inside(&points);
        assert_eq!(
            parts,
            [vec![(0.0, 0.0), (0.5, 1.0)], vec![(1.5, 1.0), (2.0, 0.0)]]
        );
    }

    #[test]
    fn a_page_is_a_whole_document_with_all_that_was_put_on_it() {
        let points = vec![(0.0, 0.5), (4.0, -0.5)];
        let forms = [Form::Line, Form::Dashed, Form::Area, Form::Dots];
        let page = Page {
            title: "A figure".to_owned(),
            legend: vec![forms.map(|form| (form, BLUE, format!("{form:?}"))).to_vec()],
            columns: 2,
            panels: forms
                .map(|form| panel(vec![Series::new(form, BLUE, points.clone())]))
                .to_vec(),
        };
        let svg = page.svg().unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg, page.svg().unwrap());
        for needle in [
            "A figure",
            "KL(p ‖ q) &lt; 1 &amp; more",
            "a note",
            "Dashed",
            "circle",
        ] {
            assert!(svg.contains(needle), "{needle}");
        }
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn axes_are_numbered_as_people_write() {
        let axis = Axis::new("", -1.0, 1.0);
        assert_eq!(
            [-0.5, -1e-17, 0.1 + 0.2].map(|x| axis.number(x)),
            ["-0.5", "0", "0.3"]
        );
        assert_eq!(Axis::new("", 0.0, 3000.0).number(500.0), "500");
        let axis = Axis::powers("", -6.0, 1.0);
        assert_eq!(
            [-5.0, -2.0, 0.0, 0.5].map(|x| axis.number(x)),
            ["1e-5", "0.01", "1", ""]
        );
    }
}
