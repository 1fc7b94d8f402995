//! The pace of units: the size of leases, and the displayed rate.

use crate::record::Millis;
use std::collections::VecDeque;

/// Maximum number of units that a rank is leased at once.
const GROUP_MAX: u64 = 4096;

/// The number of units that a rank is leased at once: its group, which starts at one. If a group
/// took less than half a `detect_within`, the next one is twice as large, so that fast units do not
/// need a message each. If it took more than two `detect_within`, the next one is half as large, so
/// that a rank does not hold slow units while another rank has none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    size: u64,
    /// When it was leased. None for the first group.
    since: Option<Millis>,
}

impl Group {
    pub(crate) fn first() -> Self {
        Self {
            size: 1,
            since: None,
        }
    }

    /// The number of units to hold after a refill. A refill happens when at most [`Self::low`] are
    /// left.
    pub(crate) fn size(self) -> u64 {
        self.size
    }

    /// The refill threshold. It is above zero for fast units, so that a rank does not run out.
    pub(crate) fn low(self) -> u64 {
        self.size / 2
    }

    /// Updates the size for a group that is leased now. `aim_ms` is the target duration of a group.
    pub(crate) fn next(&mut self, now: Millis, aim_ms: u64) {
        if let Some(since) = self.since {
            let elapsed = now.saturating_sub(since);
            if elapsed < aim_ms {
                self.size = (self.size * 2).min(GROUP_MAX);
            } else if aim_ms.saturating_mul(4) < elapsed {
                self.size = (self.size / 2).max(1);
            }
        }
        self.since = Some(now);
    }
}

/// The window over which the rate is measured.
const WINDOW_MS: u64 = 60_000;
/// Maximum number of samples in the window.
const SAMPLES_MAX: usize = 64;

/// The recent rate of completed units.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    /// Oldest first.
    samples: VecDeque<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Millis,
    done: u64,
}

impl Rate {
    /// Records the total number of completed units.
    pub(crate) fn record(&mut self, now: Millis, done: u64) {
        let soon = |last: &Sample| now < last.at.saturating_add(WINDOW_MS / SAMPLES_MAX as u64);
        if 1 < self.samples.len() && self.samples.get(self.samples.len() - 2).is_some_and(soon) {
            self.samples.pop_back();
        }
        self.samples.push_back(Sample { at: now, done });
        while 2 < self.samples.len()
            && (SAMPLES_MAX < self.samples.len()
                || self
                    .samples
                    .get(1)
                    .is_some_and(|it| it.at.saturating_add(WINDOW_MS) < now))
        {
            self.samples.pop_front();
        }
    }

    /// Units per second at `now`; 0 if nothing was completed within the window.
    pub(crate) fn per_second(&self, now: Millis) -> f64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return 0.0;
        };
        if last.at.saturating_add(WINDOW_MS) < now {
            return 0.0;
        }
        let ms = now.saturating_sub(first.at).max(1);
        (last.done - first.done) as f64 * 1000.0 / ms as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_grows_with_fast_units_and_shrinks_with_slow_ones() {
        let mut group = Group::first();
        for now in 1..40 {
            group.next(now * 100, 500);
        }
        assert_eq!(group.size(), GROUP_MAX);
        group.next(10_000, 500);
        assert_eq!(group.size(), GROUP_MAX / 2);
    }

    #[test]
    fn a_rate_is_that_of_the_last_minute() {
        let mut rate = Rate::default();
        for second in 0..200 {
            rate.record(second * 1000, second * second);
        }
        assert!(rate.samples.len() <= SAMPLES_MAX);
        let recent = rate.per_second(199_000);
        assert!((335.0..341.0).contains(&recent), "{recent}");
        assert!(rate.per_second(400_000).abs() < f64::EPSILON);
    }
}
