//! A rank of a job of units: a process that works independently. It processes the units of its
//! lease one by one, lowest number first, and reports the outcome of each until the lease no longer
//! contains it. The coordinator moves units between ranks only by changing their leases.

use proto::id::{Generation, Rank};
use proto::message::{Assignment, RankPhase, UnitFailure, UnitRange, UnitReport};
use std::collections::{BTreeMap, BTreeSet};

/// The assignment as seen by this rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub generation: Generation,
    pub rank: Rank,
    /// Units that are not known to be done, sorted, without overlap.
    pub lease: Vec<UnitRange>,
    /// The rank is to finish its current unit and begin no other.
    pub graceful_stop: bool,
}

impl Order {
    #[must_use]
    pub fn of(assignment: &Assignment, rank: Rank) -> Self {
        let lease = assignment.units().and_then(|order| order.leases.get(&rank));
        Self {
            generation: assignment.generation,
            rank,
            lease: lease.cloned().unwrap_or_default(),
            graceful_stop: assignment.graceful_stop.is_some(),
        }
    }

    fn contains(&self, unit: u64) -> bool {
        let after = self.lease.partition_point(|range| range.end <= unit);
        self.lease
            .get(after)
            .is_some_and(|range| range.contains(unit))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Everything that units need is loaded.
    Loaded,
    /// The daemon sent an order: a changed one of the same generation, or that of a newer one.
    Ordered(Order),
    /// The outputs of this unit are in the store.
    Done { unit: u64 },
    /// This unit failed. The process can continue with others.
    Failed { unit: u64, error: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send [`UnitRank::says`] to the daemon, because it has changed.
    Report,
    /// Report to the daemon that this unit begins, and then begin it.
    Begin(u64),
}

/// The reported state of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Says {
    pub generation: Generation,
    pub rank: Rank,
    pub phase: RankPhase,
    pub units: UnitReport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Loading,
    /// It processes this unit, or waits for a lease with further units.
    Working(Option<u64>),
    /// It has stopped gracefully.
    Finished,
}

/// The machine.
#[derive(Debug)]
pub struct UnitRank {
    order: Order,
    stage: Stage,
    done: BTreeSet<u64>,
    failed: BTreeMap<u64, String>,
}

impl UnitRank {
    #[must_use]
    pub fn new(first: Order) -> Self {
        Self {
            order: first,
            stage: Stage::Loading,
            done: BTreeSet::new(),
            failed: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn says(&self) -> Says {
        let phase = match self.stage {
            Stage::Loading => RankPhase::Starting,
            Stage::Working(_) => RankPhase::Training,
            Stage::Finished => RankPhase::Finished,
        };
        let failed = self.failed.iter().map(|(unit, error)| UnitFailure {
            unit: *unit,
            error: error.clone(),
        });
        Says {
            generation: self.order.generation,
            rank: self.order.rank,
            phase,
            units: UnitReport {
                done: ranges(&self.done),
                failed: failed.collect(),
            },
        }
    }

    /// The unit that it currently processes.
    #[must_use]
    pub fn working_on(&self) -> Option<u64> {
        match self.stage {
            Stage::Working(unit) => unit,
            Stage::Loading | Stage::Finished => None,
        }
    }

    /// Handles one input and returns the effects to perform.
    pub fn handle(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Loaded => {
                self.stage = Stage::Working(None);
                self.next_effects(true)
            }
            Input::Ordered(order) => self.on_ordered(order),
            Input::Done { unit } => {
                self.finish(unit);
                // The unit may have been leased to another rank meanwhile.
                if self.order.contains(unit) {
                    self.done.insert(unit);
                }
                self.next_effects(true)
            }
            Input::Failed { unit, error } => {
                self.finish(unit);
                if self.order.contains(unit) {
                    self.failed.insert(unit, error);
                }
                self.next_effects(true)
            }
        }
    }

    /// A newer generation does not affect the current unit. Its outcome counts if the lease
    /// contains it when it ends.
    fn on_ordered(&mut self, order: Order) -> Vec<Effect> {
        if order.generation < self.order.generation {
            return Vec::new();
        }
        let newer = self.order.generation < order.generation;
        self.order = order;
        let before = (self.done.len(), self.failed.len());
        self.done.retain(|unit| self.order.contains(*unit));
        self.failed.retain(|unit, _| self.order.contains(*unit));
        if newer && self.stage == Stage::Finished {
            self.stage = Stage::Working(None);
        }
        self.next_effects(newer || before != (self.done.len(), self.failed.len()))
    }

    fn finish(&mut self, unit: u64) {
        if self.stage == Stage::Working(Some(unit)) {
            self.stage = Stage::Working(None);
        }
    }

    /// Begins the next unit if none is being processed. `changed`: whether there is something new
    /// to report.
    fn next_effects(&mut self, changed: bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.stage == Stage::Working(None) && self.order.graceful_stop {
            self.stage = Stage::Finished;
            return vec![Effect::Report];
        }
        if changed && self.stage != Stage::Loading {
            effects.push(Effect::Report);
        }
        if self.stage == Stage::Working(None)
            && let Some(unit) = self.next_unit()
        {
            self.stage = Stage::Working(Some(unit));
            effects.push(Effect::Begin(unit));
        }
        effects
    }

    fn next_unit(&self) -> Option<u64> {
        let mut leased = self
            .order
            .lease
            .iter()
            .flat_map(|range| range.first..range.end);
        leased.find(|unit| !self.done.contains(unit) && !self.failed.contains_key(unit))
    }
}

/// Merges consecutive numbers into ranges.
fn ranges(units: &BTreeSet<u64>) -> Vec<UnitRange> {
    let mut ranges: Vec<UnitRange> = Vec::new();
    for unit in units {
        match ranges.last_mut() {
            Some(last) if last.end == *unit => last.end += 1,
            _ => ranges.push(UnitRange::one(*unit)),
        }
    }
    ranges
}
