//! Images in tars without an index, as webdataset has them, and tars and indexes that are damaged.

use crate::danbooru;
use crate::run::build;
use crate::written::{dataset, metadata};
use model_data::verify::verify;
use proto::build::Stage;
use serde_json::json;
use std::path::Path;
use std::process::Command;

const TEXT: &str = "out = \"out\"\n[[posts]]\nfrom = \"posts\"\n[clusters]\nsignature = \
    \"answers\"\nanswers = \"answers\"\nquestions = [\"clothes\"]\n[dataset]\nimages = \"images\"\n\
    masks = \"masks\"\nboxes = \"boxes\"\n";

/// `ID.png` and `ID.json` of each post in one tar: its bytes.
fn pack(folder: &Path) -> Vec<u8> {
    let drawn = danbooru::drawn(4, 4, 64);
    metadata(&drawn, folder);
    let files = folder.join("files");
    std::fs::create_dir_all(&files).unwrap();
    let mut names = Vec::new();
    for (post, sample) in &drawn {
        for (ending, bytes) in [("json", &b"{}"[..]), ("png", &sample.image[..])] {
            let name = format!("{}.{ending}", post.id);
            std::fs::write(files.join(&name), bytes).unwrap();
            names.push(name);
        }
    }
    std::fs::create_dir_all(folder.join("images")).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-cf", "../images/shard-000.tar"]).args(names);
    assert!(tar.current_dir(&files).status().unwrap().success());
    std::fs::read(folder.join("images/shard-000.tar")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tar_of_webdataset_needs_no_index() {
    let folder = tempfile::tempdir().unwrap();
    pack(folder.path());
    let manifests = build(folder.path(), TEXT).await.unwrap();
    let report = &manifests[&Stage::Dataset].report;
    assert_eq!((report.rows_in, report.rows_out), (32, 32), "{report:?}");
    assert!(report.found[0].contains("32 images, 1 tars"), "{report:?}");
    let dataset = dataset(folder.path(), &manifests[&Stage::Dataset]).await;
    let verified = verify(&dataset).await.unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_tar_is_used_up_to_its_end_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = pack(folder.path());
    let path = folder.path().join("images/shard-000.tar");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let manifests = build(folder.path(), TEXT).await.unwrap();
    let report = &manifests[&Stage::Dataset].report;
    assert!(
        0 < report.rows_out && 10 < report.lost("no image"),
        "{report:?}"
    );
    assert_eq!(report.counts["faults of tars and their indexes"], 1);
    let bad = &report.bad_rows[0];
    assert!(
        bad.file.ends_with("shard-000.tar") && bad.reason.contains("is cut off"),
        "{bad:?}"
    );
    assert!(
        bad.offset.is_some_and(|it| it < bytes.len() as u64 / 2),
        "{bad:?}"
    );
    let strict = format!("on_bad_row = \"stop\"\n{TEXT}");
    let error = build(folder.path(), &strict).await.unwrap_err();
    assert!(error.contains("shard-000.tar: row"), "{error}");
    assert!(error.contains("is cut off"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_another_tar_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = pack(folder.path());
    let index = json!({"filesize": bytes.len() + 512, "files": {}}).to_string();
    std::fs::write(folder.path().join("images/shard-000.json"), index).unwrap();
    let strict = format!("on_bad_row = \"stop\"\n{TEXT}");
    let error = build(folder.path(), &strict).await.unwrap_err();
    assert!(
        error.contains(&format!(
            "shard-000.tar: row 0: has {} bytes, and shard-000.json says that it has {}",
            bytes.len(),
            bytes.len() + 512
        )),
        "{error}"
    );
}
