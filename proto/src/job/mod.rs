//! Parses job.toml into a [`JobSpec`], with errors that name file, line, field, value and what is
//! allowed, and writes it back. No I/O: the caller checks whether the data set exists. Called by
//! `coordinator submit`, by the coordinator again, and by ranks.

mod admission;
pub(crate) mod check;
pub mod defaults;
pub mod evaluation;
pub(crate) mod faults;
pub mod overrides;
mod raw;

use crate::architecture::fields::Written;
use crate::duration;
use crate::id::JobId;
use crate::limits::{JOB_ERRORS, TEXT_BYTES, cut};
use crate::location;
use crate::rating::Ratings;
use crate::sample::{ImageSource, NamedReference, SampleWork, Weights};
use crate::spec::{JobSpec, Optimizer, PromptOrder, Resources, Train, TrainWork, Work};
pub use admission::admit;
pub use check::is_name;
use faults::Fault;
use raw::{
    BuildToml, CheckpointToml, JobToml, OptimizerName, OptimizerToml, ReferenceToml, ResourcesToml,
    SampleToml, TrainToml, TrainingToml, WeightsToml, WorkersToml,
};
use std::fmt;
use std::path::Path;

/// The value of `train.time_limit` without a limit.
const NO_LIMIT: &str = "none";

/// All errors of one job.toml, in line order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobErrors(pub Vec<JobError>);

/// An error at one field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobError {
    pub file: String,
    /// 1-based.
    pub line: usize,
    /// Dotted, for instance `train.global_batch`; empty if the text is not TOML.
    pub field: String,
    /// The value and what is allowed.
    pub message: String,
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for JobErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for JobErrors {}

/// Parses a job. `file` is only used in messages. Paths without a scheme are relative to
/// `directory`. Without a directory they are rejected, because the coordinator cannot know the base
/// of relative paths.
pub fn parse(file: &str, text: &str, directory: Option<&Path>) -> Result<JobSpec, JobErrors> {
    parse_from(file, text, directory, Origin::Submitted)
}

/// Where a job's text comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A user: what the text does not set has this release's default.
    Submitted,
    /// A coordinator, perhaps of an older release: what the text does not set has the meaning that
    /// it had in that release.
    Stored,
}

fn parse_from(
    file: &str,
    text: &str,
    directory: Option<&Path>,
    origin: Origin,
) -> Result<JobSpec, JobErrors> {
    let admitted = origin == Origin::Submitted;
    if admitted {
        admission::check_text(text).map_err(|fault| located(file, "", vec![fault]))?;
    }
    let raw: JobToml = toml::from_str(text).map_err(|error| {
        let (line, field, message) = location::of_toml_error(text, &error);
        JobErrors(vec![JobError {
            file: file.to_owned(),
            line,
            field: cut(&field, TEXT_BYTES),
            message: cut(&message, TEXT_BYTES),
        }])
    })?;
    let spec =
        check::check(raw, directory, origin).map_err(|faults| located(file, text, faults))?;
    if admitted {
        admission::check(text, &spec).map_err(|faults| located(file, text, faults))?;
    }
    Ok(spec)
}

/// The faults with their lines in the text, in line order. They quote what a user wrote, so their
/// number and length are bounded.
fn located(file: &str, text: &str, mut faults: Vec<Fault>) -> JobErrors {
    let more = faults.len().saturating_sub(JOB_ERRORS);
    faults.truncate(JOB_ERRORS);
    let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
    let lines = location::lines_of(text, &fields);
    let at = |line, field: &str, message: &str| JobError {
        file: file.to_owned(),
        line,
        field: field.to_owned(),
        message: cut(message, TEXT_BYTES),
    };
    let errors = lines.into_iter().zip(&faults);
    let mut errors: Vec<JobError> = errors
        .map(|(line, fault)| at(line, &fault.field, &fault.message))
        .collect();
    errors.sort_by_key(|error| error.line);
    if 0 < more {
        let last = errors.last().map_or(1, |error| error.line);
        errors.push(at(last, "", &format!("{more} more errors are not listed")));
    }
    JobErrors(errors)
}

/// Parses a job that the coordinator has stored or sent: the output of [`to_toml`], possibly of an
/// older release.
pub fn parse_stored(job: &JobId, text: &str) -> Result<JobSpec, JobErrors> {
    parse_from(&format!("job.toml of {job}"), text, None, Origin::Stored)
}

