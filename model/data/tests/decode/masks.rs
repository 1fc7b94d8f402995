//! All kinds of masks at all bit depths: what can be meant is converted, the others are refused by
//! what they are.

use crate::files::{
    DEPTHS, HEIGHT, OF_A_FILE, WIDTH, figure, file, import, jpeg, most, png, read, scene,
};
use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use model_data::decode::{Expect, MaskSource, Origin};
use png::{BitDepth, ColorType};
use proptest::prelude::*;

/// A grey mask of one value on the figure and one on the background.
fn grey(depth: BitDepth, on: u16, off: u16) -> Vec<u8> {
    let value = |x, y| {
        vec![if figure().get_pixel(x, y).0[0] > 0 {
            on
        } else {
            off
        }]
    };
    file((WIDTH, HEIGHT), ColorType::Grayscale, depth, &[], value)
}

/// The mask and the changes, or the reason.
fn read_mask(mask: &[u8]) -> Result<(GrayImage, Vec<String>), String> {
    let (pixels, changes) = import(&read("plain.png"), MaskSource::File(mask), &OF_A_FILE);
    pixels
        .map(|it| (it.mask, changes))
        .map_err(|error| error.to_string())
}

fn expect_figure(mask: &[u8], changes: &[&str]) {
    let (found, made) = read_mask(mask).unwrap();
    assert_eq!(made, changes);
    assert_eq!(found, figure(), "{changes:?}");
}

fn expect_refused(mask: &[u8], reason: &str) {
    let error = read_mask(mask).unwrap_err();
    assert!(error.contains(reason), "{error:?} does not say {reason:?}");
    assert!(error.starts_with("the mask "), "{error}");
}

#[test]
fn black_and_white_is_read_at_every_depth() {
    for depth in DEPTHS {
        let changes: &[&str] = match depth {
            BitDepth::Sixteen => &["mask-depth=scaled; values to 65535"],
            _ => &[],
        };
        expect_figure(&grey(depth, most(depth), 0), changes);
    }
    expect_figure(&png(figure()), &[]);
    // Colours that are grey, with and without an alpha channel that hides nothing.
    let rgb = RgbImage::from_fn(
        WIDTH,
        HEIGHT,
        |x, y| Rgb([figure().get_pixel(x, y).0[0]; 3]),
    );
    expect_figure(&png(rgb.clone()), &[]);
    let rgba = RgbaImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let value = figure().get_pixel(x, y).0[0];
        Rgba([value, value, value, 255])
    });
    expect_figure(&png(rgba), &[]);
    // JPEG rounds; what is nearly white is white enough.
    let (mask, _) = read_mask(&jpeg(rgb)).unwrap();
    let hard = |it: &GrayImage| it.pixels().map(|it| it.0[0] >= 128).collect::<Vec<_>>();
    assert_eq!(hard(&mask), hard(&figure()));
}

#[test]
fn numbers_of_classes_are_read_at_every_depth_if_there_is_one_besides_zero() {
    // The figure is class 1. At 1 bit that is white; at 2 and 4 bits PNG scales it.
    for (depth, seen) in [
        (BitDepth::Two, 85),
        (BitDepth::Four, 17),
        (BitDepth::Eight, 1),
    ] {
        expect_figure(&grey(depth, 1, 0), &[&format!("mask-numbers=0 and {seen}")]);
    }
    expect_figure(
        &grey(BitDepth::Sixteen, 1, 0),
        &["mask-depth=values to 1", "mask-numbers=0 and 1"],
    );
    expect_figure(&grey(BitDepth::Eight, 15, 0), &["mask-numbers=0 and 15"]);
    // An 8-bit mask that was saved as 16 bits.
    expect_figure(
        &grey(BitDepth::Sixteen, 255, 0),
        &["mask-depth=values to 255"],
    );
    // 12 bits in 16.
    expect_figure(
        &grey(BitDepth::Sixteen, 4095, 0),
        &["mask-depth=scaled; values to 4095", "mask-numbers=0 and 16"],
    );
}

