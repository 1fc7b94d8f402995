//! How fast units go: how many a rank is leased at once, and what is shown.

use crate::record::Millis;
use std::collections::VecDeque;

/// Most units that a rank holds at once.
const GROUP_MAX: u64 = 4096;

/// How many units a rank is leased at once: its group. It begins with one. A group that was gone in
/// less than half a `detect_within` is followed by one twice as large, so that fast units need no
/// message each; one that took longer than twice that time by one half as large, so that slow units
/// are not hoarded by a rank while another has none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    size: u64,
    /// When it was leased; None: it is the first.
    since: Option<Millis>,
}

impl Group {
    pub(crate) fn first() -> Self {
        Self {
            size: 1,
            since: None,
        }
    }

    /// So many are leased when at most [`Self::low`] are left.
    pub(crate) fn size(self) -> u64 {
        self.size
    }

    /// A rank that has so few left is leased more: before it has none, where units are fast.
    pub(crate) fn low(self) -> u64 {
        self.size / 2
    }

    /// The next group is leased now; `aim_ms` is how long one should last.
    pub(crate) fn next(&mut self, now: Millis, aim_ms: u64) {
        if let Some(since) = self.since {
            let took = now.saturating_sub(since);
            if took < aim_ms {
                self.size = (self.size * 2).min(GROUP_MAX);
            } else if aim_ms.saturating_mul(4) < took {
                self.size = (self.size / 2).max(1);
            }
        }
        self.since = Some(now);
    }
}

/// Time over which a rate is taken.
const WINDOW_MS: u64 = 60_000;
/// Moments of the window that are remembered.
const MOMENTS_MAX: usize = 64;

/// Units that were done lately.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    /// When how many units were done, oldest first.
    moments: VecDeque<Moment>,
}

#[derive(Debug, Clone, Copy)]
struct Moment {
    at: Millis,
    done: u64,
}

impl Rate {
    /// So many units are done now.
    pub(crate) fn note(&mut self, now: Millis, done: u64) {
        let soon = |last: &Moment| now < last.at.saturating_add(WINDOW_MS / MOMENTS_MAX as u64);
        if 1 < self.moments.len() && self.moments.get(self.moments.len() - 2).is_some_and(soon) {
            self.moments.pop_back();
        }
        self.moments.push_back(Moment { at: now, done });
        while 2 < self.moments.len()
            && (MOMENTS_MAX < self.moments.len()
                || self
                    .moments
                    .get(1)
                    .is_some_and(|it| it.at.saturating_add(WINDOW_MS) < now))
        {
            self.moments.pop_front();
        }
    }

    /// Units per second, as of `now`; 0 when nothing was done for the length of the window.
    pub(crate) fn per_second(&self, now: Millis) -> f64 {
        let (Some(first), Some(last)) = (self.moments.front(), self.moments.back()) else {
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
            rate.note(second * 1000, second * second);
        }
        assert!(rate.moments.len() <= MOMENTS_MAX);
        let recent = rate.per_second(199_000);
        assert!((335.0..341.0).contains(&recent), "{recent}");
        assert!(rate.per_second(400_000).abs() < f64::EPSILON);
    }
}
