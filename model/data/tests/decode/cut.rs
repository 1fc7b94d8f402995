//! Files that are cut off, damaged, animated, followed by other bytes, or no images.

use crate::files::{OF_A_FILE, RED, difference, figure, import, png, read, scene};
use image::Rgb;
use model_data::decode::{Expect, MaskSource, Origin};
use model_data::image_file::{ImageError, flatten};
use proptest::prelude::*;

/// All formats, and all kinds of scans: sequential with and without restart markers, with smaller
/// colour planes, grey and CMYK, progressive, interlaced, lossy and lossless, animated.
const WHOLE: [&str; 15] = [
    "baseline.jpg",
    "subsampled.jpg",
    "progressive.jpg",
    "restart.jpg",
    "grey.jpg",
    "cmyk.jpg",
    "wide.jpg",
    "plain.png",
    "interlaced.png",
    "alpha.png",
    "animated.png",
    "lossless.webp",
    "lossy.webp",
    "alpha.webp",
    "animated.webp",
];

#[test]
fn a_file_that_is_cut_at_any_byte_is_refused() {
    let mask = png(figure());
    let stored = Expect {
        origin: Origin::Stored,
        check: false,
        ..OF_A_FILE
    };
    for name in WHOLE {
        let bytes = read(name);
        // A row of a data set is refused as well, by the loader and by `verify`.
        for expect in [OF_A_FILE, stored] {
            let (whole, _) = import(&bytes, MaskSource::File(&mask), &expect);
            assert_eq!(whole.unwrap().image.dimensions(), (48, 32), "{name}");
            for length in 0..bytes.len() {
                let (cut, _) = import(&bytes[..length], MaskSource::File(&mask), &expect);
                let error = cut.expect_err(name);
                let named = matches!(
                    error,
                    ImageError::Cut { what: "image", .. }
                        | ImageError::Decode { what: "image", .. }
                );
                assert!(named, "{name} of {length} bytes: {error:?}");
            }
        }
        let half = &bytes[..bytes.len() / 2];
        let (cut, _) = import(half, MaskSource::Whole, &OF_A_FILE);
        let message = cut.unwrap_err().to_string();
        assert!(
            message.starts_with("the image is cut off: "),
            "{name}: {message}"
        );
    }
    let bytes = png(figure());
    for length in 0..bytes.len() {
        let mask = MaskSource::File(&bytes[..length]);
        let (cut, _) = import(&read("plain.png"), mask, &OF_A_FILE);
        assert_eq!(cut.unwrap_err().file(), "mask", "{length} bytes");
    }
}

/// Tools that repair files write the end marker after what they have.
#[test]
fn a_progressive_jpeg_without_its_last_scans_is_refused_also_with_an_end_marker() {
    let bytes = read("progressive.jpg");
    let starts: Vec<usize> = (0..bytes.len() - 1)
        .filter(|at| bytes[*at..].starts_with(&[0xff, 0xda]))
        .collect();
    assert!(starts.len() > 5, "{} scans", starts.len());
    for start in &starts[1..] {
        let mut cut = bytes[..*start].to_vec();
        cut.extend([0xff, 0xd9]);
        let (pixels, _) = import(&cut, MaskSource::Whole, &OF_A_FILE);
        let error = pixels.unwrap_err().to_string();
        assert!(error.contains("scan"), "{error}");
    }
}

