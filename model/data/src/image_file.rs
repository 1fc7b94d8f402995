//! Pixel operations: boxes, resizing, encoding, and pasting an image on a square of one colour
//! (notes 1.2, rows A.4). Deterministic: no choices and no random numbers here. Used by prepare,
//! the import and the verifier.

use bytes::Bytes;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, GrayImage, ImageFormat, Rgb, RgbImage};

/// Largest file of an image or a mask that is read: by the import, by the command that stores a
/// user's image, and by ranks. No image of the largest size that is decoded needs more.
pub const IMAGE_FILE_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("the {what} cannot be decoded as PNG, JPEG or WebP: {reason}")]
    Decode { what: &'static str, reason: String },
    #[error("the {what} is {found_width}x{found_height} pixels, the row says {width}x{height}")]
    Size {
        what: &'static str,
        found_width: u32,
        found_height: u32,
        width: u32,
        height: u32,
    },
    #[error("the {what} is cut off: {reason}")]
    Cut { what: &'static str, reason: String },
    #[error(
        "the mask is {}x{} pixels, the image is {}x{}{}",
        found.0, found.1, size.0, size.1,
        if *turned { " after it was turned upright; turn the mask, too" } else { "" }
    )]
    MaskSize {
        found: (u32, u32),
        size: (u32, u32),
        /// The mask has the size of the image before it was turned.
        turned: bool,
    },
    #[error(
        "there is no mask: give a mask file, or an image with an alpha channel that hides the \
         background"
    )]
    NoMask,
    #[error("the {what} {reason}")]
    Mask { what: &'static str, reason: String },
    #[error("the image cannot be encoded as PNG: {reason}")]
    Encode { reason: String },
}

impl ImageError {
    /// The file that it is about: "mask", or what the caller calls the image.
    #[must_use]
    pub fn file(&self) -> &'static str {
        match self {
            Self::Decode { what, .. }
            | Self::Cut { what, .. }
            | Self::Size { what, .. }
            | Self::Mask { what, .. } => what,
            Self::MaskSize { .. } => "mask",
            Self::NoMask | Self::Encode { .. } => "image",
        }
    }
}

/// Converts to RGB. An image with alpha is composited over `background`.
#[must_use]
pub fn flatten(image: DynamicImage, background: Rgb<u8>) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let mut flat = RgbImage::new(rgba.width(), rgba.height());
    for (target, source) in flat.chunks_exact_mut(3).zip(rgba.chunks_exact(4)) {
        for (channel, value) in target.iter_mut().enumerate() {
            *value = blend(source[channel], background.0[channel], source[3]);
        }
    }
    flat
}

/// PNG bytes of an RGB image. Equal pixels give equal bytes.
///
/// # Errors
/// Only when memory runs out.
pub fn encode_rgb(image: RgbImage) -> Result<Bytes, ImageError> {
    encode(&DynamicImage::ImageRgb8(image))
}

/// PNG bytes of a greyscale image.
///
/// # Errors
/// Only when memory runs out.
pub fn encode_gray(image: GrayImage) -> Result<Bytes, ImageError> {
    encode(&DynamicImage::ImageLuma8(image))
}

fn encode(image: &DynamicImage) -> Result<Bytes, ImageError> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|e| ImageError::Encode {
            reason: e.to_string(),
        })?;
    Ok(bytes.into_inner().into())
}

/// A non-empty pixel box inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

impl Region {
    #[must_use]
    pub fn whole(width: u32, height: u32) -> Self {
        Self {
            x: 0,
            y: 0,
            width,
            height,
        }
    }

    /// The pixels from (left, top) to (right, bottom), rounded, clipped to the image, at least one
    /// pixel.
    #[must_use]
    pub fn clipped(left: f64, top: f64, right: f64, bottom: f64, width: u32, height: u32) -> Self {
        let low = |v: f64, side: u32| (v.round().max(0.0) as u32).min(side - 1);
        let high = |v: f64, low: u32, side: u32| (v.round().max(0.0) as u32).clamp(low + 1, side);
        let (x, y) = (low(left, width), low(top, height));
        Self {
            x,
            y,
            width: high(right, x, width) - x,
            height: high(bottom, y, height) - y,
        }
    }

