//! Every time-out of a rank, derived from the one knob `detect_within` (law 9). Pure numbers.
//!
//! Whether another rank is alive is its daemon's business, which kills it, and the coordinator's,
//! which then ends the generation: our daemon tells us to stop. Whether our own thread comes on is
//! ours. The waits here only bound what nobody else would notice.

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

    /// Between two signs of life to the daemon; it may miss two.
    pub(crate) fn heartbeat(self) -> Duration {
        self.detect_within / 3
    }

    /// For all ranks to meet, once none of them is loading any more.
    pub(crate) fn join(self) -> Duration {
        self.detect_within * 30
    }

    /// For the slowest rank in one collective call: another may still be writing its share of a
    /// checkpoint, or reading one.
    pub(crate) fn collective(self) -> Duration {
        self.detect_within * 30
    }

    /// For a piece of a step that needs nobody else; `longest`: what one of its kind took so far.
    /// The first of a kind may build what the later ones have.
    pub(crate) fn own_chunk(self, longest: Option<Duration>) -> Duration {
        match longest {
            Some(longest) => self.detect_within * 12 + longest * 4,
            None => self.detect_within * 100,
        }
    }

    /// For an object store to come back, while the newest state is in memory alone.
    pub(crate) fn outage(self) -> Duration {
        self.detect_within * 1200
    }

    /// Before it is asked again.
    pub(crate) fn outage_pause(self) -> Duration {
        self.detect_within
    }

    /// For an object store to let go of the parts of an upload that was given up.
    pub(crate) fn take_back(self) -> Duration {
        self.detect_within * 10
    }

    /// For one answer of an object store, in `doctor`.
    pub(crate) fn probe(self) -> Duration {
        self.detect_within * 3
    }
}
