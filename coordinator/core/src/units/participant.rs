//! A worker that participates in a job of units: its generation, its ranks, and their leases.

use super::pace::Group;
use super::ranges::Ranges;
use crate::outbox::Outbox;
use crate::rank::RankLive;
use crate::record::{Member, Millis};
use proto::id::{Generation, Rank, WorkerId};
use proto::message::RankPhase;
use proto::reason::StopCause;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Participant {
    pub(crate) member: Member,
    pub(crate) generation: Generation,
    /// The number of the input in which it joined; 0 if it was restored after a restart.
    pub(crate) joined_in: u64,
    /// Every rank of the member, starting at 0.
    pub(crate) ranks: BTreeMap<Rank, RankUnits>,
    /// Set once it was asked to finish and leave.
    pub(crate) leaving: Option<Leaving>,
}

#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) why: StopCause,
    /// When it is dropped, whatever its ranks have done.
    pub(crate) until: Millis,
}

/// A rank: its last reported state and its units.
#[derive(Debug)]
pub(crate) struct RankUnits {
    pub(crate) live: RankLive,
    /// Units that it should run.
    pub(crate) lease: Ranges,
    /// Completed units that are not saved yet. Its order still names them.
    pub(crate) done: Ranges,
    /// Units that it reported as failed in this generation. They are not leased to it again in this
    /// generation, because it may report the same failure twice.
    pub(crate) reported_failed: BTreeSet<u64>,
    pub(crate) group: Group,
    /// False after a restart of the coordinator until its first report: it may hold units that the
    /// coordinator does not know of.
    pub(crate) has_reported: bool,
}

impl Participant {
    /// A worker that joins now. Its ranks hold no units.
    pub(crate) fn new(member: Member, generation: Generation, outbox: &Outbox) -> Self {
        let ranks = member.numbers();
        Self {
            ranks: ranks
                .map(|rank| (rank, RankUnits::new(true, outbox.now)))
                .collect(),
            member,
            generation,
            joined_in: outbox.input,
            leaving: None,
        }
    }

    /// A worker that was restored after a restart of the coordinator.
    pub(crate) fn restored(member: Member, generation: Generation, now: Millis) -> Self {
        let ranks = member.numbers();
        Self {
            ranks: ranks
                .map(|rank| (rank, RankUnits::new(false, now)))
                .collect(),
            member,
            generation,
            joined_in: 0,
            leaving: None,
        }
    }

    pub(crate) fn worker(&self) -> &WorkerId {
        &self.member.worker
    }

    /// Number of units that its ranks should run.
    pub(crate) fn leased(&self) -> u64 {
        self.ranks.values().map(|rank| rank.lease.count()).sum()
    }

    /// True if none of its ranks runs a unit: each has ended or is still loading.
    pub(crate) fn is_idle(&self) -> bool {
        let idle = |rank: &RankUnits| match rank.live.phase {
            Some(
                RankPhase::Starting
                | RankPhase::Finished
                | RankPhase::Failed { .. }
                | RankPhase::Broken { .. },
            ) => true,
            Some(RankPhase::Ready | RankPhase::Joining | RankPhase::Training) => false,
            None => rank.has_reported,
        };
        self.ranks.values().all(idle)
    }
}

impl RankUnits {
    fn new(has_reported: bool, now: Millis) -> Self {
        Self {
            live: RankLive::new(now),
            lease: Ranges::default(),
            done: Ranges::default(),
            reported_failed: BTreeSet::new(),
            group: Group::first(),
            has_reported,
        }
    }
}
