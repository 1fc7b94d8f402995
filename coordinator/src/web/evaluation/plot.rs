//! The scatter plot of two measures: a mark for each model with its intervals, and the paper's
//! values as hollow marks. Pure.

use crate::evaluation::numbers::{Part, estimate};
use crate::evaluation::paper::{Column, Table};
use crate::web::show::{At, number};
use metric::Estimate;
use model_data::evaluation::Row;

/// The frame in which marks are, in the drawing's units.
pub(super) const FRAME: Frame = Frame {
    left: 46.0,
    right: 410.0,
    top: 8.0,
    bottom: 276.0,
};
/// Between the names of two marks, one above the other.
const LINE: f64 = 11.0;
/// Names further apart than this do not touch.
const NAME: f64 = 110.0;
const TICKS: usize = 5;

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

#[derive(Debug)]
pub(super) struct Plot {
    pub(super) x: String,
    pub(super) y: String,
    pub(super) marks: Vec<Mark>,
    pub(super) x_ticks: Vec<(At, String)>,
    pub(super) y_ticks: Vec<(At, String)>,
    pub(super) has_paper: bool,
}

#[derive(Debug)]
pub(super) struct Mark {
    pub(super) x: At,
    pub(super) y: At,
    /// The ends of its intervals: left, right, top, bottom.
    pub(super) arms: Option<[At; 4]>,
    pub(super) is_paper: bool,
    pub(super) name: String,
    /// Where the name is, and whether it ends there.
    pub(super) name_x: At,
    pub(super) name_y: At,
    pub(super) is_left: bool,
    pub(super) title: String,
}

/// A mark before it is placed.
struct Point {
    name: String,
    is_paper: bool,
    x: f64,
    y: f64,
    intervals: Option<[f64; 4]>,
}

/// None: no model has both measures.
pub(super) fn plot(
    rows: &[Row],
    models: &[&str],
    part: Part,
    (x, y): (Column, Column),
    table: Option<&Table>,
) -> Option<Plot> {
    let mut points = Vec::new();
    for model in models {
        let ours = |column| estimate(rows, model, part, column);
        if let (Some(x), Some(y)) = (ours(x), ours(y)) {
            points.push(Point {
                name: (*model).to_owned(),
                is_paper: false,
                x: x.mean,
                y: y.mean,
                intervals: intervals(&x, &y),
            });
        }
    }
    if points.is_empty() {
        return None;
    }
    let mut has_paper = false;
    for model in models {
        let paper = |column| table.and_then(|it| it.value(model, column));
        if let (Part::All, Some(x), Some(y)) = (part, paper(x), paper(y)) {
            has_paper = true;
            points.push(Point {
                name: format!("{model} (paper)"),
                is_paper: true,
                x,
                y,
                intervals: None,
            });
        }
    }
    Some(placed(points, &x.title(), &y.title(), has_paper))
}

fn intervals(x: &Estimate, y: &Estimate) -> Option<[f64; 4]> {
    Some([x.low?, x.high?, y.low?, y.high?])
}

fn placed(points: Vec<Point>, x: &str, y: &str, has_paper: bool) -> Plot {
    let xs = |it: &Point| it.intervals.map_or([it.x; 2], |all| [all[0], all[1]]);
    let ys = |it: &Point| it.intervals.map_or([it.y; 2], |all| [all[2], all[3]]);
    let (x_range, y_range) = (
        range(points.iter().flat_map(xs)),
        range(points.iter().flat_map(ys)),
    );
    let at_x = |value: f64| scaled(value, x_range, (FRAME.left, FRAME.right));
    let at_y = |value: f64| scaled(value, y_range, (FRAME.bottom, FRAME.top));
    let mut marks: Vec<Mark> = points
        .into_iter()
        .map(|it| {
            let (x_at, y_at) = (at_x(it.x), at_y(it.y));
            let is_left = (FRAME.left + FRAME.right) / 2.0 < x_at;
            Mark {
                x: At(x_at),
                y: At(y_at),
                arms: it
                    .intervals
                    .map(|all| [at_x(all[0]), at_x(all[1]), at_y(all[3]), at_y(all[2])].map(At)),
                is_paper: it.is_paper,
                name_x: At(if is_left { x_at - 7.0 } else { x_at + 7.0 }),
                name_y: At(y_at - 4.0),
                is_left,
                title: format!("{}: {x} {}, {y} {}", it.name, number(it.x), number(it.y)),
                name: it.name,
            }
        })
        .collect();
    spread(&mut marks);
    Plot {
        x: x.to_owned(),
        y: y.to_owned(),
        marks,
        x_ticks: ticks(x_range, at_x),
        y_ticks: ticks(y_range, at_y),
        has_paper,
    }
}

