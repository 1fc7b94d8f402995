//! What goes wrong with units, with the processes that work on them, and with workers.

use super::job::Units;
use super::part::{Leaving, Part};
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::explain::{Ending, failure};
use crate::outbox::Outbox;
use crate::rank::RankLive;
use crate::record::RESTARTS_WITHOUT_PROGRESS_MAX;
use proto::id::{Rank, WorkerId};
use proto::message::{RankReport, Stage, UnitRange};
use proto::spec::{OnFailedUnit, UNIT_FAILURES_MAX};

impl Units {
    /// A unit that this worker held failed there, and is in nobody's lease now.
    pub(super) fn fail_unit(
        &mut self,
        worker: &WorkerId,
        unit: u64,
        error: String,
        outbox: &mut Outbox,
    ) {
        let error: String = error.chars().take(WORDS_MAX).collect();
        let failures = self.pool.fail(unit, &worker.name, error.clone());
        outbox.emit(Event::UnitFailed {
            job: self.head.id.clone(),
            unit,
            worker: worker.clone(),
            failures,
            error: error.clone(),
        });
        self.save(outbox);
        self.has_free_units();
        if failures < UNIT_FAILURES_MAX {
            return;
        }
        let on = self
            .pool
            .failures()
            .get(&unit)
            .map(|it| it.workers.join(", "));
        let what = format!(
            "unit {unit} failed {failures} times, on {}: {error}",
            on.unwrap_or_default()
        );
        match self.pool.plan().on_failed {
            OnFailedUnit::Stop => {
                self.head.permanent_failure = true;
                self.head.record_incident(what, outbox);
            }
            OnFailedUnit::SetAside => {
                self.pool.set_aside_failed(unit);
                self.head
                    .record_incident(format!("{what}; it is set aside"), outbox);
                outbox.emit(Event::UnitSetAside {
                    job: self.head.id.clone(),
                    unit,
                    error,
                });
            }
        }
    }

    /// A rank process ended. The unit that it was at is to blame; if it was at none, the worker is.
    pub(super) fn process_ended(
        &mut self,
        worker: &WorkerId,
        report: &RankReport,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        let Some(ending) = failure(worker, report) else {
            return;
        };
        if self.is_asked_to_leave(worker) && !ending.is_permanent() {
            // Its daemon, or we, may have ended the process in the middle of a unit, which is
            // nobody's fault.
            return self.let_rank_go(worker, report.rank, outbox);
        }
        let in_hand = self.take_in_hand(worker, report);
        let what = match in_hand {
            Some(unit) => format!("{ending}; it was at unit {unit}"),
            None => format!("{ending}; it was at no unit"),
        };
        self.head.permanent_failure |= ending.is_permanent();
        if in_hand.is_none() {
            self.leave_if_others_work(worker, &what, deadlines, outbox);
        }
        self.lose_rank(worker, report.rank, in_hand.is_some(), what, outbox);
        if let Some(unit) = in_hand {
            self.fail_unit(worker, unit, ending.to_string(), outbox);
        }
    }

    /// The unit that a rank was at when it ended, out of its lease.
    fn take_in_hand(&mut self, worker: &WorkerId, report: &RankReport) -> Option<u64> {
        let part = self
            .parts_mut()
            .iter_mut()
            .find(|part| part.worker() == worker)?;
        let rank = part.ranks.get_mut(&report.rank)?;
        let Some(Stage::Unit(unit)) = rank.live.activity.map(|activity| activity.stage) else {
            return None;
        };
        let held = rank.lease.contains(unit);
        rank.lease.remove(UnitRange::one(unit));
        held.then_some(unit)
    }

    /// The worker is up and does not report a rank.
    pub(super) fn rank_missing(
        &mut self,
        missing: &Missing,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        let ending = Ending::RankMissing {
            rank: missing.rank,
            worker: missing.worker.clone(),
        };
        self.leave_if_others_work(&missing.worker, &ending.to_string(), deadlines, outbox);
        self.lose_rank(
            &missing.worker,
            missing.rank,
            false,
            ending.to_string(),
            outbox,
        );
    }

