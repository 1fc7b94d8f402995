//! Bad input is named with file, row and byte; files that cannot be told are errors.

use crate::danbooru;
use crate::editions::TEXT;
use crate::mirrors;
use crate::run::{build, plan, prepare, run_unit};
use proto::build::Stage;

#[tokio::test]
async fn bad_rows_are_counted_and_named_whatever_piece_they_are_in() {
    let posts = danbooru::posts(4, 6);
    let folder = tempfile::tempdir().unwrap();
    let mut lines: Vec<String> = posts
        .iter()
        .map(|it| danbooru::new(it).to_string())
        .collect();
    lines[5] = lines[5].replace(&format!("\"id\":{}", posts[5].id), "\"id\":null");
    lines[20].truncate(40);
    lines[30] = lines[30]
        .replace("\"rating\":\"g\"", "\"rating\":\"x\"")
        .replace("\"rating\":\"s\"", "\"rating\":\"x\"");
    lines.insert(10, String::new());
    std::fs::write(folder.path().join("posts"), lines.join("\n")).unwrap();
    let offset =
        |row: usize| -> u64 { lines[..row].iter().map(|line| line.len() as u64 + 1).sum() };
    let whole = plan(folder.path(), TEXT).await.unwrap();
    let size = std::fs::metadata(folder.path().join("posts"))
        .unwrap()
        .len();
    // Whatever the size of pieces, also if every one is shorter than a line.
    for piece_bytes in [size, 1000, 64, 1] {
        let mut plans = whole.clone();
        let proto::build::settings::Settings::Sources(settings) = &mut plans[0].plan.settings
        else {
            panic!("sources are first");
        };
        settings.piece_bytes = piece_bytes;
        plans[1].plan.inputs = vec![plans[0].plan.key()];
        let mut manifest = None;
        for planned in &plans[..2] {
            let (work, output) = prepare(folder.path(), TEXT, planned).await;
            for unit in 0..=u64::from(work.units) {
                run_unit(folder.path(), &work, unit).await.unwrap();
            }
            manifest = output.manifest().await.unwrap();
        }
        let report = manifest.unwrap().report;
        assert_eq!((report.rows_in, report.rows_out), (48, 45), "{piece_bytes}");
        let rows: Vec<_> = report
            .bad_rows
            .iter()
            .map(|it| (it.row, it.offset))
            .collect();
        let expected = [(6, offset(5)), (22, offset(21)), (32, offset(31))];
        assert_eq!(
            rows,
            expected.map(|(row, offset)| (row, Some(offset))),
            "{piece_bytes}"
        );
        assert!(report.bad_rows.iter().all(|it| it.file.ends_with("/posts")));
        assert_eq!(report.bad_rows[0].reason, "it has no id");
        assert!(
            report.bad_rows[1]
                .reason
                .contains("not the JSON of a post: EOF")
        );
    }
    let stop = format!("on_bad_row = \"stop\"\n{TEXT}");
    let error = build(folder.path(), &stop).await.unwrap_err();
    let expected = format!(
        "/posts: row 6, byte {}: it has no id; correct it",
        offset(5)
    );
    assert!(error.contains(&expected), "{error}");
}

#[tokio::test]
async fn files_that_are_no_posts_or_of_two_kinds_are_refused_by_name() {
    let posts = danbooru::posts(1, 3);
    let old = danbooru::lines(posts.iter().map(danbooru::old));
    let new = danbooru::lines(posts.iter().map(danbooru::new));
    let cases: [(&str, Vec<u8>, &str); 7] = [
        (
            "gzip",
            b"\x1f\x8b\x08rest".to_vec(),
            "is compressed (gzip): unpack it first",
        ),
        (
            "picture",
            b"\x89PNG\r\n".to_vec(),
            "is neither JSON, Parquet nor SQLite",
        ),
        ("empty", Vec::new(), "is empty"),
        ("both", (old + &new).into_bytes(), "are of two editions"),
        (
            "other",
            b"{\"a\":1}\n{\"a\":2}\n".to_vec(),
            "they have the keys a; expected is",
        ),
        (
            "half",
            b"PAR1half of a file".to_vec(),
            "cannot be read as Parquet",
        ),
        (
            "sql",
            b"SQLite format 3\0and no more".to_vec(),
            "cannot be read as a SQLite database",
        ),
    ];
    for (name, bytes, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
        let text = TEXT.replace("\"posts\"", &format!("{name:?}"));
        let error = build(folder.path(), &text).await.unwrap_err();
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_database_that_does_not_tell_its_tag_types_is_not_guessed_at() {
    let posts = danbooru::posts(2, 4);
    let folder = tempfile::tempdir().unwrap();
    // Types 0, 1 and 4 are characters and artists in one numbering, and meta tags in the other.
    let numbers = mirrors::Numbers {
        meta: 0,
        ..mirrors::DANBOORU
    };
    mirrors::sqlite_lists(&posts, numbers, &folder.path().join("posts"));
    let error = build(folder.path(), TEXT).await.unwrap_err();
    assert!(
        error.contains("set tag_types to \"danbooru\" (4 is a character)"),
        "{error}"
    );
    let given = format!("{TEXT}tag_types = \"danbooru\"\n");
    let manifests = build(folder.path(), &given).await.unwrap();
    assert_eq!(manifests[&Stage::Filter].rows(), 16);
    let wrong = format!("{TEXT}tag_types = \"consecutive\"\n");
    let manifests = build(folder.path(), &wrong).await.unwrap();
    let report = &manifests[&Stage::Posts].report;
    // Every post has a character, whose type is not that of the numbering.
    assert_eq!((report.rows_in, report.rows_out), (16, 0));
    assert!(
        report.losses[0]
            .reason
            .contains("is listed as type 2, and the table tag says 4")
    );
}

#[tokio::test]
async fn a_file_that_changes_after_the_plan_is_refused() {
    let posts = danbooru::posts(1, 3);
    let folder = tempfile::tempdir().unwrap();
    let text = danbooru::lines(posts.iter().map(danbooru::new));
    std::fs::write(folder.path().join("posts"), &text).unwrap();
    let plans = plan(folder.path(), TEXT).await.unwrap();
    let (sources, _) = prepare(folder.path(), TEXT, &plans[0]).await;
    run_unit(folder.path(), &sources, 0).await.unwrap();
    run_unit(folder.path(), &sources, 1).await.unwrap();
    std::fs::write(folder.path().join("posts"), text + "\n").unwrap();
    let (posts, output) = prepare(folder.path(), TEXT, &plans[1]).await;
    let error = run_unit(folder.path(), &posts, 0).await.unwrap_err();
    assert!(
        error.contains("posts: it was changed since the pipeline was planned"),
        "{error}"
    );
    assert!(output.manifest().await.unwrap().is_none());
}
