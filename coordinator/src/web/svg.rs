//! Lines of drawings that pages have without scripts. Pure.

use std::fmt::Write;

/// A line over points in order, as `points` of SVG polylines: one for every run without a gap.
/// `size`: width and height; the least value is at the bottom.
pub(super) fn lines(points: &[Point], size: (f64, f64)) -> Lines {
    let Some(frame) = Frame::around(&[points]) else {
        return Lines::default();
    };
    Lines {
        lines: frame.draw(points, size),
        least: frame.least,
        largest: frame.largest,
    }
}

/// The same for two curves on one scale.
pub(super) fn together(curves: [&[Point]; 2], size: (f64, f64)) -> [Vec<String>; 2] {
    match Frame::around(&curves) {
        Some(frame) => curves.map(|points| frame.draw(points, size)),
        None => Default::default(),
    }
}

/// A step and a value; None is a gap.
pub(super) type Point = (u64, Option<f64>);

/// What is in view.
struct Frame {
    from: u64,
    to: u64,
    least: f64,
    largest: f64,
}

impl Frame {
    /// None: there is nothing to see.
    fn around(curves: &[&[Point]]) -> Option<Self> {
        let all = || curves.iter().flat_map(|points| points.iter());
        let values = || {
            all()
                .filter_map(|(_, value)| *value)
                .filter(|it| it.is_finite())
        };
        values().next()?;
        Some(Self {
            from: all().map(|(step, _)| *step).min()?,
            to: all().map(|(step, _)| *step).max()?,
            least: values().fold(f64::INFINITY, f64::min),
            largest: values().fold(f64::NEG_INFINITY, f64::max),
        })
    }

    #[allow(clippy::cast_precision_loss)] // Pixels.
    fn draw(&self, points: &[Point], (width, height): (f64, f64)) -> Vec<String> {
        let x = |step: u64| scaled(step as f64, self.from as f64, self.to as f64, width);
        let y = |value: f64| height - scaled(value, self.least, self.largest, height);
        let mut lines = vec![String::new()];
        for (step, value) in points {
            let line = lines.last_mut().expect("there is one from the beginning");
            match value.filter(|it| it.is_finite()) {
                Some(value) => {
                    let point = write!(line, "{:.1},{:.1} ", x(*step), y(value));
                    point.expect("a String takes everything");
                }
                None if line.is_empty() => {}
                None => lines.push(String::new()),
            }
        }
        lines.retain(|line| !line.is_empty());
        lines
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Lines {
    pub(super) lines: Vec<String>,
    pub(super) least: f64,
    pub(super) largest: f64,
}

/// A flat line is in the middle.
fn scaled(value: f64, from: f64, to: f64, size: f64) -> f64 {
    if from < to {
        (value - from) / (to - from) * size
    } else {
        size / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_ends_a_line_and_the_largest_value_is_on_top() {
        let points = [(1, Some(2.0)), (2, Some(1.0)), (3, None), (5, Some(3.0))];
        let drawn = lines(&points, (40.0, 10.0));
        assert_eq!(drawn.lines, ["0.0,5.0 10.0,10.0 ", "40.0,0.0 "]);
        assert_eq!((drawn.least, drawn.largest), (1.0, 3.0));
        assert_eq!(lines(&[(7, Some(1.0))], (4.0, 2.0)).lines, ["2.0,1.0 "]);
        assert_eq!(lines(&[(7, None)], (4.0, 2.0)).lines, [""; 0]);
        let other = [(9, Some(1.0))];
        let [a, b] = together([&points, &other], (40.0, 10.0));
        assert_eq!((a[1].as_str(), b[0].as_str()), ("20.0,0.0 ", "40.0,10.0 "));
    }
}
