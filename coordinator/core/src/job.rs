//! A job of either kind: the interface for the rest of the machine.

use crate::config::Config;
use crate::deadline::Deadlines;
use crate::fleet::Fleet;
use crate::gang::{Gang, Plan};
use crate::head::{Ended, Head};
use crate::outbox::Outbox;
use crate::partitions::Partitions;
use crate::placement::{Decision, Demand};
use crate::record::{JobRecord, Member, Millis, Record};
use crate::units::Units;
use crate::view_model::{JobView, Why};
use proto::id::{Step, WorkerId};
use proto::ledger::Line;
use proto::message::Assignment;
use proto::phase::Phase;
use proto::reason::{Ending, Waiting};
use proto::spec::{JobSpec, Work};

#[derive(Debug)]
pub(crate) enum Job {
    Gang(Box<Gang>),
    Units(Box<Units>),
}

/// Makes the same call on either kind.
macro_rules! either {
    ($job:expr, $it:ident => $call:expr) => {
        match $job {
            Job::Gang($it) => $call,
            Job::Units($it) => $call,
        }
    };
}

impl Job {
    /// Creates a job from its record, at submission or after a restart of the coordinator. `spec`
    /// is parsed from its text.
    pub(crate) fn new(record: JobRecord, spec: JobSpec, deadlines: Deadlines, now: Millis) -> Self {
        let gang = match &spec.work {
            Work::Train(work) => Some(Plan::of(work)),
            Work::Sample(_) | Work::Evaluate(_) | Work::Build(_) => None,
        };
        match (gang, spec.work.units()) {
            (None, Some(plan)) => Self::Units(Box::new(Units::new(record, spec, plan, now))),
            (Some(plan), _) => Self::Gang(Box::new(Gang::new(record, spec, plan, deadlines, now))),
            (None, None) => unreachable!("work is done by a gang or as units"),
        }
    }

    pub(crate) fn gang(&self) -> Option<&Gang> {
        match self {
            Self::Gang(gang) => Some(gang),
            Self::Units(_) => None,
        }
    }

    pub(crate) fn gang_mut(&mut self) -> Option<&mut Gang> {
        match self {
            Self::Gang(gang) => Some(gang),
            Self::Units(_) => None,
        }
    }

    pub(crate) fn head(&self) -> &Head {
        either!(self, job => &job.head)
    }

    pub(crate) fn head_mut(&mut self) -> &mut Head {
        either!(self, job => &mut job.head)
    }

    pub(crate) fn record(&self) -> JobRecord {
        either!(self, job => job.record())
    }

    /// How it ended; None if it has not.
    pub(crate) fn ended(&self) -> Option<&Ended> {
        either!(self, job => job.ended())
    }

    /// When it ended, by the wall clock; None if it has not.
    pub(crate) fn ended_ms(&self) -> Option<Millis> {
        self.ended().map(Ended::at_ms)
    }

    /// An evaluation of one of its checkpoints is still to begin or to be scored.
    pub(crate) fn is_evaluated(&self) -> bool {
        self.gang().is_some_and(|gang| gang.evaluations.is_open())
    }

    /// The result of a manifest write is still to come.
    pub(crate) fn is_writing(&self) -> bool {
        self.gang().is_some_and(Gang::is_writing)
    }

    /// Appends to its ledger. Units have none.
    pub(crate) fn ledger_write(&mut self, line: Line) {
        if let Self::Gang(gang) = self {
            gang.ledger_write(line);
        }
    }

    pub(crate) fn is_queued(&self) -> bool {
        either!(self, job => job.is_queued())
    }

    pub(crate) fn is_over(&self) -> bool {
        either!(self, job => job.is_over())
    }

    pub(crate) fn shown(&self) -> Phase {
        either!(self, job => job.shown())
    }

