//! Models and labels that are not what a stage needs are named, with what would be right.

use crate::danbooru;
use crate::masks::model;
use crate::run::build;
use crate::tagged;
use crate::written::{buckets, metadata};
use std::path::Path;

fn prepare(folder: &Path) {
    let drawn = danbooru::drawn(2, 2, 64);
    metadata(&drawn, folder);
    buckets(&drawn, folder);
    std::fs::write(folder.join("text.onnx"), "no model").unwrap();
    std::fs::write(
        folder.join("few.csv"),
        "tag_id,name,category,count\n1,red_dress,0,1\n",
    )
    .unwrap();
    let other = "tag_id,name,category,count\n1,a,0,1\n2,b,0,1\n3,c,0,1\n4,d,0,1\n";
    std::fs::write(folder.join("other.csv"), other).unwrap();
}

const TEXT: &str = "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[clusters]\nsignature = \
    \"answers\"\nanswers = \"answers\"\nquestions = [\"clothes\"]\n[dataset]\n\
    images = \"images\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_other_inputs_or_outputs_is_named() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let masks = |name: &str| format!("{TEXT}[masks]\nmodel = {name:?}\n");
    let faces = |name: &str| format!("{TEXT}[faces]\nmodel = {name:?}\n");
    for (text, expected) in [
        (
            masks(&model("numbers.onnx")),
            "numbers.onnx: its inputs are \"x\" of f32 [1, 10]; a segmentation model has one \
             input of f32 [N, 3, H, W], such as [1, 3, 320, 320] (U²-Net)",
        ),
        (
            masks(&model("two-inputs.onnx")),
            "two-inputs.onnx: its inputs are \"image\" of f32 [1, 3, 320, 320], \"other\" of f32 \
             [1, 3, 320, 320]; a segmentation model has one",
        ),
        (
            masks(&model("wd14.onnx")),
            "its inputs are \"input\" of f32 [?, 448, 448, 3]; a segmentation model",
        ),
        (
            masks(&model("yolov5.onnx")),
            "its inputs are \"images\" of f32 [1, 3, 64, 64]; their size tells neither U²-Net \
             (320) nor IS-Net (1024): set masks.layout",
        ),
        (
            masks(&model("classes.onnx")),
            "classes.onnx: its first output \"classes\" is [1, 3]; the mask [1, 1, 320, 320] is \
             expected",
        ),
        (
            masks("text.onnx"),
            "text.onnx: ONNX Runtime cannot load it: ",
        ),
        (
            faces(&model("classes.onnx")),
            "classes.onnx: its outputs are \"classes\" of f32 [1, 3]; a face detector has an \
             output [1, boxes, 6] (yolov5), or cls_8,",
        ),
        (
            faces(&model("numbers.onnx")),
            "numbers.onnx: its inputs are \"x\" of f32 [1, 10]; a face detector has one input",
        ),
        (
            format!("{}layout = \"yunet\"\n", faces(&model("yolov5.onnx"))),
            "yolov5.onnx: it has no output cls_8 of f32; [1, 64, 1] is expected",
        ),
        (
            tagged::text(&model("wd14.onnx"), "few.csv"),
            "few.csv names 1 tags: 4 are expected, which are those of this model",
        ),
        (
            tagged::text(&model("wd14.onnx"), "other.csv"),
            "other.csv: none of its 4 tags is a cloth tag; the first is \"a\"",
        ),
        (
            tagged::text(&model("wd14.onnx"), "posts"),
            "posts: is no {\"0\"",
        ),
        (
            tagged::text(&model("numbers.onnx"), "other.csv"),
            "numbers.onnx: its inputs are \"x\" of f32 [1, 10]; a tagger has one input of f32",
        ),
    ] {
        let error = build(folder.path(), &text).await.unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[tokio::test]
async fn tables_that_contradict_each_other_are_named() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let alone = TEXT.split("[dataset]").next().unwrap();
    for (text, expected) in [
        (
            format!("{TEXT}masks = \"masks\"\n[masks]\n"),
            "dataset.masks: is given, and there is a table [masks]",
        ),
        (
            format!("{TEXT}boxes = \"boxes\"\n[faces]\n"),
            "dataset.boxes: is given, and there is a table [faces]",
        ),
        (
            format!("{alone}[masks]\n"),
            "masks: needs a table [dataset]",
        ),
        (
            format!("{TEXT}[masks]\narea_min = 0.9\narea_max = 0.1\n"),
            "masks.area_max: is 0.1; it must be more than masks.area_min, which is 0.9",
        ),
        (
            format!("{TEXT}[faces]\nlayout = \"yunet\"\nside = 33\n"),
            "faces.side: is 33; it must be a multiple of 32",
        ),
        (
            format!("{TEXT}[faces]\nlayout = \"yunet\"\n"),
            "faces.model: is \"animeface\", but there is a layout",
        ),
        (
            format!("{TEXT}[tagger]\nimages = \"i\"\nmodel = \"m\"\nlabels = \"l\"\n"),
            "clusters.signature: is not \"tagger\", but there is a table [tagger]",
        ),
        (
            format!("{TEXT}[masks]\nmodel = \"missing.onnx\"\n"),
            "masks.model",
        ),
    ] {
        let error = build(folder.path(), &text).await.unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
