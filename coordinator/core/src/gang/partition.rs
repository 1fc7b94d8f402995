//! A generation of which some workers do not reach each other. It is not ended on the word of
//! daemons alone: it must also stand still.

use super::job::Gang;
use crate::deadline::Deadlines;
use crate::explain::Ending;
use crate::partitions::Partitions;
use crate::rank::RankLive;
use crate::record::Millis;
use proto::message::{RankPhase, Stage};

impl Gang {
    /// Why its generation cannot go on, if some of its workers do not reach each other and all its
    /// ranks wait: for the others to join, or in a collective. Those that are left out are told by
    /// placement. The news of one pair may come a little before that of the next, so it waits a
    /// moment for all.
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
            what: pairs.to_string(),
        })
    }
}

/// For how long a rank has been doing nothing but wait for the others; None: it does something of
/// its own.
fn waited(rank: &RankLive, now: Millis) -> Option<u64> {
    match (&rank.phase, rank.activity) {
        (Some(RankPhase::Training), Some(activity)) if activity.stage == Stage::Reduction => Some(
            activity
                .for_ms
                .saturating_add(now.saturating_sub(rank.heard)),
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
