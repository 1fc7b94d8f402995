//! The set of standbys of a job and their last reports. Their ranks are numbered from the
//! generation's world size.

use crate::rank::RankLive;
use crate::record::{Member, Millis};
use proto::id::{Rank, WorkerId};
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Standbys {
    members: Vec<Member>,
    /// Every rank of the members.
    ranks: BTreeMap<Rank, RankLive>,
    /// The next free rank of this generation. Lower ranks were assigned to members and standbys.
    next_rank: u32,
}

impl Standbys {
    /// An empty set for a generation of this world size.
    pub(crate) fn new(world: u32) -> Self {
        Self {
            members: Vec::new(),
            ranks: BTreeMap::new(),
            next_rank: world,
        }
    }

    /// Restores the standbys after a restart of the coordinator.
    pub(crate) fn restore(members: Vec<Member>, world: u32, now: Millis) -> Self {
        let mut restored = Self::new(world);
        for member in &members {
            restored.track(member, now);
        }
        restored.members = members;
        restored
    }

    fn track(&mut self, member: &Member, now: Millis) {
        for rank in member.numbers() {
            self.ranks.insert(rank, RankLive::new(now));
        }
        let end = member.first_rank.0.saturating_add(member.ranks);
        self.next_rank = self.next_rank.max(end);
    }

    /// Adds a standby on this worker.
    pub(crate) fn add(&mut self, worker: WorkerId, ranks: u32, now: Millis) -> &Member {
        let first_rank = Rank(self.next_rank);
        let member = Member {
            worker,
            first_rank,
            ranks,
        };
        self.track(&member, now);
        self.members.push(member);
        &self.members[self.members.len() - 1]
    }

    /// Members of an ended generation become standbys and keep their reported state.
    pub(crate) fn adopt(&mut self, members: Vec<Member>, mut ranks: BTreeMap<Rank, RankLive>) {
        self.members.extend(members);
        self.ranks.append(&mut ranks);
        self.drop_stale_ranks();
    }

    /// Keeps the standbys for which `stays` returns true. Returns the others, in order.
    pub(crate) fn retain(&mut self, stays: impl FnMut(&Member) -> bool) -> Vec<Member> {
        let (retained, dropped): (Vec<Member>, Vec<Member>) = std::mem::take(&mut self.members)
            .into_iter()
            .partition(stays);
        self.members = retained;
        if !dropped.is_empty() {
            self.drop_stale_ranks();
        }
        dropped
    }

    pub(crate) fn clear(&mut self) {
        self.members.clear();
        self.ranks.clear();
    }

    fn drop_stale_ranks(&mut self) {
        let members = &self.members;
        self.ranks
            .retain(|rank, _| members.iter().any(|member| member.runs(*rank)));
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = &WorkerId> + Clone {
        self.members.iter().map(|member| &member.worker)
    }

    pub(crate) fn ranks(&self) -> &BTreeMap<Rank, RankLive> {
        &self.ranks
    }

    pub(crate) fn rank_mut(&mut self, rank: Rank) -> Option<&mut RankLive> {
        self.ranks.get_mut(&rank)
    }

    /// True if this rank was assigned in this generation, even if it was dropped since.
    pub(crate) fn was_assigned(&self, rank: Rank) -> bool {
        rank.0 < self.next_rank
    }
}
