//! Tests of the error messages for invalid job.toml texts.
#![allow(clippy::unwrap_used)]

use super::{parse, to_toml};
use crate::spec::{
    Attend, Clothes, Component, JobSpec, OnNonfinite, Precision, Retrieval, TrainWork,
};
use std::path::Path;
use std::time::Duration;

mod build;
mod combination;
mod during;
mod evaluate;
mod noise;
mod pairing;
mod ratings;
mod work;

const GOOD: &str = r#"name = "demo"

[resources]
workers = { min = 1, max = 2 }

[data]
dataset = "../figures"
resolution = 64
references = 2

[model]
architecture = "retrinet"
size = "small"
init = "s3://weights/base"

[train]
steps = 100
global_batch = 32
micro_batch = 8

[checkpoint]
every = 50
"#;

fn job(text: &str) -> Result<JobSpec, String> {
    parse("job.toml", text, Some(Path::new("/jobs/here"))).map_err(|errors| errors.to_string())
}

/// The training work of the job.
fn read(text: &str) -> Result<TrainWork, String> {
    job(text).map(|job| job.training().unwrap().clone())
}

/// Checks that the canonical text of the job parses to the same job.
fn check_canonical(text: &str) {
    let spec = job(text).unwrap();
    assert_eq!(parse("canonical", &to_toml(&spec), None).unwrap(), spec);
}

/// Checks the message for `GOOD` with one part replaced.
fn check(from: &str, to: &str, message: &str) {
    assert!(GOOD.contains(from), "{from:?} is not in GOOD");
    assert_eq!(read(&GOOD.replacen(from, to, 1)).unwrap_err(), message);
}

#[test]
fn a_good_job_means_what_it_says() {
    let spec = read(GOOD).unwrap();
    assert_eq!(spec.data.dataset, "file:///jobs/figures");
    assert_eq!(spec.model.init.as_deref(), Some("s3://weights/base"));
    assert_eq!(spec.micro_batches(), 4);
}

#[test]
fn a_path_may_have_any_name() {
    let text = GOOD.replacen("../figures", "/data/50% of #1?", 1);
    assert_eq!(
        read(&text).unwrap().data.dataset,
        "file:///data/50%25 of %231%3F"
    );
    check_canonical(&text);
}

#[test]
fn priority_and_team_are_bounded() {
    let expect = |line: &str, message: &str| {
        let text = GOOD.replace("[resources]", &format!("[resources]\n{line}"));
        assert_ne!(text, GOOD);
        let error = read(&text).unwrap_err();
        assert!(error.contains(message), "{error}");
    };
    expect(
        "priority = 101",
        "resources.priority: is 101; it must be -100 to 100 (higher values are scheduled first)",
    );
    expect(
        "team = \"A b\"",
        "resources.team: is \"A b\"; it must be 1 to 40 lower-case letters, digits and dashes, \
        starting with a letter",
    );
}

#[test]
fn the_canonical_text_means_the_same() {
    check_canonical(GOOD);
}

#[test]
fn unknown_keys_get_a_suggestion() {
    check(
        "global_batch",
        "globl_batch",
        "job.toml:18: train.globl_batch: unknown field `globl_batch`, expected one of `steps`, \
        `global_batch`, `micro_batch`, `learning_rate`, `learning_rates`, `warmup`, `decay`, \
        `clip`, `ema`, `face_loss_weight`, `target_mask_threshold`, `loss_weighting`, \
        `edge_loss_weight`, `kl_loss_weight`, `mask_loss`, `localization`, `precision`, \
        `on_nonfinite`, `latent_cache_mib`, `reduction`, `threads`, `digest_every`, \
        `validate_every`, `validate_samples`, `time_limit`, `evaluate_every`, `samples_every`, \
        `evaluate_on`, `optimizer`; did you mean `global_batch`?",
    );
    check(
        "architecture = \"retrinet\"",
        "architecture = \"retronet\"",
        "job.toml:12: model.architecture: unknown variant `retronet`, expected one of \
        `autoencoder`, `text-to-image`, `retrinet`, `clip`, `controlnet`, `ip-adapter`, \
        `fastcomposer`, `kandinsky-prior`, `kandinsky-decoder`; did you mean `retrinet`?",
    );
    check(
        "size = \"small\"",
        "size = \"smal\"",
        "job.toml:13: model.size: is \"smal\"; it must be one of tiny, small, sd15; did you mean \
        \"small\"?",
    );
}

#[test]
fn a_reduction_is_fast_unless_the_job_says_exact() {
    check(
        "micro_batch = 8",
        "micro_batch = 8\nreduction = \"exakt\"",
        "job.toml:20: train.reduction: unknown variant `exakt`, expected `fast` or `exact`; did \
        you mean `exact`?",
    );
}

