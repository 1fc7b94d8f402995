//! Renders a loss curve: raw values in a light colour, a dark smoothed line, the validation loss in
//! a third colour, and labelled axes.

use image::{Rgb, RgbImage};

use crate::text::{self, Pixel};

const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);
const FRAME: Rgb<u8> = Rgb([120, 124, 134]);
const GRID_LINE: Rgb<u8> = Rgb([230, 232, 238]);
const TEXT: Rgb<u8> = Rgb([60, 62, 72]);
const RAW: Rgb<u8> = Rgb([176, 200, 236]);
const SMOOTH: Rgb<u8> = Rgb([24, 74, 168]);
const VALIDATION: Rgb<u8> = Rgb([208, 96, 24]);
/// Of the scores, in their order; repeated if there are more.
const SCORES: [Rgb<u8>; 6] = [
    Rgb([24, 128, 72]),
    Rgb([160, 48, 144]),
    Rgb([208, 96, 24]),
    Rgb([24, 74, 168]),
    Rgb([120, 124, 134]),
    Rgb([176, 32, 40]),
];
const MARGIN: Margin = Margin {
    left: 64,
    right: 18,
    top: 30,
    bottom: 38,
};

struct Margin {
    left: u32,
    right: u32,
    top: u32,
    bottom: u32,
}

/// A point of the curve.
#[derive(Clone, Copy)]
struct Point {
    step: f64,
    loss: f64,
}

/// A position in the image, in pixels, before rounding.
#[derive(Clone, Copy)]
struct Position {
    x: f64,
    y: f64,
}

/// The value range of an axis.
#[derive(Clone, Copy)]
struct Range {
    low: f64,
    high: f64,
}

/// A tick: a round value on an axis, and the distance to the next tick.
struct Tick {
    value: f64,
    step: f64,
}

/// The values of a plot, each a step and a loss. Values that are not finite are skipped.
#[derive(Debug, Clone, Copy)]
pub struct Curves<'a> {
    pub training: &'a [(u64, f64)],
    /// May be empty.
    pub validation: &'a [(u64, f64)],
}

/// Plots a loss curve. At least 240 x 160 pixels.
#[must_use]
pub fn loss_curve(curves: Curves<'_>, title: &str, width: u32, height: u32) -> RgbImage {
    let (width, height) = (width.max(240), height.max(160));
    let mut image = RgbImage::from_pixel(width, height, BACKGROUND);
    let corner = Pixel {
        x: i64::from(MARGIN.left),
        y: 10,
    };
    text::render(&mut image, title, corner, 2, TEXT);
    let (points, validation) = (points(curves.training), points(curves.validation));
    let plot = Plot::around(&[points.as_slice(), &validation].concat(), width, height);
    plot.axes(&mut image, "loss");
    for pair in points.windows(2) {
        line(&mut image, plot.at(pair[0]), plot.at(pair[1]), 1, RAW);
    }
    for point in &points {
        dot(&mut image, plot.at(*point), 2, RAW);
    }
    for pair in smooth(&points).windows(2) {
        line(&mut image, plot.at(pair[0]), plot.at(pair[1]), 2, SMOOTH);
    }
    for pair in validation.windows(2) {
        line(
            &mut image,
            plot.at(pair[0]),
            plot.at(pair[1]),
            2,
            VALIDATION,
        );
    }
    for point in &validation {
        dot(&mut image, plot.at(*point), 4, VALIDATION);
    }
    if !validation.is_empty() {
        let label = "validation";
        let right = i64::from(width - MARGIN.right) - i64::from(text::width(label, 1));
        text::render(&mut image, label, Pixel { x: right, y: 14 }, 1, VALIDATION);
    }
    image
}

/// The same, and below it in a frame of its own the scores of evaluations, each a name and its
/// values by step, over the same steps.
#[must_use]
pub fn loss_and_scores(
    curves: Curves<'_>,
    scores: &[(String, Vec<(u64, f64)>)],
    title: &str,
    width: u32,
    height: u32,
) -> RgbImage {
    let above = loss_curve(curves, title, width, height);
    let (width, height) = above.dimensions();
    let lines: Vec<Vec<Point>> = scores.iter().map(|(_, values)| points(values)).collect();
    let all = lines.concat();
    let mut plot = Plot::around(&all, width, height);
    let steps = points(curves.training).into_iter().chain(all);
    plot.steps = Range::of(
        steps
            .map(|point| point.step)
            .collect::<Vec<_>>()
            .into_iter(),
    );
    let mut below = RgbImage::from_pixel(width, height, BACKGROUND);
    plot.axes(&mut below, "score");
    let mut left = i64::from(MARGIN.left);
    for (number, ((name, _), points)) in scores.iter().zip(&lines).enumerate() {
        let colour = SCORES[number % SCORES.len()];
        for pair in points.windows(2) {
            line(&mut below, plot.at(pair[0]), plot.at(pair[1]), 2, colour);
        }
        for point in points {
            dot(&mut below, plot.at(*point), 4, colour);
        }
        text::render(&mut below, name, Pixel { x: left, y: 14 }, 1, colour);
        left += i64::from(text::width(name, 1)) + 12;
    }
    let mut both = RgbImage::from_pixel(width, 2 * height, BACKGROUND);
    image::imageops::replace(&mut both, &above, 0, 0);
    image::imageops::replace(&mut both, &below, 0, i64::from(height));
    both
}

