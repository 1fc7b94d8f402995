//! Kandinsky 2.2's decoder (Razzhigaev et al. 2023; `diffusers`' `train_text_to_image_decoder.py`),
//! the second half of one of the paper's four peers: a U-Net that draws an image embedding, here
//! that of a reference. Images may move the embedding towards a prompt with a trained prior.

use super::config::{Component, ImageEncoderConfig};
use super::diffusion::{Diffusion, Latents, NoiseKind};
use super::facts::{Defaults, Facts, Sampling};
use super::fields::{Fields, Written};
use super::kandinsky_prior::{PRIOR, PriorConfig};
use super::references::{ReferenceDefaults, References, Task};
use super::view::ImageView;
use crate::job::faults::Faults;
use crate::knobs::Knob;
use crate::layout::{ImageUNetLayout, MovqLayout};
use crate::sample::SampleWork;
use crate::size;
use serde::{Deserialize, Serialize};

/// The key of the weights that bring an image embedding into a U-Net of SD 1.5's shape, and the
/// prefix of their names.
pub const UNCLIP: &str = "unclip";
/// Tokens of an image embedding.
pub const IMAGE_TOKENS: u32 = 32;
/// Entries of MoVQ's codebook.
const CODES: i64 = 16_384;
/// Groups of MoVQ's norms. `diffusers` does not configure those of its decoder.
const MOVQ_GROUPS: u32 = 32;

/// `diffusers`' script: AdamW at 1e-4 without weight decay, a warm-up of 500 steps, clipped at 1.
pub(super) const DEFAULTS: Defaults = Defaults {
    prompt_drop: 0.0,
    learning_rate: 1e-4,
    weight_decay: 0.0,
    warmup: 500,
    clip: 1.0,
};

/// Which U-Net draws the embedding, `model.variant`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DecoderVariant {
    /// As published: its own U-Net on latents of MoVQ. It cannot begin from Stable Diffusion 1.5,
    /// as the paper writes.
    #[serde(rename = "kandinsky-2.2")]
    Kandinsky22,
    /// Ours: a U-Net of Stable Diffusion's shape on its autoencoder, which can begin from its
    /// weights. The tokens of the image embedding take the place of the text, and the embedding is
    /// added to the time embedding.
    #[serde(rename = "unclip-sd15")]
    UnclipSd15,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KandinskyDecoder {
    pub variant: DecoderVariant,
    /// Its text encoder is the prior's.
    pub diffusion: Diffusion,
    pub image_encoder: ImageEncoderConfig,
    pub prior: PriorConfig,
    pub references: References,
    pub view: ImageView,
    /// Whether the model is built with the prior and its text encoder, for images.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_prior: bool,
}

pub(super) const FACTS: Facts = Facts {
    name: "kandinsky-decoder",
    noun: "kandinsky-decoder",
    components: &[
        Component::Autoencoder,
        Component::ImageEncoder,
        Component::Adapter,
        Component::Encoder,
        Component::Middle,
        Component::Decoder,
    ],
    frozen_by_default: &[Component::Autoencoder, Component::ImageEncoder],
    always_frozen: &[Component::Autoencoder, Component::ImageEncoder],
    equation_3: false,
    attends_to_text: false,
    sizes: &size::ALL,
    base_parts: &[
        ("autoencoder", true),
        ("image_encoder", true),
        ("unet", false),
        // For images alone.
        ("text_encoder", false),
        (PRIOR, false),
    ],
    own_file: Some(UNCLIP),
    defaults: DEFAULTS,
    sampling: Sampling {
        images: true,
        prompts: true,
        references: true,
        references_max: 1,
        attention: false,
        knobs: &[
            Knob::PriorStrength,
            Knob::PriorSteps,
            Knob::PriorGuidance,
            Knob::PriorWhitened,
        ],
    },
};

