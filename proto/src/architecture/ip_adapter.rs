//! IP-Adapter (Ye et al. 2023; `tencent-ailab/IP-Adapter`), one of the paper's four peers: tokens
//! of a CLIP image embedding are a second context of each cross-attention, with keys and values of
//! their own.

use super::config::{Component, ImageEncoderConfig};
use super::diffusion::Diffusion;
use super::facts::{Defaults, Facts, Sampling};
use super::fields::{Fields, Written};
use super::references::{ReferenceDefaults, References, Task};
use super::view::ImageView;
use crate::job::faults::Faults;
use crate::knobs::Knob;
use crate::size;
use serde::{Deserialize, Serialize};

/// The key of the adapter's weights among base weights, and the prefix of their names.
pub const OWN_PART: &str = "ip_adapter";
/// Tokens of one reference.
pub const TOKENS: u32 = 4;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpAdapter {
    pub diffusion: Diffusion,
    pub image_encoder: ImageEncoderConfig,
    pub references: References,
    pub view: ImageView,
}

pub(super) const FACTS: Facts = Facts {
    name: "ip-adapter",
    noun: "ip-adapter",
    components: &[
        Component::Autoencoder,
        Component::TextEncoder,
        Component::ImageEncoder,
        Component::Encoder,
        Component::Middle,
        Component::Decoder,
        Component::Adapter,
    ],
    frozen_by_default: &[
        Component::Autoencoder,
        Component::TextEncoder,
        Component::ImageEncoder,
        Component::Encoder,
        Component::Middle,
        Component::Decoder,
    ],
    always_frozen: &[Component::Autoencoder],
    equation_3: false,
    attends_to_text: true,
    sizes: &size::NAMES,
    base_parts: &[
        ("autoencoder", true),
        ("text_encoder", true),
        ("unet", true),
        ("image_encoder", true),
    ],
    own_file: Some(OWN_PART),
    // Its training script: AdamW at 1e-4 without clipping and warm-up.
    defaults: Defaults {
        prompt_drop: 0.05,
        learning_rate: 1e-4,
        ..Defaults::OURS
    },
    sampling: Sampling {
        images: true,
        prompts: true,
        references: true,
        references_max: 64,
        attention: false,
        knobs: &[Knob::ImageScale],
    },
};

impl IpAdapter {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        let defaults = ReferenceDefaults {
            count: 1,
            task: Task::Reconstruction,
            // Its script drops the image, the text or both, each with this probability.
            joint_drop: Some([0.05, 0.05]),
        };
        let references = References::read(fields, defaults, faults);
        faults.need(references.count > 0, "data.references", || {
            "is 0; ip-adapter generates images from references, so at least 1 is needed".into()
        });
        Self {
            diffusion: Diffusion::read_peer(fields, faults),
            image_encoder: ImageEncoderConfig::read(fields, size::vit_h, faults),
            view: fields.read("data.image_view"),
            references,
        }
    }

    pub(super) fn write(&self, written: &mut Written) {
        written.put("model.image_encoder", self.image_encoder);
        written.put("data.image_view", self.view);
    }
}

pub(super) fn why_unused(field: &str) -> String {
    match field {
        field if field.starts_with("train.") => {
            "ip-adapter has its authors' loss, the mean squared error over the whole latent"
                .to_owned()
        }
        _ => "ip-adapter does not use it".to_owned(),
    }
}
