//! The jobs under deploy/jobs: each is accepted, and demo.toml documents every field.
#![allow(clippy::unwrap_used)]

use proto::job::{parse, to_toml};
use proto::spec::{Component, JobSpec, Pairing, Precision, Task, Work};
use std::path::{Path, PathBuf};

fn jobs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/jobs")
}

fn read(path: &Path) -> JobSpec {
    let text = std::fs::read_to_string(path).unwrap();
    let name = path.display().to_string();
    parse(&name, &text, path.parent()).unwrap_or_else(|errors| panic!("{errors}"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).collect()
}

#[test]
fn every_job_is_accepted() {
    let specs: Vec<_> = files(&jobs()).iter().map(|path| read(path)).collect();
    assert!(specs.len() >= 5, "only {} jobs", specs.len());
}

/// Table 3 of the paper: name, task, steps, prompt drop, frozen components besides encoder and
/// middle.
const TABLE_3: [(&str, Task, u64, f64, &[Component]); 14] = {
    use Component::{Decoder, RetrievalEncoder};
    use Task::{Composition, Multitask, Reconstruction};
    [
        ("r9k", Reconstruction, 9_000, 0.5, &[]),
        ("r9k-lockd", Reconstruction, 9_000, 0.5, &[Decoder]),
        (
            "r9k-lockb",
            Reconstruction,
            9_000,
            0.5,
            &[Decoder, RetrievalEncoder],
        ),
        ("r9k-p025", Reconstruction, 9_000, 0.25, &[]),
        ("r9k-p075", Reconstruction, 9_000, 0.75, &[]),
        ("r45k", Reconstruction, 45_000, 0.5, &[]),
        ("c9k", Composition, 9_000, 0.5, &[]),
        ("c9k-lockd", Composition, 9_000, 0.5, &[Decoder]),
        (
            "c9k-lockb",
            Composition,
            9_000,
            0.5,
            &[Decoder, RetrievalEncoder],
        ),
        ("c9k-p025", Composition, 9_000, 0.25, &[]),
        ("c9k-p075", Composition, 9_000, 0.75, &[]),
        ("c45k", Composition, 45_000, 0.5, &[]),
        ("m9k", Multitask, 9_000, 0.5, &[]),
        ("m45k", Multitask, 45_000, 0.5, &[]),
    ]
};

#[test]
fn table_3_has_its_fourteen_jobs() {
    let folder = jobs().join("table3");
    assert_eq!(files(&folder).len(), TABLE_3.len());
    let first = read(&folder.join("r9k.toml"));
    for (name, task, steps, prompt_drop, frozen) in TABLE_3 {
        let spec = read(&folder.join(format!("{name}.toml")));
        let mut expected = first.clone();
        expected.name = name.to_owned();
        let Work::Train(work) = &mut expected.work else {
            panic!("r9k trains");
        };
        work.model.architecture.references_mut().unwrap().task = task;
        work.data.prompt_drop = prompt_drop;
        work.train.steps = steps;
        work.model.freeze.extend(frozen);
        work.model.freeze.sort();
        assert_eq!(
            spec, expected,
            "{name} differs from r9k in more than table 3 says"
        );
    }
    // The common settings (paper, section 5.2; notes 3.9 and 8).
    let work = first.training().unwrap();
    let (data, train) = (&work.data, &work.train);
    let references = work.model.architecture.references().unwrap();
    assert_eq!(
        (references.pairing, references.count, data.resolution),
        (Pairing::B, 4, 384)
    );
    assert_eq!(
        (train.global_batch, train.micro_batch, train.precision),
        (64, 1, Precision::Fp32)
    );
    assert!((train.learning_rate - 1e-5).abs() < 1e-12 && train.clip.is_none());
    assert_eq!(
        first.resources.devices_per_worker * first.resources.workers_max,
        8
    );
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
