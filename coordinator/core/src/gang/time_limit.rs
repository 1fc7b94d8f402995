//! `train.time_limit`: how long a gang may train in total, over all generations. When the time
//! is used up, it stops gracefully with a checkpoint and fails, so that `coordinator retry` with a
//! larger limit continues it.

use super::job::{Gang, State};
use crate::deadline::Deadlines;
use crate::outbox::Outbox;
use crate::rank::RankLive;
use crate::record::Millis;
use proto::message::{GracefulStop, RankPhase};
use proto::reason::{Cause, StopCause};

impl Gang {
    /// The limit in seconds, if the time is used up.
    fn used_up_limit(&self) -> Option<u64> {
        let limit_s = self.plan.time_limit_s?;
        (limit_s.saturating_mul(1000) <= self.trained_ms).then_some(limit_s)
    }

    /// True if it may not run any more.
    pub(crate) fn is_time_up(&self) -> bool {
        self.used_up_limit().is_some()
    }

    /// Counts the time since the last input, if all ranks trained then, and stops a generation
    /// whose time is used up.
    pub(super) fn count_time(&mut self, deadlines: Deadlines, outbox: &mut Outbox) {
        if let Some(since) = self.training_since {
            let passed = outbox.now.saturating_sub(since);
            self.trained_ms = self.trained_ms.saturating_add(passed);
        }
        self.training_since = self.is_training().then_some(outbox.now);
        if self.training_since.is_none() {
            return;
        }
        if let Some(limit_s) = self.used_up_limit() {
            let why = StopCause::TimeLimit { limit_s };
            self.graceful_stop(why, GracefulStop::WithCheckpoint, deadlines, outbox);
        }
    }

    /// All ranks of its generation train.
    fn is_training(&self) -> bool {
        let trains = |rank: &RankLive| rank.phase == Some(RankPhase::Training);
        self.running()
            .is_some_and(|running| running.ranks.values().all(trains))
    }

    /// When a running generation must be looked at because of its limit, or a queued job failed.
    pub(super) fn time_limit_at(&self, now: Millis) -> Option<Millis> {
        let limit_ms = self.plan.time_limit_s?.saturating_mul(1000);
        match &self.state {
            State::Running(running) if running.graceful_stop.is_none() => {
                let left = limit_ms.saturating_sub(self.trained_ms);
                Some(self.training_since?.saturating_add(left))
            }
            State::Queued(_) if self.is_time_up() => Some(now),
            State::Running(_) | State::Queued(_) | State::Ended(_) => None,
        }
    }

    /// Why it fails now that its last generation has stopped, if its time is used up.
    pub(super) fn time_limit_cause(&self) -> Option<Cause> {
        Some(Cause::TimeLimit {
            limit_s: self.used_up_limit()?,
            step: self.committed(),
        })
    }
}
