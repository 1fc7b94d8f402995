//! Classifies a generated image as the nearest of K identities by the colours inside the figure.
//! This is the metric of the product's first milestone. Hair and clothes are large areas of few
//! colours, so a histogram over them separates identities; pose does not matter.
//!
//! A generated image has no mask. [`figure_mask`] finds one if the background is plain, which a
//! prompt with "simple_background, white_background" requests. On a busy background it includes
//! parts of the background.

use image::{GrayImage, RgbImage};

/// Bins for each of red, green and blue.
const BINS_PER_CHANNEL: usize = 8;

/// Fraction of colour in each of 8 x 8 x 8 RGB bins. Sums to 1, or all 0 for an empty mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram(Vec<f32>);

/// Computes the colour histogram of `image`, each pixel weighted by `mask`. A pixel is distributed
/// over the eight nearest bins, so a small shift of colour changes the histogram little.
///
/// # Panics
/// If image and mask differ in size.
#[must_use]
pub fn histogram(image: &RgbImage, mask: &GrayImage) -> Histogram {
    assert_eq!(
        image.dimensions(),
        mask.dimensions(),
        "a mask has the size of its image"
    );
    let mut bins = vec![0f32; BINS_PER_CHANNEL * BINS_PER_CHANNEL * BINS_PER_CHANNEL];
    for (pixel, weight) in image.as_raw().chunks_exact(3).zip(mask.as_raw()) {
        if *weight > 0 {
            distribute(&mut bins, pixel, f32::from(*weight));
        }
    }
    let total: f32 = bins.iter().sum();
    if total > 0.0 {
        bins.iter_mut().for_each(|b| *b /= total);
    }
    Histogram(bins)
}

/// Mean histogram of several images of one identity, with less variance than a single one.
#[must_use]
pub fn mean(histograms: &[Histogram]) -> Histogram {
    let mut bins = vec![0f32; BINS_PER_CHANNEL * BINS_PER_CHANNEL * BINS_PER_CHANNEL];
    for histogram in histograms {
        bins.iter_mut()
            .zip(&histogram.0)
            .for_each(|(sum, value)| *sum += value / histograms.len() as f32);
    }
    Histogram(bins)
}

/// Bhattacharyya coefficient: 1 for equal histograms, 0 for no common colour.
#[must_use]
pub fn similarity(a: &Histogram, b: &Histogram) -> f32 {
    a.0.iter().zip(&b.0).map(|(a, b)| (a * b).sqrt()).sum()
}

