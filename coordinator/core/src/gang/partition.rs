//! A generation in which some workers cannot reach each other. Daemon reports alone do not end it:
//! all its ranks must also be waiting.

use super::job::Gang;
use crate::deadline::Deadlines;
use crate::partitions::Partitions;
use crate::rank::RankLive;
use crate::record::Millis;
use proto::message::{RankPhase, Stage};
use proto::reason::Ending;

impl Gang {
    /// The ending of its generation, if some of its workers cannot reach each other and all its
    /// ranks are waiting, for the others to join or in a collective. Placement then decides which
    /// workers to exclude. Waits until then: other failed links may still be reported.
    pub(crate) fn partitioned(
        &mut self,
        partitions: &Partitions,
        deadlines: Deadlines,
        now: Millis,
    ) -> Option<Ending> {
        let running = self.running_mut()?;
        let pairs = partitions.among(running.members.iter().map(|member| &member.worker));
        if pairs.is_empty() {
            running.partitioned_since = None;
            return None;
        }
        let since = *running.partitioned_since.get_or_insert(now);
        let waits =
            |rank: &RankLive| waited(rank, now).is_some_and(|ms| deadlines.stuck_ms() <= ms);
        let stuck = deadlines.partition_grace(since) <= now && running.ranks.values().all(waits);
        stuck.then(|| Ending::Partitioned {
            pairs: pairs.list(),
        })
    }
}

/// How long a rank has only been waiting for the others. None if it is working.
fn waited(rank: &RankLive, now: Millis) -> Option<u64> {
    match (&rank.phase, rank.activity) {
        (Some(RankPhase::Training), Some(activity)) if activity.stage == Stage::Reduction => Some(
            activity
                .for_ms
                .saturating_add(now.saturating_sub(rank.last_report)),
        ),
        (Some(RankPhase::Joining | RankPhase::Finished | RankPhase::Broken { .. }), _) => {
            Some(now.saturating_sub(rank.since))
        }
        (
            None
            | Some(
                RankPhase::Starting
                | RankPhase::Ready
                | RankPhase::Training
                | RankPhase::Failed { .. },
            ),
            _,
        ) => None,
    }
}
