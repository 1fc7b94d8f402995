//! A job's ledger as the machine writes it: every step that rank 0 reported or that a commit
//! proves, every state that all ranks agreed on. What is new waits a moment so that quick steps
//! share one save; a step is acknowledged to its rank only when its entry is saved, so that none is
//! lost with the coordinator.

use proto::id::{Generation, Rank, Step};
use proto::ledger::{Entry, Line, Tip};
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Ledger {
    saved: Tip,
    /// With what is not saved yet.
    tip: Tip,
    pending: Vec<Entry>,
    /// What the ranks of that generation came to, where not all have spoken.
    pub(super) digests: BTreeMap<Step, BTreeMap<Rank, String>>,
    pub(super) digests_of: Generation,
    /// The newest step on whose digest all agreed.
    pub(super) agreed: Step,
}

/// A generation that did a step: how many ranks it has, and from where it resumed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) generation: Generation,
    pub(crate) world: u32,
    pub(crate) resumed: Step,
}

impl Ledger {
    pub(crate) fn new(tip: Tip) -> Self {
        Self {
            saved: tip.clone(),
            tip,
            pending: Vec::new(),
            digests: BTreeMap::new(),
            digests_of: Generation(0),
            agreed: Step(0),
        }
    }

    /// Where it ends as far as it is saved.
    pub(crate) fn saved(&self) -> &Tip {
        &self.saved
    }

    /// Where it ends, with what is not saved yet.
    pub(crate) fn tip(&self) -> &Tip {
        &self.tip
    }

    pub(crate) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes what is to be saved with the job's record.
    pub(crate) fn take(&mut self) -> Vec<Entry> {
        self.saved.clone_from(&self.tip);
        std::mem::take(&mut self.pending)
    }

    pub(crate) fn write(&mut self, line: Line) {
        let entry = self.tip.append(line);
        self.pending.push(entry);
    }

    /// A generation spoke for the first time: that it did step `step`. It began where it resumed,
    /// or further on when its ranks still had what an older one did.
    pub(crate) fn begin(&mut self, origin: Origin, step: Step) {
        if self.tip.generation != origin.generation {
            let before = Step(step.0.saturating_sub(1));
            self.write(Line::Generation {
                generation: origin.generation,
                world: origin.world,
                from: origin.resumed.max(before.min(self.tip.step)),
            });
        }
    }
}
