//! A running generation: its members and the reports of its ranks since the coordinator started.
//! Only the members are durable: after a restart the rest is rebuilt from the next reports. It
//! applies only reports that [`super::report`] classified as valid.

use super::newest::Newest;
use super::stopping::Stopping;
use crate::rank::RankLive;
use crate::record::{Member, Millis};
use proto::id::{Rank, Step, WorkerId};
use proto::message::{RankPhase, RankReport, ShardReport, Stage, StepReport};
use proto::reason::Violation;
use std::collections::BTreeMap;

/// Maximum number of incomplete checkpoints per generation. The oldest are dropped first.
const PENDING_MAX: usize = 8;

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) members: Vec<Member>,
    /// Every rank of the members.
    pub(crate) ranks: BTreeMap<Rank, RankLive>,
    /// The address of rank 0's c10d store.
    store_address: Option<String>,
    /// When the last step was reported; before the first, when a rank last changed its phase.
    pub(crate) stepped_at: Millis,
    /// Shards of checkpoints that are not committed yet.
    pub(crate) shards: BTreeMap<Step, BTreeMap<Rank, ShardReport>>,
    /// When all ranks had finished.
    pub(crate) finished_at: Option<Millis>,
    /// Set once a graceful stop was requested.
    pub(crate) graceful_stop: Option<Stopping>,
    /// It was formed from processes that may hold state.
    pub(crate) inherits: bool,
    /// Since when some of its workers cannot reach each other.
    pub(crate) partitioned_since: Option<Millis>,
    /// The standbys at the time it was formed, until its own standbys are assigned.
    pub(crate) former_standbys: Vec<WorkerId>,
}

/// A rank and its last reported state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RankAt<'a> {
    pub(crate) rank: Rank,
    pub(crate) live: &'a RankLive,
}

/// The rank that the others wait for in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slowest {
    pub(crate) rank: Rank,
    pub(crate) stage: Stage,
    pub(crate) for_ms: u64,
    /// Number of other ranks that are already in the reduction.
    pub(crate) waiting: usize,
}

/// What is new in a rank's report.
#[derive(Debug, Default)]
pub(crate) struct ReportOutcome {
    /// Steps not seen before in this generation, in order.
    pub(crate) steps: Vec<StepReport>,
    /// The rendezvous address changed, so all members must be notified.
    pub(crate) notify_all: bool,
    pub(crate) violations: Vec<Violation>,
}

