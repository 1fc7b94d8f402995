//! Kinds of work: which table a job has, and the contents of `[sample]`.

use super::*;
use crate::id::{JobId, Step};
use crate::sample::{Concept, ImageSource, MaskFile, NamedReference, SampleMethod, Weights};
use crate::spec::{OnFailedUnit, Work};

const SAMPLE: &str = "name = \"images\"\nafter = [\"demo-1\"]\n[sample]\njob = \"demo-1\"\n";

fn check_error(text: &str, message: &str) {
    assert_eq!(job(text).unwrap_err(), message);
}

/// Checks the error of the coordinator, which has no access to the user's files.
fn check_coordinator_error(text: &str, message: &str) {
    let error = parse("job.toml", text, None).unwrap_err().to_string();
    assert_eq!(error, message);
}

#[test]
fn a_job_of_images_has_defaults() {
    let spec = job(SAMPLE).unwrap();
    assert_eq!(spec.after, [JobId("demo-1".into())]);
    assert_eq!(
        (spec.resources.workers_min, spec.resources.workers_max),
        (1, 4096)
    );
    let Work::Sample(work) = &spec.work else {
        panic!("{spec:?}")
    };
    assert_eq!(
        (work.count, work.steps, work.method),
        (16, 50, SampleMethod::Ddim)
    );
    assert_eq!(
        (work.weights, work.on_failed_unit),
        (Weights::Newest, OnFailedUnit::Stop)
    );
    check_canonical(SAMPLE);
}

#[test]
fn every_field_of_sample_survives_its_canonical_text() {
    let text = format!(
        "{SAMPLE}weights = 300\ncount = 1\nmethod = \"dpm-solver\"\nsteps = 20\nguidance = 3.5\n\
         reference_guidance = 2\nseeds = [1, 2]\nprompt = \"pose\"\nprompts = [\"1girl\", \"\"]\n\
         task = \"reconstruction\"\npairing = \"a\"\nattention = [\"face\"]\non_failed_unit = \
        \"set-aside\"\n\
         references = [{{ concept = \"face\", id = \"7\" }}, {{ file = \"me.png\", sha256 = \
        \"{}\" }}]\n",
        "0f".repeat(32)
    );
    let spec = job(&text).unwrap();
    let Work::Sample(work) = &spec.work else {
        panic!("{spec:?}")
    };
    assert_eq!(work.weights, Weights::Step(Step(300)));
    assert_eq!(work.on_failed_unit, OnFailedUnit::SetAside);
    let file = ImageSource::File {
        name: "me.png".into(),
        sha256: "0f".repeat(32),
        face_box: None,
        mask: None,
    };
    let file = NamedReference {
        concept: None,
        from: file,
    };
    assert_eq!(work.references[1], file);
    check_canonical(&text);
}

#[test]
fn a_job_has_exactly_one_kind_of_work() {
    check_error(
        "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 64\n",
        "job.toml:1: the kind of work is missing; a job has exactly one of [train], [sample], \
        [evaluate] and [build], but this one has [data]",
    );
    check_error(
        "name = \"x\"\n",
        "job.toml:1: the kind of work is missing; a job has exactly one of [train], [sample], \
        [evaluate] and [build], but this one has none of them",
    );
    check_error(
        &format!("{GOOD}[sample]\njob = \"demo-1\"\n"),
        "job.toml:23: sample: is a second kind of work; a job has exactly one of [train], \
        [sample], [evaluate] and [build], but this one has [data], [model], [train], [checkpoint], \
        [sample]",
    );
    check_error(
        &format!("{SAMPLE}[checkpoint]\nevery = 5\n"),
        "job.toml:5: checkpoint: belongs to [train], but this job has [sample]: leave the table \
        out",
    );
    check_error(
        "name = \"x\"\n[train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n",
        "job.toml:2: train: requires a table [data], which is missing\n\
        job.toml:2: train: requires a table [model], which is missing",
    );
    check_error(
        "name = \"x\"\n[smaple]\njob = \"demo-1\"\n",
        "job.toml:2: smaple: unknown field `smaple`, expected one of `name`, `after`, \
        `resources`, `data`, `model`, `train`, `checkpoint`, `sample`, `evaluate`, `build`; did \
        you mean `sample`?",
    );
}

