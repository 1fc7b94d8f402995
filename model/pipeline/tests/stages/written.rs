//! The last stage writes a data set that is clean, from images in buckets and in tars.

use crate::danbooru::{self, FakePost};
use crate::run::build;
use model_data::dataset::Dataset;
use model_data::sample::Sample;
use model_data::verify::verify;
use proto::build::Stage;
use proto::build::report::StageManifest;
use proto::text::hex_sha256;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

const TEXT: &str = "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[clusters]\nsignature = \
    \"answers\"\nanswers = \"answers\"\nquestions = [\"clothes\"]\n[dataset]\nimages = \"images\"\n\
    masks = \"masks\"\nboxes = \"boxes\"\n";

/// 4 characters in 2 outfits, 4 images each, with the pictures that the posts are of.
pub(crate) fn drawn() -> Vec<(FakePost, Sample)> {
    danbooru::drawn(4, 4, 64)
}

pub(crate) fn metadata(drawn: &[(FakePost, Sample)], folder: &Path) {
    let posts = danbooru::lines(drawn.iter().map(|(post, _)| danbooru::new(post)));
    std::fs::write(folder.join("posts"), posts).unwrap();
    let answers = drawn
        .iter()
        .map(|(post, _)| json!({"id": post.id, "question": "clothes", "answer": post.outfit}));
    std::fs::write(folder.join("answers"), danbooru::lines(answers)).unwrap();
    let boxes = drawn
        .iter()
        .map(|(post, it)| json!({"id": post.id, "bbox": it.metadata.bbox}));
    std::fs::write(folder.join("boxes"), danbooru::lines(boxes)).unwrap();
    std::fs::create_dir_all(folder.join("masks")).unwrap();
    for (post, sample) in drawn {
        std::fs::write(folder.join(format!("masks/{}.png", post.id)), &sample.mask).unwrap();
    }
}

pub(crate) fn buckets(drawn: &[(FakePost, Sample)], folder: &Path) {
    for (post, sample) in drawn {
        let bucket = folder.join(format!("images/{:04}", post.id % 1000));
        std::fs::create_dir_all(&bucket).unwrap();
        std::fs::write(bucket.join(format!("{}.png", post.id)), &sample.image).unwrap();
    }
}

/// One tar, as far as its reader can tell, with an index beside it.
fn tar(drawn: &[(FakePost, Sample)], folder: &Path) {
    let (mut bytes, mut files) = (Vec::new(), BTreeMap::new());
    for (post, sample) in drawn {
        bytes.extend([0; 512]);
        let entry = json!({
            "offset": bytes.len(),
            "size": sample.image.len(),
            "sha256": hex_sha256(&sample.image),
        });
        let _ = files.insert(format!("{}.png", post.id), entry);
        bytes.extend_from_slice(&sample.image);
    }
    std::fs::create_dir_all(folder.join("images")).unwrap();
    let size = bytes.len();
    std::fs::write(folder.join("images/0000.tar"), bytes).unwrap();
    let index = json!({"filesize": size, "files": files}).to_string();
    std::fs::write(folder.join("images/0000.json"), index).unwrap();
}