/// The range of steps that ranks of a job can report.
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
    /// A generation that was formed at `now`, or restored at `now` after a restart.
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
            former_standbys: Vec::new(),
        }
    }

    pub(crate) fn world(&self) -> u32 {
        self.members.iter().map(|member| member.ranks).sum()
    }

    /// The member that runs a rank.
    pub(crate) fn owner(&self, rank: Rank) -> Option<&Member> {
        self.members.iter().find(|member| member.runs(rank))
    }

    /// Applies the report of a rank of this generation, which is the job's newest.
    pub(crate) fn apply(
        &mut self,
        newest: &mut Newest,
        report: &RankReport,
        bounds: Bounds,
        now: Millis,
    ) -> ReportOutcome {
        let mut outcome = ReportOutcome::default();
        let previous = self.rendezvous().cloned();
        let Some(rank) = self.ranks.get_mut(&report.rank) else {
            return outcome;
        };
        if rank.apply(&report.phase, now) && newest.last_step.is_none() {
            self.stepped_at = now;
        }
        rank.totals = report.totals.or(rank.totals);
        rank.activity = report
            .activity
            .filter(|activity| !bounds.excludes(activity.step));
        if report.rank == Rank(0) {
            if report.store_address.is_some() && self.store_address != report.store_address {
                self.store_address.clone_from(&report.store_address);
            }
            for step in &report.steps {
                if bounds.excludes(step.step) {
                    outcome.violations.push(bounds.violation(step.step));
                } else if newest.acknowledged < step.step {
                    newest.acknowledged = step.step;
                    newest.last_step = Some(step.clone());
                    self.stepped_at = now;
                    outcome.steps.push(step.clone());
                }
            }
        }
        outcome.notify_all = self.rendezvous() != previous.as_ref();
        self.apply_shards(report, bounds, &mut outcome);
        let digests = report.digests.iter().map(|digest| digest.step);
        let steps = digests.chain(report.activity.iter().map(|activity| activity.step));
        let outside = steps.filter(|step| bounds.excludes(*step));
        outcome
            .violations
            .extend(outside.map(|step| bounds.violation(step)));
        outcome
    }

    fn apply_shards(&mut self, report: &RankReport, bounds: Bounds, outcome: &mut ReportOutcome) {
        for shard in &report.shards {
            if shard.step <= bounds.committed {
                continue;
            }
            if bounds.steps_max < shard.step {
                outcome.violations.push(bounds.violation(shard.step));
                continue;
            }
            let path = &shard.shard.path;
            if path.is_empty() || path.starts_with('.') || path.contains(['/', '\\']) {
                outcome
                    .violations
                    .push(Violation::ShardPath { path: path.clone() });
                continue;
            }
            let of_step = self.shards.entry(shard.step).or_default();
            if of_step
                .iter()
                .any(|(rank, other)| *rank != report.rank && other.shard.path == *path)
            {
                outcome
                    .violations
                    .push(Violation::ShardPath { path: path.clone() });
                continue;
            }
            // A rank writes each shard once, so its first report of a shard is final.
            of_step.entry(report.rank).or_insert_with(|| shard.clone());
        }
        // Bounds the incomplete checkpoints if one rank never reports its shards.
        while PENDING_MAX < self.shards.len() {
            self.shards.pop_first();
        }
    }

    /// The rendezvous address: that of rank 0's store, once no rank is loading. Ranks that are
    /// ready earlier wait for this address, so that a slow load cannot exceed the rendezvous
    /// timeout of the others: it starts only when they get the address.
    pub(crate) fn rendezvous(&self) -> Option<&String> {
        let loading = |rank: &RankLive| matches!(rank.phase, None | Some(RankPhase::Starting));
        let loading = self.ranks.values().any(loading);
        self.store_address.as_ref().filter(|_| !loading)
    }

    pub(crate) fn all_finished(&self) -> bool {
        let finished = |rank: &RankLive| rank.phase == Some(RankPhase::Finished);
        !self.ranks.is_empty() && self.ranks.values().all(finished)
    }

    /// The rank that the others wait for in a step, according to the reports: of the ranks that are
    /// not in the reduction yet, the one that has spent the longest in its current stage.
    pub(crate) fn slowest(&self, now: Millis) -> Option<Slowest> {
        let activity = |live: &RankLive| {
            let activity = live
                .activity
                .filter(|_| live.phase == Some(RankPhase::Training))?;
            let since_report = now.saturating_sub(live.last_report);
            Some((activity.stage, activity.for_ms.saturating_add(since_report)))
        };
        let reported: Vec<_> = self
            .ranks
            .iter()
            .filter_map(|(rank, live)| Some((*rank, activity(live)?)))
            .collect();
        let working = reported
            .iter()
            .filter(|(_, (stage, _))| *stage != Stage::Reduction);
        let (rank, (stage, for_ms)) = working.max_by_key(|(_, (_, for_ms))| *for_ms).copied()?;
        let waiting = reported
            .iter()
            .filter(|(_, (stage, _))| *stage == Stage::Reduction);
        Some(Slowest {
            rank,
            stage,
            for_ms,
            waiting: waiting.count(),
        })
    }

    /// The rank with the oldest report.
    pub(crate) fn longest_silent(&self) -> Option<RankAt<'_>> {
        self.ranks().min_by_key(|at| at.live.last_report)
    }

    /// The rank that has been in its phase the longest, among those that match the predicate.
    pub(crate) fn last_rank(&self, predicate: impl Fn(&RankLive) -> bool) -> Option<RankAt<'_>> {
        self.ranks()
            .filter(|at| predicate(at.live))
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
