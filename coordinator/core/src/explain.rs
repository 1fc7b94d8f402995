//! What a rank's report says of a failure, and who had to wait for it.

use crate::record::Member;
use proto::id::{Rank, WorkerId};
use proto::message::{RankPhase, RankReport};
use proto::reason::{Blocked, Ending, RankOn};

/// The failure that a rank reports, if any.
pub(crate) fn failure(worker: &WorkerId, report: &RankReport) -> Option<Ending> {
    let (rank, worker) = (report.rank, worker.clone());
    match &report.phase {
        RankPhase::Failed { failure } => Some(Ending::RankFailed {
            rank,
            worker,
            failure: failure.clone(),
        }),
        RankPhase::Broken { error } => Some(Ending::GroupBroken {
            rank,
            worker,
            error: error.clone(),
        }),
        RankPhase::Starting
        | RankPhase::Ready
        | RankPhase::Joining
        | RankPhase::Training
        | RankPhase::Finished => None,
    }
}

/// The ranks of `members` that this ending blocked.
pub(crate) fn blocked_ranks(ending: &Ending, members: &[Member]) -> Blocked {
    let Some((worker, rank)) = ending.blocker() else {
        return Blocked::default();
    };
    let mut blocked = Vec::new();
    for member in members {
        let first = member.first_rank.0;
        for number in first..first.saturating_add(member.ranks) {
            let blocker = member.worker == *worker && rank.is_none_or(|rank| rank == Rank(number));
            if !blocker {
                blocked.push(RankOn {
                    rank: Rank(number),
                    worker: Some(member.worker.name.clone()),
                });
            }
        }
    }
    Blocked::new(blocked)
}

/// A rank, and the worker of `members` that runs it.
pub(crate) fn rank_on(rank: Rank, members: &[Member]) -> RankOn {
    let member = members.iter().find(|member| member.runs(rank));
    RankOn {
        rank,
        worker: member.map(|member| member.worker.name.clone()),
    }
}
