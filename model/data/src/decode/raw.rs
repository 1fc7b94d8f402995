//! Reads one PNG, JPEG or WebP file: its pixels as they are stored, and all that its container says
//! about them. Nothing is applied here.

use image::{DynamicImage, ImageBuffer};
use std::io::Cursor;
use std::panic::catch_unwind;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

use super::colour::Profile;
use super::complete::{end_of_png, end_of_webp};
use super::jpeg::end_of_jpeg;
use crate::image_file::ImageError;

/// Larger images are rejected before their pixels are allocated. No training image needs the size,
/// and a damaged header may claim any size.
pub(super) const LARGEST_SIDE: u32 = 8192;

/// A decoded file.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) pixels: DynamicImage,
    pub(super) profile: Option<Profile>,
    /// From the TIFF header on.
    pub(super) exif: Option<Vec<u8>>,
    pub(super) xmp: Option<Vec<u8>>,
    /// CMYK or YCCK, which the decoder has converted without a profile.
    pub(super) cmyk: bool,
    /// "frame 1 of 12", for an animation.
    pub(super) frame: Option<String>,
    /// Bytes after the end of the image.
    pub(super) trailing: usize,
}

/// Decodes PNG, JPEG or WebP, detected by content. With `blocks`, also a JPEG that was cut and got
/// a new end is refused.
///
/// # Errors
/// The bytes are none of these, are cut off or damaged, or the image is larger than 8192 pixels
/// along a side.
pub(super) fn read(what: &'static str, bytes: &[u8], blocks: bool) -> Result<Raw, ImageError> {
    // A panic of a decoder must not end whoever reads an image that a stranger made.
    let read = catch_unwind(|| read_any(what, bytes, blocks));
    read.unwrap_or_else(|_| {
        let reason = "the decoder panicked; the file is damaged".to_owned();
        Err(ImageError::Decode { what, reason })
    })
}

fn read_any(what: &'static str, bytes: &[u8], blocks: bool) -> Result<Raw, ImageError> {
    let failed = |reason: String| ImageError::Decode { what, reason };
    let cut = |reason: String| ImageError::Cut { what, reason };
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => {
            let end = end_of_png(bytes).map_err(cut)?;
            read_png(bytes, end).map_err(failed)
        }
        [0xff, 0xd8, ..] => {
            let end = end_of_jpeg(bytes, blocks).map_err(cut)?;
            read_jpeg(bytes, end).map_err(failed)
        }
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => {
            let end = end_of_webp(bytes).map_err(cut)?;
            read_webp(bytes, end).map_err(failed)
        }
        [] => Err(failed("the file is empty".to_owned())),
        _ => Err(failed(format!("it is {}", name_of(bytes)))),
    }
}

/// What a file is that is no image we read.
fn name_of(bytes: &[u8]) -> &'static str {
    match bytes {
        [b'G', b'I', b'F', b'8', ..] => "a GIF",
        [b'B', b'M', ..] => "a BMP",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "a TIFF",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "an AVIF, HEIC or video file",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop file",
        [0xff, 0x0a, ..] | [0, 0, 0, 0x0c, b'J', b'X', b'L', ..] => "a JPEG XL",
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', ..] => {
            "a text file (a git-lfs pointer: run `git lfs pull`)"
        }
        [b'<', ..] => "a text file, perhaps SVG or a web page",
        _ => "of no known format",
    }
}

fn check_size((width, height): (u32, u32)) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!("it is {width}x{height} pixels"));
    }
    if width > LARGEST_SIDE || height > LARGEST_SIDE {
        return Err(format!(
            "it is {width}x{height} pixels, and at most {LARGEST_SIDE} a side are read"
        ));
    }
    Ok(())
}

/// An image of this colour type from its samples.
fn assemble<P>(width: u32, height: u32, samples: Vec<P::Subpixel>) -> Result<DynamicImage, String>
where
    P: image::Pixel,
    DynamicImage: From<ImageBuffer<P, Vec<P::Subpixel>>>,
{
    ImageBuffer::<P, _>::from_raw(width, height, samples)
        .map(DynamicImage::from)
        .ok_or_else(|| "its size and its pixels disagree".to_owned())
}

