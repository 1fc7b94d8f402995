//! job.toml as parsed: fields with defaults are optional, and only types are checked. The validated
//! form is [`crate::spec::JobSpec`]; [`super::check`] converts between them.

use crate::architecture::config::ClipActivation;
use crate::architecture::{DecoderVariant, ImageView, Latents, NoiseKind, Prediction};
use crate::build::Stage;
use crate::knobs::Knobs;
use crate::rating::Rating;
use crate::sample::{Concept, SampleMethod, SamplePrompt};
use crate::spec::{
    Architecture, Clothes, Component, Decay, DeviceKind, EvaluateOn, LossWeighting, OnFailedUnit,
    OnNonfinite, Pairing, Precision, PromptOrder, Reduction, Retrieval, Task, Transform,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobToml {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) after: Vec<String>,
    #[serde(default)]
    pub(super) resources: ResourcesToml,
    pub(super) data: Option<DataToml>,
    pub(super) model: Option<ModelToml>,
    pub(super) train: Option<TrainToml>,
    pub(super) checkpoint: Option<CheckpointToml>,
    pub(super) sample: Option<SampleToml>,
    pub(super) evaluate: Option<EvaluateToml>,
    pub(super) build: Option<BuildToml>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BuildToml {
    pub(super) stage: Stage,
    pub(super) key: String,
    /// URL of the pipeline's outputs.
    pub(super) out: String,
    pub(super) units: Option<u32>,
}

/// The tables of a training job.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrainingToml {
    pub(super) data: DataToml,
    pub(super) model: ModelToml,
    pub(super) train: TrainToml,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SampleToml {
    pub(super) job: String,
    pub(super) weights: Option<WeightsToml>,
    pub(super) count: Option<u32>,
    pub(super) method: Option<SampleMethod>,
    pub(super) steps: Option<u32>,
    pub(super) guidance: Option<f64>,
    pub(super) reference_guidance: Option<f64>,
    pub(super) seeds: Option<Vec<u64>>,
    pub(super) prompt: Option<SamplePrompt>,
    #[serde(default)]
    pub(super) prompts: Vec<String>,
    pub(super) negative_prompt: Option<String>,
    pub(super) knobs: Option<Knobs>,
    pub(super) swap_references: Option<bool>,
    pub(super) task: Option<Task>,
    pub(super) pairing: Option<Pairing>,
    #[serde(default)]
    pub(super) attention: Vec<Concept>,
    pub(super) on_failed_unit: Option<OnFailedUnit>,
    #[serde(default)]
    pub(super) references: Vec<ReferenceToml>,
}

/// Settings of images at this level are the defaults of models.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvaluateToml {
    pub(super) resolution: Option<u32>,
    pub(super) in_domain: Option<CharactersToml>,
    pub(super) out_of_domain: Option<CharactersToml>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) prompts: Vec<String>,
    /// A file with a prompt in each line; `coordinator evaluate` puts them into `prompts`.
    pub(super) prompt_file: Option<String>,
    pub(super) own_prompts: Option<u32>,
    /// Of [`Self::own_prompts`].
    pub(super) prompt: Option<SamplePrompt>,
    pub(super) seeds: Option<Vec<u64>>,
    pub(super) samples: Option<u32>,
    pub(super) task: Option<Task>,
    pub(super) pairing: Option<Pairing>,
    pub(super) method: Option<SampleMethod>,
    pub(super) steps: Option<u32>,
    pub(super) guidance: Option<f64>,
    pub(super) reference_guidance: Option<f64>,
    pub(super) negative_prompt: Option<String>,
    pub(super) knobs: Option<Knobs>,
    pub(super) failed_share_max: Option<f64>,
    /// URL of a folder.
    pub(super) clip: Option<String>,
    /// Likewise.
    pub(super) lpips: Option<String>,
    pub(super) faces: Option<String>,
    pub(super) vqa: Option<VqaToml>,
    /// An expression of scores.
    pub(super) score: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) models: Vec<EvaluatedToml>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CharactersToml {
    pub(super) trained: Option<u32>,
    pub(super) held_out: Option<u32>,
    pub(super) ids: Option<Vec<String>>,
    pub(super) files: Option<Vec<FileCharacterToml>>,
    /// A folder with `characters.toml`; `coordinator evaluate` puts its content into `files`.
    pub(super) folder: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileCharacterToml {
    pub(super) name: String,
    pub(super) references: Vec<ReferenceToml>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VqaToml {
    pub(super) endpoint: String,
    pub(super) model: String,
    pub(super) questions: Option<Vec<String>>,
    pub(super) concurrency: Option<u32>,
    pub(super) embedder: String,
}

/// An entry of `evaluate.models`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvaluatedToml {
    pub(super) name: Option<String>,
    pub(super) job: String,
    pub(super) weights: Option<WeightsToml>,
    pub(super) init: Option<String>,
    pub(super) task: Option<Task>,
    pub(super) method: Option<SampleMethod>,
    pub(super) steps: Option<u32>,
    pub(super) guidance: Option<f64>,
    pub(super) reference_guidance: Option<f64>,
    pub(super) negative_prompt: Option<String>,
    pub(super) knobs: Option<Knobs>,
}

/// `"newest"`, `"base"`, or the step of a checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum WeightsToml {
    Step(u64),
    Word(String),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReferenceToml {
    pub(super) concept: Option<Concept>,
    /// The id of a sample of the job's data set.
    pub(super) id: Option<String>,
    pub(super) file: Option<String>,
    /// The digest of the file, written by `coordinator submit`.
    pub(super) sha256: Option<String>,
    /// The face in the file: centre x, centre y, width, height, as fractions.
    pub(super) face_box: Option<[f64; 4]>,
    /// A file with the mask of the figure, and its digest.
    pub(super) mask: Option<String>,
    pub(super) mask_sha256: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResourcesToml {
    pub(super) workers: Option<WorkersToml>,
    pub(super) devices_per_worker: Option<u32>,
    pub(super) device: Option<DeviceKind>,
    pub(super) priority: Option<i32>,
    pub(super) team: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkersToml {
    pub(super) min: u32,
    pub(super) max: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DataToml {
    pub(super) dataset: String,
    pub(super) task: Option<Task>,
    pub(super) pairing: Option<Pairing>,
    pub(super) references: Option<u32>,
    pub(super) reference_drop: Option<f64>,
    pub(super) joint_drop: Option<f64>,
    pub(super) transform: Option<Transform>,
    pub(super) resolution: u32,
    pub(super) prompt_drop: Option<f64>,
    pub(super) looks_drop: Option<f64>,
    pub(super) prompt_order: Option<PromptOrder>,
    pub(super) face_probability: Option<f64>,
    pub(super) face_enlargement: Option<f64>,
    pub(super) figure_threshold: Option<f64>,
    pub(super) clothes: Option<Clothes>,
    pub(super) reference_scale: Option<f64>,
    pub(super) multitask_reconstruction: Option<f64>,
    pub(super) image_view: Option<ImageView>,
    pub(super) subjects: Option<Vec<String>>,
    pub(super) object_keep: Option<f64>,
    pub(super) augment: Option<bool>,
    pub(super) holdout: Option<f64>,
    pub(super) ratings: Option<Vec<Rating>>,
    pub(super) seed: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelToml {
    pub(super) architecture: Architecture,
    pub(super) size: Option<String>,
    pub(super) init: Option<String>,
    pub(super) freeze: Option<Vec<Component>>,
    pub(super) activation_checkpointing: Option<Vec<Component>>,
    pub(super) latents: Option<Latents>,
    pub(super) variant: Option<DecoderVariant>,
    pub(super) retrieval: Option<Retrieval>,
    pub(super) noise: Option<NoiseToml>,
    #[serde(default)]
    pub(super) unet: UNetToml,
    #[serde(default)]
    pub(super) autoencoder: AutoencoderToml,
    #[serde(default)]
    pub(super) text_encoder: TextEncoderToml,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_encoder: Option<ImageEncoderToml>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prior: Option<PriorToml>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoiseToml {
    pub(super) kind: Option<NoiseKind>,
    pub(super) steps: Option<u32>,
    pub(super) beta_start: Option<f64>,
    pub(super) beta_end: Option<f64>,
    pub(super) prediction: Option<Prediction>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UNetToml {
    pub(super) channels: Option<u32>,
    pub(super) channel_mult: Option<Vec<u32>>,
    pub(super) res_blocks: Option<u32>,
    pub(super) attention_levels: Option<Vec<u32>>,
    pub(super) heads: Option<u32>,
    pub(super) context_dim: Option<u32>,
    pub(super) latent_channels: Option<u32>,
    pub(super) norm_groups: Option<u32>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AutoencoderToml {
    pub(super) channels: Option<u32>,
    pub(super) channel_mult: Option<Vec<u32>>,
    pub(super) res_blocks: Option<u32>,
    pub(super) latent_channels: Option<u32>,
    pub(super) scaling_factor: Option<f64>,
    pub(super) norm_groups: Option<u32>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TextEncoderToml {
    pub(super) width: Option<u32>,
    pub(super) layers: Option<u32>,
    pub(super) heads: Option<u32>,
    pub(super) tokens: Option<u32>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageEncoderToml {
    pub(super) width: Option<u32>,
    pub(super) layers: Option<u32>,
    pub(super) heads: Option<u32>,
    pub(super) mlp_width: Option<u32>,
    pub(super) projection: Option<u32>,
    pub(super) side: Option<u32>,
    pub(super) patch: Option<u32>,
    pub(super) activation: Option<ClipActivation>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PriorToml {
    pub(super) width: Option<u32>,
    pub(super) layers: Option<u32>,
    pub(super) heads: Option<u32>,
    pub(super) text_projection: Option<bool>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrainToml {
    pub(super) steps: u64,
    pub(super) global_batch: u32,
    pub(super) micro_batch: u32,
    pub(super) learning_rate: Option<f64>,
    #[serde(default)]
    pub(super) learning_rates: BTreeMap<Component, f64>,
    pub(super) warmup: Option<u64>,
    pub(super) decay: Option<Decay>,
    /// Maximum gradient norm; 0 disables clipping.
    pub(super) clip: Option<f64>,
    /// Decay of the moving average of the weights; 0 disables it.
    pub(super) ema: Option<f64>,
    pub(super) face_loss_weight: Option<f64>,
    pub(super) target_mask_threshold: Option<f64>,
    pub(super) loss_weighting: Option<LossWeighting>,
    pub(super) edge_loss_weight: Option<f64>,
    pub(super) kl_loss_weight: Option<f64>,
    pub(super) mask_loss: Option<f64>,
    pub(super) localization: Option<f64>,
    pub(super) precision: Option<Precision>,
    pub(super) on_nonfinite: Option<OnNonfinite>,
    pub(super) latent_cache_mib: Option<u32>,
    pub(super) reduction: Option<Reduction>,
    pub(super) threads: Option<u32>,
    pub(super) digest_every: Option<u64>,
    pub(super) validate_every: Option<u64>,
    pub(super) validate_samples: Option<u32>,
    /// A duration, or [`super::NO_LIMIT`].
    pub(super) time_limit: Option<String>,
    pub(super) evaluate_every: Option<u64>,
    /// Stands for [`Self::evaluate_every`] with a plan that has no scores.
    pub(super) samples_every: Option<u64>,
    pub(super) evaluate_on: Option<EvaluateOn>,
    #[serde(default)]
    pub(super) optimizer: OptimizerToml,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OptimizerToml {
    pub(super) name: Option<OptimizerName>,
    pub(super) beta1: Option<f64>,
    pub(super) beta2: Option<f64>,
    pub(super) epsilon: Option<f64>,
    pub(super) weight_decay: Option<f64>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OptimizerName {
    AdamW,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckpointToml {
    pub(super) every: Option<u64>,
    pub(super) keep: Option<u32>,
    /// An expression of scores.
    pub(super) keep_best: Option<String>,
}
