//! Folders of images of people and characters, without metadata of posts.

use crate::danbooru::{self, FakePost};
use crate::run::build;
use crate::written::{buckets, dataset, metadata};
use image::{Rgb, RgbImage};
use model_data::dataset::Dataset;
use model_data::image_file::encode_rgb;
use model_data::sample::{Metadata, Sample};
use model_data::verify::verify;
use proto::build::Stage;
use proto::build::report::StageManifest;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const TEXT: &str = "out = \"out\"\n[[folders]]\nfrom = \"people\"\n[dataset]\n";

/// A picture of noise, which is like no other one: JPEG has no alpha, as photographs.
fn picture(seed: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(48, 64, |x, y| {
        let value = (x / 6 * 37 + y / 8 * 91 + seed * 57 + x / 6 * (y / 8) * seed * 13) % 251;
        Rgb([value as u8, (value / 2) as u8, 255 - value as u8])
    });
    encode_rgb(image).unwrap().to_vec()
}

fn write(folder: &Path, path: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The rows of a data set that is clean.
async fn rows(folder: &Path, manifest: &StageManifest) -> BTreeMap<String, Metadata> {
    let dataset: Dataset = dataset(folder, manifest).await;
    let verified = verify(&dataset).await.unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    let rows = dataset.scan().await.unwrap().into_iter();
    rows.map(|row| (row.id.clone(), row)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_for_each_person_is_a_data_set_without_artists_masks_and_clothes() {
    let folder = tempfile::tempdir().unwrap();
    for (person, images) in [("Ada", 3), ("train/Grace", 2), ("Linus", 1)] {
        for number in 0..images {
            let seed = number + 10 * person.len() as u32;
            let path = format!("people/{person}/{number}.png");
            write(folder.path(), &path, picture(seed));
        }
    }
    write(folder.path(), "people/loose.png", picture(77));
    write(folder.path(), "people/README", "about");
    let manifests = build(folder.path(), TEXT).await.unwrap();
    let stages: Vec<Stage> = manifests.keys().copied().collect();
    assert_eq!(stages, [Stage::Folders, Stage::Clusters, Stage::Dataset]);
    let first = &manifests[&Stage::Folders].report;
    assert_eq!((first.rows_in, first.rows_out), (7, 6), "{first:?}");
    assert_eq!(first.lost("an image in no folder of an identity"), 1);
    assert!(first.found[0].contains("a folder for each identity, 6 rows"));
    let clusters = &manifests[&Stage::Clusters].report;
    assert_eq!(clusters.rows_out, 5);
    assert_eq!(clusters.lost("no other figure in the same outfit"), 1);
    let rows = rows(folder.path(), &manifests[&Stage::Dataset]).await;
    let ids: Vec<&str> = rows.keys().map(String::as_str).collect();
    assert_eq!(
        ids,
        ["Ada/0", "Ada/1", "Ada/2", "train/Grace/0", "train/Grace/1"]
    );
    let row = &rows["Ada/1"];
    assert_eq!((row.character.as_str(), row.artists.as_str()), ("Ada", ""));
    let others: BTreeSet<&str> = row.similar.iter().map(String::as_str).collect();
    assert_eq!(others, BTreeSet::from(["Ada/0", "Ada/2"]));
    assert!(row.is_whole() && row.cloths.is_empty());
    assert!(
        row.bbox
            .iter()
            .zip([0.5, 0.5, 1.0, 1.0])
            .all(|(a, b)| (a - b).abs() < 1e-9)
    );
    assert_eq!(
        row.changes,
        ["no-artist", "whole-image", "face-guessed=the whole image"]
    );
}

/// Whatever a job asks for, references of such a set are faces or whole images.
#[tokio::test(flavor = "multi_thread")]
async fn no_reference_of_a_person_is_called_clothes() {
    use model_data::loader::{Loader, LoaderOptions};
    let folder = tempfile::tempdir().unwrap();
    for person in ["Ada", "Grace"] {
        for number in 0..4 {
            let path = format!("people/{person}/{number}.png");
            write(
                folder.path(),
                &path,
                picture(number + 10 * person.len() as u32),
            );
        }
    }
    // Small faces, so that they are no reason to show the whole image.
    let boxes: String = (1..=8)
        .map(|id| format!("{{\"id\": {id}, \"bbox\": [0.5, 0.3, 0.2, 0.2]}}\n"))
        .collect();
    std::fs::write(folder.path().join("boxes"), boxes).unwrap();
    let text = format!("{TEXT}boxes = \"boxes\"\n");
    let manifests = build(folder.path(), &text).await.unwrap();
    let rows = rows(folder.path(), &manifests[&Stage::Dataset]).await;
    assert!(rows.values().all(|row| row.bbox[2] < 0.3), "{rows:?}");
    let out = folder.path().join("out");
    let data = out
        .join(manifests[&Stage::Dataset].key.folder())
        .join("data");
    let job = format!(
        "name = \"faces\"\n[resources]\nworkers = {{ min = 1, max = 1 }}\ndevices_per_worker = 1\n\
         device = \"cpu\"\n[data]\ndataset = \"file://{}\"\ntask = \"composition\"\npairing = \
         \"b\"\nreferences = 4\nresolution = 32\n[model]\narchitecture = \"retrinet\"\nsize = \
         \"tiny\"\n[train]\nsteps = 1\nglobal_batch = 8\nmicro_batch = 1\nlearning_rate = 1e-4\n\
         [checkpoint]\nevery = 1\n",
        data.display()
    );
    let spec = proto::job::parse("job.toml", &job, Some(folder.path())).unwrap();
    let work = spec.training().unwrap();
    let options = LoaderOptions::new(&work.model.architecture, 1 << 20, None);
    let loader = Loader::open(&work.data, options).await.unwrap();
    let examples = loader.examples(1, 8, 0..8).await.unwrap();
    let words = examples.iter().flat_map(|it| &it.references);
    let words: BTreeSet<&str> = words.map(|it| it.concept.word()).collect();
    assert_eq!(words, BTreeSet::from(["face", "figure"]));
    // The loss is over the whole image but its padding.
    let target = &examples[0];
    let valid = target.target_mask.as_raw().iter().filter(|it| **it == 255);
    assert_eq!(valid.count(), 24 * 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn captions_name_characters_and_their_clothes_are_outfits() {
    let folder = tempfile::tempdir().unwrap();
    for (place, caption) in [
        ("3_miku/a", "1girl ||| Red Dress, {white|black} boots;;;x"),
        ("3_miku/b", "1girl, smile, white boots, red dress"),
        ("miku/c", "white boots, red dress"),
        ("miku/d", "school uniform"),
        ("rin/e", " , "),
    ] {
        let seed = u32::from(place.as_bytes()[place.len() - 1]);
        write(folder.path(), &format!("people/{place}.png"), picture(seed));
        write(folder.path(), &format!("people/{place}.txt"), caption);
    }
    write(folder.path(), "people/rin/f.png", picture(3));
    let text = TEXT.replace(
        "[dataset]",
        "artist = \"somebody\"\nrating = \"general\"\n[dataset]",
    );
    let manifests = build(folder.path(), &text).await.unwrap();
    let report = &manifests[&Stage::Folders].report;
    assert_eq!(report.lost("a row that cannot be used"), 2, "{report:?}");
    let reasons: BTreeSet<&str> = report
        .bad_rows
        .iter()
        .map(|it| it.reason.as_str())
        .collect();
    assert!(reasons.contains("the caption is empty"), "{reasons:?}");
    assert!(
        reasons.contains("there is no rin/f.txt beside it"),
        "{reasons:?}"
    );
    let rows = rows(folder.path(), &manifests[&Stage::Dataset]).await;
    let ids: Vec<&str> = rows.keys().map(String::as_str).collect();
    assert_eq!(ids, ["3_miku/a", "3_miku/b", "miku/c"]);
    let row = &rows["3_miku/a"];
    assert_eq!(
        (row.character.as_str(), row.artists.as_str()),
        ("miku", "somebody")
    );
    assert_eq!(row.outfit, "red_dress white_boots");
    assert_eq!(row.cloths, ["red dress", "white boots"]);
    assert_eq!(row.rating, "general");
    let stop = format!("on_bad_row = \"stop\"\n{text}");
    let error = build(folder.path(), &stop).await.unwrap_err();
    assert!(error.contains("people/rin/f.png"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn celeba_has_its_boxes_and_attributes() {
    let folder = tempfile::tempdir().unwrap();
    let mut identities = String::new();
    let mut boxes = "4\nimage_id x_1 y_1 width height\n".to_owned();
    let mut attributes = "4\nBangs Smiling\n".to_owned();
    for number in 1..=4_u32 {
        let name = format!("{number:06}.png");
        write(
            folder.path(),
            &format!("people/Img/img_celeba/{name}"),
            picture(number),
        );
        identities += &format!("{name} {}\n", number % 2 + 7);
        boxes += &format!("{name}  12 16 24 32\n");
        attributes += &format!("{name} -1  1\n");
    }
    identities += "000009.png 7\n";
    write(folder.path(), "people/Anno/identity_CelebA.txt", identities);
    write(folder.path(), "people/Anno/list_bbox_celeba.txt", boxes);
    write(
        folder.path(),
        "people/Anno/list_attr_celeba.txt",
        attributes,
    );
    let manifests = build(folder.path(), TEXT).await.unwrap();
    let report = &manifests[&Stage::Folders].report;
    assert_eq!(report.lost("a row that cannot be used"), 1, "{report:?}");
    assert_eq!(report.bad_rows[0].reason, "there is no image 000009.png");
    assert_eq!(report.bad_rows[0].row, 5);
    let rows = rows(folder.path(), &manifests[&Stage::Dataset]).await;
    assert_eq!(rows.len(), 4);
    let row = &rows["000003"];
    assert_eq!(
        (row.character.as_str(), row.prompts.as_str()),
        ("8", "smiling")
    );
    assert!(
        row.bbox
            .iter()
            .zip([0.5, 0.5, 0.5, 0.5])
            .all(|(a, b)| (a - b).abs() < 1e-9)
    );
    assert_eq!(row.similar, ["000001"]);
}

/// As MXNet's `im2rec` packs them, with a first record that has no image.
fn records(people: &[(f32, Vec<u8>)]) -> (Vec<u8>, String) {
    let (mut bytes, mut index) = (Vec::new(), String::new());
    let mut add = |flag: u32, label: f32, labels: &[f32], image: &[u8]| {
        let place = bytes.len();
        let line = format!("{}\t{place}\n", index.lines().count());
        index += &line;
        let length = 24 + 4 * labels.len() + image.len();
        let length = u32::try_from(length).unwrap();
        for word in [0xced7_230a, length, flag, label.to_bits(), 0, 0, 0, 0] {
            bytes.extend(u32::to_le_bytes(word));
        }
        labels.iter().for_each(|it| bytes.extend(it.to_le_bytes()));
        bytes.extend(image);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    };
    add(2, 0.0, &[5.0, 3.0], &[]);
    for (label, image) in people {
        add(0, *label, &[], image);
    }
    (bytes, index)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_read_out_of_records_and_a_file_that_is_cut_off_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let people: Vec<(f32, Vec<u8>)> = (0..5_u8)
        .map(|number| (f32::from(number % 2), picture(number.into())))
        .collect();
    let (bytes, index) = records(&people);
    write(folder.path(), "people/train.rec", &bytes);
    write(folder.path(), "people/train.idx", &index);
    let manifests = build(folder.path(), TEXT).await.unwrap();
    let rows = rows(folder.path(), &manifests[&Stage::Dataset]).await;
    let ids: Vec<&str> = rows.keys().map(String::as_str).collect();
    assert_eq!(ids, ["train/1", "train/2", "train/3", "train/4", "train/5"]);
    assert_eq!(rows["train/2"].similar, ["train/4"]);
    write(
        folder.path(),
        "people/train.rec",
        &bytes[..bytes.len() - 100],
    );
    let manifests = build(folder.path(), TEXT).await.unwrap();
    let report = &manifests[&Stage::Folders].report;
    assert_eq!(
        (report.rows_out, report.bad_rows.len()),
        (4, 1),
        "{report:?}"
    );
    let bad = &report.bad_rows[0];
    assert!(
        bad.offset.is_some() && bad.reason.contains("the record 5 says that it has"),
        "{bad:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_none_of_the_forms_or_two_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "people/a.png", picture(1));
    let error = build(folder.path(), TEXT).await.unwrap_err();
    assert!(
        error.contains("is none of the forms: 1 images, 0 of them with a caption"),
        "{error}"
    );
    write(folder.path(), "people/samples.jsonl", "{}");
    write(folder.path(), "people/identity_CelebA.txt", "a 1");
    let error = build(folder.path(), TEXT).await.unwrap_err();
    assert!(
        error.contains("is rows of samples.jsonl, and CelebA (identity_CelebA.txt)"),
        "{error}"
    );
    let both = format!("{TEXT}[[posts]]\nfrom = \"posts\"\n");
    let error = build(folder.path(), &both).await.unwrap_err();
    assert!(
        error.contains("folders: is given, and there are [[posts]]"),
        "{error}"
    );
}

const POSTS: &str = "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[clusters]\nsignature = \
    \"answers\"\nanswers = \"answers\"\nquestions = [\"clothes\"]\n[dataset]\nimages = \"images\"\n\
    masks = \"masks\"\nboxes = \"boxes\"\n";

/// Ids and annotations are published, and somebody who has the images joins them.
#[tokio::test(flavor = "multi_thread")]
async fn published_annotations_and_images_that_somebody_has_are_the_data_set() {
    let drawn: Vec<(FakePost, Sample)> = danbooru::drawn(3, 3, 64);
    let folder = tempfile::tempdir().unwrap();
    metadata(&drawn, folder.path());
    buckets(&drawn, folder.path());
    let manifests = build(folder.path(), POSTS).await.unwrap();
    let whole = rows(folder.path(), &manifests[&Stage::Dataset]).await;
    let text = format!("{POSTS}publish = \"annotations\"\n");
    let manifests = build(folder.path(), &text).await.unwrap();
    let manifest = &manifests[&Stage::Dataset];
    assert_eq!(manifest.report.rows_out, 18, "{:?}", manifest.report);
    let data = folder
        .path()
        .join("out")
        .join(manifest.key.folder())
        .join("data");
    let files: Vec<_> = std::fs::read_dir(&data).unwrap().collect();
    assert_eq!(files.len(), 1, "no image is published");
    let published = std::fs::read_to_string(data.join("samples.jsonl")).unwrap();
    assert!(!published.contains("\"image\""));
    // Somebody else has all images but one.
    let other = tempfile::tempdir().unwrap();
    write(other.path(), "people/samples.jsonl", &published);
    metadata(&drawn, other.path());
    buckets(&drawn, other.path());
    let lost = drawn[0].0.id;
    let path = format!("images/{:04}/{lost}.png", lost % 1000);
    std::fs::remove_file(other.path().join(path)).unwrap();
    let text = format!("{TEXT}images = \"images\"\nmasks = \"masks\"\n");
    let manifests = build(other.path(), &text).await.unwrap();
    let manifest = &manifests[&Stage::Dataset];
    assert_eq!(manifest.report.lost("no image"), 1, "{:?}", manifest.report);
    let joined = rows(other.path(), manifest).await;
    assert_eq!(joined.len(), 17);
    for (id, row) in &joined {
        let of_all = &whole[id];
        let facts = |row: &Metadata| {
            (
                row.character.clone(),
                row.artists.clone(),
                row.outfit.clone(),
                row.prompts.clone(),
                row.cloths.clone(),
                row.rating.clone(),
            )
        };
        assert_eq!(facts(row), facts(of_all));
        let faces = row.bbox.iter().zip(of_all.bbox);
        assert!(
            faces.into_iter().all(|(a, b)| (a - b).abs() < 1e-9),
            "{row:?}"
        );
        let without = |it: &&String| **it != lost.to_string();
        let similar: BTreeSet<&String> = of_all.similar.iter().filter(without).collect();
        assert_eq!(row.similar.iter().collect::<BTreeSet<_>>(), similar);
    }
}