    /// First row below the region.
    #[must_use]
    pub fn bottom(&self) -> u32 {
        self.y + self.height
    }

    /// The intersection of two regions, if it is not empty.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let right = (self.x + self.width).min(other.x + other.width);
        let bottom = self.bottom().min(other.bottom());
        (right > x && bottom > y).then(|| Self {
            x,
            y,
            width: right - x,
            height: bottom - y,
        })
    }
}

/// Converts a normalised (centre x, centre y, width, height) box to pixels of an image of this
/// size.
#[must_use]
pub fn face_region(bbox: [f64; 4], enlargement: f64, width: u32, height: u32) -> Region {
    let [cx, cy, w, h] = bbox;
    let (w_px, h_px) = (f64::from(width), f64::from(height));
    let (half_w, half_h) = (w * enlargement / 2.0, h * enlargement / 2.0);
    Region::clipped(
        (cx - half_w) * w_px,
        (cy - half_h) * h_px,
        (cx + half_w) * w_px,
        (cy + half_h) * h_px,
        width,
        height,
    )
}

/// The bounding box of all mask pixels of at least 128. None for an empty mask.
#[must_use]
pub fn mask_region(mask: &GrayImage) -> Option<Region> {
    let width = mask.width() as usize;
    let (mut left, mut right, mut top, mut bottom) = (width, 0, usize::MAX, 0);
    for (y, row) in mask.as_raw().chunks_exact(width.max(1)).enumerate() {
        let Some(first) = row.iter().position(|v| *v >= 128) else {
            continue;
        };
        let last = row.iter().rposition(|v| *v >= 128).unwrap_or(first);
        left = left.min(first);
        right = right.max(last + 1);
        top = top.min(y);
        bottom = y + 1;
    }
    (right > left).then(|| Region {
        x: left as u32,
        y: top as u32,
        width: (right - left) as u32,
        height: (bottom - top) as u32,
    })
}

/// Copies the pixels of a region.
#[must_use]
pub fn crop(image: &RgbImage, region: Region) -> RgbImage {
    let mut out = RgbImage::new(region.width, region.height);
    let (source_stride, row_bytes) = (image.width() as usize * 3, region.width as usize * 3);
    for (y, row) in out.chunks_exact_mut(row_bytes).enumerate() {
        let start = (region.y as usize + y) * source_stride + region.x as usize * 3;
        row.copy_from_slice(&image.as_raw()[start..start + row_bytes]);
    }
    out
}

/// Fills a region with one colour.
pub fn fill(image: &mut RgbImage, region: Region, colour: Rgb<u8>) {
    for y in region.y..region.bottom() {
        for x in region.x..region.x + region.width {
            image.put_pixel(x, y, colour);
        }
    }
}

/// Replaces the background by one colour, blended at the edge of the mask.
pub fn replace_background(image: &mut RgbImage, mask: &GrayImage, colour: Rgb<u8>) {
    for (pixel, alpha) in image.chunks_exact_mut(3).zip(mask.as_raw()) {
        for (value, pad) in pixel.iter_mut().zip(colour.0) {
            *value = blend(*value, pad, *alpha);
        }
    }
}

/// Relative position in the free space: 0 is left or top, 1 is right or bottom.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Along {
    pub x: f64,
    pub y: f64,
}

impl Along {
    pub const MIDDLE: Self = Self { x: 0.5, y: 0.5 };
}

