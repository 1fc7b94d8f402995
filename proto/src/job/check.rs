//! Raw job.toml -> [`JobSpec`]: defaults, relative paths, and every rule that joins two fields. Pure; all faults are
//! reported together.

use super::raw::{
    AutoencoderToml, DataToml, JobToml, ModelToml, OptimizerToml, ResourcesToml, TextEncoderToml, TrainToml,
    UNetToml,
};
use crate::place::nearest;
use crate::size;
use crate::spec::{
    Architecture, AutoencoderConfig, CheckpointPolicy, Component, Data, Decay, DeviceKind, JobSpec,
    LossWeighting, Model, OnNonfinite, Optimizer, Pairing, Precision, Reduction, Resources, Retrieval, Task,
    TextEncoderConfig, Train, UNetConfig,
};
use std::path::Path;

const PRIORITY_MAX: i32 = 100;
const NAME: &str = "1 to 40 lower-case letters, digits and dashes, a letter first";

/// Something wrong with one field.
pub(super) struct Fault {
    pub(super) field: String,
    pub(super) message: String,
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, field: &str, message: impl Into<String>) {
        self.0.push(Fault {
            field: field.to_owned(),
            message: message.into(),
        });
    }

    /// Notes a fault unless `good`.
    fn need(&mut self, good: bool, field: &str, message: impl FnOnce() -> String) {
        if !good {
            self.add(field, message());
        }
    }

    fn share(&mut self, field: &str, value: f64) {
        self.need((0.0..=1.0).contains(&value), field, || {
            format!("is {value}; a share lies between 0 and 1")
        });
    }

    fn positive(&mut self, field: &str, value: u64) {
        self.need(value > 0, field, || "is 0; it must be at least 1".into());
    }

    fn rate(&mut self, field: &str, value: f64) {
        let good = value.is_finite() && value >= 0.0;
        self.need(good, field, || {
            format!("is {value}; it must be a number of at least 0")
        });
    }
}

pub(super) fn check(raw: JobToml, directory: Option<&Path>) -> Result<JobSpec, Vec<Fault>> {
    let mut faults = Faults::default();
    name(&raw.name, &mut faults);
    let resources = resources(&raw.resources, &mut faults);
    let model = model(&raw.model, directory, &mut faults);
    let data = data(&raw.data, model.architecture, directory, &mut faults);
    let train = train(&raw.train, &mut faults);
    let checkpoint = CheckpointPolicy {
        every: raw.checkpoint.every.unwrap_or(500),
        keep: raw.checkpoint.keep.unwrap_or(3),
    };
    faults.positive("checkpoint.every", checkpoint.every);
    faults.positive("checkpoint.keep", checkpoint.keep.into());
    let spec = JobSpec {
        name: raw.name,
        resources,
        data,
        model,
        train,
        checkpoint,
    };
    together(&spec, &mut faults);
    if faults.0.is_empty() {
        Ok(spec)
    } else {
        Err(faults.0)
    }
}

fn name(name: &str, faults: &mut Faults) {
    faults.need(is_name(name), "name", || {
        format!("is {name:?}; it must be {NAME}")
    });
}

fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=40).contains(&name.len())
        && name.chars().all(good)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
}

fn resources(raw: &ResourcesToml, faults: &mut Faults) -> Resources {
    let (workers_min, workers_max) = raw
        .workers
        .as_ref()
        .map_or((1, 1), |workers| (workers.min, workers.max));
    let resources = Resources {
        workers_min,
        workers_max,
        devices_per_worker: raw.devices_per_worker.unwrap_or(1),
        device: raw.device.unwrap_or(DeviceKind::Cpu),
        priority: raw.priority.unwrap_or(0),
        team: raw.team.clone().unwrap_or_else(|| "default".to_owned()),
    };
    let priority = resources.priority;
    faults.need(
        (-PRIORITY_MAX..=PRIORITY_MAX).contains(&priority),
        "resources.priority",
        || format!("is {priority}; it must be -{PRIORITY_MAX} to {PRIORITY_MAX}, and higher goes first"),
    );
    faults.need(is_name(&resources.team), "resources.team", || {
        format!("is {:?}; it must be {NAME}", resources.team)
    });
    faults.positive("resources.workers.min", workers_min.into());
    faults.need(workers_max >= workers_min, "resources.workers.max", || {
        format!("is {workers_max}; it must be at least workers.min, which is {workers_min}")
    });
    faults.need(
        (1..=1024).contains(&resources.devices_per_worker),
        "resources.devices_per_worker",
        || {
            format!(
                "is {}; a worker has 1 to 1024 devices",
                resources.devices_per_worker
            )
        },
    );
    faults.need(workers_max <= 4096, "resources.workers.max", || {
        format!("is {workers_max}; at most 4096 workers")
    });
    resources
}

