//! What an image encoder reads of a reference: CLIP's preprocessing of the whole image, or the
//! figure alone on noise under FastComposer's augmentations (`fastcomposer/transforms.py`). Pure;
//! random numbers come from the caller. Called by [`crate::prepare`].

use crate::image_file::Region;
use crate::resample::resize_cropped;
use image::imageops::{self, FilterType};
use image::{GrayImage, Luma, Rgb, RgbImage};
use proto::architecture::{ImageView, ViewConfig, ViewKind};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The view of an image, a square. `mask` is white on the figure and has the image's size; without
/// one everything is figure.
///
/// # Panics
/// A mask of another size.
#[must_use]
pub fn view_of(
    config: ViewConfig,
    image: &RgbImage,
    mask: Option<&RgbImage>,
    rng: &mut ChaCha8Rng,
) -> RgbImage {
    match config.kind {
        ViewKind::Whole(view) | ViewKind::Target(view) => clip_view(image, view, config.side),
        ViewKind::Object { augment, .. } => {
            let alone = mask.map_or_else(|| image.clone(), |mask| on_noise(image, mask, rng));
            let alone = if augment && rng.random_bool(0.5) {
                top_square(&alone)
            } else {
                alone
            };
            let square = padded_square(&alone);
            let side = config.side;
            let view = imageops::resize(&square, side, side, FilterType::Triangle);
            if augment { augmented(view, rng) } else { view }
        }
    }
}

/// A random stream for views outside of training.
#[must_use]
pub fn noise(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Each value three times.
pub(crate) fn as_rgb(mask: &GrayImage) -> RgbImage {
    RgbImage::from_fn(mask.width(), mask.height(), |x, y| {
        Rgb([mask.get_pixel(x, y).0[0]; 3])
    })
}

/// The first channel.
pub(crate) fn as_gray(mask: &RgbImage) -> GrayImage {
    GrayImage::from_fn(mask.width(), mask.height(), |x, y| {
        Luma([mask.get_pixel(x, y).0[0]])
    })
}

/// As `CLIPImageProcessor`: bicubic, the longer side rounded down, the middle. Its bytes with
/// [`ImageView::Crop`].
#[must_use]
pub fn clip_view(image: &RgbImage, view: ImageView, side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let shorter = u64::from(width.min(height).max(1));
    let scaled = |length: u32| (u64::from(length) * u64::from(side) / shorter) as u32;
    let (width, height) = match view {
        ImageView::Squash => (side, side),
        ImageView::Crop => (scaled(width).max(side), scaled(height).max(side)),
    };
    let middle = Region {
        x: (width - side) / 2,
        y: (height - side) / 2,
        width: side,
        height: side,
    };
    resize_cropped(image, (width, height), middle)
}

/// The image with random pixels where the mask is black.
fn on_noise(image: &RgbImage, mask: &RgbImage, rng: &mut ChaCha8Rng) -> RgbImage {
    assert_eq!(
        image.dimensions(),
        mask.dimensions(),
        "a mask has the image's size"
    );
    let mut out = image.clone();
    for (pixel, mask) in out.pixels_mut().zip(mask.pixels()) {
        // Always drawn, so that a mask changes no other pixel's noise.
        let random = Rgb([rng.random(), rng.random(), rng.random()]);
        if mask.0[0] < 128 {
            *pixel = random;
        }
    }
    out
}

/// The upper part of an image that is taller than wide. FastComposer first enlarges it, which the
/// resize after this undoes.
fn top_square(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    imageops::crop_imm(image, 0, 0, width, height.min(width)).to_image()
}

/// In the middle of a black square.
fn padded_square(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let side = width.max(height);
    let mut square = RgbImage::new(side, side);
    let (x, y) = ((side - width) / 2, (side - height) / 2);
    imageops::replace(&mut square, image, i64::from(x), i64::from(y));
    square
}

/// Rotation by up to 30 degrees (0.75), colour jitter by up to half (0.5), blur over 5 pixels
/// (0.5), grey (0.1), a flip (0.5) and an elastic deformation (0.5), with these probabilities.
fn augmented(mut image: RgbImage, rng: &mut ChaCha8Rng) -> RgbImage {
    if rng.random_bool(0.75) {
        image = rotated(&image, rng.random_range(-30f32..=30.0).to_radians());
    }
    if rng.random_bool(0.5) {
        jitter(&mut image, rng);
    }
    if rng.random_bool(0.5) {
        image = blurred(&image, rng.random_range(0.1f32..=2.0));
    }
    if rng.random_bool(0.1) {
        for pixel in image.pixels_mut() {
            *pixel = Rgb([clamp(grey(*pixel)); 3]);
        }
    }
    if rng.random_bool(0.5) {
        imageops::flip_horizontal_in_place(&mut image);
    }
    if rng.random_bool(0.5) {
        image = elastic(&image, rng);
    }
    image
}

fn clamp(value: f32) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}