/// Cut anywhere inside the data of a scan, with an end marker after it.
#[test]
fn a_jpeg_that_was_cut_and_got_a_new_end_is_refused() {
    for name in WHOLE.iter().filter(|it| it.ends_with(".jpg")) {
        let bytes = read(name);
        let scans: Vec<usize> = (0..bytes.len() - 1)
            .filter(|at| bytes[*at..].starts_with(&[0xff, 0xda]))
            .collect();
        for length in scans[0]..bytes.len() - 3 {
            let mut cut = bytes[..length].to_vec();
            cut.extend([0xff, 0xd9]);
            let (pixels, _) = import(&cut, MaskSource::Whole, &OF_A_FILE);
            assert!(pixels.is_err(), "{name}: {length} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn damaged_pixels_of_png_are_refused() {
    let mut bytes = read("plain.png");
    let at = bytes.windows(4).position(|it| it == b"IDAT").unwrap() + 12;
    bytes[at] ^= 0x55;
    let (pixels, _) = import(&bytes, MaskSource::Whole, &OF_A_FILE);
    assert!(
        matches!(pixels, Err(ImageError::Decode { .. })),
        "{pixels:?}"
    );
}

#[test]
fn every_kind_of_scan_shows_the_scene() {
    for name in WHOLE {
        let (pixels, changes) = import(&read(name), MaskSource::Whole, &OF_A_FILE);
        let pixels = pixels.unwrap();
        let red = pixels.image.get_pixel(5, 5);
        let close = red.0.iter().zip(RED.0).all(|(a, b)| a.abs_diff(b) < 40);
        assert!(close || name == "grey.jpg", "{name}: {red:?}");
        let expected: &[&str] = match name {
            "cmyk.jpg" => &["cmyk"],
            "wide.jpg" => &["profile=Wide"],
            "alpha.png" | "alpha.webp" => &["transparency"],
            "animated.png" | "animated.webp" => &["frame=the first of 3"],
            _ => &[],
        };
        assert_eq!(changes, expected, "{name}");
    }
}

/// Jobs are pinned to the pixels that earlier releases read, with the `image` crate alone.
#[test]
fn rows_of_a_data_set_have_the_pixels_that_they_always_had() {
    let stored = Expect {
        origin: Origin::Stored,
        check: false,
        ..OF_A_FILE
    };
    for name in WHOLE {
        let bytes = read(name);
        let before = image::load_from_memory(&bytes).unwrap();
        let (pixels, _) = import(&bytes, MaskSource::File(&bytes), &stored);
        let pixels = pixels.unwrap();
        assert_eq!(pixels.mask, before.to_luma8(), "{name}");
        let white = Rgb([255; 3]);
        assert_eq!(pixels.image, flatten(before, white), "{name}");
    }
}

#[test]
fn the_first_frame_of_an_animation_is_taken_and_said() {
    for name in ["animated.png", "animated.webp"] {
        let (pixels, changes) = import(&read(name), MaskSource::Whole, &OF_A_FILE);
        let pixels = pixels.unwrap();
        assert_eq!(pixels.image, scene(), "{name}");
        assert_eq!(changes, ["frame=the first of 3"]);
        assert_eq!(pixels.stored_as, None, "the other frames are not stored");
    }
}

/// An animated PNG may begin with an image for programs that do not animate.
#[test]
fn a_still_image_before_an_animation_is_said_to_be_none_of_its_frames() {
    let mut still = Vec::new();
    let mut encoder = png::Encoder::new(&mut still, 48, 32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_animated(2, 0).unwrap();
    encoder.set_sep_def_img(true).unwrap();
    let mut writer = encoder.write_header().unwrap();
    let (first, other) = (scene(), image::RgbImage::new(48, 32));
    for image in [first, other.clone(), other] {
        writer.write_image_data(&image).unwrap();
    }
    writer.finish().unwrap();
    let (pixels, changes) = import(&still, MaskSource::Whole, &OF_A_FILE);
    assert_eq!(pixels.unwrap().image, scene());
    assert_eq!(changes, ["frame=the still image before 2 frames"]);
}

proptest! {
    /// Whatever is damaged, the decoder returns, and what it returns fits together.
    #[test]
    fn no_damage_makes_the_decoder_panic(
        file in 0..WHOLE.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        as_mask: bool,
    ) {
        let mut bytes = read(WHOLE[file]);
        for (index, value) in damage {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let (image, mask) = match as_mask {
            true => (read("plain.png"), MaskSource::File(&bytes)),
            false => (bytes.clone(), MaskSource::Alpha),
        };
        for origin in [Origin::File, Origin::Stored] {
            let expect = Expect { origin, ..OF_A_FILE };
            if let (Ok(pixels), _) = import(&image, mask, &expect) {
                prop_assert_eq!(pixels.image.dimensions(), pixels.mask.dimensions());
            }
        }
    }

    /// Also if nothing but the first bytes is that of an image.
    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..4usize) {
        let starts: [&[u8]; 4] = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"RIFF\x40\0\0\0WEBP"];
        let mut file = starts[kind].to_vec();
        file.extend(&bytes);
        let (pixels, _) = import(&file, MaskSource::Whole, &OF_A_FILE);
        prop_assert!(pixels.is_err());
    }
}

/// Phones append videos and other images to a photo.
#[test]
fn bytes_after_the_image_are_not_stored_and_said() {
    for name in WHOLE {
        let bytes = read(name);
        let mut longer = bytes.clone();
        longer.extend(b"a video");
        let (whole, _) = import(&bytes, MaskSource::Whole, &OF_A_FILE);
        let (pixels, changes) = import(&longer, MaskSource::Whole, &OF_A_FILE);
        let (whole, pixels) = (whole.unwrap(), pixels.unwrap());
        assert_eq!(difference(&whole.image, &pixels.image), 0, "{name}");
        assert_eq!(whole.stored_as, pixels.stored_as, "{name}");
        assert!(
            changes.contains(&"trailing-bytes".to_owned()),
            "{name}: {changes:?}"
        );
    }
}

#[test]
fn other_files_are_named() {
    let text = |text: &str| text.as_bytes().to_vec();
    for (bytes, expected) in [
        (read("still.gif"), "it is a GIF"),
        (read("picture.bmp"), "it is a BMP"),
        (read("picture.tiff"), "it is a TIFF"),
        (Vec::new(), "the file is empty"),
        (
            text("version https://git-lfs.github.com/spec/v1\n"),
            "git-lfs pointer",
        ),
        (text("<!DOCTYPE html>"), "a web page"),
        (text("no image"), "of no known format"),
        (text("\0\0\0\x20ftypavif"), "an AVIF, HEIC or video file"),
    ] {
        let (pixels, _) = import(&bytes, MaskSource::Whole, &OF_A_FILE);
        let error = pixels.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(
            error.starts_with("the image cannot be decoded as PNG, JPEG or WebP: "),
            "{error}"
        );
    }
}