fn data(raw: &DataToml, architecture: Architecture, directory: Option<&Path>, faults: &mut Faults) -> Data {
    let retrinet = architecture == Architecture::Retrinet;
    let data = Data {
        dataset: absolute("data.dataset", &raw.dataset, directory, faults),
        task: raw.task.unwrap_or(Task::Composition),
        pairing: raw.pairing.unwrap_or(Pairing::B),
        references: raw.references.unwrap_or(if retrinet { 4 } else { 0 }),
        resolution: raw.resolution,
        prompt_drop: raw.prompt_drop.unwrap_or(0.5),
        face_probability: raw.face_probability.unwrap_or(0.5),
        face_enlargement: raw.face_enlargement.unwrap_or(1.33),
        figure_threshold: raw.figure_threshold.unwrap_or(0.5),
        clothes: raw.clothes.unwrap_or_default(),
        reference_scale: raw.reference_scale.unwrap_or(0.8),
        multitask_reconstruction: raw.multitask_reconstruction.unwrap_or(0.5),
        holdout: raw.holdout.unwrap_or(0.0),
        seed: raw.seed.unwrap_or(0),
    };
    faults.share("data.prompt_drop", data.prompt_drop);
    faults.share("data.face_probability", data.face_probability);
    faults.share("data.figure_threshold", data.figure_threshold);
    faults.share("data.clothes.cut_off", data.clothes.cut_off);
    faults.share("data.clothes.cut_off_minimum", data.clothes.cut_off_minimum);
    faults.share("data.clothes.background", data.clothes.background);
    faults.need(
        (0.1..=1.0).contains(&data.reference_scale),
        "data.reference_scale",
        || format!("is {}; it must lie between 0.1 and 1", data.reference_scale),
    );
    faults.share("data.multitask_reconstruction", data.multitask_reconstruction);
    faults.need((0.0..1.0).contains(&data.holdout), "data.holdout", || {
        format!(
            "is {}; it must be at least 0 and below 1, or nothing is left to train on",
            data.holdout
        )
    });
    faults.need(
        (1.0..=4.0).contains(&data.face_enlargement),
        "data.face_enlargement",
        || format!("is {}; it must lie between 1 and 4", data.face_enlargement),
    );
    faults.need(data.references <= 64, "data.references", || {
        format!("is {}; at most 64 are supported", data.references)
    });
    faults.need(!retrinet || data.references > 0, "data.references", || {
        "is 0; retrinet draws a target from references, so at least 1 is needed (the paper uses 4)".into()
    });
    faults.need(data.resolution <= 4096, "data.resolution", || {
        format!("is {}; at most 4096", data.resolution)
    });
    data
}

/// A URL as it is, a path made absolute as `file://`.
fn absolute(field: &str, value: &str, directory: Option<&Path>, faults: &mut Faults) -> String {
    if let Some((scheme, rest)) = value.split_once("://") {
        faults.need(matches!(scheme, "file" | "s3"), field, || {
            format!("is {value:?}; the scheme must be file:// or s3://")
        });
        faults.need(!rest.is_empty(), field, || {
            format!("is {value:?}; nothing follows the scheme")
        });
        return value.to_owned();
    }
    if value.is_empty() {
        faults.add(field, "is empty; it must be a path, file:///… or s3://bucket/…");
    }
    if Path::new(value).is_absolute() {
        return file_url(Path::new(value));
    }
    let Some(directory) = directory else {
        faults.add(
            field,
            format!("is {value:?}; here it must be file:///… or s3://bucket/…"),
        );
        return value.to_owned();
    };
    file_url(&normal(&directory.join(value)))
}

