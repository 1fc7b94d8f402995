//! End-to-end tests of data sets of synthetic figures on disk: round trip, determinism, planted
//! faults, rejected imports, loading.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use figures::synthetic::{Backgrounds, Similar, SynthesizeOptions, identities, synthesize};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use model_data::columns::{schema, to_batch};
use model_data::dataset::{Dataset, DatasetError};
use model_data::describe::describe;
use model_data::import::{ImportError, ImportOptions, ImportReport};
use model_data::loader::{LoadError, Loader, LoaderOptions};
use model_data::prepare::ExampleConfig;
use model_data::sample::{Sample, split_tags};
use model_data::verify::verify;
use model_data::writer::{DatasetWriter, WriteError, WriteOptions};
use parquet::arrow::ArrowWriter;
use proto::dataset::DatasetManifest;
use proto::spec::{Clothes, Data, Pairing, PromptOrder, References, Task, Transform};
use proto::text::hex_sha256;

fn options() -> SynthesizeOptions {
    SynthesizeOptions {
        characters: 6,
        outfits: 2,
        images: 4,
        size: 32,
        seed: 3,
        similar: Similar::All,
        backgrounds: Backgrounds::All,
    }
}

fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

async fn write(
    folder: &Path,
    groups: impl IntoIterator<Item = Vec<Sample>>,
    options: WriteOptions,
) -> DatasetManifest {
    let mut writer = DatasetWriter::open(&url(folder), options).await.unwrap();
    for group in groups {
        writer.add(group).await.unwrap();
    }
    writer.finish().await.unwrap().manifest
}

fn small_groups() -> WriteOptions {
    WriteOptions {
        row_group_rows: 8,
        file_bytes: 40 << 10,
        ..WriteOptions::new("test")
    }
}

fn data(folder: &Path) -> Data {
    Data {
        dataset: url(folder),
        resolution: 32,
        prompt_drop: 0.5,
        looks_drop: 0.0,
        prompt_order: PromptOrder::AsWritten,
        holdout: 0.3,
        ratings: proto::rating::Ratings::default(),
        seed: 7,
    }
}

fn loader_options(cache_bytes: usize) -> LoaderOptions {
    LoaderOptions {
        examples: ExampleConfig {
            view: None,
            references: Some(References {
                task: Task::Composition,
                pairing: Pairing::B,
                count: 2,
                drop: 0.0,
                joint_drop: None,
                transform: Transform::default(),
                face_probability: 0.5,
                face_enlargement: 1.33,
                figure_threshold: 0.5,
                clothes: Clothes::default(),
                scale: 0.8,
                multitask_reconstruction: 0.5,
            }),
            timesteps: 1000,
        },
        cache_bytes,
        version: None,
    }
}

#[tokio::test]
async fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write(dir.path(), identities(&options()), small_groups()).await;
    assert_eq!((manifest.samples, manifest.characters), (48, 6));
    assert!(
        manifest.files.len() > 1,
        "several files: {:?}",
        manifest.files
    );
    let dataset = Dataset::open(&url(dir.path())).await.unwrap();
    assert_eq!(*dataset.manifest(), manifest);
    let written: Vec<Sample> = synthesize(&options()).collect();
    let scanned = dataset.scan().await.unwrap();
    for (position, sample) in written.iter().enumerate() {
        let (group, row) = dataset.group_of(position as u64).unwrap();
        let read = dataset.rows_of_group(group).await.unwrap().swap_remove(row);
        assert_eq!((&read.image, &read.mask), (&sample.image, &sample.mask));
        assert_eq!(scanned[position], read.metadata);
        assert_eq!(read.metadata.identity, position as u64 / 4);
        for (id, at) in read
            .metadata
            .similar
            .iter()
            .zip(&read.metadata.similar_positions)
        {
            assert_eq!(written[*at as usize].metadata.id, *id);
            assert_eq!(
                dataset.group_of(*at).unwrap().0,
                group,
                "similar images share a row group"
            );
        }
        let mut expected = sample.metadata.clone();
        expected.identity = read.metadata.identity;
        expected.similar_positions = read.metadata.similar_positions.clone();
        assert_eq!(read.metadata, expected);
    }
    let index = dataset.index().await.unwrap();
    assert!(
        index
            .iter()
            .all(|(id, at)| written[*at as usize].metadata.id == *id)
    );
    assert!(matches!(
        dataset.group_of(48),
        Err(DatasetError::Position { .. })
    ));
    assert_eq!(verify(&dataset).await.unwrap().findings, []);
}

