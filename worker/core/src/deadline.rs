//! All timeouts of the worker's machine, derived from the one setting `detect_within` (law 9) that
//! the coordinator sends, so that no two of them can be set in the wrong order. Pure arithmetic;
//! used only by the machine.

use crate::event::Millis;

/// A process has this many `detect_within` for its first report, because libtorch is loaded before
/// it can report.
const FIRST_REPORT: u64 = 10;

/// A process that was given a newer generation has this many `detect_within` to leave the older
/// one. The time starts at the end of its current stage, if that waits for no other process.
const LEAVE_GENERATION: u64 = 10;

/// A peer that has not answered for this many `detect_within` counts as unreachable. The
/// coordinator detects a peer that exited or is stuck earlier than that.
const PEER_TIMEOUT: u64 = 2;

/// Grace period of a shutdown, in `detect_within`: the time for jobs to finish their step and hand
/// over or write a checkpoint. The coordinator allows 40 for a graceful stop; `TimeoutStopSec` of
/// the systemd unit is longer.
pub const GRACE: u64 = 43;

/// Reports per `detect_within`. Two may be lost before the coordinator considers the worker lost.
const REPORTS_PER_LEASE: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadlines {
    detect_within_ms: u64,
}

impl Deadlines {
    /// Used until the coordinator has sent `detect_within`. There are no ranks before that, so it
    /// only determines how often the worker reports.
    pub(crate) const INITIAL: Self = Self {
        detect_within_ms: 900,
    };

    pub(crate) fn new(detect_within_ms: u64) -> Self {
        Self {
            detect_within_ms: detect_within_ms.max(REPORTS_PER_LEASE),
        }
    }

    /// If the machine is woken later than this after a deadline, the delay does not count.
    pub(crate) fn patience_ms(self) -> u64 {
        self.detect_within_ms / REPORTS_PER_LEASE
    }

    /// When a process that started or last reported at `last_heard` counts as hung. `has_reported`:
    /// it has sent a first report; from then on it sends heartbeats even while loading.
    pub(crate) fn silent_at(self, last_heard: Millis, has_reported: bool) -> Millis {
        let allowance = if has_reported { 1 } else { FIRST_REPORT };
        last_heard.saturating_add(self.detect_within_ms.saturating_mul(allowance))
    }

    /// When a process must have left its older generation. `now`: when it was given the newer
    /// generation, or last reported a stage that waits for no other process. The time is long
    /// because the process's state is worth waiting for.
    pub(crate) fn leave_at(self, now: Millis) -> Millis {
        now.saturating_add(self.detect_within_ms.saturating_mul(LEAVE_GENERATION))
    }

    /// When a peer that last answered at `last_answer` counts as unreachable.
    pub(crate) fn unreached_at(self, last_answer: Millis) -> Millis {
        last_answer.saturating_add(self.detect_within_ms.saturating_mul(PEER_TIMEOUT))
    }

    /// When a process that was asked to stop (or killed) at `now` is killed (again).
    pub(crate) fn kill_at(self, now: Millis) -> Millis {
        now.saturating_add(self.detect_within_ms)
    }

    /// When a worker whose shutdown was requested at `now` stops all its ranks.
    pub(crate) fn grace_ends_at(self, now: Millis) -> Millis {
        now.saturating_add(self.detect_within_ms.saturating_mul(GRACE))
    }

    /// When the report that was sent at `sent` is repeated even if nothing has changed.
    pub(crate) fn report_at(self, sent: Millis) -> Millis {
        sent.saturating_add(self.detect_within_ms / REPORTS_PER_LEASE)
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
            let (second_report, training, starting) = (
                deadlines.report_at(deadlines.report_at(now)),
                deadlines.silent_at(now, true),
                deadlines.silent_at(now, false),
            );
            assert!(
                second_report <= training && training <= starting,
                "{detect_within_ms}"
            );
            assert_eq!(deadlines.kill_at(now), training, "{detect_within_ms}");
            assert!(
                training <= deadlines.unreached_at(now),
                "{detect_within_ms}"
            );
            assert!(
                starting <= deadlines.grace_ends_at(now),
                "{detect_within_ms}"
            );
        }
    }
}
