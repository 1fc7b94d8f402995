//! Masks by models whose answers are known, and by the model that setup installs.

use crate::danbooru::{self, FakePost};
use crate::run::build;
use crate::written::{buckets, dataset, metadata};
use image::{GrayImage, Luma, Rgb, RgbImage};
use model_data::image_file::{encode_gray, encode_rgb};
use model_data::sample::Sample;
use model_data::verify::verify;
use pipeline::images::Images;
use pipeline::output::Outputs;
use proto::build::Stage;
use proto::build::report::StageManifest;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const TEXT: &str = "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[clusters]\nsignature = \
    \"answers\"\nanswers = \"answers\"\nquestions = [\"clothes\"]\n[dataset]\nimages = \"images\"\n\
    boxes = \"boxes\"\n[units]\nmasks = 2\n[masks]\n";

pub(crate) fn model(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stages/models");
    folder.join(name).display().to_string()
}

/// Red from `left` on, and else as much as `rest`.
fn part_red(left: u32, rest: u8) -> RgbImage {
    RgbImage::from_fn(64, 48, |x, _| {
        Rgb([if left <= x { 200 } else { rest }, 30, 30])
    })
}

/// Replaces the picture of a post. Its true mask is its right half, and its face is in it.
fn paint(it: &mut (FakePost, Sample), image: &RgbImage) {
    it.1.image = encode_rgb(image.clone()).unwrap();
    let half = GrayImage::from_fn(64, 48, |x, _| Luma([if 32 <= x { 255 } else { 0 }]));
    it.1.mask = encode_gray(half).unwrap();
    it.1.metadata.bbox = [0.75, 0.5, 0.2, 0.2];
}

fn prepare(drawn: &[(FakePost, Sample)], folder: &Path) {
    metadata(drawn, folder);
    buckets(drawn, folder);
}

/// The masks that a stage has written, by post.
async fn written(
    folder: &Path,
    manifest: &StageManifest,
    ids: impl IntoIterator<Item = i64>,
) -> BTreeMap<i64, GrayImage> {
    let out = format!("file://{}", folder.join("out").display());
    let stage = Outputs::open(&out).unwrap().stage(&manifest.key);
    let images = Images::of_parts(&stage, &manifest.parts).await.unwrap();
    let mut masks = BTreeMap::new();
    for id in ids {
        if images.path(id).is_some() {
            let bytes = images.read(id).await.unwrap();
            let mask = image::load_from_memory(&bytes).unwrap();
            masks.insert(id, mask.into_luma8());
        }
    }
    masks
}