fn read_png(bytes: &[u8], end: usize) -> Result<Raw, String> {
    let message = |error: png::DecodingError| error.to_string();
    let mut decoder = png::Decoder::new(Cursor::new(&bytes[..end]));
    decoder.set_ignore_text_chunk(false);
    check_size(decoder.read_header_info().map_err(message)?.size())?;
    // Palettes, transparent colours and fewer than 8 bits become channels of 8 bits.
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(message)?;
    // Otherwise the image before the animation is none of its frames.
    let begins_animation = reader.info().frame_control.is_some();
    let size = reader.output_buffer_size().ok_or("it is too large")?;
    let mut samples = vec![0; size];
    let frame = reader.next_frame(&mut samples).map_err(message)?;
    // Metadata may follow the pixels.
    reader.finish().map_err(message)?;
    let info = reader.info();
    let (width, height) = info.size();
    if (frame.width, frame.height) != (width, height) {
        return Err("its first frame does not fill it".to_owned());
    }
    let animation = info.animation_control;
    let texts = info.utf8_text.iter();
    let mut xmp = texts.filter(|it| it.keyword == "XML:com.adobe.xmp");
    Ok(Raw {
        profile: Profile::of_png(info),
        exif: info
            .exif_metadata
            .as_ref()
            .map(|it| it.to_vec())
            .or_else(|| legacy(info, ["exif", "APP1"])),
        xmp: xmp
            .find_map(|it| it.get_text().ok())
            .map(String::into_bytes)
            .or_else(|| legacy(info, ["xmp", "APP1"])),
        cmyk: false,
        frame: animation.map(|it| match begins_animation {
            true => format!("the first of {}", it.num_frames),
            false => format!("the still image before {} frames", it.num_frames),
        }),
        trailing: bytes.len() - end,
        pixels: png_pixels(reader.output_color_type(), (width, height), samples)?,
    })
}

fn png_pixels(
    kind: (png::ColorType, png::BitDepth),
    (width, height): (u32, u32),
    samples: Vec<u8>,
) -> Result<DynamicImage, String> {
    use png::{BitDepth, ColorType};
    let wide = |samples: Vec<u8>| -> Vec<u16> {
        let pairs = samples.chunks_exact(2);
        pairs.map(|it| u16::from_be_bytes([it[0], it[1]])).collect()
    };
    match kind {
        (ColorType::Grayscale, BitDepth::Eight) => {
            assemble::<image::Luma<u8>>(width, height, samples)
        }
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => {
            assemble::<image::LumaA<u8>>(width, height, samples)
        }
        (ColorType::Rgb, BitDepth::Eight) => assemble::<image::Rgb<u8>>(width, height, samples),
        (ColorType::Rgba, BitDepth::Eight) => assemble::<image::Rgba<u8>>(width, height, samples),
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            assemble::<image::Luma<u16>>(width, height, wide(samples))
        }
        (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => {
            assemble::<image::LumaA<u16>>(width, height, wide(samples))
        }
        (ColorType::Rgb, BitDepth::Sixteen) => {
            assemble::<image::Rgb<u16>>(width, height, wide(samples))
        }
        (ColorType::Rgba, BitDepth::Sixteen) => {
            assemble::<image::Rgba<u16>>(width, height, wide(samples))
        }
        (kind, depth) => Err(format!("its colours are {kind:?} of {depth:?} bits")),
    }
}

/// The palette indices of a PNG, for a mask whose palette has one colour only. None: it has no
/// palette.
pub(super) fn png_indices(bytes: &[u8]) -> Option<image::GrayImage> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().ok()?;
    let (width, height) = reader.info().size();
    if reader.info().color_type != png::ColorType::Indexed {
        return None;
    }
    let bits = reader.info().bit_depth as usize;
    let mut packed = vec![0; reader.output_buffer_size()?];
    reader.next_frame(&mut packed).ok()?;
    let line = reader.output_line_size(width)?;
    let index = |x: u32, y: u32| {
        let bit = x as usize * bits;
        let byte = packed[y as usize * line + bit / 8];
        image::Luma([(byte >> (8 - bits - bit % 8)) & (0xff >> (8 - bits))])
    };
    Some(image::GrayImage::from_fn(width, height, index))
}