/// Parses a training job that the coordinator has stored, or one in its form. Another kind of work
/// is an error at its table.
pub fn parse_training(file: &str, text: &str) -> Result<TrainWork, JobErrors> {
    match parse_from(file, text, None, Origin::Stored)?.work {
        Work::Train(work) => Ok(*work),
        other @ (Work::Sample(_) | Work::Evaluate(_) | Work::Build(_)) => {
            Err(JobErrors(vec![error_at(
                file,
                text,
                other.table(),
                "this job does not train; only a job with [train] has weights of its own"
                    .to_owned(),
            )]))
        }
    }
}

/// Whether widths and image sides of a training job fit together, for a job whose resolution was
/// changed after it was parsed.
///
/// # Errors
/// Names the first field that does not fit.
pub fn check_sizes(work: &TrainWork) -> Result<(), String> {
    check::sizes(work).map_err(|Fault { field, message }| format!("{field} {message}"))
}

/// The error for a field that parsed correctly and was found invalid later, with its line.
#[must_use]
pub fn error_at(file: &str, text: &str, field: &str, message: String) -> JobError {
    JobError {
        file: file.to_owned(),
        line: location::line_of(text, field),
        field: field.to_owned(),
        message,
    }
}

/// The canonical job.toml, with every field written out. `parse(to_toml(spec)) == spec`.
#[must_use]
pub fn to_toml(spec: &JobSpec) -> String {
    let mut raw = JobToml {
        name: spec.name.clone(),
        after: spec.after.iter().map(|job| job.0.clone()).collect(),
        resources: resources_toml(&spec.resources),
        data: None,
        model: None,
        train: None,
        checkpoint: None,
        sample: None,
        evaluate: None,
        build: None,
    };
    match &spec.work {
        Work::Train(work) => {
            let tables = training_toml(work);
            raw.data = Some(tables.data);
            raw.model = Some(tables.model);
            raw.train = Some(tables.train);
            raw.checkpoint = Some(CheckpointToml {
                every: Some(work.checkpoint.every),
                keep: Some(work.checkpoint.keep),
                keep_best: work.checkpoint.keep_best.clone().map(Into::into),
            });
            raw.evaluate = work.evaluation.as_deref().map(evaluation::during_toml);
        }
        Work::Sample(work) => raw.sample = Some(sample_toml(work)),
        Work::Evaluate(work) => raw.evaluate = Some(evaluation::evaluate_toml(work)),
        Work::Build(work) => {
            raw.build = Some(BuildToml {
                stage: work.key.stage,
                key: work.key.key.clone(),
                out: work.out.clone(),
                units: Some(work.units),
            });
        }
    }
    toml::to_string(&raw).expect("plain tables, numbers and strings are TOML")
}

/// The tables of a training job: the common fields and those that its architecture reads.
fn training_toml(work: &TrainWork) -> TrainingToml {
    let (data, model) = (&work.data, &work.model);
    let mut written = Written::default();
    written.put("train", train_toml(&work.train));
    model.architecture.write(&mut written);
    written.put("data.dataset", &data.dataset);
    written.put("data.resolution", data.resolution);
    written.put("data.prompt_drop", data.prompt_drop);
    // Older releases do not know the field, so only jobs that use it name it.
    if data.looks_drop != 0.0 {
        written.put("data.looks_drop", data.looks_drop);
    }
    if data.prompt_order != PromptOrder::default() {
        written.put("data.prompt_order", data.prompt_order);
    }
    written.put("data.holdout", data.holdout);
    // Older releases do not know the field, so only jobs that use it name it.
    if data.ratings != Ratings::default() {
        written.put("data.ratings", &data.ratings);
    }
    written.put("data.seed", data.seed);
    written.put("model.architecture", model.architecture.kind());
    if let Some(init) = &model.init {
        written.put("model.init", init);
    }
    written.put("model.freeze", &model.freeze);
    written.put(
        "model.activation_checkpointing",
        &model.activation_checkpointing,
    );
    if let Some(evaluation) = &work.evaluation {
        written.put("train.evaluate_every", evaluation.every);
        written.put("train.evaluate_on", evaluation.on);
    }
    let tables = toml::Value::Table(written.into_table());
    tables
        .try_into()
        .expect("the written fields have the types of the raw tables")
}

