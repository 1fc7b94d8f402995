//! The one way from image files to pixels: import, verification, the loader (so training and
//! preview) and the user's files of sampling all call [`decode`]. Pure: the caller reads the files.
//!
//! What can be meant is converted, and the caller learns of it by a [`Change`]; what cannot is an
//! error that names it.

mod change;
mod colour;
mod complete;
mod huffman;
mod jpeg;
mod mask;
mod orientation;
mod raw;

use image::{DynamicImage, GrayImage, Rgb, RgbImage};

pub use change::{Change, ChangeCount, ChangeCounts, ChangeKind};

use crate::image_file::{ImageError, flatten};
use raw::Raw;

/// Transparent images are composited over white, like the background in pose prompts.
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);

/// Where the files come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A file of the world: it is shown as a viewer shows it, upright and in sRGB, and the values
    /// of its mask are interpreted.
    File,
    /// A row of a data set. Its pixels mean what they are: a job is pinned to a version of its data
    /// set, and a new release must not change what it trains on. What an import would do to the
    /// file today is still reported.
    Stored,
}

/// Where the mask of an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskSource<'a> {
    /// A file of its own.
    File(&'a [u8]),
    /// The alpha channel of the image.
    Alpha,
    /// Everything belongs to the figure.
    Whole,
}

/// What the caller knows about the files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expect {
    /// The image in messages: "image" or "reference".
    pub what: &'static str,
    pub origin: Origin,
    /// Width and height that image and mask must have. None: the mask has the size of the image.
    pub size: Option<(u32, u32)>,
    /// The face: centre x, centre y, width, height as fractions. It must show a pixel of the
    /// figure.
    pub face: Option<[f64; 4]>,
    /// False: only what the pixels need is checked. The loader's rows were checked at import.
    pub check: bool,
}

/// An image and the mask of its figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    pub image: RgbImage,
    /// Same size; 255 on the figure.
    pub mask: GrayImage,
    /// The first bytes of the image's file that give these pixels as [`Origin::Stored`], so that
    /// they can be stored as they are. None: the pixels were changed.
    pub stored_as: Option<usize>,
}

/// Decodes an image and its mask. What was changed or guessed is appended to `changes`, also before
/// an error.
///
/// # Errors
/// A file that is no complete PNG, JPEG or WebP, a size that is not as expected, or a mask from
/// which no figure can be read.
pub fn decode(
    image: &[u8],
    mask: MaskSource<'_>,
    expect: &Expect,
    changes: &mut Vec<Change>,
) -> Result<Pixels, ImageError> {
    let is_file = expect.origin == Origin::File;
    let begun = changes.len();
    let raw = raw::read(expect.what, image, is_file || expect.check)?;
    let end = image.len() - raw.trailing;
    let (pixels, turned) = if is_file {
        as_shown(raw, "", changes)
    } else {
        (as_stored(raw, expect.check, changes), false)
    };
    let alpha = pixels.color().has_alpha().then(|| mask::alpha_of(&pixels));
    let is_transparent = |it: &GrayImage| it.as_raw().iter().any(|it| *it != u8::MAX);
    let alpha = alpha.filter(is_transparent);
    if (is_file || expect.check) && alpha.is_some() {
        changes.push(Change::new(ChangeKind::Transparency, ""));
    }
    let is_rewritten = changes[begun..].iter().any(|it| it.kind.rewrites_image());
    let image = flatten(pixels, BACKGROUND);
    let size = expect.size.unwrap_or(image.dimensions());
    same_size(expect.what, image.dimensions(), size)?;
    let mask = match mask {
        MaskSource::Whole => GrayImage::from_pixel(size.0, size.1, image::Luma([255])),
        MaskSource::Alpha => of_alpha(alpha, expect, changes)?,
        MaskSource::File(bytes) => {
            let mask = of_file(bytes, expect, changes)?;
            let found = mask.dimensions();
            if is_file && found != size {
                return Err(ImageError::MaskSize {
                    found,
                    size,
                    turned: turned && found == (size.1, size.0),
                });
            }
            same_size("mask", found, size)?;
            check("mask", &mask, expect)?;
            mask
        }
    };
    Ok(Pixels {
        image,
        mask,
        stored_as: (!is_rewritten).then_some(end),
    })
}

