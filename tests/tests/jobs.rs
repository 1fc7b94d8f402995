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
    assert_eq!(undocumented(&canonical, &text), Vec::<&str>::new());
    // Fields that only jobs which use them name in their canonical text.
    let used = text
        .replace("pairing = \"b\"", "pairing = \"a\"\nreference_drop = 0.1")
        .replace("[model]\n", "[model]\nlatents = \"sample\"\n");
    let canonical = to_toml(&parse("demo.toml", &used, Some(&jobs())).unwrap());
    for field in ["reference_drop = ", "latents = ", "target_scale = "] {
        assert!(canonical.contains(field), "{field}: {canonical}");
    }
    assert_eq!(undocumented(&canonical, &text), Vec::<&str>::new());
}

/// The keys of a canonical text that a documentation does not contain.
fn undocumented<'a>(canonical: &'a str, documentation: &str) -> Vec<&'a str> {
    let lines = canonical.lines();
    let keys = lines.filter_map(|line| line.split_once(" = ").map(|(key, _)| key));
    keys.filter(|key| !documentation.contains(key)).collect()
}

#[test]
fn sample_toml_documents_every_field() {
    let text = std::fs::read_to_string(jobs().join("sample.toml")).unwrap();
    let digest = "0f".repeat(32);
    let used = format!(
        "name = \"x\"\n[sample]\njob = \"demo-1\"\nprompts = [\"a\"]\nnegative_prompt = \"b\"\n\
         task = \"composition\"\npairing = \"a\"\nattention = [\"face\"]\n[[sample.references]]\n\
         concept = \"face\"\nid = \"12\"\n[[sample.references]]\nconcept = \"clothes\"\nfile = \
         \"a.png\"\nsha256 = \"{digest}\"\nface_box = [0.5, 0.5, 0.1, 0.1]\nmask = \"m.png\"\n\
         mask_sha256 = \"{digest}\"\n"
    );
    let canonical = to_toml(&parse("sample.toml", &used, None).unwrap());
    // [resources] is documented in demo.toml.
    let (_, canonical) = canonical.split_once("[sample]").unwrap();
    for field in ["negative_prompt = ", "face_box = ", "mask_sha256 = "] {
        assert!(canonical.contains(field), "{field}: {canonical}");
    }
    assert_eq!(undocumented(canonical, &text), Vec::<&str>::new());
}

#[test]
fn what_the_paper_leaves_open_is_called_ours_where_a_user_reads_it() {
    let demo = std::fs::read_to_string(jobs().join("demo.toml")).unwrap();
    for field in [
        "# reference_drop =",
        "# transform =",
        "# latents =",
        "learning_rate =",
    ] {
        let above = demo.split(field).next().unwrap().trim_end();
        let line = above.lines().last().unwrap();
        assert!(line.contains("ours"), "above {field}: {line}");
    }
    assert!(demo.contains("inside a cross-attention is ours too"));
    for file in files(&jobs().join("table3")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let above = text.split("learning_rate =").next().unwrap();
        let line = above.lines().last().unwrap();
        assert!(
            line.starts_with("# Ours: the paper names no learning rate"),
            "{file:?}"
        );
    }
}

/// The script that writes the report and the report in the repository name the same conditions.
#[test]
fn the_leakage_report_names_its_conditions() {
    let folder = jobs().join("../experiments");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let joined = |text: &str| text.replace("\"\n    \"", "").replace("\\\"", "\"");
    let (script, report) = (joined(&read("leakage.py")), read("leakage/report.md"));
    for condition in [
        "The encoder is not frozen: all of the U-Net trains",
        "N = 1: one reference for each sample.",
        "`loss_weighting = \"noise\"`, which stresses high noise levels",
        "Identity is judged mostly by colour: the nearest of 16 colour histograms.",
    ] {
        for (name, text) in [("leakage.py", &script), ("report.md", &report)] {
            assert!(text.contains(condition), "{name} does not say: {condition}");
        }
    }
}
