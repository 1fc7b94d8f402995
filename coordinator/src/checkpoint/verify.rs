//! Re-reads a whole checkpoint and compares it with its manifest. Reports every fault, not only the
//! first. Called by `coordinator checkpoint verify`.

use super::{Checkpoint, CheckpointError};
use proto::checkpoint::{CheckpointManifest, ShardEntry};
use proto::text::hex;

/// The result of a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) shards: usize,
    pub(crate) bytes: u64,
    /// One sentence per fault, shard by shard; empty for a good checkpoint.
    pub(crate) findings: Vec<String>,
}

impl Checkpoint {
    /// # Errors
    /// The manifest cannot be read; every other fault is a finding.
    pub(crate) async fn verify(&self) -> Result<(CheckpointManifest, Verified), CheckpointError> {
        let manifest = self.manifest().await?;
        let mut verified = Verified {
            shards: manifest.shards.len(),
            bytes: 0,
            findings: Vec::new(),
        };
        for shard in &manifest.shards {
            verified.bytes += shard.size_bytes;
            if let Err(finding) = self.verify_shard(shard).await {
                verified
                    .findings
                    .push(format!("{}: {finding}", self.path(&shard.path)));
            }
        }
        if verified.findings.is_empty()
            && let Err(error) = self.tensors(&manifest.shards).await
        {
            verified.findings.push(error.to_string());
        }
        Ok((manifest, verified))
    }

    async fn verify_shard(&self, shard: &ShardEntry) -> Result<(), String> {
        let found = storage::hash::of_object(&*self.store, &self.path(&shard.path)).await;
        let found = found.map_err(|error| format!("cannot be read: {error}"))?;
        if found.size_bytes != shard.size_bytes {
            return Err(format!(
                "has {} bytes, the manifest says {}",
                found.size_bytes, shard.size_bytes
            ));
        }
        let sha256 = hex(&found.sha256);
        if sha256 != shard.sha256 {
            return Err(format!(
                "has SHA-256 {sha256}, the manifest says {}",
                shard.sha256
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::checkpoint::Checkpoint;
    use crate::fixture::{TestCheckpoint, test_checkpoint};

    #[tokio::test]
    async fn every_damage_is_found_and_named() {
        let TestCheckpoint {
            dir,
            url,
            manifest,
            reference,
        } = test_checkpoint(3, true).await;
        let checkpoint = Checkpoint::at(&url, &manifest.job, reference).unwrap();
        let (_, good) = checkpoint.verify().await.unwrap();
        assert_eq!((good.shards, good.findings), (3, Vec::new()));

        let file = |name: &str| dir.path().join(checkpoint.path(name).as_ref());
        let mut bytes = std::fs::read(file("rank-0-of-3.safetensors")).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file("rank-0-of-3.safetensors"), bytes).unwrap();
        std::fs::write(file("rank-1-of-3.safetensors"), b"short").unwrap();
        std::fs::remove_file(file("rank-2-of-3.safetensors")).unwrap();
        let findings = checkpoint.verify().await.unwrap().1.findings;
        let expect = [
            "rank-0-of-3.safetensors: has SHA-256",
            "rank-1-of-3.safetensors: has 5 bytes",
            "cannot be read",
        ];
        assert_eq!(findings.len(), expect.len());
        for (finding, part) in findings.iter().zip(expect) {
            assert!(finding.contains(part), "{finding}");
        }
    }
}
