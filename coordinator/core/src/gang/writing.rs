//! A manifest that was handed to the shell and not yet answered.

use crate::record::Millis;
use proto::checkpoint::{CheckpointManifest, CheckpointRef};

#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) manifest: CheckpointManifest,
    /// It is handed over again then.
    pub(crate) retry_at: Millis,
    pub(crate) attempts: u32,
    /// The last answer.
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
