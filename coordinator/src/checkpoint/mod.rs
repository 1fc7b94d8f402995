//! Checkpoints as they lie in object storage, seen by the coordinator (which commits and deletes
//! them) and by people's commands (which verify, digest and export them). Nothing here knows
//! libtorch or trains anything.

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

/// Longest safetensors header that is read. A header has about 100 bytes per tensor.
const HEADER_BYTES_MAX: u64 = 64 << 20;

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
    Twice {
        name: String,
        first: String,
        second: String,
    },
    #[error(
        "the base weights at {url} are not those that the job began with: their SHA-256 is \
        {found}, {path} says \
         {expected}; put the weights of then back there"
    )]
    OtherBase {
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

/// Where one tensor's bytes lie.
#[derive(Debug, Clone)]
pub(crate) struct TensorPlace {
    /// The shard's file name.
    pub(crate) shard: String,
    pub(crate) info: TensorInfo,
    /// Bytes of the shard.
    pub(crate) range: Range<u64>,
}

impl Checkpoint {
    /// Nothing is read yet.
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
        let bytes = self.bytes(MANIFEST_FILE).await?;
        serde_json::from_slice(&bytes).map_err(|error| CheckpointError::Manifest {
            path: path.to_string(),
            reason: error.to_string(),
        })
    }

    async fn bytes(&self, file: &str) -> Result<Bytes, CheckpointError> {
        let path = self.path(file);
        let read = async { self.store.get(&path).await?.bytes().await };
        read.await.map_err(|source| storage("read", &path, source))
    }

    /// Every tensor of every shard by name. Reads the shards' headers only.
    pub(crate) async fn tensors(
        &self,
        shards: &[ShardEntry],
    ) -> Result<BTreeMap<String, TensorPlace>, CheckpointError> {
        let mut places: BTreeMap<String, TensorPlace> = BTreeMap::new();
        for shard in shards {
            let (data_start, metadata) = self.header(shard).await?;
            for (name, info) in metadata.tensors() {
                let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
                let place = TensorPlace {
                    shard: shard.path.clone(),
                    info: info.clone(),
                    range: data_start + begin..data_start + end,
                };
                if let Some(first) = places.insert(name.clone(), place) {
                    let second = shard.path.clone();
                    return Err(CheckpointError::Twice {
                        name,
                        first: first.shard,
                        second,
                    });
                }
            }
        }
        Ok(places)
    }

    /// Where the data of a safetensors file begins, and what its header says.
    async fn header(&self, shard: &ShardEntry) -> Result<(u64, Metadata), CheckpointError> {
        let wrong = |reason: String| CheckpointError::Shard {
            path: self.path(&shard.path).to_string(),
            reason,
        };
        let length = self.range(&shard.path, 0..8).await?;
        let length = u64::from_le_bytes(
            length
                .as_ref()
                .try_into()
                .map_err(|_| wrong("it is too short".into()))?,
        );
        if HEADER_BYTES_MAX < length || shard.size_bytes < 8 + length {
            return Err(wrong(format!("its header says to be {length} bytes long")));
        }
        let bytes = self.range(&shard.path, 0..8 + length).await?;
        // Reading it also checks that the tensors lie one behind the other without gaps.
        let metadata: Metadata =
            serde_json::from_slice(&bytes[8..]).map_err(|error| wrong(error.to_string()))?;
        let end = 8 + length + metadata.data_len() as u64;
        if end != shard.size_bytes {
            return Err(wrong(format!(
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
            .map_err(|source| storage("read", &path, source))
    }
}

pub(crate) fn storage(
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
