//! Loads the base weights of an architecture into its parameters and computes their digest.
//! [`crate::public`] handles the file layouts. Called once, by the trainer.

use crate::architecture::interface::Architecture;
use crate::error::ModelError;
use crate::parameter::Parameters;
use crate::public::{self, Source};
use base_weights::init_digest::InitDigest;
use proto::architecture::Facts;
use proto::spec::Model;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The base weights by component ("autoencoder", "text_encoder", "unet", and an architecture's own
/// file; others are ignored): a safetensors file, or a folder with one and its `config.json`. One
/// file may contain several components.
pub type InitWeights = BTreeMap<String, PathBuf>;

/// Loads the components that `architecture` uses. Returns their digest, which checkpoints record.
pub(crate) fn load_init(
    architecture: &dyn Architecture,
    parameters: &Parameters,
    model: &Model,
    init: &InitWeights,
) -> Result<String, ModelError> {
    let (mut digest, mut hashes) = (InitDigest::default(), FileHashes::default());
    let facts = model.architecture.facts();
    for (component, needed) in facts.base_parts {
        let Some(path) = init.get(*component) else {
            if *needed || architecture.required().contains(component) {
                return Err(missing(component, facts));
            }
            continue;
        };
        let source = Source::open(path)?;
        digest.add(component, hashes.of(&source));
        let into = parameters.under(&format!("{component}."));
        // A component that only images need is part of the digest and is not loaded for training.
        if into.is_empty() {
            continue;
        }
        public::load(&source, component, model, &into)?;
    }
    let own = facts
        .own_file
        .and_then(|name| Some((name, init.get(name)?)));
    match own {
        None => architecture.initialize(parameters, None)?,
        Some((name, path)) => {
            let source = Source::open(path)?;
            digest.add(name, hashes.of(&source));
            architecture.initialize(parameters, Some((path, &source)))?;
        }
    }
    Ok(digest.finish())
}

/// Hashes of files by path, so that a file with several components is hashed once.
#[derive(Default)]
struct FileHashes(BTreeMap<PathBuf, [u8; 32]>);

impl FileHashes {
    fn of(&mut self, source: &Source) -> Vec<[u8; 32]> {
        let hashes = source.files().map(|(path, bytes)| {
            let hash = self.0.entry(path.to_owned());
            *hash.or_insert_with(|| Sha256::digest(bytes).into())
        });
        hashes.collect()
    }
}

fn missing(component: &'static str, facts: &Facts) -> ModelError {
    let needed = facts.base_parts.iter().filter(|(_, needed)| *needed);
    let files: Vec<String> = needed
        .map(|(name, _)| format!("{name}.safetensors"))
        .collect();
    let needed = match files.as_slice() {
        [rest @ .., before, last] => {
            let rest: String = rest.iter().map(|file| format!("{file}, ")).collect();
            format!("{rest}{before} and {last}")
        }
        single => single.concat(),
    };
    ModelError::MissingInit {
        component,
        architecture: facts.name,
        needed,
    }
}
