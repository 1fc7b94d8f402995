//! Clusters by answers of a model, against the outfits that are drawn.

use crate::danbooru::{self, FakePost};
use crate::editions::TEXT;
use crate::run::{build, clusters};
use proto::build::Stage;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

const ASKED: &str = "[clusters]\nsignature = \"answers\"\nanswers = \"answers\"\n\
                     questions = [\"clothes\", \"colours\"]\n";

/// True answers, in several spellings, of which each `wrong`th is another one.
fn answer(posts: &[FakePost], wrong: usize, folder: &Path) {
    let mut text = String::new();
    for (number, post) in posts.iter().enumerate() {
        let answer = match number % 3 {
            0 => post.outfit.clone(),
            1 => format!("{}.", post.outfit.to_uppercase()),
            _ => post.outfit.replace(" and ", ", "),
        };
        let colours = if number % wrong == wrong - 1 {
            "mauve"
        } else {
            "blue and white"
        };
        text += &format!(
            "{}\n",
            json!({"id": post.id, "question": "clothes", "answer": answer})
        );
        text += &format!(
            "{}\n",
            json!({"id": post.id, "question": "colours", "answer": colours})
        );
        text += &format!(
            "{}\n",
            json!({"id": post.id, "question": "mood", "answer": "calm"})
        );
    }
    std::fs::write(folder.join("answers"), text).unwrap();
}

/// Pairs that are together in both, in the clusters alone, and in the truth alone.
pub(crate) fn pairs(posts: &[FakePost], clusters: &BTreeMap<i64, i64>) -> (u64, u64, u64) {
    let (mut both, mut found, mut missed) = (0, 0, 0);
    for (number, a) in posts.iter().enumerate() {
        for b in &posts[number + 1..] {
            let together = clusters
                .get(&a.id)
                .is_some_and(|it| clusters.get(&b.id) == Some(it));
            match (together, a.identity == b.identity && a.artists == b.artists) {
                (true, true) => both += 1,
                (true, false) => found += 1,
                (false, true) => missed += 1,
                (false, false) => {}
            }
        }
    }
    (both, found, missed)
}

/// The report says what the clusters are worth, where somebody knows the truth.
#[tokio::test]
async fn precision_and_recall_of_the_clusters_are_those_of_their_pairs() {
    let posts = danbooru::posts(8, 6);
    let folder = tempfile::tempdir().unwrap();
    let text = danbooru::lines(posts.iter().map(danbooru::new));
    std::fs::write(folder.path().join("posts"), text).unwrap();
    answer(&posts, 20, folder.path());
    let truth = posts.iter().map(|it| {
        let cluster = format!("{:?} {:?}", it.identity, it.artists);
        json!({"id": it.id, "cluster": cluster})
    });
    std::fs::write(folder.path().join("truth"), danbooru::lines(truth)).unwrap();
    let text = format!("{TEXT}{ASKED}truth = \"truth\"\n");
    let manifests = build(folder.path(), &text).await.unwrap();
    let manifest = &manifests[&Stage::Clusters];
    let found = clusters(folder.path(), &text, manifest).await;
    let (both, wrong, missed) = pairs(&posts, &found);
    assert!(0 < missed && wrong == 0);
    let rows = proto::build::truth::rows(std::slice::from_ref(manifest));
    let [precision, recall] = rows.as_slice() else {
        panic!("{rows:?}");
    };
    assert_eq!(
        (precision.compared, recall.compared),
        (both + wrong, both + missed)
    );
    assert!((precision.value - 1.0).abs() < 1e-9, "{rows:?}");
    let expected = both as f64 / (both + missed) as f64;
    assert!((recall.value - expected).abs() < 1e-9, "{rows:?}");
    std::fs::write(folder.path().join("truth"), "{\"id\": 7}\n").unwrap();
    let error = build(folder.path(), &text).await.unwrap_err();
    assert!(error.contains("truth: row 1: no true cluster"), "{error}");
}

#[tokio::test]
async fn true_answers_give_the_outfits_that_are_drawn() {
    let posts = danbooru::posts(8, 6);
    let folder = tempfile::tempdir().unwrap();
    let text = danbooru::lines(posts.iter().map(danbooru::new));
    std::fs::write(folder.path().join("posts"), text).unwrap();
    answer(&posts, usize::MAX, folder.path());
    let text = format!("{TEXT}{ASKED}");
    let manifests = build(folder.path(), &text).await.unwrap();
    let report = &manifests[&Stage::Clusters].report;
    assert_eq!((report.rows_out, report.counts["clusters"]), (96, 16));
    let found = clusters(folder.path(), &text, &manifests[&Stage::Clusters]).await;
    assert_eq!(pairs(&posts, &found), (16 * 15, 0, 0));
    assert_eq!(
        report.tables["similar figures of a figure"],
        [("5".to_owned(), 96)]
    );
    assert_eq!(
        report.counts["answers that are empty or to other questions"],
        96
    );
}

#[tokio::test]
async fn a_wrong_answer_costs_recall_and_no_precision_and_its_question_is_named() {
    let posts = danbooru::posts(8, 6);
    let folder = tempfile::tempdir().unwrap();
    let text = danbooru::lines(posts.iter().map(danbooru::new));
    std::fs::write(folder.path().join("posts"), text).unwrap();
    // One of twenty.
    answer(&posts, 20, folder.path());
    let text = format!("{TEXT}{ASKED}");
    let manifests = build(folder.path(), &text).await.unwrap();
    let found = clusters(folder.path(), &text, &manifests[&Stage::Clusters]).await;
    let (both, wrong, missed) = pairs(&posts, &found);
    assert_eq!(wrong, 0);
    assert!(
        0 < missed && missed * 5 < both,
        "{both} pairs found, {missed} missed"
    );
    let splits = &manifests[&Stage::Clusters].report.tables["pairs that one question alone splits"];
    assert_eq!(splits[1], ("colours".to_owned(), missed));
    // Two outfits of a character may have the colours in common.
    assert!(splits[0].0 == "clothes" && 0 < splits[0].1, "{splits:?}");
}

#[tokio::test]
async fn figures_without_an_answer_to_every_question_are_dropped() {
    let posts = danbooru::posts(2, 3);
    let folder = tempfile::tempdir().unwrap();
    let text = danbooru::lines(posts.iter().map(danbooru::new));
    std::fs::write(folder.path().join("posts"), text).unwrap();
    let mut text = String::new();
    for (number, post) in posts.iter().enumerate() {
        let answer = if number == 0 { json!(null) } else { json!("a") };
        text += &format!(
            "{}\n",
            json!({"id": post.id, "question": "clothes", "answer": answer})
        );
        let colour = if number == 1 { "." } else { "b" };
        text += &format!(
            "{}\n",
            json!({"id": post.id, "question": "colours", "answer": colour})
        );
    }
    std::fs::write(folder.path().join("answers"), text).unwrap();
    let manifests = build(folder.path(), &format!("{TEXT}{ASKED}"))
        .await
        .unwrap();
    let report = &manifests[&Stage::Clusters].report;
    assert_eq!(report.lost("a question without an answer"), 2);
    assert_eq!(report.counts["answers that are refusals"], 1);
}
