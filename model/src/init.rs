//! Base weights: which components an architecture begins from, how they get into its parameters, and their digest. The
//! layouts of files are [`crate::public`]'s. Called once, by the trainer.

use crate::error::ModelError;
use crate::parameter::Parameters;
use crate::public::{self, Source};
use crate::weights;
use base_weights::base::RETRINET;
use base_weights::init_digest::InitDigest;
use proto::public::base::parts;
use proto::spec::{Architecture, Model};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What an architecture begins from, by component ("autoencoder", "text_encoder", "unet", and [`RETRINET`]; others are
/// not looked at): a safetensors file, or the folder that has it with its `config.json`. One file may hold several.
pub type InitWeights = BTreeMap<String, PathBuf>;

/// Loads what `model`'s architecture uses. Returns the digest by which checkpoints name it.
pub(crate) fn load_init(
    parameters: &Parameters,
    model: &Model,
    init: &InitWeights,
) -> Result<String, ModelError> {
    let (mut digest, mut hashes) = (InitDigest::default(), Hashes::default());
    let parts = parts(model.architecture);
    for (component, needed) in parts {
        let Some(path) = init.get(*component) else {
            if *needed {
                return Err(missing(component, model.architecture));
            }
            continue;
        };
        let source = Source::open(path)?;
        digest.add(component, hashes.of(&source));
        let into = parameters.under(&format!("{component}."));
        public::load(&source, component, model, &into)?;
    }
    if model.architecture == Architecture::Retrinet {
        let mut own = parameters.tensors();
        own.retain(|name, _| parts.iter().all(|(it, _)| component(name) != *it));
        match init.get(RETRINET) {
            Some(path) => {
                let source = Source::open(path)?;
                let found = source.retrieval()?;
                if found != model.retrieval {
                    return Err(ModelError::Config {
                        field: "retrieval",
                        value: format!("{:?}", model.retrieval),
                        expected: format!("{} was trained with {found:?}", path.display()),
                    });
                }
                digest.add(RETRINET, hashes.of(&source));
                source.load(&own, |name| vec![name.to_owned()], |_| true)?;
            }
            None => copy_encoder(parameters)?,
        }
    }
    Ok(digest.finish())
}

/// Hashes of files by their paths: one that holds several components is read for it once.
#[derive(Default)]
struct Hashes(BTreeMap<PathBuf, [u8; 32]>);

impl Hashes {
    fn of(&mut self, source: &Source) -> Vec<[u8; 32]> {
        let hashes = source.files().map(|(path, bytes)| {
            let hash = self.0.entry(path.to_owned());
            *hash.or_insert_with(|| Sha256::digest(bytes).into())
        });
        hashes.collect()
    }
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
        Architecture::Autoencoder => ("autoencoder", "autoencoder.safetensors"),
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
