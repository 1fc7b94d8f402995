//! Timeouts of a gang.

use super::job::Gang;
use crate::deadline::Deadlines;
use crate::record::Millis;
use proto::id::Rank;
use proto::reason::Ending;

impl Gang {
    /// Why its running generation must end at `now` because of a timeout, if it must.
    pub(super) fn overdue(&self, deadlines: Deadlines, now: Millis) -> Option<Ending> {
        let running = self.running()?;
        if let Some(silent) = running.longest_silent()
            && deadlines.report_timeout(silent.live.last_report) <= now
        {
            let member = running.owner(silent.rank)?;
            return Some(Ending::RankMissing {
                rank: silent.rank,
                worker: member.worker.clone(),
            });
        }
        let due = running
            .finished_at
            .is_some_and(|since| deadlines.last_shards(since) <= now);
        let step = self.steps_max();
        // A stopping generation ends before the last step and has its own deadline.
        if !due
            || self.writing.is_some()
            || self.committed() == step
            || running.graceful_stop.is_some()
        {
            return None;
        }
        let shards = running.shards.get(&step);
        let has_shard = |rank: &&Rank| shards.is_some_and(|shards| shards.contains_key(rank));
        let without = running.ranks.keys().filter(|rank| !has_shard(rank));
        Some(Ending::LastCheckpointMissing {
            step,
            without: without.copied().collect(),
        })
    }

    pub(crate) fn next_deadline(&self, deadlines: Deadlines, now: Millis) -> Option<Millis> {
        let running = self.running();
        let silent = running
            .and_then(|running| running.longest_silent())
            .map(|silent| deadlines.report_timeout(silent.live.last_report));
        let finished = running
            .filter(|running| running.graceful_stop.is_none() && self.writing.is_none())
            .and_then(|running| running.finished_at)
            .map(|since| deadlines.last_shards(since));
        let retry = self.writing.as_ref().map(|writing| writing.retry_at);
        let grace = self.grace_ends_at(now);
        let graceful_stop = self.stop_deadline();
        let standby = self.next_standby_deadline(deadlines);
        let time_limit = self.time_limit_at(now);
        [
            silent,
            finished,
            retry,
            grace,
            graceful_stop,
            standby,
            time_limit,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
