//! Writes a rank's shard of a checkpoint to the object store and reads whole checkpoints back.
//! Every shard is hashed when written and verified when read. The coordinator writes the manifest
//! once all shards exist. Called by [`crate::train`] and [`crate::unit_runner`].

use crate::deadline::Deadlines;
use crate::outage::retry_through_outage;
use crate::position::Position;
use crate::sharding;
use crate::upload::put;
use bytes::Bytes;
use model::error::WeightsFault;
use model::trainer::Trainer;
use model::weights::{self, NamedTensors, Storage};
use object_store::ObjectStore;
use object_store::path::Path;
use proto::checkpoint::{
    CheckpointManifest, CheckpointRef, MANIFEST_BYTES_MAX, MANIFEST_FILE, ShardEntry,
    checkpoint_folder,
};
use proto::id::JobId;
use proto::text::hex_sha256;
use std::sync::Arc;
use storage::StoreError;
use storage::read::{ReadError, read_bounded};
use tch::Tensor;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot {action} {path}")]
    Object {
        action: &'static str,
        path: String,
        source: object_store::Error,
    },
    #[error("{path} is not a valid manifest")]
    Manifest {
        path: String,
        source: serde_json::Error,
    },
    #[error("{path} is too large: {source}")]
    TooLarge { path: String, source: ReadError },
    #[error("{path} is damaged: {what} is {found}, the manifest says {expected}")]
    Damaged {
        path: String,
        what: &'static str,
        found: String,
        expected: String,
    },
    #[error(
        "the base weights have the SHA-256 {found}, and {path} was made with {expected}: the \
        weights that the job does not train come from the base; restore the files that model.init \
        named when the checkpoint was made"
    )]
    BaseMismatch {
        path: String,
        found: String,
        expected: String,
    },
    #[error("{path} cannot be written or read as safetensors")]
    Format { path: String, source: WeightsFault },
}

/// A job's checkpoints in the object store.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    job: JobId,
}

impl Checkpoints {
    pub(crate) fn open(store_url: &str, job: &JobId) -> Result<Self, CheckpointError> {
        let (store, prefix) = storage::open(store_url)?;
        Ok(Self {
            store,
            prefix,
            job: job.clone(),
        })
    }

    fn path(&self, checkpoint: CheckpointRef, file: &str) -> Path {
        let folder = checkpoint_folder(&self.job, checkpoint.step, checkpoint.generation);
        folder
            .split('/')
            .chain([file])
            .fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Writes this rank's shard of `state` (sorted by name, the same on every rank) and returns its
    /// manifest entry. Retries during an outage of the object store.
    pub(crate) async fn write_shard(
        &self,
        deadlines: Deadlines,
        checkpoint: CheckpointRef,
        position: Position,
        state: &[(String, Tensor)],
    ) -> Result<ShardEntry, CheckpointError> {
        let Position { rank, world } = position;
        let file = format!("rank-{rank}-of-{world}.safetensors");
        let path = self.path(checkpoint, &file);
        let sizes: Vec<u64> = state.iter().map(|(_, tensor)| size_bytes(tensor)).collect();
        let shard = state[sharding::tensors(&sizes, position)]
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        let bytes = weights::serialize(&shard, Storage::Float32).map_err(|source| {
            CheckpointError::Format {
                path: path.to_string(),
                source,
            }
        })?;
        let entry = ShardEntry {
            path: file,
            size_bytes: bytes.len() as u64,
            sha256: hex_sha256(&bytes),
        };
        let bytes = Bytes::from(bytes);
        retry_through_outage(deadlines, "writing a checkpoint shard", || async {
            let put = put(&*self.store, &path, bytes.clone(), deadlines).await;
            put.map_err(|source| CheckpointError::Object {
                action: "write",
                path: path.to_string(),
                source,
            })
        })
        .await?;
        Ok(entry)
    }

    /// Reads the manifest and every shard, and verifies the shards against the manifest.
    pub(crate) async fn read(
        &self,
        checkpoint: CheckpointRef,
    ) -> Result<(CheckpointManifest, NamedTensors), CheckpointError> {
        let path = self.path(checkpoint, MANIFEST_FILE);
        let text = self.get(&path, MANIFEST_BYTES_MAX).await?;
        let manifest: CheckpointManifest =
            serde_json::from_slice(&text).map_err(|source| CheckpointError::Manifest {
                path: path.to_string(),
                source,
            })?;
        let mut tensors = NamedTensors::new();
        for shard in &manifest.shards {
            let path = self.path(checkpoint, &shard.path);
            let bytes = self.get(&path, shard.size_bytes).await?;
            verify(path.as_ref(), shard, &bytes)?;
            tensors.extend(
                weights::parse(&bytes).map_err(|source| CheckpointError::Format {
                    path: path.to_string(),
                    source,
                })?,
            );
        }
        Ok((manifest, tensors))
    }

    /// [`Self::read`] for this trainer. Fails if the trainer uses base weights that are not in the
    /// checkpoint and differ from those that the checkpoint was made with.
    pub(crate) async fn read_for(
        &self,
        trainer: &Trainer,
        checkpoint: CheckpointRef,
    ) -> Result<NamedTensors, CheckpointError> {
        let (manifest, tensors) = self.read(checkpoint).await?;
        let found = trainer.init_digest();
        if trainer.rests_on_base() && found != manifest.init_digest {
            let name = |digest: Option<String>| digest.unwrap_or_else(|| "(none)".to_owned());
            return Err(CheckpointError::BaseMismatch {
                path: self.path(checkpoint, MANIFEST_FILE).to_string(),
                found: name(found),
                expected: name(manifest.init_digest),
            });
        }
        Ok(tensors)
    }

    /// An object of at most `max` bytes.
    async fn get(&self, path: &Path, max: u64) -> Result<Bytes, CheckpointError> {
        let read = read_bounded(&*self.store, path, max).await;
        let path = path.to_string();
        read.map_err(|error| match error {
            ReadError::Store(source) => CheckpointError::Object {
                action: "read",
                path,
                source,
            },
            source @ ReadError::TooLarge { .. } => CheckpointError::TooLarge { path, source },
        })
    }
}

fn verify(path: &str, shard: &ShardEntry, bytes: &[u8]) -> Result<(), CheckpointError> {
    let damaged = |what, found: String, expected: String| CheckpointError::Damaged {
        path: path.to_owned(),
        what,
        found,
        expected,
    };
    if bytes.len() as u64 != shard.size_bytes {
        return Err(damaged(
            "its size",
            bytes.len().to_string(),
            shard.size_bytes.to_string(),
        ));
    }
    let found = hex_sha256(bytes);
    if found != shard.sha256 {
        return Err(damaged("its SHA-256", found, shard.sha256.clone()));
    }
    Ok(())
}

fn size_bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use object_store::ObjectStoreExt;
    use proto::id::{Generation, Step};
    use tch::{Device, Kind};