/// What has a meaning in a URL and none in a path is written as its code.
fn file_url(path: &Path) -> String {
    let text = path.display().to_string();
    format!(
        "file://{}",
        text.replace('%', "%25").replace('#', "%23").replace('?', "%3F")
    )
}

/// Takes `.` and `..` out of a path, as text.
fn normal(path: &Path) -> std::path::PathBuf {
    use std::path::Component as Part;
    let mut out = std::path::PathBuf::new();
    for part in path.components() {
        match part {
            Part::CurDir => {}
            Part::ParentDir => {
                out.pop();
            }
            Part::Prefix(_) | Part::RootDir | Part::Normal(_) => out.push(part),
        }
    }
    out
}

fn model(raw: &ModelToml, directory: Option<&Path>, faults: &mut Faults) -> Model {
    let size = raw.size.as_deref().unwrap_or("small");
    let (unet, autoencoder, text_encoder) = size::named(size).unwrap_or_else(|| {
        let hint = nearest(size, &size::NAMES)
            .map(|it| format!("; did you mean {it:?}?"))
            .unwrap_or_default();
        faults.add(
            "model.size",
            format!("is {size:?}; it must be one of {}{hint}", size::NAMES.join(", ")),
        );
        size::named("small").expect("the default size exists")
    });
    let architecture = raw.architecture;
    let mut freeze = raw
        .freeze
        .clone()
        .unwrap_or_else(|| architecture.frozen_by_default().to_vec());
    freeze.sort();
    freeze.dedup();
    for component in &freeze {
        faults.need(
            architecture.components().contains(component),
            "model.freeze",
            || {
                format!(
                    "names {}, which {} does not have",
                    kebab(component),
                    kebab(&architecture)
                )
            },
        );
    }
    faults.need(
        architecture == Architecture::Autoencoder || freeze.contains(&Component::Autoencoder),
        "model.freeze",
        || "leaves out autoencoder; the noise loss cannot train it, so it must be named".into(),
    );
    faults.need(
        architecture.components().iter().any(|it| !freeze.contains(it)),
        "model.freeze",
        || "names every component; nothing is left to train".into(),
    );
    Model {
        architecture,
        unet: unet_over(unet, &raw.unet),
        autoencoder: autoencoder_over(autoencoder, &raw.autoencoder),
        text_encoder: text_over(text_encoder, &raw.text_encoder),
        init: raw
            .init
            .as_ref()
            .map(|init| absolute("model.init", init, directory, faults)),
        activation_checkpointing: checkpointed(raw, &freeze, faults),
        retrieval: retrieval(raw, faults),
        freeze,
    }
}

/// Only what a gradient passes through keeps activations: what is trained, and the decoder, through which it reaches all
/// that is trained before it.
fn checkpointed(raw: &ModelToml, freeze: &[Component], faults: &mut Faults) -> Vec<Component> {
    let mut components = raw.activation_checkpointing.clone().unwrap_or_default();
    components.sort();
    components.dedup();
    let field = "model.activation_checkpointing";
    for component in &components {
        let known = raw.architecture.components().contains(component);
        faults.need(known, field, || {
            format!(
                "names {}, which {} does not have",
                kebab(component),
                kebab(&raw.architecture)
            )
        });
        let passed = !freeze.contains(component) || *component == Component::Decoder;
        faults.need(!known || passed, field, || {
            format!(
                "names {}, which is frozen and keeps no activations",
                kebab(component)
            )
        });
    }
    components
}

fn retrieval(raw: &ModelToml, faults: &mut Faults) -> Retrieval {
    let given = raw.retrieval.unwrap_or_default();
    let fits = raw.architecture == Architecture::Retrinet || given == Retrieval::default();
    faults.need(fits, "model.retrieval", || {
        format!(
            "is for retrinet; {} has no retrieval block",
            kebab(&raw.architecture)
        )
    });
    given
}

