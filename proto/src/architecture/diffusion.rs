//! What every latent diffusion model reads: its networks, its noise schedule, and what a prediction
//! is worth.

use super::config::{AutoencoderConfig, LossWeighting, TextEncoderConfig, UNetConfig};
use super::fields::{Fields, Written, refuse_unless_default};
use crate::job::faults::Faults;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Diffusion {
    pub autoencoder: AutoencoderConfig,
    pub text_encoder: TextEncoderConfig,
    pub unet: UNetConfig,
    pub noise: Noise,
    pub objective: Objective,
}

/// The noise schedule, `[model.noise]`. The default is Stable Diffusion's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noise {
    pub kind: NoiseKind,
    /// Time steps, 0 to `steps - 1`, the last the noisiest.
    pub steps: u32,
    /// beta of the first time step and of the last; a cosine schedule has its own.
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

/// How beta goes from its first value to its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoiseKind {
    /// Linear in the square root.
    ScaledLinear,
    Linear,
    /// abar is the square of a cosine (Nichol and Dhariwal 2021); beta is at most 0.999.
    Cosine,
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

/// Equation 3 and how much each noise level counts in it, fields of `[train]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// lambda of equation 3.
    pub face_loss_weight: f64,
    /// A cell of the latent counts in the first term where the image covers more than this fraction
    /// of it; 0 to below 1. Ours: 0.5. The face's mask keeps its fractions.
    pub target_mask_threshold: f64,
    /// How much each noise level counts.
    pub loss_weighting: LossWeighting,
}

/// Fewer time steps than this are no schedule, and more are a slip.
const STEPS: std::ops::RangeInclusive<u32> = 10..=10_000;

impl Diffusion {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        fields.allow("data.prompt_drop");
        Self {
            autoencoder: fields.autoencoder.clone(),
            text_encoder: fields.text_encoder(),
            unet: fields.unet(),
            noise: Noise::read(fields, faults),
            objective: Objective::read(fields, faults),
        }
    }

    pub(super) fn write(&self, written: &mut Written) {
        written.put("model.unet", &self.unet);
        written.put("model.text_encoder", &self.text_encoder);
        written.put("model.noise", self.noise);
        let objective = self.objective;
        written.put("train.face_loss_weight", objective.face_loss_weight);
        written.put(
            "train.target_mask_threshold",
            objective.target_mask_threshold,
        );
        written.put("train.loss_weighting", objective.loss_weighting);
    }
}

impl Noise {
    fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        let noise = Self {
            kind: fields.read("model.noise.kind"),
            steps: fields.read("model.noise.steps"),
            beta_start: fields.read("model.noise.beta_start"),
            beta_end: fields.read("model.noise.beta_end"),
            prediction: fields.read("model.noise.prediction"),
        };
        faults.need(STEPS.contains(&noise.steps), "model.noise.steps", || {
            let (least, most) = (STEPS.start(), STEPS.end());
            format!(
                "is {}; a noise schedule has {least} to {most} time steps",
                noise.steps
            )
        });
        let (start, end) = (noise.beta_start, noise.beta_end);
        if noise.kind == NoiseKind::Cosine {
            let why = "model.noise.kind is cosine, which has no such end";
            for (field, value) in [
                ("model.noise.beta_start", start),
                ("model.noise.beta_end", end),
            ] {
                refuse_unless_default(field, &value.into(), why, faults);
            }
            return noise;
        }
        for (field, beta) in [
            ("model.noise.beta_start", start),
            ("model.noise.beta_end", end),
        ] {
            // Not a number is in no range.
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
        faults.rate("train.face_loss_weight", objective.face_loss_weight);
        let threshold = objective.target_mask_threshold;
        faults.need(
            (0.0..1.0).contains(&threshold),
            "train.target_mask_threshold",
            || format!("is {threshold}; it must be at least 0 and below 1"),
        );
        objective
    }
}
