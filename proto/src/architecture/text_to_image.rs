//! A text-to-image U-Net with its text encoder, trained with a given autoencoder.

use super::autoencoder;
use super::config::Component;
use super::diffusion::Diffusion;
use super::facts::{Defaults, Facts, Sampling};
use super::fields::Fields;
use crate::job::faults::Faults;
use crate::size;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextToImage {
    pub diffusion: Diffusion,
}

pub(super) const FACTS: Facts = Facts {
    name: "text-to-image",
    noun: "text-to-image model",
    components: &[
        Component::Autoencoder,
        Component::TextEncoder,
        Component::Encoder,
        Component::Middle,
        Component::Decoder,
    ],
    frozen_by_default: &[Component::Autoencoder],
    always_frozen: &[Component::Autoencoder],
    equation_3: true,
    attends_to_text: true,
    sizes: &size::NAMES,
    base_parts: &[
        ("autoencoder", true),
        ("text_encoder", false),
        ("unet", false),
    ],
    own_file: None,
    defaults: Defaults::OURS,
    sampling: Sampling {
        images: true,
        prompts: true,
        references: false,
        references_max: 0,
        attention: false,
        knobs: &[],
    },
};

impl TextToImage {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        Self {
            diffusion: Diffusion::read(fields, faults),
        }
    }
}

/// It reads all fields except those about references and those of an autoencoder's loss.
pub(super) fn why_unused(field: &str) -> String {
    if autoencoder::has(field) {
        return autoencoder::why_foreign("text-to-image model");
    }
    "text-to-image uses no references".to_owned()
}
