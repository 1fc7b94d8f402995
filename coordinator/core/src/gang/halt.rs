//! The planned end of a generation: its ranks are asked to finish their step together and wait. Where some of their
//! processes go on in the next generation they keep what they hold and give it to the others ([`Halt::Hold`]); where
//! none does they write a checkpoint first ([`Halt::Save`]). Pauses, drains, changes of scale and priorities all end
//! a generation in this way. Here is decided when the end has come; who asks for it is decided by placement.

use super::halting::{Halting, Planned};
use super::job::Gang;
use super::running::Running;
use crate::deadline::Deadlines;
use crate::event::Fact;
use crate::outbox::Outbox;
use crate::rank::RankLive;
use crate::record::Millis;
use proto::id::WorkerId;
use proto::message::{Halt, RankPhase};

impl Gang {
    /// Asks the running generation to end in order: it is not taken back, but a checkpoint may be asked for later.
    pub(crate) fn halt(&mut self, why: Planned, how: Halt, deadlines: Deadlines, outbox: &mut Outbox) {
        let Some(running) = self.running() else { return };
        if Some(how) <= running.halt.as_ref().map(|halt| halt.how) {
            return;
        }
        outbox.note(Fact::Halting {
            job: self.head.id.clone(),
            generation: self.head.generation,
            reason: why.to_string(),
        });
        let (asked, until) = (outbox.now, deadlines.halt(outbox.now));
        if let Some(running) = self.running_mut() {
            running.halt = Some(Halting {
                why,
                how,
                asked,
                until,
            });
        }
        self.tell_members(outbox);
    }

    pub(super) fn halting(&self) -> Option<&Halting> {
        self.running()?.halt.as_ref()
    }

    /// Why it halts, if it does.
    pub(crate) fn halts_because(&self) -> Option<String> {
        self.halting().map(|halt| halt.why.to_string())
    }

    /// When a halting generation ends at the latest.
    pub(super) fn halts_at(&self) -> Option<Millis> {
        self.halting().map(|halt| halt.until)
    }

    /// Ends a halting generation that frees all its workers, when nothing is to be waited for any more, or one that
    /// did not come to its end in time; the latter keeps its processes. Not a fault: it counts neither as a restart nor
    /// as fruitless. True when it ended now.
    pub(crate) fn let_go(&mut self, outbox: &mut Outbox) -> bool {
        let Some(halt) = self.halting() else {
            return false;
        };
        let (saves, late) = (halt.how == Halt::Save, halt.until <= outbox.now);
        if !(late || saves && (self.is_idle() || self.has_left())) {
            return false;
        }
        let kept = if late && !self.head.paused {
            self.members().to_vec()
        } else {
            Vec::new()
        };
        let what = if late { self.too_slow(halt) } else { String::new() };
        let reason = format!("{}{what}; goes on from step {}", halt.why, self.committed());
        if late {
            // What it asked for stays the reason why it waits; what it cost stands here.
            self.head.note_incident(reason.clone(), outbox);
        }
        self.tell_members(outbox);
        self.note_halted(reason.clone(), outbox);
        self.queue(reason, outbox.now, kept, outbox);
        true
    }

    /// Whom a halt waited for in vain, as the end of a sentence.
    fn too_slow(&self, halt: &Halting) -> String {
        let work = match halt.how {
            Halt::Save => "ended its step and written its share of a checkpoint",
            Halt::Hold => "ended its step",
        };
        let seconds = halt.until.saturating_sub(halt.asked) as f64 / 1000.0;
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
        self.tell_members(outbox);
        self.note_halted(why.to_owned(), outbox);
        // Their ranks need not tell again what was heard; where it ends, the next generation begins.
        let reached = if self.is_between_steps() {
            self.newest.acknowledged
        } else {
            self.committed()
        };
        self.form(workers, outbox);
        self.newest.acknowledged = self.newest.acknowledged.max(reached);
    }

    fn note_halted(&mut self, reason: String, outbox: &mut Outbox) {
        if self.reached < self.newest.acknowledged {
            self.reached = self.newest.acknowledged;
            self.head.fruitless = 0;
        }
        outbox.note(Fact::Halted {
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

    /// All ranks are finished before the last step, and the checkpoint with which they left is committed.
    fn has_left(&self) -> bool {
        let newest = self.checkpoints.last();
        let own = newest.is_some_and(|newest| newest.generation == self.head.generation);
        let stopped = |running: &Running| running.all_finished() && running.shards.is_empty();
        let left = self.running().is_some_and(stopped) && self.writing.is_none();
        left && own && self.newest.acknowledged <= self.committed() && self.committed() < self.steps_max()
    }
}