#[test]
fn several_classes_do_not_say_which_is_the_figure() {
    let classes = |depth, values: [u16; 3]| {
        let value = move |x: u32, y: u32| {
            let is_figure = figure().get_pixel(x, y).0[0] > 0;
            vec![
                values[if is_figure {
                    1 + usize::from(x < 12)
                } else {
                    0
                }],
            ]
        };
        file((WIDTH, HEIGHT), ColorType::Grayscale, depth, &[], value)
    };
    for (depth, named) in [
        (BitDepth::Two, "0, 85, 170"),
        (BitDepth::Four, "0, 17, 34"),
        (BitDepth::Eight, "0, 1, 2"),
        (BitDepth::Sixteen, "0, 1, 2"),
    ] {
        let reason = format!("has numbers of classes (values: values are {named})");
        expect_refused(&classes(depth, [0, 1, 2]), &reason);
    }
    // VOC marks borders with 255, which is no figure.
    expect_refused(
        &classes(BitDepth::Eight, [0, 15, 255]),
        "values are 0, 15, 255",
    );
    // No zero: which of them is the background?
    expect_refused(&grey(BitDepth::Eight, 2, 1), "has numbers of classes");
}

#[test]
fn palettes_are_read_by_their_colours_and_without_colours_by_their_numbers() {
    for depth in [
        BitDepth::One,
        BitDepth::Two,
        BitDepth::Four,
        BitDepth::Eight,
    ] {
        let palette = |palette: &[[u8; 3]]| {
            let index = |x, y| vec![u16::from(figure().get_pixel(x, y).0[0] > 0)];
            file((WIDTH, HEIGHT), ColorType::Indexed, depth, palette, index)
        };
        expect_figure(&palette(&[[0; 3], [255; 3]]), &[]);
        // The palette of PASCAL VOC.
        expect_figure(
            &palette(&[[0; 3], [128, 0, 0]]),
            &["mask-colours=(128, 0, 0)"],
        );
        expect_figure(&palette(&[[0; 3], [1; 3]]), &["mask-numbers=0 and 1"]);
        expect_figure(
            &palette(&[[0; 3], [0; 3]]),
            &["mask-numbers=palette indices 0 and 1"],
        );
        expect_refused(
            &palette(&[[0, 99, 0], [128, 0, 0]]),
            "do not say which is the figure",
        );
    }
    let three = file(
        (WIDTH, HEIGHT),
        ColorType::Indexed,
        BitDepth::Eight,
        &[[0; 3], [128, 0, 0], [0, 128, 0]],
        |x, _| vec![(x / 16) as u16],
    );
    expect_refused(
        &three,
        "has 3 colours ((0, 0, 0), (0, 128, 0), (128, 0, 0)…)",
    );
    let same = file(
        (WIDTH, HEIGHT),
        ColorType::Indexed,
        BitDepth::Eight,
        &[[9; 3], [9; 3], [9; 3]],
        |x, _| vec![(x / 16) as u16],
    );
    expect_refused(
        &same,
        "has numbers of classes (palette indices: values are 0, 1, 2)",
    );
}

#[test]
fn a_shape_only_in_alpha_is_refused_and_one_that_grey_repeats_is_read() {
    for depth in [BitDepth::Eight, BitDepth::Sixteen] {
        let (one, changes): (u16, &[&str]) = match depth {
            BitDepth::Sixteen => (u16::MAX, &["mask-depth=scaled; values to 65535"]),
            _ => (255, &[]),
        };
        let with = |colour: ColorType, value: fn(bool) -> (u16, u16)| {
            let samples = |x, y| {
                let (grey, alpha) = value(figure().get_pixel(x, y).0[0] > 0);
                let mut samples =
                    vec![grey.min(one); if colour == ColorType::Rgba { 3 } else { 1 }];
                samples.push(alpha.min(one));
                samples
            };
            file((WIDTH, HEIGHT), colour, depth, &[], samples)
        };
        for colour in [ColorType::GrayscaleAlpha, ColorType::Rgba] {
            let only = "has its shape only in its alpha channel";
            let white = with(colour, |it| (u16::MAX, if it { u16::MAX } else { 0 }));
            expect_refused(&white, only);
            expect_refused(&with(colour, |it| (0, if it { u16::MAX } else { 0 })), only);
            let both = with(colour, |it| if it { (u16::MAX, u16::MAX) } else { (0, 0) });
            let wide = depth == BitDepth::Sixteen && colour == ColorType::GrayscaleAlpha;
            expect_figure(&both, if wide { changes } else { &[] });
            // White where it hides, and black where it shows.
            let other = with(colour, |it| if it { (0, u16::MAX) } else { (u16::MAX, 0) });
            expect_refused(
                &other,
                "one shape in its colours and another in its alpha channel",
            );
        }
    }
    expect_refused(&read("alpha.png"), "has 3 colours");
}

