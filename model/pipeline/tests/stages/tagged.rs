//! Outfits by a tagger whose answers are known.

use crate::answers::pairs;
use crate::danbooru::{self, FakePost};
use crate::masks::model;
use crate::run::{build, clusters};
use crate::written::buckets;
use image::{Rgb, RgbImage};
use model_data::image_file::encode_rgb;
use model_data::sample::Sample;
use proto::build::Stage;
use std::path::Path;

const CSV: &str = "tag_id,name,category,count\n1,general,9,10\n2,red_dress,0,10\n\
    3,green_dress,0,10\n4,blue_dress,0,10\n";
const JSON: &str = r#"{"0": {"tag": "general", "category": "Rating"},
    "1": {"tag": "red dress", "category": "General"},
    "2": {"tag": "green dress", "category": "General"},
    "3": {"tag": "blue dress", "category": "General"}}"#;

/// The pictures are red in one outfit of a character, and blue in the other.
pub(crate) fn prepare(folder: &Path) -> Vec<(FakePost, Sample)> {
    let mut drawn = danbooru::drawn(4, 4, 64);
    for number in 0..drawn.len() {
        let of_one = |it: &&(FakePost, Sample)| it.0.identity.0 == drawn[number].0.identity.0;
        let first = drawn.iter().find(of_one).unwrap();
        let is_first = first.0.identity == drawn[number].0.identity;
        let colour = if is_first { [255, 0, 0] } else { [0, 0, 255] };
        let image = RgbImage::from_pixel(40, 40, Rgb(colour));
        drawn[number].1.image = encode_rgb(image).unwrap();
    }
    let posts = danbooru::lines(drawn.iter().map(|(post, _)| danbooru::new(post)));
    std::fs::write(folder.join("posts"), posts).unwrap();
    std::fs::write(folder.join("tags.csv"), CSV).unwrap();
    std::fs::write(folder.join("tags.json"), JSON).unwrap();
    buckets(&drawn, folder);
    drawn
}

pub(crate) fn text(model: &str, labels: &str) -> String {
    format!(
        "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[tagger]\nimages = \"images\"\nmodel = \
         {model:?}\nlabels = {labels:?}\nbatch = 5\n[units]\ntagger = 2\n[clusters]\nsignature = \
         \"tagger\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn both_layouts_find_the_outfits_that_are_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = prepare(folder.path());
    // One shows nothing that the tagger knows.
    let id = drawn[0].0.id;
    let black = encode_rgb(RgbImage::new(40, 40)).unwrap();
    let path = folder
        .path()
        .join(format!("images/{:04}/{id}.png", id % 1000));
    std::fs::write(path, black).unwrap();
    let posts: Vec<FakePost> = drawn.iter().skip(1).map(|(post, _)| post.clone()).collect();
    for (name, labels, layout) in [
        ("wd14.onnx", "tags.csv", "WD14"),
        ("cl_tagger.onnx", "tags.json", "cl_tagger"),
    ] {
        let text = text(&model(name), labels);
        let manifests = build(folder.path(), &text).await.unwrap();
        let report = &manifests[&Stage::Tagger].report;
        assert_eq!(
            (
                report.rows_out,
                report.lost("no cloth tag over the threshold")
            ),
            (31, 1),
            "{report:?}"
        );
        let sentence = format!("tags of {name}, as {layout}, 3 of its 4 tags are cloth tags");
        assert!(report.found[0].contains(&sentence), "{:?}", report.found);
        let manifest = &manifests[&Stage::Clusters];
        let untagged = "no image, or no cloth tag that the tagger finds";
        assert_eq!(manifest.report.lost(untagged), 1);
        let found = clusters(folder.path(), &text, manifest).await;
        let (both, wrong, missed) = pairs(&posts, &found);
        assert_eq!((wrong, missed), (0, 0));
        assert!(0 < both);
    }
}