fn unet_over(base: UNetConfig, raw: &UNetToml) -> UNetConfig {
    UNetConfig {
        channels: raw.channels.unwrap_or(base.channels),
        channel_mult: raw.channel_mult.clone().unwrap_or(base.channel_mult),
        res_blocks: raw.res_blocks.unwrap_or(base.res_blocks),
        attention_levels: raw.attention_levels.clone().unwrap_or(base.attention_levels),
        heads: raw.heads.unwrap_or(base.heads),
        context_dim: raw.context_dim.unwrap_or(base.context_dim),
        latent_channels: raw.latent_channels.unwrap_or(base.latent_channels),
        norm_groups: raw.norm_groups.unwrap_or(base.norm_groups),
    }
}

fn autoencoder_over(base: AutoencoderConfig, raw: &AutoencoderToml) -> AutoencoderConfig {
    AutoencoderConfig {
        channels: raw.channels.unwrap_or(base.channels),
        channel_mult: raw.channel_mult.clone().unwrap_or(base.channel_mult),
        res_blocks: raw.res_blocks.unwrap_or(base.res_blocks),
        latent_channels: raw.latent_channels.unwrap_or(base.latent_channels),
        scaling_factor: raw.scaling_factor.unwrap_or(base.scaling_factor),
        norm_groups: raw.norm_groups.unwrap_or(base.norm_groups),
    }
}

fn text_over(base: TextEncoderConfig, raw: &TextEncoderToml) -> TextEncoderConfig {
    TextEncoderConfig {
        width: raw.width.unwrap_or(base.width),
        layers: raw.layers.unwrap_or(base.layers),
        heads: raw.heads.unwrap_or(base.heads),
        tokens: raw.tokens.unwrap_or(base.tokens),
    }
}

fn train(raw: &TrainToml, faults: &mut Faults) -> Train {
    let train = Train {
        steps: raw.steps,
        global_batch: raw.global_batch,
        micro_batch: raw.micro_batch,
        optimizer: optimizer(&raw.optimizer, faults),
        learning_rate: raw.learning_rate.unwrap_or(1e-5),
        learning_rates: raw.learning_rates.clone(),
        warmup: raw.warmup.unwrap_or(0),
        decay: raw.decay.unwrap_or(Decay::Constant),
        clip: raw.clip.filter(|clip| *clip != 0.0),
        ema: raw.ema.filter(|ema| *ema != 0.0),
        face_loss_weight: raw.face_loss_weight.unwrap_or(1.0),
        target_mask_threshold: raw.target_mask_threshold.unwrap_or(0.5),
        loss_weighting: raw.loss_weighting.unwrap_or(LossWeighting::Epsilon),
        precision: raw.precision.unwrap_or(Precision::Fp32),
        on_nonfinite: raw.on_nonfinite.unwrap_or(OnNonfinite::Stop),
        latent_cache_mib: raw.latent_cache_mib.unwrap_or(0),
        reduction: raw.reduction.unwrap_or(Reduction::Fast),
        threads: raw.threads.unwrap_or(1),
        digest_every: raw.digest_every.unwrap_or(100),
    };
    faults.positive("train.steps", train.steps);
    faults.positive("train.micro_batch", train.micro_batch.into());
    faults.positive("train.global_batch", train.global_batch.into());
    let divides = train.micro_batch == 0 || train.global_batch.is_multiple_of(train.micro_batch);
    faults.need(divides, "train.global_batch", || {
        format!(
            "is {}; it must be a multiple of train.micro_batch, which is {}",
            train.global_batch, train.micro_batch
        )
    });
    faults.rate("train.learning_rate", train.learning_rate);
    for (component, rate) in &train.learning_rates {
        faults.rate(&format!("train.learning_rates.{}", kebab(component)), *rate);
    }
    faults.rate("train.clip", train.clip.unwrap_or(0.0));
    let ema = train.ema.unwrap_or(0.0);
    faults.need((0.0..1.0).contains(&ema), "train.ema", || {
        format!("is {ema}; it must be at least 0 (no average) and below 1, such as 0.9999")
    });
    faults.rate("train.face_loss_weight", train.face_loss_weight);
    let threshold = train.target_mask_threshold;
    faults.need(
        (0.0..1.0).contains(&threshold),
        "train.target_mask_threshold",
        || format!("is {threshold}; it must be at least 0 and below 1"),
    );
    faults.need((1..=256).contains(&train.threads), "train.threads", || {
        format!("is {}; a rank computes with 1 to 256 threads", train.threads)
    });
    train
}