#[test]
fn a_time_limit_is_a_duration_or_none() {
    let with =
        |value: &str| GOOD.replace("steps = 100", &format!("steps = 100\ntime_limit = {value}"));
    let limit = |text: &str| read(text).unwrap().train.time_limit;
    assert_eq!(limit(GOOD), None);
    assert_eq!(limit(&with("\"none\"")), None);
    for (value, seconds) in [
        ("\"36h\"", 129_600),
        ("\"90m\"", 5_400),
        ("\"1h30m\"", 5_400),
    ] {
        let text = with(value);
        assert_eq!(limit(&text), Some(Duration::from_secs(seconds)));
        check_canonical(&text);
    }
    check_canonical(&with("\"none\""));
    for wrong in ["", "36", "0h", "1.5h", "30m1h", "forever", "-1h"] {
        check(
            "steps = 100",
            &format!("steps = 100\ntime_limit = \"{wrong}\""),
            &format!(
                "job.toml:18: train.time_limit: is \"{wrong}\"; it must be a duration such as \
                \"45s\", \"90m\", \"1h30m\", \"36h\" or \"2d\", or \"none\""
            ),
        );
    }
    check(
        "steps = 100",
        "steps = 100\ntime_limit = 3600",
        "job.toml:18: train.time_limit: is the integer `3600`; it must be a quoted string",
    );
}

#[test]
fn a_validation_needs_samples_that_are_held_out() {
    let spec = read(GOOD).unwrap().train;
    assert_eq!((spec.validate_every, spec.validate_samples), (0, 64));
    check(
        "steps = 100",
        "steps = 100\nvalidate_every = 10",
        "job.toml:18: train.validate_every: is 10, but data.holdout is 0; validation needs \
        held-out samples: set data.holdout above 0, such as 0.05, or leave this out",
    );
    let held_out = GOOD.replace("references = 2", "references = 2\nholdout = 0.1");
    let with = |line: &str| held_out.replace("steps = 100", &format!("steps = 100\n{line}"));
    let text = with("validate_every = 10\nvalidate_samples = 7");
    let train = read(&text).unwrap().train;
    assert_eq!((train.validate_every, train.validate_samples), (10, 7));
    check_canonical(&text);
    for (value, message) in [
        ("0", "is 0; it must be at least 1"),
        ("65537", "is 65537; it must be at most 65536"),
    ] {
        assert_eq!(
            read(&with(&format!("validate_samples = {value}"))).unwrap_err(),
            format!("job.toml:19: train.validate_samples: {message}")
        );
    }
}

#[test]
fn wrong_types_and_missing_fields_are_named() {
    check(
        "steps = 100",
        "steps = \"many\"",
        "job.toml:17: train.steps: is the string \"many\"; it must be a whole number, 0 or more",
    );
    check(
        "steps = 100\n",
        "",
        "job.toml:16: train: missing field `steps`",
    );
}

#[test]
fn numbers_that_do_not_fit_together_are_refused() {
    check(
        "global_batch = 32",
        "global_batch = 33",
        "job.toml:18: train.global_batch: is 33; it must be a multiple of train.micro_batch, \
        which is 8",
    );
    check(
        "resolution = 64",
        "resolution = 72",
        "job.toml:8: data.resolution: is 72; it must be a positive multiple of 16",
    );
    check(
        "references = 2",
        "references = 0",
        "job.toml:9: data.references: is 0; retrinet generates images from references, so at \
        least 1 is needed (the paper uses 4)",
    );
    check(
        "min = 1, max = 2",
        "min = 3, max = 2",
        "job.toml:4: resources.workers.max: is 2; it must be at least workers.min, which is 3",
    );
    check(
        "micro_batch = 8",
        "micro_batch = 32",
        "job.toml:4: resources.workers.max: 2 ranks are more than the 1 micro-batches of a step; \
        raise train.global_batch or lower train.micro_batch",
    );
    check(
        "size = \"small\"",
        "size = \"small\"\nfreeze = [\"autoencoder\", \"text-encoder\", \"encoder\", \"middle\", \
        \"decoder\", \"retrieval-encoder\", \"cross-attention\"]",
        "job.toml:14: model.freeze: names every component, so nothing is left to train; leave out \
        at least one of text-encoder, encoder, middle, decoder, retrieval-encoder, \
        cross-attention",
    );
    check(
        "size = \"small\"",
        "size = \"small\"\nunet = { heads = 5 }",
        "job.toml:14: model.unet.heads: is 5; it must divide every width, but does not divide 48",
    );
    check(
        "size = \"small\"",
        "size = \"small\"\nfreeze = [\"encoder\"]",
        "job.toml:14: model.freeze: is [encoder], without autoencoder; the noise loss cannot \
        train autoencoder, so it must be frozen",
    );
    check(
        "size = \"small\"",
        "size = \"small\"\nunet = { context_dim = 0 }\ntext_encoder = { width = 0 }",
        "job.toml:15: model.text_encoder.width: is 0; it must be at least 1",
    );
    check(
        "size = \"small\"",
        "size = \"small\"\nautoencoder = { scaling_factor = 0.0 }",
        "job.toml:14: model.autoencoder.scaling_factor: is 0; it must be a number above 0",
    );
    check(
        "size = \"small\"",
        "size = \"small\"\nautoencoder = { channel_mult = [1, 0] }",
        "job.toml:14: model.autoencoder.channel_mult: contains 0; every entry must be at least 1",
    );
}