#[tokio::test(flavor = "multi_thread")]
async fn both_layouts_give_the_mask_that_the_model_draws() {
    let mut drawn = danbooru::drawn(2, 2, 64);
    for it in &mut drawn {
        paint(it, &part_red(32, 50));
    }
    let folder = tempfile::tempdir().unwrap();
    prepare(&drawn, folder.path());
    for (name, layout) in [
        ("brightness-320.onnx", "U²-Net at 320x320, 1 at a time"),
        ("brightness-1024.onnx", "IS-Net at 1024x1024, 3 at a time"),
    ] {
        let text = format!(
            "{TEXT}model = {:?}\nbatch = 3\ntruth = \"masks\"\n",
            model(name)
        );
        let manifests = build(folder.path(), &text).await.unwrap();
        let manifest = &manifests[&Stage::Masks];
        let report = &manifest.report;
        assert_eq!((report.rows_in, report.rows_out), (8, 8), "{report:?}");
        assert_eq!(
            report.found.last().unwrap(),
            "8 masks compared with true ones: mean intersection over union 1.000"
        );
        assert!(
            report.found[0].contains(&format!("masks of {name}, prepared as for {layout}")),
            "{:?}",
            report.found
        );
        let masks = written(folder.path(), manifest, drawn.iter().map(|it| it.0.id)).await;
        assert_eq!(masks.len(), 8);
        for mask in masks.values() {
            assert_eq!(mask.dimensions(), (64, 48));
            // Pillow's filter rings at the edge, so that the extremes are beside it.
            let (left, right) = (mask.get_pixel(10, 20).0[0], mask.get_pixel(50, 20).0[0]);
            assert!(left < 30 && 225 < right, "{left} {right}");
            if layout.starts_with("IS") {
                assert_eq!((left, right), (0, 255));
            }
        }
        let verified = verify(&dataset(folder.path(), &manifests[&Stage::Dataset]).await).await;
        let verified = verified.unwrap();
        assert!(verified.findings.is_empty(), "{:?}", verified.findings);
        assert_eq!(verified.samples, 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn masks_that_are_empty_full_or_flat_are_dropped_for_their_reason() {
    let mut drawn = danbooru::drawn(3, 4, 64);
    for it in &mut drawn {
        paint(it, &part_red(32, 50));
    }
    // One column of 64 is more than a hundredth, half of one is not.
    let mut dot = part_red(64, 50);
    dot.put_pixel(30, 20, Rgb([200, 30, 30]));
    let mut hole = part_red(0, 50);
    hole.put_pixel(30, 20, Rgb([50, 30, 30]));
    for (number, image) in [
        (0, dot),
        (1, hole),
        (2, part_red(64, 50)),
        (3, part_red(60, 50)),
    ] {
        paint(&mut drawn[number], &image);
    }
    let folder = tempfile::tempdir().unwrap();
    prepare(&drawn, folder.path());
    let path = |number: usize, folder: &Path| {
        let id = drawn[number].0.id;
        folder.join(format!("images/{:04}/{id}.png", id % 1000))
    };
    let cut = &drawn[4].1.image[..drawn[4].1.image.len() / 2];
    std::fs::write(path(4, folder.path()), cut).unwrap();
    std::fs::remove_file(path(5, folder.path())).unwrap();
    let wrong = folder.path().join(format!("masks/{}.png", drawn[6].0.id));
    std::fs::write(wrong, encode_gray(GrayImage::new(3, 3)).unwrap()).unwrap();
    let name = model("brightness-320.onnx");
    let text = format!("{TEXT}model = {name:?}\ntruth = \"masks\"\n");
    let manifests = build(folder.path(), &text).await.unwrap();
    let report = &manifests[&Stage::Masks].report;
    for (reason, count) in [
        ("a mask that is empty", 1),
        ("a mask that is full", 1),
        (
            "a model's output that is the same everywhere, or no number",
            1,
        ),
        ("an image that cannot be read", 1),
        ("no image", 1),
    ] {
        assert_eq!(report.lost(reason), count, "{reason}: {report:?}");
    }
    assert_eq!((report.rows_in, report.rows_out), (24, 19));
    let reasons: Vec<&str> = report
        .bad_rows
        .iter()
        .map(|it| it.reason.as_str())
        .collect();
    let cut = format!("post {}: the image is cut off", drawn[4].0.id);
    assert!(reasons.iter().any(|it| it.contains(&cut)), "{reasons:?}");
    let truth = format!(
        "the true mask of post {}: it is 3x3 pixels, and the image is 64x48",
        drawn[6].0.id
    );
    assert!(reasons.contains(&truth.as_str()), "{reasons:?}");
    assert_eq!(report.counts["true masks that cannot be used"], 1);
    // What is dropped here is no loss of the last stage.
    let last = &manifests[&Stage::Dataset].report;
    assert_eq!(
        (last.rows_in, last.lost("no mask"), last.lost("no image")),
        (19, 0, 0)
    );
    let stop = text.replace("truth = \"masks\"\n", "");
    let stop = format!("on_bad_row = \"stop\"\n{stop}");
    let error = build(folder.path(), &stop).await.unwrap_err();
    assert!(
        error.contains(&cut) && error.contains("on_bad_row = \"skip\""),
        "{error}"
    );
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_and_another_number_of_units_give_the_same_bytes() {
    let mut drawn = danbooru::drawn(5, 8, 64);
    for (number, it) in drawn.iter_mut().enumerate() {
        paint(it, &part_red(u32::try_from(number % 40).unwrap() + 10, 50));
    }
    let folder = tempfile::tempdir().unwrap();
    prepare(&drawn, folder.path());
    let name = model("brightness-320.onnx");
    let text = format!("{TEXT}model = {name:?}\n");
    let manifests = build(folder.path(), &text).await.unwrap();
    let stage = folder
        .path()
        .join("out")
        .join(manifests[&Stage::Masks].key.folder());
    let whole = files(&stage);
    let named = |path: &Path, start: &str| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(start)
    };
    let tars = whole
        .keys()
        .filter(|it| it.extension().is_some_and(|it| it == "tar"));
    assert_eq!(tars.count(), 2);
    // An object that names others is written after them.
    let later = ["batch", "unit", "manifest"];
    for kind in ["masks", "sheet", "batch", "unit", "manifest"] {
        let lost = whole.keys().find(|it| named(it, kind)).unwrap();
        let rank = later.iter().position(|it| named(lost, it));
        let after = &later[rank.map_or(0, |rank| rank + 1)..];
        std::fs::remove_file(lost).unwrap();
        for path in whole.keys() {
            if after.iter().any(|it| named(path, it)) {
                std::fs::remove_file(path).unwrap();
            }
        }
        build(folder.path(), &text).await.unwrap();
        assert!(files(&stage) == whole, "{} was lost", lost.display());
    }
    std::fs::remove_dir_all(&stage).unwrap();
    let divided = text.replace("masks = 2", "masks = 5");
    let divided = build(folder.path(), &divided).await.unwrap();
    assert_eq!(divided[&Stage::Masks], manifests[&Stage::Masks]);
}

/// The default model on figures whose masks are known.
#[tokio::test(flavor = "multi_thread")]
async fn the_installed_model_segments_drawn_figures() {
    let drawn = danbooru::drawn(2, 2, 192);
    let folder = tempfile::tempdir().unwrap();
    prepare(&drawn, folder.path());
    let text = format!("{TEXT}truth = \"masks\"\n");
    let manifests = build(folder.path(), &text).await.unwrap();
    let manifest = &manifests[&Stage::Masks];
    let report = &manifest.report;
    assert_eq!(report.rows_out, 8, "{report:?}");
    let mean = report.counts["intersection over union with true masks, sum of thousandths"] / 8;
    assert!(850 < mean, "{:?}", report.found);
}