fn optimizer(raw: &OptimizerToml, faults: &mut Faults) -> Optimizer {
    let (beta1, beta2) = (raw.beta1.unwrap_or(0.9), raw.beta2.unwrap_or(0.999));
    for (field, beta) in [("train.optimizer.beta1", beta1), ("train.optimizer.beta2", beta2)] {
        faults.need((0.0..1.0).contains(&beta), field, || {
            format!("is {beta}; it must be at least 0 and below 1")
        });
    }
    let (epsilon, weight_decay) = (raw.epsilon.unwrap_or(1e-8), raw.weight_decay.unwrap_or(1e-2));
    faults.need(epsilon > 0.0, "train.optimizer.epsilon", || {
        format!("is {epsilon}; it must be above 0")
    });
    faults.rate("train.optimizer.weight_decay", weight_decay);
    Optimizer::AdamW {
        beta1,
        beta2,
        epsilon,
        weight_decay,
    }
}

/// Rules that join sections.
fn together(spec: &JobSpec, faults: &mut Faults) {
    for component in spec.train.learning_rates.keys() {
        let field = format!("train.learning_rates.{}", kebab(component));
        faults.need(
            spec.model.architecture.components().contains(component),
            &field,
            || format!("{} has no such component", kebab(&spec.model.architecture)),
        );
        faults.need(!spec.model.freeze.contains(component), &field, || {
            "this component is frozen".into()
        });
    }
    if spec.train.micro_batch > 0 && spec.train.global_batch > 0 {
        let ranks = spec
            .resources
            .workers_max
            .saturating_mul(spec.resources.devices_per_worker);
        faults.need(ranks <= spec.micro_batches(), "resources.workers.max", || {
            format!(
                "{ranks} ranks are more than the {} micro-batches of a step; raise train.global_batch or lower train.micro_batch",
                spec.micro_batches()
            )
        });
    }
    let (cache, field) = (spec.train.latent_cache_mib, "train.latent_cache_mib");
    faults.need(
        cache == 0 || spec.model.architecture != Architecture::Autoencoder,
        field,
        || format!("is {cache}; an autoencoder in training gives other latents after every step"),
    );
    let exact_on_gpu = spec.train.reduction == Reduction::Exact && spec.resources.device == DeviceKind::Cuda;
    faults.need(cache == 0 || !exact_on_gpu, field, || {
        format!(
            "is {cache}; with train.reduction = \"exact\" on cuda it must be 0, because a GPU may give a picture other \
             bits in other company"
        )
    });
    faults.need(cache <= 1 << 20, field, || {
        format!("is {cache}; at most 1048576 (1 TiB)")
    });
    shapes(spec, faults);
}

/// Widths, heads, groups and resolution.
fn shapes(spec: &JobSpec, faults: &mut Faults) {
    let autoencoder = &spec.model.autoencoder;
    levels(
        "model.autoencoder",
        autoencoder.channels,
        &autoencoder.channel_mult,
        autoencoder.norm_groups,
        faults,
    );
    faults.positive("model.autoencoder.res_blocks", autoencoder.res_blocks.into());
    faults.positive(
        "model.autoencoder.latent_channels",
        autoencoder.latent_channels.into(),
    );
    let scaling = autoencoder.scaling_factor;
    faults.need(
        scaling.is_finite() && scaling > 0.0,
        "model.autoencoder.scaling_factor",
        || format!("is {scaling}; it must be a number over 0"),
    );
    let factor = autoencoder.channel_mult.len().saturating_sub(1);
    let mut side_multiple = 1_u32 << factor.min(20);
    if spec.model.architecture != Architecture::Autoencoder {
        unet_shapes(spec, faults);
        side_multiple <<= spec.model.unet.channel_mult.len().saturating_sub(1).min(10);
    }
    let resolution = spec.data.resolution;
    faults.need(
        resolution > 0 && resolution.is_multiple_of(side_multiple),
        "data.resolution",
        || format!("is {resolution}; this model takes positive multiples of {side_multiple}"),
    );
}

