//! Settings of every latent diffusion model: its networks, its noise schedule and its objective.

use super::config::{AutoencoderConfig, LossWeighting, TextEncoderConfig, UNetConfig};
use super::fields::{Fields, Written, reject_unless_default};
use crate::job::faults::Faults;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Diffusion {
    pub autoencoder: AutoencoderConfig,
    pub text_encoder: TextEncoderConfig,
    pub unet: UNetConfig,
    pub latents: Latents,
    pub noise: Noise,
    pub objective: Objective,
}

/// The noise schedule, `[model.noise]`. The default is Stable Diffusion's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    pub kind: NoiseKind,
    /// Number of time steps, 0 to `steps - 1`; the last one is the noisiest.
    pub steps: u32,
    /// beta of the first and of the last time step. Unused by a cosine schedule.
    pub beta_start: f64,
    pub beta_end: f64,
    pub prediction: Prediction,
}

impl Default for Noise {
    fn default() -> Self {
        Self {
            kind: NoiseKind::ScaledLinear,
            steps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            prediction: Prediction::Epsilon,
        }
    }
}

/// How beta changes from its first value to its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoiseKind {
    /// Linear in the square root.
    ScaledLinear,
    Linear,
    /// abar is the square of a cosine (Nichol and Dhariwal 2021); beta is at most 0.999.
    Cosine,
}

/// What training encodes targets and references to, from the autoencoder's posterior. The paper
/// does not say; this choice is ours. Sampling and attention maps always use the mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Latents {
    /// The mean of the posterior.
    #[default]
    Mean,
    /// A sample from the posterior, another one in each epoch, as Stable Diffusion trains.
    Sample,
}

/// What the U-Net predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// sqrt(abar) * noise - sqrt(1 - abar) * latents (Salimans and Ho 2022).
    V,
}

/// Parameters of equation 3 and its weighting of noise levels; fields of `[train]`. The paper's
/// peers have losses of their own and use the weighting alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// lambda of equation 3.
    pub face_loss_weight: f64,
    /// A latent cell counts in the first term if the image covers more than this fraction of it; at
    /// least 0 and below 1. Ours: 0.5. The mask of the face is not thresholded.
    pub target_mask_threshold: f64,
    /// The weight of each noise level.
    pub loss_weighting: LossWeighting,
}

/// Allowed numbers of time steps. More than the maximum is assumed to be a mistake.
const STEPS: std::ops::RangeInclusive<u32> = 10..=10_000;

impl Diffusion {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        fields.allow("data.prompt_drop");
        fields.allow("data.looks_drop");
        fields.allow("data.prompt_order");
        Self {
            autoencoder: fields.autoencoder(),
            text_encoder: fields.text_encoder(),
            unet: fields.unet(),
            latents: fields.read("model.latents"),
            noise: Noise::read(fields, faults),
            objective: Objective::read(fields, faults),
        }
    }

    /// For the paper's peers. Their code samples from the autoencoder's posterior, and their losses
    /// have no masks of target and face.
    pub(super) fn read_peer(fields: &mut Fields, faults: &mut Faults) -> Self {
        fields.allow("data.prompt_drop");
        Self {
            autoencoder: fields.autoencoder(),
            text_encoder: fields.text_encoder(),
            unet: fields.unet(),
            latents: fields.written("model.latents").unwrap_or(Latents::Sample),
            noise: Noise::read(fields, faults),
            objective: Objective {
                face_loss_weight: 0.0,
                target_mask_threshold: 0.0,
                loss_weighting: fields.read("train.loss_weighting"),
            },
        }
    }

    /// For Kandinsky's decoder, whose defaults depend on its variant.
    pub(super) fn read_kandinsky(
        fields: &mut Fields,
        latents: Latents,
        noise: NoiseKind,
        faults: &mut Faults,
    ) -> Self {
        fields.allow("data.prompt_drop");
        Self {
            autoencoder: fields.autoencoder(),
            text_encoder: fields.text_encoder(),
            unet: fields.unet(),
            latents: fields.written("model.latents").unwrap_or(latents),
            noise: Noise::read_with(fields, noise, faults),
            objective: Objective {
                face_loss_weight: 0.0,
                target_mask_threshold: 0.0,
                loss_weighting: fields.read("train.loss_weighting"),
            },
        }
    }

    /// `equation_3`: as [`super::Facts::equation_3`].
    pub(super) fn write(&self, written: &mut Written, equation_3: bool) {
        written.put("model.unet", &self.unet);
        written.put("model.text_encoder", &self.text_encoder);
        written.put("model.noise", self.noise);
        // Older releases do not know the field, so only jobs that use it name it.
        if self.latents != Latents::default() || !equation_3 {
            written.put("model.latents", self.latents);
        }
        let objective = self.objective;
        if equation_3 {
            written.put("train.face_loss_weight", objective.face_loss_weight);
            written.put(
                "train.target_mask_threshold",
                objective.target_mask_threshold,
            );
        }
        written.put("train.loss_weighting", objective.loss_weighting);
    }
}

impl Noise {
    fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        Self::read_with(fields, Self::default().kind, faults)
    }

    fn read_with(fields: &mut Fields, kind: NoiseKind, faults: &mut Faults) -> Self {
        let noise = Self {
            kind: fields.written("model.noise.kind").unwrap_or(kind),
            steps: fields.read("model.noise.steps"),
            beta_start: fields.read("model.noise.beta_start"),
            beta_end: fields.read("model.noise.beta_end"),
            prediction: fields.read("model.noise.prediction"),
        };
        noise.checked(faults)
    }

    pub(super) fn checked(self, faults: &mut Faults) -> Self {
        let noise = self;
        faults.need(STEPS.contains(&noise.steps), "model.noise.steps", || {
            let (least, most) = (STEPS.start(), STEPS.end());
            format!(
                "is {}; a noise schedule has {least} to {most} time steps",
                noise.steps
            )
        });
        let (start, end) = (noise.beta_start, noise.beta_end);
        if noise.kind == NoiseKind::Cosine {
            let why = "model.noise.kind is cosine, which does not use it";
            for (field, value) in [
                ("model.noise.beta_start", start),
                ("model.noise.beta_end", end),
            ] {
                reject_unless_default(field, &value.into(), why, faults);
            }
            return noise;
        }
        for (field, beta) in [
            ("model.noise.beta_start", start),
            ("model.noise.beta_end", end),
        ] {
            // The comparisons also reject NaN.
            faults.need(0.0 < beta && beta < 1.0, field, || {
                format!("is {beta}; it must lie between 0 and 1, both excluded")
            });
        }
        faults.need(
            start <= end || start.is_nan() || end.is_nan(),
            "model.noise.beta_end",
            || format!("is {end}; it must be at least beta_start, which is {start}"),
        );
        noise
    }
}

impl Objective {
    fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        let objective = Self {
            face_loss_weight: fields.read("train.face_loss_weight"),
            target_mask_threshold: fields.read("train.target_mask_threshold"),
            loss_weighting: fields.read("train.loss_weighting"),
        };
        faults.non_negative("train.face_loss_weight", objective.face_loss_weight);
        let threshold = objective.target_mask_threshold;
        faults.need(
            (0.0..1.0).contains(&threshold),
            "train.target_mask_threshold",
            || format!("is {threshold}; it must be at least 0 and below 1"),
        );
        objective
    }
}
