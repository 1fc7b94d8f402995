//! The paper's model (section 5.1), trained from a given base model.

use super::autoencoder;
use super::config::{Component, Retrieval};
use super::diffusion::Diffusion;
use super::facts::{Defaults, Facts, Sampling};
use super::fields::Fields;
use super::references::{ReferenceDefaults, References, Task};
use crate::job::faults::Faults;
use crate::size;
use serde::{Deserialize, Serialize};

/// The key of RetriNet's own weights among base weights, and the stem of their file name.
pub const OWN_FILE: &str = "retrinet";
/// The number of references is the paper's.
const DEFAULTS: ReferenceDefaults = ReferenceDefaults {
    count: 4,
    task: Task::Composition,
    joint_drop: None,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retrinet {
    pub diffusion: Diffusion,
    pub retrieval: Retrieval,
    pub references: References,
}

pub(super) const FACTS: Facts = Facts {
    name: "retrinet",
    noun: "retrinet",
    components: &[
        Component::Autoencoder,
        Component::TextEncoder,
        Component::Encoder,
        Component::Middle,
        Component::Decoder,
        Component::RetrievalEncoder,
        Component::CrossAttention,
    ],
    frozen_by_default: &[
        Component::Autoencoder,
        Component::TextEncoder,
        Component::Encoder,
        Component::Middle,
    ],
    always_frozen: &[Component::Autoencoder],
    equation_3: true,
    attends_to_text: true,
    sizes: &size::NAMES,
    base_parts: &[
        ("autoencoder", true),
        ("text_encoder", true),
        ("unet", true),
    ],
    own_file: Some(OWN_FILE),
    defaults: Defaults::OURS,
    sampling: Sampling {
        images: true,
        prompts: true,
        references: true,
        references_max: 64,
        attention: true,
        knobs: &[],
    },
};

impl Retrinet {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        let references = References::read(fields, DEFAULTS, faults);
        faults.need(references.count > 0, "data.references", || {
            "is 0; retrinet generates images from references, so at least 1 is needed (the paper \
            uses 4)"
                .into()
        });
        Self {
            diffusion: Diffusion::read(fields, faults),
            retrieval: Retrieval {
                attend: fields.read("model.retrieval.attend"),
                time: fields.read("model.retrieval.time"),
            },
            references,
        }
    }
}

/// It reads all fields except those of an autoencoder's loss and of the paper's peers.
pub(super) fn why_unused(field: &str) -> String {
    if autoencoder::has(field) {
        return autoencoder::why_foreign("retrinet");
    }
    "retrinet does not use it".to_owned()
}
