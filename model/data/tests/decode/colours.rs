//! Colour profiles: those of each format, PNG's chunks, and what cannot be converted.

use crate::files::{
    BLUE, GREEN, OF_A_FILE, Place, RED, figure, import, jpeg, png, png_with, read, scene,
};
use image::{DynamicImage, GrayImage, ImageEncoder, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use model_data::decode::{Expect, MaskSource, Origin};

/// What littlecms makes of the scene's colours under the profile `wide.icc` (Pillow's ImageCms).
const WIDE: [(Rgb<u8>, Rgb<u8>); 3] = [
    (RED, Rgb([217, 42, 0])),
    (GREEN, Rgb([0, 163, 41])),
    (BLUE, Rgb([12, 41, 208])),
];

fn with_profile(image: DynamicImage, icc: Vec<u8>, format: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match format {
        "png" => {
            let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
            encoder.set_icc_profile(icc).unwrap();
            image.write_with_encoder(encoder).unwrap();
        }
        "jpeg" => {
            let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 100);
            encoder.set_icc_profile(icc).unwrap();
            image.write_with_encoder(encoder).unwrap();
        }
        _ => {
            let mut encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut bytes);
            encoder.set_icc_profile(icc).unwrap();
            image.write_with_encoder(encoder).unwrap();
        }
    }
    bytes
}

fn assert_wide(shown: &RgbImage, name: &str) {
    for ((x, y), (_, expected)) in [(4, 4), (30, 4), (4, 28)].into_iter().zip(WIDE) {
        let found = shown.get_pixel(x, y);
        let close = found
            .0
            .iter()
            .zip(expected.0)
            .all(|(a, b)| a.abs_diff(b) <= 4);
        assert!(
            close,
            "{name}: {found:?} at {x}, {y}, littlecms shows {expected:?}"
        );
    }
}

#[test]
fn profiles_of_every_format_are_converted_as_littlecms_does() {
    for format in ["png", "jpeg", "webp"] {
        let file = with_profile(scene().into(), read("wide.icc"), format);
        let (pixels, changes) = import(&file, MaskSource::Whole, &OF_A_FILE);
        let pixels = pixels.unwrap();
        assert_wide(&pixels.image, format);
        assert_eq!(changes, ["profile=Wide"], "{format}");
        assert_eq!(pixels.stored_as, None, "the converted image is stored");
    }
    let (pixels, _) = import(&read("wide.jpg"), MaskSource::Whole, &OF_A_FILE);
    assert_wide(&pixels.unwrap().image, "Pillow's JPEG");
}

#[test]
fn alpha_stays_and_is_composited_after_the_conversion() {
    let rgba = RgbaImage::from_fn(48, 32, |x, y| {
        let Rgb([r, g, b]) = *scene().get_pixel(x, y);
        Rgba([r, g, b, if y < 16 { 255 } else { 0 }])
    });
    let file = with_profile(rgba.into(), read("wide.icc"), "png");
    let (pixels, changes) = import(&file, MaskSource::Alpha, &OF_A_FILE);
    let pixels = pixels.unwrap();
    assert_eq!(pixels.mask, figure());
    assert_eq!(pixels.image.get_pixel(0, 31), &Rgb([255, 255, 255]));
    let red = pixels.image.get_pixel(4, 4);
    assert!(red.0[0] > 210, "{red:?}");
    assert_eq!(changes, ["profile=Wide", "transparency", "mask-from-alpha"]);
}

#[test]
fn srgb_itself_changes_nothing() {
    for format in ["png", "jpeg", "webp"] {
        let file = with_profile(scene().into(), read("srgb.icc"), format);
        let (pixels, changes) = import(&file, MaskSource::Whole, &OF_A_FILE);
        assert!(changes.is_empty(), "{format}: {changes:?}");
        assert_eq!(pixels.unwrap().stored_as, Some(file.len()), "{format}");
    }
}

