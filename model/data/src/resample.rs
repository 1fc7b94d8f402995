//! Resizing with the bytes of Pillow's `Image.resize`: BICUBIC, which `CLIPImageProcessor` of
//! `transformers` uses, and BILINEAR, which `facenet-pytorch` uses. Scores that compare images
//! through CLIP differ by 1e-3 between resamplers, so a near one will not do. Pure.
//!
//! As `src/libImaging/Resample.c` of Pillow: coefficients in fp64, rounded to whole numbers of 22
//! binary digits after the point; first along rows, then along columns, rounded to bytes between.
//! Since version 13 Pillow shrinks columns first if an image is over twice as high as wide, or if
//! its height shrinks much more than its width, which changes single bytes by 1. That is not done
//! here: no older release does it, and images of models are not so high.

use crate::image_file::Region;
use image::RgbImage;
use std::ops::Range;

/// Binary digits of a coefficient after the point: 32 bits less 8 of a byte and 2 for the sum.
const PRECISION: u32 = 32 - 8 - 2;

#[derive(Debug, Clone, Copy)]
enum Filter {
    Bilinear,
    Bicubic,
}

/// The source pixels of one target pixel with their coefficients.
struct Window {
    first: usize,
    coefficients: Vec<i32>,
}

/// Resizes to exactly this size. When shrinking, the filter is as wide as a target pixel
/// (antialiasing). Equal pixels give equal pixels on every CPU.
///
/// # Panics
/// A side of length zero.
#[must_use]
pub fn resize_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    resize_cropped(image, (width, height), Region::whole(width, height))
}

/// The same with Pillow's bilinear filter.
///
/// # Panics
/// A side of length zero.
#[must_use]
pub fn resize_bilinear(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let region = Region::whole(width, height);
    resize(image, (width, height), region, Filter::Bilinear)
}

/// A region of the image resized to `size`, bicubic; the rest is not computed, so that a long image
/// costs no more than a square one.
///
/// # Panics
/// A side of length zero, or a region outside of `size`.
#[must_use]
pub fn resize_cropped(image: &RgbImage, size: (u32, u32), region: Region) -> RgbImage {
    resize(image, size, region, Filter::Bicubic)
}

fn resize(image: &RgbImage, size: (u32, u32), region: Region, filter: Filter) -> RgbImage {
    let (from_width, from_height) = image.dimensions();
    let columns = region.x..region.x + region.width;
    let columns = windows(from_width, size.0, columns, filter);
    let rows = windows(from_height, size.1, region.y..region.bottom(), filter);
    let top = rows.first().map_or(0, |it| it.first);
    let bottom = rows.last().map_or(0, |it| it.first + it.coefficients.len());
    let stride = 3 * from_width as usize;
    let wide = along_rows(
        &image.as_raw()[top * stride..bottom * stride],
        stride,
        &columns,
    );
    let bytes = along_columns(&wide, 3 * columns.len(), top, &rows);
    RgbImage::from_raw(region.width, region.height, bytes).expect("three bytes for each pixel")
}

fn along_rows(bytes: &[u8], stride: usize, windows: &[Window]) -> Vec<u8> {
    let rows = bytes.chunks_exact(stride);
    let mut wide = Vec::with_capacity(3 * windows.len() * rows.len());
    for row in rows {
        for window in windows {
            let mut sums = [1i32 << (PRECISION - 1); 3];
            let pixels = row[3 * window.first..].chunks_exact(3);
            for (pixel, coefficient) in pixels.zip(&window.coefficients) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * coefficient;
                }
            }
            wide.extend(sums.map(byte));
        }
    }
    wide
}

/// `bytes` begin with row `top` of the source.
fn along_columns(bytes: &[u8], stride: usize, top: usize, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(stride * windows.len());
    let mut sums = vec![0i32; stride];
    for window in windows {
        sums.fill(1 << (PRECISION - 1));
        let rows = bytes[stride * (window.first - top)..].chunks_exact(stride);
        for (row, coefficient) in rows.zip(&window.coefficients) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * coefficient;
            }
        }
        out.extend(sums.iter().copied().map(byte));
    }
    out
}

