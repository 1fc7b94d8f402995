//! A loss curve as a picture: light raw values, a dark smoothed line, axes with numbers. Pure pixels.

use image::{Rgb, RgbImage};

use crate::text;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const FRAME: Rgb<u8> = Rgb([120, 124, 134]);
const LATTICE: Rgb<u8> = Rgb([230, 232, 238]);
const WORDS: Rgb<u8> = Rgb([60, 62, 72]);
const RAW: Rgb<u8> = Rgb([176, 200, 236]);
const SMOOTH: Rgb<u8> = Rgb([24, 74, 168]);
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

/// Draws (step, loss) points; values that are not finite are left out. At least 240 x 160 pixels.
#[must_use]
pub fn loss_curve(points: &[(u64, f64)], title: &str, width: u32, height: u32) -> RgbImage {
    let (width, height) = (width.max(240), height.max(160));
    let mut picture = RgbImage::from_pixel(width, height, PAPER);
    text::draw(&mut picture, title, (i64::from(MARGIN.left), 10), 2, WORDS);
    let points: Vec<(f64, f64)> = points
        .iter()
        .filter(|(_, loss)| loss.is_finite())
        .map(|(step, loss)| (*step as f64, *loss))
        .collect();
    let plot = Plot::around(&points, width, height);
    plot.axes(&mut picture);
    for pair in points.windows(2) {
        line(&mut picture, plot.at(pair[0]), plot.at(pair[1]), 1, RAW);
    }
    for point in &points {
        dot(&mut picture, plot.at(*point), 2, RAW);
    }
    for pair in smooth(&points).windows(2) {
        line(&mut picture, plot.at(pair[0]), plot.at(pair[1]), 2, SMOOTH);
    }
    picture
}

/// An exponential mean over about a fortieth of the points, started without bias.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 40.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|(step, loss)| {
            sum = sum * keep + loss * (1.0 - keep);
            weight = weight * keep + (1.0 - keep);
            (*step, sum / weight)
        })
        .collect()
}

struct Plot {
    /// Left, top, right, bottom in pixels.
    frame: (f64, f64, f64, f64),
    steps: (f64, f64),
    losses: (f64, f64),
}

impl Plot {
    fn around(points: &[(f64, f64)], width: u32, height: u32) -> Self {
        let range = |of: fn(&(f64, f64)) -> f64| {
            let low = points.iter().map(of).fold(f64::INFINITY, f64::min);
            let high = points.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
            if low < high {
                (low, high)
            } else if low == high {
                (low - 0.5, high + 0.5)
            } else {
                (0.0, 1.0)
            }
        };
        let losses = range(|p| p.1);
        let air = (losses.1 - losses.0) * 0.05;
        Self {
            frame: (
                f64::from(MARGIN.left),
                f64::from(MARGIN.top),
                f64::from(width - MARGIN.right),
                f64::from(height - MARGIN.bottom),
            ),
            steps: range(|p| p.0),
            losses: (losses.0 - air, losses.1 + air),
        }
    }

    fn at(&self, (step, loss): (f64, f64)) -> (f64, f64) {
        let (left, top, right, bottom) = self.frame;
        let share = |value: f64, (low, high): (f64, f64)| (value - low) / (high - low);
        (
            left + share(step, self.steps) * (right - left),
            bottom - share(loss, self.losses) * (bottom - top),
        )
    }

    fn axes(&self, picture: &mut RgbImage) {
        let (left, top, right, bottom) = self.frame;
        for tick in ticks(self.losses) {
            let (_, y) = self.at((self.steps.0, tick.0));
            line(picture, (left, y), (right, y), 1, LATTICE);
            let label = number(tick.0, tick.1);
            let x = left as i64 - 6 - i64::from(text::width(&label, 1));
            text::draw(picture, &label, (x, y as i64 - 3), 1, WORDS);
        }
        for tick in ticks(self.steps) {
            let (x, _) = self.at((tick.0, self.losses.0));
            line(picture, (x, top), (x, bottom), 1, LATTICE);
            let label = number(tick.0, tick.1);
            text::draw(
                picture,
                &label,
                (
                    x as i64 - i64::from(text::width(&label, 1) / 2),
                    bottom as i64 + 7,
                ),
                1,
                WORDS,
            );
        }
        for (a, b) in [((left, top), (left, bottom)), ((left, bottom), (right, bottom))] {
            line(picture, a, b, 1, FRAME);
        }
        text::draw(picture, "loss", (6, top as i64 - 12), 1, WORDS);
        text::draw(picture, "step", (right as i64 - 24, bottom as i64 + 22), 1, WORDS);
    }
}

/// Round numbers inside a range, and the distance between them.
fn ticks((low, high): (f64, f64)) -> Vec<(f64, f64)> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|s| *s >= rough)
        .unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..)
        .map(|n| (n as f64 * step, step))
        .take_while(|(value, _)| *value <= high)
        .take(12)
        .collect()
}

/// As many decimals as the distance between ticks needs.
fn number(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.decimals$}")
}

fn line(picture: &mut RgbImage, a: (f64, f64), b: (f64, f64), thick: i64, colour: Rgb<u8>) {
    let length = (b.0 - a.0).abs().max((b.1 - a.1).abs()).ceil().max(1.0);
    for i in 0..=length as u32 {
        let t = f64::from(i) / length;
        dot(
            picture,
            (a.0 + (b.0 - a.0) * t, a.1 + (b.1 - a.1) * t),
            thick,
            colour,
        );
    }
}

fn dot(picture: &mut RgbImage, (x, y): (f64, f64), side: i64, colour: Rgb<u8>) {
    let (x, y) = (x.round() as i64, y.round() as i64);
    for py in y..y + side {
        for px in x..x + side {
            if (0..i64::from(picture.width())).contains(&px) && (0..i64::from(picture.height())).contains(&py)
            {
                picture.put_pixel(px as u32, py as u32, colour);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_loss_falls_on_paper() {
        let points: Vec<(u64, f64)> = (0..200).map(|s| (s, 1.0 / (1.0 + s as f64 / 20.0))).collect();
        let picture = loss_curve(&points, "demo", 400, 240);
        let height_at = |x: u32| {
            (0..240)
                .find(|y| *picture.get_pixel(x, *y) == SMOOTH)
                .expect("the line crosses")
        };
        assert!(height_at(80) < height_at(160) && height_at(160) < height_at(360));
    }

    #[test]
    fn odd_input_is_drawn_without_a_panic() {
        for points in [
            vec![],
            vec![(3, 0.5)],
            vec![(1, f64::NAN), (2, f64::INFINITY)],
            vec![(5, 1.0), (5, 1.0)],
        ] {
            assert_eq!(loss_curve(&points, "x", 10, 10).dimensions(), (240, 160));
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let values: Vec<String> = ticks((0.08, 0.52))
            .into_iter()
            .map(|(v, s)| number(v, s))
            .collect();
        assert_eq!(values, ["0.1", "0.2", "0.3", "0.4", "0.5"]);
        assert_eq!(ticks((0.0, 12_000.0)).len(), 3, "0, 5000, 10000");
    }
}