fn points(values: &[(u64, f64)]) -> Vec<Point> {
    let finite = values.iter().filter(|(_, loss)| loss.is_finite());
    let points = finite.map(|(step, loss)| Point {
        step: *step as f64,
        loss: *loss,
    });
    points.collect()
}

/// Exponential moving average over about a fortieth of the points, with bias correction.
fn smooth(points: &[Point]) -> Vec<Point> {
    let decay = 1.0 - 1.0 / (points.len() as f64 / 40.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|point| {
            sum = sum * decay + point.loss * (1.0 - decay);
            weight = weight * decay + (1.0 - decay);
            Point {
                step: point.step,
                loss: sum / weight,
            }
        })
        .collect()
}

struct Plot {
    /// Corners of the frame.
    top_left: Position,
    bottom_right: Position,
    steps: Range,
    losses: Range,
}

impl Plot {
    fn around(points: &[Point], width: u32, height: u32) -> Self {
        let losses = Range::of(points.iter().map(|point| point.loss));
        let margin = (losses.high - losses.low) * 0.05;
        Self {
            top_left: Position {
                x: f64::from(MARGIN.left),
                y: f64::from(MARGIN.top),
            },
            bottom_right: Position {
                x: f64::from(width - MARGIN.right),
                y: f64::from(height - MARGIN.bottom),
            },
            steps: Range::of(points.iter().map(|point| point.step)),
            losses: Range {
                low: losses.low - margin,
                high: losses.high + margin,
            },
        }
    }

    fn at(&self, point: Point) -> Position {
        let (from, to) = (self.top_left, self.bottom_right);
        Position {
            x: from.x + self.steps.fraction(point.step) * (to.x - from.x),
            y: to.y - self.losses.fraction(point.loss) * (to.y - from.y),
        }
    }

    /// `name`: of the vertical axis.
    fn axes(&self, image: &mut RgbImage, name: &str) {
        let (from, to) = (self.top_left, self.bottom_right);
        let origin = Point {
            step: self.steps.low,
            loss: self.losses.low,
        };
        let position = |x, y| Position { x, y };
        let write = |image: &mut RgbImage, label: &str, x: i64, y: i64| {
            text::render(image, label, Pixel { x, y }, 1, TEXT);
        };
        for tick in self.losses.ticks() {
            let loss = tick.value;
            let y = self.at(Point { loss, ..origin }).y;
            line(image, position(from.x, y), position(to.x, y), 1, GRID_LINE);
            let label = tick.label();
            let left = from.x as i64 - 6 - i64::from(text::width(&label, 1));
            write(image, &label, left, y as i64 - 3);
        }
        for tick in self.steps.ticks() {
            let step = tick.value;
            let x = self.at(Point { step, ..origin }).x;
            line(image, position(x, from.y), position(x, to.y), 1, GRID_LINE);
            let label = tick.label();
            let left = x as i64 - i64::from(text::width(&label, 1) / 2);
            write(image, &label, left, to.y as i64 + 7);
        }
        let corner = position(from.x, to.y);
        line(image, from, corner, 1, FRAME);
        line(image, corner, to, 1, FRAME);
        write(image, name, 6, from.y as i64 - 12);
        write(image, "step", to.x as i64 - 24, to.y as i64 + 22);
    }
}

impl Range {
    /// The range of all values, widened if there is at most one distinct value.
    fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low < high {
            (low, high)
        } else if low == high {
            (low - 0.5, high + 0.5)
        } else {
            (0.0, 1.0)
        };
        Self { low, high }
    }

    /// 0 at the low end, 1 at the high end.
    fn fraction(self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// Round values inside the range.
    fn ticks(self) -> Vec<Tick> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|m| m * power)
            .into_iter()
            .find(|s| *s >= rough)
            .unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        (first..)
            .map(|n| Tick {
                value: n as f64 * step,
                step,
            })
            .take_while(|tick| tick.value <= self.high)
            .take(12)
            .collect()
    }
}