    const STEP: Step = Step(4);
    const GENERATION: Generation = Generation(2);

    fn state() -> Vec<(String, Tensor)> {
        ["a", "b", "c", "d"]
            .iter()
            .zip(1i64..)
            .map(|(name, n)| {
                (
                    (*name).to_owned(),
                    Tensor::arange(n * 6, (Kind::Float, Device::Cpu)).view([n, 6]),
                )
            })
            .collect()
    }

    /// Writes a checkpoint as two ranks and the coordinator do.
    async fn write_checkpoint(folder: &std::path::Path) -> Checkpoints {
        let url = format!("file://{}", folder.display());
        let job = JobId("demo-1".into());
        let checkpoints = Checkpoints::open(&url, &job).unwrap();
        let mut shards = Vec::new();
        for rank in 0..2 {
            shards.push(
                checkpoints
                    .write_shard(
                        Deadlines::new(3000),
                        checkpoint_ref(),
                        Position { rank, world: 2 },
                        &state(),
                    )
                    .await
                    .unwrap(),
            );
        }
        let manifest = CheckpointManifest {
            job,
            step: STEP,
            generation: GENERATION,
            job_toml: String::new(),
            dataset_version: "v".into(),
            init_digest: None,
            shards,
            environment: "test".into(),
            ranks: std::collections::BTreeMap::new(),
        };
        let path = checkpoints.path(checkpoint_ref(), MANIFEST_FILE);
        checkpoints
            .store
            .put(&path, serde_json::to_vec(&manifest).unwrap().into())
            .await
            .unwrap();
        checkpoints
    }

    fn checkpoint_ref() -> CheckpointRef {
        CheckpointRef {
            step: STEP,
            generation: GENERATION,
        }
    }

    #[tokio::test]
    async fn shards_of_two_ranks_are_read_as_one_state() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = write_checkpoint(folder.path()).await;
        let (manifest, tensors) = checkpoints.read(checkpoint_ref()).await.unwrap();
        assert_eq!(manifest.shards.len(), 2);
        let expected = state();
        assert_eq!(tensors.len(), expected.len());
        for (name, tensor) in expected {
            assert!(tensors[&name].equal(&tensor), "{name}");
        }
    }

    #[tokio::test]
    async fn a_changed_byte_a_cut_shard_and_a_missing_one_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = write_checkpoint(folder.path()).await;
        let shard = folder
            .path()
            .join("jobs/demo-1/checkpoints/0000000004-g2/rank-1-of-2.safetensors");
        let good = std::fs::read(&shard).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        std::fs::write(&shard, &bad).unwrap();
        let error = checkpoints
            .read(checkpoint_ref())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("rank-1-of-2.safetensors is damaged: its SHA-256 is"),
            "{error}"
        );
        std::fs::write(&shard, &good[..good.len() - 1]).unwrap();
        let error = checkpoints
            .read(checkpoint_ref())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("its size is"), "{error}");
        // Sparse: reading them would take 8 TiB each.
        let manifest = shard.with_file_name(MANIFEST_FILE);
        let text = std::fs::read(&manifest).unwrap();
        for (file, max) in [(&shard, good.len() as u64), (&manifest, MANIFEST_BYTES_MAX)] {
            let giant = std::fs::File::create(file).unwrap();
            giant.set_len(8 << 40).unwrap();
            let error = checkpoints.read(checkpoint_ref()).await.unwrap_err();
            let expected =
                format!("is too large: it has 8796093022208 bytes; at most {max} are read");
            assert!(error.to_string().ends_with(&expected), "{error}");
            std::fs::write(&manifest, &text).unwrap();
        }
        std::fs::remove_file(&shard).unwrap();
        let error = checkpoints
            .read(checkpoint_ref())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cannot read") && error.contains("rank-1-of-2"),
            "{error}"
        );
    }
}