/// Luminance, as torchvision weights it.
fn grey(Rgb([r, g, b]): Rgb<u8>) -> f32 {
    0.2989 * f32::from(r) + 0.587 * f32::from(g) + 0.114 * f32::from(b)
}

/// Bilinear; black outside of the image.
fn sampled(image: &RgbImage, x: f32, y: f32) -> Rgb<u8> {
    let (left, top) = (x.floor(), y.floor());
    let at = |x: f32, y: f32, channel: usize| {
        let inside = x >= 0.0 && y >= 0.0 && x < image.width() as f32 && y < image.height() as f32;
        if inside {
            f32::from(image.get_pixel(x as u32, y as u32).0[channel])
        } else {
            0.0
        }
    };
    let (dx, dy) = (x - left, y - top);
    Rgb([0, 1, 2].map(|channel| {
        let upper = at(left, top, channel) * (1.0 - dx) + at(left + 1.0, top, channel) * dx;
        let lower =
            at(left, top + 1.0, channel) * (1.0 - dx) + at(left + 1.0, top + 1.0, channel) * dx;
        clamp(upper * (1.0 - dy) + lower * dy)
    }))
}

fn rotated(image: &RgbImage, angle: f32) -> RgbImage {
    let (width, height) = image.dimensions();
    let (cx, cy) = ((width as f32 - 1.0) / 2.0, (height as f32 - 1.0) / 2.0);
    let (sine, cosine) = angle.sin_cos();
    RgbImage::from_fn(width, height, |x, y| {
        let (dx, dy) = (x as f32 - cx, y as f32 - cy);
        sampled(
            image,
            cx + dx * cosine - dy * sine,
            cy + dx * sine + dy * cosine,
        )
    })
}

/// Brightness, contrast, saturation (each by 0.5 to 1.5) and hue (any), in random order.
fn jitter(image: &mut RgbImage, rng: &mut ChaCha8Rng) {
    let mut order = [0, 1, 2, 3];
    order.shuffle(rng);
    let factors = [0; 3].map(|_: u8| rng.random_range(0.5f32..=1.5));
    let turn = rng.random_range(-0.5f32..=0.5);
    for step in order {
        let blend = |pixel: Rgb<u8>, other: f32, factor: f32| {
            Rgb(pixel
                .0
                .map(|value| clamp(f32::from(value) * factor + other * (1.0 - factor))))
        };
        let mean = image
            .pixels()
            .map(|pixel| f64::from(grey(*pixel)))
            .sum::<f64>()
            / f64::from((image.width() * image.height()).max(1));
        for pixel in image.pixels_mut() {
            *pixel = match step {
                0 => blend(*pixel, 0.0, factors[0]),
                1 => blend(*pixel, mean as f32, factors[1]),
                2 => blend(*pixel, grey(*pixel), factors[2]),
                _ => turned(*pixel, turn),
            };
        }
    }
}

/// The colour with its hue turned by a fraction of the circle.
fn turned(Rgb(channels): Rgb<u8>, turn: f32) -> Rgb<u8> {
    let [r, g, b] = channels.map(|it| f32::from(it) / 255.0);
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let range = most - least;
    if range == 0.0 {
        return Rgb(channels);
    }
    let sector = if most == r {
        (g - b) / range
    } else if most == g {
        2.0 + (b - r) / range
    } else {
        4.0 + (r - g) / range
    };
    let hue = (sector / 6.0 + turn).rem_euclid(1.0) * 6.0;
    let channel = |n: f32| {
        let k = (n + hue).rem_euclid(6.0);
        most - range * k.min(4.0 - k).clamp(0.0, 1.0)
    };
    Rgb([channel(5.0), channel(3.0), channel(1.0)].map(|it| clamp(it * 255.0)))
}

/// Weights of a Gaussian over an odd number of positions.
fn gaussian(count: usize, sigma: f32) -> Vec<f32> {
    let middle = (count / 2) as f32;
    let weights: Vec<f32> = (0..count)
        .map(|i| (-0.5 * ((i as f32 - middle) / sigma).powi(2)).exp())
        .collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// A plane of `width` columns, filtered along rows and columns with reflected edges.
fn filtered(plane: &[f32], width: usize, weights: &[f32]) -> Vec<f32> {
    let height = plane.len() / width;
    let half = (weights.len() / 2) as i64;
    let reflect = |i: i64, length: usize| {
        let last = length as i64 - 1;
        let i = i.abs();
        (if i > last { 2 * last - i } else { i }).clamp(0, last) as usize
    };
    let along = |source: &[f32], horizontal: bool| -> Vec<f32> {
        (0..plane.len())
            .map(|index| {
                let (x, y) = ((index % width) as i64, (index / width) as i64);
                let taps = weights.iter().zip(-half..);
                taps.map(|(weight, offset)| {
                    let (x, y) = if horizontal {
                        (reflect(x + offset, width), y as usize)
                    } else {
                        (x as usize, reflect(y + offset, height))
                    };
                    weight * source[y * width + x]
                })
                .sum()
            })
            .collect()
    };
    along(&along(plane, true), false)
}

fn blurred(image: &RgbImage, sigma: f32) -> RgbImage {
    let weights = gaussian(5, sigma);
    let width = image.width() as usize;
    let planes = [0, 1, 2].map(|channel| {
        let plane: Vec<f32> = image.pixels().map(|it| f32::from(it.0[channel])).collect();
        filtered(&plane, width, &weights)
    });
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let index = y as usize * width + x as usize;
        Rgb([0, 1, 2].map(|channel| clamp(planes[channel][index])))
    })
}

