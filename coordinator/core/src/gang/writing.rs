//! A manifest write that was requested from the shell and has no result yet.

use crate::record::Millis;
use proto::checkpoint::{CheckpointManifest, CheckpointRef};

#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) manifest: CheckpointManifest,
    /// When the write is requested again.
    pub(crate) retry_at: Millis,
    pub(crate) attempts: u32,
    /// The last error.
    pub(crate) error: String,
}

impl Writing {
    pub(crate) fn checkpoint(&self) -> CheckpointRef {
        CheckpointRef {
            step: self.manifest.step,
            generation: self.manifest.generation,
        }
    }
}
