//! The jobs under deploy/jobs: each is accepted, and the examples document every field with its
//! default.
#![allow(clippy::unwrap_used)]

use proto::build::pipeline::{Pipeline, QUESTIONS};
use proto::job::evaluation::{Found, fill, open};
use proto::job::parse;
use proto::knobs::Knobs;
use proto::spec::{Component, JobSpec, Pairing, Precision, Task, Work};
use std::path::{Path, PathBuf};

fn jobs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/jobs")
}

fn read(path: &Path) -> JobSpec {
    let text = filled(&std::fs::read_to_string(path).unwrap());
    let name = path.display().to_string();
    parse(&name, &text, path.parent()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// A plan with ten characters for each folder that it names: what the command line would find.
fn filled(text: &str) -> String {
    let folders = open(text).unwrap_or_default().folders;
    let character = |number: usize| {
        format!(
            "[[characters]]\nname = \"c{number}\"\nreferences = [{{ file = \"{number}.png\" }}]\n"
        )
    };
    let characters: String = (0..10).map(character).collect();
    let found = Found {
        folders: folders
            .into_iter()
            .map(|folder| (folder, characters.clone()))
            .collect(),
        ..Found::default()
    };
    fill(text, &found).unwrap()
}

/// The paper's benchmark: 24 models of jobs that are here, by one plan with 5,000 images of each.
#[test]
fn the_plans_of_both_tables_evaluate_their_jobs() {
    let plan = |name: &str| {
        let spec = read(&jobs().join(name));
        let Work::Evaluate(work) = spec.work else {
            panic!("{name} evaluates nothing");
        };
        *work
    };
    let (two, three) = (plan("evaluate-table2.toml"), plan("evaluate-table3.toml"));
    assert_eq!(two.plan, three.plan, "one plan for all 24");
    assert_eq!((two.models.len(), three.models.len()), (10, 14));
    assert_eq!((two.images(), three.images()), (50_000, 70_000));
    for (folder, work) in [("table2", two), ("table3", three)] {
        for model in work.models {
            let file = jobs().join(folder).join(format!("{}.toml", model.job));
            let spec = read(&file);
            assert_eq!(spec.name, model.job.0, "{}", model.name);
        }
    }
}

/// Figures 3, 5 and 7 as plans of jobs that are here, and figure 6 as a job of images.
#[test]
fn the_plans_of_the_figures_show_what_the_paper_shows() {
    let figures = [
        ("evaluate-figure3.toml", vec!["table2"], 6),
        ("evaluate-figure5.toml", vec!["table3"], 4),
        ("evaluate-figure7.toml", vec!["figure7", "."], 4),
    ];
    let mut works = Vec::new();
    for (file, folders, count) in figures {
        let Work::Evaluate(work) = read(&jobs().join(file)).work else {
            panic!("{file} evaluates nothing");
        };
        assert_eq!(work.models.len(), count, "{file}");
        for model in &work.models {
            let name = format!("{}.toml", model.job);
            let found = folders.iter().map(|it| jobs().join(it).join(&name));
            let found = found.filter(|it| it.is_file()).collect::<Vec<_>>();
            let spec = read(found.first().expect(&name));
            assert_eq!(spec.name, model.job.0, "{file}: {}", model.name);
        }
        works.push(*work);
    }
    let scales: Vec<_> = works[0].models.iter().map(|it| it.knobs.clone()).collect();
    let scale = |it: f64| Knobs {
        image_scale: Some(it),
        ..Knobs::default()
    };
    assert_eq!(scales, [0.25, 0.25, 0.5, 0.5, 0.75, 0.75].map(scale));
    let tasks: Vec<_> = works[1].models.iter().filter_map(|it| it.task).collect();
    use Task::{Composition, Reconstruction};
    assert_eq!(
        tasks,
        [Reconstruction, Composition, Reconstruction, Composition]
    );
    let Work::Sample(maps) = read(&jobs().join("sample-figure6.toml")).work else {
        panic!("figure 6 samples nothing");
    };
    assert_eq!(maps.attention.len(), 2);
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

/// Table 2 of the paper: the peers that train in both pairings, with the knobs of their rows, and
/// Kandinsky's prior, which sees no reference.
#[test]
fn table_2_has_its_nine_jobs_and_its_ten_rows() {
    const PEERS: [(&str, &[&str]); 4] = [
        ("fastcomposer", &["alpha=0.5"]),
        ("controlnet", &[""]),
        ("ip-adapter", &["image_scale=0.5"]),
        (
            "kandinsky-decoder",
            &["prior_strength=0.1", "prior_strength=0.2"],
        ),
    ];
    let folder = jobs().join("table2");
    assert_eq!(files(&folder).len(), 9);
    let mut rows = 0;
    for (name, knobs) in PEERS {
        let [a, b] = ["a", "b"].map(|pairing| read(&folder.join(format!("{name}-{pairing}.toml"))));
        let mut expected = b.clone();
        expected.name = format!("{name}-a");
        let Work::Train(work) = &mut expected.work else {
            panic!("{name} trains");
        };
        let references = work.model.architecture.references_mut().unwrap();
        assert_eq!((references.pairing, references.count), (Pairing::B, 1));
        references.pairing = Pairing::A;
        assert_eq!(
            a, expected,
            "{name}-a differs from {name}-b in more than its pairing"
        );
        for spec in [&a, &b] {
            check_peer(spec, name);
            let text = std::fs::read_to_string(folder.join(format!("{}.toml", spec.name)));
            let text = text.unwrap();
            for knob in knobs.iter().filter(|knob| !knob.is_empty()) {
                let value = knob.split('=').next_back().unwrap();
                assert!(text.contains(value), "{} does not name {knob}", spec.name);
                let parsed = Knobs::parse(&[(*knob).to_owned()]).unwrap();
                let known = spec
                    .training()
                    .unwrap()
                    .model
                    .architecture
                    .facts()
                    .sampling
                    .knobs;
                assert!(
                    parsed.set().iter().all(|it| known.contains(it)),
                    "{name}: {knob}"
                );
            }
            rows += knobs.len();
        }
    }
    assert_eq!(rows, 10);
    let prior = read(&folder.join("kandinsky-prior.toml"));
    check_peer(&prior, "kandinsky-prior");
    let prior = prior.training().unwrap();
    assert!(prior.model.architecture.references().is_none());
}

/// The common settings of section 3.1, and its authors' defaults.
fn check_peer(spec: &JobSpec, architecture: &str) {
    let work = spec.training().unwrap();
    let facts = work.model.architecture.facts();
    assert_eq!(facts.name, architecture);
    assert_eq!(work.data.resolution, 256);
    assert_eq!(work.train.precision, Precision::Fp16);
    let devices = spec.resources.devices_per_worker * spec.resources.workers_max;
    assert_eq!(devices, 8);
    let defaults = facts.defaults;
    assert!((work.train.learning_rate - defaults.learning_rate).abs() < 1e-12);
    assert_eq!(work.train.warmup, defaults.warmup);
    assert_eq!(work.train.clip.unwrap_or(0.0), defaults.clip);
    assert_eq!(work.data.prompt_drop, defaults.prompt_drop);
    assert_eq!(work.model.freeze.len(), facts.frozen_by_default.len());
}

/// The fields of a table of job.toml ("" for the fields outside of tables), from the error for an
/// unknown one.
fn known_fields(table: &str) -> Vec<String> {
    let header = if table.is_empty() {
        String::new()
    } else {
        format!("[{table}]\n")
    };
    let text = format!("{header}no_such_field = 1\n");
    let errors = parse("job.toml", &text, None).unwrap_err().to_string();
    let (_, listed) = errors
        .split_once(", expected ")
        .unwrap_or_else(|| panic!("[{table}]: {errors}"));
    // A suggestion may follow the list.
    let listed = listed.split(';').next().unwrap();
    let names = listed.split('`').skip(1).step_by(2);
    names.map(str::to_owned).collect()
}

/// The fields of these tables that the example does not show.
fn undocumented(file: &str, tables: &[&str]) -> Vec<String> {
    let text = std::fs::read_to_string(jobs().join(file)).unwrap();
    let missing = |table: &str, field: &str| {
        let header = [table, field].join(".");
        let header = header.trim_start_matches('.');
        !text.contains(&format!("{field} = ")) && !text.contains(&format!("[{header}]\n"))
    };
    let mut found = Vec::new();
    for table in tables {
        let fields = known_fields(table);
        assert!(2 <= fields.len(), "[{table}]: {fields:?}");
        let fields = fields.into_iter().filter(|field| missing(table, field));
        found.extend(fields.map(|field| format!("{file}: {table}.{field}")));
    }
    found
}

#[test]
fn the_examples_document_every_field() {
    let tables = [
        "resources",
        "resources.workers",
        "data",
        "data.clothes",
        "model",
        "model.retrieval",
        "model.noise",
        "model.unet",
        "model.autoencoder",
        "model.text_encoder",
        "train",
        "train.optimizer",
        "checkpoint",
    ];
    assert_eq!(undocumented("demo.toml", &tables), Vec::<String>::new());
    assert_eq!(
        undocumented("sample.toml", &["sample"]),
        Vec::<String>::new()
    );
    assert_eq!(
        undocumented("evaluate.toml", &["evaluate", "evaluate.vqa"]),
        Vec::<String>::new()
    );
    assert_eq!(undocumented("build.toml", &["build"]), Vec::<String>::new());
    let demo = std::fs::read_to_string(jobs().join("demo.toml")).unwrap();
    for field in known_fields("") {
        // The tables of other kinds of work have examples of their own.
        let shown = demo.contains(&format!("{field} = ")) || demo.contains(&format!("[{field}]\n"));
        assert!(
            shown || jobs().join(format!("{field}.toml")).is_file(),
            "no example shows {field}"
        );
    }
}

/// A text of TOML without some of its tables.
fn without(text: &str, tables: &[&str]) -> String {
    let mut left_out = false;
    let lines = text.split_inclusive('\n').filter(|line| {
        if line.starts_with('[') {
            left_out = tables.contains(&line.trim_end());
        }
        !left_out
    });
    lines.collect()
}

/// The example pipeline is accepted, and shows every field: those that are commented out, too.
#[test]
fn the_pipeline_documents_every_field() {
    let folder = jobs().join("../pipelines");
    let text = std::fs::read_to_string(folder.join("danbooru.toml")).unwrap();
    let parse = |text: &str| Pipeline::parse("danbooru.toml", text, &folder);
    let plain = parse(&text).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(plain.posts.len(), 2);
    // Fields, tables and rows of arrays that are commented out.
    let is_toml = |line: &&str| {
        let field = line
            .split_once(" = ")
            .is_some_and(|(it, _)| !it.contains(' '));
        field || line.starts_with('[') || line.starts_with("  {") || *line == "]"
    };
    let lines = text.lines();
    let lines = lines.map(|line| line.strip_prefix("# ").filter(is_toml).unwrap_or(line));
    let shown: String = lines.flat_map(|line| [line, "\n"]).collect();
    // Not all of them make sense together.
    let signature = |name: &str| {
        shown
            .replace("signature = \"tags\"", &format!("signature = {name:?}"))
            .replace("answers = \"answers.jsonl\"\n", "")
            .replace("questions = [\"clothes\", \"colours\"]\n", "")
    };
    let tagger = without(&signature("tagger"), &["[outfits]", "[[folders]]"]);
    let tagger = tagger.replace("\nmasks = \"/data/masks\"\n", "\n");
    let tagger = tagger.replace("\nboxes = \"boxes.jsonl\"\n", "\n");
    let tagger = parse(&tagger).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(tagger.tagger.is_some() && tagger.masks.is_some() && tagger.faces.is_some());
    let folders = without(
        &signature("given"),
        &[
            "[outfits]",
            "[tagger]",
            "[[posts]]",
            "[filter]",
            "[masks]",
            "[faces]",
        ],
    );
    let folders = parse(&folders).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((folders.posts.len(), folders.folders.len()), (0, 1));
    let model = without(
        &signature("model"),
        &["[tagger]", "[masks]", "[faces]", "[[folders]]"],
    );
    let asked = parse(&model)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .outfits
        .unwrap();
    let asked: Vec<_> = asked
        .questions
        .iter()
        .map(|it| (&*it.name, &*it.text))
        .collect();
    assert_eq!(asked, QUESTIONS);
    check_fields(&text, &shown);
}

/// Every field that a table knows is in the text, or in `shown`, which has them uncommented.
fn check_fields(text: &str, shown: &str) {
    let folder = jobs().join("../pipelines");
    let parse = |text: &str| Pipeline::parse("danbooru.toml", text, &folder);
    for table in [
        "",
        "filter",
        "clusters",
        "units",
        "outfits",
        "dataset",
        "[folders]",
        "figures",
        "tagger",
        "masks",
        "faces",
    ] {
        let header = if table.is_empty() {
            String::new()
        } else {
            format!("[{table}]\n")
        };
        let errors = parse(&format!("{header}no_such_field = 1\n"))
            .unwrap_err()
            .to_string();
        let (_, listed) = errors
            .split_once(", expected ")
            .unwrap_or_else(|| panic!("{errors}"));
        for field in listed
            .split(';')
            .next()
            .unwrap()
            .split('`')
            .skip(1)
            .step_by(2)
        {
            let is_table =
                text.contains(&format!("[{field}]\n")) || text.contains(&format!("[[{field}]]\n"));
            assert!(
                shown.contains(&format!("\n{field} = ")) || is_table,
                "{table}.{field}"
            );
        }
    }
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
    for table in ["table2", "table3"] {
        for file in files(&jobs().join(table)) {
            let text = std::fs::read_to_string(&file).unwrap();
            let above = text.split("learning_rate =").next().unwrap();
            let line = above.lines().last().unwrap();
            assert!(
                line.starts_with("# Ours: the paper names no learning rate"),
                "{file:?}"
            );
        }
    }
}

/// Fields whose commented-out value is an example and not the default.
const EXAMPLES: [&str; 3] = ["after", "ema", "keep_best"];

#[test]
fn fields_that_are_commented_out_show_their_defaults() {
    let text = std::fs::read_to_string(jobs().join("demo.toml")).unwrap();
    let is_name = |name: &str| name.chars().all(|it| it.is_ascii_lowercase() || it == '_');
    let uncomment = |line: &str| {
        let bare = line.strip_prefix("# ")?;
        let is_field = bare
            .split_once(" = ")
            .is_some_and(|(name, _)| is_name(name) && !EXAMPLES.contains(&name));
        let is_header = bare.starts_with('[') && bare.ends_with(']');
        (is_field || is_header).then(|| bare.to_owned())
    };
    let mut uncommented = 0;
    let lines: Vec<String> = text
        .lines()
        .map(|line| match uncomment(line) {
            Some(bare) => {
                uncommented += 1;
                bare
            }
            None => line.to_owned(),
        })
        .collect();
    assert!(30 < uncommented, "only {uncommented} lines");
    let spec = |text: &str| {
        parse("demo.toml", text, Some(&jobs())).unwrap_or_else(|errors| panic!("{errors}"))
    };
    assert_eq!(spec(&lines.join("\n")), spec(&text));
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
