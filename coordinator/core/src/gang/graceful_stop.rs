//! The graceful stop of a generation: its ranks finish their step together and wait. If some of
//! their processes continue in the next generation, they keep their state and send it to the others
//! ([`GracefulStop::WithoutCheckpoint`]). If none does, they write a checkpoint first
//! ([`GracefulStop::WithCheckpoint`]). Pauses, drains, changes of scale and priorities all end a
//! generation this way. This module decides when the stop is complete; placement decides when to
//! request it.

use super::job::Gang;
use super::running::Running;
use super::stopping::Stopping;
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::explain::rank_on;
use crate::outbox::Outbox;
use crate::rank::RankLive;
use crate::record::Millis;
use proto::id::WorkerId;
use proto::message::{GracefulStop, RankPhase};
use proto::reason::{Fault, Overdue, StopCause, Stopped, Waiting};

impl Gang {
    /// Requests a graceful stop of the running generation. It cannot be revoked, but a checkpoint
    /// can be requested later.
    pub(crate) fn graceful_stop(
        &mut self,
        why: StopCause,
        how: GracefulStop,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        let Some(running) = self.running() else {
            return;
        };
        if Some(how)
            <= running
                .graceful_stop
                .as_ref()
                .map(|graceful_stop| graceful_stop.how)
        {
            return;
        }
        outbox.emit(Event::Stopping {
            job: self.head.id.clone(),
            generation: self.head.generation,
            reason: why.clone(),
        });
        let (asked, until) = (outbox.now, deadlines.graceful_stop(outbox.now));
        if let Some(running) = self.running_mut() {
            running.graceful_stop = Some(Stopping {
                why,
                how,
                asked,
                until,
            });
        }
        self.send_to_members(outbox);
    }

    pub(super) fn stopping(&self) -> Option<&Stopping> {
        self.running()?.graceful_stop.as_ref()
    }

    /// Why it is stopping, if it is.
    pub(crate) fn stop_reason(&self) -> Option<StopCause> {
        self.stopping()
            .map(|graceful_stop| graceful_stop.why.clone())
    }

    /// The deadline of the graceful stop.
    pub(super) fn stop_deadline(&self) -> Option<Millis> {
        self.stopping().map(|graceful_stop| graceful_stop.until)
    }

    /// Ends a stopping generation that releases all its workers, once nothing is left to wait for,
    /// or one that missed its deadline; the latter keeps its processes. This is not a fault: it
    /// counts neither as a restart nor as a restart without progress. Returns true if it ended now.
    pub(crate) fn release_workers(&mut self, outbox: &mut Outbox) -> bool {
        let Some(graceful_stop) = self.stopping() else {
            return false;
        };
        let (with_checkpoint, timed_out) = (
            graceful_stop.how == GracefulStop::WithCheckpoint,
            graceful_stop.until <= outbox.now,
        );
        if !(timed_out || with_checkpoint && (self.has_no_state() || self.is_checkpointed())) {
            return false;
        }
        let retained = if timed_out && !self.head.paused {
            self.members().to_vec()
        } else {
            Vec::new()
        };
        let stopped = Stopped::Released {
            cause: graceful_stop.why.clone(),
            overdue: timed_out.then(|| self.overdue_stop(graceful_stop)),
            resumes_from: self.committed(),
        };
        if timed_out {
            // The reason of the queued job is replaced later; the incident keeps the timeout.
            let fault = Fault::StopOverdue {
                stopped: stopped.clone(),
            };
            self.head.record_incident(fault, outbox);
        }
        self.send_to_members(outbox);
        self.emit_stopped(stopped.clone(), outbox);
        self.queue(Waiting::Stopped { stopped }, outbox.now, retained, outbox);
        true
    }

    /// What the graceful stop was still waiting for at its deadline.
    fn overdue_stop(&self, graceful_stop: &Stopping) -> Overdue {
        let last_of = |running: &Running| {
            let last = running.last_rank(|rank| rank.phase != Some(RankPhase::Finished))?;
            Some(rank_on(last.rank, &running.members))
        };
        let after_ms = graceful_stop.until.saturating_sub(graceful_stop.asked);
        Overdue::new(
            self.running().and_then(last_of),
            graceful_stop.how,
            after_ms,
        )
    }

    /// Forms the next generation immediately; some of the processes continue in it.
    pub(crate) fn regroup(&mut self, workers: Vec<WorkerId>, why: Stopped, outbox: &mut Outbox) {
        self.send_to_members(outbox);
        self.emit_stopped(why, outbox);
        // The ranks need not report the known steps again: the next generation begins after them.
        let reached = if self.is_between_steps() {
            self.newest.acknowledged
        } else {
            self.committed()
        };
        self.form(workers, outbox);
        self.newest.acknowledged = self.newest.acknowledged.max(reached);
    }

    fn emit_stopped(&mut self, reason: Stopped, outbox: &mut Outbox) {
        if self.reached < self.newest.acknowledged {
            self.reached = self.newest.acknowledged;
            self.head.restarts_without_progress = 0;
        }
        outbox.emit(Event::Stopped {
            job: self.head.id.clone(),
            generation: self.head.generation,
            reason,
        });
    }

    /// True if all ranks have stopped after the same step, which is not the last, and hold its
    /// state.
    pub(crate) fn is_between_steps(&self) -> bool {
        let Some(running) = self.running() else {
            return false;
        };
        let last = self.steps_max();
        let over = last <= self.newest.acknowledged || running.shards.contains_key(&last);
        let stopped = running.all_finished() && self.writing.is_none();
        stopped && !over
    }

    /// True if no rank has state to save: none has begun to train or has state from before.
    fn has_no_state(&self) -> bool {
        let Some(running) = self.running() else {
            return true;
        };
        let began = |phase: &RankPhase| match phase {
            RankPhase::Starting | RankPhase::Ready | RankPhase::Joining => false,
            RankPhase::Training
            | RankPhase::Broken { .. }
            | RankPhase::Finished
            | RankPhase::Failed { .. } => true,
        };
        let idle = |rank: &RankLive| match &rank.phase {
            None => !running.inherits,
            Some(phase) => !began(phase) && rank.cold,
        };
        running.ranks.values().all(idle)
    }

    /// True if all ranks finished before the last step and their final checkpoint is committed.
    fn is_checkpointed(&self) -> bool {
        let newest = self.checkpoints.last();
        let own = newest.is_some_and(|newest| newest.generation == self.head.generation);
        let stopped = |running: &Running| running.all_finished() && running.shards.is_empty();
        let left = self.running().is_some_and(stopped) && self.writing.is_none();
        left && own
            && self.newest.acknowledged <= self.committed()
            && self.committed() < self.steps_max()
    }
}