#[tokio::test]
async fn the_same_seed_gives_the_same_bytes() {
    let (a, b, c) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let first = write(a.path(), identities(&options()), small_groups()).await;
    assert_eq!(
        first,
        write(b.path(), identities(&options()), small_groups()).await
    );
    let other = SynthesizeOptions {
        seed: 4,
        ..options()
    };
    assert_ne!(
        first,
        write(c.path(), identities(&other), small_groups()).await
    );
}

#[test]
fn more_characters_leave_the_earlier_ones_alone() {
    let few: Vec<Sample> = synthesize(&options()).collect();
    let more = SynthesizeOptions {
        characters: 8,
        ..options()
    };
    assert!(synthesize(&more).take(few.len()).eq(few));
}

#[tokio::test]
async fn the_writer_refuses_what_a_reader_could_not_trust() {
    let dir = tempfile::tempdir().unwrap();
    let open = async || {
        let url = url(dir.path());
        DatasetWriter::open(&url, small_groups()).await.unwrap()
    };
    let group = identities(&options()).next().unwrap();
    let mut writer = open().await;
    writer.add(group.clone()).await.unwrap();
    assert!(matches!(
        writer.add(group.clone()).await,
        Err(WriteError::DuplicateId { .. })
    ));
    let alone = vec![group[0].clone()];
    assert!(matches!(
        open().await.add(alone).await,
        Err(WriteError::Dangling { .. })
    ));
    assert!(matches!(
        open().await.finish().await,
        Err(WriteError::Empty)
    ));
    let missing = Dataset::open(&url(dir.path()))
        .await
        .unwrap_err()
        .to_string();
    assert!(missing.contains("dataset.json does not exist"), "{missing}");
}

#[test]
fn figures_have_true_boxes_masks_and_tags() {
    let options = SynthesizeOptions {
        characters: 12,
        images: 6,
        outfits: 1,
        size: 64,
        ..options()
    };
    let mut framings = std::collections::BTreeMap::new();
    for sample in synthesize(&options) {
        let row = &sample.metadata;
        assert_eq!(
            model_data::verify::check_box(row.bbox),
            Ok(()),
            "{}",
            row.id
        );
        let tags: Vec<&str> = split_tags(&row.prompts).collect();
        assert!(tags.is_sorted() && tags.contains(&"solo"), "{tags:?}");
        for cloth in &row.cloths {
            assert!(
                tags.contains(&cloth.replace(' ', "_").as_str()),
                "{cloth} of {tags:?}"
            );
        }
        assert!(!row.cloths.is_empty());
        let framing = ["full_body", "upper_body", "portrait"]
            .into_iter()
            .find(|f| tags.contains(f))
            .unwrap();
        *framings.entry(framing).or_insert(0) += 1;
        let decoded = model_data::decoded::decode(&sample, 0).unwrap();
        let face = decoded.face(1.0);
        let inside = model_data::image_file::region_mask(64, face);
        let (mut on_figure, mut all) = (0, 0);
        for (face, mask) in inside.pixels().zip(decoded.mask.pixels()) {
            all += usize::from(face.0[0] > 0);
            on_figure += usize::from(face.0[0] > 0 && mask.0[0] > 127);
        }
        // The box of a tilted head has corners next to the head.
        assert!(
            on_figure * 100 > all * 80,
            "{}: {on_figure} of {all} face pixels are on the figure",
            row.id
        );
        assert!(
            decoded.mask.pixels().any(|p| (1..255).contains(&p.0[0])),
            "the mask is soft"
        );
    }
    assert_eq!(framings.len(), 3, "{framings:?}");
}

