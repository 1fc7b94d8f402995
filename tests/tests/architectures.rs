//! Code that depends on the architecture is in one file of `proto` and one of `model`; no other
//! file matches on architectures.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// The files that may match on architectures: the table of job.toml, and the networks that are
/// built from it.
const ALLOWED: [&str; 2] = [
    "proto/src/architecture/mod.rs",
    "model/src/architecture/mod.rs",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() && !["target", "tests", ".git", ".libtorch"].contains(&name.as_str()) {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

#[test]
fn one_file_in_proto_and_one_in_model_tell_architectures_apart() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    sources(root, &mut found);
    let variants = ["Autoencoder", "TextToImage", "Retrinet"];
    let names = ["Architecture", "ArchitectureSpec"];
    let matches_on_architecture = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("\n#[cfg(test)]\n").next().unwrap();
        let named = |name: &&str| {
            variants
                .iter()
                .any(|it| code.contains(&format!("{name}::{it}")))
        };
        names.iter().any(named)
    };
    let files = found.iter().filter(|path| matches_on_architecture(path));
    let mut files: Vec<&str> = files
        .map(|path| path.strip_prefix(root).unwrap().to_str().unwrap())
        .collect();
    files.sort_unstable();
    let mut allowed = ALLOWED;
    allowed.sort_unstable();
    assert_eq!(files, allowed);
}