impl KandinskyDecoder {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        let variant = variant(fields, faults);
        let defaults = ReferenceDefaults {
            count: 1,
            task: Task::Reconstruction,
            joint_drop: None,
        };
        let references = References::read(fields, defaults, faults);
        faults.need(references.count == 1, "data.references", || {
            format!(
                "is {}; a kandinsky-decoder draws the embedding of exactly 1 reference",
                references.count
            )
        });
        if variant == DecoderVariant::Kandinsky22 {
            fields.use_movq();
        }
        let (latents, noise) = match variant {
            DecoderVariant::Kandinsky22 => (Latents::Mean, NoiseKind::Linear),
            DecoderVariant::UnclipSd15 => (Latents::Sample, NoiseKind::ScaledLinear),
        };
        let it = Self {
            variant,
            diffusion: Diffusion::read_kandinsky(fields, latents, noise, faults),
            image_encoder: ImageEncoderConfig::read(fields, size::kandinsky_vit, faults),
            prior: PriorConfig::read(fields, faults),
            references,
            view: fields.read("data.image_view"),
            with_prior: false,
        };
        if variant == DecoderVariant::Kandinsky22 {
            it.check_published(faults);
        }
        it
    }

    /// What holds for Kandinsky's own U-Net and autoencoder.
    fn check_published(&self, faults: &mut Faults) {
        let unet = &self.diffusion.unet;
        let levels: Vec<u32> = (1..unet.channel_mult.len() as u32).collect();
        let (found, field) = (&unet.attention_levels, "model.unet.attention_levels");
        faults.need(*found == levels, field, || {
            format!("is {found:?}; all levels but the first attend, so it must be {levels:?}")
        });
        let widths = unet.channel_mult.iter().map(|mult| unet.channels * mult);
        let widths: Vec<u32> = widths.skip(1).collect();
        let first = widths.first().copied().unwrap_or(0);
        let channels = first.checked_div(unet.heads).unwrap_or(0);
        let divides = channels > 0 && widths.iter().all(|it| it.is_multiple_of(channels));
        faults.need(divides, "model.unet.heads", || {
            format!(
                "is {}; it is the number of heads of level 1, whose channels of a head must divide \
                the width of every further level, {widths:?}",
                unet.heads
            )
        });
        let groups = self.diffusion.autoencoder.norm_groups;
        faults.need(
            groups == MOVQ_GROUPS,
            "model.autoencoder.norm_groups",
            || format!("is {groups}; MoVQ's norms have {MOVQ_GROUPS} groups"),
        );
        let latents = self.diffusion.latents;
        faults.need(latents == Latents::Mean, "model.latents", || {
            "is \"sample\"; MoVQ has no posterior to sample from: leave it out".into()
        });
    }

    /// Kandinsky's own U-Net.
    #[must_use]
    pub fn unet_layout(&self) -> ImageUNetLayout {
        let unet = &self.diffusion.unet;
        let widths: Vec<i64> = unet
            .channel_mult
            .iter()
            .map(|mult| i64::from(unet.channels * mult))
            .collect();
        let attending = widths.get(1).copied().unwrap_or(0);
        ImageUNetLayout {
            head_channels: attending / i64::from(unet.heads.max(1)),
            widths,
            res_blocks: unet.res_blocks as usize,
            context_dim: i64::from(unet.context_dim),
            tokens: i64::from(IMAGE_TOKENS),
            embedding: i64::from(self.image_encoder.projection),
            latent_channels: i64::from(unet.latent_channels),
            norm_groups: i64::from(unet.norm_groups),
        }
    }

    /// Kandinsky's own autoencoder.
    #[must_use]
    pub fn movq_layout(&self) -> MovqLayout {
        let it = &self.diffusion.autoencoder;
        MovqLayout {
            widths: it
                .channel_mult
                .iter()
                .map(|mult| i64::from(it.channels * mult))
                .collect(),
            res_blocks: it.res_blocks as usize,
            latent_channels: i64::from(it.latent_channels),
            codes: CODES,
            norm_groups: i64::from(it.norm_groups),
        }
    }

    pub(super) fn write(&self, written: &mut Written) {
        written.put("model.variant", self.variant);
        written.put("model.image_encoder", self.image_encoder);
        written.put("model.prior", self.prior);
        written.put("data.image_view", self.view);
    }

    pub(super) fn refuse(&self, sample: &SampleWork) -> Option<(String, String)> {
        let knobs = &sample.knobs;
        let Some(strength) = knobs.prior_strength else {
            let others = [
                ("prior_steps", knobs.prior_steps.is_some()),
                ("prior_guidance", knobs.prior_guidance.is_some()),
                ("prior_whitened", knobs.prior_whitened.is_some()),
            ];
            let (name, _) = others.into_iter().find(|(_, set)| *set)?;
            let why = "has no effect without prior_strength, which uses the prior: leave it out";
            return Some((format!("knobs.{name}"), why.to_owned()));
        };
        let steps = knobs.prior_steps();
        if knobs.prior_steps_kept() == 0 {
            let why = format!(
                "is {strength}; of the prior's {steps} steps it keeps none: give at least {}, or \
                leave it out to draw the reference's embedding as it is",
                1.0 / f64::from(steps)
            );
            return Some(("knobs.prior_strength".to_owned(), why));
        }
        let (text, image) = (
            self.diffusion.text_encoder.width,
            self.image_encoder.projection,
        );
        (text != image).then(|| {
            let why = format!(
                "needs a prior between a text encoder and an image encoder of one width, but this \
                job has model.text_encoder.width = {text} and model.image_encoder.projection = \
                {image}"
            );
            ("knobs.prior_strength".to_owned(), why)
        })
    }
}

fn variant(fields: &mut Fields, faults: &mut Faults) -> DecoderVariant {
    let of_size = match fields.size() {
        "sd15" => Some(DecoderVariant::UnclipSd15),
        size::KANDINSKY => Some(DecoderVariant::Kandinsky22),
        _ => None,
    };
    let size = fields.size().to_owned();
    let written: Option<DecoderVariant> = fields.written("model.variant");
    let variant = written.or(of_size).unwrap_or(DecoderVariant::Kandinsky22);
    let fits = of_size.is_none_or(|it| it == variant);
    faults.need(fits, "model.variant", || {
        let (name, other) = match variant {
            DecoderVariant::Kandinsky22 => ("kandinsky-2.2", size::KANDINSKY),
            DecoderVariant::UnclipSd15 => ("unclip-sd15", "sd15"),
        };
        format!(
            "is {name:?}, but model.size is {size:?}; its published size is {other:?}, and it has \
            the sizes tiny and small"
        )
    });
    variant
}

pub(super) fn why_unused(field: &str) -> String {
    match field {
        "data.joint_drop" => "kandinsky-decoder reads no prompts in training".to_owned(),
        field if field.starts_with("train.") => {
            "kandinsky-decoder has its authors' loss, the mean squared error over the whole latent"
                .to_owned()
        }
        _ => "kandinsky-decoder does not use it".to_owned(),
    }
}