/// Fits an image of `width` x `height` into a square of `side`: the longer side fills `scale` of
/// it, and `along` is the position in the free space.
#[must_use]
pub fn place(width: u32, height: u32, side: u32, scale: f64, along: Along) -> Region {
    let longest = f64::from(width.max(height));
    let factor = f64::from(side) * scale / longest;
    let fit = |length: u32| ((f64::from(length) * factor).round() as u32).clamp(1, side);
    let (w, h) = (fit(width), fit(height));
    let offset = |free: u32, fraction: f64| (f64::from(free) * fraction).round() as u32;
    Region {
        x: offset(side - w, along.x),
        y: offset(side - h, along.y),
        width: w,
        height: h,
    }
}

/// Resizes an image to `region` and pastes it on a square of one colour.
#[must_use]
pub fn on_pad(image: RgbImage, region: Region, side: u32, colour: Rgb<u8>) -> RgbImage {
    let resized = resize(image, region.width, region.height);
    if (region.width, region.height) == (side, side) {
        return resized;
    }
    let mut canvas = RgbImage::from_pixel(side, side, colour);
    let (row_bytes, side_bytes) = (region.width as usize * 3, side as usize * 3);
    for (y, row) in resized.chunks_exact(row_bytes).enumerate() {
        let start = (region.y as usize + y) * side_bytes + region.x as usize * 3;
        canvas.as_flat_samples_mut().as_mut_slice()[start..start + row_bytes].copy_from_slice(row);
    }
    canvas
}

/// Resizes to exactly this size; area-averaged when shrinking. Equal pixels give equal pixels on
/// every CPU (law 2): the sums are of whole numbers, with SIMD or without.
#[must_use]
pub fn resize(image: RgbImage, width: u32, height: u32) -> RgbImage {
    if image.dimensions() == (width, height) {
        return image;
    }
    resize_with(&mut Resizer::new(), &image, width, height)
}

fn resize_with(resizer: &mut Resizer, image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let mut resized = RgbImage::new(width, height);
    let triangle = ResizeAlg::Convolution(FilterType::Bilinear);
    let options = ResizeOptions::new().resize_alg(triangle);
    let source = TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw());
    let target = TypedImage::<U8x3>::from_buffer(width, height, &mut resized);
    let (source, mut target) = source
        .and_then(|source| Ok((source, target?)))
        .expect("an image has three bytes for each of its pixels");
    resizer
        .resize_typed(&source, &mut target, &options)
        .expect("the region is the whole image");
    resized
}

/// 255 inside the region, 0 outside.
#[must_use]
pub fn region_mask(side: u32, region: Region) -> GrayImage {
    let mut mask = GrayImage::new(side, side);
    for row in mask
        .chunks_exact_mut(side as usize)
        .skip(region.y as usize)
        .take(region.height as usize)
    {
        row[region.x as usize..(region.x + region.width) as usize].fill(255);
    }
    mask
}