    /// The members of its running generation, or the workers of a job of units.
    pub(crate) fn members(&self) -> Box<dyn Iterator<Item = &Member> + '_> {
        match self {
            Self::Gang(gang) => Box::new(gang.members().iter()),
            Self::Units(units) => Box::new(units.members()),
        }
    }

    /// Its members and standbys.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Member> {
        let standbys = self.gang().map_or(&[][..], Gang::standby_members);
        self.members().chain(standbys)
    }

    pub(crate) fn save(&self, outbox: &mut Outbox) {
        either!(self, job => job.save(outbox));
    }

    pub(crate) fn wait(&mut self, reason: Waiting, outbox: &mut Outbox) {
        either!(self, job => job.wait(reason, outbox));
    }

    /// It is queued because of this decision already.
    pub(crate) fn has_decision(&self, decision: &Decision) -> bool {
        let (Decision::Wait(shortage), Some(reason)) = (decision, self.reason()) else {
            return false;
        };
        let holders = self.gang().map_or_else(Vec::new, Gang::state_holders);
        matches!(
            reason,
            Waiting::Shortage { shortage: known, state_holders }
                if known == shortage && *state_holders == holders
        )
    }

    /// Why it is queued, if it is.
    fn reason(&self) -> Option<&Waiting> {
        either!(self, job => job.reason())
    }

    pub(crate) fn emit_queued(&self, outbox: &mut Outbox) {
        either!(self, job => job.emit_queued(outbox));
    }

    pub(crate) fn cancel(&mut self, outbox: &mut Outbox) {
        either!(self, job => job.cancel(outbox));
    }

    pub(crate) fn demand(&self, partitions: &Partitions, now: Millis) -> Option<Demand> {
        match self {
            Self::Gang(gang) => gang.demand(partitions, now),
            Self::Units(units) => units.demand(),
        }
    }

    pub(crate) fn assignment(&self, worker: &WorkerId, config: &Config) -> Option<Assignment> {
        either!(self, job => job.assignment(worker, config))
    }

    pub(crate) fn next_deadline(&self, deadlines: Deadlines, now: Millis) -> Option<Millis> {
        match self {
            Self::Gang(gang) => gang.next_deadline(deadlines, now),
            Self::Units(units) => units.next_deadline(deadlines),
        }
    }

    pub(crate) fn lose_worker(
        &mut self,
        worker: &WorkerId,
        ending: &Ending,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        match self {
            Self::Gang(gang) => gang.lose_worker(worker, ending, deadlines, outbox),
            Self::Units(units) => units.lose_worker(worker, ending, outbox),
        }
    }

    /// Advances as far as possible without further input. Returns true if the job ended now.
    pub(crate) fn advance(
        &mut self,
        partitions: &Partitions,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) -> bool {
        match self {
            Self::Gang(gang) => gang.advance(partitions, deadlines, outbox),
            Self::Units(units) => units.advance(deadlines, outbox),
        }
    }

    /// Releases workers that were asked to stop and are ready to. Returns true if any was released.
    pub(crate) fn release_workers(&mut self, outbox: &mut Outbox) -> bool {
        either!(self, job => job.release_workers(outbox))
    }

    /// Counts the device-time until `wall`, and what its devices do from now on.
    pub(crate) fn settle_account(&mut self, wall: Millis) {
        match self {
            Self::Gang(gang) => {
                let (holdings, reached) = (gang.holdings(), gang.reached());
                let waits = gang.is_queued();
                gang.head.book.settle(wall, holdings, reached, waits);
            }
            Self::Units(units) => {
                let (holdings, waits) = (units.holdings(), units.is_queued());
                units.head.book.settle(wall, holdings, Step(0), waits);
            }
        }
    }

    /// True if something waits for the next batched save.
    pub(crate) fn has_batch(&self) -> bool {
        match self {
            Self::Gang(gang) => gang.has_ledger_pending(),
            Self::Units(units) => units.has_unsaved(),
        }
    }

    /// Saves what waited for the batch, with its record. Returns its ledger entries.
    pub(crate) fn save_batch(&mut self, outbox: &mut Outbox) -> Option<Record> {
        match self {
            Self::Gang(gang) => {
                let entries = gang.take_ledger();
                if entries.is_some() {
                    gang.save(outbox);
                    gang.send_to_members(outbox);
                }
                entries
            }
            Self::Units(units) => {
                units.record_done_units(outbox);
                None
            }
        }
    }

    pub(crate) fn view(&self, now: Millis) -> JobView<'_> {
        self.view_of(self.record(), now)
    }

    /// Without its text and the job that it reads.
    pub(crate) fn brief_view(&self, now: Millis) -> JobView<'_> {
        let record = either!(self, job => job.brief_record());
        self.view_of(record, now)
    }

    fn view_of(&self, record: JobRecord, now: Millis) -> JobView<'_> {
        match self {
            Self::Gang(gang) => gang.view(record),
            Self::Units(units) => units.view(record, now),
        }
    }

    pub(crate) fn why(
        &self,
        decision: Option<&Decision>,
        partitions: &Partitions,
        now: Millis,
    ) -> Why {
        match self {
            Self::Gang(gang) => gang.why(decision, partitions, now),
            Self::Units(units) => units.why(decision, now),
        }
    }

    /// Panics if an invariant is broken.
    pub(crate) fn check(&mut self, fleet: &Fleet) {
        match self {
            Self::Gang(gang) => gang.check(fleet),
            Self::Units(units) => units.check(fleet),
        }
    }
}