/// An image as a viewer shows it: upright and in sRGB, 8 bits per channel. Also whether it was
/// turned. `of` begins each detail, to say which file it is about.
fn as_shown(raw: Raw, of: &str, changes: &mut Vec<Change>) -> (DynamicImage, bool) {
    let mut note = |kind, detail: String| changes.push(Change::new(kind, format!("{of}{detail}")));
    let orientation = orientation::of(&raw);
    if let Some(frame) = raw.frame {
        note(ChangeKind::Frame, frame);
    }
    if raw.trailing > 0 {
        note(ChangeKind::Trailing, String::new());
    }
    if raw.cmyk {
        note(ChangeKind::Cmyk, String::new());
    }
    let mut pixels = raw.pixels;
    if is_wide(&pixels) {
        note(ChangeKind::Depth, String::new());
        pixels = narrow(pixels);
    }
    if let Some(change) = raw.profile.and_then(|it| colour::to_srgb(&mut pixels, &it)) {
        note(change.kind, change.detail);
    }
    let turned = orientation.is_some();
    if let Some((orientation, found)) = orientation {
        note(ChangeKind::Orientation, found);
        pixels.apply_orientation(orientation);
    }
    (pixels, turned)
}

/// The image of a row, as it is. With `check`, reports what an import would do to it today.
fn as_stored(raw: Raw, check: bool, changes: &mut Vec<Change>) -> DynamicImage {
    if !check {
        return raw.pixels;
    }
    let pixels = raw.pixels.clone();
    let _ = as_shown(raw, "", changes);
    pixels
}

fn is_wide(pixels: &DynamicImage) -> bool {
    pixels.color().bytes_per_pixel() > pixels.color().channel_count()
}

fn narrow(pixels: DynamicImage) -> DynamicImage {
    match (pixels.color().has_color(), pixels.color().has_alpha()) {
        (true, true) => pixels.into_rgba8().into(),
        (true, false) => pixels.into_rgb8().into(),
        (false, true) => pixels.into_luma_alpha8().into(),
        (false, false) => pixels.into_luma8().into(),
    }
}

/// The mask that the alpha channel of a transparent image gives.
fn of_alpha(
    alpha: Option<GrayImage>,
    expect: &Expect,
    changes: &mut Vec<Change>,
) -> Result<GrayImage, ImageError> {
    let alpha = alpha.ok_or(ImageError::NoMask)?;
    check("alpha channel", &alpha, expect)?;
    changes.push(Change::new(ChangeKind::MaskAlpha, ""));
    Ok(alpha)
}

/// The mask that a file of its own gives.
fn of_file(
    bytes: &[u8],
    expect: &Expect,
    changes: &mut Vec<Change>,
) -> Result<GrayImage, ImageError> {
    let is_file = expect.origin == Origin::File;
    let mut raw = raw::read("mask", bytes, is_file || expect.check)?;
    if !is_file && !expect.check {
        return Ok(raw.pixels.into_luma8());
    }
    // Its values are no colours, and its depth is part of their meaning.
    raw.profile = None;
    let values = raw.pixels.clone();
    raw.pixels = DynamicImage::new_luma8(1, 1);
    let orientation = orientation::of(&raw);
    let _ = as_shown(raw, "mask: ", changes);
    let read = mask::read(&values, || raw::png_indices(bytes), changes);
    let mut mask = DynamicImage::ImageLuma8(read.map_err(|reason| ImageError::Mask {
        what: "mask",
        reason,
    })?);
    if !is_file {
        return Ok(values.into_luma8());
    }
    if let Some((orientation, _)) = orientation {
        mask.apply_orientation(orientation);
    }
    Ok(mask.into_luma8())
}

fn check(what: &'static str, mask: &GrayImage, expect: &Expect) -> Result<(), ImageError> {
    if !expect.check {
        return Ok(());
    }
    mask::check(mask, expect.face).map_err(|reason| ImageError::Mask { what, reason })
}

fn same_size(what: &'static str, found: (u32, u32), size: (u32, u32)) -> Result<(), ImageError> {
    if found == size {
        return Ok(());
    }
    Err(ImageError::Size {
        what,
        found_width: found.0,
        found_height: found.1,
        width: size.0,
        height: size.1,
    })
}
