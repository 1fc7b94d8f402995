//! Overlays a heat map on an image: dark at the minimum of a scale, bright at its maximum.

use image::imageops::FilterType;
use image::{ImageBuffer, Luma, Rgb, RgbImage};

/// Weight of the heat map in the blend; the rest is the image.
const MAP_WEIGHT: f32 = 0.6;
/// Colours from minimum to maximum.
const RAMP: [[f32; 3]; 4] = [
    [20.0, 16.0, 60.0],
    [130.0, 30.0, 110.0],
    [235.0, 95.0, 50.0],
    [252.0, 240.0, 140.0],
];

/// The values that are dark and bright.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    pub dark: f32,
    pub bright: f32,
}

impl Scale {
    /// From the smallest to the largest of these values. Maps that share a scale can be compared.
    pub fn of(values: impl Iterator<Item = f32>) -> Self {
        let empty = Self {
            dark: f32::INFINITY,
            bright: f32::NEG_INFINITY,
        };
        values.fold(empty, |scale, value| Self {
            dark: scale.dark.min(value),
            bright: scale.bright.max(value),
        })
    }
}

/// `values` are rows of `width` numbers. They are scaled to the size of the image, and the range of
/// `scale` to the range of colours.
#[must_use]
pub fn overlay(image: &RgbImage, values: &[f32], width: u32, scale: Scale) -> RgbImage {
    let range = if scale.bright > scale.dark {
        scale.bright - scale.dark
    } else {
        1.0
    };
    let scaled = values
        .iter()
        .map(|value| (value - scale.dark) / range)
        .collect();
    let height = values.len() as u32 / width.max(1);
    let Some(map) = ImageBuffer::<Luma<f32>, Vec<f32>>::from_raw(width, height, scaled) else {
        return image.clone();
    };
    let (image_width, image_height) = image.dimensions();
    let map = image::imageops::resize(&map, image_width, image_height, FilterType::Triangle);
    RgbImage::from_fn(image_width, image_height, |x, y| {
        let heat = colour(map.get_pixel(x, y).0[0]);
        let under = image.get_pixel(x, y).0;
        let mixed = |i: usize| heat[i] * MAP_WEIGHT + f32::from(under[i]) * (1.0 - MAP_WEIGHT);
        Rgb([mixed(0) as u8, mixed(1) as u8, mixed(2) as u8])
    })
}

fn colour(fraction: f32) -> [f32; 3] {
    let scaled = fraction.clamp(0.0, 1.0) * (RAMP.len() - 1) as f32;
    let low = (scaled as usize).min(RAMP.len() - 2);
    let (from, to, weight) = (RAMP[low], RAMP[low + 1], scaled - low as f32);
    std::array::from_fn(|i| from[i] + (to[i] - from[i]) * weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brightest_pixel_is_at_the_maximum_of_the_map() {
        let image = RgbImage::from_pixel(8, 8, Rgb([100, 100, 100]));
        let own = |values: &[f32]| overlay(&image, values, 2, Scale::of(values.iter().copied()));
        let out = own(&[0.1, 0.1, 0.1, 0.4]);
        let bright = |x, y| {
            out.get_pixel(x, y)
                .0
                .iter()
                .map(|v| u32::from(*v))
                .sum::<u32>()
        };
        assert_eq!(out.dimensions(), (8, 8));
        assert!(
            bright(7, 7) > 2 * bright(0, 0),
            "{} {}",
            bright(7, 7),
            bright(0, 0)
        );
        assert_eq!(bright(0, 0), bright(0, 1));
        // A constant map is dark; no division by zero.
        let flat = own(&[0.5; 4]);
        assert_eq!(flat.get_pixel(7, 7), out.get_pixel(0, 0));
        // On a wider scale the same map is less bright.
        let wide = Scale {
            dark: 0.1,
            bright: 0.9,
        };
        let compared = overlay(&image, &[0.1, 0.1, 0.1, 0.4], 2, wide);
        assert_eq!(compared.get_pixel(0, 0), out.get_pixel(0, 0));
        assert!(compared.get_pixel(7, 7).0[0] < out.get_pixel(7, 7).0[0]);
    }
}
