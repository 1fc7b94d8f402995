//! Modules of one crate use each other one way: between their files there is no circle of imports.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crates whose modules must not use each other in a circle, by the folder of their sources.
const CRATES: [&str; 9] = [
    "coordinator/core/src",
    "worker/core/src",
    "worker/rank/core/src",
    "worker/rank/src",
    "model/src",
    "model/data/src",
    "model/storage/src",
    "model/weights/src",
    "model/figures/src",
];

/// A module's name inside its crate, in parts; the crate's root is empty.
type Module = Vec<String>;

/// Which modules each module names by `crate::`.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// Sources by module.
fn modules(root: &Path) -> BTreeMap<Module, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let inside = path.strip_prefix(root).unwrap().with_extension("");
                let parts = inside.iter().map(|part| part.to_str().unwrap().to_owned());
                let mut module: Module = parts.collect();
                if module.last().is_some_and(|last| last == "mod")
                    || module == ["lib"]
                    || module == ["main"]
                {
                    module.pop();
                }
                found.insert(module, path);
            }
        }
    }
    found
}

/// The text without comments and without its tests, which may use whatever they test.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("\n#[cfg(test)]\n").next().unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// Every path after `crate::`, groups in braces taken apart.
fn paths(code: &str) -> Vec<Module> {
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let end = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
            .unwrap_or(rest.len());
        let base: Module = parts(&rest[..end]);
        let group = rest[end..]
            .strip_prefix('{')
            .and_then(|it| it.split('}').next());
        match group {
            Some(group) => found.extend(group.split(',').map(|name| {
                let mut path = base.clone();
                path.extend(parts(name.trim()));
                path
            })),
            None => found.push(base),
        }
    }
    found
}

fn parts(path: &str) -> Module {
    let parts = path
        .split("::")
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts.map(str::to_owned).collect()
}

fn imports(root: &Path) -> Imports {
    let modules = modules(root);
    let module_of = |path: &Module| {
        let prefixes = (1..=path.len()).rev().map(|length| path[..length].to_vec());
        prefixes
            .into_iter()
            .find(|prefix| modules.contains_key(prefix))
    };
    let of = |(module, path): (&Module, &PathBuf)| {
        let used = paths(&code(path)).iter().filter_map(module_of).collect();
        (module.clone(), used)
    };
    modules.iter().map(of).collect()
}

/// The shortest way from a module back to itself.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    for start in imports.keys() {
        let mut ways = vec![vec![start.clone()]];
        let mut seen = BTreeSet::new();
        while !ways.is_empty() {
            let mut next = Vec::new();
            for way in ways {
                for used in &imports[way.last().unwrap()] {
                    if used == start && 1 < way.len() {
                        return Some(way.iter().map(|module| module.join("::")).collect());
                    }
                    if used != start && seen.insert(used.clone()) {
                        let mut longer = way.clone();
                        longer.push(used.clone());
                        next.push(longer);
                    }
                }
            }
            ways = next;
        }
    }
    None
}

#[test]
fn modules_use_each_other_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for name in CRATES {
        let imports = imports(&root.join(name));
        let count: usize = imports.values().map(BTreeSet::len).sum();
        // A crate of one file has none.
        assert!(
            imports.len() < 3 || 0 < count,
            "no import is found in {name}"
        );
        assert_eq!(circle(&imports), None, "a circle of imports in {name}");
    }
}

#[test]
fn a_circle_is_found() {
    let module = |name: &str| vec![name.to_owned()];
    let uses = |from: &str, to: &[&str]| (module(from), to.iter().map(|it| module(it)).collect());
    let imports = Imports::from([
        uses("a", &["b"]),
        uses("b", &["c", "d"]),
        uses("c", &["a"]),
        uses("d", &[]),
    ]);
    assert_eq!(
        circle(&imports),
        Some(vec!["a".into(), "b".into(), "c".into()])
    );
    assert_eq!(
        paths("use crate::a::{self, B};\nfn f() { crate::c::d() }"),
        [vec!["a", "self"], vec!["a", "B"], vec!["c", "d"]]
    );
}
