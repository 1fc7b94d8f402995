//! Failures of units, of the processes that run them, and of workers.

use super::job::Units;
use super::participant::{Leaving, Participant};
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::explain::failure;
use crate::outbox::Outbox;
use crate::rank::RankLive;
use crate::record::RESTARTS_WITHOUT_PROGRESS_MAX;
use proto::id::{Rank, WorkerId};
use proto::message::{RankReport, Stage, UnitRange};
use proto::reason::{Consequence, Ending, Fault, GenerationEnd, StopCause, UnitError, Waiting};
use proto::spec::{OnFailedUnit, UNIT_FAILURES_MAX};

impl Units {
    /// A unit failed on this worker. It is no longer in any lease.
    pub(super) fn fail_unit(
        &mut self,
        worker: &WorkerId,
        unit: u64,
        error: UnitError,
        outbox: &mut Outbox,
    ) {
        let failures = self.pool.fail(unit, &worker.name, error.clone());
        outbox.emit(Event::UnitFailed {
            job: self.head.id.clone(),
            unit,
            worker: worker.clone(),
            failures,
            error: error.clone(),
        });
        self.save(outbox);
        self.mark_units_freed();
        if failures < UNIT_FAILURES_MAX {
            return;
        }
        let on_failed = self.pool.plan().on_failed;
        let workers = self.pool.failures().get(&unit).map(|it| &it.workers);
        let fault = Fault::Unit {
            unit,
            failures,
            workers: workers.cloned().unwrap_or_default(),
            error: error.clone(),
            set_aside: on_failed == OnFailedUnit::SetAside,
        };
        self.head.record_incident(fault, outbox);
        match on_failed {
            OnFailedUnit::Stop => {
                self.head.permanent_failure = true;
            }
            OnFailedUnit::SetAside => {
                self.pool.set_aside_failed(unit);
                outbox.emit(Event::UnitSetAside {
                    job: self.head.id.clone(),
                    unit,
                    error: error.clone(),
                });
                self.pause_if_too_many_failed(unit, error);
            }
        }
    }

    /// Pauses the job if more units than its plan allows are set aside. What is done stays done.
    fn pause_if_too_many_failed(&mut self, unit: u64, error: UnitError) {
        let (plan, failed) = (self.pool.plan(), self.pool.set_aside().count());
        let Some(allowed) = plan.pause_above.filter(|allowed| *allowed < failed) else {
            return;
        };
        if !self.head.paused {
            self.head.paused = true;
            self.head.paused_because = Some(Waiting::UnitsFailed {
                failed,
                allowed,
                units: plan.count,
                unit,
                error,
            });
        }
    }

    /// A user resumes the job: a plan that pauses when units fail tries them again.
    pub(crate) fn retry_failed(&mut self) {
        if self.pool.plan().pause_above.is_some() {
            self.pool.retry_set_aside();
            self.mark_units_freed();
            self.is_changed = true;
        }
    }

