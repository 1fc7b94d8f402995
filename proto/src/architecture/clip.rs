//! A small CLIP: a text tower and an image tower that learn which prompt belongs to which image. It
//! scores images and gives other models image embeddings; it draws nothing.

use super::config::{Component, ImageEncoderConfig, TextEncoderConfig};
use super::facts::{Defaults, Facts, Sampling};
use super::fields::{Fields, Written};
use super::{autoencoder, references};
use crate::job::faults::Faults;
use crate::layout::{ImageLayout, TextLayout};
use crate::size;
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
    equation_3: false,
    attends_to_text: true,
    sizes: &size::NAMES,
    base_parts: &[],
    own_file: None,
    defaults: Defaults::OURS,
    sampling: Sampling {
        images: false,
        prompts: false,
        references: false,
        references_max: 0,
        attention: false,
        knobs: &[],
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
            image_encoder: image_encoder(fields, faults),
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

    /// The image tower.
    #[must_use]
    pub fn image_layout(&self) -> ImageLayout {
        ImageLayout::from(&self.image_encoder)
    }

    /// Without what follows from other fields.
    pub(super) fn write(&self, written: &mut Written) {
        written.put("model.text_encoder", &self.text_encoder);
        let image = &self.image_encoder;
        for (name, value) in [
            ("width", image.width),
            ("layers", image.layers),
            ("heads", image.heads),
            ("patch", image.patch),
            ("projection", image.projection),
        ] {
            written.put(&format!("model.image_encoder.{name}"), value);
        }
    }
}

/// The image tower of the job's images.
fn image_encoder(fields: &mut Fields, faults: &mut Faults) -> ImageEncoderConfig {
    for (name, why) in [
        ("side", "a clip reads images of the side data.resolution"),
        (
            "mlp_width",
            "in a clip it is 4 times model.image_encoder.width",
        ),
        ("activation", "a clip has quick-gelu"),
    ] {
        let field = format!("model.image_encoder.{name}");
        if fields.has(&field) {
            fields.allow(&field);
            faults.add(&field, format!("has no effect because {why}: leave it out"));
        }
    }
    let mut image = ImageEncoderConfig::of(size::clip_vit(fields.size()), fields);
    image.check(1024, faults);
    image.mlp_width = image.width.saturating_mul(4);
    image.side = fields.resolution();
    image
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