#[test]
fn masks_without_figure_or_background_are_refused_at_every_depth() {
    for depth in DEPTHS {
        expect_refused(
            &grey(depth, 0, 0),
            "has no pixel of figure: its only value is 0",
        );
        let all = most(depth);
        expect_refused(
            &grey(depth, all, all),
            "has no pixel of background: its only value is 255",
        );
    }
    expect_refused(
        &grey(BitDepth::Eight, 255, 200),
        "no pixel of background: its values are 200, 255",
    );
    let dim = GrayImage::from_fn(WIDTH, HEIGHT, |x, _| Luma([x as u8 * 2]));
    expect_refused(
        &png(dim),
        "has no pixel of figure: its 48 values go from 0 to 94",
    );
    expect_refused(&png(scene()), "has 3 colours");
    let picture = RgbImage::from_fn(WIDTH, HEIGHT, |x, y| Rgb([x as u8 * 5, y as u8 * 7, 9]));
    expect_refused(&png(picture), "is a colour picture");
}

#[test]
fn the_face_must_show_a_pixel_of_the_figure() {
    let expect = |face| Expect {
        face: Some(face),
        ..OF_A_FILE
    };
    // The figure is the upper half.
    let (upper, lower) = ([0.5, 0.25, 0.2, 0.2], [0.5, 0.75, 0.2, 0.2]);
    let image = read("plain.png");
    let inverted = GrayImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let value = figure().get_pixel(x, y).0[0];
        // The figure of an upright image fills less than half of it.
        Luma([if x < 10 { 255 } else { 255 - value }])
    });
    for (mask, face, reason) in [
        (png(figure()), upper, None),
        (
            png(figure()),
            lower,
            Some("has no pixel of figure where the face is (bbox [0.5, 0.75, 0.2, 0.2])"),
        ),
        (png(inverted), upper, Some("perhaps inverted")),
    ] {
        let (pixels, _) = import(&image, MaskSource::File(&mask), &expect(face));
        match reason {
            None => assert!(pixels.is_ok()),
            Some(reason) => {
                let error = pixels.unwrap_err().to_string();
                assert!(error.contains(reason), "{error}");
            }
        }
    }
}

#[test]
fn an_alpha_channel_is_a_mask_only_if_it_hides_something() {
    let with_alpha = |alpha: fn(u32) -> u8| {
        png(RgbaImage::from_fn(WIDTH, HEIGHT, |x, y| {
            let Rgb([r, g, b]) = *scene().get_pixel(x, y);
            Rgba([r, g, b, alpha(y)])
        }))
    };
    let read = |file: &[u8]| {
        let (pixels, changes) = import(file, MaskSource::Alpha, &OF_A_FILE);
        pixels
            .map(|it| (it, changes))
            .map_err(|error| error.to_string())
    };
    let (pixels, changes) = read(&with_alpha(|y| if y < 16 { 255 } else { 0 })).unwrap();
    assert_eq!(pixels.mask, figure());
    assert_eq!(changes, ["transparency", "mask-from-alpha"]);
    let none = "there is no mask: give a mask file, or an image with an alpha channel that hides \
                the background";
    assert_eq!(read(&with_alpha(|_| 255)).unwrap_err(), none);
    assert_eq!(read(&png(scene())).unwrap_err(), none);
    assert!(
        read(&with_alpha(|_| 0))
            .unwrap_err()
            .contains("alpha channel has no pixel of figure")
    );
    let error = read(&with_alpha(|_| 200)).unwrap_err();
    assert!(
        error.contains("alpha channel has no pixel of background"),
        "{error}"
    );
    // Without a use for the mask, an opaque alpha channel is no change, and the file stays.
    let opaque = with_alpha(|_| 255);
    let (pixels, changes) = import(&opaque, MaskSource::Whole, &OF_A_FILE);
    assert_eq!(pixels.unwrap().stored_as, Some(opaque.len()));
    assert!(changes.is_empty());
}

