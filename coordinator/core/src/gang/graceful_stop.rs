//! The planned end of a generation: its ranks are asked to finish their step together and wait.
//! Where some of their processes go on in the next generation they keep what they hold and give it
//! to the others ([`GracefulStop::WithoutCheckpoint`]); where none does they write a checkpoint
//! first ([`GracefulStop::WithCheckpoint`]). Pauses, drains, changes of scale and priorities all
//! end a generation in this way. Here is decided when the end has come; who asks for it is decided
//! by placement.

use super::job::Gang;
use super::running::Running;
use super::stopping::{Planned, Stopping};
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::outbox::Outbox;
use crate::rank::RankLive;
use crate::record::Millis;
use proto::id::WorkerId;
use proto::message::{GracefulStop, RankPhase};

impl Gang {
    /// Asks the running generation to end in order: it is not taken back, but a checkpoint may be
    /// asked for later.
    pub(crate) fn graceful_stop(
        &mut self,
        why: Planned,
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
            reason: why.to_string(),
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

    /// Why it halts, if it does.
    pub(crate) fn stops_because(&self) -> Option<String> {
        self.stopping()
            .map(|graceful_stop| graceful_stop.why.to_string())
    }

    /// When a halting generation ends at the latest.
    pub(super) fn stops_at(&self) -> Option<Millis> {
        self.stopping().map(|graceful_stop| graceful_stop.until)
    }

    /// Ends a halting generation that frees all its workers, when nothing is to be waited for any
    /// more, or one that did not come to its end in time; the latter keeps its processes. Not a
    /// fault: it counts neither as a restart nor as fruitless. True when it ended now.
    pub(crate) fn let_go(&mut self, outbox: &mut Outbox) -> bool {
        let Some(graceful_stop) = self.stopping() else {
            return false;
        };
        let (saves, late) = (
            graceful_stop.how == GracefulStop::WithCheckpoint,
            graceful_stop.until <= outbox.now,
        );
        if !(late || saves && (self.is_idle() || self.has_left())) {
            return false;
        }
        let kept = if late && !self.head.paused {
            self.members().to_vec()
        } else {
            Vec::new()
        };
        let what = if late {
            self.too_slow(graceful_stop)
        } else {
            String::new()
        };
        let reason = format!(
            "{}{what}; goes on from step {}",
            graceful_stop.why,
            self.committed()
        );
        if late {
            // What it asked for stays the reason why it waits; what it cost stands here.
            self.head.record_incident(reason.clone(), outbox);
        }
        self.send_to_members(outbox);
        self.emit_stopped(reason.clone(), outbox);
        self.queue(reason, outbox.now, kept, outbox);
        true
    }

    /// Whom a halt waited for in vain, as the end of a sentence.
    fn too_slow(&self, graceful_stop: &Stopping) -> String {
        let work = match graceful_stop.how {
            GracefulStop::WithCheckpoint => "ended its step and written its share of a checkpoint",
            GracefulStop::WithoutCheckpoint => "ended its step",
        };
        let seconds = graceful_stop.until.saturating_sub(graceful_stop.asked) as f64 / 1000.0;
        let last_of = |running: &Running| {
            let last = running.last_rank(|rank| rank.phase != Some(RankPhase::Finished))?;
            let member = running.owner(last.rank)?;
            Some(format!("rank {} on {}", last.rank, member.worker.name))
        };
        match self.running().and_then(last_of) {
            Some(who) => format!("; {who} had not {work} within {seconds} s"),
            None => format!("; its checkpoint was not committed within {seconds} s"),
        }
    }

    /// Goes over to the next generation without a pause: some of its processes go on.
    pub(crate) fn regroup(&mut self, workers: Vec<WorkerId>, why: &str, outbox: &mut Outbox) {
        self.send_to_members(outbox);
        self.emit_stopped(why.to_owned(), outbox);
        // Their ranks need not tell again what was heard; where it ends, the next generation
        // begins.
        let reached = if self.is_between_steps() {
            self.newest.acknowledged
        } else {
            self.committed()
        };
        self.form(workers, outbox);
        self.newest.acknowledged = self.newest.acknowledged.max(reached);
    }

    fn emit_stopped(&mut self, reason: String, outbox: &mut Outbox) {
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

    /// All ranks have stopped together after a step that is not the last, and hold it.
    pub(crate) fn is_between_steps(&self) -> bool {
        let Some(running) = self.running() else {
            return false;
        };
        let last = self.steps_max();
        let over = last <= self.newest.acknowledged || running.shards.contains_key(&last);
        let stopped = running.all_finished() && self.writing.is_none();
        stopped && !over
    }

    /// Whoever has not begun to train has nothing to keep, unless it came with something.
    fn is_idle(&self) -> bool {
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

    /// All ranks are finished before the last step, and the checkpoint with which they left is
    /// committed.
    fn has_left(&self) -> bool {
        let newest = self.checkpoints.last();
        let own = newest.is_some_and(|newest| newest.generation == self.head.generation);
        let stopped = |running: &Running| running.all_finished() && running.shards.is_empty();
        let left = self.running().is_some_and(stopped) && self.writing.is_none();
        left && own
            && self.newest.acknowledged <= self.committed()
            && self.committed() < self.steps_max()
    }
}
