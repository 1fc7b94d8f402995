//! Tests of writing a data set: over another one, of identities that are too large for one row
//! group, and from images that are decoded in parallel.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use figures::synthetic::{Backgrounds, Similar, SynthesizeOptions, identities};
use image::{GrayImage, Luma, Rgb, RgbImage};
use model_data::dataset::Dataset;
use model_data::import::{ImportError, ImportOptions, ImportReport, PART_ROWS, import};
use model_data::loader::{LoadError, Loader, LoaderOptions};
use model_data::prepare::ExampleConfig;
use model_data::sample::Sample;
use model_data::verify::verify;
use model_data::writer::{DatasetWriter, WriteError, WriteOptions, Written};
use proto::spec::{Data, PromptOrder};

fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

fn figures(seed: u64) -> impl Iterator<Item = Vec<Sample>> {
    let options = SynthesizeOptions {
        characters: 3,
        outfits: 1,
        images: 3,
        size: 16,
        seed,
        similar: Similar::All,
        backgrounds: Backgrounds::All,
    };
    identities(&options).collect::<Vec<_>>().into_iter()
}

async fn write(folder: &Path, seed: u64, replace: bool) -> Result<Written, WriteError> {
    let options = WriteOptions {
        replace,
        ..WriteOptions::new("test")
    };
    let mut writer = DatasetWriter::open(&url(folder), options).await?;
    for identity in figures(seed) {
        writer.add(identity).await?;
    }
    writer.finish().await
}

async fn load(folder: &Path, version: &str) -> Result<Loader, LoadError> {
    let data = Data {
        dataset: url(folder),
        resolution: 16,
        prompt_drop: 0.0,
        looks_drop: 0.0,
        prompt_order: PromptOrder::AsWritten,
        ratings: proto::rating::Ratings::default(),
        holdout: 0.0,
        seed: 1,
    };
    let options = LoaderOptions {
        examples: ExampleConfig {
            view: None,
            references: None,
            timesteps: 10,
        },
        cache_bytes: 0,
        version: Some(version.to_owned()),
    };
    Loader::open(&data, options).await
}

#[tokio::test]
async fn a_data_set_is_replaced_only_on_request_and_the_old_version_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let first = write(dir.path(), 1, false).await.unwrap();
    assert_eq!(first.replaced, None);
    let before = Dataset::open(&url(dir.path())).await.unwrap();
    let old_examples = load(dir.path(), before.version()).await.unwrap();
    let old_examples = old_examples.examples(1, 4, 0..4).await.unwrap();

    let refused = write(dir.path(), 2, false).await.unwrap_err();
    assert!(matches!(refused, WriteError::Exists { .. }));
    let text = refused.to_string();
    assert!(
        text.contains(&before.version()[..12]) && text.contains("--replace"),
        "{text}"
    );
    let unchanged = Dataset::open(&url(dir.path())).await.unwrap();
    assert_eq!(unchanged.version(), before.version());

    let second = write(dir.path(), 2, true).await.unwrap();
    assert_eq!(second.replaced.as_deref(), Some(before.version()));
    let after = Dataset::open(&url(dir.path())).await.unwrap();
    assert_ne!(after.version(), before.version());
    assert_eq!(verify(&after).await.unwrap().findings, []);

    // A job that was submitted with the first version sees the same samples as before.
    let pinned = load(dir.path(), before.version()).await.unwrap();
    assert_eq!(pinned.dataset().version(), before.version());
    assert_eq!(pinned.examples(1, 4, 0..4).await.unwrap(), old_examples);
    let newest = load(dir.path(), after.version()).await.unwrap();
    assert_ne!(newest.examples(1, 4, 0..4).await.unwrap(), old_examples);

    // The same rows again are the same version: nothing is replaced.
    let again = write(dir.path(), 2, true).await.unwrap();
    assert_eq!(again.replaced, None);

    // Without the kept manifest the job is refused with both versions.
    let kept = proto::dataset::kept_manifest(before.version());
    std::fs::remove_file(dir.path().join(kept)).unwrap();
    let error = load(dir.path(), before.version()).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(before.version()) && text.contains(after.version()),
        "{text}"
    );
}

#[tokio::test]
async fn two_writers_at_one_url_do_not_replace_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let url = url(dir.path());
    let open = || DatasetWriter::open(&url, WriteOptions::new("test"));
    let (mut slow, mut fast) = (open().await.unwrap(), open().await.unwrap());
    for identity in figures(1) {
        fast.add(identity).await.unwrap();
    }
    for identity in figures(2) {
        slow.add(identity).await.unwrap();
    }
    fast.finish().await.unwrap();
    let version = Dataset::open(&url).await.unwrap();
    let error = slow.finish().await.unwrap_err().to_string();
    assert!(error.contains(&version.version()[..12]), "{error}");
    let still = Dataset::open(&url).await.unwrap();
    assert_eq!(still.version(), version.version());
}