pub(crate) async fn dataset(folder: &Path, manifest: &StageManifest) -> Dataset {
    let data = folder.join("out").join(manifest.key.folder()).join("data");
    Dataset::open(&format!("file://{}", data.display()))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_in_buckets_and_in_tars_give_the_same_clean_data_set() {
    let drawn = drawn();
    let mut versions = Vec::new();
    for place in [buckets, tar] {
        let folder = tempfile::tempdir().unwrap();
        metadata(&drawn, folder.path());
        place(&drawn, folder.path());
        let manifests = build(folder.path(), TEXT).await.unwrap();
        let manifest = &manifests[&Stage::Dataset];
        let report = &manifest.report;
        assert_eq!((report.rows_in, report.rows_out), (32, 32), "{report:?}");
        assert_eq!(report.counts["faces guessed from masks"], 0);
        let dataset = dataset(folder.path(), manifest).await;
        let verified = verify(&dataset).await.unwrap();
        assert!(verified.findings.is_empty(), "{:?}", verified.findings);
        assert_eq!(verified.samples, 32);
        versions.push(dataset.version().to_owned());
    }
    assert_eq!(versions[0], versions[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_without_image_mask_or_face_are_dropped_for_their_reason() {
    let drawn = drawn();
    let folder = tempfile::tempdir().unwrap();
    metadata(&drawn, folder.path());
    buckets(&drawn, folder.path());
    let mut of_one = drawn
        .iter()
        .filter(|(post, _)| post.identity == drawn[0].0.identity);
    let image = |post: &FakePost| format!("images/{:04}/{}.png", post.id % 1000, post.id);
    // Of a cluster of four one is left, which is then alone.
    let (first, second, third) = (
        of_one.next().unwrap(),
        of_one.next().unwrap(),
        of_one.next().unwrap(),
    );
    std::fs::remove_file(folder.path().join(image(&first.0))).unwrap();
    std::fs::remove_file(folder.path().join(format!("masks/{}.png", second.0.id))).unwrap();
    let boxes = drawn.iter().filter(|(post, _)| post.id != third.0.id);
    let boxes = boxes.map(|(post, it)| json!({"id": post.id, "bbox": it.metadata.bbox}));
    std::fs::write(folder.path().join("boxes"), danbooru::lines(boxes)).unwrap();
    // A file that is cut off is found when it is decoded.
    let other = drawn
        .iter()
        .find(|(post, _)| post.identity != drawn[0].0.identity)
        .unwrap();
    let cut = &other.1.image[..other.1.image.len() / 2];
    std::fs::write(folder.path().join(image(&other.0)), cut).unwrap();
    let manifests = build(folder.path(), TEXT).await.unwrap();
    let report = &manifests[&Stage::Dataset].report;
    let lost = |reason: &str| report.lost(reason);
    assert_eq!(
        (lost("no image"), lost("no mask"), lost("no face box")),
        (1, 1, 1)
    );
    assert_eq!(lost("no other figure of the cluster is left"), 1);
    assert_eq!(lost("an image, mask or face box that cannot be used"), 1);
    assert_eq!(report.rows_out, 27);
    let reason = &report.bad_rows[0].reason;
    assert!(
        reason.contains(&format!("post {}: the image is cut off", other.0.id)),
        "{reason}"
    );
    let dataset = dataset(folder.path(), &manifests[&Stage::Dataset]).await;
    let verified = verify(&dataset).await.unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn near_duplicates_are_found_and_dropped_if_asked() {
    let mut drawn = drawn();
    // A variant of three pictures: another post with a few pixels changed.
    for number in [0, 10, 20] {
        let (mut post, mut sample) = drawn[number].clone();
        post.id += 200_000;
        let mut image = image::load_from_memory(&sample.image).unwrap().into_rgb8();
        for x in 2..6 {
            image.put_pixel(x, 3, image::Rgb([250, 20, 20]));
        }
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        sample.image = bytes.into_inner().into();
        drawn.push((post, sample));
    }
    let folder = tempfile::tempdir().unwrap();
    metadata(&drawn, folder.path());
    buckets(&drawn, folder.path());
    let manifests = build(folder.path(), TEXT).await.unwrap();
    let kept = &manifests[&Stage::Dataset].report;
    assert_eq!(kept.rows_out, 35);
    // Different poses of one character in one outfit are not near.
    assert_eq!(
        kept.counts["near-duplicates of a figure in their cluster"],
        3
    );
    let text = format!("{TEXT}near_duplicates = \"drop\"\n");
    let manifests = build(folder.path(), &text).await.unwrap();
    let dropped = &manifests[&Stage::Dataset].report;
    assert_eq!(
        (
            dropped.rows_out,
            dropped.lost("a near-duplicate of another figure")
        ),
        (32, 3)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_is_named() {
    let drawn = drawn();
    let folder = tempfile::tempdir().unwrap();
    metadata(&drawn, folder.path());
    tar(&drawn, folder.path());
    let path = folder.path().join("images/0000.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&text).unwrap();
    let name = format!("{}.png", drawn[3].0.id);
    index["files"][&name]["offset"] = json!(1_u64 << 40);
    std::fs::write(&path, index.to_string()).unwrap();
    let strict = format!("on_bad_row = \"stop\"\n{TEXT}");
    let error = build(folder.path(), &strict).await.unwrap_err();
    let expected = format!("says that {name:?} is");
    for part in ["0000.json: row", &expected, "at byte 1099511627776"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let manifests = build(folder.path(), TEXT).await.unwrap();
    let report = &manifests[&Stage::Dataset].report;
    assert_eq!((report.rows_out, report.lost("no image")), (31, 1));
    assert!(
        report.bad_rows[0].reason.starts_with(&expected),
        "{report:?}"
    );
    // Offsets inside the tar, but of other bytes.
    index["files"][&name]["offset"] = json!(0);
    std::fs::write(&path, index.to_string()).unwrap();
    let manifests = build(folder.path(), TEXT).await.unwrap();
    let report = &manifests[&Stage::Dataset].report;
    assert_eq!(report.rows_out, 31);
    let reason = &report.bad_rows[0].reason;
    assert!(
        reason.contains("has the SHA-256") && reason.contains("0000.tar at byte 0"),
        "{reason}"
    );
}
