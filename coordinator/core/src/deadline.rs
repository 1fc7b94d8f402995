//! Every time-out of the coordinator's machine, derived from the one knob `detect_within` (law 9),
//! so that no pair of them can be set in the wrong order. Each is a moment in the time of
//! [`crate::clock::Clock`]; it has come when `deadline <= now`.

use crate::record::Millis;

/// After its own restart the coordinator gives workers this many `detect_within` to find it again.
const REATTACH: u64 = 2;
/// A rank of a formed generation must be in its worker's report within this many `detect_within`:
/// enough for the worker to kill an older process on the same device, and to start ten times slower
/// than it should.
const REPORT_TIMEOUT: u64 = 12;
/// All ranks are finished: the last checkpoint must be complete within this many `detect_within`.
const LAST_SHARDS: u64 = 4;
/// A generation that was asked to end in order has this many `detect_within` for its step and its
/// checkpoint: as shipped two minutes, in which 10 GB go through 1 Gbit/s. It is longer than a
/// group that was torn apart in silence needs to notice it. A worker that was told to leave gives
/// its ranks a little longer.
const STOP_GRACE: u64 = 40;
/// A worker whose reserve failed is not asked for another within this many `detect_within`.
const STANDBY_BACKOFF: u64 = 12;
/// Ranks that all do nothing but wait for this many `detect_within`, while daemons say why, do not
/// come on.
const STUCK: u64 = 1;
/// A record must be durable within this many `detect_within`; then the coordinator ends, because a
/// restart is better than one that answers nobody.
const SAVE: u64 = 6;
/// A manifest that could not be written this often ends the generation. Each has one
/// `detect_within`, and a store that is away for a minute is no fault of the ranks.
pub(crate) const MANIFEST_ATTEMPTS_MAX: u32 = 30;

/// Deadlines of one `detect_within`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    detect_within_ms: u64,
}

impl Deadlines {
    #[must_use]
    pub fn new(detect_within_ms: u64) -> Self {
        Self {
            detect_within_ms: detect_within_ms.max(1),
        }
    }

    /// Entries of ledgers saved now are followed by the next ones then: quick steps share a save.
    pub(crate) fn ledger(self, saved: Millis) -> Millis {
        saved.saturating_add(self.detect_within_ms / 6)
    }

    /// Woken later than this after a deadline, the machine was away. It is about the time between
    /// two reports of a worker: whoever lives is heard within it.
    pub(crate) fn patience_ms(self) -> u64 {
        self.detect_within_ms / 3
    }

    /// A worker heard now is up until then.
    pub(crate) fn lease(self, now: Millis) -> Millis {
        self.after(now, 1)
    }

    /// A member of a running generation has until then to come back to a restarted coordinator.
    pub(crate) fn reattach(self, now: Millis) -> Millis {
        self.after(now, REATTACH)
    }

    /// A job queued now starts with fewer workers than it could use only after that: a restarted
    /// worker may be on its way back.
    pub(crate) fn start_grace(self, now: Millis) -> Millis {
        self.after(now, 1)
    }

    /// A rank that was in its worker's report now must be so again by then.
    pub(crate) fn report_timeout(self, now: Millis) -> Millis {
        self.after(now, REPORT_TIMEOUT)
    }

    /// A manifest handed to the store now is handed to it again then.
    pub(crate) fn manifest_retry(self, now: Millis) -> Millis {
        self.after(now, 1)
    }

    /// All ranks said now that they are finished; their last checkpoint is complete by then.
    pub(crate) fn last_shards(self, now: Millis) -> Millis {
        self.after(now, LAST_SHARDS)
    }

    /// How long a group of units should keep a rank busy, in milliseconds.
    pub(crate) fn group_ms(self) -> u64 {
        self.detect_within_ms / 2
    }

    /// A generation asked now to end in order ends by then, checkpoint or not.
    pub(crate) fn graceful_stop(self, now: Millis) -> Millis {
        self.after(now, STOP_GRACE)
    }

    /// A worker whose reserve failed now may be asked for another then.
    pub(crate) fn standby_backoff(self, now: Millis) -> Millis {
        self.after(now, STANDBY_BACKOFF)
    }

    /// Of a connection that is missing it is known now; of others that went with it it is known
    /// then.
    pub(crate) fn partition_grace(self, since: Millis) -> Millis {
        since.saturating_add(self.detect_within_ms / 2)
    }

    /// For so long all ranks must have been waiting for each other.
    pub(crate) fn stuck_ms(self) -> u64 {
        self.detect_within_ms.saturating_mul(STUCK)
    }

    /// How long the shell waits for a record to be durable.
    #[must_use]
    pub fn save_ms(self) -> u64 {
        self.detect_within_ms.saturating_mul(SAVE)
    }

    fn after(self, now: Millis, times: u64) -> Millis {
        now.saturating_add(self.detect_within_ms.saturating_mul(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pair_is_in_the_wrong_order() {
        for knob in [1, 100, 10_000, u64::MAX] {
            let deadlines = Deadlines::new(knob);
            let now: Millis = 5;
            let rising = [
                now.saturating_add(deadlines.patience_ms()),
                deadlines.lease(now),
                deadlines.reattach(now),
                deadlines.last_shards(now),
                now.saturating_add(deadlines.save_ms()),
                deadlines.report_timeout(now),
                deadlines.graceful_stop(now),
            ];
            assert!(rising.is_sorted(), "{knob}: {rising:?}");
        }
    }
}
