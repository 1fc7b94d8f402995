//! Kandinsky 2.2's prior (Razzhigaev et al. 2023; `diffusers`' `train_text_to_image_prior.py`), the
//! first half of one of the paper's four peers: from a prompt to the image embedding that the
//! decoder draws. It trains on targets and their prompts, and never sees a reference.

use super::config::{Component, ImageEncoderConfig, LossWeighting, TextEncoderConfig};
use super::diffusion::{Noise, NoiseKind, Prediction};
use super::facts::{Facts, Sampling};
use super::fields::{Fields, Written};
use super::view::ImageView;
use crate::job::faults::Faults;
use crate::layout::{Activation, PriorLayout, TextLayout};
use crate::sample::SampleWork;
use crate::size;
use crate::spec::ClipActivation;
use serde::{Deserialize, Serialize};

/// The key of the prior's weights among base weights, and the prefix of their names.
pub const PRIOR: &str = "prior";

/// The prior's transformer, `[model.prior]`. Published: 2048, 20, 32, true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorConfig {
    pub width: u32,
    pub layers: u32,
    pub heads: u32,
    /// Whether the text encoder has CLIP's projection, as the published one does. Without it the
    /// text's embedding is the state of its end token (ours, for text encoders of Stable
    /// Diffusion).
    pub text_projection: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KandinskyPrior {
    pub text_encoder: TextEncoderConfig,
    pub image_encoder: ImageEncoderConfig,
    pub prior: PriorConfig,
    pub loss_weighting: LossWeighting,
    pub view: ImageView,
}

pub(super) const FACTS: Facts = Facts {
    name: "kandinsky-prior",
    noun: "kandinsky-prior",
    components: &[
        Component::TextEncoder,
        Component::ImageEncoder,
        Component::Prior,
    ],
    frozen_by_default: &[Component::TextEncoder, Component::ImageEncoder],
    always_frozen: &[Component::TextEncoder, Component::ImageEncoder],
    equation_3: false,
    attends_to_text: false,
    sizes: &size::ALL,
    base_parts: &[
        ("text_encoder", true),
        ("image_encoder", true),
        (PRIOR, false),
    ],
    own_file: None,
    defaults: super::kandinsky_decoder::DEFAULTS,
    sampling: Sampling {
        images: false,
        prompts: true,
        references: false,
        references_max: 0,
        attention: false,
        knobs: &[],
    },
};

impl PriorConfig {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        let base = size::prior(fields.size());
        let mut number = |name: &str, default: u32| {
            let field = format!("model.prior.{name}");
            fields.written(&field).unwrap_or(default)
        };
        let config = Self {
            width: number("width", base.width),
            layers: number("layers", base.layers),
            heads: number("heads", base.heads),
            text_projection: fields
                .written("model.prior.text_projection")
                .unwrap_or(base.text_projection),
        };
        for (name, value, max) in [
            ("width", config.width, 8192),
            ("layers", config.layers, 128),
        ] {
            faults.count(&format!("model.prior.{name}"), value, max);
        }
        let divides = config.heads > 0 && config.width.is_multiple_of(config.heads);
        faults.need(divides, "model.prior.heads", || {
            format!(
                "is {}; it must divide model.prior.width, which is {}",
                config.heads, config.width
            )
        });
        faults.need(config.width.is_multiple_of(2), "model.prior.width", || {
            format!(
                "is {}; it must be even for the time step's embedding",
                config.width
            )
        });
        config
    }

    /// The network between these encoders.
    #[must_use]
    pub fn layout(self, text: &TextEncoderConfig, image: &ImageEncoderConfig) -> PriorLayout {
        PriorLayout {
            width: i64::from(self.width),
            layers: self.layers as usize,
            heads: i64::from(self.heads),
            tokens: i64::from(text.tokens),
            embedding: i64::from(image.projection),
        }
    }

    /// The text encoder, whose activation is that of the image encoder it was trained with.
    #[must_use]
    pub fn text_layout(self, text: &TextEncoderConfig, image: &ImageEncoderConfig) -> TextLayout {
        let mut layout = TextLayout::from(text);
        layout.transformer.activation = match image.activation {
            ClipActivation::QuickGelu => Activation::QuickGelu,
            ClipActivation::Gelu => Activation::Gelu,
        };
        layout.projection = self.text_projection.then(|| i64::from(image.projection));
        layout
    }
}

impl KandinskyPrior {
    /// The schedule of training and of UnCLIP's sampler, which knows no other.
    pub const NOISE: Noise = Noise {
        kind: NoiseKind::Cosine,
        steps: 1000,
        beta_start: 0.00085,
        beta_end: 0.012,
        prediction: Prediction::Epsilon,
    };

    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        fields.allow("data.prompt_drop");
        let it = Self {
            text_encoder: fields.text_encoder(),
            image_encoder: ImageEncoderConfig::read(fields, size::kandinsky_vit, faults),
            prior: PriorConfig::read(fields, faults),
            loss_weighting: fields.read("train.loss_weighting"),
            view: fields.read("data.image_view"),
        };
        let (text, image) = (it.text_encoder.width, it.image_encoder.projection);
        faults.need(text == image, "model.image_encoder.projection", || {
            format!(
                "is {image}; text states and image embeddings of a prior are equally wide, so it \
                must equal model.text_encoder.width, which is {text}"
            )
        });
        it
    }

    pub(super) fn write(&self, written: &mut Written) {
        written.put("model.text_encoder", &self.text_encoder);
        written.put("model.image_encoder", self.image_encoder);
        written.put("model.prior", self.prior);
        written.put("train.loss_weighting", self.loss_weighting);
        written.put("data.image_view", self.view);
    }

    #[expect(clippy::unused_self, reason = "as the other architectures")]
    pub(super) fn refuse(&self, _sample: &SampleWork) -> Option<(String, String)> {
        let why = "it trained a kandinsky-prior, which generates image embeddings and no images; \
                   export it beside the weights of a kandinsky-decoder, and generate images with \
                   the decoder's job and the knob prior_strength";
        Some(("job".to_owned(), why.to_owned()))
    }
}

pub(super) fn why_unused(field: &str) -> String {
    match field {
        field if super::references::has(field) => {
            "a prior trains on targets and prompts, and sees no reference".to_owned()
        }
        "model.latents" => "a prior has no autoencoder".to_owned(),
        field if field.starts_with("model.noise.") => {
            "a prior predicts the image embedding itself, on UnCLIP's cosine schedule of 1000 steps"
                .to_owned()
        }
        _ => "kandinsky-prior does not use it".to_owned(),
    }
}
