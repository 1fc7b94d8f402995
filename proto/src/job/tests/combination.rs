//! Invalid combinations of fields, and fields that have no effect.

use super::{GOOD, check_canonical, job, read};
use crate::architecture::Architecture;

#[test]
fn wrong_combinations_in_model_and_data_are_refused_by_field_value_and_what_would_be_right() {
    let components = "expected one of `autoencoder`, `text-encoder`, `encoder`, `middle`, \
    `decoder`, `retrieval-encoder`, `cross-attention`, `control`, `image-encoder`, \
    `image-encoder-end`, `adapter`, `fusion`, `prior`; did you mean `decoder`?";
    for (section, line, message) in [
        (
            "[model]",
            "freeze = [\"decodr\"]",
            &*format!("model.freeze: unknown variant `decodr`, {components}"),
        ),
        (
            "[train]",
            "learning_rates = { decodr = 1 }",
            &format!("train.learning_rates.decodr: unknown variant `decodr`, {components}"),
        ),
        (
            "[train]",
            "learning_rates = { encoder = 0.1 }",
            "train.learning_rates.encoder: is 0.1; this component is frozen: leave it out, here \
            or in model.freeze",
        ),
        (
            "[data]",
            "prompt_drop = nan",
            "data.prompt_drop: is NaN; it must lie between 0 and 1",
        ),
        (
            "[data]",
            "looks_drop = 1.5",
            "data.looks_drop: is 1.5; it must lie between 0 and 1",
        ),
        (
            "[data]",
            "face_enlargement = 0.5",
            "data.face_enlargement: is 0.5; it must lie between 1 and 4",
        ),
        (
            "[data]",
            "holdout = 1",
            "data.holdout: is 1; it must be at least 0 and below 1, because otherwise no training \
            data is left",
        ),
        (
            "[model]",
            "unet = { attention_levels = [3] }",
            "model.unet.attention_levels: names level 3; there are levels 0 to 2",
        ),
        (
            "[model]",
            "unet = { latent_channels = 8 }",
            "model.unet.latent_channels: is 8; it must equal model.autoencoder.latent_channels, \
            which is 4",
        ),
        (
            "[model]",
            "autoencoder = { norm_groups = 3 }",
            "model.autoencoder.norm_groups: is 3; it must divide every width, but does not divide \
            16",
        ),
        (
            "[model]",
            "text_encoder = { tokens = 1 }",
            "model.text_encoder.tokens: is 1; a prompt has 2 to 1024 tokens",
        ),
        (
            "[model]",
            "retrieval = { attend = \"all\" }",
            "model.retrieval.attend: unknown variant `all`, expected `every-block` or \
            `every-level`",
        ),
    ] {
        let error = read(&GOOD.replacen(section, &format!("{section}\n{line}"), 1)).unwrap_err();
        assert!(error.ends_with(message), "{line}: {error}");
    }
}

/// Checks the message for a job of this architecture with an additional line in a section.
fn check_unused(architecture: &str, (section, line): (&str, &str), message: &str) {
    let references = if architecture == "retrinet" {
        "references = 2\n"
    } else {
        ""
    };
    let job = GOOD.replacen("references = 2\n", references, 1).replacen(
        "\"retrinet\"",
        &format!("\"{architecture}\""),
        1,
    );
    read(&job).unwrap_or_else(|error| panic!("without {line}: {error}"));
    let error = read(&job.replacen(section, &format!("{section}\n{line}"), 1)).unwrap_err();
    assert!(error.ends_with(message), "{architecture}, {line}: {error}");
}

