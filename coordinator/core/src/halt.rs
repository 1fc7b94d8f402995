//! The planned end of a generation: its ranks are asked to finish their step, write a checkpoint of it and wait; when
//! that is committed the job is queued again and nothing was lost. Pauses, drains, changes of scale and priorities
//! all end a generation in this way. It decides when the end has come; [`crate::schedule`] decides that it should.

use crate::deadline::Deadlines;
use crate::event::{Fact, JobPhase, Millis};
use crate::job::Job;
use crate::live::RankLive;
use crate::outbox::Outbox;
use proto::message::{RankPhase, Work};
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
pub(crate) struct Halt {
    pub(crate) why: Planned,
    /// Then it ends, checkpoint or not.
    pub(crate) until: Millis,
}

impl Job {
    /// Asks the running generation to end in order, once: it is not taken back.
    pub(crate) fn halt(&mut self, why: Planned, deadlines: Deadlines, outbox: &mut Outbox) {
        if self.live.halt.is_some() || !matches!(self.record.phase, JobPhase::Running { .. }) {
            return;
        }
        outbox.note(Fact::Halting {
            job: self.record.id.clone(),
            generation: self.record.generation,
            reason: why.to_string(),
        });
        let until = deadlines.halt(outbox.now);
        self.live.halt = Some(Halt { why, until });
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

    /// Ends a halting generation when nothing is to be waited for any more. Not a fault: it counts neither as a restart
    /// nor as fruitless. True when it ended now.
    pub(crate) fn let_go(&mut self, outbox: &mut Outbox) -> bool {
        let due = match self.halts_at() {
            Some(until) => self.is_idle() || self.has_left() || until <= outbox.now,
            // Ranks that were told to halt before this coordinator started, and nobody wishes it any more.
            None => self.has_left(),
        };
        if !due {
            return false;
        }
        self.tell_members(outbox);
        let halt = self.live.halt.take();
        let why = halt.map_or_else(
            || "its ranks left in order".to_owned(),
            |halt| halt.why.to_string(),
        );
        let reason = format!("{why}; goes on from step {}", self.committed());
        outbox.note(Fact::Halted {
            job: self.record.id.clone(),
            generation: self.record.generation,
            reason: reason.clone(),
        });
        self.record.phase = JobPhase::Queued { reason };
        self.settle_until = outbox.now;
        self.live.ranks.clear();
        self.live.shards.clear();
        self.live.finished_at = None;
        outbox.save.insert(self.record.id.clone());
        true
    }

    /// Whoever has not begun to train has nothing to keep.
    fn is_idle(&self) -> bool {
        let began = |phase: &RankPhase| match phase {
            RankPhase::Starting | RankPhase::Joining => false,
            RankPhase::Training
            | RankPhase::Broken { .. }
            | RankPhase::Finished
            | RankPhase::Failed { .. } => true,
        };
        let idle = |rank: &RankLive| !rank.phase.as_ref().is_some_and(began);
        self.record.work != Work::Train || self.live.ranks.values().all(idle)
    }

    /// All ranks are finished before the last step, and the checkpoint with which they left is committed.
    fn has_left(&self) -> bool {
        let newest = self.record.checkpoints.last();
        let own = newest.is_some_and(|newest| newest.generation == self.record.generation);
        let left = self.live.all_finished() && self.live.shards.is_empty() && self.writing.is_none();
        left && own && self.committed() < self.steps_max()
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
