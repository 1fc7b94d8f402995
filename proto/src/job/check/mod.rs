//! Validates a raw job.toml and converts it to a [`JobSpec`]: defaults, relative paths, and all
//! rules that involve two fields. Pure; all faults are reported together. There is a file for each
//! section with rules of its own, and one for divisibility of widths and image sides.

mod build;
pub(crate) mod data;
mod during;
mod evaluate;
mod model;
mod sample;
mod shape;
mod train;

use super::Origin;
use super::faults::{Fault, Faults};
use super::raw::{CheckpointToml, DataToml, JobToml, ModelToml, ResourcesToml, TrainToml};
use crate::id::JobId;
use crate::spec::{CheckpointPolicy, DeviceKind, JobSpec, Reduction, Resources, TrainWork, Work};
use std::collections::BTreeSet;
use std::path::Path;
use toml::{Table, Value};

/// The team of a job that names none.
pub(super) const DEFAULT_TEAM: &str = "default";
const PRIORITY_MAX: i32 = 100;
const WORKERS_MAX: u32 = 4096;
const NAME: &str = "1 to 40 lower-case letters, digits and dashes, starting with a letter";

/// The tables that select a kind of work.
const KINDS: [&str; 4] = ["train", "sample", "evaluate", "build"];

/// Maximum number of jobs that one job waits for.
const AFTER_MAX: usize = 256;

pub(super) fn check(
    raw: JobToml,
    directory: Option<&Path>,
    origin: Origin,
) -> Result<JobSpec, Vec<Fault>> {
    let mut faults = Faults::default();
    name(&raw.name, &mut faults);
    let after = after(&raw.after, &mut faults);
    let spec = work(&raw, (directory, origin), &mut faults).map(|(resources, work)| JobSpec {
        name: raw.name,
        resources,
        after,
        work,
    });
    match spec {
        Some(spec) if faults.0.is_empty() => Ok(spec),
        Some(_) | None => Err(faults.0),
    }
}

/// Whether widths and image sides of a training job fit together; the first fault if they do not.
pub(super) fn sizes(work: &TrainWork) -> Result<(), Fault> {
    let mut faults = Faults::default();
    shape::shapes(work, &mut faults);
    faults.0.into_iter().next().map_or(Ok(()), Err)
}

/// The kind of work that the tables select; None, with a fault, if they select none or several.
fn work(
    raw: &JobToml,
    (directory, origin): (Option<&Path>, Origin),
    faults: &mut Faults,
) -> Option<(Resources, Work)> {
    let mut tables = tables(raw);
    if raw
        .train
        .as_ref()
        .is_some_and(|train| train.evaluate_every.is_some() || train.samples_every.is_some())
    {
        // The plan of the evaluations while the job trains, not a second kind of work.
        tables.retain(|table| *table != "evaluate");
    }
    if 1 < tables.iter().filter(|it| KINDS.contains(it)).count() {
        let second = tables.iter().rfind(|it| KINDS.contains(it));
        let hint = match second {
            Some(&"evaluate") if raw.train.is_some() => {
                "; to evaluate the job's checkpoints while it trains, set train.evaluate_every"
            }
            _ => "",
        };
        faults.add(
            second.copied().unwrap_or_default(),
            format!(
                "is a second kind of work; a job has exactly one of [train], [sample], \
                 [evaluate] and [build], but this one has {}{hint}",
                listed(&tables)
            ),
        );
        return None;
    }
    let mut alone = |name: &str| {
        for table in tables.iter().filter(|table| **table != name) {
            faults.add(
                table,
                format!("belongs to [train], but this job has [{name}]: leave the table out"),
            );
        }
    };
    match (&raw.train, &raw.sample, &raw.evaluate, &raw.build) {
        (Some(train), ..) => {
            let resources = resources(&raw.resources, (1, 1), faults);
            let work = training(train, raw, &resources, (directory, origin), faults)?;
            Some((resources, Work::Train(Box::new(work))))
        }
        (None, Some(sample), ..) => {
            alone("sample");
            let resources = resources(&raw.resources, (1, WORKERS_MAX), faults);
            let work = sample::sample(sample, directory.is_some(), faults);
            Some((resources, Work::Sample(Box::new(work))))
        }
        (None, None, Some(evaluate), _) => {
            alone("evaluate");
            let resources = resources(&raw.resources, (1, WORKERS_MAX), faults);
            let work = evaluate::evaluate(evaluate, directory, faults);
            Some((resources, Work::Evaluate(Box::new(work))))
        }
        (None, None, None, Some(build)) => {
            alone("build");
            let resources = resources(&raw.resources, (1, WORKERS_MAX), faults);
            let work = build::build(build, directory, faults);
            Some((resources, Work::Build(Box::new(work))))
        }
        (None, None, None, None) => {
            let found = if tables.is_empty() {
                "none of them".to_owned()
            } else {
                listed(&tables)
            };
            faults.add(
                "",
                format!(
                    "the kind of work is missing; a job has exactly one of [train], [sample], \
                     [evaluate] and [build], but this one has {found}"
                ),
            );
            None
        }
    }
}