#[test]
fn after_names_jobs_by_id_and_each_once() {
    let with = |after: &str| SAMPLE.replace("[\"demo-1\"]", after);
    check_error(
        &with("[\"../x\"]"),
        "job.toml:2: after: names \"../x\", which is not a job id: it must be 1 to 64 lower-case \
        letters, digits and dashes",
    );
    check_error(
        &with("[\"demo-1\", \"demo-1\"]"),
        "job.toml:2: after: names demo-1 twice: leave one out",
    );
    check_error(
        &with("\"demo-1\""),
        "job.toml:2: after: is the string \"demo-1\"; it must be a list in square brackets",
    );
}

#[test]
fn what_stands_in_sample_is_bounded() {
    let expect = |line: &str, message: &str| {
        check_error(
            &format!("{SAMPLE}{line}\n"),
            &format!("job.toml:5: sample.{message}"),
        );
    };
    expect(
        "weights = \"newst\"",
        "weights: is \"newst\"; it must be \"newest\", \"base\" or the step of a checkpoint; did \
        you mean \"newest\"?",
    );
    expect("count = 0", "count: is 0; it must be at least 1");
    expect(
        "steps = 501",
        "steps: is 501; ddim takes 1 to 500 steps per image",
    );
    expect(
        "guidance = 101",
        "guidance: is 101; it must be between 0 and 100",
    );
    expect(
        "guidance = nan",
        "guidance: is NaN; it must be between 0 and 100",
    );
    expect(
        "seeds = []",
        "seeds: is empty; at least one seed is needed, such as [0]",
    );
    expect(
        "count = 2_000_000",
        "count: results in 2000000 images (count times prompts times seeds); at most 1000000 are \
        allowed",
    );
    expect(
        "task = \"paint\"",
        "task: unknown variant `paint`, expected one of `reconstruction`, `composition`, \
        `multitask`",
    );
    expect(
        "attention = [\"hat\"]",
        "attention: unknown variant `hat`, expected one of `face`, `clothes`, `figure`",
    );
    expect(
        "references = [{ concept = \"face\" }]",
        "references: has an entry that does not have exactly one of id and file",
    );
    expect(
        "references = [{ file = \"x\", sha256 = \"../state\" }]",
        "references: names x with the sha256 \"../state\"; it must be 64 lower-case hex digits",
    );
    expect(
        "resolution = 64",
        "resolution: unknown field `resolution`, expected one of `job`, `weights`, `count`, \
        `method`, `steps`, `guidance`, `reference_guidance`, `seeds`, `prompt`, `prompts`, \
        `negative_prompt`, `knobs`, `swap_references`, `task`, `pairing`, `attention`, \
        `on_failed_unit`, `references`",
    );
    let two = format!("{SAMPLE}count = 2\nreferences = [{{ id = \"7\" }}]\n");
    check_error(
        &two,
        "job.toml:5: sample.count: is 2; with named references there is one subject, so it must \
        be 1",
    );
    let file = format!("{SAMPLE}references = [{{ file = \"me.png\" }}]\n");
    assert!(job(&file).is_ok());
    check_coordinator_error(
        &file,
        "job.toml:5: sample.references: names me.png without its sha256; `coordinator submit` \
        stores the file and adds the digest",
    );
}

#[test]
fn references_are_swapped_among_subjects_and_not_if_they_are_named() {
    let with = |lines: &str| format!("{SAMPLE}{lines}\n");
    let text = with("swap_references = true");
    let Work::Sample(work) = job(&text).unwrap().work else {
        panic!("the job samples")
    };
    assert!(work.swap_references);
    check_canonical(&text);
    // Older releases do not know the field.
    assert!(!to_toml(&job(SAMPLE).unwrap()).contains("swap_references"));
    check_error(
        &with("swap_references = true\nreferences = [{ id = \"7\" }]"),
        "job.toml:5: sample.swap_references: is true; it has no effect with named references: \
        leave it out",
    );
}

#[test]
fn a_negative_prompt_needs_guidance() {
    let with = |lines: &str| format!("{SAMPLE}{lines}\n");
    let text = with("negative_prompt = \"blurry\"\nguidance = 2");
    let Work::Sample(work) = job(&text).unwrap().work else {
        panic!("the job samples")
    };
    assert_eq!(work.negative_prompt, "blurry");
    check_canonical(&text);
    check_error(
        &with("guidance = 1\nnegative_prompt = \"blurry\""),
        "job.toml:6: sample.negative_prompt: is \"blurry\"; it has no effect because \
        sample.guidance is 1: leave it out, or guide by more than 1",
    );
    let long = format!("negative_prompt = \"{}\"", "x".repeat((16 << 10) + 1));
    check_error(
        &with(&long),
        "job.toml:5: sample.negative_prompt: has 16385 bytes; at most 16384 are allowed",
    );
    // Older releases do not know the field.
    assert!(!to_toml(&job(SAMPLE).unwrap()).contains("negative_prompt"));
    assert!(job(&with("guidance = 1\nnegative_prompt = \"\"")).is_ok());
}