/// PNG's own chunks, in the order in which they count.
#[test]
fn chunks_of_png_are_converted() {
    let plain = png(scene());
    let gamma = |gamma: u32| png_with(&plain, *b"gAMA", &gamma.to_be_bytes(), Place::AfterHeader);
    let shown = |file: &[u8]| {
        let (pixels, changes) = import(file, MaskSource::Whole, &OF_A_FILE);
        (*pixels.unwrap().image.get_pixel(4, 4), changes)
    };
    // 1/2.2 is sRGB, near enough; linear light of 200/255 is 228.
    assert_eq!(shown(&gamma(45455)), (RED, vec![]));
    let (colour, changes) = shown(&gamma(100_000));
    assert!(
        colour.0[0].abs_diff(228) <= 1 && colour.0[1].abs_diff(133) <= 1,
        "{colour:?}"
    );
    assert_eq!(changes, ["profile=gAMA 1"]);
    // sRGB counts before gAMA.
    let both = png_with(&gamma(100_000), *b"sRGB", &[0], Place::AfterHeader);
    assert_eq!(shown(&both), (RED, vec![]));
    // cICP: Display P3 with sRGB's curve, plain sRGB, and HDR, which is not converted.
    let cicp = |data: [u8; 4]| png_with(&plain, *b"cICP", &data, Place::AfterHeader);
    let (colour, changes) = shown(&cicp([12, 13, 0, 1]));
    let close = colour
        .0
        .iter()
        .zip(WIDE[0].1.0)
        .all(|(a, b)| a.abs_diff(b) <= 4);
    assert!(close, "{colour:?}");
    assert_eq!(changes, ["profile=cICP 12/13"]);
    assert_eq!(shown(&cicp([1, 13, 0, 1])), (RED, vec![]));
    assert_eq!(
        shown(&cicp([9, 16, 0, 1])),
        (
            RED,
            vec!["profile-ignored=cICP 9/16 is high dynamic range".to_owned()]
        )
    );
}

#[test]
fn what_cannot_be_converted_is_said_and_the_pixels_stay() {
    let damaged = read("wide.icc")[..100].to_vec();
    let mut lab = read("wide.icc");
    lab[16..20].copy_from_slice(b"CMYK");
    for (icc, expected) in [
        (damaged, "profile-ignored="),
        (lab, "profile-ignored=Wide: "),
    ] {
        let file = with_profile(scene().into(), icc, "png");
        let (pixels, changes) = import(&file, MaskSource::Whole, &OF_A_FILE);
        assert_eq!(pixels.unwrap().image, scene());
        assert!(
            changes.len() == 1 && changes[0].starts_with(expected),
            "{changes:?}"
        );
    }
}

#[test]
fn grey_images_under_a_profile_for_colours_stay_grey() {
    let grey = GrayImage::from_fn(8, 8, |x, _| Luma([x as u8 * 30]));
    let file = with_profile(grey.into(), read("wide.icc"), "png");
    let (pixels, _) = import(&file, MaskSource::Whole, &OF_A_FILE);
    for (x, _, Rgb([r, g, b])) in pixels.unwrap().image.enumerate_pixels() {
        let expected = x as u8 * 30;
        assert!(r.abs_diff(expected) <= 1 && r.abs_diff(*g) <= 1 && r.abs_diff(*b) <= 1);
    }
}

/// A job is pinned to a data set: another release must not change what it trains on.
#[test]
fn a_row_of_a_data_set_keeps_its_pixels_and_the_profile_is_reported() {
    let file = with_profile(scene().into(), read("wide.icc"), "png");
    let mask = png(figure());
    let stored = Expect {
        origin: Origin::Stored,
        ..OF_A_FILE
    };
    let (pixels, changes) = import(&file, MaskSource::File(&mask), &stored);
    assert_eq!(pixels.unwrap().image, scene());
    assert_eq!(changes, ["profile=Wide"]);
    let loader = Expect {
        check: false,
        ..stored
    };
    let (_, changes) = import(&file, MaskSource::File(&mask), &loader);
    assert!(changes.is_empty(), "{changes:?}");
}

#[test]
fn sixteen_bits_are_reduced_and_said() {
    let wide = image::ImageBuffer::from_fn(48, 32, |x, y| {
        scene()
            .get_pixel(x, y)
            .0
            .map(|it| u16::from(it) * 257)
            .into()
    });
    let wide: image::ImageBuffer<Rgb<u16>, Vec<u16>> = wide;
    let (pixels, changes) = import(&png(wide), MaskSource::Whole, &OF_A_FILE);
    assert_eq!(pixels.unwrap().image, scene());
    assert_eq!(changes, ["depth"]);
    let (pixels, changes) = import(&jpeg(scene()), MaskSource::Whole, &OF_A_FILE);
    assert!(pixels.unwrap().stored_as.is_some() && changes.is_empty());
}
