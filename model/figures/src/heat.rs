//! A map of numbers laid over a picture, for people: dark where it is least, bright where it is
//! most. Pure pixels.

use image::imageops::FilterType;
use image::{ImageBuffer, Luma, Rgb, RgbImage};

/// Share of the map in the mixture; the rest is the picture.
const COVER: f32 = 0.6;
/// From least to most.
const RAMP: [[f32; 3]; 4] = [
    [20.0, 16.0, 60.0],
    [130.0, 30.0, 110.0],
    [235.0, 95.0, 50.0],
    [252.0, 240.0, 140.0],
];

/// `values` are rows of `width` numbers; they are stretched over the picture, and from their least
/// to their most over the colours.
#[must_use]
pub fn overlay(image: &RgbImage, values: &[f32], width: u32) -> RgbImage {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = if most > least { most - least } else { 1.0 };
    let scaled = values.iter().map(|value| (value - least) / range).collect();
    let height = values.len() as u32 / width.max(1);
    let Some(map) = ImageBuffer::<Luma<f32>, Vec<f32>>::from_raw(width, height, scaled) else {
        return image.clone();
    };
    let (across, down) = image.dimensions();
    let map = image::imageops::resize(&map, across, down, FilterType::Triangle);
    RgbImage::from_fn(across, down, |x, y| {
        let heat = colour(map.get_pixel(x, y).0[0]);
        let under = image.get_pixel(x, y).0;
        let mixed = |i: usize| heat[i] * COVER + f32::from(under[i]) * (1.0 - COVER);
        Rgb([mixed(0) as u8, mixed(1) as u8, mixed(2) as u8])
    })
}

fn colour(share: f32) -> [f32; 3] {
    let at = share.clamp(0.0, 1.0) * (RAMP.len() - 1) as f32;
    let low = (at as usize).min(RAMP.len() - 2);
    let (from, to, part) = (RAMP[low], RAMP[low + 1], at - low as f32);
    std::array::from_fn(|i| from[i] + (to[i] - from[i]) * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brightest_place_is_where_the_map_is_most() {
        let image = RgbImage::from_pixel(8, 8, Rgb([100, 100, 100]));
        let out = overlay(&image, &[0.1, 0.1, 0.1, 0.4], 2);
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
        // The same everywhere: dark, not a division by zero.
        let flat = overlay(&image, &[0.5; 4], 2);
        assert_eq!(flat.get_pixel(7, 7), out.get_pixel(0, 0));
    }
}
