//! SHA-256 of a stored object or of a local file, computed as a stream so that memory use stays
//! constant.

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};

/// Size and digest of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectDigest {
    pub size_bytes: u64,
    pub sha256: [u8; 32],
}

/// Reads the whole object.
///
/// # Errors
/// The object cannot be read.
pub async fn of_object(
    store: &dyn ObjectStore,
    path: &Path,
) -> Result<ObjectDigest, object_store::Error> {
    let (mut hash, mut size_bytes) = (Sha256::new(), 0);
    let mut chunks = store.get(path).await?.into_stream();
    while let Some(chunk) = chunks.try_next().await? {
        hash.update(&chunk);
        size_bytes += chunk.len() as u64;
    }
    Ok(ObjectDigest {
        size_bytes,
        sha256: hash.finalize().into(),
    })
}

/// Reads the whole local file.
///
/// # Errors
/// The file cannot be read.
pub fn of_file(path: &std::path::Path) -> std::io::Result<[u8; 32]> {
    let (mut file, mut hash) = (std::fs::File::open(path)?, Sha256::new());
    let _ = std::io::copy(&mut file, &mut hash)?;
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn an_object_and_its_file_have_one_hash() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = vec![7; 100_000];
        let file = dir.path().join("x");
        std::fs::write(&file, &bytes).unwrap();
        let (store, prefix) = crate::open(&format!("file://{}", dir.path().display())).unwrap();
        let found = of_object(&*store, &prefix.join("x")).await.unwrap();
        let expected = ObjectDigest {
            size_bytes: 100_000,
            sha256: Sha256::digest(&bytes).into(),
        };
        assert_eq!(found, expected);
        assert_eq!(of_file(&file).unwrap(), expected.sha256);
    }
}
