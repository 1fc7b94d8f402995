//! The digest by which a checkpoint names the base weights that its job started from: SHA-256 over
//! the names of the components that the job loaded and the SHA-256 of each of their files, in
//! lower-case hex. Ranks compute it from the files that they map, the export from the objects
//! behind the URL. Both use this code.

use crate::base::{Base, BaseError};
use proto::spec::Architecture;
use proto::text::hex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use storage::read::ReadError;

/// Accumulates the digest. Components are added in the order of [`Base::taken_over`], the files of
/// each by name.
#[derive(Debug, Default)]
pub struct InitDigest(Sha256);

impl InitDigest {
    /// Adds a component with the SHA-256 of each of its files.
    pub fn add(&mut self, component: &str, files: impl IntoIterator<Item = [u8; 32]>) {
        self.0.update(component.as_bytes());
        self.0.update([0]);
        for file in files {
            self.0.update(file);
        }
    }

    #[must_use]
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// The digest of the components that a job of this architecture would load from `base` now. Reads
/// each of their files once.
///
/// # Errors
/// A file cannot be read.
pub async fn init_digest(base: &Base, architecture: Architecture) -> Result<String, BaseError> {
    let mut digest = InitDigest::default();
    // One file may hold several components.
    let mut hashed: BTreeMap<&str, [u8; 32]> = BTreeMap::new();
    for (component, files) in base.taken_over(architecture) {
        let mut hashes = Vec::with_capacity(files.weights.len());
        for file in &files.weights {
            let hash = match hashed.get(file.as_str()) {
                Some(hash) => *hash,
                None => sha256(base, file).await?,
            };
            hashed.insert(file, hash);
            hashes.push(hash);
        }
        digest.add(component, hashes);
    }
    Ok(digest.finish())
}

async fn sha256(base: &Base, file: &str) -> Result<[u8; 32], BaseError> {
    let (store, path) = base.object(file);
    match storage::hash::of_object(&**store, &path).await {
        Ok(found) => Ok(found.sha256),
        Err(source) => Err(base.read_error(file, ReadError::Store(source))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn hash(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }

    #[tokio::test]
    async fn it_covers_what_the_architecture_takes_over_and_every_byte_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        let url = format!("file://{}", folder.path().display());
        let digest_of = async |architecture| {
            let base = Base::find(&url).await.unwrap();
            init_digest(&base, architecture).await.unwrap()
        };
        put("autoencoder.safetensors", b"one");
        put(
            "unet/model.safetensors.index.json",
            br#"{"weight_map": {"x": "b", "y": "a"}}"#,
        );
        put("unet/a", b"two");
        put("unet/b", b"three");
        put("retrinet.safetensors", b"four");
        let mut expected = InitDigest::default();
        expected.add("autoencoder", [hash(b"one")]);
        assert_eq!(
            digest_of(Architecture::Autoencoder).await,
            expected.finish()
        );
        let mut expected = InitDigest::default();
        expected.add("autoencoder", [hash(b"one")]);
        expected.add("unet", [hash(b"two"), hash(b"three")]);
        expected.add("retrinet", [hash(b"four")]);
        assert_eq!(digest_of(Architecture::Retrinet).await, expected.finish());

        let (with, without) = (
            digest_of(Architecture::Retrinet).await,
            digest_of(Architecture::TextToImage).await,
        );
        put("retrinet.safetensors", b"f0ur");
        assert_ne!(digest_of(Architecture::Retrinet).await, with);
        assert_eq!(digest_of(Architecture::TextToImage).await, without);
    }
}
