//! The [`TensorsDigest`] of a checkpoint, over trained weights and optimizer state. Called by
//! `coordinator checkpoint digest`, by the export and by the audit.

use super::{Checkpoint, CheckpointError};
use proto::checkpoint::TensorsDigest;

impl Checkpoint {
    /// Lower-case hex. Reads the whole checkpoint, one tensor at a time.
    pub(crate) async fn digest(&self) -> Result<String, CheckpointError> {
        let manifest = self.manifest().await?;
        let mut digest = TensorsDigest::default();
        for (name, location) in self.tensors(&manifest.shards).await? {
            let bytes = self.range(&location.shard, location.range.clone()).await?;
            digest.add(
                &name,
                &location.info.dtype.to_string(),
                &location.info.shape,
                &bytes,
            );
        }
        Ok(digest.finish())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::checkpoint::Checkpoint;
    use crate::fixture::{TestCheckpoint, test_checkpoint};

    async fn digest(test: &TestCheckpoint) -> String {
        Checkpoint::at(&test.url, &test.manifest.job, test.reference)
            .unwrap()
            .digest()
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn the_digest_depends_on_the_tensors_and_not_on_the_sharding() {
        let (one, three) = (
            test_checkpoint(1, true).await,
            test_checkpoint(3, true).await,
        );
        let expected = digest(&one).await;
        assert_eq!(expected.len(), 64);
        assert_eq!(digest(&three).await, expected);

        let file = Checkpoint::at(&one.url, &one.manifest.job, one.reference)
            .unwrap()
            .path("rank-0-of-1.safetensors");
        let file = one.dir.path().join(file.as_ref());
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert_ne!(digest(&one).await, expected);
    }

    #[tokio::test]
    async fn an_invalid_shard_file_is_named_in_the_error() {
        let test = test_checkpoint(1, true).await;
        let checkpoint = Checkpoint::at(&test.url, &test.manifest.job, test.reference).unwrap();
        std::fs::write(
            test.dir
                .path()
                .join(checkpoint.path("rank-0-of-1.safetensors").as_ref()),
            [0xff; 64],
        )
        .unwrap();
        let error = checkpoint.digest().await.unwrap_err().to_string();
        assert!(
            error.contains("rank-0-of-1.safetensors is no safetensors file"),
            "{error}"
        );
    }
}
