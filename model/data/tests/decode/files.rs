//! Images, masks and containers for the tests.

use image::{DynamicImage, GrayImage, Rgb, RgbImage};
use model_data::decode::{Change, Expect, MaskSource, Origin, Pixels, decode};
use model_data::image_file::ImageError;
use png::{BitDepth, ColorType};
use std::path::Path;

pub(crate) const WIDTH: u32 = 48;
pub(crate) const HEIGHT: u32 = 32;
pub(crate) const RED: Rgb<u8> = Rgb([200, 60, 30]);
pub(crate) const GREEN: Rgb<u8> = Rgb([30, 160, 60]);
pub(crate) const BLUE: Rgb<u8> = Rgb([20, 40, 200]);

/// The scene of all files in `../images`.
pub(crate) fn scene() -> RgbImage {
    RgbImage::from_fn(WIDTH, HEIGHT, |x, y| match (x, y) {
        (0..16, 0..16) => RED,
        (_, 0..16) => GREEN,
        _ => BLUE,
    })
}

/// The figure is the red and green part.
pub(crate) fn figure() -> GrayImage {
    GrayImage::from_fn(WIDTH, HEIGHT, |_, y| {
        image::Luma([if y < 16 { 255 } else { 0 }])
    })
}

pub(crate) fn read(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images");
    std::fs::read(folder.join(name)).unwrap()
}

pub(crate) const OF_A_FILE: Expect = Expect {
    what: "image",
    origin: Origin::File,
    size: None,
    face: None,
    check: true,
};

/// Decodes as an import does. The changes are in the form of a data set.
pub(crate) fn import(
    image: &[u8],
    mask: MaskSource<'_>,
    expect: &Expect,
) -> (Result<Pixels, ImageError>, Vec<String>) {
    let mut changes = Vec::new();
    let pixels = decode(image, mask, expect, &mut changes);
    (pixels, changes.iter().map(Change::to_string).collect())
}

/// Largest difference of any channel.
pub(crate) fn difference(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    let pairs = a.as_raw().iter().zip(b.as_raw());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

pub(crate) fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image
        .into()
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

pub(crate) fn jpeg(image: RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 97);
    DynamicImage::from(image)
        .write_with_encoder(encoder)
        .unwrap();
    bytes
}

/// Where a chunk of PNG stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    AfterHeader,
    AfterPixels,
}

pub(crate) fn png_with(png: &[u8], kind: [u8; 4], data: &[u8], place: Place) -> Vec<u8> {
    let at = match place {
        Place::AfterHeader => 8 + 25,
        Place::AfterPixels => png.len() - 12,
    };
    let mut named = kind.to_vec();
    named.extend(data);
    let mut chunk = u32::try_from(data.len()).unwrap().to_be_bytes().to_vec();
    chunk.extend(&named);
    chunk.extend(crc32(&named).to_be_bytes());
    let mut bytes = png.to_vec();
    bytes.splice(at..at, chunk);
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |it, _| {
            (it >> 1) ^ (0xedb8_8320 & (it & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// Inserts an APP1 segment.
pub(crate) fn jpeg_with(jpeg: &[u8], prefix: &[u8], data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(2 + prefix.len() + data.len()).unwrap();
    let mut segment = vec![0xff, 0xe1];
    segment.extend(length.to_be_bytes());
    segment.extend(prefix);
    segment.extend(data);
    let mut bytes = jpeg.to_vec();
    bytes.splice(2..2, segment);
    bytes
}

/// Lossless WebP with metadata.
pub(crate) fn webp(image: &RgbImage, exif: Option<Vec<u8>>, xmp: Option<Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image_webp::WebPEncoder::new(&mut bytes);
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif);
    }
    if let Some(xmp) = xmp {
        encoder.set_xmp_metadata(xmp);
    }
    let (width, height) = image.dimensions();
    encoder
        .encode(image, width, height, image_webp::ColorType::Rgb8)
        .unwrap();
    bytes
}

/// EXIF with an orientation and another tag before it.
pub(crate) fn exif(orientation: u8, big_endian: bool) -> Vec<u8> {
    let short = |it: u16| {
        if big_endian {
            it.to_be_bytes()
        } else {
            it.to_le_bytes()
        }
    };
    let long = |it: u32| {
        if big_endian {
            it.to_be_bytes()
        } else {
            it.to_le_bytes()
        }
    };
    let mut bytes = if big_endian {
        b"MM".to_vec()
    } else {
        b"II".to_vec()
    };
    bytes.extend(short(42));
    bytes.extend(long(8));
    bytes.extend(short(2));
    for (tag, value) in [(0x0100, 48), (0x0112, u16::from(orientation))] {
        bytes.extend(short(tag));
        bytes.extend(short(3));
        bytes.extend(long(1));
        bytes.extend(short(value));
        bytes.extend(short(0));
    }
    bytes.extend(long(0));
    bytes
}

/// XMP as an attribute or as an element.
pub(crate) fn xmp(orientation: u8, element: bool) -> Vec<u8> {
    let (attribute, child) = if element {
        (
            String::new(),
            format!("<tiff:Orientation>{orientation}</tiff:Orientation>"),
        )
    } else {
        (
            format!(" tiff:Orientation=\"{orientation}\""),
            String::new(),
        )
    };
    format!(
        "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF \
         xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\"><rdf:Description \
         xmlns:tiff=\"http://ns.adobe.com/tiff/1.0/\"{attribute}>{child}</rdf:Description></rdf:RDF>\
         </x:xmpmeta>"
    )
    .into_bytes()
}

/// A PNG of any colour type and depth. `samples` gives the channels of a pixel, in the file's
/// units.
pub(crate) fn file(
    (width, height): (u32, u32),
    colour: ColorType,
    depth: BitDepth,
    palette: &[[u8; 3]],
    samples: impl Fn(u32, u32) -> Vec<u16>,
) -> Vec<u8> {
    let bits = depth as usize;
    let mut data = Vec::new();
    for y in 0..height {
        let line: Vec<u16> = (0..width).flat_map(|x| samples(x, y)).collect();
        if bits == 16 {
            data.extend(line.iter().flat_map(|it| it.to_be_bytes()));
            continue;
        }
        for group in line.chunks(8 / bits) {
            let mut byte = 0u8;
            for (index, sample) in group.iter().enumerate() {
                byte |= u8::try_from(*sample).unwrap() << (8 - bits * (index + 1));
            }
            data.push(byte);
        }
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if colour == ColorType::Indexed {
        encoder.set_palette(palette.as_flattened().to_vec());
    }
    encoder
        .write_header()
        .unwrap()
        .write_image_data(&data)
        .unwrap();
    bytes
}

pub(crate) const DEPTHS: [BitDepth; 5] = [
    BitDepth::One,
    BitDepth::Two,
    BitDepth::Four,
    BitDepth::Eight,
    BitDepth::Sixteen,
];

/// The largest sample.
pub(crate) fn most(depth: BitDepth) -> u16 {
    u16::MAX >> (16 - depth as u16)
}
