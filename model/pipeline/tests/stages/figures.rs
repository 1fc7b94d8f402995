//! Crops of single figures by a detector whose answers are known.

use crate::danbooru;
use crate::masks::model;
use crate::run::build;
use crate::written::{buckets, dataset, metadata};
use image::{Rgb, RgbImage};
use model_data::image_file::encode_rgb;
use proto::build::Stage;

const TEXT: &str = "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[clusters]\nsignature = \
    \"answers\"\nanswers = \"answers\"\nquestions = [\"clothes\"]\n[dataset]\nimages = \"images\"\n\
    whole = true\n[figures]\nmargin = 0.0\n";

/// The model draws a box around the red square of an image that is twice as wide as high.
#[tokio::test(flavor = "multi_thread")]
async fn later_stages_read_the_crop_and_images_without_a_figure_are_dropped() {
    let mut drawn = danbooru::drawn(2, 3, 64);
    for (number, (_, sample)) in drawn.iter_mut().enumerate() {
        // Beside the square, which is cropped, each image is another one.
        let mark = u8::try_from(number).unwrap() * 5 + 1;
        let image = RgbImage::from_fn(128, 64, |x, y| {
            let is_red = (32..64).contains(&x) && y < 32 && number != 0;
            Rgb([
                if is_red { 255 } else { 0 },
                0,
                if x < 64 { mark } else { 0 },
            ])
        });
        sample.image = encode_rgb(image).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    metadata(&drawn, folder.path());
    buckets(&drawn, folder.path());
    let text = format!("{TEXT}model = {:?}\n", model("yolov5.onnx"));
    let manifests = build(folder.path(), &text).await.unwrap();
    let report = &manifests[&Stage::Figures].report;
    assert_eq!((report.rows_in, report.rows_out), (12, 11), "{report:?}");
    assert_eq!(report.lost("no figure"), 1);
    assert!(
        report.found[0].starts_with("figures of yolov5.onnx"),
        "{report:?}"
    );
    let manifest = &manifests[&Stage::Dataset];
    assert_eq!(manifest.report.lost("no image"), 1, "{:?}", manifest.report);
    let rows = dataset(folder.path(), manifest).await.scan().await.unwrap();
    assert_eq!(rows.len(), 11);
    for row in &rows {
        assert_eq!((row.width, row.height), (32, 32), "{row:?}");
        assert!(row.is_whole() && !row.artists.is_empty());
    }
}
