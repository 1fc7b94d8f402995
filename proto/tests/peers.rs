//! What the paper's peers refuse at submission, by field, value and what would be right.
#![allow(clippy::unwrap_used)]

use proto::id::JobId;
use proto::job::parse;
use proto::knobs::Knobs;
use proto::sample::{ImageSource, NamedReference, SampleWork};
use proto::spec::TrainWork;

fn job(architecture: &str, more: &str) -> Result<TrainWork, String> {
    let mut text = format!(
        "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 256\n[model]\n\
         architecture = \"{architecture}\"\ninit = \"file:///none\"\n[train]\nsteps = 4\n\
         global_batch = 1\nmicro_batch = 1\n"
    );
    for line in more.lines() {
        let (table, field) = line.split_once(": ").unwrap();
        let header = format!("[{table}]\n");
        text = if text.contains(&header) {
            text.replace(&header, &format!("{header}{field}\n"))
        } else {
            format!("{text}{header}{field}\n")
        };
    }
    let spec = parse("job.toml", &text, None).map_err(|errors| errors.to_string())?;
    Ok(spec.training().unwrap().clone())
}

/// Architecture, fields that are added to its job, and a part of the error.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "controlnet",
        "data: references = 2",
        "takes exactly 1 reference, its hint",
    ),
    (
        "controlnet",
        "model.image_encoder: width = 32",
        "model.image_encoder: is for architectures with image embeddings; controlnet",
    ),
    ("controlnet", "data: alpha = 1", "unknown field `alpha`"),
    (
        "controlnet",
        "train: face_loss_weight = 2.0",
        "train.face_loss_weight: is 2.0; it has no effect because controlnet has its authors'",
    ),
    (
        "ip-adapter",
        "data: references = 0",
        "ip-adapter generates images from references",
    ),
    (
        "ip-adapter",
        "model.image_encoder: heads = 5",
        "is 5; it must divide model.image_encoder.width, which is 96",
    ),
    (
        "ip-adapter",
        "data: object_keep = 0.5",
        "ip-adapter does not use it",
    ),
    (
        "fastcomposer",
        "model.image_encoder: projection = 32",
        "model.image_encoder.projection: is 32; fastcomposer fuses the image's embedding with \
         text states, so it must equal model.text_encoder.width, which is 48",
    ),
    (
        "fastcomposer",
        "data: subjects = []",
        "it must name at least one tag",
    ),
    (
        "kandinsky-prior",
        "data: pairing = \"a\"",
        "sees no reference",
    ),
    (
        "kandinsky-prior",
        "model.image_encoder: projection = 32",
        "so it must equal model.text_encoder.width, which is 48",
    ),
    (
        "kandinsky-prior",
        "model.noise: steps = 500",
        "on UnCLIP's cosine schedule of 1000 steps",
    ),
    (
        "kandinsky-prior",
        "model.autoencoder: channels = 24",
        "model.autoencoder: is for other architectures; kandinsky-prior has no such component",
    ),
    (
        "kandinsky-decoder",
        "model: size = \"sd15\"\nmodel: variant = \"kandinsky-2.2\"",
        "its published size is \"kandinsky-2.2\"",
    ),
    (
        "kandinsky-decoder",
        "model: latents = \"sample\"",
        "MoVQ has no posterior to sample from",
    ),
    (
        "kandinsky-decoder",
        "model.unet: attention_levels = [0, 1]",
        "all levels but the first attend, so it must be [1, 2]",
    ),
    (
        "retrinet",
        "model: size = \"kandinsky-2.2\"",
        "model.size: is \"kandinsky-2.2\", which retrinet does not have; it has tiny, small, \
         sd15",
    ),
    (
        "retrinet",
        "model.prior: width = 64",
        "model.prior: is for Kandinsky; retrinet has no",
    ),
];

#[test]
fn fields_of_another_architecture_and_numbers_that_do_not_fit_are_refused() {
    for (architecture, more, expected) in REFUSED {
        let error = job(architecture, more).unwrap_err();
        assert!(error.contains(expected), "{architecture}, {more}: {error}");
    }
}

#[test]
fn knobs_of_another_architecture_and_a_strength_that_keeps_no_step_are_refused_by_name() {
    let refused = |architecture: &str, knobs: &[&str]| {
        let architecture = job(architecture, "").unwrap().model.architecture;
        let lines: Vec<String> = knobs.iter().map(|it| (*it).to_owned()).collect();
        let mut work = SampleWork::of(JobId("a-1".to_owned()));
        work.knobs = Knobs::parse(&lines).unwrap();
        architecture
            .refuse(&work)
            .map(|(field, why)| format!("{field}: {why}"))
    };
    for (architecture, knobs) in [
        (
            "controlnet",
            vec!["control_scales = [0.5]", "guess_mode = true"],
        ),
        ("ip-adapter", vec!["image_scale = 0.0"]),
        ("fastcomposer", vec!["alpha = 0.5"]),
        (
            "kandinsky-decoder",
            vec!["prior_strength = 0.1", "prior_whitened = true"],
        ),
        ("retrinet", vec![]),
    ] {
        assert_eq!(refused(architecture, &knobs), None, "{architecture}");
    }
    for (architecture, knobs, expected) in [
        (
            "controlnet",
            vec!["alpha = 0.5"],
            "knobs.alpha: a controlnet does not have this knob; it has control_scales, guess_mode",
        ),
        (
            "retrinet",
            vec!["image_scale = 1.0"],
            "does not have this knob; it has no knobs",
        ),
        (
            "controlnet",
            vec!["control_scales = [1.0, 0.5]"],
            "knobs.control_scales: has 2 scales; this U-Net has 7 residuals, so give 1 or 7",
        ),
        (
            "kandinsky-decoder",
            vec!["prior_strength = 0.03"],
            "knobs.prior_strength: is 0.03; of the prior's 25 steps it keeps none: give at least \
             0.04",
        ),
        (
            "kandinsky-decoder",
            vec!["prior_steps = 10"],
            "knobs.prior_steps: has no effect without prior_strength",
        ),
        (
            "kandinsky-prior",
            vec![],
            "job: it trained a kandinsky-prior, which generates image",
        ),
    ] {
        let found = refused(architecture, &knobs).unwrap();
        assert!(
            found.contains(expected),
            "{architecture} {knobs:?}: {found}"
        );
    }
}

#[test]
fn more_references_than_a_model_takes_are_refused() {
    let reference = NamedReference {
        concept: None,
        from: ImageSource::Sample { id: "1".to_owned() },
    };
    for (architecture, most) in [("controlnet", 1), ("fastcomposer", 1), ("ip-adapter", 64)] {
        let spec = job(architecture, "").unwrap().model.architecture;
        let mut work = SampleWork::of(JobId("a-1".to_owned()));
        work.references = vec![reference.clone(); most];
        assert_eq!(spec.refuse(&work), None, "{architecture}");
        work.references.push(reference.clone());
        let (field, why) = spec.refuse(&work).unwrap();
        assert_eq!(field, "references");
        assert!(why.contains(&format!("takes at most {most}")), "{why}");
    }
}
