//! ControlNet (Zhang et al. 2023; `lllyasviel/ControlNet`), one of the paper's four peers: a copy
//! of the U-Net's encoder and middle reads a reference image as its hint and adds residuals to the
//! skip connections and to the middle.

use super::config::Component;
use super::diffusion::Diffusion;
use super::facts::{Defaults, Facts, Sampling};
use super::fields::Fields;
use super::references::{ReferenceDefaults, References, Task};
use crate::job::faults::Faults;
use crate::knobs::Knob;
use crate::layout::UNetLayout;
use crate::sample::SampleWork;
use crate::size;
use serde::{Deserialize, Serialize};

/// The key of ControlNet's own weights among base weights, and the prefix of their names.
pub const OWN_PART: &str = "controlnet";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlNet {
    pub diffusion: Diffusion,
    pub references: References,
}

pub(super) const FACTS: Facts = Facts {
    name: "controlnet",
    noun: "controlnet",
    components: &[
        Component::Autoencoder,
        Component::TextEncoder,
        Component::Encoder,
        Component::Middle,
        Component::Decoder,
        Component::Control,
    ],
    // `sd_locked` of its code; unlocked, the decoder trains too.
    frozen_by_default: &[
        Component::Autoencoder,
        Component::TextEncoder,
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
    ],
    own_file: Some(OWN_PART),
    // torch's AdamW at 1e-5, without clipping and warm-up; its code drops no prompt.
    defaults: Defaults {
        prompt_drop: 0.0,
        ..Defaults::OURS
    },
    sampling: Sampling {
        images: true,
        prompts: true,
        references: true,
        references_max: 1,
        attention: false,
        knobs: &[Knob::ControlScales, Knob::GuessMode],
    },
};

impl ControlNet {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        let defaults = ReferenceDefaults {
            count: 1,
            task: Task::Reconstruction,
            joint_drop: None,
        };
        let references = References::read(fields, defaults, faults);
        faults.need(references.count == 1, "data.references", || {
            format!(
                "is {}; controlnet takes exactly 1 reference, its hint",
                references.count
            )
        });
        Self {
            diffusion: Diffusion::read_peer(fields, faults),
            references,
        }
    }

    /// Why a user's image of this size cannot be the hint of images of `side` pixels.
    pub(super) fn refuse_size(side: u32, (width, height): (u32, u32)) -> Option<String> {
        ((width, height) != (side, side)).then(|| {
            format!(
                "has {width}x{height} pixels; a controlnet's hint lies on the image pixel by \
                 pixel, so it must have {side}x{side}, the job's data.resolution: resize it or \
                 put it on a pad, or give its face box or mask, with which it is prepared as a \
                 sample of the data set is"
            )
        })
    }

    /// Number of residuals: one for each skip connection, and the middle's.
    #[must_use]
    pub fn residuals(&self) -> usize {
        UNetLayout::from(&self.diffusion.unet).input_levels().len() + 1
    }

    pub(super) fn refuse(&self, sample: &SampleWork) -> Option<(String, String)> {
        let scales = sample.knobs.control_scales.as_ref()?;
        let (count, expected) = (scales.len(), self.residuals());
        (count != 1 && count != expected).then(|| {
            let field = "knobs.control_scales".to_owned();
            let why = format!(
                "has {count} scales; this U-Net has {expected} residuals, so give 1 or {expected}"
            );
            (field, why)
        })
    }
}

pub(super) fn why_unused(field: &str) -> String {
    match field {
        "data.joint_drop" => {
            "controlnet drops prompts and references independently of each other".to_owned()
        }
        field if field.starts_with("train.") => {
            "controlnet has its authors' loss, the mean squared error over the whole latent"
                .to_owned()
        }
        _ => "controlnet does not use it".to_owned(),
    }
}
