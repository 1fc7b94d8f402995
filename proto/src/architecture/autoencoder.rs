//! The autoencoder alone. It reads images, but no prompts and no noise levels.

use super::config::{AutoencoderConfig, Component};
use super::facts::{Defaults, Facts, Sampling};
use super::fields::{Fields, Written};
use super::references;
use crate::job::faults::Faults;
use crate::size;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Autoencoder {
    pub autoencoder: AutoencoderConfig,
    #[serde(default, skip_serializing_if = "Reconstruction::is_default")]
    pub reconstruction: Reconstruction,
}

/// The weights of the loss' terms beside the absolute plus half the squared difference; fields of
/// `[train]`. All of them are ours: the paper takes its autoencoder from Stable Diffusion.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconstruction {
    /// Weight of the absolute difference between the differences of neighbouring pixels, which are
    /// large at outlines.
    pub edge_loss_weight: f64,
    /// Weight of the KL divergence of the posterior, per latent value.
    pub kl_loss_weight: f64,
}

const LOSS_FIELDS: [&str; 2] = ["train.edge_loss_weight", "train.kl_loss_weight"];

impl Default for Reconstruction {
    fn default() -> Self {
        Self {
            edge_loss_weight: 0.0,
            kl_loss_weight: 1e-4,
        }
    }
}

impl Reconstruction {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        let read = Self {
            edge_loss_weight: fields.read("train.edge_loss_weight"),
            kl_loss_weight: fields.read("train.kl_loss_weight"),
        };
        faults.non_negative("train.edge_loss_weight", read.edge_loss_weight);
        faults.non_negative("train.kl_loss_weight", read.kl_loss_weight);
        read
    }

    /// Older releases do not know the fields, so only jobs that use them name them.
    pub(super) fn write(&self, written: &mut Written) {
        let default = Self::default();
        if self.edge_loss_weight != default.edge_loss_weight {
            written.put("train.edge_loss_weight", self.edge_loss_weight);
        }
        if self.kl_loss_weight != default.kl_loss_weight {
            written.put("train.kl_loss_weight", self.kl_loss_weight);
        }
    }
}

pub(super) const FACTS: Facts = Facts {
    name: "autoencoder",
    noun: "autoencoder",
    // Frozen, the encoder keeps latents as they are while the decoder goes on learning. The rest is
    // called as ever, because stored jobs may name it.
    components: &[Component::Encoder, Component::Autoencoder],
    frozen_by_default: &[],
    always_frozen: &[],
    equation_3: false,
    attends_to_text: false,
    sizes: &size::NAMES,
    base_parts: &[("autoencoder", true)],
    own_file: None,
    defaults: Defaults::OURS,
    sampling: Sampling {
        images: true,
        prompts: false,
        references: false,
        references_max: 0,
        attention: false,
        knobs: &[],
    },
};

impl Autoencoder {
    pub(super) fn read(fields: &mut Fields, faults: &mut Faults) -> Self {
        Self {
            autoencoder: fields.autoencoder(),
            reconstruction: Reconstruction::read(fields, faults),
        }
    }
}

/// Whether a field is of the autoencoder's loss.
pub(super) fn has(field: &str) -> bool {
    LOSS_FIELDS.contains(&field)
}

/// Why such a field has no effect on another architecture.
pub(super) fn why_foreign(name: &str) -> String {
    format!("it weights the loss of an autoencoder, which a {name} does not train")
}

pub(super) fn why_unused(field: &str) -> String {
    if references::has(field) {
        return "autoencoder uses no references".to_owned();
    }
    "an autoencoder trains on images only, without prompts and noise".to_owned()
}