/// Index of the candidate most similar to `query`; the first of equal ones. None without
/// candidates.
#[must_use]
pub fn nearest(query: &Histogram, candidates: &[Histogram]) -> Option<usize> {
    let mut best = None;
    for (index, candidate) in candidates.iter().enumerate() {
        let score = similarity(query, candidate);
        if best.is_none_or(|(_, best_score)| score > best_score) {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}

/// Largest difference over the channels between a background pixel and the background colour.
const TOLERANCE: u8 = 36;

/// Mask of a figure on a plain background: all pixels that cannot be reached from the border
/// through pixels of the background colour. The background colour is the median of the top edge and
/// the upper halves of the sides, where figures seldom are.
///
/// If that finds almost nothing or almost everything (a busy background, a noise image), the mask
/// is the central ellipse instead, so that it is never empty.
#[must_use]
pub fn figure_mask(image: &RgbImage) -> GrayImage {
    let (width, height) = image.dimensions();
    let background = border_median(image);
    let is_background = |x: u32, y: u32| {
        image
            .get_pixel(x, y)
            .0
            .iter()
            .zip(background)
            .all(|(a, b)| a.abs_diff(b) <= TOLERANCE)
    };
    let mut mask = GrayImage::from_pixel(width, height, image::Luma([255]));
    let edge = (0..width)
        .flat_map(|x| [(x, 0), (x, height - 1)])
        .chain((0..height).flat_map(|y| [(0, y), (width - 1, y)]));
    let mut pending: Vec<(u32, u32)> = edge.filter(|(x, y)| is_background(*x, *y)).collect();
    while let Some((x, y)) = pending.pop() {
        if mask.get_pixel(x, y).0[0] == 0 {
            continue;
        }
        mask.put_pixel(x, y, image::Luma([0]));
        let neighbours = [
            (x.wrapping_sub(1), y),
            (x + 1, y),
            (x, y.wrapping_sub(1)),
            (x, y + 1),
        ];
        pending.extend(
            neighbours
                .into_iter()
                .filter(|(x, y)| *x < width && *y < height && is_background(*x, *y)),
        );
    }
    let covered =
        mask.as_raw().iter().filter(|v| **v > 0).count() as f64 / f64::from(width * height);
    if (0.03..0.97).contains(&covered) {
        mask
    } else {
        central_ellipse(width, height)
    }
}

fn border_median(image: &RgbImage) -> [u8; 3] {
    let (width, height) = image.dimensions();
    let sides = (0..height / 2).flat_map(|y| [(0, y), (width - 1, y)]);
    let border: Vec<(u32, u32)> = (0..width).map(|x| (x, 0)).chain(sides).collect();
    std::array::from_fn(|channel| {
        let mut values: Vec<u8> = border
            .iter()
            .map(|(x, y)| image.get_pixel(*x, *y).0[channel])
            .collect();
        values.sort_unstable();
        values[values.len() / 2]
    })
}

fn central_ellipse(width: u32, height: u32) -> GrayImage {
    GrayImage::from_fn(width, height, |x, y| {
        let dx = (f64::from(x) + 0.5) / f64::from(width) * 2.0 - 1.0;
        let dy = (f64::from(y) + 0.5) / f64::from(height) * 2.0 - 1.0;
        image::Luma([if (dx / 0.5).powi(2) + (dy / 0.9).powi(2) <= 1.0 {
            255
        } else {
            0
        }])
    })
}

fn distribute(bins: &mut [f32], pixel: &[u8], weight: f32) {
    // Bin centres are at 0, 255/7, … 255.
    let bin_of = |value: u8| {
        let scaled = f32::from(value) / 255.0 * (BINS_PER_CHANNEL - 1) as f32;
        let low = (scaled as usize).min(BINS_PER_CHANNEL - 2);
        (low, scaled - low as f32)
    };
    let (r, g, b) = (bin_of(pixel[0]), bin_of(pixel[1]), bin_of(pixel[2]));
    for (dr, wr) in [(0, 1.0 - r.1), (1, r.1)] {
        for (dg, wg) in [(0, 1.0 - g.1), (1, g.1)] {
            for (db, wb) in [(0, 1.0 - b.1), (1, b.1)] {
                let bin = ((r.0 + dr) * BINS_PER_CHANNEL + g.0 + dg) * BINS_PER_CHANNEL + b.0 + db;
                bins[bin] += weight * wr * wg * wb;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_file::resize;
    use image::Rgb;

    #[test]
    fn a_small_shift_of_colour_moves_a_histogram_little() {
        let mask = GrayImage::from_pixel(8, 8, image::Luma([255]));
        let solid = |v: u8| histogram(&RgbImage::from_pixel(8, 8, Rgb([v, 90, 200])), &mask);
        for v in 0..250 {
            assert!(similarity(&solid(v), &solid(v + 4)) > 0.9, "at {v}");
        }
        assert!(similarity(&solid(0), &solid(255)) < 0.1);
        let total: f32 = solid(123).0.iter().sum();
        assert!((total - 1.0).abs() < 1e-4);
    }

    #[test]
    fn a_figure_on_a_plain_background_is_segmented() {
        let mut image = RgbImage::from_pixel(40, 40, Rgb([240, 240, 240]));
        for y in 10..40 {
            for x in 14..26 {
                // A hole of the background colour inside the figure belongs to the figure.
                let inner = (18..22).contains(&x) && (15..20).contains(&y);
                image.put_pixel(
                    x,
                    y,
                    if inner {
                        Rgb([240, 240, 240])
                    } else {
                        Rgb([200, 30, 40])
                    },
                );
            }
        }
        let mask = figure_mask(&image);
        for (x, y, value) in mask.enumerate_pixels() {
            assert_eq!(
                value.0[0] == 255,
                (14..26).contains(&x) && y >= 10,
                "{x} {y}"
            );
        }
    }

    #[test]
    fn without_a_figure_the_mask_is_the_central_ellipse() {
        let mask = figure_mask(&RgbImage::from_pixel(20, 20, Rgb([1, 2, 3])));
        assert_eq!(
            (mask.get_pixel(10, 10).0[0], mask.get_pixel(0, 0).0[0]),
            (255, 0)
        );
        assert_eq!(
            nearest(&histogram(&resize(RgbImage::new(4, 4), 20, 20), &mask), &[]),
            None
        );
    }
}
