//! Raw job.toml -> [`JobSpec`]: defaults, relative paths, and every rule that joins two fields. Pure; all faults are
//! reported together. One file for each section with rules of its own, one for what widths and sides must divide,
//! and one for what would be read by nobody.

mod data;
mod idle;
mod model;
mod shape;
mod train;

use super::raw::{JobToml, ResourcesToml};
use crate::spec::{Architecture, CheckpointPolicy, DeviceKind, JobSpec, Reduction, Resources};
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

    /// Larger networks than `most` are slips: they would fill the memory of every node before anything failed.
    fn count(&mut self, field: &str, value: u32, most: u32) {
        self.positive(field, value.into());
        self.need(value <= most, field, || format!("is {value}; at most {most}"));
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
    let model = model::model(&raw.model, directory, &mut faults);
    let data = data::data(&raw.data, model.architecture, directory, &mut faults);
    let train = train::train(&raw.train, &mut faults);
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

/// Rules that join sections.
fn together(spec: &JobSpec, faults: &mut Faults) {
    for (component, rate) in &spec.train.learning_rates {
        let field = format!("train.learning_rates.{}", kebab(component));
        let model = &spec.model;
        let known = model.architecture.components().contains(component);
        faults.need(known, &field, || {
            let architecture = kebab(&model.architecture);
            format!("is {rate}; {architecture} has no such component: leave it out")
        });
        faults.need(!model.freeze.contains(component), &field, || {
            format!("is {rate}; this component is frozen: leave it out, here or in model.freeze")
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
    shape::shapes(spec, faults);
    idle::idle(spec, faults);
}

/// The word that job.toml uses for a value.
fn kebab(value: &impl serde::Serialize) -> String {
    let text = toml::Value::try_from(value)
        .map(|it| it.to_string())
        .unwrap_or_default();
    text.trim_matches('"').to_owned()
}
