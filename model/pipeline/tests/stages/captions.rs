//! Folders of captioned images become metadata that the stages read.

use crate::danbooru;
use crate::run::build;
use proto::build::Stage;
use std::path::Path;
use std::process::{Command, Output};

fn convert(folder: &Path, options: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/data/captions.py");
    let mut convert = Command::new("python3");
    convert
        .arg("-B")
        .arg(script)
        .args(["--from", "captioned", "--out", "."]);
    convert.args(options).current_dir(folder).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_with_captions_become_clusters() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = danbooru::drawn(2, 3, 32);
    for (number, (post, sample)) in drawn.iter().enumerate() {
        let (repeats, outfit) = (number % 3, &post.identity);
        let character = format!("{}_{}", 1 + repeats, outfit.0.replace('_', " "));
        let home = folder.path().join("captioned").join(character);
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join(format!("{number}.png")), &sample.image).unwrap();
        let caption = "1girl ||| Red Dress, {white|black} boots, smile;;;something else";
        std::fs::write(home.join(format!("{number}.txt")), caption).unwrap();
    }
    let captioned = folder.path().join("captioned");
    std::fs::write(captioned.join("loose.png"), "x").unwrap();
    std::fs::create_dir(captioned.join("3_nobody")).unwrap();
    std::fs::write(captioned.join("3_nobody/a.png"), "x").unwrap();
    let done = convert(folder.path(), &[]);
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(
        done.status.success(),
        "{:?}",
        String::from_utf8(done.stderr)
    );
    for line in [
        "12 images of 2 characters in .",
        "12 captions with alternatives, of which the first is taken",
        "12 wildcards, of which the first choice is taken",
        "2 images left out:",
        "3_nobody/a.png: there is no a.txt beside it",
        "loose.png: it is in no folder of a character",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let text = "out = \"out\"\n[[posts]]\nfrom = \"posts.json\"\n";
    let manifests = build(folder.path(), text).await.unwrap();
    let report = &manifests[&Stage::Clusters].report;
    assert_eq!(
        (report.rows_out, report.counts["clusters"]),
        (12, 2),
        "{report:?}"
    );
    let cloths: Vec<&str> = report.tables["cloth tags"]
        .iter()
        .map(|(tag, _)| tag.as_str())
        .collect();
    assert_eq!(cloths, ["red_dress", "white_boots"]);
    let strict = convert(folder.path(), &["--strict"]);
    let error = String::from_utf8(strict.stderr).unwrap();
    assert!(
        error.contains("strict: 2 images are left out; first 3_nobody/a.png"),
        "{error}"
    );
}
