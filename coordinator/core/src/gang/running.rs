//! A running generation: its members, and what its ranks said, as far as the coordinator heard
//! since it started. Only its members are durable: after a restart the rest is rebuilt from the
//! next reports. It takes reports that [`super::report`] found possible.

use super::newest::Newest;
use super::stopping::Stopping;
use crate::rank::RankLive;
use crate::record::{Member, Millis};
use crate::violation::Violation;
use proto::id::{Rank, Step, WorkerId};
use proto::message::{RankPhase, RankReport, ShardReport, Stage, StepReport};
use std::collections::BTreeMap;

/// Checkpoints of one generation that may lack shards at one time; the oldest are given up first.
const PENDING_MAX: usize = 8;

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) members: Vec<Member>,
    /// Every rank of the members.
    pub(crate) ranks: BTreeMap<Rank, RankLive>,
    /// Where rank 0's c10d store listens.
    store_address: Option<String>,
    /// When the last step was heard; before the first, when the last rank began to train.
    pub(crate) stepped_at: Millis,
    /// Shards of checkpoints that are not committed yet.
    pub(crate) shards: BTreeMap<Step, BTreeMap<Rank, ShardReport>>,
    /// Since when all ranks are finished.
    pub(crate) finished_at: Option<Millis>,
    /// Set once it was asked to end in order.
    pub(crate) graceful_stop: Option<Stopping>,
    /// It was formed of processes that may hold state.
    pub(crate) inherits: bool,
    /// Since when some of its workers do not reach each other.
    pub(crate) partitioned_since: Option<Millis>,
    /// Who was on standby when it was formed, until it is clear who is so beside it.
    pub(crate) formerly_standby: Vec<WorkerId>,
}

/// A rank and what it said last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RankAt<'a> {
    pub(crate) rank: Rank,
    pub(crate) live: &'a RankLive,
}

/// Whom the others wait for in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slowest {
    pub(crate) rank: Rank,
    pub(crate) stage: Stage,
    pub(crate) for_ms: u64,
    /// So many others are in the reduction already.
    pub(crate) waiting: usize,
}

/// What a rank's report brought.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Steps not seen before in this generation, in order.
    pub(crate) steps: Vec<StepReport>,
    /// All members must be told: where they meet.
    pub(crate) for_all: bool,
    pub(crate) violations: Vec<Violation>,
}

/// What steps of a job's ranks can be news.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The job's number of steps.
    pub(crate) steps_max: Step,
    /// Its newest committed step.
    pub(crate) committed: Step,
}

impl Bounds {
    fn excludes(self, step: Step) -> bool {
        step == Step(0) || self.steps_max < step
    }

    fn violation(self, step: Step) -> Violation {
        Violation::StepOutside {
            step,
            steps_max: self.steps_max,
        }
    }
}

impl Running {
    /// Formed (or found running after a restart) at `now`.
    pub(crate) fn new(members: Vec<Member>, inherits: bool, now: Millis) -> Self {
        let ranks = members.iter().flat_map(Member::numbers);
        Self {
            ranks: ranks.map(|rank| (rank, RankLive::new(now))).collect(),
            members,
            store_address: None,
            stepped_at: now,
            shards: BTreeMap::new(),
            finished_at: None,
            graceful_stop: None,
            inherits,
            partitioned_since: None,
            formerly_standby: Vec::new(),
        }
    }

    pub(crate) fn world(&self) -> u32 {
        self.members.iter().map(|member| member.ranks).sum()
    }

    /// The member that runs a rank.
    pub(crate) fn owner(&self, rank: Rank) -> Option<&Member> {
        self.members.iter().find(|member| member.runs(rank))
    }

    /// Takes the report of a rank of this generation, which is the job's newest.
    pub(crate) fn take(
        &mut self,
        newest: &mut Newest,
        report: &RankReport,
        bounds: Bounds,
        now: Millis,
    ) -> News {
        let mut news = News::default();
        let met = self.rendezvous().cloned();
        let Some(rank) = self.ranks.get_mut(&report.rank) else {
            return news;
        };
        if rank.take(&report.phase, now) && newest.last_step.is_none() {
            self.stepped_at = now;
        }
        rank.activity = report
            .activity
            .filter(|activity| !bounds.excludes(activity.step));
        if report.rank == Rank(0) {
            if report.store_address.is_some() && self.store_address != report.store_address {
                self.store_address.clone_from(&report.store_address);
            }
            for step in &report.steps {
                if bounds.excludes(step.step) {
                    news.violations.push(bounds.violation(step.step));
                } else if newest.acknowledged < step.step {
                    newest.acknowledged = step.step;
                    newest.last_step = Some(step.clone());
                    self.stepped_at = now;
                    news.steps.push(step.clone());
                }
            }
        }
        news.for_all = self.rendezvous() != met.as_ref();
        self.take_shards(report, bounds, &mut news);
        let digests = report.digests.iter().map(|digest| digest.step);
        let steps = digests.chain(report.activity.iter().map(|activity| activity.step));
        let outside = steps.filter(|step| bounds.excludes(*step));
        news.violations
            .extend(outside.map(|step| bounds.violation(step)));
        news
    }

