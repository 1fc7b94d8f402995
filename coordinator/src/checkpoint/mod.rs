//! Checkpoints in object storage. The coordinator commits and deletes them; commands verify, digest
//! and export them. Nothing here uses libtorch.

pub(crate) mod commit;
mod component;
pub(crate) mod digest;
pub(crate) mod export;
pub(crate) mod verify;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::checkpoint::{
    CheckpointManifest, CheckpointRef, MANIFEST_FILE, ShardEntry, checkpoint_folder,
};
use proto::id::JobId;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use storage::read::{ReadError, read_bounded};

/// Longest accepted safetensors header. A header has about 100 bytes per tensor.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Largest accepted manifest. It has some 200 bytes per rank.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error(transparent)]
    Url(#[from] storage::StoreError),
    #[error("{}", proto::text::chain(.0))]
    Base(#[from] base_weights::base::BaseError),
    #[error("cannot {action} {path}: {source}")]
    Storage {
        action: &'static str,
        path: String,
        source: object_store::Error,
    },
    #[error("{path} is no checkpoint manifest: {reason}")]
    Manifest { path: String, reason: String },
    #[error("{path} is no safetensors file: {reason}")]
    Shard { path: String, reason: String },
    #[error("tensor {name:?} is in two shards, {first} and {second}")]
    DuplicateTensor {
        name: String,
        first: String,
        second: String,
    },
    #[error(
        "the base weights at {url} have changed since the job started: their SHA-256 is {found}, \
        {path} says {expected}; restore the original weights"
    )]
    BaseMismatch {
        url: String,
        found: String,
        path: String,
        expected: String,
    },
    #[error("{0}")]
    Refused(String),
}

/// One checkpoint's folder.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    store: Arc<dyn ObjectStore>,
    folder: Path,
}

/// The location of one tensor's bytes.
#[derive(Debug, Clone)]
pub(crate) struct TensorLocation {
    /// The shard's file name.
    pub(crate) shard: String,
    pub(crate) info: TensorInfo,
    /// Byte range within the shard.
    pub(crate) range: Range<u64>,
}

impl Checkpoint {
    /// Reads nothing yet.
    pub(crate) fn at(
        store_url: &str,
        job: &JobId,
        checkpoint: CheckpointRef,
    ) -> Result<Self, CheckpointError> {
        let (store, prefix) = storage::open(store_url)?;
        Ok(Self::inside(store, &prefix, job, checkpoint))
    }

    fn inside(
        store: Arc<dyn ObjectStore>,
        prefix: &Path,
        job: &JobId,
        checkpoint: CheckpointRef,
    ) -> Self {
        let folder = checkpoint_folder(job, checkpoint.step, checkpoint.generation);
        let folder = folder
            .split('/')
            .fold(prefix.clone(), |path, part| path.join(part));
        Self { store, folder }
    }

    pub(crate) fn path(&self, file: &str) -> Path {
        self.folder.clone().join(file)
    }

    pub(crate) async fn manifest(&self) -> Result<CheckpointManifest, CheckpointError> {
        let path = self.path(MANIFEST_FILE);
        let bytes = self.manifest_bytes().await?;
        serde_json::from_slice(&bytes).map_err(|error| CheckpointError::Manifest {
            path: path.to_string(),
            reason: error.to_string(),
        })
    }

    async fn manifest_bytes(&self) -> Result<Bytes, CheckpointError> {
        let path = self.path(MANIFEST_FILE);
        read_bounded(&*self.store, &path, MANIFEST_BYTES_MAX)
            .await
            .map_err(|error| match error {
                ReadError::Store(source) => storage_error("read", &path, source),
                ReadError::TooLarge { .. } => CheckpointError::Manifest {
                    path: path.to_string(),
                    reason: error.to_string(),
                },
            })
    }

    /// Every tensor of every shard by name. Reads the shards' headers only.
    pub(crate) async fn tensors(
        &self,
        shards: &[ShardEntry],
    ) -> Result<BTreeMap<String, TensorLocation>, CheckpointError> {
        let mut locations: BTreeMap<String, TensorLocation> = BTreeMap::new();
        for shard in shards {
            let (data_start, metadata) = self.header(shard).await?;
            for (name, info) in metadata.tensors() {
                let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
                let location = TensorLocation {
                    shard: shard.path.clone(),
                    info: info.clone(),
                    range: data_start + begin..data_start + end,
                };
                if let Some(first) = locations.insert(name.clone(), location) {
                    let second = shard.path.clone();
                    return Err(CheckpointError::DuplicateTensor {
                        name,
                        first: first.shard,
                        second,
                    });
                }
            }
        }
        Ok(locations)
    }

    /// The offset of the data in a safetensors file, and its parsed header.
    async fn header(&self, shard: &ShardEntry) -> Result<(u64, Metadata), CheckpointError> {
        let invalid = |reason: String| CheckpointError::Shard {
            path: self.path(&shard.path).to_string(),
            reason,
        };
        let length = self.range(&shard.path, 0..8).await?;
        let length = u64::from_le_bytes(
            length
                .as_ref()
                .try_into()
                .map_err(|_| invalid("it is too short".into()))?,
        );
        if HEADER_BYTES_MAX < length || shard.size_bytes < 8 + length {
            return Err(invalid(format!(
                "its header claims a length of {length} bytes"
            )));
        }
        let bytes = self.range(&shard.path, 0..8 + length).await?;
        // Parsing also checks that the tensors are contiguous.
        let metadata: Metadata =
            serde_json::from_slice(&bytes[8..]).map_err(|error| invalid(error.to_string()))?;
        let end = 8 + length + metadata.data_len() as u64;
        if end != shard.size_bytes {
            return Err(invalid(format!(
                "its tensors end at byte {end}, and it has {} bytes",
                shard.size_bytes
            )));
        }
        Ok((8 + length, metadata))
    }

    pub(crate) async fn range(
        &self,
        file: &str,
        range: Range<u64>,
    ) -> Result<Bytes, CheckpointError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let path = self.path(file);
        self.store
            .get_range(&path, range)
            .await
            .map_err(|source| storage_error("read", &path, source))
    }
}

pub(crate) fn storage_error(
    action: &'static str,
    path: &Path,
    source: object_store::Error,
) -> CheckpointError {
    CheckpointError::Storage {
        action,
        path: path.to_string(),
        source,
    }
}
