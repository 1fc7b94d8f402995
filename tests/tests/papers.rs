//! The documentation matches the repository: every path that README.md and ARCHITECTURE.md name
//! exists, and the dependencies of crates are as ARCHITECTURE.md says.
#![allow(clippy::unwrap_used)]

use std::path::Path;

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Text in backquotes and link targets that look like paths below the root.
fn paths(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2).map(str::to_owned);
    let linked = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .map(str::to_owned);
    let folders = [
        "proto/",
        "coordinator/",
        "worker/",
        "model/",
        "deploy/",
        "tests/",
    ];
    let ours = |path: &String| {
        folders.iter().any(|folder| path.starts_with(folder)) && !path.contains(' ')
    };
    quoted.chain(linked).filter(ours).collect()
}

#[test]
fn every_path_in_the_documentation_exists() {
    for document in ["README.md", "ARCHITECTURE.md", "deploy/models/README.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        let missing: Vec<String> = paths(&text)
            .into_iter()
            .filter(|path| !root().join(path).exists())
            .collect();
        assert_eq!(
            missing,
            Vec::<String>::new(),
            "{document} names paths that do not exist"
        );
    }
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(
        paths(&architecture).len() > 20,
        "the test found too few paths"
    );
}

/// Names under `[dependencies]` of a crate's manifest.
fn dependencies(folder: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    table["dependencies"]
        .as_table()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

fn sources(folder: &str) -> Vec<(String, String)> {
    files(folder, "rs")
}

/// Path from the root and text of every file of a kind below a folder.
fn files(folder: &str, kind: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders_left = vec![root().join(folder)];
    while let Some(at) = folders_left.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders_left.push(path);
            } else if path.extension().is_some_and(|it| it == kind) {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// ARCHITECTURE.md: missing dependencies keep libtorch out of the daemons and the cores pure.
#[test]
fn dependencies_point_one_way() {
    for folder in [
        "proto",
        "proto/shell",
        "coordinator/core",
        "coordinator",
        "worker/core",
        "worker",
        "worker/rank/core",
        "model/storage",
        "model/data",
        "model/weights",
        "model/figures",
        "model/metric",
        "model/vqa",
        "model/pipeline",
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
        "the test found no dependencies"
    );
}

/// ARCHITECTURE.md: the engine of tabular stages is in a program that `make demo` does not build.
#[test]
fn the_engine_is_in_a_program_of_its_own() {
    let own = dependencies("model/pipeline");
    assert!(own.contains(&"rusqlite".to_owned()), "{own:?}");
    for folder in [
        "proto",
        "proto/shell",
        "coordinator",
        "worker",
        "worker/rank",
        "model",
        "model/storage",
        "model/data",
        "model/figures",
        "model/vqa",
    ] {
        let found = dependencies(folder);
        let engines = ["pipeline", "rusqlite"];
        assert!(
            !found.iter().any(|it| engines.contains(&it.as_str())),
            "{folder}: {found:?}"
        );
    }
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let programs = makefile
        .lines()
        .find(|line| line.starts_with("PROGRAMS :="));
    assert!(!programs.unwrap().contains("worker-build"));
}

/// ARCHITECTURE.md: `coordinator serve` does not use code that draws figures. Among its crates only
/// the coordinator depends on `figures`, and in it only files of the command line name `figures` or
/// the command line.
#[test]
fn serve_reaches_nothing_that_draws() {
    let drawing_crates = ["figures", "resvg"];
    for folder in [
        "proto",
        "coordinator/core",
        "model/storage",
        "model/data",
        "model/weights",
    ] {
        let text = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let named = drawing_crates.iter().find(|name| text.contains(**name));
        assert_eq!(named, None, "{folder}/Cargo.toml");
    }
    let own = dependencies("coordinator");
    assert!(!own.contains(&"resvg".to_owned()), "{own:?}");
    let names = |text: &str, path: &str| text.lines().any(|line| line.contains(path));
    let (cli, others): (Vec<_>, Vec<_>) = sources("coordinator/src")
        .into_iter()
        .partition(|(name, _)| name.starts_with("coordinator/src/cli/"));
    let violations: Vec<&String> = others
        .iter()
        .filter(|(_, text)| names(text, "figures::") || names(text, "crate::cli"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(violations, Vec::<&String>::new());
    assert!(
        cli.iter().any(|(_, text)| names(text, "figures::")) && others.len() > 10,
        "the test found too few files"
    );
}

#[test]
fn the_top_level_is_as_expected() {
    let mut names: Vec<String> = std::fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && !name.starts_with("target"))
        .collect();
    names.sort();
    let expected = "ARCHITECTURE.md Cargo.lock Cargo.toml LICENSE Makefile README.md coordinator \
    deploy model proto tests worker";
    assert_eq!(names.join(" "), expected);
}

/// Tables and URLs excepted.
#[test]
fn no_line_is_longer_than_100_columns() {
    let mut texts = Vec::new();
    for folder in ["proto", "coordinator", "worker", "model", "deploy", "tests"] {
        for kind in ["rs", "py", "sh", "md", "toml", "proto"] {
            texts.extend(files(folder, kind));
        }
    }
    for file in ["Cargo.toml", "Makefile", "README.md", "ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        texts.push((file.to_owned(), text));
    }
    let too_long = |line: &str| {
        let inner = line.trim_start_matches([' ', '/', '!', '#', '*']);
        line.chars().count() > 100 && !inner.starts_with('|') && !line.contains("://")
    };
    let mut long = Vec::new();
    for (file, text) in &texts {
        let lines = (1..).zip(text.lines());
        let found = lines.filter(|(_, line)| too_long(line));
        long.extend(found.map(|(number, _)| format!("{file}:{number}")));
    }
    assert!(texts.len() > 100, "the test found too few files");
    assert_eq!(long, Vec::<String>::new(), "longer than 100 columns");
}