#[test]
fn the_papers_histogram_of_similar_can_be_requested() {
    let options = SynthesizeOptions {
        characters: 12,
        outfits: 1,
        images: 18,
        size: 16,
        seed: 1,
        similar: Similar::Paper,
        backgrounds: Backgrounds::All,
    };
    let lengths: Vec<usize> = synthesize(&options)
        .map(|s| s.metadata.similar.len())
        .collect();
    let few = lengths.iter().filter(|l| **l < 4).count() * 100 / lengths.len();
    assert!(
        (70..92).contains(&few),
        "{few} % have fewer than 4, the paper: 81 %"
    );
    assert!(lengths.iter().all(|l| *l >= 1));
}

#[tokio::test]
async fn a_step_is_the_same_however_it_is_cut_and_cached() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), identities(&options()), small_groups()).await;
    let large = Loader::open(&data(dir.path()), loader_options(64 << 20))
        .await
        .unwrap();
    let none = Loader::open(&data(dir.path()), loader_options(0))
        .await
        .unwrap();
    assert!(!large.held_out().is_empty());
    assert_eq!(large.training().len() + large.held_out().len(), 48);
    for step in [1, 2, 9] {
        let whole = large.examples(step, 8, 0..8).await.unwrap();
        let mut cut = none.examples(step, 8, 0..3).await.unwrap();
        cut.extend(none.examples(step, 8, 3..8).await.unwrap());
        assert_eq!(whole, cut);
        for example in &whole {
            assert_eq!(example.references.len(), 2);
            assert!(large.training().contains(&example.position));
            let similar = &large.rows()[example.position as usize].similar_positions;
            assert!(
                example
                    .references
                    .iter()
                    .all(|r| similar.contains(&r.position))
            );
        }
    }
    assert!(matches!(
        large.examples(1, 8, 4..9).await,
        Err(LoadError::Range { .. })
    ));
    let pinned = LoaderOptions {
        version: Some("other".to_owned()),
        ..loader_options(0)
    };
    assert!(matches!(
        Loader::open(&data(dir.path()), pinned).await,
        Err(LoadError::Version { .. })
    ));
    let nothing = Data {
        holdout: 1.0,
        ..data(dir.path())
    };
    assert!(matches!(
        Loader::open(&nothing, loader_options(0)).await,
        Err(LoadError::NothingToTrain { .. })
    ));
}

/// Writes a data set that the writer would reject.
fn write_by_hand(folder: &Path, rows: &[Sample]) {
    let encode = |batch: &arrow_array::RecordBatch| {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(batch).unwrap();
        writer.into_inner().unwrap()
    };
    let samples = encode(&to_batch(rows).unwrap());
    let mut ids: Vec<(&str, u64)> = rows
        .iter()
        .zip(0..)
        .map(|(r, at)| (r.metadata.id.as_str(), at))
        .collect();
    ids.sort_unstable();
    let index = encode(
        &arrow_array::RecordBatch::try_from_iter([
            (
                "id",
                std::sync::Arc::new(arrow_array::StringArray::from_iter_values(
                    ids.iter().map(|i| i.0),
                )) as _,
            ),
            (
                "position",
                std::sync::Arc::new(arrow_array::UInt64Array::from_iter_values(
                    ids.iter().map(|i| i.1),
                )) as _,
            ),
        ])
        .unwrap(),
    );
    let entry = |bytes: &[u8]| (bytes.len() as u64, hex_sha256(bytes));
    let ((size, sha), (index_size, index_sha)) = (entry(&samples), entry(&index));
    let manifest = serde_json::json!({
        "schema_version": 1, "source": "by hand", "samples": rows.len(), "characters": 1,
        "files": [{
            "path": "s.parquet", "size_bytes": size, "sha256": sha, "row_groups": [rows.len()],
        }],
        "index": { "path": "i.parquet", "size_bytes": index_size, "sha256": index_sha },
    });
    std::fs::write(folder.join("s.parquet"), samples).unwrap();
    std::fs::write(folder.join("i.parquet"), index).unwrap();
    std::fs::write(folder.join("dataset.json"), manifest.to_string()).unwrap();
}