/// torchvision's `ElasticTransform` with its defaults: random displacements, smoothed over 5
/// pixels and scaled by 50.
fn elastic(image: &RgbImage, rng: &mut ChaCha8Rng) -> RgbImage {
    let (alpha, sigma) = (50.0f32, 5.0f32);
    let (width, height) = image.dimensions();
    // As torchvision: 8 sigma, made odd.
    let weights = gaussian((8.0 * sigma) as usize + 1, sigma);
    let mut field = || {
        let values: Vec<f32> = (0..width * height)
            .map(|_| rng.random_range(-1f32..=1.0))
            .collect();
        filtered(&values, width as usize, &weights)
    };
    let (dx, dy) = (field(), field());
    RgbImage::from_fn(width, height, |x, y| {
        let index = (y * width + x) as usize;
        // The field is a fraction of half the side, and half of it is a pixel's distance.
        let (sx, sy) = (dx[index] * alpha / 2.0, dy[index] * alpha / 2.0);
        sampled(image, x as f32 + sx, y as f32 + sy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([x as u8 * 2, y as u8 * 2, 90]))
    }

    #[test]
    fn the_middle_of_the_shorter_side_or_the_whole_is_shown() {
        let image = gradient(60, 120);
        let crop = clip_view(&image, ImageView::Crop, 30);
        assert_eq!(crop.dimensions(), (30, 30));
        // Rows 30 to 90 of 120.
        assert!(
            crop.get_pixel(15, 0).0[1].abs_diff(61) < 4,
            "{:?}",
            crop.get_pixel(15, 0)
        );
        let squash = clip_view(&image, ImageView::Squash, 30);
        assert!(squash.get_pixel(15, 0).0[1] < 8 && squash.get_pixel(15, 29).0[1] > 230);
    }

    #[test]
    fn an_object_without_augmentation_is_its_figure_on_noise_in_a_black_square() {
        let (image, mut mask) = (gradient(20, 40), RgbImage::new(20, 40));
        for y in 10..40 {
            for x in 5..15 {
                mask.put_pixel(x, y, Rgb([255; 3]));
            }
        }
        let config = ViewConfig {
            kind: ViewKind::Object {
                augment: false,
                keep: 1.0,
            },
            side: 40,
        };
        let view = view_of(config, &image, Some(&mask), &mut noise(1));
        assert_eq!(
            view.get_pixel(2, 20),
            &Rgb([0; 3]),
            "the square's black side"
        );
        assert_eq!(
            view.get_pixel(20, 20),
            image.get_pixel(10, 20),
            "the figure"
        );
        assert_ne!(view.get_pixel(20, 3), image.get_pixel(10, 3), "noise");
        assert_eq!(view, view_of(config, &image, Some(&mask), &mut noise(1)));
        assert_ne!(view, view_of(config, &image, Some(&mask), &mut noise(2)));
    }

    #[test]
    fn augmentations_change_the_view_and_repeat_with_their_seed() {
        let config = ViewConfig {
            kind: ViewKind::Object {
                augment: true,
                keep: 1.0,
            },
            side: 32,
        };
        let image = gradient(30, 60);
        let view = |seed| view_of(config, &image, None, &mut noise(seed));
        let views: std::collections::BTreeSet<Vec<u8>> =
            (0..20).map(|seed| view(seed).into_raw()).collect();
        assert!(views.len() > 18);
        assert_eq!(view(3), view(3));
        let same = |a: &RgbImage, b: &RgbImage| {
            let pairs = a.as_raw().iter().zip(b.as_raw());
            pairs.map(|(a, b)| a.abs_diff(*b)).max()
        };
        assert_eq!(same(&rotated(&image, 0.0), &image), Some(0));
        let turned_fully = RgbImage::from_fn(30, 60, |x, y| turned(*image.get_pixel(x, y), 1.0));
        assert!(same(&turned_fully, &image) <= Some(1));
        assert_eq!(turned(Rgb([255, 0, 0]), 1.0 / 3.0), Rgb([0, 255, 0]));
        let flat = RgbImage::from_pixel(9, 9, Rgb([40, 80, 120]));
        assert_eq!(blurred(&flat, 1.0), flat);
    }
}
