//! Every timeout of a rank, derived from the one setting `detect_within` (law 9). Pure arithmetic.
//!
//! Ranks do not detect failures of their peers: a daemon kills its unresponsive rank, and the
//! coordinator then ends the generation, which the other ranks learn from their daemons. A rank
//! only watches its own model thread. The timeouts here bound waits that nothing else would notice.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadlines {
    detect_within: Duration,
}

impl Deadlines {
    pub(crate) fn new(detect_within_ms: u64) -> Self {
        Self {
            detect_within: Duration::from_millis(detect_within_ms.max(3)),
        }
    }

    /// Interval between heartbeats to the daemon, which tolerates two missed ones.
    pub(crate) fn heartbeat(self) -> Duration {
        self.detect_within / 3
    }

    /// Rendezvous of all ranks, once all of them have loaded.
    pub(crate) fn join(self) -> Duration {
        self.detect_within * 30
    }

    /// One collective call, including the wait for the slowest rank, which may still be writing its
    /// shard of a checkpoint or reading one.
    pub(crate) fn collective(self) -> Duration {
        self.detect_within * 30
    }

    /// A stage of a step that does not depend on other ranks. `longest`: the longest stage of its
    /// kind so far. The first stage of a kind may have to initialize what later ones reuse.
    pub(crate) fn local_stage(self, longest: Option<Duration>) -> Duration {
        match longest {
            Some(longest) => self.detect_within * 12 + longest * 4,
            None => self.detect_within * 100,
        }
    }

    /// Longest outage of the object store that is survived with the newest state only in memory.
    pub(crate) fn outage(self) -> Duration {
        self.detect_within * 1200
    }

    /// Interval between retries during an outage.
    pub(crate) fn outage_retry_interval(self) -> Duration {
        self.detect_within
    }

    /// Abort of a multipart upload.
    pub(crate) fn abort_upload(self) -> Duration {
        self.detect_within * 10
    }

    /// One response of an object store or the coordinator, in `doctor`.
    pub(crate) fn probe(self) -> Duration {
        self.detect_within * 3
    }
}
