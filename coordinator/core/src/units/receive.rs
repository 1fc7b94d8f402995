//! A job of units takes a report of one of its ranks, the loss of a worker, or the passing of time.

use super::job::{State, Units};
use super::part::RankUnits;
use super::pool::Pool;
use crate::deadline::Deadlines;
use crate::explain::Ending;
use crate::outbox::Outbox;
use crate::violation::Violation;
use proto::id::{Step, WorkerId};
use proto::message::{RankPhase, RankReport, Stage, UnitFailure, UnitRange};

/// What a report of a rank brings beside what it did.
#[derive(Debug, Default)]
struct News {
    /// Units of its lease that failed, heard for the first time.
    failed: Vec<UnitFailure>,
    did_some: bool,
    /// Its process has ended now.
    ended: bool,
}

impl Units {
    /// Takes a rank's report; what of it cannot be true.
    pub(crate) fn receive(
        &mut self,
        worker: &WorkerId,
        report: &RankReport,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) -> Option<Violation> {
        let newest = self.head.generation;
        let (job, said) = (report.job.clone(), report.generation);
        if newest < said {
            return Some(Violation::FutureGeneration { job, said, newest });
        }
        let State::Running(running) = &mut self.state else {
            return None;
        };
        let Some(part) = running
            .parts
            .iter_mut()
            .find(|part| part.worker() == worker)
        else {
            let generation = said;
            return Some(Violation::NotMember { job, generation });
        };
        let (newest, leaves) = (part.generation, part.leaving.is_some());
        if said != newest {
            // What ended with an older one was dealt with when it ended.
            let failed = matches!(report.phase, RankPhase::Failed { .. });
            return (!failed).then_some(Violation::OldGeneration { job, said, newest });
        }
        let Some(rank) = part.ranks.get_mut(&report.rank) else {
            return Some(Violation::RankOutside {
                rank: report.rank,
                first: part.member.first_rank,
                ranks: part.member.ranks,
            });
        };
        let (news, violation) = take(rank, &mut self.pool, report, outbox.now);
        self.has_unsaved |= news.did_some;
        self.is_changed |= news.did_some;
        if news.did_some && self.head.restarts_without_progress != 0 {
            self.head.restarts_without_progress = 0;
            self.save(outbox);
        }
        for UnitFailure { unit, error } in news.failed {
            self.fail_unit(worker, unit, error, outbox);
        }
        if report.phase == RankPhase::Finished && !leaves {
            // A coordinator that is gone asked it to. It takes that back with the generation.
            self.next_generation(
                worker,
                "the coordinator that asked it to leave is gone",
                outbox,
            );
        }
        if news.ended {
            self.process_ended(worker, report, deadlines, outbox);
        }
        self.lease(worker, report.rank, deadlines, outbox);
        violation
    }

    /// This worker is gone, with all that it had.
    pub(crate) fn lose_worker(&mut self, worker: &WorkerId, ending: &Ending, outbox: &mut Outbox) {
        if self.is_member(worker) {
            self.head.restarts += 1;
            let what = format!("{ending}; its units are leased again");
            self.head.record_incident(what.clone(), outbox);
            self.drop_part(worker, what, outbox);
        }
    }

    /// Moves on as far as it goes by itself. True when it is over now and was not before.
    pub(crate) fn tend(&mut self, deadlines: Deadlines, outbox: &mut Outbox) -> bool {
        self.backing_off.retain(|_, until| outbox.now < *until);
        for missing in self.overdue(deadlines, outbox.now) {
            self.rank_missing(&missing, deadlines, outbox);
        }
        if !self.is_over() && self.remaining() <= 1 {
            // The closing unit, or the end, waits for the record.
            self.put_into_record(outbox);
            if self.pool.open_closing() {
                self.has_free_units();
            }
        }
        self.lease_all(deadlines, outbox);
        self.reconcile(outbox)
    }
}

/// Takes what a rank says of itself and of units that it holds.
fn take(
    rank: &mut RankUnits,
    pool: &mut Pool,
    report: &RankReport,
    now: u64,
) -> (News, Option<Violation>) {
    let units = pool.plan().count;
    let new_phase = rank.live.take(&report.phase, now);
    let mut violation = None;
    rank.live.activity = report.activity.filter(|activity| match activity.stage {
        Stage::Unit(unit) if activity.step == Step(0) && unit < units => true,
        Stage::Unit(unit) => {
            violation = Some(Violation::UnitOutside { unit, units });
            false
        }
        _ => false,
    });
    if !std::mem::replace(&mut rank.is_known, true) {
        adopt(rank, pool, report);
    }
    let mut news = News {
        ended: new_phase
            && matches!(
                report.phase,
                RankPhase::Failed { .. } | RankPhase::Broken { .. }
            ),
        ..News::default()
    };
    for range in &report.units.done {
        for done in rank.lease.within(*range) {
            rank.lease.remove(done);
            rank.done.insert(done);
            news.did_some = true;
        }
    }
    for failure in &report.units.failed {
        if rank.lease.contains(failure.unit) && rank.told_failed.insert(failure.unit) {
            rank.lease.remove(UnitRange::one(failure.unit));
            news.failed.push(failure.clone());
        }
    }
    (news, violation)
}

/// A rank that the coordinator did not hear since its restart holds what it names, unless somebody
/// else does by now. A unit that it says has failed was counted before if the record knows of
/// failures of it.
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
    rank.told_failed.extend(counted);
}
