//! The autoencoder alone. It reads images, but no prompts and no noise levels.

use super::config::{AutoencoderConfig, Component};
use super::facts::{Defaults, Facts, Sampling};
use super::fields::Fields;
use super::references;
use crate::size;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Autoencoder {
    pub autoencoder: AutoencoderConfig,
}

pub(super) const FACTS: Facts = Facts {
    name: "autoencoder",
    noun: "autoencoder",
    components: &[Component::Autoencoder],
    frozen_by_default: &[],
    always_frozen: &[],
    equation_3: false,
    attends_to_text: false,
    sizes: &size::NAMES,
    base_parts: &[("autoencoder", true)],
    own_file: None,
    defaults: Defaults::OURS,
    sampling: Sampling {
        prompts: false,
        references: false,
        references_max: 0,
        attention: false,
        knobs: &[],
    },
};

impl Autoencoder {
    pub(super) fn read(fields: &mut Fields) -> Self {
        Self {
            autoencoder: fields.autoencoder(),
        }
    }
}

pub(super) fn why_unused(field: &str) -> String {
    if references::has(field) {
        return "autoencoder uses no references".to_owned();
    }
    "an autoencoder trains on images only, without prompts and noise".to_owned()
}
