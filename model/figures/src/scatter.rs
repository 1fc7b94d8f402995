//! Scatter plots of models by two measures, as in the paper's tables 2 and 3, drawn by `plotters`.
//! As SVG, and as pixels through a backend with the built-in font, so that no font file is needed.

use crate::text::{self, Pixel};
use image::{Rgb, RgbImage};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, DrawingErrorKind};
use std::convert::Infallible;

/// A point of a scatter plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    pub label: String,
    pub x: f64,
    pub y: f64,
    /// The intervals of x and of y, drawn as a cross.
    pub x_interval: Option<(f64, f64)>,
    pub y_interval: Option<(f64, f64)>,
    /// A value of the paper beside ours: drawn hollow.
    pub is_paper: bool,
}

/// Marks with finite coordinates, and what the axes are.
#[derive(Debug, Clone, Copy)]
pub struct Scatter<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub marks: &'a [Mark],
}

#[derive(Debug, thiserror::Error)]
#[error("the plot cannot be drawn: {0}")]
pub struct PlotError(String);

const OURS: RGBColor = RGBColor(24, 74, 168);
const PAPER: RGBColor = RGBColor(208, 96, 24);
const TEXT: RGBColor = RGBColor(60, 62, 72);
const GRID_LINE: RGBColor = RGBColor(230, 232, 238);
const TEXT_SIZE: u32 = 12;

/// The plot as the text of an SVG file.
///
/// # Errors
/// The library refuses; never for finite coordinates.
pub fn scatter_svg(scatter: Scatter<'_>, width: u32, height: u32) -> Result<String, PlotError> {
    let mut text = String::new();
    {
        let backend = SVGBackend::with_string(&mut text, (width, height));
        draw(&backend.into_drawing_area(), scatter)?;
    }
    Ok(text)
}

/// The plot as pixels.
///
/// # Errors
/// As [`scatter_svg`].
pub fn scatter_image(scatter: Scatter<'_>, width: u32, height: u32) -> Result<RgbImage, PlotError> {
    let mut image = RgbImage::new(width, height);
    draw(&Pixels(&mut image).into_drawing_area(), scatter)?;
    Ok(image)
}

fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    scatter: Scatter<'_>,
) -> Result<(), PlotError> {
    let failed = |error: &dyn std::fmt::Display| PlotError(error.to_string());
    area.fill(&WHITE).map_err(|it| failed(&it))?;
    let style = |colour: &RGBColor| ("sans-serif", TEXT_SIZE).into_font().color(colour);
    let (width, height) = area.dim_in_pixel();
    let write = |text: String, at: (i32, i32), colour: &RGBColor| {
        area.draw(&Text::new(text, at, style(colour)))
            .map_err(|it| failed(&it))
    };
    write(scatter.title.to_owned(), (12, 8), &TEXT)?;
    write(format!("{} (up)", scatter.y), (12, 26), &TEXT)?;
    let across = format!("{} (right)", scatter.x);
    let left = width as i32 - 24 - 7 * across.len() as i32;
    write(across, (left, height as i32 - 20), &TEXT)?;
    let marks = scatter.marks;
    let xs = range(marks.iter().map(|it| (it.x, it.x_interval)));
    let ys = range(marks.iter().map(|it| (it.y, it.y_interval)));
    let mut chart = ChartBuilder::on(area)
        .margin_top(44)
        .margin_right(24)
        .margin_bottom(24)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(xs, ys)
        .map_err(|it| failed(&it))?;
    let number = |value: &f64| format!("{value:.3}");
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID_LINE)
        .axis_style(TEXT)
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .label_style(style(&TEXT))
        .draw()
        .map_err(|it| failed(&it))?;
    for mark in marks {
        let colour = if mark.is_paper { PAPER } else { OURS };
        let lines = [
            mark.x_interval
                .map(|(low, high)| [(low, mark.y), (high, mark.y)]),
            mark.y_interval
                .map(|(low, high)| [(mark.x, low), (mark.x, high)]),
        ];
        let lines = lines.into_iter().flatten();
        chart
            .draw_series(lines.map(|line| PathElement::new(line.to_vec(), colour.mix(0.5))))
            .map_err(|it| failed(&it))?;
        let fill = if mark.is_paper {
            colour.stroke_width(1)
        } else {
            colour.filled()
        };
        let dot = Circle::new((mark.x, mark.y), 4, fill);
        chart
            .draw_series(std::iter::once(dot))
            .map_err(|it| failed(&it))?;
        let label = EmptyElement::at((mark.x, mark.y))
            + Text::new(mark.label.clone(), (7, -5), style(&colour));
        chart
            .draw_series(std::iter::once(label))
            .map_err(|it| failed(&it))?;
    }
    area.present().map_err(|it| failed(&it))
}

