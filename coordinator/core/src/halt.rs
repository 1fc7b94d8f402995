//! The planned end of a generation: its ranks are asked to finish their step together and wait. Where some of their
//! processes go on in the next generation they keep what they hold and give it to the others ([`Halt::Hold`]); where
//! none does they write a checkpoint first ([`Halt::Save`]). Pauses, drains, changes of scale and priorities all end
//! a generation in this way. It decides when the end has come; [`crate::schedule`] decides that it should.

use crate::deadline::Deadlines;
use crate::event::{Fact, JobPhase, Millis};
use crate::job::Job;
use crate::live::RankLive;
use crate::outbox::Outbox;
use crate::report::runs;
use proto::id::WorkerId;
use proto::message::{Halt, RankPhase};
use std::fmt;

/// Why a generation should end although nothing is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Planned {
    Paused,
    /// It goes on with these workers instead of those it has.
    Moves {
        to: Vec<String>,
    },
    /// Others need its workers more, or they are drained; what it waits for then.
    MakesWay {
        lack: String,
    },
}

#[derive(Debug)]
pub(crate) struct Halting {
    pub(crate) why: Planned,
    pub(crate) how: Halt,
    pub(crate) asked: Millis,
    /// Then it ends, whatever its ranks have done.
    pub(crate) until: Millis,
}

impl Job {
    /// Asks the running generation to end in order: it is not taken back, but a checkpoint may be asked for later.
    pub(crate) fn halt(&mut self, why: Planned, how: Halt, deadlines: Deadlines, outbox: &mut Outbox) {
        let known = self.live.halt.as_ref().map(|halt| halt.how);
        if Some(how) <= known || !matches!(self.record.phase, JobPhase::Running { .. }) {
            return;
        }
        outbox.note(Fact::Halting {
            job: self.record.id.clone(),
            generation: self.record.generation,
            reason: why.to_string(),
        });
        let (asked, until) = (outbox.now, deadlines.halt(outbox.now));
        self.live.halt = Some(Halting {
            why,
            how,
            asked,
            until,
        });
        self.tell_members(outbox);
    }

    /// Why it halts, if it does.
    pub(crate) fn halting(&self) -> Option<String> {
        self.halts_at()?;
        self.live.halt.as_ref().map(|halt| halt.why.to_string())
    }

    /// When a halting generation ends at the latest.
    pub(crate) fn halts_at(&self) -> Option<Millis> {
        let running = matches!(self.record.phase, JobPhase::Running { .. });
        self.live.halt.as_ref().filter(|_| running).map(|halt| halt.until)
    }

    /// Ends a halting generation that frees all its workers, when nothing is to be waited for any more, or one that
    /// did not come to its end in time; the latter keeps its processes. Not a fault: it counts neither as a restart nor
    /// as fruitless. True when it ended now.
    pub(crate) fn let_go(&mut self, outbox: &mut Outbox) -> bool {
        let Some(halt) = self.live.halt.as_ref().filter(|_| self.halts_at().is_some()) else {
            return false;
        };
        let (saves, late) = (halt.how == Halt::Save, halt.until <= outbox.now);
        if !(late || saves && (self.is_idle() || self.has_left())) {
            return false;
        }
        let kept = if late && !self.record.paused {
            self.members().to_vec()
        } else {
            Vec::new()
        };
        let what = if late { self.too_slow(halt) } else { String::new() };
        let reason = format!("{}{what}; goes on from step {}", halt.why, self.committed());
        if late {
            // What it asked for stays the reason why it waits; what it cost stands here.
            self.note_incident(reason.clone(), outbox);
        }
        self.tell_members(outbox);
        self.note_halted(reason.clone(), outbox);
        self.keep(kept);
        self.record.phase = JobPhase::Queued { reason };
        self.settle_until = outbox.now;
        self.live.clear();
        outbox.save.insert(self.record.id.clone());
        true
    }

    /// Whom a halt waited for in vain, as the end of a sentence.
    fn too_slow(&self, halt: &Halting) -> String {
        let work = match halt.how {
            Halt::Save => "ended its step and written its share of a checkpoint",
            Halt::Hold => "ended its step",
        };
        let seconds = halt.until.saturating_sub(halt.asked) as f64 / 1000.0;
        let rank = self.last_rank(|rank| rank.phase != Some(RankPhase::Finished));
        let member = rank.and_then(|(rank, _)| {
            let member = self.members().iter().find(|member| runs(member, rank))?;
            Some(format!("rank {rank} on {}", member.worker.name))
        });
        match member {
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
            self.live.acknowledged
        } else {
            self.committed()
        };
        self.form(workers, outbox);
        self.live.acknowledged = self.live.acknowledged.max(reached);
    }

    fn note_halted(&mut self, reason: String, outbox: &mut Outbox) {
        if self.record.reached < self.live.acknowledged {
            self.record.reached = self.live.acknowledged;
            self.record.fruitless = 0;
        }
        outbox.note(Fact::Halted {
            job: self.record.id.clone(),
            generation: self.record.generation,
            reason,
        });
    }

    /// All ranks have stopped together after a step that is not the last, and hold it.
    pub(crate) fn is_between_steps(&self) -> bool {
        let last = self.steps_max();
        let over = last <= self.live.acknowledged || self.live.shards.contains_key(&last);
        let stopped = self.live.all_finished() && self.writing.is_none();
        stopped && !over && self.record.spec.training().is_some()
    }

    /// Whoever has not begun to train has nothing to keep, unless it came with something.
    fn is_idle(&self) -> bool {
        let began = |phase: &RankPhase| match phase {
            RankPhase::Starting | RankPhase::Ready | RankPhase::Joining => false,
            RankPhase::Training
            | RankPhase::Broken { .. }
            | RankPhase::Finished
            | RankPhase::Failed { .. } => true,
        };
        let idle = |rank: &RankLive| match &rank.phase {
            None => !self.live.inherits,
            Some(phase) => !began(phase) && rank.cold,
        };
        self.record.spec.training().is_none() || self.live.ranks.values().all(idle)
    }

    /// All ranks are finished before the last step, and the checkpoint with which they left is committed.
    fn has_left(&self) -> bool {
        let newest = self.record.checkpoints.last();
        let own = newest.is_some_and(|newest| newest.generation == self.record.generation);
        let left = self.live.all_finished() && self.live.shards.is_empty() && self.writing.is_none();
        left && own && self.live.acknowledged <= self.committed() && self.committed() < self.steps_max()
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused => f.write_str("somebody paused it"),
            Self::Moves { to } => write!(f, "it is to run on {}", to.join(", ")),
            Self::MakesWay { lack } => write!(f, "it makes way: {lack}"),
        }
    }
}