#[test]
fn networks_and_jobs_beyond_all_machines_are_refused() {
    check(
        "size = \"small\"",
        "size = \"small\"\nunet = { res_blocks = 4000000000 }",
        "job.toml:14: model.unet.res_blocks: is 4000000000; it must be at most 16",
    );
    check(
        "size = \"small\"",
        "size = \"small\"\nautoencoder = { channel_mult = [1, 65] }",
        "job.toml:14: model.autoencoder.channel_mult: contains 65; entries must be at most 64",
    );
    check(
        "steps = 100",
        "steps = 9000000000000000000",
        "job.toml:17: train.steps: is 9000000000000000000; it must be at most 1000000000000",
    );
    check(
        "global_batch = 32",
        "global_batch = 2000000",
        "job.toml:18: train.global_batch: is 2000000; it must be at most 1048576",
    );
}

#[test]
fn all_faults_come_together_in_line_order() {
    let text = GOOD.replacen("every = 50", "every = 0", 1).replacen(
        "name = \"demo\"",
        "name = \"De mo\"",
        1,
    );
    assert_eq!(
        read(&text).unwrap_err(),
        "job.toml:1: name: is \"De mo\"; it must be 1 to 40 lower-case letters, digits and \
        dashes, starting with a letter\n\
        job.toml:22: checkpoint.every: is 0; it must be at least 1"
    );
}

#[test]
fn urls_must_be_reachable_from_everywhere() {
    check(
        "\"../figures\"",
        "\"http://x/y\"",
        "job.toml:7: data.dataset: is \"http://x/y\"; the scheme must be file:// or s3://",
    );
    let without_directory = parse("job.toml", GOOD, None).unwrap_err().to_string();
    assert_eq!(
        without_directory,
        "job.toml:7: data.dataset: is \"../figures\"; it must be a URL: file:///… or \
        s3://bucket/…"
    );
}

#[test]
fn text_that_is_no_toml_says_where() {
    let message = read("name = \n").unwrap_err();
    assert!(
        message.starts_with("job.toml:1: ") && message.ends_with(" in `name =`"),
        "{message}"
    );
    check(
        "every = 50",
        "every = 50\nevery = 60",
        "job.toml:23: duplicate key in `every = 60`",
    );
}

#[test]
fn no_text_panics() {
    let mut state = 1_u64;
    for _ in 0..2_000 {
        let mut bytes = GOOD.as_bytes().to_vec();
        for _ in 0..3 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 24) as u8 & 0x7f;
        }
        let _ = read(&String::from_utf8(bytes).unwrap());
    }
}

#[test]
fn only_components_that_keep_activations_can_be_computed_again() {
    let with = |line: &str| GOOD.replacen("size = \"small\"", line, 1);
    let spec = read(&with(
        "size = \"small\"\nactivation_checkpointing = [\"decoder\", \"retrieval-encoder\", \
        \"decoder\"]",
    ));
    let components = spec.unwrap().model.activation_checkpointing;
    assert_eq!(
        components,
        [Component::Decoder, Component::RetrievalEncoder]
    );
    check(
        "size = \"small\"",
        "size = \"small\"\nactivation_checkpointing = [\"middle\"]",
        "job.toml:14: model.activation_checkpointing: names middle, which is frozen and stores no \
        activations: leave it out",
    );
    let other = GOOD.replace("references = 2\n", "").replace(
        "\"retrinet\"",
        "\"text-to-image\"\nactivation_checkpointing = [\"cross-attention\"]",
    );
    assert_eq!(
        read(&other).unwrap_err(),
        "job.toml:12: model.activation_checkpointing: names cross-attention, which text-to-image \
        does not have; it has autoencoder, text-encoder, encoder, middle, decoder",
    );
}

