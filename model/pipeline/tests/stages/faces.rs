//! Face boxes by models whose answers are known, and by the detector that setup installs.

use crate::danbooru::{self, FakePost};
use crate::masks::model;
use crate::run::build;
use crate::written::{buckets, metadata};
use image::{Rgb, RgbImage};
use model_data::image_file::encode_rgb;
use model_data::sample::Sample;
use pipeline::figure::FACES;
use pipeline::output::Outputs;
use pipeline::table::{self, Value};
use proto::build::Stage;
use proto::build::report::StageManifest;
use std::collections::BTreeMap;
use std::path::Path;

const TEXT: &str = "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[clusters]\nsignature = \
    \"answers\"\nanswers = \"answers\"\nquestions = [\"clothes\"]\n[dataset]\nimages = \"images\"\n\
    masks = \"masks\"\n[units]\nfaces = 2\n[faces]\n";

/// 128x64 pixels, black, with a red square of 32 pixels.
fn square(left: u32, top: u32) -> RgbImage {
    RgbImage::from_fn(128, 64, |x, y| {
        let is_red = (left..left + 32).contains(&x) && (top..top + 32).contains(&y);
        Rgb([if is_red { 255 } else { 0 }, 0, 0])
    })
}

fn prepare(drawn: &mut [(FakePost, Sample)], images: &[RgbImage], folder: &Path) {
    for (number, (_, sample)) in drawn.iter_mut().enumerate() {
        let image = &images[number % images.len()];
        sample.image = encode_rgb(image.clone()).unwrap();
        sample.metadata.bbox = [0.375, 0.25, 0.25, 0.5];
        let whole =
            image::GrayImage::from_fn(128, 64, |x, _| image::Luma([u8::from(x < 100) * 255]));
        sample.mask = model_data::image_file::encode_gray(whole).unwrap();
    }
    metadata(drawn, folder);
    buckets(drawn, folder);
}

/// Box, score and number of faces of each post.
async fn written(folder: &Path, manifest: &StageManifest) -> BTreeMap<i64, [f64; 6]> {
    let out = format!("file://{}", folder.join("out").display());
    let stage = Outputs::open(&out).unwrap().stage(&manifest.key);
    let mut found = BTreeMap::new();
    for part in manifest.parts.iter().filter(|it| 0 < it.rows) {
        let bytes = stage.part(part).await.unwrap();
        table::read(&part.path, bytes, &FACES, |rows| {
            for row in 0..rows.count() {
                let values: Vec<Value<'_>> = rows.row(row).collect();
                let Value::Number(id) = values[0] else {
                    panic!("an id is a number");
                };
                let real = |index: usize| match values[index] {
                    Value::Real(value) => value,
                    Value::Number(value) => f64::from(i32::try_from(value).unwrap()),
                    Value::Text(text) => panic!("{text}"),
                };
                found.insert(id, [1, 2, 3, 4, 5, 6].map(real));
            }
            Ok(())
        })
        .unwrap();
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn both_layouts_give_the_box_that_the_model_draws() {
    // The whole image is 64x32 pixels of the model's input: in its middle, or in its corner.
    let mut drawn = danbooru::drawn(2, 2, 64);
    let folder = tempfile::tempdir().unwrap();
    prepare(&mut drawn, &[square(32, 0)], folder.path());
    for (name, layout, expected) in [
        ("yolov5.onnx", "yolov5", [0.375, 0.25, 0.25, 0.5, 1.0, 1.0]),
        // The first of four cells, whose box ends at the upper edge.
        (
            "yunet.onnx",
            "YuNet",
            [0.3125, 0.0625, 0.125, 0.125, 1.0, 4.0],
        ),
    ] {
        let text = format!("{TEXT}model = {:?}\ntruth = \"boxes\"\n", model(name));
        let manifests = build(folder.path(), &text).await.unwrap();
        let manifest = &manifests[&Stage::Faces];
        let report = &manifest.report;
        assert_eq!((report.rows_in, report.rows_out), (8, 8), "{report:?}");
        let found = written(folder.path(), manifest).await;
        assert!(
            found.values().all(|it| *it == expected),
            "{name}: {found:?}"
        );
        let sentence = format!("faces of {name}, with outputs as {layout}, at 64x64");
        assert!(report.found[0].contains(&sentence), "{:?}", report.found);
        let is_yolov5 = layout == "yolov5";
        assert_eq!(
            report.counts["figures with several faces"],
            if is_yolov5 { 0 } else { 8 }
        );
        let compared = report.found.last().unwrap();
        assert_eq!(
            compared.contains("union 1.000, mean distance of the centres 0.000"),
            is_yolov5,
            "{compared}"
        );
        let last = &manifests[&Stage::Dataset].report;
        assert_eq!(
            (last.rows_out, last.counts["faces guessed from masks"]),
            (8, 0),
            "{last:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_without_a_face_are_dropped_and_thresholds_are_settings() {
    let mut drawn = danbooru::drawn(2, 4, 64);
    let folder = tempfile::tempdir().unwrap();
    let dim = RgbImage::from_pixel(128, 64, Rgb([128, 0, 0]));
    let images = [square(32, 0), square(0, 32), RgbImage::new(128, 64), dim];
    prepare(&mut drawn, &images, folder.path());
    let name = model("yolov5.onnx");
    let text = format!("{TEXT}model = {name:?}\n");
    let report = &build(folder.path(), &text).await.unwrap()[&Stage::Faces].report;
    assert_eq!(
        (report.rows_out, report.lost("no face")),
        (8, 8),
        "{report:?}"
    );
    let lower = format!("{text}score_min = 0.49\n");
    let manifests = build(folder.path(), &lower).await.unwrap();
    let manifest = &manifests[&Stage::Faces];
    assert_eq!(manifest.report.lost("no face"), 4);
    let found = written(folder.path(), manifest).await;
    let scores = found
        .values()
        .filter(|it| (it[4] - 128.0 / 255.0).abs() < 1e-6);
    assert_eq!(scores.count(), 4);
    assert_eq!(manifests[&Stage::Dataset].report.lost("no face box"), 0);
    // What overlaps nothing is never suppressed: eight cells are dim.
    assert_eq!(manifest.report.counts["figures with several faces"], 4);
}

/// The default detector on figures whose faces are known.
#[tokio::test(flavor = "multi_thread")]
async fn the_installed_detector_finds_faces_of_drawn_figures() {
    let drawn = danbooru::drawn(2, 4, 192);
    let folder = tempfile::tempdir().unwrap();
    metadata(&drawn, folder.path());
    buckets(&drawn, folder.path());
    let text = format!("{TEXT}truth = \"boxes\"\n");
    let manifests = build(folder.path(), &text).await.unwrap();
    let report = &manifests[&Stage::Faces].report;
    let found = report.rows_out;
    assert_eq!(found + report.lost("no face"), 16, "{report:?}");
    assert!(4 <= found, "{report:?}");
    let apart = "distance from the centre of the true box, sum of thousandths of its longer side";
    let (overlap, apart) = (
        report.counts["intersection over union with true boxes, sum of thousandths"] / found,
        report.counts[apart] / found,
    );
    assert!(400 < overlap && apart < 250, "{:?}", report.found);
    assert!(
        report.found[0].starts_with("faces of animeface 2.0.3 with Pillow 10."),
        "{:?}",
        report.found
    );
}