/// All values and intervals with a margin; room for labels on the right is part of it.
fn range(values: impl Iterator<Item = (f64, Option<(f64, f64)>)>) -> std::ops::Range<f64> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for (value, interval) in values {
        for it in [value]
            .into_iter()
            .chain(interval.into_iter().flat_map(|(low, high)| [low, high]))
        {
            low = low.min(it);
            high = high.max(it);
        }
    }
    if low > high {
        return 0.0..1.0;
    }
    let margin = ((high - low) * 0.12).max(1e-3);
    low - margin..high + margin
}

/// Pixels of an image as a backend.
struct Pixels<'a>(&'a mut RgbImage);

impl DrawingBackend for Pixels<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.0.dimensions()
    }

    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), DrawingErrorKind<Infallible>> {
        Ok(())
    }

    fn draw_pixel(
        &mut self,
        (x, y): BackendCoord,
        colour: BackendColor,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        let at = u32::try_from(x).ok().zip(u32::try_from(y).ok());
        if let Some((x, y)) = at
            && let Some(pixel) = self.0.get_pixel_mut_checked(x, y)
        {
            let (r, g, b) = colour.rgb;
            for (value, wanted) in pixel.0.iter_mut().zip([r, g, b]) {
                let mixed = f64::from(*value) * (1.0 - colour.alpha);
                *value = (mixed + f64::from(wanted) * colour.alpha).round() as u8;
            }
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        (x, y): BackendCoord,
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        let (width, height) = (text::width(text, 1) as i32, text::HEIGHT as i32);
        let anchor = style.anchor();
        let left = match anchor.h_pos {
            HPos::Left => x,
            HPos::Center => x - width / 2,
            HPos::Right => x - width,
        };
        let top = match anchor.v_pos {
            VPos::Top => y,
            VPos::Center => y - height / 2,
            VPos::Bottom => y - height,
        };
        let (r, g, b) = style.color().rgb;
        let from = Pixel {
            x: left.into(),
            y: top.into(),
        };
        text::render(self.0, text, from, 1, Rgb([r, g, b]));
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        Ok((text::width(text, 1), text::HEIGHT))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn mark(label: &str, x: f64, y: f64, is_paper: bool) -> Mark {
        Mark {
            label: label.to_owned(),
            x,
            y,
            x_interval: Some((x - 0.01, x + 0.01)),
            y_interval: None,
            is_paper,
        }
    }

    fn plot(marks: &[Mark]) -> Scatter<'_> {
        Scatter {
            title: "Table 2",
            x: "CLIP-I",
            y: "CLIP-T",
            marks,
        }
    }

    #[test]
    fn both_forms_show_every_mark_and_the_same_plot_has_the_same_bytes() {
        let marks = [
            mark("ours-a", 0.6, 0.25, false),
            mark("ours-b", 0.8, 0.18, false),
            mark("paper-b", 0.7, 0.2, true),
        ];
        let svg = scatter_svg(plot(&marks), 480, 360).unwrap();
        for text in [
            "<svg", "ours-a", "ours-b", "paper-b", "Table 2", "CLIP-I", "CLIP-T",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert_eq!(scatter_svg(plot(&marks), 480, 360).unwrap(), svg);
        let image = scatter_image(plot(&marks), 480, 360).unwrap();
        assert_eq!(scatter_image(plot(&marks), 480, 360).unwrap(), image);
        // The better CLIP-I is further right, and the better CLIP-T higher.
        let is =
            |x, y, colour: RGBColor| *image.get_pixel(x, y) == Rgb([colour.0, colour.1, colour.2]);
        let dots: Vec<(u32, u32)> = (0..360)
            .flat_map(|y| (0..480).map(move |x| (x, y)))
            .filter(|(x, y)| is(*x, *y, OURS))
            .collect();
        let highest = dots.iter().min_by_key(|(_, y)| *y).unwrap();
        let lowest = dots.iter().max_by_key(|(_, y)| *y).unwrap();
        assert!(
            highest.0 < lowest.0 && highest.1 + 100 < lowest.1,
            "{highest:?} {lowest:?}"
        );
    }

    #[test]
    fn no_mark_or_one_is_a_plot_too() {
        assert!(scatter_svg(plot(&[]), 300, 200).is_ok());
        let one = [mark("x", 0.5, 0.5, false)];
        assert!(scatter_image(plot(&one), 300, 200).is_ok());
    }
}