impl Tick {
    /// The value with as many decimals as the distance between ticks needs.
    fn label(&self) -> String {
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        format!("{:.decimals$}", self.value)
    }
}

fn line(image: &mut RgbImage, a: Position, b: Position, thickness: u32, colour: Rgb<u8>) {
    let length = (b.x - a.x).abs().max((b.y - a.y).abs()).ceil().max(1.0);
    for i in 0..=length as u32 {
        let t = f64::from(i) / length;
        let position = Position {
            x: a.x + (b.x - a.x) * t,
            y: a.y + (b.y - a.y) * t,
        };
        dot(image, position, thickness, colour);
    }
}

fn dot(image: &mut RgbImage, corner: Position, side: u32, colour: Rgb<u8>) {
    let from = Pixel {
        x: corner.x.round() as i64,
        y: corner.y.round() as i64,
    };
    text::square(image, from, side, colour);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(points: &[(u64, f64)]) -> Curves<'_> {
        Curves {
            training: points,
            validation: &[],
        }
    }

    fn both(points: &[(u64, f64)]) -> Curves<'_> {
        Curves {
            training: points,
            validation: points,
        }
    }

    #[test]
    fn a_falling_loss_falls_in_the_image() {
        let points: Vec<(u64, f64)> = (0..200)
            .map(|s| (s, 1.0 / (1.0 + s as f64 / 20.0)))
            .collect();
        let image = loss_curve(training(&points), "demo", 400, 240);
        let height_at = |x: u32| {
            (0..240)
                .find(|y| *image.get_pixel(x, *y) == SMOOTH)
                .expect("the line crosses this column")
        };
        assert!(height_at(80) < height_at(160) && height_at(160) < height_at(360));
    }

    #[test]
    fn degenerate_input_is_plotted_without_a_panic() {
        for points in [
            vec![],
            vec![(3, 0.5)],
            vec![(1, f64::NAN), (2, f64::INFINITY)],
            vec![(5, 1.0), (5, 1.0)],
        ] {
            for curves in [training(&points), both(&points)] {
                assert_eq!(loss_curve(curves, "x", 10, 10).dimensions(), (240, 160));
            }
        }
    }

    #[test]
    fn a_validation_has_a_line_of_its_own_in_the_same_frame() {
        let points: Vec<(u64, f64)> = (0..100).map(|s| (s, 0.5)).collect();
        let curves = Curves {
            validation: &[(10, 0.9), (90, 0.7)],
            ..training(&points)
        };
        let image = loss_curve(curves, "demo", 400, 240);
        let height = |x: u32, colour| (40..200).find(|y| *image.get_pixel(x, *y) == colour);
        let (left, right) = (height(120, VALIDATION), height(300, VALIDATION));
        assert!(left.is_some() && left < right, "{left:?} {right:?}");
        assert!(right < height(300, SMOOTH));
        let without = loss_curve(training(&points), "demo", 400, 240);
        assert!(without.pixels().all(|pixel| *pixel != VALIDATION));
    }

    #[test]
    fn scores_have_a_frame_of_their_own_below_over_the_same_steps() {
        let points: Vec<(u64, f64)> = (0..100).map(|s| (s, 0.5)).collect();
        let rising = ("clip_i".to_owned(), vec![(20, 0.1), (80, 0.9)]);
        let flat = ("clip_t".to_owned(), vec![(20, 0.5), (80, 0.5)]);
        let image = loss_and_scores(training(&points), &[rising, flat], "demo", 400, 240);
        assert_eq!(image.dimensions(), (400, 480));
        let height = |x: u32| (270..470).find(|y| *image.get_pixel(x, *y) == SCORES[0]);
        let (left, right) = (height(160), height(280));
        assert!(left.is_some() && right < left, "{left:?} {right:?}");
        let above = loss_curve(training(&points), "demo", 400, 240);
        assert!((0..240).all(|y| image.get_pixel(200, y) == above.get_pixel(200, y)));
        // The scores begin where their steps are, not at the left end.
        assert_eq!(height(100), None);
        for scores in [vec![], vec![("x".to_owned(), vec![(1, f64::NAN)])]] {
            let image = loss_and_scores(training(&[]), &scores, "x", 10, 10);
            assert_eq!(image.dimensions(), (240, 320));
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let ticks = |low, high| Range { low, high }.ticks();
        let values: Vec<String> = ticks(0.08, 0.52).iter().map(Tick::label).collect();
        assert_eq!(values, ["0.1", "0.2", "0.3", "0.4", "0.5"]);
        assert_eq!(ticks(0.0, 12_000.0).len(), 3, "0, 5000, 10000");
    }
}