    /// A rank process ended. Its current unit is blamed; without one, the worker is.
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
            // The daemon or the coordinator may have ended the process in the middle of a unit,
            // which is no fault.
            return self.release_rank(worker, report.rank, outbox);
        }
        let current_unit = self.take_current_unit(worker, report);
        self.head.permanent_failure |= ending.is_permanent();
        if current_unit.is_none() {
            self.back_off_worker(worker, &ending, deadlines, outbox);
        }
        self.lose_rank(worker, report.rank, current_unit, &ending, outbox);
        if let Some(unit) = current_unit {
            self.fail_unit(worker, unit, UnitError::Ended(ending), outbox);
        }
    }

    /// Removes the current unit of an ended rank from its lease, and returns it.
    fn take_current_unit(&mut self, worker: &WorkerId, report: &RankReport) -> Option<u64> {
        let participant = self
            .participants_mut()
            .iter_mut()
            .find(|participant| participant.worker() == worker)?;
        let rank = participant.ranks.get_mut(&report.rank)?;
        let Some(Stage::Unit(unit)) = rank.live.activity.map(|activity| activity.stage) else {
            return None;
        };
        let held = rank.lease.contains(unit);
        rank.lease.remove(UnitRange::one(unit));
        held.then_some(unit)
    }

    /// The worker is up but does not report a rank.
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
        self.back_off_worker(&missing.worker, &ending, deadlines, outbox);
        self.lose_rank(&missing.worker, missing.rank, None, &ending, outbox);
    }

    /// Puts a worker into back-off if its processes end without a current unit and other workers
    /// are available.
    fn back_off_worker(
        &mut self,
        worker: &WorkerId,
        ending: &Ending,
        deadlines: Deadlines,
        outbox: &Outbox,
    ) {
        let works = |other: &Participant| other.leaving.is_none() && other.worker() != worker;
        if !self.participants().iter().any(works) {
            return;
        }
        let until = deadlines.standby_backoff(outbox.now);
        self.backing_off.insert(worker.clone(), until);
        let participant = self
            .participants_mut()
            .iter_mut()
            .find(|participant| participant.worker() == worker);
        if let Some(participant) = participant.filter(|participant| participant.leaving.is_none()) {
            participant.leaving = Some(Leaving {
                why: StopCause::BacksOff {
                    worker: worker.name.clone(),
                    ending: Box::new(ending.clone()),
                },
                until: deadlines.graceful_stop(outbox.now),
            });
        }
    }

    /// A rank lost its process. Its worker gets the next generation, in which a new process is
    /// started for the rank; the worker's other ranks keep their leases.
    fn lose_rank(
        &mut self,
        worker: &WorkerId,
        rank: Rank,
        unit: Option<u64>,
        ending: &Ending,
        outbox: &mut Outbox,
    ) {
        self.head.restarts += 1;
        if unit.is_none() {
            self.head.restarts_without_progress =
                (self.head.restarts_without_progress + 1).min(RESTARTS_WITHOUT_PROGRESS_MAX);
        }
        let consequence = if self.head.permanent_failure {
            Consequence::Permanent
        } else if self.head.restarts_without_progress < RESTARTS_WITHOUT_PROGRESS_MAX {
            Consequence::Continues
        } else {
            Consequence::NoProgress {
                generations: RESTARTS_WITHOUT_PROGRESS_MAX,
            }
        };
        let fault = Fault::Process {
            ending: ending.clone(),
            unit,
            consequence,
        };
        self.head.record_incident(fault.clone(), outbox);
        if !self.is_asked_to_leave(worker) {
            self.next_generation(worker, GenerationEnd::Fault(fault), outbox);
        }
        self.release_rank(worker, rank, outbox);
    }

    fn is_asked_to_leave(&self, worker: &WorkerId) -> bool {
        let participant = self
            .participants()
            .iter()
            .find(|participant| participant.worker() == worker);
        participant.is_some_and(|participant| participant.leaving.is_some())
    }

    /// Releases the units of a rank.
    fn release_rank(&mut self, worker: &WorkerId, rank: Rank, outbox: &mut Outbox) {
        let participant = self
            .participants_mut()
            .iter_mut()
            .find(|participant| participant.worker() == worker);
        let Some(lost) = participant.and_then(|participant| participant.ranks.get_mut(&rank))
        else {
            return;
        };
        let (lease, done) = (
            std::mem::take(&mut lost.lease),
            std::mem::take(&mut lost.done),
        );
        outbox.send.insert(worker.name.clone());
        self.release(lease, done);
        self.save(outbox);
    }

    /// Starts the next generation of a worker, without reports yet. Its ranks keep their leases.
    pub(super) fn next_generation(
        &mut self,
        worker: &WorkerId,
        reason: GenerationEnd,
        outbox: &mut Outbox,
    ) {
        let (job, generation) = (self.head.id.clone(), self.head.generation.next());
        let participant = self
            .participants_mut()
            .iter_mut()
            .find(|participant| participant.worker() == worker);
        let Some(participant) = participant else {
            return;
        };
        outbox.emit(Event::GenerationEnded {
            job: job.clone(),
            generation: participant.generation,
            reason,
        });
        outbox.emit(Event::GenerationFormed {
            job,
            generation,
            world: participant.member.ranks,
        });
        participant.generation = generation;
        for rank in participant.ranks.values_mut() {
            rank.live = RankLive::new(outbox.now);
            rank.reported_failed.clear();
        }
        self.head.generation = generation;
        outbox.send.insert(worker.name.clone());
        self.save(outbox);
    }
}

/// A rank that its worker does not report.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) worker: WorkerId,
    pub(super) rank: Rank,
}
