//! Texts of `samples.jsonl`: marks, columns, ids, names and tags.

use crate::folder::{Folder, row};
use model_data::import::ImportError;
use serde_json::{Value, json};

#[tokio::test]
async fn byte_order_marks_and_carriage_returns_are_skipped() {
    let folder = Folder::new();
    let (one, two) = (row("one", json!({})), row("two", json!({})));
    // The second mark is that of a file that was appended.
    let text = format!("\u{feff}{one}\r\n\r\n\u{feff}{two}\r\n");
    let (dataset, report) = folder.import_text(text.as_bytes()).await.unwrap();
    assert_eq!((dataset.len(), report.rows), (2, 2));
    assert_eq!(
        report.changes.lines(),
        ["2: byte order mark (BOM) at the start of a line skipped (for instance line 1)"]
    );
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let error = folder.import_text(&utf16).await.unwrap_err();
    assert!(matches!(error, ImportError::Utf16 { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("samples.jsonl is UTF-16 text; save it as UTF-8")
    );
}

/// Line and column are those of the file. The parser sees one line and calls it line 1.
#[tokio::test]
async fn errors_of_json_give_the_column() {
    let folder = Folder::new();
    let good = row("good", json!({})).to_string();
    // The column counts characters, not bytes.
    let accents = good.replace("\"good\"", "\"ééé\",");
    let latin1 = good.replace("\"good\"", "\"X\"");
    let mut bytes = format!("{good}\n{accents}\n{good},\n\u{feff}{{\"id\": 7}}\n").into_bytes();
    bytes.extend(latin1.bytes().map(|it| if it == b'X' { 0xe9 } else { it }));
    bytes.extend(b"\n# comment\n{}");
    let (_, report) = folder.import_text(&bytes).await.unwrap();
    let column = |line: &str, text: &str| line.find(text).unwrap() + 1;
    let reasons: Vec<(u64, &str)> = report
        .rejected
        .iter()
        .map(|(line, reason)| (*line, reason.as_str()))
        .collect();
    assert_eq!(reasons.len(), 6, "{reasons:?}");
    for (line, reason) in &reasons {
        assert!(!reason.contains("at line 1"), "{line}: {reason}");
    }
    let comma = accents.chars().collect::<Vec<_>>();
    let comma = comma.windows(2).position(|it| it == [',', ',']).unwrap() + 2;
    assert_eq!(reasons[0].0, 2);
    assert!(
        reasons[0].1.starts_with(&format!("column {comma}: ")),
        "{}",
        reasons[0].1
    );
    assert!(
        reasons[1]
            .1
            .starts_with(&format!("column {}: trailing", good.len() + 1)),
        "{reasons:?}"
    );
    assert!(
        reasons[2]
            .1
            .starts_with("column 8: invalid type: integer `7`"),
        "{reasons:?}"
    );
    let invalid = format!(
        "column {}: invalid unicode code point",
        column(&latin1, "X")
    );
    assert!(
        reasons[3].1.starts_with("column ") && reasons[3].1.contains("invalid unicode"),
        "{invalid} {reasons:?}"
    );
    assert_eq!(reasons[4], (6, "column 1: expected value"));
    assert_eq!(reasons[5], (7, "column 2: missing field `id`"));
}

/// Spreadsheets leave spaces, and file systems of Apple decompose accents.
#[tokio::test]
async fn names_that_look_the_same_are_the_same() {
    let folder = Folder::new();
    let rows = [
        row("a", json!({ "character": "Café Miku" })),
        row("b", json!({ "character": " Cafe\u{301}  Miku\u{a0}" })),
        row("c", json!({ "character": "café_miku", "artists": "A" })),
        row("d", json!({ "character": "Cafe Miku" })),
        row(" e\u{feff}", json!({ "outfit": "O " })),
        row("E", json!({ "similar": ["e "], "outfit": "O" })),
    ];
    let (dataset, report) = folder.import(&rows).await.unwrap();
    let rows = dataset.scan().await.unwrap();
    let of = |id: &str| rows.iter().find(|row| row.id == id).unwrap();
    for id in ["a", "b", "c"] {
        assert_eq!(of(id).character, "Café Miku");
        assert_eq!(
            (of(id).identity, of(id).artists.as_str()),
            (of("a").identity, "a")
        );
        assert_eq!(of(id).similar.len(), 2);
    }
    // Without its accent it is another name, and ids keep their case.
    assert_eq!(of("d").character, "Cafe Miku");
    assert_eq!(
        (of("E").similar.as_slice(), of("e").similar.as_slice()),
        (&["e".to_owned()][..], &["E".to_owned()][..])
    );
    let lines = report.changes.lines();
    assert_eq!(
        lines,
        [
            "2: id cleaned (white space, invisible characters, Unicode form NFC) (for instance \
             line 5: \" e\\u{feff}\" is \"e\")",
            "2: character, artist or outfit cleaned (white space, Unicode form NFC) (for instance \
             line 2: character \" Cafe\\u{301}  Miku\\u{a0}\" is \"Café Miku\")",
            "1: name spelled as an earlier one that differs only in case or spaces (for instance \
             line 3: character \"café_miku\" is \"Café Miku\")",
        ]
    );
}

#[tokio::test]
async fn ids_that_are_the_same_after_cleaning_are_refused_and_so_are_control_characters() {
    let folder = Folder::new();
    let rows = [
        row("ok", json!({})),
        row(" ok", json!({})),
        row("nul\0", json!({})),
        row("x", json!({ "character": "\u{feff} " })),
        row("y", json!({ "artists": "a\u{7f}" })),
    ];
    let (_, report) = folder.import(&rows).await.unwrap();
    let reasons: Vec<&str> = report.rejected.iter().map(|it| it.1.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "id \"ok\" is also that of line 1",
            "id \"nul\\0\" contains the control character U+0000",
            "character is empty; it is required",
            "artists \"a\\u{7f}\" contains the control character U+007F",
        ]
    );
}

#[tokio::test]
async fn tags_are_lower_case_and_what_changed_is_said() {
    let folder = Folder::new();
    let changed = json!({
        "prompts": "solo,  Blue Hair, solo ,1girl",
        "cloths": ["Red_Skirt", "red skirt", " "],
    });
    let (sample, _) = folder.import_one(row("a", changed)).await;
    assert_eq!(sample.metadata.prompts, "1girl, blue_hair, solo");
    assert_eq!(sample.metadata.cloths, ["red skirt"]);
    assert_eq!(
        sample.metadata.changes,
        ["tags=\"Blue Hair\" is \"blue_hair\""]
    );
    let (sample, _) = folder
        .import_one(row("a", json!({ "prompts": "solo, 1girl" })))
        .await;
    assert_eq!(
        sample.metadata.changes,
        ["tags=order, commas or repetition"]
    );
    let (sample, _) = folder
        .import_one(row("a", json!({ "prompts": "1girl, solo" })))
        .await;
    assert_eq!(sample.metadata.changes, Vec::<String>::new());
}

/// Rows as people write them: taken as meant, or refused with what to change.
#[tokio::test]
async fn quirks_are_taken_as_meant_or_refused() {
    let folder = Folder::new();
    let with = |changed: Value| row("x", changed).to_string();
    for (line, reason) in [
        (with(json!({})) + ",", "trailing characters"),
        (with(json!({})).replace('}', ",}"), "trailing comma"),
        (with(json!({})).replace("[0.5,", "[NaN,"), "expected value"),
        (
            with(json!({ "bbox": [32, 16, 20, 20] })),
            "leaves the image",
        ),
        (
            with(json!({ "bbox": [0.1, 0.1, 0.4, 0.4] })),
            "leaves the image",
        ),
        (with(json!({ "width": 64 })), "unknown field `width`"),
        (with(json!({ "artists": ["x"] })), "invalid type: sequence"),
        (with(json!({ "artists": null })), "missing field `artists`"),
        (
            with(json!({ "rating": "nsfw" })),
            "rating is \"nsfw\"; it must be general, sensitive,",
        ),
        ("# comment".to_owned(), "expected value"),
    ] {
        let error = folder
            .import_text(line.as_bytes())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{line}: {error}");
    }
    let empty = with(json!({ "prompts": "" }));
    assert!(folder.import_text(empty.as_bytes()).await.is_ok());
}