fn mask_of(side: u32) -> bytes::Bytes {
    model_data::image_file::encode_gray(GrayImage::new(side, side)).unwrap()
}

/// One identity with correct positions, to plant faults in.
fn good_rows() -> Vec<Sample> {
    let mut rows = identities(&options()).next().unwrap();
    let ids: Vec<String> = rows.iter().map(|r| r.metadata.id.clone()).collect();
    for row in &mut rows {
        let at = |id: &String| ids.iter().position(|i| i == id).unwrap() as u64;
        row.metadata.similar_positions = row.metadata.similar.iter().map(at).collect();
    }
    rows
}

#[tokio::test]
async fn verify_finds_each_planted_fault() {
    type Plant = (&'static str, fn(&mut Vec<Sample>));
    let plants: [Plant; 10] = [
        ("is not in the data set", |r| {
            r[0].metadata.similar[0] = "nobody".to_owned()
        }),
        ("the id is also that of position 0", |r| {
            r[1].metadata.id = r[0].metadata.id.clone()
        }),
        ("leaves the image", |r| {
            r[2].metadata.bbox = [0.9, 0.5, 0.4, 0.2]
        }),
        ("leaves the image", |r| {
            r[2].metadata.bbox = [0.5, 0.5, 0.0, f64::NAN]
        }),
        ("the image is cut off", |r| {
            r[1].image = r[1].image.slice(0..40)
        }),
        ("the image is 32x32 pixels, the row says 64x32", |r| {
            r[3].metadata.width = 64
        }),
        ("the mask is 8x8 pixels, the row says 32x32", |r| {
            r[3].mask = mask_of(8)
        }),
        ("names the sample itself", |r| {
            r[0].metadata.similar[0] = r[0].metadata.id.clone()
        }),
        ("is at position", |r| r[0].metadata.similar_positions[0] = 3),
        ("character is empty", |r| r[0].metadata.character.clear()),
    ];
    let dir = tempfile::tempdir().unwrap();
    write_by_hand(dir.path(), &good_rows());
    let clean = verify(&Dataset::open(&url(dir.path())).await.unwrap())
        .await
        .unwrap();
    assert_eq!(clean.findings, []);
    for (expected, plant) in plants {
        let mut rows = good_rows();
        plant(&mut rows);
        write_by_hand(dir.path(), &rows);
        let found = verify(&Dataset::open(&url(dir.path())).await.unwrap())
            .await
            .unwrap();
        let texts: Vec<String> = found.findings.iter().map(ToString::to_string).collect();
        assert!(
            texts.iter().any(|t| t.contains(expected)),
            "{expected}: {texts:?}"
        );
        assert_eq!(found.samples, 4);
    }
}

#[tokio::test]
async fn verify_finds_damaged_and_missing_files_and_the_loader_names_the_row() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = good_rows();
    for row in &mut rows {
        row.image = row.image.slice(0..50);
    }
    write_by_hand(dir.path(), &rows);
    let loader = Loader::open(
        &Data {
            holdout: 0.0,
            ..data(dir.path())
        },
        loader_options(0),
    )
    .await
    .unwrap();
    let error = loader.examples(1, 4, 0..4).await.unwrap_err().to_string();
    assert!(
        error.contains("row group 0 of \"s.parquet\"") && error.contains("00000-00-"),
        "{error}"
    );
    let mut bytes = std::fs::read(dir.path().join("s.parquet")).unwrap();
    bytes[100] ^= 1;
    std::fs::write(dir.path().join("s.parquet"), bytes).unwrap();
    std::fs::remove_file(dir.path().join("i.parquet")).unwrap();
    let found = verify(&Dataset::open(&url(dir.path())).await.unwrap())
        .await
        .unwrap();
    let texts: Vec<String> = found.findings.iter().map(ToString::to_string).collect();
    assert!(
        texts
            .iter()
            .any(|t| t.starts_with("s.parquet: has SHA-256")),
        "{texts:?}"
    );
    assert!(
        texts
            .iter()
            .any(|t| t.starts_with("i.parquet: cannot read")),
        "{texts:?}"
    );
    assert_eq!(schema().fields().len(), 16);
}

