//! Base weights: which files an architecture begins from, how they get into its parameters, and their digest.
//! Called once, by the trainer.

use crate::error::{ModelError, WeightsFault};
use crate::parameter::Parameters;
use crate::weights::{self, NamedTensors, hex};
use proto::spec::Architecture;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Local safetensors files by component: "autoencoder", "text_encoder", "unet", and [`RETRINET`]. Others are not looked
/// at.
pub type InitWeights = BTreeMap<String, PathBuf>;

/// What an exported RetriNet has beside its U-Net, under full names: a job that begins from it goes on from there.
pub(crate) const RETRINET: &str = "retrinet";

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
        load_file(
            component,
            path,
            &parameters.under(&format!("{component}.")),
            &mut hash,
        )?;
    }
    if architecture == Architecture::Retrinet {
        let mut own = parameters.tensors();
        own.retain(|name, _| {
            init_components(architecture)
                .iter()
                .all(|(it, _)| component(name) != *it)
        });
        match init.get(RETRINET) {
            Some(path) => load_file(RETRINET, path, &own, &mut hash)?,
            None => copy_encoder(parameters)?,
        }
    }
    Ok(hex(&hash.finalize()))
}

fn load_file(component: &str, path: &Path, into: &NamedTensors, hash: &mut Sha256) -> Result<(), ModelError> {
    let fault = |source| ModelError::ReadWeights {
        path: path.to_owned(),
        source,
    };
    let bytes = std::fs::read(path).map_err(|source| fault(WeightsFault::Io(source)))?;
    hash.update(component.as_bytes());
    hash.update([0]);
    hash.update(Sha256::digest(&bytes));
    let tensors = weights::parse(&bytes).map_err(fault)?;
    weights::load(&path.display().to_string(), &tensors, into)
}

/// A retrieval encoder begins as the U-Net's encoder (paper, section 5.1). Nothing to do without one.
pub(crate) fn copy_encoder(parameters: &Parameters) -> Result<(), ModelError> {
    let copies = parameters.under("retrieval.");
    let mut base = parameters.under("unet.");
    base.retain(|name, _| copies.contains_key(name));
    weights::load("the base U-Net", &base, &copies)
}

/// The first part of a parameter's full name.
fn component(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
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
