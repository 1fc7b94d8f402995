//! All timeouts of the coordinator's machine. They derive from the one setting `detect_within` (law
//! 9), so that no two of them can be set in the wrong order. Each is a time of
//! [`crate::clock::Clock`] and has passed when `deadline <= now`.

use crate::record::Millis;

/// After a restart of the coordinator, workers have this many `detect_within` to reconnect.
const REATTACH: u64 = 2;
/// A rank of a formed generation must appear in its worker's report within this many
/// `detect_within`. This is enough for the worker to kill an older process on the same device, and
/// to start ten times slower than usual.
const REPORT_TIMEOUT: u64 = 12;
/// After all ranks finish, the last checkpoint must be complete within this many `detect_within`.
const LAST_SHARDS: u64 = 4;
/// A graceful stop has this many `detect_within` to finish the step and write the checkpoint: two
/// minutes with the default settings, in which 10 GB go through 1 Gbit/s. It is longer than a
/// process group needs to detect a silently broken connection. A worker that is shutting down gives
/// its ranks a little longer.
const STOP_GRACE: u64 = 40;
/// After a standby fails, its worker gets no other for this many `detect_within`.
const STANDBY_BACKOFF: u64 = 12;
/// A partitioned generation is stuck if all its ranks have only waited for this many
/// `detect_within`.
const STUCK: u64 = 1;
/// A worker that never held anything is forgotten this many `detect_within` after its last report:
/// an hour with the default.
const FORGET: u64 = 1200;
/// A record must be durable within this many `detect_within`. Otherwise the coordinator exits,
/// because a restart is better than an unresponsive coordinator.
const SAVE: u64 = 6;
/// The generation ends after this many failed attempts to write a manifest. Each attempt has one
/// `detect_within`, and an outage of the store for a minute must not cost a generation.
pub(crate) const MANIFEST_ATTEMPTS_MAX: u32 = 30;

/// Computes deadlines from `detect_within`.
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

    /// When ledger entries are saved next, so that quick steps share a save.
    pub(crate) fn ledger(self, saved: Millis) -> Millis {
        saved.saturating_add(self.detect_within_ms / 6)
    }

    /// If the machine is woken later than this after a deadline, it was suspended. This is about
    /// the interval between two reports of a worker, so every live worker reports within it.
    pub(crate) fn patience_ms(self) -> u64 {
        self.detect_within_ms / 3
    }

    /// When the lease of a worker that reports at `now` expires.
    pub(crate) fn lease(self, now: Millis) -> Millis {
        self.after(now, 1)
    }

    /// A worker of an older boot, which first reported at `since` although a newer one has its
    /// name, is running beside that one if it still reports after this time. A report that a daemon
    /// sent before it died arrives earlier.
    pub(crate) fn displaced(self, since: Millis) -> Millis {
        self.after(since, 1)
    }

    /// When a member of a running generation must have reconnected to a restarted coordinator.
    pub(crate) fn reattach(self, now: Millis) -> Millis {
        self.after(now, REATTACH)
    }

    /// A job queued at `now` starts with fewer workers than it can use only after this time: a
    /// restarted worker may be about to reconnect.
    pub(crate) fn start_grace(self, now: Millis) -> Millis {
        self.after(now, 1)
    }

    /// When a rank that was reported at `now` must be reported again.
    pub(crate) fn report_timeout(self, now: Millis) -> Millis {
        self.after(now, REPORT_TIMEOUT)
    }

    /// When a manifest write that was started at `now` is retried.
    pub(crate) fn manifest_retry(self, now: Millis) -> Millis {
        self.after(now, 1)
    }

    /// When the last checkpoint must be complete if all ranks finished at `now`.
    pub(crate) fn last_shards(self, now: Millis) -> Millis {
        self.after(now, LAST_SHARDS)
    }

    /// How long a group of units should keep a rank busy, in milliseconds.
    pub(crate) fn group_ms(self) -> u64 {
        self.detect_within_ms / 2
    }

    /// When a graceful stop requested at `now` ends the generation, with or without a checkpoint.
    pub(crate) fn graceful_stop(self, now: Millis) -> Millis {
        self.after(now, STOP_GRACE)
    }

    /// When a worker whose standby failed at `now` may get another.
    pub(crate) fn standby_backoff(self, now: Millis) -> Millis {
        self.after(now, STANDBY_BACKOFF)
    }

    /// A failed connection is known at `since`. Wait until this time: other failed connections may
    /// still be reported.
    pub(crate) fn partition_grace(self, since: Millis) -> Millis {
        since.saturating_add(self.detect_within_ms / 2)
    }

    /// How long all ranks must have been waiting for each other, in milliseconds.
    pub(crate) fn stuck_ms(self) -> u64 {
        self.detect_within_ms.saturating_mul(STUCK)
    }

    /// When a worker that never held anything and went at `now` is forgotten.
    pub(crate) fn forget(self, now: Millis) -> Millis {
        self.after(now, FORGET)
    }

    /// How long the shell waits for a record to be durable, in milliseconds.
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
        for detect_within_ms in [1, 100, 10_000, u64::MAX] {
            let deadlines = Deadlines::new(detect_within_ms);
            let now: Millis = 5;
            let rising = [
                now.saturating_add(deadlines.patience_ms()),
                deadlines.lease(now),
                deadlines.reattach(now),
                deadlines.last_shards(now),
                now.saturating_add(deadlines.save_ms()),
                deadlines.report_timeout(now),
                deadlines.graceful_stop(now),
                deadlines.forget(now),
            ];
            assert!(rising.is_sorted(), "{detect_within_ms}: {rising:?}");
        }
    }
}
