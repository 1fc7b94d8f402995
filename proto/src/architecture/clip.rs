//! A small CLIP: a text tower and an image tower that learn which prompt belongs to which image. It
//! scores images and gives other models image embeddings; it draws nothing.

use super::config::{Component, ImageEncoderConfig, TextEncoderConfig};
use super::facts::{Facts, Sampling};
use super::fields::{Fields, Written};
use super::{autoencoder, references};
use crate::job::faults::Faults;
use crate::layout::{Activation, ImageLayout, TextLayout, TransformerLayout};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    pub text_encoder: TextEncoderConfig,
    pub image_encoder: ImageEncoderConfig,
}

pub(super) const FACTS: Facts = Facts {
    name: "clip",
    noun: "CLIP",
    components: &[Component::TextEncoder, Component::ImageEncoder],
    frozen_by_default: &[],
    always_frozen: &[],
    base_parts: &[],
    own_file: None,
    sampling: Sampling {
        images: false,
        prompts: false,
        references: false,
    },
};

impl Clip {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        for field in ["data.prompt_order", "data.looks_drop"] {
            fields.allow(field);
        }
        let prompt_drop: f64 = fields.read("data.prompt_drop");
        faults.need(prompt_drop == 0.0, "data.prompt_drop", || {
            format!(
                "is {prompt_drop}; it must be 0, because an empty prompt belongs to every image: \
                 set data.prompt_drop = 0"
            )
        });
        Self {
            text_encoder: fields.text_encoder(),
            image_encoder: fields.image_encoder(),
        }
    }

    /// The text tower, with its projection.
    #[must_use]
    pub fn text_layout(&self) -> TextLayout {
        TextLayout {
            projection: Some(i64::from(self.image_encoder.projection)),
            ..TextLayout::from(&self.text_encoder)
        }
    }

    /// The image tower for images of this side in pixels.
    #[must_use]
    pub fn image_layout(&self, resolution: u32) -> ImageLayout {
        let image = &self.image_encoder;
        let width = i64::from(image.width);
        ImageLayout {
            transformer: TransformerLayout {
                width,
                mlp_width: 4 * width,
                layers: image.layers as usize,
                heads: i64::from(image.heads),
                activation: Activation::QuickGelu,
                norm_epsilon: 1e-5,
            },
            side: i64::from(resolution),
            patch: i64::from(image.patch),
            projection: i64::from(image.projection),
        }
    }

    pub(super) fn write(&self, written: &mut Written) {
        written.put("model.text_encoder", &self.text_encoder);
        written.put("model.image_encoder", &self.image_encoder);
    }
}

pub(super) fn why_unused(field: &str) -> String {
    if references::has(field) {
        return "clip uses no references".to_owned();
    }
    if autoencoder::has(field) {
        return autoencoder::why_foreign("CLIP");
    }
    "a CLIP compares clean images with prompts".to_owned()
}
