//! What the ranks of a job's newest generation said, as far as the coordinator heard since it started. Never
//! durable: after a restart it is rebuilt from the next reports. It takes reports that [`crate::report`]
//! found sensible.

use crate::commit::PENDING_MAX;
use crate::event::{Member, Millis};
use crate::halt::Halting;
use crate::report::Oddity;
use proto::checkpoint::CheckpointRef;
use proto::id::{Rank, Step};
use proto::message::{Doing, Piece, RankPhase, RankReport, ShardReport, StepReport};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct Live {
    /// Every rank of the running generation; empty when none runs.
    pub(crate) ranks: BTreeMap<Rank, RankLive>,
    /// Where rank 0's c10d store listens.
    pub(crate) store_address: Option<String>,
    /// The checkpoint that the generation began from.
    pub(crate) resume: Option<CheckpointRef>,
    /// The newest step that rank 0 reported; the resumed step before that.
    pub(crate) acknowledged: Step,
    pub(crate) last_step: Option<StepReport>,
    /// When it was heard; before the first, when the last rank began to train.
    pub(crate) stepped_at: Millis,
    /// Shards of checkpoints that are not committed yet.
    pub(crate) shards: BTreeMap<Step, BTreeMap<Rank, ShardReport>>,
    /// Since when all ranks are finished.
    pub(crate) finished_at: Option<Millis>,
    /// Set once the generation was asked to end in order.
    pub(crate) halt: Option<Halting>,
    /// It was formed of processes that may hold state.
    pub(crate) inherits: bool,
    /// Every rank in reserve.
    pub(crate) reserves: BTreeMap<Rank, RankLive>,
    /// Lower numbers of this generation were given out, to reserves too.
    pub(crate) next_rank: u32,
    /// Since when some of its workers do not reach each other.
    pub(crate) torn_since: Option<Millis>,
}

#[derive(Debug)]
pub(crate) struct RankLive {
    /// None: not reported yet.
    pub(crate) phase: Option<RankPhase>,
    /// When it last stood in its worker's report; before the first, when its generation was formed.
    pub(crate) heard: Millis,
    /// Since when it is in its phase.
    pub(crate) since: Millis,
    /// Where its thread was when it was last heard.
    pub(crate) doing: Option<Doing>,
    /// Its process began in this generation; it holds nothing.
    pub(crate) cold: bool,
}

/// Whom the others wait for in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slowest {
    pub(crate) rank: Rank,
    pub(crate) piece: Piece,
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
    pub(crate) oddities: Vec<Oddity>,
}

impl Live {
    /// A generation formed (or found running after a restart) at `now`.
    pub(crate) fn new(members: &[Member], resume: Option<CheckpointRef>, now: Millis) -> Self {
        let mut ranks = BTreeMap::new();
        for member in members {
            for rank in member.first_rank.0..member.first_rank.0.saturating_add(member.ranks) {
                ranks.insert(Rank(rank), RankLive::new(now));
            }
        }
        let next_rank = u32::try_from(ranks.len()).unwrap_or(u32::MAX);
        let acknowledged = resume.map_or(Step(0), |resume| resume.step);
        Self {
            ranks,
            resume,
            acknowledged,
            stepped_at: now,
            next_rank,
            ..Self::default()
        }
    }

    /// Reserves that were there when the coordinator started.
    pub(crate) fn add_reserves(&mut self, reserves: &[Member], now: Millis) {
        for reserve in reserves {
            let end = reserve.first_rank.0.saturating_add(reserve.ranks);
            for rank in reserve.first_rank.0..end {
                self.reserves.insert(Rank(rank), RankLive::new(now));
            }
            self.next_rank = self.next_rank.max(end);
        }
    }

    /// Takes the report of a rank of this generation. `steps_max` is the job's number of steps, `committed`
    /// its newest committed step.
    pub(crate) fn take(
        &mut self,
        report: &RankReport,
        now: Millis,
        steps_max: Step,
        committed: Step,
    ) -> News {
        let mut news = News::default();
        let met = self.meeting_place().cloned();
        let Some(rank) = self.ranks.get_mut(&report.rank) else {
            return news;
        };
        if rank.take(&report.phase, now) && self.last_step.is_none() {
            self.stepped_at = now;
        }
        let outside = |step: Step| step == Step(0) || steps_max < step;
        let draws = |doing: &Doing| doing.step == Step(0) && matches!(doing.piece, Piece::Unit(_));
        rank.doing = report.doing.filter(|doing| draws(doing) || !outside(doing.step));
        if report.rank == Rank(0) {
            if report.store_address.is_some() && self.store_address != report.store_address {
                self.store_address.clone_from(&report.store_address);
            }
            self.take_steps(report, now, steps_max, &mut news);
        }
        news.for_all = self.meeting_place() != met.as_ref();
        self.take_shards(report, steps_max, committed, &mut news);
        let digests = report.digests.iter().map(|digest| digest.step);
        let doing = report.doing.iter().filter(|doing| !draws(doing));
        let doing = doing.map(|doing| doing.step);
        let oddities = digests
            .chain(doing)
            .filter(|step| outside(*step))
            .map(|step| Oddity::StepOutside { step, steps_max });
        news.oddities.extend(oddities);
        news
    }