fn resources_toml(resources: &Resources) -> ResourcesToml {
    ResourcesToml {
        workers: Some(WorkersToml {
            min: resources.workers_min,
            max: resources.workers_max,
        }),
        devices_per_worker: Some(resources.devices_per_worker),
        device: Some(resources.device),
        priority: Some(resources.priority),
        team: Some(resources.team.clone()),
    }
}

fn sample_toml(work: &SampleWork) -> SampleToml {
    SampleToml {
        job: work.job.0.clone(),
        weights: Some(weights_toml(work.weights)),
        count: Some(work.count),
        method: Some(work.method),
        steps: Some(work.steps),
        guidance: Some(work.guidance),
        reference_guidance: Some(work.reference_guidance),
        seeds: Some(work.seeds.clone()),
        prompt: Some(work.prompt),
        prompts: work.prompts.clone(),
        // Older releases do not know the field, so only jobs that use it name it.
        negative_prompt: Some(work.negative_prompt.clone()).filter(|prompt| !prompt.is_empty()),
        knobs: Some(work.knobs.clone()).filter(|knobs| !knobs.is_empty()),
        swap_references: Some(true).filter(|_| work.swap_references),
        task: work.task,
        pairing: work.pairing,
        attention: work.attention.clone(),
        on_failed_unit: Some(work.on_failed_unit),
        references: work.references.iter().map(reference_toml).collect(),
    }
}

fn weights_toml(weights: Weights) -> WeightsToml {
    match weights {
        Weights::Newest => WeightsToml::Word("newest".into()),
        Weights::Base => WeightsToml::Word("base".into()),
        Weights::Step(step) => WeightsToml::Step(step.0),
    }
}

fn reference_toml(reference: &NamedReference) -> ReferenceToml {
    let concept = reference.concept;
    match &reference.from {
        ImageSource::Sample { id } => ReferenceToml {
            concept,
            id: Some(id.clone()),
            ..ReferenceToml::default()
        },
        ImageSource::File {
            name,
            sha256,
            face_box,
            mask,
        } => {
            let digest = |sha256: &String| Some(sha256.clone()).filter(|it| !it.is_empty());
            ReferenceToml {
                concept,
                id: None,
                file: Some(name.clone()),
                sha256: digest(sha256),
                face_box: *face_box,
                mask: mask.as_ref().map(|mask| mask.name.clone()),
                mask_sha256: mask.as_ref().and_then(|mask| digest(&mask.sha256)),
            }
        }
    }
}

fn train_toml(train: &Train) -> TrainToml {
    let Optimizer::AdamW {
        beta1,
        beta2,
        epsilon,
        weight_decay,
    } = train.optimizer;
    TrainToml {
        steps: train.steps,
        global_batch: train.global_batch,
        micro_batch: train.micro_batch,
        learning_rate: Some(train.learning_rate),
        learning_rates: train.learning_rates.clone(),
        warmup: Some(train.warmup),
        decay: Some(train.decay),
        clip: Some(train.clip.unwrap_or(0.0)),
        ema: Some(train.ema.unwrap_or(0.0)),
        // Written by the architecture.
        face_loss_weight: None,
        target_mask_threshold: None,
        loss_weighting: None,
        edge_loss_weight: None,
        kl_loss_weight: None,
        mask_loss: None,
        localization: None,
        precision: Some(train.precision),
        on_nonfinite: Some(train.on_nonfinite),
        latent_cache_mib: Some(train.latent_cache_mib),
        reduction: Some(train.reduction),
        threads: Some(train.threads),
        digest_every: Some(train.digest_every),
        validate_every: Some(train.validate_every),
        validate_samples: Some(train.validate_samples),
        time_limit: Some(train.time_limit.map_or(NO_LIMIT.into(), duration::format)),
        // Written where the job uses them.
        evaluate_every: None,
        samples_every: None,
        evaluate_on: None,
        optimizer: OptimizerToml {
            name: Some(OptimizerName::AdamW),
            beta1: Some(beta1),
            beta2: Some(beta2),
            epsilon: Some(epsilon),
            weight_decay: Some(weight_decay),
        },
    }
}

#[cfg(test)]
mod tests;