    /// A worker on which processes end with no unit in hand is left alone for a while, where there
    /// are others.
    fn leave_if_others_work(
        &mut self,
        worker: &WorkerId,
        why: &str,
        deadlines: Deadlines,
        outbox: &Outbox,
    ) {
        let works = |other: &Part| other.leaving.is_none() && other.worker() != worker;
        if !self.parts().iter().any(works) {
            return;
        }
        let until = deadlines.standby_backoff(outbox.now);
        self.backing_off.insert(worker.clone(), until);
        let part = self
            .parts_mut()
            .iter_mut()
            .find(|part| part.worker() == worker);
        if let Some(part) = part.filter(|part| part.leaving.is_none()) {
            part.leaving = Some(Leaving {
                why: why.to_owned(),
                until: deadlines.graceful_stop(outbox.now),
            });
        }
    }

    /// A rank has no process any more. Its worker's part begins again under the next generation, in
    /// which a process is started for it; the worker's other ranks keep what they hold.
    fn lose_rank(
        &mut self,
        worker: &WorkerId,
        rank: Rank,
        in_unit: bool,
        what: String,
        outbox: &mut Outbox,
    ) {
        self.head.restarts += 1;
        if !in_unit {
            self.head.restarts_without_progress =
                (self.head.restarts_without_progress + 1).min(RESTARTS_WITHOUT_PROGRESS_MAX);
        }
        let follows = if self.head.permanent_failure {
            "; another attempt would end in the same way".to_owned()
        } else if self.head.restarts_without_progress < RESTARTS_WITHOUT_PROGRESS_MAX {
            String::new()
        } else {
            format!(
                "; that is process {RESTARTS_WITHOUT_PROGRESS_MAX} in a row that ended with no \
                unit in hand"
            )
        };
        let what = format!("{what}{follows}");
        self.head.record_incident(what.clone(), outbox);
        if !self.is_asked_to_leave(worker) {
            self.next_generation(worker, &what, outbox);
        }
        self.let_rank_go(worker, rank, outbox);
    }

    fn is_asked_to_leave(&self, worker: &WorkerId) -> bool {
        let part = self.parts().iter().find(|part| part.worker() == worker);
        part.is_some_and(|part| part.leaving.is_some())
    }

    /// What the rank held is free for others.
    fn let_rank_go(&mut self, worker: &WorkerId, rank: Rank, outbox: &mut Outbox) {
        let part = self
            .parts_mut()
            .iter_mut()
            .find(|part| part.worker() == worker);
        let Some(lost) = part.and_then(|part| part.ranks.get_mut(&rank)) else {
            return;
        };
        let (lease, done) = (
            std::mem::take(&mut lost.lease),
            std::mem::take(&mut lost.done),
        );
        outbox.tell.insert(worker.name.clone());
        self.release(lease, done);
        self.save(outbox);
    }

    /// A worker's part begins again: nothing is heard of it yet. Its ranks keep what they hold.
    pub(super) fn next_generation(&mut self, worker: &WorkerId, reason: &str, outbox: &mut Outbox) {
        let (job, generation) = (self.head.id.clone(), self.head.generation.next());
        let part = self
            .parts_mut()
            .iter_mut()
            .find(|part| part.worker() == worker);
        let Some(part) = part else { return };
        outbox.emit(Event::GenerationEnded {
            job: job.clone(),
            generation: part.generation,
            reason: reason.to_owned(),
        });
        outbox.emit(Event::GenerationFormed {
            job,
            generation,
            world: part.member.ranks,
        });
        part.generation = generation;
        for rank in part.ranks.values_mut() {
            rank.live = RankLive::new(outbox.now);
            rank.told_failed.clear();
        }
        self.head.generation = generation;
        outbox.tell.insert(worker.name.clone());
        self.save(outbox);
    }
}

/// A rank that its worker does not report.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) worker: WorkerId,
    pub(super) rank: Rank,
}

/// Longest error of a unit that is kept, in characters.
const WORDS_MAX: usize = 600;
