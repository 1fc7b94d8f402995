//! One worker's part in a job of units: its generation, its ranks, and what they are leased.

use super::pace::Group;
use super::ranges::Ranges;
use crate::outbox::Outbox;
use crate::rank::RankLive;
use crate::record::{Member, Millis};
use proto::id::{Generation, Rank, WorkerId};
use proto::message::RankPhase;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) member: Member,
    pub(crate) generation: Generation,
    /// The number of the event in which it joined; 0: before the coordinator restarted.
    pub(crate) joined_in: u64,
    /// Every rank of the member, from 0 on.
    pub(crate) ranks: BTreeMap<Rank, RankUnits>,
    /// Set once it was asked to finish and leave.
    pub(crate) leaving: Option<Leaving>,
}

#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) why: String,
    /// Then it is dropped, whatever its ranks have done.
    pub(crate) until: Millis,
}

/// A rank: what it said last, and what it holds.
#[derive(Debug)]
pub(crate) struct RankUnits {
    pub(crate) live: RankLive,
    /// Units that it should do.
    pub(crate) lease: Ranges,
    /// Units of its lease that it has done, and whose record is not saved: its order still names
    /// them.
    pub(crate) done: Ranges,
    /// Units that it was heard to fail in this generation. They are not leased to it again in it:
    /// it may say so once more.
    pub(crate) told_failed: BTreeSet<u64>,
    pub(crate) group: Group,
    /// False after a restart of the coordinator, until it is heard: it may hold units that are not
    /// known to be its.
    pub(crate) is_known: bool,
}

impl Part {
    /// It joins in this event: its ranks hold nothing from before.
    pub(crate) fn new(member: Member, generation: Generation, outbox: &Outbox) -> Self {
        let ranks = member.numbers();
        Self {
            ranks: ranks
                .map(|rank| (rank, RankUnits::new(true, outbox.now)))
                .collect(),
            member,
            generation,
            joined_in: outbox.event,
            leaving: None,
        }
    }

    /// It was there before the coordinator restarted.
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

    /// Units that its ranks should do.
    pub(crate) fn leased(&self) -> u64 {
        self.ranks.values().map(|rank| rank.lease.count()).sum()
    }

    /// None of its ranks is at a unit: each has ended, or has not loaded what it needs to begin.
    pub(crate) fn works_on_nothing(&self) -> bool {
        let idle = |rank: &RankUnits| match rank.live.phase {
            Some(
                RankPhase::Starting
                | RankPhase::Finished
                | RankPhase::Failed { .. }
                | RankPhase::Broken { .. },
            ) => true,
            Some(RankPhase::Ready | RankPhase::Joining | RankPhase::Training) => false,
            None => rank.is_known,
        };
        self.ranks.values().all(idle)
    }
}

impl RankUnits {
    fn new(is_known: bool, now: Millis) -> Self {
        Self {
            live: RankLive::new(now),
            lease: Ranges::default(),
            done: Ranges::default(),
            told_failed: BTreeSet::new(),
            group: Group::first(),
            is_known,
        }
    }
}