#[test]
fn a_field_that_nothing_would_read_is_refused() {
    let of_references = [
        ("task = \"multitask\"", "task: is \"multitask\""),
        ("pairing = \"a\"", "pairing: is \"a\""),
        ("references = 4", "references: is 4"),
        ("reference_drop = 0.5", "reference_drop: is 0.5"),
        (
            "transform = { crop = [0.5, 1.0] }",
            "transform.crop: is [0.5, 1.0]",
        ),
        ("transform = { flip = 0.1 }", "transform.flip: is 0.1"),
        (
            "transform = { target_scale = 0.9 }",
            "transform.target_scale: is 0.9",
        ),
        ("reference_scale = 0.9", "reference_scale: is 0.9"),
        (
            "multitask_reconstruction = 0.1",
            "multitask_reconstruction: is 0.1",
        ),
        ("face_probability = 1", "face_probability: is 1.0"),
        ("face_enlargement = 2", "face_enlargement: is 2.0"),
        ("figure_threshold = 0.2", "figure_threshold: is 0.2"),
        ("clothes = { cut_off = 1 }", "clothes.cut_off: is 1.0"),
        (
            "clothes = { cut_off_minimum = 0 }",
            "clothes.cut_off_minimum: is 0.0",
        ),
        ("clothes = { background = 1 }", "clothes.background: is 1.0"),
    ];
    for architecture in ["autoencoder", "text-to-image"] {
        let why = format!("{architecture} uses no references");
        for (line, value) in of_references {
            let message = format!("data.{value}; it has no effect because {why}: leave it out");
            check_unused(architecture, ("[data]", line), &message);
        }
    }
    let of_noise = [
        ("[data]", "prompt_drop = 0.1", "data.prompt_drop: is 0.1"),
        ("[data]", "looks_drop = 0.1", "data.looks_drop: is 0.1"),
        (
            "[data]",
            "prompt_order = \"shuffle\"",
            "data.prompt_order: is \"shuffle\"",
        ),
        (
            "[train]",
            "face_loss_weight = 2",
            "train.face_loss_weight: is 2.0",
        ),
        (
            "[train]",
            "target_mask_threshold = 0.1",
            "train.target_mask_threshold: is 0.1",
        ),
        (
            "[train]",
            "loss_weighting = \"noise\"",
            "train.loss_weighting: is \"noise\"",
        ),
    ];
    for (section, line, value) in of_noise {
        let why = "an autoencoder trains on images only, without prompts and noise";
        let message = format!("{value}; it has no effect because {why}: leave it out");
        check_unused("autoencoder", (section, line), &message);
    }
    for (line, table) in [
        ("unet = { channels = 96 }", "unet"),
        ("text_encoder = { layers = 3 }", "text_encoder"),
    ] {
        let message = format!(
            "model.{table}: is for other architectures; autoencoder has no such component: leave \
            it out"
        );
        check_unused("autoencoder", ("[model]", line), &message);
    }
}

#[test]
fn the_weights_of_an_autoencoders_loss_are_its_alone() {
    let autoencoder = GOOD
        .replace("references = 2\n", "")
        .replace("\"retrinet\"", "\"autoencoder\"");
    let with = |text: &str, line: &str| text.replacen("[train]", &format!("[train]\n{line}"), 1);
    check_canonical(&with(
        &autoencoder,
        "edge_loss_weight = 0.5\nkl_loss_weight = 1e-6",
    ));
    let stored = crate::job::to_toml(&job(&autoencoder).unwrap());
    assert!(!stored.contains("_loss_weight"), "{stored}");
    for field in ["edge_loss_weight", "kl_loss_weight"] {
        let error = read(&with(&autoencoder, &format!("{field} = -1"))).unwrap_err();
        assert!(error.contains(&format!("train.{field}: is -1")), "{error}");
        for architecture in ["retrinet", "text-to-image"] {
            let text = if architecture == "retrinet" {
                GOOD.to_owned()
            } else {
                autoencoder.replace("\"autoencoder\"", "\"text-to-image\"")
            };
            let error = read(&with(&text, &format!("{field} = 1"))).unwrap_err();
            assert!(
                error.contains(&format!(
                    "train.{field}: is 1.0; it has no effect because it "
                )),
                "{architecture}: {error}"
            );
        }
    }
}

#[test]
fn a_job_that_keeps_looks_in_its_prompts_does_not_name_the_field() {
    let stored = crate::job::to_toml(&job(GOOD).unwrap());
    assert!(!stored.contains("looks_drop"), "{stored}");
    check_canonical(&GOOD.replacen("[data]", "[data]\nlooks_drop = 1.0", 1));
}

