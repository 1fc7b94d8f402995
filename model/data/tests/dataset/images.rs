//! Images and masks that an import converts or refuses.

use crate::folder::{Folder, SIDE, encode, figure, picture, row};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use model_data::decoded::decode;
use model_data::describe::describe;
use serde_json::{Value, json};

/// A JPEG with an APP1 segment of EXIF that says orientation 6.
fn photo(image: RgbImage) -> Vec<u8> {
    let mut bytes = encode(image, ImageFormat::Jpeg);
    let exif =
        b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    bytes.splice(2..2, exif.iter().copied());
    bytes
}

/// What case 01 imports: a square photo that lies on its side, under an upright mask.
#[tokio::test]
async fn a_square_photo_is_stored_upright_under_its_mask() {
    let folder = Folder::new();
    let shown = RgbImage::from_fn(SIDE, SIDE, |_, y| {
        if y < SIDE * 3 / 4 {
            Rgb([210, 30, 30])
        } else {
            Rgb([20, 40, 200])
        }
    });
    let lying = DynamicImage::from(shown.clone()).rotate270().into_rgb8();
    folder.write("p.jpg", &photo(lying));
    let (sample, report) = folder
        .import_one(row("a", json!({ "image": "p.jpg" })))
        .await;
    let decoded = decode(&sample, 0).unwrap();
    for (x, y, pixel) in decoded.image.enumerate_pixels() {
        let red = pixel.0[0] > pixel.0[2];
        assert_eq!(red, decoded.mask.get_pixel(x, y).0[0] > 127, "{x} {y}");
    }
    assert_eq!(sample.metadata.changes, ["orientation=EXIF 6"]);
    assert_eq!(
        report.changes.lines(),
        ["1: turned upright as EXIF or XMP says (for instance line 1: EXIF 6)"]
    );
}

#[tokio::test]
async fn cut_files_of_every_format_are_rejected_by_line() {
    let folder = Folder::new();
    let mut rows = vec![row("whole", json!({}))];
    for (name, format) in [
        ("half.jpg", ImageFormat::Jpeg),
        ("half.png", ImageFormat::Png),
        ("half.webp", ImageFormat::WebP),
    ] {
        let bytes = encode(picture(), format);
        folder.write(name, &bytes[..bytes.len() / 2]);
        rows.push(row(name, json!({ "image": name })));
    }
    let mask = encode(figure(), ImageFormat::Png);
    folder.write("half_mask.png", &mask[..mask.len() / 2]);
    rows.push(row("mask", json!({ "mask": "half_mask.png" })));
    let (_, report) = folder.import(&rows).await.unwrap();
    assert_eq!(report.accepted, 1);
    let lines: Vec<u64> = report.rejected.iter().map(|it| it.0).collect();
    assert_eq!(lines, [2, 3, 4, 5]);
    for (line, reason) in &report.rejected {
        let what = if *line == 5 { "mask" } else { "image" };
        assert!(
            reason.starts_with(&format!("the {what} is cut off: ")),
            "{line}: {reason}"
        );
    }
}

#[tokio::test]
async fn masks_are_converted_and_counted_or_refused_by_name() {
    let folder = Folder::new();
    let is_figure = |x, y| figure().get_pixel(x, y).0[0] > 0;
    let numbers = GrayImage::from_fn(SIDE, SIDE, |x, y| Luma([u8::from(is_figure(x, y))]));
    let wide = image::ImageBuffer::from_fn(SIDE, SIDE, |x, y| {
        Luma([if is_figure(x, y) { 255u16 } else { 0 }])
    });
    folder.write("numbers.png", &encode(numbers, ImageFormat::Png));
    folder.write("wide.png", &encode(wide, ImageFormat::Png));
    folder.write(
        "full.png",
        &encode(
            GrayImage::from_pixel(SIDE, SIDE, Luma([255])),
            ImageFormat::Png,
        ),
    );
    folder.write(
        "none.png",
        &encode(GrayImage::new(SIDE, SIDE), ImageFormat::Png),
    );
    for (mask, change) in [
        ("numbers.png", "mask-numbers=0 and 1"),
        ("wide.png", "mask-depth=values to 255"),
    ] {
        let (sample, _) = folder.import_one(row("a", json!({ "mask": mask }))).await;
        assert_eq!(sample.metadata.changes, [change]);
        assert_eq!(decode(&sample, 0).unwrap().mask, figure());
    }
    let below = json!([0.5, 0.9, 0.2, 0.1]);
    for (changed, reason) in [
        (
            json!({ "mask": "full.png" }),
            "the mask has no pixel of background",
        ),
        (
            json!({ "mask": "none.png" }),
            "the mask has no pixel of figure",
        ),
        (
            json!({ "bbox": below }),
            "no pixel of figure where the face is (bbox [0.5, 0.9, 0.2, 0.1])",
        ),
        (json!({ "mask": null }), "there is no mask"),
    ] {
        let found = folder.rejection(row("a", changed)).await;
        assert!(found.contains(reason), "{found}");
    }
}

