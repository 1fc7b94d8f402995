//! `[model.noise]`, and job texts of releases without it.

use super::{GOOD, check_canonical, read};
use crate::architecture::{Noise, NoiseKind, Prediction};

fn noise(text: &str) -> Noise {
    read(text)
        .unwrap()
        .model
        .architecture
        .diffusion()
        .unwrap()
        .noise
}

/// `GOOD` with additional lines in `[model]`.
fn with(lines: &str) -> String {
    GOOD.replacen("size = \"small\"", &format!("size = \"small\"\n{lines}"), 1)
}

#[test]
fn a_job_without_the_table_has_stable_diffusion_s_schedule() {
    let expected = Noise {
        kind: NoiseKind::ScaledLinear,
        steps: 1000,
        beta_start: 0.00085,
        beta_end: 0.012,
        prediction: Prediction::Epsilon,
    };
    assert_eq!(noise(GOOD), expected);
    assert_eq!(Noise::default(), expected);
    assert_eq!(
        noise(&with("noise = { prediction = \"epsilon\", steps = 1000 }")),
        expected
    );
}

#[test]
fn every_field_of_a_schedule_is_read_and_written() {
    let text = with(
        "noise = { kind = \"linear\", steps = 500, beta_start = 0.001, beta_end = 0.02, \
        prediction = \"v\" }",
    );
    let found = noise(&text);
    assert_eq!((found.kind, found.steps), (NoiseKind::Linear, 500));
    assert_eq!((found.beta_start, found.beta_end), (0.001, 0.02));
    assert_eq!(found.prediction, Prediction::V);
    check_canonical(&text);
    check_canonical(&with("noise = { kind = \"cosine\" }"));
}

#[test]
fn how_samples_are_guided_depends_on_what_is_predicted_and_on_dropped_references() {
    let guidance = |text: &str| read(text).unwrap().model.architecture.guidance();
    let v = with("noise = { prediction = \"v\" }");
    let dropping = |text: &str| {
        text.replacen(
            "references = 2\n",
            "references = 2\nreference_drop = 0.1\n",
            1,
        )
    };
    assert_eq!(guidance(GOOD), (7.5, 1.0));
    assert_eq!(guidance(&dropping(GOOD)), (7.5, 1.0));
    assert_eq!(guidance(&v), (2.0, 1.0));
    assert_eq!(guidance(&dropping(&v)), (1.5, 3.0));
}

#[test]
fn a_schedule_that_cannot_be_is_refused() {
    for (field, message) in [
        (
            "kind = \"cosin\"",
            "model.noise.kind: unknown variant `cosin`, expected one of `scaled-linear`, \
            `linear`, `cosine`; did you mean `cosine`?",
        ),
        (
            "prediction = \"x\"",
            "model.noise.prediction: unknown variant `x`, expected `epsilon` or `v`; did you mean \
            `v`?",
        ),
        (
            "steps = 5",
            "model.noise.steps: is 5; a noise schedule has 10 to 10000 time steps",
        ),
        (
            "beta_start = 0",
            "model.noise.beta_start: is 0; it must lie between 0 and 1, both excluded",
        ),
        (
            "beta_end = 1",
            "model.noise.beta_end: is 1; it must lie between 0 and 1, both excluded",
        ),
        (
            "beta_end = nan",
            "model.noise.beta_end: is NaN; it must lie between 0 and 1, both excluded",
        ),
        (
            "beta_end = 0.0001",
            "model.noise.beta_end: is 0.0001; it must be at least beta_start, which is 0.00085",
        ),
        (
            "kind = \"cosine\", beta_end = 0.02",
            "model.noise.beta_end: is 0.02; it has no effect because model.noise.kind is cosine, \
            which does not use it: leave it out",
        ),
        (
            "step = 5",
            "model.noise.step: unknown field `step`, expected one of `kind`, `steps`, \
            `beta_start`, `beta_end`, `prediction`; did you mean `steps`?",
        ),
    ] {
        let error = read(&with(&format!("noise = {{ {field} }}"))).unwrap_err();
        assert_eq!(error, format!("job.toml:14: {message}"));
    }
    let autoencoder = with("noise = { prediction = \"v\" }")
        .replace("\"retrinet\"", "\"autoencoder\"")
        .replace("references = 2\n", "");
    assert_eq!(
        read(&autoencoder).unwrap_err(),
        "job.toml:13: model.noise.prediction: is \"v\"; it has no effect because an autoencoder \
        trains on images only, without prompts and noise: leave it out"
    );
}

/// The canonical text of releases without `[model.noise]`. It has all fields for every
/// architecture, including those that the architecture does not read.
const OLD: &str = r#"name = "old"
[resources]
devices_per_worker = 1
device = "cpu"
priority = 0
team = "default"
[resources.workers]
min = 1
max = 1
[data]
dataset = "file:///data"
task = "composition"
pairing = "b"
references = REFERENCES
resolution = 64
prompt_drop = 0.5
face_probability = 0.5
face_enlargement = 1.33
figure_threshold = 0.5
reference_scale = 0.8
multitask_reconstruction = 0.5
holdout = 0.0
seed = 0
[data.clothes]
cut_off = 0.5
cut_off_minimum = 0.3
background = 0.5
[model]
architecture = "ARCHITECTURE"
init = "file:///base"
freeze = [FREEZE]
activation_checkpointing = []
[model.retrieval]
attend = "every-block"
time = "target"
[model.unet]
channels = 16
channel_mult = [1, 2]
res_blocks = 1
attention_levels = [1]
heads = 2
context_dim = 16
latent_channels = 4
norm_groups = 8
[model.autoencoder]
channels = 8
channel_mult = [1, 2, 2]
res_blocks = 1
latent_channels = 4
scaling_factor = 1.0
norm_groups = 8
[model.text_encoder]
width = 16
layers = 1
heads = 2
tokens = 77
[train]
steps = 4
global_batch = 1
micro_batch = 1
learning_rate = 1e-5
warmup = 0
decay = "constant"
clip = 0.0
ema = 0.0
face_loss_weight = 1.0
target_mask_threshold = 0.5
loss_weighting = "epsilon"
precision = "fp32"
on_nonfinite = "stop"
latent_cache_mib = 0
reduction = "fast"
threads = 1
digest_every = 100
[train.learning_rates]
[train.optimizer]
name = "adamw"
beta1 = 0.9
beta2 = 0.999
epsilon = 1e-8
weight_decay = 0.01
[checkpoint]
every = 500
keep = 3
"#;

#[test]
fn texts_of_earlier_releases_mean_what_they_meant() {
    for (architecture, references, freeze) in [
        ("autoencoder", "0", ""),
        ("text-to-image", "0", "\"autoencoder\""),
        (
            "retrinet",
            "4",
            "\"autoencoder\", \"text-encoder\", \"encoder\", \"middle\"",
        ),
    ] {
        let old = OLD
            .replace("ARCHITECTURE", architecture)
            .replace("REFERENCES", references)
            .replace("FREEZE", freeze);
        let new = format!(
            "name = \"old\"\n[data]\ndataset = \"/data\"\nresolution = 64\n[model]\narchitecture = \
             \"{architecture}\"\nsize = \"tiny\"\ninit = \"/base\"\n[train]\nsteps = \
            4\nglobal_batch = 1\n\
             micro_batch = 1\n"
        );
        assert_eq!(read(&old).unwrap(), read(&new).unwrap(), "{architecture}");
    }
}