/// The tables about the job's work that are present.
fn tables(raw: &JobToml) -> Vec<&'static str> {
    let present = [
        ("data", raw.data.is_some()),
        ("model", raw.model.is_some()),
        ("train", raw.train.is_some()),
        ("checkpoint", raw.checkpoint.is_some()),
        ("sample", raw.sample.is_some()),
        ("evaluate", raw.evaluate.is_some()),
        ("build", raw.build.is_some()),
    ];
    let present = present.into_iter().filter(|(_, present)| *present);
    present.map(|(table, _)| table).collect()
}

fn listed(tables: &[&str]) -> String {
    let tables: Vec<String> = tables.iter().map(|table| format!("[{table}]")).collect();
    tables.join(", ")
}

fn training(
    train: &TrainToml,
    raw: &JobToml,
    resources: &Resources,
    (directory, origin): (Option<&Path>, Origin),
    faults: &mut Faults,
) -> Option<TrainWork> {
    for (table, present) in [("data", raw.data.is_some()), ("model", raw.model.is_some())] {
        faults.need(present, "train", || {
            format!("requires a table [{table}], which is missing")
        });
    }
    let (data, model): (&DataToml, &ModelToml) = (raw.data.as_ref()?, raw.model.as_ref()?);
    let written = written(data, model, train);
    let model = model::model(model, &written, (directory, origin), faults);
    let defaults = model.architecture.facts().defaults;
    let data = data::data(data, defaults, directory, faults);
    let checkpoint = checkpoint(raw.checkpoint.as_ref(), faults);
    let evaluation = during::during(raw, train, &checkpoint, directory, faults);
    let work = TrainWork {
        data,
        model,
        train: train::train(train, defaults, faults),
        checkpoint,
        evaluation: evaluation.map(Box::new),
    };
    during::check_across_sections(&work, train, faults);
    check_across_sections(&work, resources, faults);
    Some(work)
}

/// The tables that architectures read, with the types of the raw ones.
fn written(data: &DataToml, model: &ModelToml, train: &TrainToml) -> Table {
    fn value(raw: &impl serde::Serialize) -> Value {
        Value::try_from(raw).expect("plain tables, numbers and strings are TOML")
    }
    let tables = [
        ("data", value(data)),
        ("model", value(model)),
        ("train", value(train)),
    ];
    tables
        .into_iter()
        .map(|(name, table)| (name.to_owned(), table))
        .collect()
}

fn checkpoint(raw: Option<&CheckpointToml>, faults: &mut Faults) -> CheckpointPolicy {
    let checkpoint = CheckpointPolicy {
        every: raw.and_then(|raw| raw.every).unwrap_or(500),
        keep: raw.and_then(|raw| raw.keep).unwrap_or(3),
        keep_best: raw
            .and_then(|raw| raw.keep_best.as_deref())
            .and_then(|text| evaluate::expression("checkpoint.keep_best", text, faults)),
    };
    faults.positive("checkpoint.every", checkpoint.every);
    faults.positive("checkpoint.keep", checkpoint.keep.into());
    checkpoint
}

fn after(raw: &[String], faults: &mut Faults) -> Vec<JobId> {
    if AFTER_MAX < raw.len() {
        let found = raw.len();
        faults.add(
            "after",
            format!("names {found} jobs; at most {AFTER_MAX} are allowed"),
        );
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    for job in raw {
        if let Err(error) = crate::wire::job_id(job.clone()) {
            faults.add(
                "after",
                format!("names {job:?}, which is not a job id: {}", error.expected),
            );
        }
        faults.need(seen.insert(job), "after", || {
            format!("names {job} twice: leave one out")
        });
    }
    seen.into_iter().cloned().map(JobId).collect()
}

fn name(name: &str, faults: &mut Faults) {
    faults.need(is_name(name), "name", || {
        format!("is {name:?}; it must be {NAME}")
    });
}

/// Whether a job can have this name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=40).contains(&name.len())
        && name.chars().all(is_allowed)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
}