#[tokio::test]
async fn an_identity_that_is_too_large_is_refused_by_name_and_two_never_share_too_large_a_group() {
    let size_of = |identity: &[Sample]| -> usize {
        let rows = identity.iter();
        rows.map(|row| row.image.len() + row.mask.len()).sum()
    };
    let identities: Vec<_> = figures(1).collect();
    let largest = identities.iter().map(|it| size_of(it)).max().unwrap();
    let write = async |identity_bytes| {
        let dir = tempfile::tempdir().unwrap();
        let options = WriteOptions {
            identity_bytes,
            ..WriteOptions::new("test")
        };
        let mut writer = DatasetWriter::open(&url(dir.path()), options).await?;
        for identity in identities.clone() {
            writer.add(identity).await?;
        }
        writer.finish().await
    };
    // Texts need a little, too.
    let written = write(largest + 2000).await.unwrap();
    assert_eq!(written.manifest.files[0].row_groups, [3, 3, 3]);
    let written = write(1 << 30).await.unwrap();
    assert_eq!(written.manifest.files[0].row_groups, [9]);
    let text = write(largest / 2).await.unwrap_err().to_string();
    let row = &identities[0][0].metadata;
    for part in [&row.character, &row.outfit, &row.artists, "3 rows"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// `rows` images of one outfit; every 10th cannot be decoded.
fn import_folder(rows: usize, similar: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for colour in 0..4 {
        let image = RgbImage::from_pixel(12, 16, Rgb([60 * colour, 90, 200]));
        image.save(path(&format!("{colour}.png"))).unwrap();
    }
    let figure = |x, _| Luma([if x < 9 { 255 } else { 0 }]);
    GrayImage::from_fn(12, 16, figure)
        .save(path("mask.png"))
        .unwrap();
    std::fs::write(path("broken.png"), b"not an image").unwrap();
    let line = |n: usize| {
        let image = if n % 10 == 9 {
            "broken.png".to_owned()
        } else {
            format!("{}.png", n % 4)
        };
        format!(
            r#"{{"id":"{n}","character":"x","artists":"y","outfit":"o","prompts":"smile",
            "bbox":[0.5,0.3,0.4,0.3],"image":"{image}","mask":"mask.png"{similar}}}"#
        )
        .replace('\n', " ")
    };
    let lines: Vec<String> = (0..rows).map(line).collect();
    std::fs::write(path("samples.jsonl"), lines.join("\n")).unwrap();
    dir
}

async fn import_to(
    from: &Path,
    to: &Path,
    strict: bool,
) -> Result<(Written, ImportReport), ImportError> {
    let options = ImportOptions {
        source: "test".to_owned(),
        strict,
        replace: false,
    };
    import(from, &url(to), &options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_decoded_in_parallel_are_written_in_the_order_of_their_lines() {
    let from = import_folder(100, "");
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (written, report) = import_to(from.path(), one.path(), false).await.unwrap();
    let (again, _) = import_to(from.path(), two.path(), false).await.unwrap();
    assert_eq!(written, again);
    assert_eq!((report.accepted, report.rejected.len()), (90, 10));
    let lines = report.rejected.iter().map(|(line, _)| *line);
    assert!(lines.eq((1..=10).map(|it| it * 10)));
    let dataset = Dataset::open(&url(one.path())).await.unwrap();
    let ids: Vec<usize> = dataset.scan().await.unwrap().iter().map(id_of).collect();
    let expected: Vec<usize> = (0..100).filter(|it| it % 10 != 9).collect();
    assert_eq!(ids, expected);
}

fn id_of(row: &model_data::sample::Metadata) -> usize {
    row.id.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_of_too_many_rows_is_imported_in_parts_and_named() {
    let rows = PART_ROWS * 10 / 9 + 50;
    let (from, to) = (import_folder(rows, ""), tempfile::tempdir().unwrap());
    let (written, report) = import_to(from.path(), to.path(), false).await.unwrap();
    let accepted = rows - rows / 10;
    assert_eq!(written.manifest.samples, accepted as u64);
    assert_eq!(report.dropped, []);
    assert_eq!(report.split.len(), 1);
    let (line, what) = &report.split[0];
    assert_eq!(*line, 1);
    assert!(
        what.contains("\"x\"") && what.contains(&format!("{accepted} images")),
        "{what}"
    );
    let dataset = Dataset::open(&url(to.path())).await.unwrap();
    assert_eq!(verify(&dataset).await.unwrap().findings, []);
    let rows = dataset.scan().await.unwrap();
    let similar: Vec<usize> = rows.iter().map(|row| row.similar.len()).collect();
    assert_eq!(similar[..PART_ROWS], vec![PART_ROWS - 1; PART_ROWS]);
    assert_eq!(similar[PART_ROWS], accepted - PART_ROWS - 1);
    assert_eq!((rows[0].identity, rows[PART_ROWS].identity), (0, 1));
    let other = tempfile::tempdir().unwrap();
    let error = import_to(from.path(), other.path(), true).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("1 identities split"), "{error}");
}

#[tokio::test]
async fn a_similar_entry_across_parts_is_dropped_and_reported() {
    let (from, to) = (
        import_folder(PART_ROWS * 10 / 9 + 50, r#","similar":["0"]"#),
        tempfile::tempdir().unwrap(),
    );
    let (_, report) = import_to(from.path(), to.path(), false).await.unwrap();
    // The first row names itself; those of the second part name a row of the first one.
    let second = report.dropped.iter().filter(|(line, _)| *line > 1);
    assert!(second.clone().count() > 0);
    assert!(
        second
            .clone()
            .all(|(line, why)| *line > PART_ROWS as u64 && why.contains("another part"))
    );
    let dataset = Dataset::open(&url(to.path())).await.unwrap();
    assert_eq!(verify(&dataset).await.unwrap().findings, []);
}