fn png(image: DynamicImage, path: &Path) {
    image.save_with_format(path, ImageFormat::Png).unwrap();
}

/// A folder with three valid images with masks, one with alpha, and one that does not decode.
fn import_folder(lines: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        png(
            RgbImage::from_pixel(20, 30, Rgb([9, 90, 200])).into(),
            &dir.path().join(format!("{name}.png")),
        );
        png(
            GrayImage::from_fn(20, 30, |x, _| Luma([if x < 16 { 200 } else { 0 }])).into(),
            &dir.path().join(format!("{name}_mask.png")),
        );
    }
    let alpha = RgbaImage::from_fn(24, 24, |x, y| {
        if x > 7 && x < 16 && y > 3 {
            Rgba([50, 60, 70, 255])
        } else {
            Rgba([0; 4])
        }
    });
    png(alpha.into(), &dir.path().join("alpha.png"));
    std::fs::write(dir.path().join("broken.png"), b"not an image").unwrap();
    std::fs::write(dir.path().join("samples.jsonl"), lines.join("\n")).unwrap();
    dir
}

const A: &str = concat!(
    r#"{"id":"a","character":"x","artists":"y","bbox":[0.5,0.3,0.4,0.3],"#,
    r#""prompts":"smile, 1girl","cloths":["red_skirt"],"similar":["b"],"#,
    r#""image":"a.png","mask":"a_mask.png"}"#,
);
const B: &str = concat!(
    r#"{"id":"b","character":"x","artists":"y","bbox":[0.5,0.3,0.4,0.3],"#,
    r#""prompts":"1girl","similar":["a","gone"],"image":"b.png","mask":"b_mask.png"}"#,
);
const ALPHA: &str =
    r#"{"id":"s","character":"z","artists":"y","prompts":"1boy","outfit":"o","image":"alpha.png"}"#;
const ALPHA_TWIN: &str =
    r#"{"id":"t","character":"z","artists":"y","prompts":"1boy","outfit":"o","image":"alpha.png"}"#;

