//! What a job is, valid by construction: the meaning of job.toml. Plain data, made only by [`crate::job`], passed by
//! value to whoever needs it. Text form and error messages live in `job.rs`; documentation for people stands in
//! `deploy/jobs/demo.toml`.

use crate::id::JobId;
pub use crate::sample::SampleWork;
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

/// Numbered, idempotent pieces of work: unit 0 to `count - 1`. Each puts its output once, under a name that depends on the
/// unit alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitPlan {
    pub count: u64,
    /// Unit `count - 1` is leased only when all others are done or set aside: it writes what needs all of them.
    pub closing: bool,
    pub on_failed: OnFailedUnit,
}

/// What happens when a unit has failed [`UNIT_FAILURES_MAX`] times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailedUnit {
    /// The job fails and names the unit.
    #[default]
    Stop,
    /// The unit is set aside and named; the job goes on without it.
    SetAside,
}

/// A unit that failed this often, on different workers where there are several, is not tried again.
pub const UNIT_FAILURES_MAX: u32 = 3;

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
    /// Micro-batches of one step, over all ranks. Global batch is a multiple of micro-batch, so this is exact.
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
    pub task: Task,
    pub pairing: Pairing,
    /// N, the number of references of one sample. The paper: 4.
    pub references: u32,
    /// Side of the square target and reference pictures, in pixels.
    pub resolution: u32,
    /// Probability that a sample's prompt is replaced by the empty string. The paper: 0.5.
    pub prompt_drop: f64,
    /// Probability that a reference slot shows the face (else the clothes). Ours: 0.5.
    pub face_probability: f64,
    /// The drawn face box is this much larger than the annotated one. Ours: 1.33, measured on the paper's figure 2.
    pub face_enlargement: f64,
    /// Above this share of the picture's area the face box counts as "the majority" and the whole figure is shown
    /// instead of the clothes. Ours: 0.5.
    pub figure_threshold: f64,
    pub clothes: Clothes,
    /// A reference fills this share of its square at least, so that its place never equals the target's. Ours: 0.8.
    pub reference_scale: f64,
    /// Share of reconstruction samples when task is multitask. Ours: 0.5.
    pub multitask_reconstruction: f64,
    /// Share of characters that training never shows, chosen by a hash of (seed, character); sampling draws them.
    pub holdout: f64,
    /// The one seed of the job: order, noise, crops, weights without init.
    pub seed: u64,
}

/// How clothes are shown without the face (both ways are seen in the paper's figures). All ours.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Clothes {
    /// Probability that everything above the chin is cut off; else the face box is painted over with the pad's colour.
    pub cut_off: f64,
    /// It is only cut off where so much of the picture's height is left below the chin.
    pub cut_off_minimum: f64,
    /// Probability that the background is kept; else it is filled with the pad's colour.
    pub background: f64,
}

impl Default for Clothes {
    fn default() -> Self {
        Self {
            cut_off: 0.5,
            cut_off_minimum: 0.3,
            background: 0.5,
        }
    }
}

/// What the references are (paper, section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Whole pictures with the word "figure".
    Reconstruction,
    /// Faces and clothes, drawn per slot.
    Composition,
    /// Both, mixed by sample.
    Multitask,
}

/// Where the references come from (paper, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// The target itself under another random transform.
    A,
    /// Other pictures of the same character and outfit.
    B,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub architecture: Architecture,
    pub unet: UNetConfig,
    pub autoencoder: AutoencoderConfig,
    pub text_encoder: TextEncoderConfig,
    /// URL of base weights, in one of the layouts of [`crate::public::base`]. None: random weights from the job's seed.
    pub init: Option<String>,
    /// Components whose weights do not move. Always a subset of the architecture's components.
    pub freeze: Vec<Component>,
    /// Components whose blocks keep their inputs and not their activations, and are computed again for the backward pass.
    pub activation_checkpointing: Vec<Component>,
    pub retrieval: Retrieval,
}

/// How RetriNet's retrieval block reads the paper where it leaves a choice (notes 3.5). Ours: the defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Retrieval {
    pub attend: Attend,
    pub time: RetrievalTime,
}

/// Which of the encoder's blocks attend to the references.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attend {
    /// 12 cross-attentions at the size of SD 1.5.
    #[default]
    EveryBlock,
    /// The last block of each level with residual blocks: 4.
    EveryLevel,
}

