//! Every time-out of the worker's machine, derived from the one knob `detect_within` (law 9) that
//! the coordinator tells, so that no pair of them can be set in the wrong order. Pure numbers; the
//! machine and nobody else asks.

use crate::event::Millis;

/// A process has this many `detect_within` for its first word: the system loads libtorch before it
/// can say any.
const FIRST_WORD: u64 = 10;

/// A process that was given a newer generation has this many `detect_within` to leave the older
/// one, from the end of the piece of a step that it is in, if that is its own.
const LEAVE: u64 = 10;

/// A peer that has not answered for this many `detect_within` is not reached. One that is gone or
/// stands still is found by the coordinator before that.
const UNREACHED: u64 = 2;

/// A worker that was asked to leave has this many `detect_within` for its jobs to finish their step
/// and hand over or write a checkpoint. The coordinator gives a generation 40 to end in order;
/// `TimeoutStopSec` of the unit is longer.
pub const GRACE: u64 = 43;

/// Reports per `detect_within`: two may be lost before the coordinator counts the worker as gone.
const REPORTS_PER_LEASE: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadlines {
    detect_within_ms: u64,
}

impl Deadlines {
    /// Before the coordinator has said what the knob is there are no ranks to wait for: this is
    /// only how often a worker introduces itself.
    pub(crate) const UNTIL_TOLD: Self = Self {
        detect_within_ms: 900,
    };

    pub(crate) fn new(detect_within_ms: u64) -> Self {
        Self {
            detect_within_ms: detect_within_ms.max(REPORTS_PER_LEASE),
        }
    }

    /// Woken later than this after a deadline, the machine was away.
    pub(crate) fn patience_ms(self) -> u64 {
        self.detect_within_ms / REPORTS_PER_LEASE
    }

    /// When a process last heard at `heard`, or started then, counts as hung. `spoke`: it has said
    /// something; from then on it beats while it loads.
    pub(crate) fn silent_at(self, heard: Millis, spoke: bool) -> Millis {
        let allowance = if spoke { 1 } else { FIRST_WORD };
        heard.saturating_add(self.detect_within_ms.saturating_mul(allowance))
    }

    /// When a process that was given a newer generation at `now`, or was then last heard at work of
    /// its own in the older one, must have left that: its state is worth waiting for.
    pub(crate) fn leave_at(self, now: Millis) -> Millis {
        now.saturating_add(self.detect_within_ms.saturating_mul(LEAVE))
    }

    /// When a peer that last answered at `heard` counts as not reached.
    pub(crate) fn unreached_at(self, heard: Millis) -> Millis {
        heard.saturating_add(self.detect_within_ms.saturating_mul(UNREACHED))
    }

    /// When a process that was asked to leave (or killed) at `now` is killed (again).
    pub(crate) fn kill_at(self, now: Millis) -> Millis {
        now.saturating_add(self.detect_within_ms)
    }

    /// When a worker that was asked at `now` to leave sends its ranks away, finished or not.
    pub(crate) fn gone_at(self, now: Millis) -> Millis {
        now.saturating_add(self.detect_within_ms.saturating_mul(GRACE))
    }

    /// When the report sent at `sent` is sent again though nothing changed.
    pub(crate) fn report_at(self, sent: Millis) -> Millis {
        sent.saturating_add(self.detect_within_ms / REPORTS_PER_LEASE)
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
            let (second_report, training, starting) = (
                deadlines.report_at(deadlines.report_at(now)),
                deadlines.silent_at(now, true),
                deadlines.silent_at(now, false),
            );
            assert!(second_report <= training && training <= starting, "{knob}");
            assert_eq!(deadlines.kill_at(now), training, "{knob}");
            assert!(training <= deadlines.unreached_at(now), "{knob}");
            assert!(starting <= deadlines.gone_at(now), "{knob}");
        }
    }
}
