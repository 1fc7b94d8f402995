//! The jobs under deploy/jobs: each is accepted, and demo.toml documents every field there is.
#![allow(clippy::unwrap_used)]

use proto::job::{parse, to_toml};
use std::path::{Path, PathBuf};

fn jobs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/jobs")
}

#[test]
fn every_job_is_accepted() {
    let mut count = 0;
    for entry in std::fs::read_dir(jobs()).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        parse(&path.display().to_string(), &text, Some(&jobs())).unwrap_or_else(|errors| panic!("{errors}"));
        count += 1;
    }
    assert!(count >= 5, "only {count} jobs");
}

#[test]
fn demo_toml_documents_every_field() {
    let text = std::fs::read_to_string(jobs().join("demo.toml")).unwrap();
    let canonical = to_toml(&parse("demo.toml", &text, Some(&jobs())).unwrap());
    let keys = canonical
        .lines()
        .filter_map(|line| line.split_once(" = ").map(|(key, _)| key));
    let undocumented: Vec<&str> = keys.filter(|key| !text.contains(key)).collect();
    assert_eq!(undocumented, Vec::<&str>::new());
}
