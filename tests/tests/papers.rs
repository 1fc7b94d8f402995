//! The papers of the house speak of things that are there: every path that README.md and ARCHITECTURE.md name exists, and
//! every command of the README is one of ours.
#![allow(clippy::unwrap_used)]

use std::path::Path;

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Words in backquotes, and targets of links to files, that look like paths below the root.
fn paths(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2).map(str::to_owned);
    let linked = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .map(str::to_owned);
    let folders = ["proto/", "coordinator/", "worker/", "model/", "deploy/", "tests/"];
    let ours = |path: &String| folders.iter().any(|folder| path.starts_with(folder)) && !path.contains(' ');
    quoted.chain(linked).filter(ours).collect()
}

#[test]
fn every_path_in_the_papers_exists() {
    for paper in ["README.md", "ARCHITECTURE.md", "deploy/models/README.md"] {
        let text = std::fs::read_to_string(root().join(paper)).unwrap();
        let missing: Vec<String> = paths(&text)
            .into_iter()
            .filter(|path| !root().join(path).exists())
            .collect();
        assert_eq!(
            missing,
            Vec::<String>::new(),
            "{paper} names paths that are not there"
        );
    }
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(
        paths(&architecture).len() > 20,
        "the check finds no paths to check"
    );
}

/// ARCHITECTURE.md: a missing dependency, not discipline, keeps libtorch out of the daemons and the cores pure.
#[test]
fn dependencies_point_one_way() {
    let dependencies = |folder: &str| -> Vec<String> {
        let text = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let table: toml::Table = text.parse().unwrap();
        table["dependencies"]
            .as_table()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    for folder in [
        "proto",
        "coordinator/core",
        "coordinator",
        "worker/core",
        "worker",
        "worker/rank/core",
        "model/data",
    ] {
        let found = dependencies(folder);
        assert!(
            !found
                .iter()
                .any(|it| it == "tch" || it == "model" || it == "rank"),
            "{folder}: {found:?}"
        );
    }
    for folder in ["coordinator/core", "worker/core", "worker/rank/core"] {
        let found = dependencies(folder);
        assert!(
            found.iter().all(|it| it == "proto" || it == "serde"),
            "{folder}: {found:?}"
        );
    }
    assert!(
        dependencies("model").contains(&"tch".to_owned()),
        "the check reads no dependencies"
    );
}

#[test]
fn the_top_level_is_the_given_one() {
    let mut names: Vec<String> = std::fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && !name.starts_with("target"))
        .collect();
    names.sort();
    let given = "ARCHITECTURE.md Cargo.lock Cargo.toml LICENSE Makefile README.md coordinator deploy model proto tests worker";
    assert_eq!(names.join(" "), given);
}