#[tokio::test]
async fn an_opaque_alpha_channel_is_no_mask() {
    let folder = Folder::new();
    let opaque = DynamicImage::from(picture()).into_rgba8();
    folder.write("opaque.png", &encode(opaque, ImageFormat::Png));
    let changed = json!({ "image": "opaque.png", "mask": null, "bbox": null });
    let found = folder.rejection(row("a", changed)).await;
    assert!(found.contains("there is no mask"), "{found}");
    let cut_out = RgbaImage::from_fn(SIDE, SIDE, |x, y| {
        let [r, g, b] = picture().get_pixel(x, y).0;
        Rgba([r, g, b, figure().get_pixel(x, y).0[0]])
    });
    folder.write("cut_out.png", &encode(cut_out, ImageFormat::Png));
    let changed = json!({ "image": "cut_out.png", "mask": null, "bbox": null });
    let (sample, report) = folder.import_one(row("a", changed)).await;
    assert_eq!(
        sample.metadata.changes,
        ["transparency", "mask-from-alpha", "face-guessed"]
    );
    assert_eq!((report.guessed_boxes, report.changes.0.len()), (1, 3));
}

#[tokio::test]
async fn only_regular_files_are_read() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("folder")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(folder.path("pipe.png"))
        .status();
    assert!(made.unwrap().success());
    for (name, kind) in [("folder", "a folder"), ("pipe.png", "a named pipe")] {
        for field in ["image", "mask"] {
            let found = folder.rejection(row("a", json!({ field: name }))).await;
            let expected = format!("{field} \"{name}\" is {kind}; it must be a file");
            assert!(found.contains(&expected), "{found}");
        }
    }
    std::fs::remove_file(folder.path("samples.jsonl")).unwrap();
    std::fs::create_dir(folder.path("samples.jsonl")).unwrap();
    let error = folder.import_listed().await.unwrap_err();
    let error = proto::text::chain(&error);
    assert!(error.contains("is a folder; it must be a file"), "{error}");
}

/// Names of images as people have them.
#[tokio::test]
async fn files_of_any_name_are_found() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub dir")).unwrap();
    let names = [
        "plain.png",
        "with space.png",
        "sub dir/a.png",
        "UPPER.PNG",
        "emoji_\u{1f600}.png",
        "percent%20.png",
        "hash#1.png",
        "quote'\".png",
        "newline\n.png",
        "no_extension",
        "wrong.jpg",
        "./dot.png",
    ];
    let mut rows = Vec::new();
    for name in names {
        folder.write(name, &encode(picture(), ImageFormat::Png));
        rows.push(row(
            name,
            json!({ "image": name, "id": rows.len().to_string() }),
        ));
    }
    let bad = ["../else.png", "/etc/hostname", "sub dir", "sub dir\\a.png"];
    rows.extend(bad.iter().map(|name| row(name, json!({ "image": name }))));
    let (_, report) = folder.import(&rows).await.unwrap();
    assert_eq!(
        report.accepted as usize,
        names.len(),
        "{:?}",
        report.rejected
    );
    let lines: Vec<u64> = report.rejected.iter().map(|it| it.0).collect();
    assert_eq!(lines, [13, 14, 15, 16]);
}

/// What is changed is kept in the data set, where `describe` counts it.
#[tokio::test]
async fn changes_are_kept_with_the_rows_and_counted() {
    let folder = Folder::new();
    let square = DynamicImage::from(picture()).rotate270().into_rgb8();
    folder.write("p.jpg", &photo(square));
    let rows = [
        row("first", json!({ "image": "p.jpg", "bbox": null })),
        row("second", json!({ "bbox": null })),
        row("third", json!({ "prompts": "Blue Hair" })),
        row("refused", json!({ "image": "p.jpg", "mask": null })),
    ];
    let (dataset, report) = folder.import(&rows).await.unwrap();
    // The refused row counts, so that all of it can be put right at once.
    assert_eq!(report.changes.0["orientation"].samples, 2);
    assert_eq!(report.changes.0["orientation"].example, "line 1: EXIF 6");
    let description = describe(&dataset).await.unwrap();
    let counts: Vec<(&str, u64, &str)> = description
        .changes
        .0
        .iter()
        .map(|(kind, count)| (kind.as_str(), count.samples, count.example.as_str()))
        .collect();
    assert_eq!(
        counts,
        [
            ("face-guessed", 2, "first"),
            ("orientation", 1, "first: EXIF 6"),
            ("tags", 1, "third: \"Blue Hair\" is \"blue_hair\""),
        ]
    );
    let json: Value = serde_json::to_value(&description).unwrap();
    assert_eq!(json["changes"]["face-guessed"]["samples"], 2);
    let verified = model_data::verify::verify(&dataset).await.unwrap();
    assert_eq!(verified.changes, description.changes);
    assert!(verified.findings.is_empty());
}