fn blend(over: u8, under: u8, alpha: u8) -> u8 {
    let alpha = u32::from(alpha);
    ((u32::from(over) * alpha + u32::from(under) * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use fast_image_resize::CpuExtensions;

    #[test]
    fn faces_are_enlarged_around_their_centre_and_clipped() {
        let face = face_region([0.5, 0.5, 0.2, 0.1], 1.0, 100, 200);
        assert_eq!(
            face,
            Region {
                x: 40,
                y: 90,
                width: 20,
                height: 20
            }
        );
        let larger = face_region([0.5, 0.5, 0.2, 0.1], 2.0, 100, 200);
        assert_eq!(
            larger,
            Region {
                x: 30,
                y: 80,
                width: 40,
                height: 40
            }
        );
        let corner = face_region([0.0, 1.0, 0.5, 0.5], 1.0, 100, 100);
        assert_eq!(
            corner,
            Region {
                x: 0,
                y: 75,
                width: 25,
                height: 25
            }
        );
        let outside = face_region([7.0, -3.0, 0.1, 0.1], 1.0, 10, 10);
        assert_eq!(
            outside,
            Region {
                x: 9,
                y: 0,
                width: 1,
                height: 1
            }
        );
    }

    #[test]
    fn fitting_keeps_the_aspect_ratio() {
        assert_eq!(
            place(50, 100, 64, 1.0, Along { x: 1.0, y: 0.5 }),
            Region {
                x: 32,
                y: 0,
                width: 32,
                height: 64
            }
        );
        assert_eq!(
            place(100, 100, 64, 1.0, Along { x: 0.3, y: 0.9 }),
            Region::whole(64, 64)
        );
        assert_eq!(place(1, 5000, 64, 1.0, Along { x: 0.0, y: 0.0 }).width, 1);
    }

    #[test]
    fn a_pasted_image_is_surrounded_by_its_pad() {
        let red = Rgb([200, 0, 0]);
        let pad = Rgb([0, 0, 9]);
        let region = place(10, 20, 8, 1.0, Along { x: 1.0, y: 0.0 });
        let out = on_pad(RgbImage::from_pixel(10, 20, red), region, 8, pad);
        let mask = region_mask(8, region);
        for (x, y, pixel) in out.enumerate_pixels() {
            let inside = mask.get_pixel(x, y).0[0] == 255;
            assert_eq!(*pixel, if inside { red } else { pad }, "{x} {y}");
            assert_eq!(inside, x >= 4);
        }
    }

    /// A pattern with all values, edges and gradients.
    fn pattern(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            let stripes = if (x / 3 + y / 5) % 2 == 0 { 255 } else { 0 };
            Rgb([(x * 7 + y * 13) as u8, stripes, (x * y) as u8])
        })
    }

    /// A rank on another machine must see the same pixels (law 2).
    #[test]
    #[allow(unsafe_code)]
    fn resizing_gives_equal_bytes_with_and_without_simd() {
        let mut plain = Resizer::new();
        // SAFETY: every CPU can do without extensions.
        unsafe { plain.set_cpu_extensions(CpuExtensions::None) };
        for (from, to) in [
            ((129, 257), (64, 127)),
            ((64, 48), (100, 31)),
            ((7, 5), (64, 64)),
            ((300, 200), (3, 1)),
            ((1, 1), (9, 4)),
        ] {
            let image = pattern(from.0, from.1);
            let expected = resize_with(&mut plain, &image, to.0, to.1);
            assert!(resize(image, to.0, to.1) == expected, "{from:?} to {to:?}");
        }
    }

    /// Area-averaged like the exact filter, up to rounding: neither shifted nor aliased.
    #[test]
    fn resizing_is_the_triangle_filter_up_to_rounding() {
        for (from, to) in [
            ((129, 257), (64, 127)),
            ((64, 48), (100, 31)),
            ((31, 9), (9, 31)),
        ] {
            let image = pattern(from.0, from.1);
            let filter = image::imageops::FilterType::Triangle;
            let exact = image::imageops::resize(&image, to.0, to.1, filter);
            let resized = resize(image, to.0, to.1);
            let pairs = resized.as_raw().iter().zip(exact.as_raw());
            let most = pairs.map(|(a, b)| a.abs_diff(*b)).max();
            assert!(most <= Some(1), "{from:?} to {to:?}: {most:?}");
        }
    }

    #[test]
    fn backgrounds_are_replaced_with_a_soft_edge() {
        let mut image = RgbImage::from_pixel(3, 1, Rgb([200, 100, 0]));
        let mask = GrayImage::from_vec(3, 1, vec![255, 128, 0]).expect("three pixels");
        replace_background(&mut image, &mask, Rgb([0, 0, 0]));
        assert_eq!(image.as_raw()[..], [200, 100, 0, 100, 50, 0, 0, 0, 0]);
    }

    #[test]
    fn the_masks_region_is_tight() {
        let mut mask = GrayImage::new(9, 7);
        assert_eq!(mask_region(&mask), None);
        mask.put_pixel(2, 3, image::Luma([255]));
        mask.put_pixel(5, 6, image::Luma([128]));
        mask.put_pixel(8, 0, image::Luma([127]));
        assert_eq!(
            mask_region(&mask),
            Some(Region {
                x: 2,
                y: 3,
                width: 4,
                height: 4
            })
        );
    }
}
