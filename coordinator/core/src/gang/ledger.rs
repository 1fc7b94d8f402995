//! Writes a job's ledger: every step that rank 0 reported or that a commit proves, and every weight
//! digest that all ranks agreed on. New entries are batched so that quick steps share one save. A
//! step is acknowledged to its rank only when its entry is saved, so that a crash of the
//! coordinator loses none.

use proto::id::{Generation, Rank, Step};
use proto::ledger::{Entry, Line, Tip};
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Ledger {
    saved: Tip,
    /// The end of the ledger, including unsaved entries.
    tip: Tip,
    pending: Vec<Entry>,
    /// Weight digests of the generation `digests_of`, for steps that not all ranks have reported.
    pub(super) digests: BTreeMap<Step, BTreeMap<Rank, String>>,
    pub(super) digests_of: Generation,
    /// The newest step on whose digest all ranks agreed.
    pub(super) agreed: Step,
}

/// The generation of a step: its world size and the step that it resumed from.
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

    /// The end of the saved ledger.
    pub(crate) fn saved(&self) -> &Tip {
        &self.saved
    }

    /// The end of the ledger, including unsaved entries.
    pub(crate) fn tip(&self) -> &Tip {
        &self.tip
    }

    pub(crate) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes the entries to save with the job's record.
    pub(crate) fn take(&mut self) -> Vec<Entry> {
        self.saved.clone_from(&self.tip);
        std::mem::take(&mut self.pending)
    }

    pub(crate) fn write(&mut self, line: Line) {
        let entry = self.tip.append(line);
        self.pending.push(entry);
    }

    /// Writes the start of a generation at its first reported step, `step`. It started at the step
    /// that it resumed from, or later if its ranks still held the state of an older generation.
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
