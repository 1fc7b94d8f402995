//! Images of every colour type and bit depth of PNG, with and without transparency: each shows what
//! a viewer shows on white.

use crate::files::{DEPTHS, OF_A_FILE, Place, file, import, most, png_with};
use image::RgbImage;
use model_data::decode::MaskSource;
use png::{BitDepth, ColorType};
use proptest::prelude::*;

const SIZE: (u32, u32) = (5, 3);
const WHITE: [u8; 3] = [255; 3];

/// The colour of all pixels, and the changes.
fn shown(bytes: &[u8]) -> ([u8; 3], Vec<String>) {
    let (pixels, changes) = import(bytes, MaskSource::Whole, &OF_A_FILE);
    let image = pixels.unwrap().image;
    let colour = *image.get_pixel(0, 0);
    assert_eq!(image, RgbImage::from_pixel(SIZE.0, SIZE.1, colour));
    (colour.0, changes)
}

/// A file of one colour, with a chunk tRNS.
fn plain(colour: ColorType, depth: BitDepth, samples: &[u16], transparent: &[u8]) -> Vec<u8> {
    let palette = [[9, 9, 9], [200, 60, 30]];
    let bytes = file(SIZE, colour, depth, &palette, |_, _| samples.to_vec());
    if transparent.is_empty() {
        return bytes;
    }
    let pixels = bytes.windows(4).position(|it| it == b"IDAT").unwrap();
    // tRNS stands between the palette and the pixels.
    let end = [0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae, 0x42, 0x60, 0x82];
    let head = [&bytes[..pixels - 4], &end].concat();
    let mut with = png_with(&head, *b"tRNS", transparent, Place::AfterPixels);
    with.truncate(with.len() - end.len());
    with.extend(&bytes[pixels - 4..]);
    with
}

/// A sample of a file as 8 bits.
fn narrow(sample: u16, depth: BitDepth) -> u8 {
    let most = u32::from(most(depth));
    ((u32::from(sample) * 255 + most / 2) / most) as u8
}

#[test]
fn palettes_are_read_at_every_depth_with_and_without_transparency() {
    for depth in DEPTHS.into_iter().filter(|it| *it != BitDepth::Sixteen) {
        for (index, transparent, expected, changes) in [
            (1, &[][..], [200, 60, 30], vec![]),
            (1, &[0, 255], [200, 60, 30], vec![]),
            (0, &[0, 255], WHITE, vec!["transparency"]),
            (1, &[255, 0], WHITE, vec!["transparency"]),
            // Half of the colour and half of the white behind it.
            (1, &[255, 128], [227, 157, 142], vec!["transparency"]),
        ] {
            let bytes = plain(ColorType::Indexed, depth, &[index], transparent);
            let (colour, made) = shown(&bytes);
            assert_eq!(colour, expected, "{depth:?} {index} {transparent:?}");
            assert_eq!(made, changes, "{depth:?} {index} {transparent:?}");
        }
    }
}

#[test]
fn one_transparent_colour_shows_the_white_behind_it() {
    for (colour, depth, key) in [
        (ColorType::Grayscale, BitDepth::One, &[1][..]),
        (ColorType::Grayscale, BitDepth::Two, &[2]),
        (ColorType::Grayscale, BitDepth::Four, &[7]),
        (ColorType::Grayscale, BitDepth::Eight, &[7]),
        (ColorType::Grayscale, BitDepth::Sixteen, &[0x0102]),
        (ColorType::Rgb, BitDepth::Eight, &[1, 2, 3]),
        (ColorType::Rgb, BitDepth::Sixteen, &[0x0102, 0x0304, 0x0506]),
    ] {
        let transparent: Vec<u8> = key.iter().flat_map(|it: &u16| it.to_be_bytes()).collect();
        let (found, changes) = shown(&plain(colour, depth, key, &transparent));
        assert_eq!(found, WHITE, "{colour:?} {depth:?}");
        let is_said = changes.contains(&"transparency".to_owned());
        assert!(is_said, "{colour:?} {depth:?}: {changes:?}");
        // Another colour stays.
        let other: Vec<u16> = key.iter().map(|_| 0).collect();
        let (found, changes) = shown(&plain(colour, depth, &other, &transparent));
        assert_eq!(found, [0; 3], "{colour:?} {depth:?}");
        assert!(!changes.contains(&"transparency".to_owned()), "{changes:?}");
    }
}

proptest! {
    #[test]
    fn every_colour_type_and_depth_shows_its_colour_on_white(
        kind in 0..4usize,
        depth in 0..DEPTHS.len(),
        samples: [u16; 4],
    ) {
        let (colour, channels) = [
            (ColorType::Grayscale, 1),
            (ColorType::GrayscaleAlpha, 2),
            (ColorType::Rgb, 3),
            (ColorType::Rgba, 4),
        ][kind];
        let depth = match DEPTHS[depth] {
            narrow if kind > 0 && (narrow as u8) < 8 => BitDepth::Eight,
            depth => depth,
        };
        let samples = samples.map(|it| it & most(depth));
        let values = samples.map(|it| narrow(it, depth));
        let (rgb, alpha) = match kind {
            0 => ([values[0]; 3], 255),
            1 => ([values[0]; 3], values[1]),
            2 => ([values[0], values[1], values[2]], 255),
            _ => ([values[0], values[1], values[2]], values[3]),
        };
        let over = |it: u8| {
            (u32::from(it) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255
        };
        let bytes = plain(colour, depth, &samples[..channels], &[]);
        let (found, changes) = shown(&bytes);
        for (found, value) in found.into_iter().zip(rgb) {
            prop_assert!(u32::from(found).abs_diff(over(value)) <= 1, "{found} {rgb:?} {alpha}");
        }
        let is = |change: &str| changes.contains(&change.to_owned());
        prop_assert_eq!(is("depth"), depth == BitDepth::Sixteen);
        prop_assert_eq!(is("transparency"), alpha < 255);
    }
}
