//! All orientations, in all formats and places that hold one.

use crate::files::{
    OF_A_FILE, Place, difference, exif, figure, import, jpeg, jpeg_with, png, png_with, scene,
    webp, xmp,
};
use image::{GrayImage, ImageBuffer, Pixel, Rgb, RgbImage};
use model_data::decode::{Expect, MaskSource, Origin, decode};
use model_data::image_file::ImageError;
use model_data::user_image::UserImage;
use proptest::prelude::*;

/// The file's pixels of an image that is shown under an orientation, from the definition of the tag
/// (EXIF 2.32, 4.6.4): where row 0 and column 0 of the file are in what is shown.
fn stored<P: Pixel<Subpixel = u8> + 'static>(
    shown: &ImageBuffer<P, Vec<u8>>,
    orientation: u8,
) -> ImageBuffer<P, Vec<u8>> {
    let (width, height) = shown.dimensions();
    let (right, bottom) = (width - 1, height - 1);
    let (w, h) = if orientation < 5 {
        (width, height)
    } else {
        (height, width)
    };
    ImageBuffer::from_fn(w, h, |x, y| {
        let (x, y) = match orientation {
            1 => (x, y),
            2 => (right - x, y),
            3 => (right - x, bottom - y),
            4 => (x, bottom - y),
            5 => (y, x),
            6 => (right - y, x),
            7 => (right - y, bottom - x),
            8 => (y, bottom - x),
            _ => unreachable!(),
        };
        *shown.get_pixel(x, y)
    })
}

/// A container, and where it says the orientation.
type Container = fn(&RgbImage, u8) -> Vec<u8>;

const XMP_PREFIX: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

fn itxt(orientation: u8) -> Vec<u8> {
    let mut data = b"XML:com.adobe.xmp\0\0\0\0\0".to_vec();
    data.extend(xmp(orientation, false));
    data
}

/// ImageMagick's text of a profile.
fn raw_profile(name: &str, prefix: &[u8], data: &[u8]) -> Vec<u8> {
    let bytes = [prefix, data].concat();
    let hex: String = bytes.iter().map(|it| format!("{it:02x}")).collect();
    let length = bytes.len();
    format!("Raw profile type {name}\0\n{name}\n    {length:4}\n{hex}\n").into_bytes()
}

fn png_with_text(image: &RgbImage, text: &[u8]) -> Vec<u8> {
    png_with(&png(image.clone()), *b"tEXt", text, Place::AfterHeader)
}

const CONTAINERS: [(&str, u8, Container); 14] = [
    ("JPEG, EXIF, little-endian", 24, |it, o| {
        jpeg_with(&jpeg(it.clone()), b"Exif\0\0", &exif(o, false))
    }),
    ("JPEG, EXIF, big-endian", 24, |it, o| {
        jpeg_with(&jpeg(it.clone()), b"Exif\0\0", &exif(o, true))
    }),
    ("JPEG, XMP attribute", 24, |it, o| {
        jpeg_with(&jpeg(it.clone()), XMP_PREFIX, &xmp(o, false))
    }),
    ("JPEG, XMP element", 24, |it, o| {
        jpeg_with(&jpeg(it.clone()), XMP_PREFIX, &xmp(o, true))
    }),
    ("PNG, EXIF before the pixels", 0, |it, o| {
        png_with(
            &png(it.clone()),
            *b"eXIf",
            &exif(o, true),
            Place::AfterHeader,
        )
    }),
    ("PNG, EXIF after the pixels", 0, |it, o| {
        png_with(
            &png(it.clone()),
            *b"eXIf",
            &exif(o, false),
            Place::AfterPixels,
        )
    }),
    ("PNG, XMP before the pixels", 0, |it, o| {
        png_with(&png(it.clone()), *b"iTXt", &itxt(o), Place::AfterHeader)
    }),
    ("PNG, XMP after the pixels", 0, |it, o| {
        png_with(&png(it.clone()), *b"iTXt", &itxt(o), Place::AfterPixels)
    }),
    ("PNG, text of EXIF", 0, |it, o| {
        png_with_text(it, &raw_profile("exif", b"Exif\0\0", &exif(o, true)))
    }),
    ("PNG, text of APP1 with EXIF", 0, |it, o| {
        png_with_text(it, &raw_profile("APP1", b"Exif\0\0", &exif(o, false)))
    }),
    ("PNG, text of XMP", 0, |it, o| {
        png_with_text(it, &raw_profile("xmp", b"", &xmp(o, false)))
    }),
    ("PNG, text of APP1 with XMP", 0, |it, o| {
        png_with_text(it, &raw_profile("APP1", XMP_PREFIX, &xmp(o, true)))
    }),
    ("WebP, EXIF", 0, |it, o| {
        webp(it, Some(exif(o, false)), None)
    }),
    ("WebP, XMP", 0, |it, o| webp(it, None, Some(xmp(o, true)))),
];

#[test]
fn every_orientation_in_every_format_is_applied_and_the_mask_fits_afterwards() {
    let mask = png(figure());
    for (name, tolerance, container) in CONTAINERS {
        for orientation in 1..=8 {
            let file = container(&stored(&scene(), orientation), orientation);
            let (pixels, changes) = import(&file, MaskSource::File(&mask), &OF_A_FILE);
            let pixels = pixels.unwrap();
            let off = difference(&pixels.image, &scene());
            assert!(off <= tolerance, "{name}, {orientation}: {off}");
            assert_eq!(pixels.mask, figure(), "{name}, {orientation}");
            let source = if name.contains("XMP") { "XMP" } else { "EXIF" };
            let expected = match orientation {
                1 => vec![],
                _ => vec![format!("orientation={source} {orientation}")],
            };
            assert_eq!(changes, expected, "{name}");
            assert_eq!(pixels.stored_as.is_some(), orientation == 1, "{name}");
        }
    }
}

