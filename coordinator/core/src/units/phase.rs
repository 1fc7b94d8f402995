//! Phase changes of a job of units, other than workers joining and leaving.

use super::job::{State, Units};
use crate::event::Event;
use crate::head::Ended;
use crate::outbox::Outbox;
use crate::record::RESTARTS_WITHOUT_PROGRESS_MAX;
use proto::id::Step;
use proto::reason::{Cause, Waiting};

impl Units {
    /// Why it is queued, if it is.
    pub(crate) fn reason(&self) -> Option<&Waiting> {
        match &self.state {
            State::Queued { reason } => Some(reason),
            State::Running(_) | State::Ended(_) => None,
        }
    }

    pub(crate) fn wait(&mut self, reason: Waiting, outbox: &mut Outbox) {
        let State::Queued { reason: known } = &mut self.state else {
            return;
        };
        if *known != reason {
            *known = reason;
            self.save(outbox);
            self.emit_queued(outbox);
        }
    }

    pub(crate) fn emit_queued(&self, outbox: &mut Outbox) {
        if let State::Queued { reason } = &self.state {
            outbox.emit(Event::JobQueued {
                job: self.head.id.clone(),
                reason: reason.clone(),
            });
        }
    }

    /// Ends the job if it is complete or has failed permanently. Returns true if it ended now.
    pub(super) fn reconcile(&mut self, outbox: &mut Outbox) -> bool {
        if self.is_over() {
            return false;
        }
        let (done, aside) = (self.pool.done().count(), self.pool.set_aside().count());
        if self.pool.is_over() && done == 0 {
            self.fail(Cause::AllUnitsSetAside { units: aside }, outbox);
        } else if self.pool.is_over() {
            let ended_ms = outbox.wall;
            self.end(Ended::Done { ended_ms }, outbox);
            outbox.emit(Event::JobDone {
                job: self.head.id.clone(),
                step: Step(0),
            });
        } else if self.head.must_fail() {
            let last = self.head.incidents.last();
            let cause = match last.map(|incident| incident.what.clone()) {
                Some(fault) => Cause::Fault {
                    fault,
                    checkpoint: None,
                },
                None => Cause::NoProgress {
                    generations: RESTARTS_WITHOUT_PROGRESS_MAX,
                },
            };
            self.fail(cause, outbox);
        } else {
            return false;
        }
        true
    }

    /// Fails the job permanently.
    pub(crate) fn fail(&mut self, cause: Cause, outbox: &mut Outbox) {
        let ended = Ended::Failed {
            cause: cause.clone(),
            ended_ms: outbox.wall,
        };
        self.end(ended, outbox);
        outbox.emit(Event::JobFailed {
            job: self.head.id.clone(),
            cause,
        });
    }

    pub(crate) fn cancel(&mut self, outbox: &mut Outbox) {
        let ended_ms = outbox.wall;
        self.end(Ended::Cancelled { ended_ms }, outbox);
        outbox.emit(Event::JobCancelled {
            job: self.head.id.clone(),
        });
    }

    fn end(&mut self, ended: Ended, outbox: &mut Outbox) {
        self.send_to_all(outbox);
        let participants = match std::mem::replace(&mut self.state, State::Ended(ended)) {
            State::Running(running) => running.participants,
            State::Queued { .. } | State::Ended(_) => Vec::new(),
        };
        for rank in participants
            .into_iter()
            .flat_map(|participant| participant.ranks.into_values())
        {
            self.release(rank.lease, rank.done);
        }
        self.backing_off.clear();
        self.record_done_units(outbox);
        self.save(outbox);
    }
}
