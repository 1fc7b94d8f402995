//! A job specification, valid by construction: the meaning of job.toml. Plain data, created only by
//! [`crate::job`]. Text form and error messages are in [`crate::job`]; `deploy/jobs/demo.toml`
//! documents the fields for users.

pub use crate::architecture::config::{
    Attend, AutoencoderConfig, ClipActivation, Component, ImageEncoderConfig, LossWeighting,
    Retrieval, RetrievalTime, TextEncoderConfig, UNetConfig,
};
pub use crate::architecture::references::{Clothes, Pairing, References, Task, Transform};
pub use crate::architecture::{Architecture, ArchitectureSpec};
use crate::build::BuildWork;
pub use crate::during::{EvaluateOn, TrainingEvaluation};
use crate::evaluate::EvaluateWork;
use crate::id::JobId;
use crate::rating::Ratings;
pub use crate::sample::SampleWork;
use crate::sample::Weights;
use crate::score::Expression;
pub use crate::units::{OnFailedUnit, UNIT_FAILURES_MAX, UnitPlan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Lower-case letters, digits and dashes; at most 40 characters.
    pub name: String,
    pub resources: Resources,
    /// The job starts when these are done. Without duplicates.
    pub after: Vec<JobId>,
    pub work: Work,
}

impl JobSpec {
    /// The training work, if this is a training job.
    #[must_use]
    pub fn training(&self) -> Option<&TrainWork> {
        self.work.training()
    }
}

/// What a job does. The kind of work is selected by the table in job.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// `[train]`, with `[data]`, `[model]` and `[checkpoint]`. Runs as a gang.
    Train(Box<TrainWork>),
    /// `[sample]`: images generated with the weights of a trained job. Runs as units.
    Sample(Box<SampleWork>),
    /// `[evaluate]`: images of several trained jobs by one plan, and their scores. Runs as units.
    Evaluate(Box<EvaluateWork>),
    /// `[build]`: a stage of a data set. Runs as units.
    Build(Box<BuildWork>),
}

impl Work {
    /// The name of its table in job.toml.
    #[must_use]
    pub fn table(&self) -> &'static str {
        match self {
            Self::Train(_) => "train",
            Self::Sample(_) => "sample",
            Self::Evaluate(_) => "evaluate",
            Self::Build(_) => "build",
        }
    }

    #[must_use]
    pub fn training(&self) -> Option<&TrainWork> {
        match self {
            Self::Train(work) => Some(work),
            Self::Sample(_) | Self::Evaluate(_) | Self::Build(_) => None,
        }
    }

    #[must_use]
    pub fn sampling(&self) -> Option<&SampleWork> {
        match self {
            Self::Train(_) | Self::Evaluate(_) | Self::Build(_) => None,
            Self::Sample(work) => Some(work),
        }
    }

    #[must_use]
    pub fn evaluation(&self) -> Option<&EvaluateWork> {
        match self {
            Self::Train(_) | Self::Sample(_) | Self::Build(_) => None,
            Self::Evaluate(work) => Some(work),
        }
    }

    /// The trained jobs whose weights it reads, in the order of [`crate::message::UnitOrder`]'s
    /// sources. A job may be named several times.
    #[must_use]
    pub fn reads(&self) -> Vec<(&JobId, Weights)> {
        match self {
            Self::Train(_) | Self::Build(_) => Vec::new(),
            Self::Sample(work) => vec![(&work.job, work.weights)],
            Self::Evaluate(work) => {
                let models = work.models.iter();
                models.map(|model| (&model.job, model.weights)).collect()
            }
        }
    }

    /// The trained jobs whose weights it reads.
    pub fn read_jobs(&self) -> impl Iterator<Item = &JobId> {
        self.reads().into_iter().map(|(job, _)| job)
    }

    /// The units that it consists of; None for the work of a gang.
    #[must_use]
    pub fn units(&self) -> Option<UnitPlan> {
        match self {
            Self::Train(_) => None,
            Self::Sample(work) => Some(work.units()),
            Self::Evaluate(work) => Some(work.units()),
            Self::Build(work) => Some(work.units()),
        }
    }
}

/// A training job: everything that determines the resulting weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainWork {
    pub data: Data,
    pub model: Model,
    pub train: Train,
    pub checkpoint: CheckpointPolicy,
    /// How its checkpoints are evaluated while it trains; None: they are not. It changes no weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Box<TrainingEvaluation>>,
}

