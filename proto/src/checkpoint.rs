//! The checkpoint's manifest: its existence is the checkpoint's existence (law 8). Text form is JSON. No I/O.

use crate::id::{Generation, JobId, Step};
use serde::{Deserialize, Serialize};

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
    /// SHA-256 over the files of the base weights, None when the job began from random weights.
    pub init_digest: Option<String>,
    /// One per rank, sorted by path.
    pub shards: Vec<ShardEntry>,
    /// "libtorch 2.10.0, cpu, 1 thread": bits are comparable only where these agree.
    pub environment: String,
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

/// Where a checkpoint lies, relative to the store. Zero-padded so that a listing is in step order.
#[must_use]
pub fn checkpoint_folder(job: &JobId, step: Step, generation: Generation) -> String {
    format!("jobs/{job}/checkpoints/{:010}-g{generation}", step.0)
}

/// A committed checkpoint, enough to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRef {
    pub step: Step,
    pub generation: Generation,
}
