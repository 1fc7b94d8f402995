//! Virtual time: what happens when. Two things at the same moment happen in the order in which they
//! were put down.

use super::ranks::{Pid, ShardWrite};
use coordinator_core::event as coordinator;
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::{Generation, JobId, Rank, WorkerId};
use proto::message::{Assignment, DesiredState, RankReport, WorkerReport};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use worker_core::event::RankKey;

#[derive(Debug)]
pub(crate) enum SimEvent {
    /// A person asks for something; again until it is answered.
    Ask {
        client_request: usize,
    },
    Fault {
        number: usize,
    },

    CoordinatorStart,
    /// A coordinator whose place another took ends.
    FormerDies {
        boot: u64,
    },
    CoordinatorWake {
        boot: u64,
    },
    /// A save of that start is durable at last: what was to follow it follows.
    CoordinatorGoesOn {
        boot: u64,
        effects: Vec<coordinator::Effect>,
    },
    /// A save of that start takes too long.
    CoordinatorGivesUp {
        boot: u64,
    },
    /// A report that was sent to this start of the coordinator.
    CoordinatorHears {
        boot: u64,
        report: WorkerReport,
    },
    CoordinatorLosesLink {
        boot: u64,
        worker: WorkerId,
    },
    ManifestLands {
        boot: u64,
        manifest: Box<CheckpointManifest>,
    },
    ManifestAnswered {
        boot: u64,
        job: JobId,
        checkpoint: CheckpointRef,
        result: Result<(), String>,
    },

    /// The store does what a coordinator of that start asked for.
    CheckpointGoes {
        boot: u64,
        job: JobId,
        checkpoint: CheckpointRef,
    },

    NodeStart {
        node: usize,
        clock_back: bool,
    },
    NodeWake {
        node: usize,
        boot: u64,
    },
    NodeHears {
        node: usize,
        boot: u64,
        state: DesiredState,
    },
    LinkOpen {
        node: usize,
        boot: u64,
    },
    /// It asks its peers whether they are there.
    NodeAsks {
        node: usize,
        boot: u64,
    },

    /// A line of a rank reaches its daemon.
    RankSaid {
        node: usize,
        boot: u64,
        process: RankKey,
        report: RankReport,
    },
    RankExited {
        node: usize,
        boot: u64,
        key: RankKey,
        success: bool,
        outcome: String,
    },
    RankTold {
        pid: Pid,
        rank: Rank,
        assignment: Box<Assignment>,
    },
    RankLoaded {
        pid: Pid,
    },
    RankBeat {
        pid: Pid,
    },
    /// It tries again to reach the others.
    RankJoins {
        pid: Pid,
    },
    RankWrites(ShardWrite),
    RankSaysWritten(ShardWrite),
    /// Its group is broken, if it is still in that generation.
    RankBreaks {
        pid: Pid,
        generation: Generation,
        error: String,
    },
    RankFinishes {
        pid: Pid,
        generation: Generation,
    },
    RankDies {
        pid: Pid,
        success: bool,
        outcome: &'static str,
    },
    GroupSteps {
        job: JobId,
        generation: Generation,
    },
    /// The process is through with the unit that it began as its so manieth.
    UnitEnds {
        pid: Pid,
        begun: u64,
    },
}

impl SimEvent {
    /// The rank process that must have a processor for this to happen. A kill needs none.
    pub(crate) fn process(&self) -> Option<Pid> {
        match self {
            Self::RankTold { pid, .. }
            | Self::RankLoaded { pid }
            | Self::RankBeat { pid }
            | Self::RankJoins { pid }
            | Self::RankBreaks { pid, .. }
            | Self::RankFinishes { pid, .. }
            | Self::UnitEnds { pid, .. }
            | Self::RankDies {
                pid, success: true, ..
            } => Some(*pid),
            Self::RankWrites(shard_write) | Self::RankSaysWritten(shard_write) => {
                Some(shard_write.pid)
            }
            _ => None,
        }
    }

    /// True for what comes to the coordinator's running process.
    pub(crate) fn is_for_coordinator(&self) -> bool {
        matches!(
            self,
            Self::Ask { .. }
                | Self::CoordinatorWake { .. }
                | Self::CoordinatorHears { .. }
                | Self::CoordinatorLosesLink { .. }
                | Self::ManifestAnswered { .. }
        )
    }
}

/// A request of the outside world, and which of its wishes it carries.
pub(crate) type Requests = BTreeMap<coordinator::RequestId, usize>;

#[derive(Debug, Default)]
pub(crate) struct Agenda {
    /// When, in which order, and in which slot it lies.
    times: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<SimEvent>>,
    free: Vec<usize>,
    count: u64,
}

impl Agenda {
    pub(crate) fn put(&mut self, at: u64, happening: SimEvent) {
        self.count += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(happening);
        self.times.push(Reverse((at, self.count, slot)));
    }

    pub(crate) fn next(&mut self) -> Option<(u64, SimEvent)> {
        let Reverse((at, _, slot)) = self.times.pop()?;
        let happening = self.slots[slot].take()?;
        self.free.push(slot);
        Some((at, happening))
    }
}
