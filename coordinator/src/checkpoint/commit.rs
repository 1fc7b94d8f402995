//! The coordinator's own operations on checkpoints: commits one by writing its manifest, last and
//! once (law 8), and deletes old ones. Called by the daemon's loop, in separate tasks.

use super::{Checkpoint, CheckpointError, storage_error};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use proto::checkpoint::{CheckpointManifest, CheckpointRef, MANIFEST_FILE};
use proto::during::Scored;
use proto::findings::{Findings, findings_path};
use proto::id::JobId;
use proto::summary::{SUMMARY_BYTES_MAX, SUMMARY_FILE, Summary};
use std::sync::Arc;
use storage::read::read_bounded;

/// Bytes of a doctor's findings that are read.
const FINDINGS_BYTES_MAX: u64 = 256 << 10;

/// The store's checkpoints.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointStore {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl CheckpointStore {
    pub(crate) fn open(store_url: &str) -> Result<Self, CheckpointError> {
        let (store, prefix) = crate::measured::open(store_url)?;
        Ok(Self { store, prefix })
    }

    fn checkpoint(&self, job: &JobId, checkpoint: CheckpointRef) -> Checkpoint {
        Checkpoint::inside(Arc::clone(&self.store), &self.prefix, job, checkpoint)
    }

    /// Commits a checkpoint: checks that every shard exists with its size, then writes the manifest
    /// if there is none. An equal manifest counts as success, because the reply to an earlier put
    /// may have been lost.
    pub(crate) async fn write_manifest(
        &self,
        manifest: &CheckpointManifest,
    ) -> Result<(), CheckpointError> {
        let reference = CheckpointRef {
            step: manifest.step,
            generation: manifest.generation,
        };
        let checkpoint = self.checkpoint(&manifest.job, reference);
        for shard in &manifest.shards {
            let path = checkpoint.path(&shard.path);
            let found = self
                .store
                .head(&path)
                .await
                .map_err(|source| storage_error("find shard", &path, source))?;
            if found.size != shard.size_bytes {
                return Err(CheckpointError::Refused(format!(
                    "shard {path} has {} bytes, its rank reported {}",
                    found.size, shard.size_bytes
                )));
            }
        }
        let json = serde_json::to_vec_pretty(manifest)
            .expect("a manifest is maps, lists and numbers, which JSON can represent");
        let path = checkpoint.path(MANIFEST_FILE);
        let payload = PutPayload::from(json.clone());
        match self
            .store
            .put_opts(&path, payload, PutMode::Create.into())
            .await
        {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {
                if exists_as(&checkpoint, manifest, &json).await? {
                    return Ok(());
                }
                Err(CheckpointError::Refused(format!(
                    "{path} exists and names other shards"
                )))
            }
            Err(source) => Err(storage_error("write", &path, source)),
        }
    }

    /// The scores that the closing unit of an evaluation of one model has written.
    pub(crate) async fn scores(&self, evaluation: &JobId) -> Result<Scored, String> {
        let summary = self.summary(evaluation).await?;
        let path = self.output(evaluation, SUMMARY_FILE);
        summary.of_one().map_err(|error| format!("{path}: {error}"))
    }

    /// What the closing unit of an evaluation has written.
    pub(crate) async fn summary(&self, evaluation: &JobId) -> Result<Summary, String> {
        let path = self.output(evaluation, SUMMARY_FILE);
        let named = |error: String| format!("{path}: {error}");
        let bytes = read_bounded(&*self.store, &path, SUMMARY_BYTES_MAX).await;
        let bytes = bytes.map_err(|error| named(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| named(error.to_string()))
    }

    /// An output of a job of units.
    fn output(&self, job: &JobId, name: &str) -> Path {
        let folder = ["jobs", &job.0, "images", name];
        folder
            .into_iter()
            .fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Names of the outputs of a job, in order, of the first `limit` that the store lists.
    pub(crate) async fn outputs(
        &self,
        job: &JobId,
        limit: usize,
    ) -> Result<Vec<String>, CheckpointError> {
        let folder = ["jobs", &job.0, "images"]
            .into_iter()
            .fold(self.prefix.clone(), |path, part| path.join(part));
        let listed = self.store.list(Some(&folder)).take(limit);
        let names = listed.map_ok(|it| it.location.filename().unwrap_or("").to_owned());
        let names: Result<Vec<String>, _> = names.try_collect().await;
        let mut names = names.map_err(|source| storage_error("list", &folder, source))?;
        names.sort();
        Ok(names)
    }

    /// One output of at most `max` bytes. None: there is none.
    pub(crate) async fn read_output(
        &self,
        job: &JobId,
        name: &str,
        max: u64,
    ) -> Result<Option<bytes::Bytes>, String> {
        let path = self.output(job, name);
        match read_bounded(&*self.store, &path, max).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(format!("{path}: {error}")),
        }
    }

    /// What `worker doctor` left when it last ran on the worker of this name. None: it did not.
    pub(crate) async fn findings(&self, worker: &str) -> Result<Option<Findings>, String> {
        let path = findings_path(worker)
            .into_iter()
            .fold(self.prefix.clone(), |path, part| path.join(part));
        let bytes = match read_bounded(&*self.store, &path, FINDINGS_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(format!("{path}: {error}")),
        };
        let findings = serde_json::from_slice(&bytes);
        findings
            .map(Some)
            .map_err(|error| format!("{path}: {error}"))
    }

    /// Deletes a checkpoint, its manifest first, so that no reader sees a manifest without shards.
    pub(crate) async fn delete(
        &self,
        job: &JobId,
        reference: CheckpointRef,
    ) -> Result<(), CheckpointError> {
        let checkpoint = self.checkpoint(job, reference);
        let manifest = checkpoint.path(MANIFEST_FILE);
        match self.store.delete(&manifest).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(source) => return Err(storage_error("delete", &manifest, source)),
        }
        let folder = checkpoint.folder.clone();
        let failed = |source| storage_error("delete", &folder, source);
        let files = self
            .store
            .list(Some(&checkpoint.folder))
            .map_ok(|it| it.location)
            .boxed();
        self.store
            .delete_stream(files)
            .try_collect::<Vec<_>>()
            .await
            .map_err(failed)?;
        Ok(())
    }

    /// Deletes everything that a job has written: checkpoints, manifests first, and images. Returns
    /// the number of files.
    pub(crate) async fn delete_job(&self, job: &JobId) -> Result<u64, CheckpointError> {
        let folder = self.prefix.clone().join("jobs").join(job.0.as_str());
        let failed = |source| storage_error("delete", &folder, source);
        let files: Vec<Path> = self
            .store
            .list(Some(&folder))
            .map_ok(|it| it.location)
            .try_collect()
            .await
            .map_err(failed)?;
        let is_manifest = |path: &Path| path.filename() == Some(MANIFEST_FILE);
        let (manifests, others): (Vec<Path>, Vec<Path>) = files.into_iter().partition(is_manifest);
        let count = (manifests.len() + others.len()) as u64;
        for part in [manifests, others] {
            let part = futures::stream::iter(part.into_iter().map(Ok)).boxed();
            let deleted = self.store.delete_stream(part);
            deleted.try_collect::<Vec<_>>().await.map_err(failed)?;
        }
        Ok(count)
    }
}

