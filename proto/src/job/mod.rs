//! job.toml: text -> [`JobSpec`] with errors that name file, line, field, value and what is allowed, and back. No I/O:
//! whether the data set is there is for the caller to find out. Called by `coordinator submit`, by the coordinator
//! again, and by ranks.

mod check;
mod raw;

use crate::id::JobId;
use crate::place;
use crate::sample::{NamedReference, PictureSource, SampleWork, Weights};
use crate::spec::{Data, JobSpec, Model, Optimizer, Resources, Train, TrainWork, Work};
use raw::{
    AutoencoderToml, CheckpointToml, DataToml, JobToml, ModelToml, OptimizerName, OptimizerToml,
    ReferenceToml, ResourcesToml, SampleToml, TextEncoderToml, TrainToml, UNetToml, WeightsToml, WorkersToml,
};
use std::fmt;
use std::path::Path;

/// Everything wrong with one job.toml, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobErrors(pub Vec<JobError>);

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobError {
    pub file: String,
    /// 1-based.
    pub line: usize,
    /// Dotted, for instance `train.global_batch`; empty when the text is no TOML.
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

/// Reads a job. `file` is for messages only. Paths without a scheme are taken relative to `directory`; without one
/// they are refused, because the coordinator cannot know what they were relative to.
pub fn parse(file: &str, text: &str, directory: Option<&Path>) -> Result<JobSpec, JobErrors> {
    let at = |(line, field, message)| JobError {
        file: file.to_owned(),
        line,
        field,
        message,
    };
    let raw: JobToml =
        toml::from_str(text).map_err(|error| JobErrors(vec![at(place::of_toml_error(text, &error))]))?;
    check::check(raw, directory).map_err(|faults| {
        let mut errors: Vec<JobError> = faults
            .into_iter()
            .map(|fault| at((place::line_of(text, &fault.field), fault.field, fault.message)))
            .collect();
        errors.sort_by_key(|error| error.line);
        JobErrors(errors)
    })
}

/// Reads a job that the coordinator has stored or sent: [`to_toml`]'s text, or that of an older release.
pub fn parse_stored(job: &JobId, text: &str) -> Result<JobSpec, JobErrors> {
    parse(&format!("job.toml of {job}"), text, None)
}

/// What a job trains, of a text whose paths are absolute. A job that does something else is an error of its table.
pub fn parse_training(file: &str, text: &str) -> Result<TrainWork, JobErrors> {
    match parse(file, text, None)?.work {
        Work::Train(work) => Ok(*work),
        other @ Work::Sample(_) => Err(JobErrors(vec![error_at(
            file,
            text,
            other.table(),
            "is what this job does; only a job with [train] has weights of its own".to_owned(),
        )])),
    }
}

/// The error of a field that reads well and is found wrong later, at the line where it stands.
#[must_use]
pub fn error_at(file: &str, text: &str, field: &str, message: String) -> JobError {
    JobError {
        file: file.to_owned(),
        line: place::line_of(text, field),
        field: field.to_owned(),
        message,
    }
}

/// The canonical job.toml: every field written out. `parse(to_toml(spec)) == spec`.
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
    };
    match &spec.work {
        Work::Train(work) => {
            raw.data = Some(data_toml(&work.data));
            raw.model = Some(model_toml(&work.model));
            raw.train = Some(train_toml(&work.train));
            raw.checkpoint = Some(CheckpointToml {
                every: Some(work.checkpoint.every),
                keep: Some(work.checkpoint.keep),
            });
        }
        Work::Sample(work) => raw.sample = Some(sample_toml(work)),
    }
    toml::to_string(&raw).expect("plain tables, numbers and strings are TOML")
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
        weights: Some(match work.weights {
            Weights::Newest => WeightsToml::Word("newest".into()),
            Weights::Base => WeightsToml::Word("base".into()),
            Weights::Step(step) => WeightsToml::Step(step.0),
        }),
        count: Some(work.count),
        method: Some(work.method),
        steps: Some(work.steps),
        guidance: Some(work.guidance),
        reference_guidance: Some(work.reference_guidance),
        seeds: Some(work.seeds.clone()),
        prompt: Some(work.prompt),
        prompts: work.prompts.clone(),
        task: work.task,
        pairing: work.pairing,
        attention: work.attention.clone(),
        on_failed_unit: Some(work.on_failed_unit),
        references: work.references.iter().map(reference_toml).collect(),
    }
}

fn reference_toml(reference: &NamedReference) -> ReferenceToml {
    let concept = reference.concept;
    match &reference.from {
        PictureSource::Sample { id } => ReferenceToml {
            concept,
            id: Some(id.clone()),
            ..ReferenceToml::default()
        },
        PictureSource::File { name, sha256 } => ReferenceToml {
            concept,
            file: Some(name.clone()),
            sha256: Some(sha256.clone()).filter(|digits| !digits.is_empty()),
            ..ReferenceToml::default()
        },
    }
}

fn data_toml(data: &Data) -> DataToml {
    DataToml {
        dataset: data.dataset.clone(),
        task: Some(data.task),
        pairing: Some(data.pairing),
        references: Some(data.references),
        resolution: data.resolution,
        prompt_drop: Some(data.prompt_drop),
        face_probability: Some(data.face_probability),
        face_enlargement: Some(data.face_enlargement),
        figure_threshold: Some(data.figure_threshold),
        clothes: Some(data.clothes),
        reference_scale: Some(data.reference_scale),
        multitask_reconstruction: Some(data.multitask_reconstruction),
        holdout: Some(data.holdout),
        seed: Some(data.seed),
    }
}

fn model_toml(model: &Model) -> ModelToml {
    let (unet, autoencoder, text) = (&model.unet, &model.autoencoder, &model.text_encoder);
    ModelToml {
        architecture: model.architecture,
        size: None,
        init: model.init.clone(),
        freeze: Some(model.freeze.clone()),
        activation_checkpointing: Some(model.activation_checkpointing.clone()),
        retrieval: Some(model.retrieval),
        unet: UNetToml {
            channels: Some(unet.channels),
            channel_mult: Some(unet.channel_mult.clone()),
            res_blocks: Some(unet.res_blocks),
            attention_levels: Some(unet.attention_levels.clone()),
            heads: Some(unet.heads),
            context_dim: Some(unet.context_dim),
            latent_channels: Some(unet.latent_channels),
            norm_groups: Some(unet.norm_groups),
        },
        autoencoder: AutoencoderToml {
            channels: Some(autoencoder.channels),
            channel_mult: Some(autoencoder.channel_mult.clone()),
            res_blocks: Some(autoencoder.res_blocks),
            latent_channels: Some(autoencoder.latent_channels),
            scaling_factor: Some(autoencoder.scaling_factor),
            norm_groups: Some(autoencoder.norm_groups),
        },
        text_encoder: TextEncoderToml {
            width: Some(text.width),
            layers: Some(text.layers),
            heads: Some(text.heads),
            tokens: Some(text.tokens),
        },
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
        face_loss_weight: Some(train.face_loss_weight),
        target_mask_threshold: Some(train.target_mask_threshold),
        loss_weighting: Some(train.loss_weighting),
        precision: Some(train.precision),
        on_nonfinite: Some(train.on_nonfinite),
        latent_cache_mib: Some(train.latent_cache_mib),
        reduction: Some(train.reduction),
        threads: Some(train.threads),
        digest_every: Some(train.digest_every),
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