fn byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// One window for each target pixel of a range. With `from == to` each is the pixel itself.
fn windows(from: u32, to: u32, range: Range<u32>, filter: Filter) -> Vec<Window> {
    assert!(
        from > 0 && !range.is_empty() && range.end <= to,
        "pixels {range:?} of {from} pixels resized to {to}"
    );
    let scale = f64::from(from) / f64::from(to);
    // Enlarging interpolates between neighbours; shrinking averages.
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    range
        .map(|index| {
            let centre = (f64::from(index) + 0.5) * scale;
            // Truncation, as Pillow's conversion to int.
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(from as usize);
            let weights: Vec<f64> = (first..last)
                .map(|at| filter.weight((at as f64 - centre + 0.5) * (1.0 / filter_scale)))
                .collect();
            let sum: f64 = weights.iter().sum();
            let inverse = if sum == 0.0 { 1.0 } else { 1.0 / sum };
            let rounded = weights.iter().map(|weight| {
                let scaled = weight * inverse * f64::from(1u32 << PRECISION);
                (if scaled < 0.0 {
                    scaled - 0.5
                } else {
                    scaled + 0.5
                }) as i32
            });
            Window {
                first,
                coefficients: rounded.collect(),
            }
        })
        .collect()
}

impl Filter {
    /// Half its width, in pixels of the source when nothing is shrunk.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        // Keys' cubic convolution.
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bicubic => 0.0,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use image::Rgb;
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    /// Pixels that both sides compute: no two neighbours are alike.
    fn noise(width: u32, height: u32) -> RgbImage {
        let mut state = width.wrapping_mul(0x9e37_79b9) ^ height;
        RgbImage::from_fn(width, height, |_, _| {
            Rgb([0; 3].map(|_: u8| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }))
        })
    }

    /// SHA-256 of the pixels that Pillow makes of the same images, and the first of them; recorded
    /// by `tests/parity/resample.py`.
    #[test]
    fn the_bytes_are_pillow_s() {
        let text = include_str!("../../../tests/golden/resample.json");
        let cases: Value = serde_json::from_str(text).unwrap();
        let cases = cases["cases"].as_array().unwrap();
        assert!(cases.len() >= 24);
        for case in cases {
            let side = |name: &str| case[name].as_u64().unwrap() as u32;
            let image = noise(side("from_width"), side("from_height"));
            let resize = match case["filter"].as_str().unwrap() {
                "bicubic" => resize_bicubic,
                "bilinear" => resize_bilinear,
                other => panic!("{other}"),
            };
            let resized = resize(&image, side("width"), side("height"));
            let first: Vec<u8> = serde_json::from_value(case["first"].clone()).unwrap();
            assert_eq!(resized.as_raw()[..first.len()], first, "{case}");
            let digest = proto::text::hex(&Sha256::digest(resized.as_raw()));
            assert_eq!(case["sha256"], digest.as_str(), "{case}");
        }
    }

    #[test]
    fn a_region_is_cut_out_of_the_whole() {
        let image = noise(90, 40);
        let whole = resize_bicubic(&image, 50, 60);
        let region = Region {
            x: 13,
            y: 31,
            width: 20,
            height: 9,
        };
        let part = resize_cropped(&image, (50, 60), region);
        assert_eq!(part, crate::image_file::crop(&whole, region));
        // Resized as a whole this would take 9 GB.
        let long = noise(1, 20_000);
        let region = Region {
            x: 0,
            y: 2_000_000,
            width: 150,
            height: 150,
        };
        let part = resize_cropped(&long, (150, 3_000_000), region);
        assert_eq!(part.dimensions(), (150, 150));
    }

    #[test]
    fn an_image_of_one_colour_stays_so_and_an_edge_overshoots() {
        let flat = RgbImage::from_pixel(37, 5, Rgb([9, 200, 255]));
        for (width, height) in [(1, 1), (37, 5), (64, 64), (36, 6)] {
            let resized = resize_bicubic(&flat, width, height);
            assert!(resized.pixels().all(|it| it.0 == [9, 200, 255]));
        }
        let edge = RgbImage::from_fn(8, 1, |x, _| Rgb([if x < 4 { 50 } else { 200 }; 3]));
        let values: Vec<u8> = resize_bicubic(&edge, 16, 1)
            .pixels()
            .map(|it| it.0[0])
            .collect();
        assert!(values.iter().any(|it| *it < 50) && values.iter().any(|it| *it > 200));
    }
}
