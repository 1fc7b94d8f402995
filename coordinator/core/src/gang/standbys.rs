//! Processes of a job that have no place in its generation: who they are and what they last said.
//! Their ranks are numbered from the generation's world on.

use crate::rank::RankLive;
use crate::record::{Member, Millis};
use proto::id::{Rank, WorkerId};
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Standbys {
    members: Vec<Member>,
    /// Every rank of the members.
    ranks: BTreeMap<Rank, RankLive>,
    /// Lower numbers of this generation were given out, to members and standbys.
    next_rank: u32,
}

impl Standbys {
    /// None yet, beside a generation of that world.
    pub(crate) fn new(world: u32) -> Self {
        Self {
            members: Vec::new(),
            ranks: BTreeMap::new(),
            next_rank: world,
        }
    }

    /// Those that were there when the coordinator started.
    pub(crate) fn restore(members: Vec<Member>, world: u32, now: Millis) -> Self {
        let mut restored = Self::new(world);
        for member in &members {
            restored.expect(member, now);
        }
        restored.members = members;
        restored
    }

    fn expect(&mut self, member: &Member, now: Millis) {
        for rank in member.numbers() {
            self.ranks.insert(rank, RankLive::new(now));
        }
        let end = member.first_rank.0.saturating_add(member.ranks);
        self.next_rank = self.next_rank.max(end);
    }

    /// One more, on this worker.
    pub(crate) fn add(&mut self, worker: WorkerId, ranks: u32, now: Millis) -> &Member {
        let first_rank = Rank(self.next_rank);
        let member = Member {
            worker,
            first_rank,
            ranks,
        };
        self.expect(&member, now);
        self.members.push(member);
        &self.members[self.members.len() - 1]
    }

    /// Members of a generation that ended become standbys, with what they said.
    pub(crate) fn adopt(&mut self, members: Vec<Member>, mut ranks: BTreeMap<Rank, RankLive>) {
        self.members.extend(members);
        self.ranks.append(&mut ranks);
        self.forget_lost();
    }

    /// Keeps those that `stays` says; the others, in order.
    pub(crate) fn part(&mut self, stays: impl FnMut(&Member) -> bool) -> Vec<Member> {
        let (kept, dropped): (Vec<Member>, Vec<Member>) = std::mem::take(&mut self.members)
            .into_iter()
            .partition(stays);
        self.members = kept;
        if !dropped.is_empty() {
            self.forget_lost();
        }
        dropped
    }

    pub(crate) fn clear(&mut self) {
        self.members.clear();
        self.ranks.clear();
    }

    fn forget_lost(&mut self) {
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

    /// True of a number that a standby of this generation had or has.
    pub(crate) fn gave_out(&self, rank: Rank) -> bool {
        rank.0 < self.next_rank
    }
}