/// Moves names down until none is over another.
fn spread(marks: &mut [Mark]) {
    let mut order: Vec<usize> = (0..marks.len()).collect();
    order.sort_by(|a, b| marks[*a].name_y.0.total_cmp(&marks[*b].name_y.0));
    for at in 1..order.len() {
        let (before, this) = (&order[..at], order[at]);
        for other in before {
            let (name, x) = (marks[this].name_y.0, marks[this].name_x.0);
            let other = &marks[*other];
            let is_near = (other.name_x.0 - x).abs() < NAME && name < other.name_y.0 + LINE;
            if is_near && other.name_y.0 - LINE < name {
                marks[this].name_y = At(other.name_y.0 + LINE);
            }
        }
    }
}

/// Somewhat wider than the values.
fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let most = values.fold(f64::NEG_INFINITY, f64::max);
    let margin = (0.08 * (most - least)).max(1e-6 * most.abs()).max(1e-9);
    (least - margin, most + margin)
}

fn scaled(value: f64, (from, to): (f64, f64), (begin, end): (f64, f64)) -> f64 {
    begin + (value - from) / (to - from) * (end - begin)
}

/// Round values within a range.
fn ticks((from, to): (f64, f64), at: impl Fn(f64) -> f64) -> Vec<(At, String)> {
    let rough = (to - from) / TICKS as f64;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|it| it * power);
    let step = steps.into_iter().find(|it| rough <= *it).unwrap_or(rough);
    let first = (from / step).ceil();
    let values = (0..=2 * TICKS).map(|index| (first + index as f64) * step);
    let values = values.take_while(|value| *value <= to);
    values
        .map(|value| (At(at(value)), short(value, step)))
        .collect()
}

/// As many decimals as the step between two has.
fn short(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).clamp(0.0, 8.0);
    format!("{value:.0$}", decimals as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(name: &str, x: f64, y: f64) -> Point {
        Point {
            name: name.to_owned(),
            is_paper: false,
            x,
            y,
            intervals: Some([x - 0.01, x + 0.01, y - 0.02, y + 0.02]),
        }
    }

    #[test]
    fn marks_and_their_intervals_are_within_the_frame_and_names_are_apart() {
        let points = vec![
            point("a", 0.7, 0.2),
            point("b", 0.7, 0.2),
            point("c", 0.8, 0.3),
        ];
        let plot = placed(points, "CLIP-I", "CLIP-T", false);
        for mark in &plot.marks {
            let [left, right, top, bottom] = mark.arms.unwrap_or_else(|| panic!("it has some"));
            assert!(FRAME.left < left.0 && left.0 < mark.x.0 && mark.x.0 < right.0);
            assert!(FRAME.top < top.0 && top.0 < mark.y.0 && bottom.0 < FRAME.bottom);
        }
        let names: Vec<f64> = plot.marks.iter().map(|it| it.name_y.0).collect();
        assert!((names[1] - names[0]).abs() >= LINE - 1e-9, "{names:?}");
        // The higher value is further up.
        assert!(plot.marks[2].y.0 < plot.marks[0].y.0 && plot.marks[2].is_left);
        let ticks: Vec<&str> = plot.x_ticks.iter().map(|it| it.1.as_str()).collect();
        assert_eq!(ticks, ["0.70", "0.75", "0.80"]);
    }

    #[test]
    fn one_value_is_a_plot() {
        let plot = placed(vec![point("a", 0.0, 0.0)], "x", "y", false);
        assert!(plot.marks[0].x.0.is_finite() && !plot.y_ticks.is_empty());
    }
}
