//! Folders and data sets of strangers: nothing outside is opened, nothing endless is read.

#![allow(clippy::unwrap_used)]

use model_data::dataset::Dataset;
use model_data::image_file::encode_rgb;
use model_data::import::{ImportError, ImportOptions, import};
use std::os::unix::fs::symlink;
use std::path::Path;

fn png() -> Vec<u8> {
    let image = image::RgbImage::from_pixel(8, 8, image::Rgb([9, 90, 200]));
    encode_rgb(image).unwrap().to_vec()
}

fn mkfifo(path: &Path) {
    let made = std::process::Command::new("mkfifo")
        .arg(path)
        .status()
        .unwrap();
    assert!(made.success());
}

/// Imports one row with this image and returns the reason of its refusal.
async fn refusal(folder: &Path, image: &str) -> String {
    let row = serde_json::json!({
        "id": "1", "character": "c", "artists": "a", "bbox": [0.5, 0.5, 0.2, 0.2], "prompts": "x",
        "image": image, "mask": "mask.png",
    });
    std::fs::write(folder.join("samples.jsonl"), row.to_string()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let url = format!("file://{}", out.path().display());
    match import(folder, &url, &ImportOptions::default()).await {
        Err(ImportError::Nothing { report, .. }) => report.rejected[0].1.clone(),
        Ok(_) => "imported".to_owned(),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn an_import_opens_only_files_of_its_folder() {
    let above = tempfile::tempdir().unwrap();
    let folder = above.path().join("import");
    std::fs::create_dir(&folder).unwrap();
    let private = above.path().join("private.png");
    std::fs::write(&private, png()).unwrap();
    for name in ["mask.png", "own.png"] {
        std::fs::write(folder.join(name), png()).unwrap();
    }
    symlink("own.png", folder.join("inside.png")).unwrap();
    symlink(&private, folder.join("link.png")).unwrap();
    symlink("../private.png", folder.join("up.png")).unwrap();
    symlink("..", folder.join("above")).unwrap();
    symlink("/dev/zero", folder.join("zero.png")).unwrap();
    mkfifo(&folder.join("pipe.png"));
    for name in ["own.png", "inside.png"] {
        assert_eq!(refusal(&folder, name).await, "imported");
    }
    for (name, part) in [
        ("link.png", "is reached through a symbolic link"),
        ("up.png", "is reached through a symbolic link"),
        ("above/private.png", "is reached through a symbolic link"),
        ("zero.png", "is reached through a symbolic link"),
        ("pipe.png", "is a named pipe; it must be a file"),
        (
            "../private.png",
            "leaves the folder; write a path inside it",
        ),
        (
            private.to_str().unwrap(),
            "leaves the folder; write a path inside it",
        ),
    ] {
        let reason = refusal(&folder, name).await;
        assert!(reason.starts_with(&format!("image {name:?} ")), "{reason}");
        assert!(reason.contains(part), "{reason}");
    }
    let giant = std::fs::File::create(folder.join("giant.png")).unwrap();
    giant.set_len(8 << 40).unwrap();
    let reason = refusal(&folder, "giant.png").await;
    assert!(
        reason.contains("has 8796093022208 bytes; at most 268435456 are read"),
        "{reason}"
    );
}

#[tokio::test]
async fn the_list_of_samples_is_a_file_with_lines_of_bounded_length() {
    let folder = tempfile::tempdir().unwrap();
    let (list, url) = (folder.path().join("samples.jsonl"), "file:///nowhere/out");
    let refusal = async || {
        let error = import(folder.path(), url, &ImportOptions::default())
            .await
            .unwrap_err();
        proto::text::chain(&error)
    };
    symlink("/dev/zero", &list).unwrap();
    assert!(
        refusal().await.contains("symbolic link"),
        "{}",
        refusal().await
    );
    std::fs::remove_file(&list).unwrap();
    mkfifo(&list);
    assert!(
        refusal().await.contains("is a named pipe"),
        "{}",
        refusal().await
    );
    std::fs::remove_file(&list).unwrap();
    let file = std::fs::File::create(&list).unwrap();
    file.set_len(8 << 40).unwrap();
    let error = refusal().await;
    assert!(
        error.contains("samples.jsonl") && error.contains("line 1 has more than"),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_has_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("dataset.json")).unwrap();
    file.set_len(3 << 30).unwrap();
    let found = Dataset::open(&format!("file://{}", folder.path().display())).await;
    let error = proto::text::chain(&found.unwrap_err());
    assert!(
        error.contains("\"dataset.json\"")
            && error.contains("it has 3221225472 bytes; at most 16777216 are read"),
        "{error}"
    );
}
