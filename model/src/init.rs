//! Base weights: which files an architecture begins from, how they get into its parameters, and their digest.
//! Called once, by the trainer.

use crate::error::{ModelError, WeightsFault};
use crate::parameter::Parameters;
use crate::weights::{self, hex};
use proto::spec::Architecture;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Local safetensors files by component: "autoencoder", "text_encoder", "unet". Others are not looked at.
pub type InitWeights = BTreeMap<String, PathBuf>;

/// The components whose files an architecture uses when they are there, and whether it can begin without
/// them.
#[must_use]
pub fn init_components(architecture: Architecture) -> &'static [(&'static str, bool)] {
    match architecture {
        Architecture::Autoencoder => &[("autoencoder", false)],
        Architecture::TextToImage => &[("autoencoder", true), ("text_encoder", false), ("unet", false)],
        Architecture::Retrinet => &[("autoencoder", true), ("text_encoder", true), ("unet", true)],
    }
}

/// Loads the files that `architecture` uses. Returns SHA-256 over the names and bytes of the files used, in
/// lower-case hex.
pub(crate) fn load_init(
    parameters: &Parameters,
    architecture: Architecture,
    init: &InitWeights,
) -> Result<String, ModelError> {
    let mut hash = Sha256::new();
    for (component, needed) in init_components(architecture) {
        let Some(path) = init.get(*component) else {
            if *needed {
                return Err(missing(component, architecture));
            }
            continue;
        };
        let fault = |source| ModelError::ReadWeights {
            path: path.clone(),
            source,
        };
        let bytes = std::fs::read(path).map_err(|source| fault(WeightsFault::Io(source)))?;
        hash.update(component.as_bytes());
        hash.update([0]);
        hash.update(Sha256::digest(&bytes));
        let tensors = weights::parse(&bytes).map_err(fault)?;
        let origin = path.display().to_string();
        weights::load(&origin, &tensors, &parameters.under(&format!("{component}.")))?;
    }
    Ok(hex(&hash.finalize()))
}

fn missing(component: &'static str, architecture: Architecture) -> ModelError {
    let (architecture, needed) = match architecture {
        Architecture::Autoencoder => ("autoencoder", "nothing"),
        Architecture::TextToImage => ("text-to-image", "autoencoder.safetensors"),
        Architecture::Retrinet => (
            "retrinet",
            "autoencoder.safetensors, text_encoder.safetensors and unet.safetensors",
        ),
    };
    ModelError::MissingInit {
        component,
        architecture,
        needed,
    }
}