#[test]
fn a_mask_that_lies_as_the_file_does_is_refused_and_a_turned_mask_file_is_turned() {
    for orientation in 5..=8 {
        let lying = stored(&scene(), orientation);
        let image = jpeg_with(&jpeg(lying), b"Exif\0\0", &exif(orientation, false));
        let lying = png(stored(&figure(), orientation));
        let (pixels, _) = import(&image, MaskSource::File(&lying), &OF_A_FILE);
        let error = pixels.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the mask is 32x48 pixels, the image is 48x32 after it was turned upright; turn the \
             mask, too"
        );
        let turned = png_with(
            &lying,
            *b"eXIf",
            &exif(orientation, true),
            Place::AfterHeader,
        );
        let (pixels, changes) = import(&image, MaskSource::File(&turned), &OF_A_FILE);
        assert_eq!(pixels.unwrap().mask, figure());
        assert_eq!(
            changes,
            [
                format!("orientation=EXIF {orientation}"),
                format!("orientation=mask: EXIF {orientation}")
            ]
        );
    }
}

#[test]
fn exif_wins_over_xmp_and_what_is_no_orientation_is_none() {
    let jpeg = jpeg(stored(&scene(), 6));
    let with_xmp = jpeg_with(&jpeg, XMP_PREFIX, &xmp(3, false));
    let both = jpeg_with(&with_xmp, b"Exif\0\0", &exif(6, false));
    let (pixels, changes) = import(&both, MaskSource::Whole, &OF_A_FILE);
    assert_eq!(pixels.unwrap().image.dimensions(), (48, 32));
    assert_eq!(changes, ["orientation=EXIF 6, not XMP 3"]);
    for (exif, xmp) in [
        (exif(0, false), xmp(0, false)),
        (exif(9, true), xmp(99, true)),
    ] {
        let with_xmp = jpeg_with(&jpeg, XMP_PREFIX, &xmp);
        let both = jpeg_with(&with_xmp, b"Exif\0\0", &exif);
        let (pixels, changes) = import(&both, MaskSource::Whole, &OF_A_FILE);
        assert_eq!(pixels.unwrap().image.dimensions(), (32, 48));
        assert!(changes.is_empty(), "{changes:?}");
    }
}

#[test]
fn a_row_of_a_data_set_means_its_pixels_and_the_orientation_is_reported() {
    let lying = stored(&scene(), 6);
    let image = png_with(
        &png(lying.clone()),
        *b"eXIf",
        &exif(6, true),
        Place::AfterHeader,
    );
    let mask = png(stored(&figure(), 6));
    let expect = Expect {
        origin: Origin::Stored,
        size: Some((32, 48)),
        ..OF_A_FILE
    };
    let (pixels, changes) = import(&image, MaskSource::File(&mask), &expect);
    assert_eq!(pixels.unwrap().image, lying);
    assert_eq!(changes, ["orientation=EXIF 6"]);
    let wrong = Expect {
        size: Some((48, 32)),
        ..expect
    };
    let (pixels, _) = import(&image, MaskSource::File(&mask), &wrong);
    assert!(
        matches!(pixels, Err(ImageError::Size { what: "image", .. })),
        "{pixels:?}"
    );
}

/// Sampling's files of a user go the same way.
#[test]
fn a_users_file_is_turned_and_its_mask_fits_afterwards() {
    let (mask, face) = (png(figure()), [0.5, 0.25, 0.2, 0.2]);
    for (name, tolerance, container) in CONTAINERS {
        let file = container(&stored(&scene(), 6), 6);
        let image = UserImage {
            name: "me",
            bytes: &file,
            face_box: Some(face),
            mask: Some(("mask.png", &mask)),
        };
        let mut changes = Vec::new();
        let decoded = image.decode(&mut changes).unwrap();
        assert!(difference(&decoded.image, &scene()) <= tolerance, "{name}");
        assert_eq!((decoded.mask, changes.len()), (figure(), 1), "{name}");
    }
}

proptest! {
    #[test]
    fn any_lossless_image_is_shown_upright(
        orientation in 1u8..=8,
        container in 4usize..CONTAINERS.len(),
        width in 1u32..20,
        height in 1u32..20,
        seed: u8,
    ) {
        let value = |x: u32, y: u32| (x * 37 + y * 91) as u8 ^ seed;
        let shown = RgbImage::from_fn(width, height, |x, y| {
            Rgb([value(x, y), value(y, x), value(x + y, 3)])
        });
        let (_, _, container) = CONTAINERS[container];
        let file = container(&stored(&shown, orientation), orientation);
        let mut changes = Vec::new();
        let pixels = decode(&file, MaskSource::Whole, &OF_A_FILE, &mut changes).unwrap();
        prop_assert_eq!(pixels.image, shown);
        prop_assert_eq!(changes.len(), usize::from(orientation != 1));
        let whole = GrayImage::from_pixel(width, height, image::Luma([255]));
        prop_assert_eq!(pixels.mask, whole);
    }
}
