//! There are no cyclic imports between the modules of a crate.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Source folders of the crates without cyclic imports.
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

/// The path of a module inside its crate; the crate's root is empty.
type Module = Vec<String>;

/// The modules that each module imports by `crate::`.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// Source files by module.
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

/// The text without comments and without tests, which may import anything.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("\n#[cfg(test)]\n").next().unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// Every path after `crate::`, with groups in braces expanded.
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

/// The shortest import cycle.
fn cycle(imports: &Imports) -> Option<Vec<String>> {
    for start in imports.keys() {
        let mut paths_from_start = vec![vec![start.clone()]];
        let mut seen = BTreeSet::new();
        while !paths_from_start.is_empty() {
            let mut next = Vec::new();
            for import_path in paths_from_start {
                for used in &imports[import_path.last().unwrap()] {
                    if used == start && 1 < import_path.len() {
                        return Some(import_path.iter().map(|module| module.join("::")).collect());
                    }
                    if used != start && seen.insert(used.clone()) {
                        let mut longer = import_path.clone();
                        longer.push(used.clone());
                        next.push(longer);
                    }
                }
            }
            paths_from_start = next;
        }
    }
    None
}

#[test]
fn modules_have_no_cyclic_imports() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for name in CRATES {
        let imports = imports(&root.join(name));
        let count: usize = imports.values().map(BTreeSet::len).sum();
        // A crate of one or two files may have no imports.
        assert!(
            imports.len() < 3 || 0 < count,
            "no import was found in {name}"
        );
        assert_eq!(cycle(&imports), None, "an import cycle in {name}");
    }
}

#[test]
fn a_cycle_is_found() {
    let module = |name: &str| vec![name.to_owned()];
    let uses = |from: &str, to: &[&str]| (module(from), to.iter().map(|it| module(it)).collect());
    let imports = Imports::from([
        uses("a", &["b"]),
        uses("b", &["c", "d"]),
        uses("c", &["a"]),
        uses("d", &[]),
    ]);
    assert_eq!(
        cycle(&imports),
        Some(vec!["a".into(), "b".into(), "c".into()])
    );
    assert_eq!(
        paths("use crate::a::{self, B};\nfn f() { crate::c::d() }"),
        [vec!["a", "self"], vec!["a", "B"], vec!["c", "d"]]
    );
}