/// Whether the stored manifest is this one, whose text is `json`. Whatever lies there, it takes no
/// more memory than a few manifests: one that is much larger than this one is another.
async fn exists_as(
    checkpoint: &Checkpoint,
    manifest: &CheckpointManifest,
    json: &[u8],
) -> Result<bool, CheckpointError> {
    let found = checkpoint.manifest_bytes(2 * json.len() as u64).await?;
    if *found == *json {
        return Ok(true);
    }
    // Another release may have written the same manifest as another text.
    let found: Option<CheckpointManifest> = serde_json::from_slice(&found).ok();
    Ok(found.is_some_and(|found| found == *manifest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fixture::{TestCheckpoint, test_checkpoint};

    #[tokio::test]
    async fn a_manifest_is_written_once_and_only_if_all_shards_are_complete() {
        let TestCheckpoint {
            dir: _dir,
            url,
            manifest,
            reference,
        } = test_checkpoint(2, false).await;
        let archive = CheckpointStore::open(&url).unwrap();
        let mut short = manifest.clone();
        short.shards[1].size_bytes += 1;
        let error = archive
            .write_manifest(&short)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("rank-1-of-2.safetensors has"), "{error}");
        let mut missing = manifest.clone();
        missing.shards[0].path = "elsewhere".into();
        assert!(
            archive
                .write_manifest(&missing)
                .await
                .unwrap_err()
                .to_string()
                .contains("elsewhere")
        );

        archive.write_manifest(&manifest).await.unwrap();
        archive.write_manifest(&manifest).await.unwrap();
        let mut other = manifest.clone();
        other.environment = "another".into();
        let error = archive
            .write_manifest(&other)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("names other shards"), "{error}");
        // The same manifest as another text, as another release may write it; and no manifest.
        let path = archive
            .checkpoint(&manifest.job, reference)
            .path(MANIFEST_FILE);
        let put = async |bytes: Vec<u8>| {
            archive.store.put(&path, bytes.into()).await.unwrap();
            archive.write_manifest(&manifest).await
        };
        put(serde_json::to_vec(&manifest).unwrap()).await.unwrap();
        let error = put(b"{".to_vec()).await.unwrap_err().to_string();
        assert!(error.contains("names other shards"), "{error}");
        let error = put(vec![b'['; 1 << 20]).await.unwrap_err().to_string();
        assert!(
            error.contains("it has 1048576 bytes; at most") && error.contains(MANIFEST_FILE),
            "{error}"
        );
        put(serde_json::to_vec(&manifest).unwrap()).await.unwrap();
        assert_eq!(
            Checkpoint::at(&url, &manifest.job, reference)
                .unwrap()
                .manifest()
                .await
                .unwrap(),
            manifest
        );
    }

    #[tokio::test]
    async fn a_deleted_checkpoint_is_gone_and_deleting_again_is_fine() {
        let TestCheckpoint {
            dir,
            url,
            manifest,
            reference,
        } = test_checkpoint(2, true).await;
        let archive = CheckpointStore::open(&url).unwrap();
        archive.delete(&manifest.job, reference).await.unwrap();
        archive.delete(&manifest.job, reference).await.unwrap();
        let folder = proto::checkpoint::checkpoint_folder(
            &manifest.job,
            reference.step,
            reference.generation,
        );
        let left = std::fs::read_dir(dir.path().join(folder)).map_or(0, Iterator::count);
        assert_eq!(left, 0);
    }
}
