//! The checkpoint manifest and the digest of a checkpoint's contents. A checkpoint exists if and
//! only if its manifest exists (law 8). The manifest is stored as JSON. No I/O.

use crate::environment::RankEnvironment;
use crate::id::{Generation, JobId, Rank, Step};
use crate::text::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

pub const MANIFEST_FILE: &str = "manifest.json";

/// `<store>/jobs/<job>/checkpoints/<step>-g<generation>/manifest.json`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointManifest {
    pub job: JobId,
    pub step: Step,
    pub generation: Generation,
    /// The canonical job.toml of the job.
    pub job_toml: String,
    /// SHA-256 of the data set's dataset.json.
    pub dataset_version: String,
    /// SHA-256 over the files of the base weights; None if the job started from random weights.
    pub init_digest: Option<String>,
    /// One per rank, sorted by path.
    pub shards: Vec<ShardEntry>,
    /// For instance "libtorch 2.10.0, cpu, 1 thread". Results are bit-for-bit comparable only
    /// between equal environments.
    pub environment: String,
    /// The environment of each rank that wrote a shard; empty in checkpoints of older releases.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ranks: BTreeMap<Rank, RankEnvironment>,
}

/// One safetensors file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name inside the checkpoint's folder, for instance `rank-0-of-2.safetensors`.
    pub path: String,
    pub size_bytes: u64,
    /// Lower-case hex SHA-256 of the whole file.
    pub sha256: String,
}

/// The folder of a checkpoint, relative to the store. The step is zero-padded so that a listing is
/// in step order.
#[must_use]
pub fn checkpoint_folder(job: &JobId, step: Step, generation: Generation) -> String {
    format!("jobs/{job}/checkpoints/{:010}-g{generation}", step.0)
}

/// Identifies a committed checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRef {
    pub step: Step,
    pub generation: Generation,
}

/// One SHA-256 over named tensors, by which two runs are compared. It does not depend on how the
/// tensors are sharded, and therefore not on the world size.
///
/// For every tensor, in order of names, these are hashed: the name, a zero byte, the dtype as
/// safetensors writes it (`F32`), a zero byte, the shape (`64x3`), a zero byte, and the tensor's
/// bytes (little-endian, row-major).
#[derive(Debug, Clone, Default)]
pub struct TensorsDigest(Sha256);

impl TensorsDigest {
    /// Adds the next tensor. Tensors must be added in order of their names.
    pub fn add<T: ToString>(&mut self, name: &str, dtype: &str, shape: &[T], bytes: &[u8]) {
        let dimensions: Vec<String> = shape.iter().map(ToString::to_string).collect();
        self.0
            .update(format!("{name}\0{dtype}\0{}\0", dimensions.join("x")));
        self.0.update(bytes);
    }

    /// Lower-case hex.
    #[must_use]
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hex_sha256;

    #[test]
    fn a_manifest_of_an_older_release_has_no_ranks_and_is_written_back_as_it_was() {
        let old = concat!(
            r#"{"job":"a-1","step":6,"generation":1,"job_toml":"","dataset_version":"0","#,
            r#""init_digest":null,"shards":[],"environment":"libtorch 2.10.0, cpu, 1 thread"}"#
        );
        let manifest: CheckpointManifest = serde_json::from_str(old).expect("it is a manifest");
        assert_eq!(manifest.ranks, BTreeMap::new());
        assert_eq!(serde_json::to_string(&manifest).expect("plain data"), old);
        let ranks = [(Rank(10), RankEnvironment::default())].into();
        let new = CheckpointManifest { ranks, ..manifest };
        let text = serde_json::to_string(&new).expect("plain data");
        assert_eq!(
            serde_json::from_str::<CheckpointManifest>(&text).ok(),
            Some(new)
        );
    }

    #[test]
    fn the_digest_is_of_heads_and_bytes_in_order() {
        let mut digest = TensorsDigest::default();
        digest.add("a", "F32", &[2usize, 3], b"abc");
        digest.add::<i64>("b", "F16", &[], b"d");
        assert_eq!(
            digest.finish(),
            hex_sha256(b"a\0F32\x002x3\0abcb\0F16\0\0d")
        );
    }
}
