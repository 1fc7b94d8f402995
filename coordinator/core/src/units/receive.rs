//! How a job of units handles reports of its ranks, the loss of a worker, and the passing of time.

use super::job::{State, Units};
use super::participant::RankUnits;
use super::pool::Pool;
use crate::deadline::Deadlines;
use crate::outbox::Outbox;
use proto::id::{Step, WorkerId};
use proto::message::{RankPhase, RankReport, Stage, UnitFailure, UnitRange};
use proto::reason::{Ending, Fault, GenerationEnd, UnitError, Violation, Waiting};

/// What is new in a rank's report.
#[derive(Debug, Default)]
struct ReportOutcome {
    /// Units of its lease whose failure is reported for the first time.
    failed: Vec<UnitFailure>,
    /// It completed units.
    completed_any: bool,
    /// Its process ended.
    ended: bool,
}

impl Units {
    /// Applies a rank's report. Returns a violation if part of it cannot be true.
    pub(crate) fn receive(
        &mut self,
        worker: &WorkerId,
        report: &RankReport,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) -> Option<Violation> {
        let newest = self.head.generation;
        let (job, reported) = (report.job.clone(), report.generation);
        if newest < reported {
            return Some(Violation::FutureGeneration {
                job,
                reported,
                newest,
            });
        }
        let State::Running(running) = &mut self.state else {
            return None;
        };
        let Some(participant) = running
            .participants
            .iter_mut()
            .find(|participant| participant.worker() == worker)
        else {
            let generation = reported;
            return Some(Violation::NotMember { job, generation });
        };
        let (newest, leaves) = (participant.generation, participant.leaving.is_some());
        if reported != newest {
            // A failure of an older generation was handled when that generation ended.
            let failed = matches!(report.phase, RankPhase::Failed { .. });
            return (!failed).then_some(Violation::OldGeneration {
                job,
                reported,
                newest,
            });
        }
        let Some(rank) = participant.ranks.get_mut(&report.rank) else {
            return Some(Violation::RankOutside {
                rank: report.rank,
                first: participant.member.first_rank,
                ranks: participant.member.ranks,
            });
        };
        let (outcome, violation) = apply(rank, &mut self.pool, report, outbox.now);
        self.has_unsaved |= outcome.completed_any;
        self.is_changed |= outcome.completed_any;
        if outcome.completed_any && self.head.restarts_without_progress != 0 {
            self.head.restarts_without_progress = 0;
            self.save(outbox);
        }
        for UnitFailure { unit, error } in outcome.failed {
            self.fail_unit(worker, unit, UnitError::text(&error), outbox);
        }
        if report.phase == RankPhase::Finished && !leaves {
            // A previous coordinator asked it to leave. The next generation revokes that.
            self.next_generation(worker, GenerationEnd::CoordinatorReplaced, outbox);
        }
        if outcome.ended {
            self.process_ended(worker, report, deadlines, outbox);
        }
        self.lease(worker, report.rank, deadlines, outbox);
        violation
    }

    /// A worker is lost with all its processes.
    pub(crate) fn lose_worker(&mut self, worker: &WorkerId, ending: &Ending, outbox: &mut Outbox) {
        if self.is_member(worker) {
            self.head.restarts += 1;
            let fault = Fault::Worker {
                ending: ending.clone(),
            };
            self.head.record_incident(fault.clone(), outbox);
            self.drop_participant(worker, Waiting::Fault { fault }, outbox);
        }
    }

    /// Advances as far as possible without further input. Returns true if the job ended now.
    pub(crate) fn advance(&mut self, deadlines: Deadlines, outbox: &mut Outbox) -> bool {
        self.backing_off.retain(|_, until| outbox.now < *until);
        for missing in self.overdue(deadlines, outbox.now) {
            self.rank_missing(&missing, deadlines, outbox);
        }
        if !self.is_over() && self.remaining() <= 1 {
            // The closing unit and the end of the job depend on the record.
            self.record_done_units(outbox);
            if self.pool.open_closing() {
                self.mark_units_freed();
            }
        }
        self.lease_all(deadlines, outbox);
        self.reconcile(outbox)
    }
}

/// Applies a rank's report of itself and of its leased units.
fn apply(
    rank: &mut RankUnits,
    pool: &mut Pool,
    report: &RankReport,
    now: u64,
) -> (ReportOutcome, Option<Violation>) {
    let units = pool.plan().count;
    let new_phase = rank.live.apply(&report.phase, now);
    let mut violation = None;
    rank.live.activity = report.activity.filter(|activity| match activity.stage {
        Stage::Unit(unit) if activity.step == Step(0) && unit < units => true,
        Stage::Unit(unit) => {
            violation = Some(Violation::UnitOutside { unit, units });
            false
        }
        _ => false,
    });
    if !std::mem::replace(&mut rank.has_reported, true) {
        adopt(rank, pool, report);
    }
    let mut outcome = ReportOutcome {
        ended: new_phase
            && matches!(
                report.phase,
                RankPhase::Failed { .. } | RankPhase::Broken { .. }
            ),
        ..ReportOutcome::default()
    };
    for range in &report.units.done {
        for done in rank.lease.within(*range) {
            rank.lease.remove(done);
            rank.done.insert(done);
            outcome.completed_any = true;
        }
    }
    for failure in &report.units.failed {
        if rank.lease.contains(failure.unit) && rank.reported_failed.insert(failure.unit) {
            rank.lease.remove(UnitRange::one(failure.unit));
            outcome.failed.push(failure.clone());
        }
    }
    (outcome, violation)
}

/// Restores the lease of a rank from its first report after a restart of the coordinator: it holds
/// the units that it names, unless another rank holds them by now. A failed unit was counted before
/// the restart if the record has failures of it.
fn adopt(rank: &mut RankUnits, pool: &mut Pool, report: &RankReport) {
    let activity = rank
        .live
        .activity
        .and_then(|activity| match activity.stage {
            Stage::Unit(unit) => Some(UnitRange::one(unit)),
            _ => None,
        });
    let failed = report.units.failed.iter().map(|it| it.unit);
    let failed = failed.filter(|unit| *unit < pool.plan().count);
    let (counted, new): (Vec<u64>, Vec<u64>) =
        failed.partition(|unit| pool.failures().contains_key(unit));
    let named = report.units.done.iter().copied().chain(activity);
    for range in named.chain(new.into_iter().map(UnitRange::one)) {
        for held in pool.claim(range) {
            rank.lease.insert(held);
        }
    }
    rank.reported_failed.extend(counted);
}
