//! A rank of a job of units: a process that works alone. It takes the units of its lease one by
//! one, lowest number first, and says of each what became of it until the lease names it no more.
//! The coordinator moves units between ranks by their leases alone.

use proto::id::{Generation, Rank};
use proto::message::{Assignment, RankPhase, UnitFailure, UnitRange, UnitReport};
use std::collections::{BTreeMap, BTreeSet};

/// This rank's part of an assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub generation: Generation,
    pub rank: Rank,
    /// Units that are not known to be done, sorted, without overlap.
    pub lease: Vec<UnitRange>,
    /// It is to end the unit that it is at and take no other.
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

    fn names(&self, unit: u64) -> bool {
        let after = self.lease.partition_point(|range| range.end <= unit);
        self.lease
            .get(after)
            .is_some_and(|range| range.contains(unit))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Everything that units need is in memory.
    Loaded,
    /// The daemon gave an order: the same one with changes, or that of a newer generation.
    Ordered(Order),
    /// The outputs of this unit are in the store.
    Done { unit: u64 },
    /// This unit gave an error. The process can go on with others.
    Failed { unit: u64, error: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send [`UnitRank::says`] to the daemon: there is something new in it.
    Report,
    /// Tell the daemon that this unit is begun, and then begin it.
    Begin(u64),
}

/// What the process says of itself at one moment.
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
    /// It is at this unit, or waits for a lease that names one.
    Working(Option<u64>),
    /// It was told to halt, and has.
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

    /// The unit that it is at.
    #[must_use]
    pub fn working_on(&self) -> Option<u64> {
        match self.stage {
            Stage::Working(unit) => unit,
            Stage::Loading | Stage::Finished => None,
        }
    }

    /// What is to be done now that this happened.
    pub fn handle(&mut self, event: Input) -> Vec<Effect> {
        match event {
            Input::Loaded => {
                self.stage = Stage::Working(None);
                self.go_on(true)
            }
            Input::Ordered(order) => self.on_ordered(order),
            Input::Done { unit } => {
                self.leave(unit);
                // Somebody else may have it by now.
                if self.order.names(unit) {
                    self.done.insert(unit);
                }
                self.go_on(true)
            }
            Input::Failed { unit, error } => {
                self.leave(unit);
                if self.order.names(unit) {
                    self.failed.insert(unit, error);
                }
                self.go_on(true)
            }
        }
    }

    /// A newer generation changes nothing for the unit that it is at: what counts is whether the
    /// lease names it at its end.
    fn on_ordered(&mut self, order: Order) -> Vec<Effect> {
        if order.generation < self.order.generation {
            return Vec::new();
        }
        let newer = self.order.generation < order.generation;
        self.order = order;
        let before = (self.done.len(), self.failed.len());
        self.done.retain(|unit| self.order.names(*unit));
        self.failed.retain(|unit, _| self.order.names(*unit));
        if newer && self.stage == Stage::Finished {
            self.stage = Stage::Working(None);
        }
        self.go_on(newer || before != (self.done.len(), self.failed.len()))
    }

    fn leave(&mut self, unit: u64) {
        if self.stage == Stage::Working(Some(unit)) {
            self.stage = Stage::Working(None);
        }
    }

    /// The next unit, where it is at none. `news`: there is something to say.
    fn go_on(&mut self, news: bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.stage == Stage::Working(None) && self.order.graceful_stop {
            self.stage = Stage::Finished;
            return vec![Effect::Report];
        }
        if news && self.stage != Stage::Loading {
            effects.push(Effect::Report);
        }
        if self.stage == Stage::Working(None)
            && let Some(unit) = self.next()
        {
            self.stage = Stage::Working(Some(unit));
            effects.push(Effect::Begin(unit));
        }
        effects
    }

    fn next(&self) -> Option<u64> {
        let mut leased = self
            .order
            .lease
            .iter()
            .flat_map(|range| range.first..range.end);
        leased.find(|unit| !self.done.contains(unit) && !self.failed.contains_key(unit))
    }
}

/// Numbers that follow each other as ranges.
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