#[test]
fn stored_masks_are_read_as_they_are_and_verified_by_the_same_rules() {
    let image = read("plain.png");
    let stored = Expect {
        origin: Origin::Stored,
        size: Some((WIDTH, HEIGHT)),
        ..OF_A_FILE
    };
    let loader = Expect {
        check: false,
        ..stored
    };
    let numbers = grey(BitDepth::Eight, 1, 0);
    let (pixels, changes) = import(&image, MaskSource::File(&numbers), &loader);
    assert_eq!(pixels.unwrap().mask.get_pixel(0, 0), &Luma([1]));
    assert!(changes.is_empty());
    let (pixels, _) = import(&image, MaskSource::File(&numbers), &stored);
    let error = pixels.unwrap_err().to_string();
    assert!(error.contains("has no pixel of figure"), "{error}");
    let (pixels, changes) = import(&image, MaskSource::File(&png(figure())), &stored);
    assert_eq!(pixels.unwrap().mask, figure());
    assert!(changes.is_empty());
}

proptest! {
    /// A rectangle on a background, as any tool may write it, comes out as the same rectangle.
    #[test]
    fn any_shape_survives_every_kind_and_depth(
        (width, height) in (2u32..24, 2u32..24),
        (left, top) in (0u32..8, 0u32..8),
        depth in 0usize..DEPTHS.len(),
        kind in 0usize..6,
        class: u16,
    ) {
        let inside = |x: u32, y: u32| {
            (x >= left.min(width - 1) && y >= top.min(height - 1)) && (x, y) != (0, 0)
        };
        let depth = DEPTHS[depth];
        let all = most(depth);
        // Numbers of classes begin at 1.
        let class = 1 + class % all;
        let value = |on: u16| move |x: u32, y: u32| vec![if inside(x, y) { on } else { 0 }];
        let palette = |colour: [u8; 3]| [[0; 3], colour];
        let wide = if (depth as u8) < 8 { BitDepth::Eight } else { depth };
        let size = (width, height);
        let bytes = match kind {
            0 => file(size, ColorType::Grayscale, depth, &[], value(all)),
            1 => file(size, ColorType::Grayscale, depth, &[], value(class)),
            2 if depth as u8 != 16 => {
                file(size, ColorType::Indexed, depth, &palette([7, 130, 44]), value(1))
            }
            3 if depth as u8 != 16 => {
                file(size, ColorType::Indexed, depth, &palette([0; 3]), value(1))
            }
            4 => file(size, ColorType::Rgb, wide, &[], |x, y| value(most(wide))(x, y).repeat(3)),
            5 => file(size, ColorType::Rgba, wide, &[], |x, y| value(most(wide))(x, y).repeat(4)),
            _ => file(size, ColorType::GrayscaleAlpha, wide, &[], |x, y| {
                vec![value(most(wide))(x, y)[0], most(wide)]
            }),
        };
        let image = png(RgbImage::new(width, height));
        let (pixels, changes) = import(&image, MaskSource::File(&bytes), &OF_A_FILE);
        let expected = GrayImage::from_fn(width, height, |x, y| {
            Luma([if inside(x, y) { 255 } else { 0 }])
        });
        let hard = |mask: &GrayImage| mask.pixels().map(|it| it.0[0] >= 128).collect::<Vec<_>>();
        match pixels {
            Ok(pixels) => prop_assert_eq!(hard(&pixels.mask), hard(&expected), "{:?}", changes),
            Err(error) => prop_assert!(false, "{error} ({depth:?}, kind {kind}, class {class})"),
        }
    }
}
