//! FastComposer (Xiao et al. 2023; `mit-han-lab/fastcomposer`), one of the paper's four peers: the
//! CLIP embedding of an object's image is fused into the text state of the word that names the
//! object, and the whole U-Net trains.

use super::config::{Component, ImageEncoderConfig};
use super::diffusion::Diffusion;
use super::facts::{Defaults, Facts, Sampling};
use super::fields::{Fields, Written};
use super::references::{ReferenceDefaults, References, Task};
use crate::job::faults::Faults;
use crate::knobs::Knob;
use crate::size;
use serde::{Deserialize, Serialize};

/// The key of the fusion's weights among base weights, and the prefix of their names.
pub const OWN_PART: &str = "postfuse_module";
/// Layers at the end of the image encoder that train.
pub const TRAINED_LAYERS: u32 = 2;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FastComposer {
    pub diffusion: Diffusion,
    pub image_encoder: ImageEncoderConfig,
    pub references: References,
    /// Tags that name the subject; the first one in a prompt is the one that an object is fused
    /// into. Ours: the data set's prompts begin with 1girl or 1boy.
    pub subjects: Vec<String>,
    /// Probability that a sample's object is kept.
    pub object_keep: f64,
    /// Whether training augments the image of the object.
    pub augment: bool,
    /// Probability that the loss of a micro-batch counts the figure alone.
    pub mask_loss: f64,
    /// Weight of the loss that keeps the subject's attention on the figure.
    pub localization: f64,
}

pub(super) const FACTS: Facts = Facts {
    name: "fastcomposer",
    noun: "fastcomposer",
    components: &[
        Component::Autoencoder,
        Component::TextEncoder,
        Component::ImageEncoder,
        Component::ImageEncoderEnd,
        Component::Fusion,
        Component::Encoder,
        Component::Middle,
        Component::Decoder,
    ],
    frozen_by_default: &[
        Component::Autoencoder,
        Component::TextEncoder,
        Component::ImageEncoder,
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
    // Its script: AdamW at 1e-5, clipped at 1; its warm-up has no effect with a constant rate.
    defaults: Defaults {
        prompt_drop: 0.0,
        clip: 1.0,
        ..Defaults::OURS
    },
    sampling: Sampling {
        images: true,
        prompts: true,
        references: true,
        references_max: 1,
        attention: false,
        knobs: &[Knob::Alpha],
    },
};

impl FastComposer {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        let defaults = ReferenceDefaults {
            count: 1,
            task: Task::Reconstruction,
            // Its script drops prompt and object together.
            joint_drop: Some([0.0, 0.1]),
        };
        let references = References::read(fields, defaults, faults);
        faults.need(references.count == 1, "data.references", || {
            format!(
                "is {}; a prompt of this data set names one subject, so fastcomposer takes exactly \
                1 object",
                references.count
            )
        });
        let it = Self {
            diffusion: Diffusion::read_peer(fields, faults),
            image_encoder: ImageEncoderConfig::read(fields, size::vit_l, faults),
            references,
            subjects: fields.read("data.subjects"),
            object_keep: fields.read("data.object_keep"),
            augment: fields.read("data.augment"),
            mask_loss: fields.read("train.mask_loss"),
            localization: fields.read("train.localization"),
        };
        it.check(faults);
        it
    }

    fn check(&self, faults: &mut Faults) {
        faults.fraction("data.object_keep", self.object_keep);
        faults.fraction("train.mask_loss", self.mask_loss);
        faults.non_negative("train.localization", self.localization);
        let subjects = &self.subjects;
        let named = !subjects.is_empty() && subjects.iter().all(|it| !it.trim().is_empty());
        faults.need(named, "data.subjects", || {
            format!("is {subjects:?}; it must name at least one tag, such as [\"1girl\"]")
        });
        let (ours, width) = (
            self.image_encoder.projection,
            self.diffusion.text_encoder.width,
        );
        faults.need(ours == width, "model.image_encoder.projection", || {
            format!(
                "is {ours}; fastcomposer fuses the image's embedding with text states, so it must \
                equal model.text_encoder.width, which is {width}"
            )
        });
        let layers = self.image_encoder.layers;
        faults.need(
            layers >= TRAINED_LAYERS,
            "model.image_encoder.layers",
            || {
                format!(
                    "is {layers}; fastcomposer trains the last {TRAINED_LAYERS}, so there must be \
                    as many"
                )
            },
        );
    }

    pub(super) fn write(&self, written: &mut Written) {
        written.put("model.image_encoder", self.image_encoder);
        written.put("data.subjects", &self.subjects);
        written.put("data.object_keep", self.object_keep);
        written.put("data.augment", self.augment);
        written.put("train.mask_loss", self.mask_loss);
        written.put("train.localization", self.localization);
    }
}

pub(super) fn why_unused(field: &str) -> String {
    match field {
        "train.face_loss_weight" | "train.target_mask_threshold" => {
            "fastcomposer has its authors' loss".to_owned()
        }
        "data.image_view" => {
            "fastcomposer cuts the figure out and pads it to a square, as its code does".to_owned()
        }
        _ => "fastcomposer does not use it".to_owned(),
    }
}
