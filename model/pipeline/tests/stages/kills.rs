//! A kill after any write, and another number of units or workers, give the same bytes: of every
//! stage that runs a model on images.

use crate::danbooru;
use crate::masks::model;
use crate::run::{build, plan, prepare, run_unit};
use crate::tagged;
use crate::written::{buckets, metadata};
use proto::build::Stage;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

fn named(path: &Path, start: &str) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.starts_with(start)
}

/// Objects that name others are written after them.
const LATER: [&str; 3] = ["batch", "unit", "manifest"];

/// Loses each kind of object, and all that are written after it.
async fn kill(folder: &Path, text: &str, stage: Stage) {
    let manifests = build(folder, text).await.unwrap();
    let place = folder.join("out").join(manifests[&stage].key.folder());
    let whole = files(&place);
    let kinds: Vec<String> = whole
        .keys()
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let end = name.find(['-', '.']).unwrap_or(name.len());
            name[..end].to_owned()
        })
        .filter(|kind| kind != "plan")
        .collect();
    assert!(LATER.iter().all(|it| kinds.iter().any(|kind| kind == it)));
    for lost in whole.keys().filter(|path| !named(path, "plan")) {
        let rank = LATER.iter().position(|it| named(lost, it));
        let after = &LATER[rank.map_or(0, |rank| rank + 1)..];
        std::fs::remove_file(lost).unwrap();
        for path in whole.keys() {
            if after.iter().any(|it| named(path, it)) {
                std::fs::remove_file(path).ok();
            }
        }
        build(folder, text).await.unwrap();
        assert!(files(&place) == whole, "{} was lost", lost.display());
    }
}

/// Units of two workers, in turns and each twice, give the manifest of one worker.
async fn two_workers(folder: &Path, text: &str, stage: Stage) {
    let manifests = build(folder, text).await.unwrap();
    let place = folder.join("out").join(manifests[&stage].key.folder());
    let whole = files(&place);
    std::fs::remove_dir_all(&place).unwrap();
    let planned = plan(folder, text).await.unwrap();
    let planned = planned.iter().find(|it| it.plan.stage() == stage).unwrap();
    let (work, output) = prepare(folder, text, planned).await;
    let other = folder.join("other");
    std::fs::create_dir_all(&other).unwrap();
    let unit = async |unit: u32, scratch: &Path| {
        let done = pipeline::unit::run(&work, unit.into(), scratch).await;
        done.map_err(|error| proto::text::chain(&error))
    };
    for number in (0..work.units).rev() {
        // A lease that two workers believe to have.
        let scratch = folder.join("scratch");
        let (first, second) = tokio::join!(unit(number, &scratch), unit(number, &other));
        first.unwrap();
        second.unwrap();
    }
    run_unit(folder, &work, work.units.into()).await.unwrap();
    assert!(files(&place) == whole);
    // Another number of units.
    let mut divided = planned.clone();
    divided.units = 7;
    std::fs::remove_dir_all(&place).unwrap();
    let (work, _) = prepare(folder, text, &divided).await;
    for number in 0..=7 {
        run_unit(folder, &work, number).await.unwrap();
    }
    assert_eq!(output.manifest().await.unwrap().unwrap(), manifests[&stage]);
}

fn posts(folder: &Path) {
    let drawn = danbooru::drawn(5, 8, 64);
    metadata(&drawn, folder);
    buckets(&drawn, folder);
}

const TEXT: &str = "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[clusters]\nsignature = \
    \"answers\"\nanswers = \"answers\"\nquestions = [\"clothes\"]\n[dataset]\nimages = \"images\"\n\
    masks = \"masks\"\n[units]\nfaces = 2\nfigures = 2\n";

#[tokio::test(flavor = "multi_thread")]
async fn faces_are_the_same_bytes_whoever_dies() {
    let folder = tempfile::tempdir().unwrap();
    posts(folder.path());
    let model = model("yolov5.onnx");
    let text = format!("{TEXT}[faces]\nmodel = {model:?}\nscore_min = 0.1\n");
    kill(folder.path(), &text, Stage::Faces).await;
    two_workers(folder.path(), &text, Stage::Faces).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crops_of_figures_are_the_same_bytes_whoever_dies() {
    let folder = tempfile::tempdir().unwrap();
    posts(folder.path());
    let model = model("yolov5.onnx");
    let text = format!("{TEXT}[figures]\nmodel = {model:?}\nscore_min = 0.1\n");
    let text = text.replace("masks = \"masks\"\n", "whole = true\n");
    kill(folder.path(), &text, Stage::Figures).await;
    two_workers(folder.path(), &text, Stage::Figures).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_the_same_bytes_whoever_dies() {
    let folder = tempfile::tempdir().unwrap();
    tagged::prepare(folder.path());
    let text = tagged::text(&model("wd14.onnx"), "tags.csv");
    kill(folder.path(), &text, Stage::Tagger).await;
    two_workers(folder.path(), &text, Stage::Tagger).await;
}