fn unet_shapes(spec: &JobSpec, faults: &mut Faults) {
    let (unet, text) = (&spec.model.unet, &spec.model.text_encoder);
    levels(
        "model.unet",
        unet.channels,
        &unet.channel_mult,
        unet.norm_groups,
        faults,
    );
    faults.positive("model.unet.res_blocks", unet.res_blocks.into());
    for level in &unet.attention_levels {
        let mult = unet.channel_mult.get(*level as usize);
        faults.need(mult.is_some(), "model.unet.attention_levels", || {
            format!(
                "names level {level}; there are levels 0 to {}",
                unet.channel_mult.len().saturating_sub(1)
            )
        });
    }
    let widths = unet
        .channel_mult
        .iter()
        .map(|mult| unet.channels.saturating_mul(*mult));
    let indivisible = |width: &u32| unet.heads == 0 || !width.is_multiple_of(unet.heads);
    if let Some(width) = widths.into_iter().find(indivisible) {
        faults.add(
            "model.unet.heads",
            format!(
                "is {}; it must divide every width, and {width} is one",
                unet.heads
            ),
        );
    }
    faults.need(unet.channels.is_multiple_of(2), "model.unet.channels", || {
        format!("is {}; it must be even for the timestep embedding", unet.channels)
    });
    faults.need(unet.context_dim == text.width, "model.unet.context_dim", || {
        format!(
            "is {}; it must equal model.text_encoder.width, which is {}",
            unet.context_dim, text.width
        )
    });
    let latent_channels = spec.model.autoencoder.latent_channels;
    faults.need(
        unet.latent_channels == latent_channels,
        "model.unet.latent_channels",
        || {
            format!(
                "is {}; it must equal model.autoencoder.latent_channels, which is {latent_channels}",
                unet.latent_channels
            )
        },
    );
    faults.positive("model.text_encoder.width", text.width.into());
    faults.positive("model.text_encoder.layers", text.layers.into());
    faults.need(
        text.heads > 0 && text.width.is_multiple_of(text.heads),
        "model.text_encoder.heads",
        || {
            format!(
                "is {}; it must divide model.text_encoder.width, which is {}",
                text.heads, text.width
            )
        },
    );
    faults.need(
        (2..=1024).contains(&text.tokens),
        "model.text_encoder.tokens",
        || format!("is {}; a prompt has 2 to 1024 tokens", text.tokens),
    );
}

fn levels(table: &str, channels: u32, mult: &[u32], groups: u32, faults: &mut Faults) {
    faults.need(
        (1..=8).contains(&mult.len()),
        &format!("{table}.channel_mult"),
        || format!("has {} entries; 1 to 8 levels are possible", mult.len()),
    );
    faults.need(
        (1..=4096).contains(&channels),
        &format!("{table}.channels"),
        || format!("is {channels}; it must lie between 1 and 4096"),
    );
    faults.need(!mult.contains(&0), &format!("{table}.channel_mult"), || {
        "names 0; every level is at least as wide as 1 times the channels".into()
    });
    let indivisible = |width: &u32| groups == 0 || !width.is_multiple_of(groups);
    if let Some(width) = mult
        .iter()
        .map(|entry| channels.saturating_mul(*entry))
        .find(indivisible)
    {
        faults.add(
            &format!("{table}.norm_groups"),
            format!("is {groups}; it must divide every width, and {width} is one"),
        );
    }
}

/// The word that job.toml uses for a value.
fn kebab(value: &impl serde::Serialize) -> String {
    let text = toml::Value::try_from(value)
        .map(|it| it.to_string())
        .unwrap_or_default();
    text.trim_matches('"').to_owned()
}