#[test]
fn a_task_has_the_fields_that_it_reads() {
    let with = |lines: &str| read(&GOOD.replacen("[data]", &format!("[data]\n{lines}"), 1));
    with("task = \"multitask\"\nmultitask_reconstruction = 0.1\nface_probability = 1").unwrap();
    with("task = \"composition\"\nface_probability = 1").unwrap();
    assert_eq!(
        with("multitask_reconstruction = 0.1").unwrap_err(),
        "job.toml:7: data.multitask_reconstruction: is 0.1; it has no effect because data.task is \
        composition: leave it out"
    );
    assert_eq!(
        with("task = \"reconstruction\"\nfigure_threshold = 0.1").unwrap_err(),
        "job.toml:8: data.figure_threshold: is 0.1; it has no effect because data.task is \
        reconstruction: leave it out"
    );
}

#[test]
fn the_canonical_text_of_every_peer_and_size_means_the_same() {
    for architecture in Architecture::ALL.map(Architecture::facts) {
        for size in architecture.sizes {
            let good = match architecture.name {
                "clip" => clip_job(),
                name => GOOD
                    .replace("references = 2\n", "")
                    .replace("\"retrinet\"", &format!("\"{name}\"")),
            };
            let text = good
                .replace("resolution = 64", "resolution = 448")
                .replace("\"small\"", &format!("\"{size}\""));
            check_canonical(&text);
        }
    }
}

#[test]
fn the_canonical_text_of_every_architecture_and_size_means_the_same() {
    for architecture in ["autoencoder", "text-to-image", "retrinet"] {
        for size in crate::size::NAMES {
            let text = GOOD
                .replace("references = 2\n", "")
                .replace("\"retrinet\"", &format!("\"{architecture}\""))
                .replace("\"small\"", &format!("\"{size}\""));
            check_canonical(&text);
        }
    }
}

fn clip_job() -> String {
    let clip = GOOD
        .replace("references = 2\n", "prompt_drop = 0\n")
        .replace("\"retrinet\"", "\"clip\"");
    clip.lines()
        .filter(|line| !line.starts_with("init"))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn a_clip_reads_prompts_and_images_and_nothing_else() {
    let clip = clip_job();
    check_canonical(&clip);
    check_canonical(&clip.replacen("[data]", "[data]\nlooks_drop = 0.5", 1));
    let table = "[model.image_encoder]\nlayers = 5\npatch = 16\n[train]";
    check_canonical(&clip.replacen("[train]", table, 1));
    let stored = crate::job::to_toml(&job(&clip).unwrap());
    assert!(!stored.contains("channel_mult"), "{stored}");
    for derived in ["side =", "mlp_width", "activation ="] {
        assert!(!stored.contains(derived), "{derived}: {stored}");
    }
    for (from, to, message) in [
        (
            "prompt_drop = 0",
            "prompt_drop = 0.5",
            "data.prompt_drop: is 0.5; it must be 0, because an empty prompt belongs to every \
            image",
        ),
        (
            "[model]",
            "[model]\ninit = \"file:///b\"",
            "model.init: is \"file:///b\"; a CLIP starts from random weights",
        ),
        (
            "[train]",
            "[model.image_encoder]\npatch = 13\n[train]",
            "data.resolution: is 64; it must be a positive multiple of 13",
        ),
        (
            "[train]",
            "[model.image_encoder]\nheads = 5\n[train]",
            "model.image_encoder.heads: is 5; it must divide model.image_encoder.width, which is",
        ),
        (
            "[train]",
            "[model.image_encoder]\nside = 64\n[train]",
            "model.image_encoder.side: has no effect because a clip reads images of the side \
            data.resolution: leave it out",
        ),
        (
            "[train]",
            "[model.autoencoder]\nchannels = 24\n[train]",
            "model.autoencoder: is for other architectures; clip has no such component",
        ),
        (
            "[train]",
            "[train]\nedge_loss_weight = 1",
            "train.edge_loss_weight: is 1.0; it has no effect",
        ),
        (
            "[data]",
            "[data]\nreferences = 2",
            "data.references: is 2; it has no effect because clip uses no references",
        ),
    ] {
        let error = read(&clip.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(message), "{from}: {error}");
    }
}