fn resources(raw: &ResourcesToml, workers: (u32, u32), faults: &mut Faults) -> Resources {
    let (workers_min, workers_max) = raw
        .workers
        .as_ref()
        .map_or(workers, |workers| (workers.min, workers.max));
    let resources = Resources {
        workers_min,
        workers_max,
        devices_per_worker: raw.devices_per_worker.unwrap_or(1),
        device: raw.device.unwrap_or(DeviceKind::Cpu),
        priority: raw.priority.unwrap_or(0),
        team: raw.team.clone().unwrap_or_else(|| DEFAULT_TEAM.to_owned()),
    };
    let priority = resources.priority;
    faults.need(
        (-PRIORITY_MAX..=PRIORITY_MAX).contains(&priority),
        "resources.priority",
        || {
            format!(
                "is {priority}; it must be -{PRIORITY_MAX} to {PRIORITY_MAX} (higher values are \
                scheduled first)"
            )
        },
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
    faults.need(workers_max <= WORKERS_MAX, "resources.workers.max", || {
        format!("is {workers_max}; it must be at most {WORKERS_MAX}")
    });
    resources
}

/// Rules that involve several sections.
fn check_across_sections(spec: &TrainWork, resources: &Resources, faults: &mut Faults) {
    for (component, rate) in &spec.train.learning_rates {
        let field = format!("train.learning_rates.{}", kebab(component));
        let model = &spec.model;
        let facts = model.architecture.facts();
        let known = facts.components.contains(component);
        faults.need(known, &field, || {
            format!(
                "is {rate}; {} has no such component: leave it out",
                facts.name
            )
        });
        faults.need(!model.freeze.contains(component), &field, || {
            format!("is {rate}; this component is frozen: leave it out, here or in model.freeze")
        });
    }
    if spec.train.micro_batch > 0 && spec.train.global_batch > 0 {
        let ranks = resources
            .workers_max
            .saturating_mul(resources.devices_per_worker);
        faults.need(
            ranks <= spec.micro_batches(),
            "resources.workers.max",
            || {
                format!(
                    "{ranks} ranks are more than the {} micro-batches of a step; raise \
                    train.global_batch or lower train.micro_batch",
                    spec.micro_batches()
                )
            },
        );
    }
    let (facts, init) = (spec.model.architecture.facts(), &spec.model.init);
    faults.need(
        init.is_none() || !facts.base_parts.is_empty(),
        "model.init",
        || {
            format!(
                "is {:?}; a {} starts from random weights: leave it out",
                init.as_deref().unwrap_or_default(),
                facts.noun
            )
        },
    );
    let every = spec.train.validate_every;
    faults.need(
        every == 0 || spec.data.holdout > 0.0,
        "train.validate_every",
        || {
            format!(
                "is {every}, but data.holdout is 0; validation needs held-out samples: set \
                data.holdout above 0, such as 0.05, or leave this out"
            )
        },
    );
    let (cache, field) = (spec.train.latent_cache_mib, "train.latent_cache_mib");
    faults.need(
        cache == 0 || spec.model.architecture.diffusion().is_some(),
        field,
        || {
            format!(
                "is {cache}; it must be 0 for {} {}, which has no latents that recur",
                spec.model.architecture.facts().article(),
                spec.model.architecture.facts().noun,
            )
        },
    );
    let exact_on_gpu =
        spec.train.reduction == Reduction::Exact && resources.device == DeviceKind::Cuda;
    faults.need(cache == 0 || !exact_on_gpu, field, || {
        format!(
            "is {cache}; with train.reduction = \"exact\" on cuda it must be 0, because on a GPU \
            the bits of a latent may depend on the other images of the batch"
        )
    });
    faults.need(cache <= 1 << 20, field, || {
        format!("is {cache}; it must be at most 1048576 (1 TiB)")
    });
    shape::shapes(spec, faults);
}

/// The name of a value in job.toml.
fn kebab(value: &impl serde::Serialize) -> String {
    let text = toml::Value::try_from(value)
        .map(|it| it.to_string())
        .unwrap_or_default();
    text.trim_matches('"').to_owned()
}