/// The time step that the retrieval encoder is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetrievalTime {
    /// The target's.
    #[default]
    Target,
    Zero,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// The autoencoder alone: the first half of a base model.
    Autoencoder,
    /// A text-to-picture U-Net with its text encoder, on a given autoencoder: the second half of a base model.
    TextToImage,
    /// The paper's model, on a given base model.
    Retrinet,
}

impl Architecture {
    /// The parts this architecture is made of, in the order in which data meets them.
    #[must_use]
    pub fn components(self) -> &'static [Component] {
        use Component::*;
        match self {
            Self::Autoencoder => &[Autoencoder],
            Self::TextToImage => &[Autoencoder, TextEncoder, Encoder, Middle, Decoder],
            Self::Retrinet => &[
                Autoencoder,
                TextEncoder,
                Encoder,
                Middle,
                Decoder,
                RetrievalEncoder,
                CrossAttention,
            ],
        }
    }

    /// What stays frozen when job.toml does not say: the paper's choice for RetriNet (section 5.1).
    #[must_use]
    pub fn frozen_by_default(self) -> &'static [Component] {
        use Component::*;
        match self {
            Self::Autoencoder => &[],
            Self::TextToImage => &[Autoencoder],
            Self::Retrinet => &[Autoencoder, TextEncoder, Encoder, Middle],
        }
    }
}

/// A part of a model that can be frozen and has its own learning rate. `Encoder` includes the time embedding;
/// `CrossAttention` includes the zero convolutions ("conjunction network" on the authors' page).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    Autoencoder,
    TextEncoder,
    Encoder,
    Middle,
    Decoder,
    RetrievalEncoder,
    CrossAttention,
}

/// The U-Net in CompVis block layout (notes 3.1). SD 1.5: 320, [1,2,4,4], 2, [0,1,2], 8, 768, 4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNetConfig {
    /// Width of the first level.
    pub channels: u32,
    /// Width of level i is `channels * channel_mult[i]`; level i works at latent side / 2^i.
    pub channel_mult: Vec<u32>,
    /// Residual blocks per encoder level; the decoder has one more.
    pub res_blocks: u32,
    /// Levels that have spatial transformers.
    pub attention_levels: Vec<u32>,
    /// Attention heads at every level; divides every attended width.
    pub heads: u32,
    /// Width of the text states.
    pub context_dim: u32,
    /// Channels in and out; equals the autoencoder's latent channels.
    pub latent_channels: u32,
    /// Groups of every group norm; divides every width.
    pub norm_groups: u32,
}

/// AutoencoderKL (notes 5.2). SD 1.5: 128, [1,2,4,4], 2, 4, 0.18215, 32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderConfig {
    pub channels: u32,
    /// One entry per level; the latent side is resolution / 2^(levels - 1).
    pub channel_mult: Vec<u32>,
    pub res_blocks: u32,
    pub latent_channels: u32,
    /// Latents are multiplied by this before the U-Net sees them, so that their variance is near 1.
    pub scaling_factor: f64,
    pub norm_groups: u32,
}

impl AutoencoderConfig {
    /// Pixels per latent cell, along one side.
    #[must_use]
    pub fn factor(&self) -> u32 {
        1 << (self.channel_mult.len() - 1)
    }
}

/// CLIP's text transformer with CLIP's vocabulary (49,408 tokens, notes 5.1). SD 1.5: 768, 12, 12, 77.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderConfig {
    pub width: u32,
    pub layers: u32,
    pub heads: u32,
    /// Prompts are cut or padded to this many tokens, begin and end included.
    pub tokens: u32,
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
    /// lambda of equation 3.
    pub face_loss_weight: f64,
    /// A cell of the latent counts in the first term where the picture covers more than this share of it; 0 to below 1.
    /// Ours: 0.5. The face's mask keeps its shares.
    pub target_mask_threshold: f64,
    /// How much each noise level counts.
    pub loss_weighting: LossWeighting,
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

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossWeighting {
    /// The paper's plain epsilon loss.
    Epsilon,
    /// min(snr, 5) / snr (Hang et al. 2023).
    MinSnr,
    /// (1 - abar) / abar, clipped to [0.5, 20]: stresses high noise, where colours and so identity are decided.
    Noise,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    Fp32,
    /// Weights that move, their gradients and moments, norms and the loss stay fp32; the loss is scaled, by a factor that
    /// follows the gradients.
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