/// EXIF or XMP as ImageMagick wrote them before PNG had a place for them: hexadecimal text with a
/// length, in a text of one of these names. "APP1" may hold either.
fn legacy(info: &png::Info<'_>, names: [&str; 2]) -> Option<Vec<u8>> {
    let is_named = |keyword: &str| {
        let name = keyword.strip_prefix("Raw profile type ");
        name.is_some_and(|name| names.contains(&name))
    };
    let short = info.uncompressed_latin1_text.iter();
    let short = short.filter(|it| is_named(&it.keyword));
    let long = info.compressed_latin1_text.iter();
    let long = long.filter(|it| is_named(&it.keyword));
    let text = short
        .map(|it| it.text.clone())
        .chain(long.filter_map(|it| it.get_text().ok()))
        .next()?;
    let digits: Vec<u8> = text.lines().skip(3).flat_map(str::bytes).collect();
    let pairs = digits.chunks_exact(2);
    pairs
        .map(|it| u8::from_str_radix(std::str::from_utf8(it).ok()?, 16).ok())
        .collect()
}

fn read_jpeg(bytes: &[u8], end: usize) -> Result<Raw, String> {
    let side = LARGEST_SIDE as usize;
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(side)
        .set_max_height(side);
    let message = |error: zune_jpeg::errors::DecodeErrors| error.to_string();
    let stream = ZCursor::new(&bytes[..end]);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(stream, options);
    decoder.decode_headers().map_err(message)?;
    let (width, height) = decoder.dimensions().ok_or("it has no size")?;
    let size = |side: usize| u32::try_from(side).map_err(|_| "it is too large".to_owned());
    let (width, height) = (size(width)?, size(height)?);
    check_size((width, height))?;
    let space = decoder.input_colorspace().ok_or("it has no colours")?;
    let grey = space == ColorSpace::Luma;
    let out = if grey {
        ColorSpace::Luma
    } else {
        ColorSpace::RGB
    };
    decoder.set_options(options.jpeg_set_out_colorspace(out));
    let samples = decoder.decode().map_err(message)?;
    Ok(Raw {
        profile: decoder.icc_profile().map(Profile::Icc),
        exif: decoder.exif().cloned(),
        xmp: decoder.xmp().cloned(),
        cmyk: matches!(space, ColorSpace::CMYK | ColorSpace::YCCK),
        frame: None,
        trailing: bytes.len() - end,
        pixels: if grey {
            assemble::<image::Luma<u8>>(width, height, samples)?
        } else {
            assemble::<image::Rgb<u8>>(width, height, samples)?
        },
    })
}

fn read_webp(bytes: &[u8], end: usize) -> Result<Raw, String> {
    let message = |error: image_webp::DecodingError| error.to_string();
    let reader = Cursor::new(&bytes[..end]);
    let mut decoder = image_webp::WebPDecoder::new(reader).map_err(message)?;
    let (width, height) = decoder.dimensions();
    check_size((width, height))?;
    let size = decoder.output_buffer_size().ok_or("it is too large")?;
    let mut samples = vec![0; size];
    decoder.read_image(&mut samples).map_err(message)?;
    let frames = decoder.num_frames();
    let animated = decoder.is_animated();
    Ok(Raw {
        profile: decoder.icc_profile().map_err(message)?.map(Profile::Icc),
        exif: decoder.exif_metadata().map_err(message)?,
        xmp: decoder.xmp_metadata().map_err(message)?,
        cmyk: false,
        frame: animated.then(|| format!("the first of {frames}")),
        trailing: bytes.len() - end,
        pixels: if decoder.has_alpha() {
            assemble::<image::Rgba<u8>>(width, height, samples)?
        } else {
            assemble::<image::Rgb<u8>>(width, height, samples)?
        },
    })
}
