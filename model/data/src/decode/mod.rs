//! The one way from image files to pixels: import, verification, the loader (so training and
//! preview) and the user's files of sampling all call [`decode`]. Pure: the caller reads the files.
//!
//! What can be meant is converted, and the caller learns of it by a [`Change`]; what cannot is an
//! error that names it.

mod change;

use image::{GrayImage, Rgb, RgbImage};

pub use change::{Change, ChangeKind};

use crate::image_file::{ImageError, flatten, open_image};

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
    /// False: a mask is accepted whatever it shows. The loader's rows were checked at import.
    pub check_mask: bool,
}

/// An image and the mask of its figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    pub image: RgbImage,
    /// Same size; 255 on the figure.
    pub mask: GrayImage,
    /// True if the image's file, decoded as [`Origin::Stored`], gives these pixels, so that it can
    /// be stored as it is.
    pub file_is_image: bool,
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
    let _ = changes;
    let decoded = open_image(expect.what, image)?;
    let alpha = decoded.color().has_alpha();
    let mask = match mask {
        MaskSource::File(bytes) => open_image("mask", bytes)?.into_luma8(),
        MaskSource::Alpha => alpha_of(&decoded.to_rgba8()),
        MaskSource::Whole => {
            GrayImage::from_pixel(decoded.width(), decoded.height(), image::Luma([255]))
        }
    };
    let image = flatten(decoded, BACKGROUND);
    let (width, height) = expect.size.unwrap_or(image.dimensions());
    for (what, found) in [("image", image.dimensions()), ("mask", mask.dimensions())] {
        if found != (width, height) {
            return Err(ImageError::Size {
                what,
                found_width: found.0,
                found_height: found.1,
                width,
                height,
            });
        }
    }
    Ok(Pixels {
        image,
        mask,
        file_is_image: !alpha,
    })
}

fn alpha_of(image: &image::RgbaImage) -> GrayImage {
    let values = image.as_raw().chunks_exact(4).map(|it| it[3]).collect();
    GrayImage::from_vec(image.width(), image.height(), values).expect("one alpha for each pixel")
}