    fn take_steps(&mut self, report: &RankReport, now: Millis, steps_max: Step, news: &mut News) {
        for step in &report.steps {
            if steps_max < step.step || step.step == Step(0) {
                news.oddities.push(Oddity::StepOutside {
                    step: step.step,
                    steps_max,
                });
            } else if self.acknowledged < step.step {
                self.acknowledged = step.step;
                self.last_step = Some(step.clone());
                self.stepped_at = now;
                news.steps.push(step.clone());
            }
        }
    }

    fn take_shards(&mut self, report: &RankReport, steps_max: Step, committed: Step, news: &mut News) {
        for shard in &report.shards {
            if shard.step <= committed {
                continue;
            }
            if steps_max < shard.step {
                news.oddities.push(Oddity::StepOutside {
                    step: shard.step,
                    steps_max,
                });
                continue;
            }
            let path = &shard.shard.path;
            if path.is_empty() || path.starts_with('.') || path.contains(['/', '\\']) {
                news.oddities.push(Oddity::ShardPath { path: path.clone() });
                continue;
            }
            let of_step = self.shards.entry(shard.step).or_default();
            if of_step
                .iter()
                .any(|(rank, other)| *rank != report.rank && other.shard.path == *path)
            {
                news.oddities.push(Oddity::ShardPath { path: path.clone() });
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

    /// Where the ranks meet: at rank 0's store, as soon as none of them is loading any more. Whoever is ready earlier waits
    /// for this word, so that no load is too slow for those that wait; only then does the time begin in which all must meet.
    pub(crate) fn meeting_place(&self) -> Option<&String> {
        let loads = |rank: &RankLive| matches!(rank.phase, None | Some(RankPhase::Starting));
        let loads = self.ranks.values().any(loads);
        self.store_address.as_ref().filter(|_| !loads)
    }

    /// No generation runs any more; who is kept in reserve stays.
    pub(crate) fn clear(&mut self) {
        self.ranks.clear();
        self.shards.clear();
        self.finished_at = None;
        self.halt = None;
    }

    pub(crate) fn all_finished(&self) -> bool {
        let finished = |rank: &RankLive| rank.phase == Some(RankPhase::Finished);
        !self.ranks.is_empty() && self.ranks.values().all(finished)
    }

    /// The rank that the others wait for in a step, as far as they have told: of those that are not in the reduction yet the
    /// one that has been longest in what it does.
    pub(crate) fn slowest(&self, now: Millis) -> Option<Slowest> {
        let doing = |live: &RankLive| {
            let doing = live.doing.filter(|_| live.phase == Some(RankPhase::Training))?;
            let since_heard = now.saturating_sub(live.heard);
            Some((doing.piece, doing.for_ms.saturating_add(since_heard)))
        };
        let told: Vec<_> = self
            .ranks
            .iter()
            .filter_map(|(rank, live)| Some((*rank, doing(live)?)))
            .collect();
        let behind = told.iter().filter(|(_, (piece, _))| *piece != Piece::Reduction);
        let (rank, (piece, for_ms)) = behind.max_by_key(|(_, (_, for_ms))| *for_ms).copied()?;
        let waiting = told.iter().filter(|(_, (piece, _))| *piece == Piece::Reduction);
        Some(Slowest {
            rank,
            piece,
            for_ms,
            waiting: waiting.count(),
        })
    }

    /// The running rank that was silent longest, and since when.
    pub(crate) fn longest_silent(&self) -> Option<(Rank, Millis)> {
        self.ranks
            .iter()
            .map(|(rank, live)| (*rank, live.heard))
            .min_by_key(|(_, heard)| *heard)
    }
}

impl RankLive {
    pub(crate) fn new(now: Millis) -> Self {
        Self {
            phase: None,
            heard: now,
            since: now,
            doing: None,
            cold: false,
        }
    }

    /// Takes the phase that was reported; true when it is a new one. A report that was overtaken sets nobody back.
    pub(crate) fn take(&mut self, phase: &RankPhase, now: Millis) -> bool {
        self.heard = now;
        self.cold |= *phase == RankPhase::Starting;
        let new = self.phase.as_ref().map_or(0, progress) < progress(phase);
        if new {
            self.phase = Some(phase.clone());
            self.since = now;
        }
        new
    }
}

/// Order of phases in a rank's life, above 0.
fn progress(phase: &RankPhase) -> u8 {
    match phase {
        RankPhase::Starting => 1,
        RankPhase::Joining => 2,
        RankPhase::Ready => 3,
        RankPhase::Training => 4,
        RankPhase::Broken { .. } => 5,
        RankPhase::Finished => 6,
        RankPhase::Failed { .. } => 7,
    }
}