    fn take_shards(&mut self, report: &RankReport, bounds: Bounds, news: &mut News) {
        for shard in &report.shards {
            if shard.step <= bounds.committed {
                continue;
            }
            if bounds.steps_max < shard.step {
                news.violations.push(bounds.violation(shard.step));
                continue;
            }
            let path = &shard.shard.path;
            if path.is_empty() || path.starts_with('.') || path.contains(['/', '\\']) {
                news.violations
                    .push(Violation::ShardPath { path: path.clone() });
                continue;
            }
            let of_step = self.shards.entry(shard.step).or_default();
            if of_step
                .iter()
                .any(|(rank, other)| *rank != report.rank && other.shard.path == *path)
            {
                news.violations
                    .push(Violation::ShardPath { path: path.clone() });
                continue;
            }
            // A rank lives once, so its first word on a shard is its only one.
            of_step.entry(report.rank).or_insert_with(|| shard.clone());
        }
        // Unfinished checkpoints do not pile up when one rank's shards never come.
        while PENDING_MAX < self.shards.len() {
            self.shards.pop_first();
        }
    }

    /// Where the ranks meet: at rank 0's store, as soon as none of them is loading any more.
    /// Whoever is ready earlier waits for this word, so that no load is too slow for those that
    /// wait; only then does the time begin in which all must meet.
    pub(crate) fn rendezvous(&self) -> Option<&String> {
        let loads = |rank: &RankLive| matches!(rank.phase, None | Some(RankPhase::Starting));
        let loads = self.ranks.values().any(loads);
        self.store_address.as_ref().filter(|_| !loads)
    }

    pub(crate) fn all_finished(&self) -> bool {
        let finished = |rank: &RankLive| rank.phase == Some(RankPhase::Finished);
        !self.ranks.is_empty() && self.ranks.values().all(finished)
    }

    /// The rank that the others wait for in a step, as far as they have told: of those that are not
    /// in the reduction yet the one that has been longest in what it does.
    pub(crate) fn slowest(&self, now: Millis) -> Option<Slowest> {
        let activity = |live: &RankLive| {
            let activity = live
                .activity
                .filter(|_| live.phase == Some(RankPhase::Training))?;
            let since_heard = now.saturating_sub(live.heard);
            Some((activity.stage, activity.for_ms.saturating_add(since_heard)))
        };
        let told: Vec<_> = self
            .ranks
            .iter()
            .filter_map(|(rank, live)| Some((*rank, activity(live)?)))
            .collect();
        let behind = told
            .iter()
            .filter(|(_, (stage, _))| *stage != Stage::Reduction);
        let (rank, (stage, for_ms)) = behind.max_by_key(|(_, (_, for_ms))| *for_ms).copied()?;
        let waiting = told
            .iter()
            .filter(|(_, (stage, _))| *stage == Stage::Reduction);
        Some(Slowest {
            rank,
            stage,
            for_ms,
            waiting: waiting.count(),
        })
    }

    /// The rank that was silent longest.
    pub(crate) fn longest_silent(&self) -> Option<RankAt<'_>> {
        self.ranks().min_by_key(|at| at.live.heard)
    }

    /// Of the ranks that are so, the one that has been longest.
    pub(crate) fn last_rank(&self, so: impl Fn(&RankLive) -> bool) -> Option<RankAt<'_>> {
        self.ranks()
            .filter(|at| so(at.live))
            .min_by_key(|at| at.live.since)
    }

    pub(crate) fn at(&self, rank: Rank) -> Option<RankAt<'_>> {
        self.ranks.get(&rank).map(|live| RankAt { rank, live })
    }

    fn ranks(&self) -> impl Iterator<Item = RankAt<'_>> {
        self.ranks
            .iter()
            .map(|(rank, live)| RankAt { rank: *rank, live })
    }
}