impl TrainWork {
    /// Number of micro-batches of one step, over all ranks. Exact, because the global batch is a
    /// multiple of the micro-batch.
    #[must_use]
    pub fn micro_batches(&self) -> u32 {
        self.train.global_batch / self.train.micro_batch
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Minimum number of workers. A gang is scheduled as a whole, with at least this many.
    pub workers_min: u32,
    pub workers_max: u32,
    /// Ranks on each worker.
    pub devices_per_worker: u32,
    pub device: DeviceKind,
    /// Jobs of higher priority are scheduled first and take workers from jobs of lower priority.
    pub priority: i32,
    /// The team that owns the job; quotas and fair shares are per team.
    pub team: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    Cpu,
    Cuda,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// URL of the data set's folder: `file:///…` or `s3://bucket/…`.
    pub dataset: String,
    /// Side of the square target and reference images, in pixels.
    pub resolution: u32,
    /// Probability that a sample's prompt is replaced by the empty string. The paper: 0.5.
    pub prompt_drop: f64,
    /// Probability that the tags of looks (hair, eyes, skin, clothes) are left out of a prompt, so
    /// that only the references tell them. Ours: the paper keeps all tags.
    #[serde(default)]
    pub looks_drop: f64,
    /// The order of the tags in a prompt. Ours.
    #[serde(default)]
    pub prompt_order: PromptOrder,
    /// Fraction of characters held out from training, selected by a hash of (seed, character).
    /// Images are generated for these.
    pub holdout: f64,
    /// The samples that the job uses, as targets and as references: those with one of these
    /// ratings.
    #[serde(default)]
    pub ratings: Ratings,
    /// The only seed of the job: sample order, noise, crops, and weights without `init`.
    pub seed: u64,
}

/// The order of the tags in a prompt. The text encoder reads the first tokens only, and tags are
/// stored in alphabetical order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptOrder {
    /// As in the data set.
    #[default]
    AsWritten,
    /// At random, another order in each epoch.
    Shuffle,
    /// The tags that fewest samples of the data set have come first; equally rare ones as written.
    RareFirst,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub architecture: ArchitectureSpec,
    /// URL of base weights, in one of the layouts of [`crate::public::base`]. None: random weights
    /// from the job's seed.
    pub init: Option<String>,
    /// Components whose weights are frozen. Always a subset of the architecture's components.
    pub freeze: Vec<Component>,
    /// Components whose blocks store only their inputs and recompute their activations in the
    /// backward pass.
    pub activation_checkpointing: Vec<Component>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    pub steps: u64,
    /// Samples of one step, over all ranks: a multiple of `micro_batch`.
    pub global_batch: u32,
    /// Samples of one forward and backward.
    pub micro_batch: u32,
    pub optimizer: Optimizer,
    /// Learning rate of components that `learning_rates` does not name.
    pub learning_rate: f64,
    pub learning_rates: BTreeMap<Component, f64>,
    /// Number of steps over which the rate rises linearly from 0.
    pub warmup: u64,
    /// The learning rate schedule after the warm-up.
    pub decay: Decay,
    /// Maximum L2 norm of the whole gradient; None: no clipping.
    pub clip: Option<f64>,
    /// Decay of the exponential moving average of the weights; None: no average.
    pub ema: Option<f64>,
    /// The precision of convolutions, matrix products and attention.
    pub precision: Precision,
    /// What happens to a step whose loss or gradient is not finite.
    pub on_nonfinite: OnNonfinite,
    /// Size of a rank's cache for latents of images that recur unchanged, in MiB; 0: no cache.
    pub latent_cache_mib: u32,
    pub reduction: Reduction,
    /// Intra-op threads of a rank. Part of the job, because the number changes float sums.
    pub threads: u32,
    /// Steps between digests of weights and optimizer state, which are compared across ranks; 0: no
    /// digests.
    pub digest_every: u64,
    /// Steps between validations; 0: no validation.
    pub validate_every: u64,
    /// Number of held-out samples of a validation; all if there are fewer.
    pub validate_samples: u32,
    /// Longest time that the job trains in total, over all generations; None: no limit. Only the
    /// time counts in which all ranks of a generation train. The coordinator enforces it.
    pub time_limit: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Optimizer {
    AdamW {
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        weight_decay: f64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    Constant,
    /// Half a cosine, down to 0 at the last step.
    Cosine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    Fp32,
    /// Trainable weights, their gradients and moments, norms and the loss stay fp32. The loss is
    /// scaled dynamically.
    Fp16,
    /// As fp16 but without loss scaling, because bf16 has the range of fp32.
    Bf16,
}

/// What happens to a step whose loss or gradient is not finite. It never updates the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNonfinite {
    /// The job fails at once.
    Stop,
    /// The step is counted, but its update is skipped. After [`SKIPS_MAX`] such steps in a row the
    /// job fails.
    Skip,
}

/// Maximum number of consecutive skipped steps under [`OnNonfinite::Skip`].
pub const SKIPS_MAX: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Float sums in DDP's Reducer.
    Fast,
    /// Integer sums: the same weights, bit for bit, for any number of ranks.
    Exact,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointPolicy {
    /// Steps between checkpoints; the last step always has one.
    pub every: u64,
    /// Number of newest checkpoints to retain.
    pub keep: u32,
    /// The checkpoint with the largest value of this, by its evaluation, is retained, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_best: Option<Expression>,
}
