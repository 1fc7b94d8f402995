//! What a job is, valid by construction: the meaning of job.toml. Plain data, made only by
//! [`crate::job`], passed by value to whoever needs it. Text form and error messages live in
//! `job.rs`; documentation for people stands in `deploy/jobs/demo.toml`.

pub use crate::architecture::config::{
    Attend, AutoencoderConfig, Component, LossWeighting, Retrieval, RetrievalTime,
    TextEncoderConfig, UNetConfig,
};
pub use crate::architecture::references::{Clothes, Pairing, References, Task};
pub use crate::architecture::{Architecture, ArchitectureSpec};
use crate::id::JobId;
pub use crate::sample::SampleWork;
pub use crate::units::{OnFailedUnit, UNIT_FAILURES_MAX, UnitPlan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Lower-case letters, digits and dashes; at most 40 characters.
    pub name: String,
    pub resources: Resources,
    /// The job starts when these are done. No job twice.
    pub after: Vec<JobId>,
    pub work: Work,
}

impl JobSpec {
    /// What it trains, if it trains.
    #[must_use]
    pub fn training(&self) -> Option<&TrainWork> {
        self.work.training()
    }
}

/// What a job does: one kind of work, named by the table that job.toml has for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// `[train]`, with `[data]`, `[model]` and `[checkpoint]`. Runs as a gang.
    Train(Box<TrainWork>),
    /// `[sample]`: images from the weights of a trained job. Runs as units.
    Sample(Box<SampleWork>),
}

impl Work {
    /// The name of its table.
    #[must_use]
    pub fn table(&self) -> &'static str {
        match self {
            Self::Train(_) => "train",
            Self::Sample(_) => "sample",
        }
    }

    #[must_use]
    pub fn training(&self) -> Option<&TrainWork> {
        match self {
            Self::Train(work) => Some(work),
            Self::Sample(_) => None,
        }
    }

    #[must_use]
    pub fn sampling(&self) -> Option<&SampleWork> {
        match self {
            Self::Train(_) => None,
            Self::Sample(work) => Some(work),
        }
    }

    /// The pieces that it consists of; None for work that a gang does together.
    #[must_use]
    pub fn units(&self) -> Option<UnitPlan> {
        match self {
            Self::Train(_) => None,
            Self::Sample(work) => Some(work.units()),
        }
    }
}

/// What `[train]` does: everything that decides which weights come out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainWork {
    pub data: Data,
    pub model: Model,
    pub train: Train,
    pub checkpoint: CheckpointPolicy,
}

impl TrainWork {
    /// Micro-batches of one step, over all ranks. Global batch is a multiple of micro-batch, so
    /// this is exact.
    #[must_use]
    pub fn micro_batches(&self) -> u32 {
        self.train.global_batch / self.train.micro_batch
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// The gang is placed whole, with this many workers at least.
    pub workers_min: u32,
    pub workers_max: u32,
    /// Ranks on each worker.
    pub devices_per_worker: u32,
    pub device: DeviceKind,
    /// Higher goes first, and takes workers from lower.
    pub priority: i32,
    /// Whose job it is: quotas and fair shares count by team.
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
    /// Side of the square target and reference pictures, in pixels.
    pub resolution: u32,
    /// Probability that a sample's prompt is replaced by the empty string. The paper: 0.5.
    pub prompt_drop: f64,
    /// Share of characters that training never shows, chosen by a hash of (seed, character);
    /// sampling draws them.
    pub holdout: f64,
    /// The one seed of the job: order, noise, crops, weights without init.
    pub seed: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub architecture: ArchitectureSpec,
    /// URL of base weights, in one of the layouts of [`crate::public::base`]. None: random weights
    /// from the job's seed.
    pub init: Option<String>,
    /// Components whose weights do not move. Always a subset of the architecture's components.
    pub freeze: Vec<Component>,
    /// Components whose blocks keep their inputs and not their activations, and are computed again
    /// for the backward pass.
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
    /// Steps over which the rate rises linearly from 0.
    pub warmup: u64,
    /// How the rate goes on after the warm-up.
    pub decay: Decay,
    /// Largest L2 norm of the whole gradient; None: no clipping.
    pub clip: Option<f64>,
    /// Decay of the weights' moving average; None: there is none.
    pub ema: Option<f64>,
    /// What convolutions, matrix products and attention compute in.
    pub precision: Precision,
    /// What happens to a step whose loss or gradient is not finite.
    pub on_nonfinite: OnNonfinite,
    /// Memory of a rank for latents of pictures that come back unchanged, in MiB; 0: none are kept.
    pub latent_cache_mib: u32,
    pub reduction: Reduction,
    /// Intra-op threads of a rank. Fixed, because it changes float sums.
    pub threads: u32,
    /// Steps between digests of weights and optimizer state, compared over ranks. 0: none.
    pub digest_every: u64,
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
    /// Half a cosine down to 0 at the last step.
    Cosine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    Fp32,
    /// Weights that move, their gradients and moments, norms and the loss stay fp32; the loss is
    /// scaled, by a factor that follows the gradients.
    Fp16,
    /// As fp16, without a factor: bf16 has fp32's range.
    Bf16,
}

/// What happens to a step whose loss or gradient is not finite; the weights never see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNonfinite {
    /// The job ends at once.
    Stop,
    /// The step is counted and left out; after [`SKIPS_MAX`] in a row the job ends.
    Skip,
}

/// More steps in a row are never left out under [`OnNonfinite::Skip`].
pub const SKIPS_MAX: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Float sums in DDP's Reducer.
    Fast,
    /// Sums of whole numbers: the same weights, bit for bit, for any number of ranks.
    Exact,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointPolicy {
    /// Steps between checkpoints; the last step always has one.
    pub every: u64,
    /// Newest checkpoints that are kept.
    pub keep: u32,
}