/// Invalid lines, and a part of the expected reason.
const BAD: [(&str, &str); 10] = [
    (r#"{"id":"c""#, "EOF"),
    (
        r#"{"id":"c","character":"x","artists":"y","prompts":"","image":"c.png","colour":1}"#,
        "unknown field `colour`",
    ),
    (
        r#"{"id":"a","character":"x","artists":"y","prompts":"","image":"c.png"}"#,
        "is also that of line 1",
    ),
    (
        r#"{"id":"d","character":"","artists":"y","prompts":"","image":"c.png"}"#,
        "character is empty",
    ),
    (
        r#"{"id":"e","character":"x","artists":"y","prompts":"","image":"../c.png"}"#,
        "leaves the folder",
    ),
    (
        r#"{"id":"f","character":"x","artists":"y","prompts":"","image":"none.png"}"#,
        "cannot be read",
    ),
    (
        r#"{"id":"g","character":"x","artists":"y","prompts":"","image":"broken.png"}"#,
        "cannot be decoded",
    ),
    (
        r#"{"id":"h","character":"x","artists":"y","prompts":"","image":"c.png"}"#,
        "there is no mask",
    ),
    (
        concat!(
            r#"{"id":"i","character":"x","artists":"y","prompts":"","#,
            r#""image":"alpha.png","mask":"c_mask.png"}"#,
        ),
        "is 20x30 pixels",
    ),
    (
        concat!(
            r#"{"id":"j","character":"x","artists":"y","bbox":[0.9,0.5,0.5,0.1],"#,
            r#""prompts":"","image":"c.png"}"#,
        ),
        "leaves the image",
    ),
];

async fn import(
    folder: &Path,
    url: &str,
    strict: bool,
) -> Result<(DatasetManifest, ImportReport), ImportError> {
    let options = ImportOptions {
        source: "test".to_owned(),
        strict,
        replace: false,
    };
    let done = model_data::import::import(folder, url, &options).await;
    done.map(|(written, report)| (written.manifest, report))
}

#[tokio::test]
async fn an_import_keeps_the_good_and_names_the_bad() {
    let mut lines = vec![A, B, "", ALPHA, ALPHA_TWIN];
    lines.extend(BAD.iter().map(|(line, _)| *line));
    let (dir, out) = (import_folder(&lines), tempfile::tempdir().unwrap());
    let (manifest, report) = import(dir.path(), &url(out.path()), false).await.unwrap();
    assert_eq!(
        (
            manifest.samples,
            report.rows,
            report.accepted,
            report.guessed_boxes
        ),
        (4, 14, 4, 2)
    );
    for ((line, reason), (n, (_, expected))) in report.rejected.iter().zip(BAD.iter().enumerate()) {
        assert_eq!(*line, n as u64 + 6);
        assert!(reason.contains(expected), "line {line}: {reason}");
    }
    assert_eq!(report.rejected.len(), BAD.len());
    assert_eq!(report.dropped.len(), 1);
    assert!(
        report.dropped[0].0 == 2 && report.dropped[0].1.contains("gone"),
        "{:?}",
        report.dropped
    );
    let dataset = Dataset::open(&url(out.path())).await.unwrap();
    assert_eq!(verify(&dataset).await.unwrap().findings, []);
    let rows = dataset.scan().await.unwrap();
    assert_eq!(
        (rows[0].prompts.as_str(), rows[0].cloths[0].as_str()),
        ("1girl, smile", "red skirt")
    );
    assert_eq!(
        rows[2].similar,
        ["t"],
        "without `similar`, all rows of the outfit are similar"
    );
    assert!(
        (rows[2].bbox[0] - 0.5).abs() < 0.05 && rows[2].bbox[1] < 0.4,
        "{:?}",
        rows[2].bbox
    );
    let description = describe(&dataset).await.unwrap();
    assert_eq!(
        (
            description.samples,
            description.characters,
            description.identities,
            description.artists
        ),
        (4, 2, 2, 1)
    );
    assert_eq!(
        description.similar.into_iter().collect::<Vec<_>>(),
        [(1, 4)]
    );
    assert_eq!(description.frequent_cloths, [("red skirt".to_owned(), 1)]);
}

#[tokio::test]
async fn a_strict_import_writes_nothing_when_anything_is_wrong() {
    let (dir, out) = (import_folder(&[A, B]), tempfile::tempdir().unwrap());
    let error = import(dir.path(), &url(out.path()), true)
        .await
        .unwrap_err();
    assert!(matches!(error, ImportError::Strict { .. }));
    assert!(
        error.to_string().contains("line 2: similar names \"gone\""),
        "{error}"
    );
    assert!(!out.path().join("dataset.json").exists());
    let (dir, out) = (
        import_folder(&[ALPHA, ALPHA_TWIN]),
        tempfile::tempdir().unwrap(),
    );
    assert!(import(dir.path(), &url(out.path()), true).await.is_ok());
    let (empty, out) = (import_folder(&["{}"]), tempfile::tempdir().unwrap());
    assert!(matches!(
        import(empty.path(), &url(out.path()), false).await,
        Err(ImportError::Nothing { .. })
    ));
    let missing = import(Path::new("/nowhere"), &url(out.path()), false)
        .await
        .unwrap_err();
    assert!(
        missing.to_string().contains("/nowhere/samples.jsonl"),
        "{missing}"
    );
}
