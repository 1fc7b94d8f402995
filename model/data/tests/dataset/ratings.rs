//! Which samples a job uses, and which it leaves out and counts.

use crate::folder::{Folder, row, sample, url, write};
use model_data::describe::describe;
use model_data::loader::{LoadError, Loader, LoaderOptions};
use model_data::sample::Sample;
use proto::job::parse_training;
use proto::rating::{Rating, Ratings};
use proto::spec::{Data, TrainWork};
use serde_json::json;
use std::path::Path;

/// A job with references of pairing b.
fn job(folder: &Path, ratings: Option<&[Rating]>) -> TrainWork {
    let text = format!(
        "name = \"r\"\n[data]\ndataset = \"{}\"\nresolution = 32\nreferences = 1\n[model]\n\
         architecture = \"retrinet\"\nsize = \"tiny\"\n[train]\nsteps = 1\nglobal_batch = 1\n\
         micro_batch = 1\n",
        url(folder)
    );
    let mut work = parse_training("job.toml", &text).unwrap();
    if let Some(ratings) = ratings {
        work.data.ratings = Ratings::new(ratings.iter().copied());
    }
    work
}

async fn open(work: &TrainWork) -> Result<Loader, LoadError> {
    let data: &Data = &work.data;
    Loader::open(
        data,
        LoaderOptions::new(&work.model.architecture, 1 << 20, None),
    )
    .await
}

/// Samples of one identity, each similar to all others.
fn identity(ratings: &[&str]) -> Vec<Sample> {
    let ids: Vec<String> = (0..ratings.len()).map(|it| format!("s{it}")).collect();
    let rows = ids.iter().zip(ratings).map(|(id, rating)| {
        let mut row = sample(id);
        row.metadata.rating = (*rating).to_owned();
        row.metadata.similar = ids.iter().filter(|it| *it != id).cloned().collect();
        row
    });
    rows.collect()
}

#[tokio::test]
async fn safe_samples_are_used_by_default_and_the_others_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let ratings = [
        "general",
        "sensitive",
        "questionable",
        "explicit",
        "",
        "extreme",
    ];
    write(folder.path(), identity(&ratings), &[]).await;
    let loader = open(&job(folder.path(), None)).await.unwrap();
    assert_eq!(loader.training(), [0, 1]);
    assert_eq!(
        loader.left_out().unwrap(),
        "4 samples are left out by their rating (1 explicit, 1 extreme, 1 questionable, \
         1 unrated): data.ratings is general, sensitive"
    );
    // No reference is of another rating either.
    assert_eq!((loader.similar(0), loader.similar(1)), (vec![1], vec![0]));
    for step in 1..20 {
        for example in loader.examples(step, 2, 0..2).await.unwrap() {
            assert!(example.references.iter().all(|it| it.position < 2));
        }
    }
    let named = job(folder.path(), Some(&[Rating::Explicit, Rating::Unrated]));
    let loader = open(&named).await.unwrap();
    assert_eq!(loader.training(), [3, 4]);
    assert!(loader.uses(4) && !loader.uses(0) && !loader.uses(99));
    let all = job(folder.path(), Some(&Rating::ALL));
    assert_eq!(open(&all).await.unwrap().training(), [0, 1, 2, 3, 4]);
}

/// A terminal may write an accent as two characters, and a copied id may have a space.
#[tokio::test]
async fn a_sample_is_found_by_its_id_as_a_user_writes_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = identity(&["", ""]);
    for (row, id) in rows.iter_mut().zip(["caf\u{e9}", " old"]) {
        row.metadata.id = id.to_owned();
        row.metadata.similar = Vec::new();
    }
    rows[0].metadata.similar = vec![" old".to_owned()];
    write(folder.path(), rows, &[]).await;
    let loader = open(&job(folder.path(), None)).await.unwrap();
    for (id, found) in [
        ("caf\u{e9}", Some(0)),
        (" cafe\u{301}", Some(0)),
        ("Caf\u{e9}", None),
        (" old", Some(1)),
        ("old", None),
        ("", None),
    ] {
        assert_eq!(loader.position_of(id), found, "{id:?}");
    }
}

#[tokio::test]
async fn a_sample_whose_similar_images_are_all_left_out_has_none() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), identity(&["general", "explicit"]), &[]).await;
    let error = open(&job(folder.path(), None))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(
            "1 have no similar image, 1 samples are left out by their rating (1 explicit)"
        ),
        "{error}"
    );
}

#[tokio::test]
async fn data_sets_without_the_columns_are_used_whole() {
    let folder = tempfile::tempdir().unwrap();
    let rows = identity(&["", "", ""]);
    let dataset = write(folder.path(), rows.clone(), &["rating", "changes"]).await;
    let old = dataset.scan().await.unwrap();
    assert_eq!(old.len(), 3);
    assert!(
        old.iter()
            .all(|row| row.rating.is_empty() && row.changes.is_empty())
    );
    let loader = open(&job(folder.path(), None)).await.unwrap();
    assert_eq!(
        (loader.training(), loader.left_out()),
        (&[0, 1, 2][..], None)
    );
    loader.examples(1, 3, 0..3).await.unwrap();
    assert!(crate::folder::faults(&dataset).await.is_empty());
    assert_eq!(describe(&dataset).await.unwrap().ratings["unrated"], 3);
    // Who names ratings gets these only.
    let error = open(&job(folder.path(), Some(&[Rating::General])))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("3 samples are left out by their rating (3 unrated)"),
        "{error}"
    );
    // The same rows with an empty column.
    write(folder.path(), rows, &[]).await;
    assert_eq!(
        open(&job(folder.path(), None)).await.unwrap().training(),
        [0, 1, 2]
    );
}

#[tokio::test]
async fn an_import_takes_ratings_as_they_are_meant_and_counts_them() {
    let folder = Folder::new();
    let rows = [
        row("a", json!({ "rating": "general" })),
        row("b", json!({ "rating": "S" })),
        row("c", json!({ "rating": " Explicit" })),
        row("d", json!({ "rating": "" })),
        row("e", json!({})),
        row("f", json!({ "rating": "unrated" })),
    ];
    let (dataset, report) = folder.import(&rows).await.unwrap();
    assert_eq!(
        report
            .ratings
            .iter()
            .map(|(word, count)| (word.as_str(), *count))
            .collect::<Vec<_>>(),
        [
            ("explicit", 1),
            ("general", 1),
            ("sensitive", 1),
            ("unrated", 2)
        ]
    );
    assert_eq!(report.rejected.len(), 1);
    assert_eq!(report.changes.0["rating"].samples, 2);
    let found: Vec<String> = dataset
        .scan()
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.rating)
        .collect();
    assert_eq!(found, ["general", "sensitive", "explicit", "", ""]);
}
