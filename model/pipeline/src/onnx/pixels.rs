//! Images as the references of models resize them: Pillow's filters, and OpenCV's and PyTorch's
//! bilinear interpolation, which does not average where it shrinks.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};
use image::{GrayImage, RgbImage};

/// Pillow's `LANCZOS`.
pub(crate) fn lanczos(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    rgb(image, (width, height), FilterType::Lanczos3)
}

/// Pillow's `BICUBIC`.
pub(crate) fn cubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    rgb(image, (width, height), FilterType::CatmullRom)
}

fn rgb(image: &RgbImage, size: (u32, u32), filter: FilterType) -> RgbImage {
    let mut resized = RgbImage::new(size.0, size.1);
    convolve::<U8x3>(image.dimensions(), image, size, &mut resized, filter);
    resized
}

/// Pillow's `LANCZOS` of a greyscale image.
pub(crate) fn lanczos_gray(image: &GrayImage, width: u32, height: u32) -> GrayImage {
    let mut resized = GrayImage::new(width, height);
    let (from, to) = (image.dimensions(), (width, height));
    convolve::<U8>(from, image, to, &mut resized, FilterType::Lanczos3);
    resized
}

fn convolve<P: PixelTrait>(
    (width, height): (u32, u32),
    source: &[u8],
    (new_width, new_height): (u32, u32),
    target: &mut [u8],
    filter: FilterType,
) {
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
    let source = TypedImageRef::<P>::from_buffer(width, height, source);
    let target = TypedImage::<P>::from_buffer(new_width, new_height, target);
    let (source, mut target) = source
        .and_then(|source| Ok((source, target?)))
        .expect("an image has the bytes of its pixels");
    Resizer::new()
        .resize_typed(&source, &mut target, &options)
        .expect("the region is the whole image");
}

/// Red, green and blue, each row by row, from 0 to 255.
pub(crate) fn planes(image: &RgbImage) -> [Vec<f32>; 3] {
    [0, 1, 2].map(|channel| image.pixels().map(|it| f32::from(it.0[channel])).collect())
}

/// Bilinear interpolation of a plane; centres of pixels are at halves.
pub(crate) fn bilinear(
    plane: &[f32],
    (width, height): (usize, usize),
    (new_width, new_height): (usize, usize),
) -> Vec<f32> {
    if (width, height) == (new_width, new_height) {
        return plane.to_vec();
    }
    let columns = neighbours(width, new_width);
    let mut resized = Vec::with_capacity(new_width * new_height);
    for (top, bottom, down) in neighbours(height, new_height) {
        let (top, bottom) = (&plane[top * width..], &plane[bottom * width..]);
        for (left, right, along) in &columns {
            let (left, right) = (*left, *right);
            let above = top[left] + (top[right] - top[left]) * along;
            let below = bottom[left] + (bottom[right] - bottom[left]) * along;
            resized.push(above + (below - above) * down);
        }
    }
    resized
}

/// For each new position the two old ones around it, and how far it is from the first.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // Sides of images are exact in f32, and positions are inside.
fn neighbours(size: usize, new_size: usize) -> Vec<(usize, usize, f32)> {
    let scale = size as f32 / new_size as f32;
    let last = size - 1;
    let each = (0..new_size).map(|index| {
        let position = ((index as f32 + 0.5) * scale - 0.5).max(0.0);
        let first = (position as usize).min(last);
        (first, (first + 1).min(last), position - first as f32)
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.nn.functional.interpolate(x, mode="bilinear")` of `[[0, 1], [2, 3]]`.
    #[test]
    fn bilinear_is_that_of_pytorch() {
        let plane = [0.0, 1.0, 2.0, 3.0];
        let found = bilinear(&plane, (2, 2), (4, 4));
        let rows = [0.0, 0.5, 1.5, 2.0];
        let columns = [0.0, 0.25, 0.75, 1.0];
        let expected: Vec<f32> = rows
            .iter()
            .flat_map(|row| columns.iter().map(move |column| row + column))
            .collect();
        assert_eq!(found, expected);
        // It does not average: every second pixel of a line, between two.
        let line: Vec<f32> = [0.0, 0.0, 9.0, 0.0, 0.0, 0.0].to_vec();
        assert_eq!(bilinear(&line, (6, 1), (2, 1)), [0.0, 0.0]);
        assert_eq!(bilinear(&line, (6, 1), (6, 1)), line);
    }

    #[test]
    fn planes_are_in_the_order_of_colours() {
        let image = RgbImage::from_fn(2, 1, |x, _| image::Rgb([x as u8, 10, 20]));
        assert_eq!(planes(&image), [[0.0, 1.0], [10.0, 10.0], [20.0, 20.0]]);
        assert_eq!(lanczos(&image, 4, 4).get_pixel(2, 3).0[1..], [10, 20]);
        assert_eq!(cubic(&image, 3, 2).get_pixel(0, 0).0[1..], [10, 20]);
    }
}