#[test]
fn precision_and_what_happens_to_bad_numbers_are_read_and_slips_are_named() {
    let spec = read(&GOOD.replacen(
        "steps = 100",
        "steps = 100\nprecision = \"fp16\"\non_nonfinite = \"skip\"",
        1,
    ))
    .unwrap();
    assert_eq!(spec.train.precision, Precision::Fp16);
    assert_eq!(spec.train.on_nonfinite, OnNonfinite::Skip);
    check(
        "steps = 100",
        "steps = 100\nprecision = \"fp8\"",
        "job.toml:18: train.precision: unknown variant `fp8`, expected one of `fp32`, `fp16`, \
        `bf16`; did you mean `fp16`?",
    );
    check(
        "steps = 100",
        "steps = 100\non_nonfinite = \"ignore\"",
        "job.toml:18: train.on_nonfinite: unknown variant `ignore`, expected `stop` or `skip`",
    );
}

#[test]
fn a_moving_average_is_off_unless_its_decay_is_given() {
    assert_eq!(read(GOOD).unwrap().train.ema, None);
    let with =
        |ema: &str| read(&GOOD.replacen("steps = 100", &format!("steps = 100\nema = {ema}"), 1));
    assert_eq!(with("0.9999").unwrap().train.ema, Some(0.9999));
    assert_eq!(with("0").unwrap().train.ema, None);
    check(
        "steps = 100",
        "steps = 100\nema = 1.0",
        "job.toml:18: train.ema: is 1; it must be at least 0 (no average) and below 1, such as \
        0.9999",
    );
}

#[test]
fn latents_are_kept_only_where_they_stay_the_same() {
    let exact = "steps = 100\nlatent_cache_mib = 64\nreduction = \"exact\"";
    assert_eq!(
        read(&GOOD.replacen("steps = 100", exact, 1))
            .unwrap()
            .train
            .latent_cache_mib,
        64
    );
    let on_gpu = GOOD.replacen("[resources]", "[resources]\ndevice = \"cuda\"", 1);
    let message = read(&on_gpu.replacen("steps = 100", exact, 1)).unwrap_err();
    assert_eq!(
        message,
        "job.toml:19: train.latent_cache_mib: is 64; with train.reduction = \"exact\" on cuda it \
        must be 0, because on a GPU the bits of a latent may depend on the other images of the \
        batch"
    );
}

#[test]
fn what_the_paper_leaves_open_is_a_field_with_a_default() {
    let spec = read(GOOD).unwrap();
    let references = |spec: &TrainWork| *spec.model.architecture.references().unwrap();
    assert_eq!(references(&spec).clothes, Clothes::default());
    let objective = spec.model.architecture.diffusion().unwrap().objective;
    assert_eq!(
        (references(&spec).scale, objective.target_mask_threshold),
        (0.8, 0.5)
    );
    assert_eq!(
        spec.model.architecture.retrieval(),
        Some(Retrieval::default())
    );
    let edited = |section: &str, lines: &str| GOOD.replace(section, &format!("{section}\n{lines}"));
    let with = |section: &str, lines: &str| read(&edited(section, lines));
    let spec = with(
        "[data]",
        "clothes = { background = 1 }\nreference_scale = 1.0",
    )
    .unwrap();
    assert_eq!(
        (
            references(&spec).clothes.background,
            references(&spec).clothes.cut_off
        ),
        (1.0, 0.5)
    );
    let open = "retrieval = { attend = \"every-level\", time = \"zero\" }";
    let spec = with("[model]", open).unwrap();
    let retrieval = spec.model.architecture.retrieval().unwrap();
    assert_eq!(retrieval.attend, Attend::EveryLevel);
    check_canonical(&edited("[model]", open));
    let refused = |section: &str, lines: &str, message: &str| {
        let error = with(section, lines).unwrap_err();
        assert!(error.contains(message), "{error}");
    };
    refused(
        "[data]",
        "clothes = { cut_off = 2 }",
        "data.clothes.cut_off: is 2; it must lie",
    );
    refused(
        "[data]",
        "reference_scale = 0",
        "data.reference_scale: is 0; it must lie",
    );
    refused(
        "[train]",
        "target_mask_threshold = 1",
        "train.target_mask_threshold: is 1; it must be",
    );
    let other = GOOD.replace("\"retrinet\"", "\"text-to-image\"");
    let error = read(&other.replace("[model]", &format!("[model]\n{open}"))).unwrap_err();
    assert!(
        error.contains("model.retrieval: is for retrinet; text-to-image has"),
        "{error}"
    );
}