#[test]
fn a_file_may_have_a_face_box_and_a_mask() {
    let with = |reference: &str| format!("{SAMPLE}references = [{{ {reference} }}]\n");
    let digest = "0f".repeat(32);
    let text = with(&format!(
        "concept = \"clothes\", file = \"me.png\", sha256 = \"{digest}\", face_box = [0.5, 0.25, \
        0.1, 0.2], mask = \"m.png\", mask_sha256 = \"{digest}\""
    ));
    let Work::Sample(work) = job(&text).unwrap().work else {
        panic!("the job samples")
    };
    let file = ImageSource::File {
        name: "me.png".into(),
        sha256: digest.clone(),
        face_box: Some([0.5, 0.25, 0.1, 0.2]),
        mask: Some(MaskFile {
            name: "m.png".into(),
            sha256: digest,
        }),
    };
    assert_eq!(work.references[0].from, file);
    check_canonical(&text);
    let refused = |reference: &str, message: &str| {
        check_error(
            &with(reference),
            &format!("job.toml:5: sample.references: {message}"),
        );
    };
    refused(
        "file = \"me.png\", face_box = [0.5, 0.5, 0.0, 0.2]",
        "has the face_box [0.5, 0.5, 0.0, 0.2] for me.png; it must be the face's centre x, centre \
        y, width and height, as fractions of the image's width and height",
    );
    refused(
        "file = \"me.png\", face_box = [0.5, nan, 0.1, 0.2]",
        "has the face_box [0.5, NaN, 0.1, 0.2] for me.png; it must be the face's centre x, centre \
        y, width and height, as fractions of the image's width and height",
    );
    refused(
        "id = \"7\", face_box = [0.5, 0.5, 0.1, 0.2]",
        "has a face_box for id \"7\"; only a file has one: leave it out",
    );
    refused(
        "concept = \"figure\", file = \"me.png\", face_box = [0.5, 0.5, 0.1, 0.2]",
        "has a face_box for me.png; it has no effect because a figure is shown whole: leave it out",
    );
    refused(
        "concept = \"face\", file = \"me.png\", mask = \"m.png\"",
        "has a mask for me.png without a face_box; only concept clothes can do without: add the \
        box, or name the concept",
    );
    refused(
        "file = \"me.png\", mask_sha256 = \"00\"",
        "has a mask_sha256 for me.png, but no mask: leave it out",
    );
    let unstored =
        "concept = \"clothes\", file = \"me.png\", sha256 = \"DIGEST\", mask = \"m.png\"";
    check_coordinator_error(
        &with(&unstored.replace("DIGEST", &"0f".repeat(32))),
        "job.toml:5: sample.references: names m.png without its sha256; `coordinator submit` \
        stores the file and adds the digest",
    );
}

#[test]
fn what_is_assumed_of_a_file_is_said() {
    let assumed = |concept, face_box: Option<[f64; 4]>, masked: bool| {
        let mask = masked.then(|| MaskFile {
            name: "m.png".into(),
            sha256: String::new(),
        });
        let from = ImageSource::File {
            name: "me.png".into(),
            sha256: String::new(),
            face_box,
            mask,
        };
        NamedReference { concept, from }.assumption()
    };
    let said = |text: &str| Some(text.to_owned());
    let face_box = Some([0.5, 0.5, 0.1, 0.1]);
    assert_eq!(
        assumed(Some(Concept::Face), None, false),
        said("used whole, centred on white, as if it showed only face: it has no face box")
    );
    assert_eq!(
        assumed(None, None, false),
        said("used whole, centred on white")
    );
    assert_eq!(
        assumed(Some(Concept::Clothes), None, true),
        said("shows no face: it has no face box")
    );
    assert_eq!(
        assumed(Some(Concept::Clothes), face_box, false),
        said("everything belongs to the figure: it has no mask")
    );
    assert_eq!(assumed(Some(Concept::Face), face_box, false), None);
    assert_eq!(assumed(Some(Concept::Clothes), face_box, true), None);
}
