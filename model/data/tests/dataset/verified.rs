//! `verify` finds in an existing data set what an import would refuse, or convert, today.

use crate::folder::{SIDE, encode, faults, figure, picture, sample, write};
use image::{DynamicImage, GrayImage, ImageEncoder, ImageFormat, Luma};
use model_data::sample::Sample;

type Plant = fn(&mut Sample);

const PLANTS: [(&str, Plant); 22] = [
    (
        "the image is cut off: it ends before its end-of-image marker",
        |row| {
            let bytes = encode(picture(), ImageFormat::Jpeg);
            row.image = bytes[..bytes.len() - 2].to_vec().into();
        },
    ),
    ("the image is cut off: its IDAT chunk", |row| {
        cut(row, ImageFormat::Png)
    }),
    ("the image is cut off: it has ", |row| {
        cut(row, ImageFormat::WebP)
    }),
    ("the mask is cut off", |row| {
        row.mask = row.mask.slice(..row.mask.len() - 1)
    }),
    (
        "the image cannot be decoded as PNG, JPEG or WebP: it is a GIF",
        |row| {
            row.image = b"GIF89a".to_vec().into();
        },
    ),
    (
        "the mask has no pixel of figure: its values are 0, 1",
        |row| {
            let numbers = figure().pixels().map(|it| it.0[0] / 255).collect();
            mask(row, GrayImage::from_raw(SIDE, SIDE, numbers).unwrap());
        },
    ),
    (
        "mask of class numbers 0 and N read as background and figure (palette indices 0 and 200)",
        |row| {
            row.mask = palette_mask().into();
        },
    ),
    ("16-bit mask converted to 8 bits (values to 255)", |row| {
        let wide = |x, y| Luma([u16::from(figure().get_pixel(x, y).0[0])]);
        mask(row, image::ImageBuffer::from_fn(SIDE, SIDE, wide));
    }),
    (
        "the mask has no pixel of figure: its only value is 0",
        |row| {
            mask(row, GrayImage::new(SIDE, SIDE));
        },
    ),
    (
        "the mask has no pixel of background: its only value is 255",
        |row| {
            mask(row, GrayImage::from_pixel(SIDE, SIDE, Luma([255])));
        },
    ),
    ("the mask has no pixel of figure where the face is", |row| {
        row.metadata.bbox = [0.5, 0.9, 0.2, 0.1];
    }),
    ("the mask has its shape only in its alpha channel", |row| {
        let alpha = |x, y| image::LumaA([255, figure().get_pixel(x, y).0[0]]);
        mask(row, image::ImageBuffer::from_fn(SIDE, SIDE, alpha));
    }),
    (
        "import it again: turned upright as EXIF or XMP says (EXIF 6)",
        |row| {
            let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
            let mut bytes = Vec::new();
            let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
            encoder.set_exif_metadata(exif.to_vec()).unwrap();
            DynamicImage::from(picture())
                .write_with_encoder(encoder)
                .unwrap();
            row.image = bytes.into();
        },
    ),
    (
        "import it again: converted from the embedded colour profile to sRGB (Wide)",
        |row| {
            let mut bytes = Vec::new();
            let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
            let icc = include_bytes!("../images/wide.icc").to_vec();
            encoder.set_icc_profile(icc).unwrap();
            DynamicImage::from(picture())
                .write_with_encoder(encoder)
                .unwrap();
            row.image = bytes.into();
        },
    ),
    ("id is \" a\"; an import writes \"a\" today", |row| {
        row.metadata.id = " a".to_owned()
    }),
    ("character is \"c \"; an import writes \"c\" today", |row| {
        row.metadata.character = "c ".to_owned();
    }),
    (
        "character \"C\" differs from \"c\" only in case or spaces",
        |row| {
            row.metadata.character = "C".to_owned();
        },
    ),
    (
        "artists \"a\\0\" contains the control character U+0000",
        |row| {
            row.metadata.artists = "a\0".to_owned();
        },
    ),
    ("outfit is \"o \"; an import writes \"o\" today", |row| {
        row.metadata.outfit = "o ".to_owned();
    }),
    (
        "similar names \"first\", which is of another character or artist",
        |row| {
            row.metadata.artists = "another".to_owned();
            row.metadata.similar = vec!["first".to_owned()];
        },
    ),
    ("the image is cut off: a scan ends after", |row| {
        let bytes = encode(picture(), ImageFormat::Jpeg);
        // A tool has written a new end after half of the scan.
        let start = bytes.windows(2).position(|it| it == [0xff, 0xda]).unwrap();
        let mut cut = bytes[..(start + bytes.len()) / 2].to_vec();
        cut.extend([0xff, 0xd9]);
        row.image = cut.into();
    }),
    ("rating is \"nsfw\"; it must be general", |row| {
        row.metadata.rating = "nsfw".to_owned()
    }),
];

fn cut(row: &mut Sample, format: ImageFormat) {
    let bytes = encode(picture(), format);
    row.image = bytes[..bytes.len() / 2].to_vec().into();
}

fn mask(row: &mut Sample, mask: impl Into<DynamicImage>) {
    row.mask = encode(mask, ImageFormat::Png).into();
}

/// Indices 0 and 200 under a palette of one colour.
fn palette_mask() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIDE, SIDE);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(vec![200; 3 * 256]);
    let indices: Vec<u8> = figure()
        .pixels()
        .map(|it| if it.0[0] > 0 { 200 } else { 0 })
        .collect();
    encoder
        .write_header()
        .unwrap()
        .write_image_data(&indices)
        .unwrap();
    bytes
}

/// Data sets of earlier releases do not say what their images are.
#[tokio::test]
async fn what_an_import_would_only_report_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut row = sample("a");
    let mut longer = row.image.to_vec();
    longer.extend(b"a video");
    row.image = longer.into();
    let dataset = write(folder.path(), vec![row, sample("b")], &["changes"]).await;
    let verified = model_data::verify::verify(&dataset).await.unwrap();
    assert!(verified.findings.is_empty());
    assert_eq!(
        verified.changes.lines(),
        ["1: bytes after the end of the image ignored (for instance a)"]
    );
}

#[tokio::test]
async fn every_planted_fault_is_found_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let clean = write(folder.path(), vec![sample("first"), sample("second")], &[]).await;
    assert_eq!(faults(&clean).await, Vec::<String>::new());
    for (expected, plant) in PLANTS {
        let mut rows = vec![sample("first"), sample("second")];
        plant(&mut rows[1]);
        let dataset = write(folder.path(), rows, &[]).await;
        let found = faults(&dataset).await;
        assert!(
            found.iter().any(|it| it.contains(expected)),
            "{expected}: {found:?}"
        );
        assert!(
            found.iter().all(|it| it.contains("row group 0, row 1")),
            "{found:?}"
        );
    }
}
