//! The event queue in virtual time. Events of the same time are handled in the order in which they
//! were added.

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
    /// A client sends a request; repeated until it is answered.
    ClientSends {
        client_request: usize,
    },
    Fault {
        number: usize,
    },

    CoordinatorStart,
    /// The process of a replaced coordinator ends.
    FormerDies {
        boot: u64,
    },
    CoordinatorWake {
        boot: u64,
    },
    /// A slow save of this boot is durable: perform the remaining effects.
    CoordinatorSaved {
        boot: u64,
        effects: Vec<coordinator::Effect>,
    },
    /// A save of this boot exceeded its deadline.
    CoordinatorSaveTimeout {
        boot: u64,
    },
    /// A report that was sent to this boot of the coordinator.
    CoordinatorReceives {
        boot: u64,
        report: WorkerReport,
    },
    CoordinatorDisconnected {
        boot: u64,
        worker: WorkerId,
    },
    ManifestWritten {
        boot: u64,
        manifest: Box<CheckpointManifest>,
    },
    ManifestReply {
        boot: u64,
        job: JobId,
        checkpoint: CheckpointRef,
        result: Result<(), String>,
    },

    /// The store answers this boot of the coordinator about scores.
    ScoresRead {
        boot: u64,
        evaluation: JobId,
    },

    /// The store deletes a checkpoint, as this boot of the coordinator requested.
    CheckpointDeleted {
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
    NodeReceives {
        node: usize,
        boot: u64,
        state: DesiredState,
    },
    LinkOpen {
        node: usize,
        boot: u64,
    },
    /// The daemon pings its peers.
    NodePings {
        node: usize,
        boot: u64,
    },

    /// A line of a rank reaches its daemon.
    RankReported {
        node: usize,
        boot: u64,
        process: RankKey,
        report: Box<RankReport>,
    },
    RankExited {
        node: usize,
        boot: u64,
        key: RankKey,
        success: bool,
        outcome: String,
    },
    RankReceives {
        pid: Pid,
        rank: Rank,
        assignment: Box<Assignment>,
    },
    RankLoaded {
        pid: Pid,
    },
    RankHeartbeat {
        pid: Pid,
    },
    /// The rank retries to join its group.
    RankJoins {
        pid: Pid,
    },
    WriteShard(ShardWrite),
    ReportShard(ShardWrite),
    /// The rank's group fails, if the rank is still in this generation.
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
    /// The process ends the unit that it began as number `begun`.
    UnitEnds {
        pid: Pid,
        begun: u64,
    },
}

impl SimEvent {
    /// The rank process that must be running for this event. A kill needs none.
    pub(crate) fn process(&self) -> Option<Pid> {
        match self {
            Self::RankReceives { pid, .. }
            | Self::RankLoaded { pid }
            | Self::RankHeartbeat { pid }
            | Self::RankJoins { pid }
            | Self::RankBreaks { pid, .. }
            | Self::RankFinishes { pid, .. }
            | Self::UnitEnds { pid, .. }
            | Self::RankDies {
                pid, success: true, ..
            } => Some(*pid),
            Self::WriteShard(shard_write) | Self::ReportShard(shard_write) => Some(shard_write.pid),
            _ => None,
        }
    }

    /// True for events that the coordinator's process handles.
    pub(crate) fn is_for_coordinator(&self) -> bool {
        matches!(
            self,
            Self::ClientSends { .. }
                | Self::CoordinatorWake { .. }
                | Self::CoordinatorReceives { .. }
                | Self::CoordinatorDisconnected { .. }
                | Self::ManifestReply { .. }
                | Self::ScoresRead { .. }
        )
    }
}

/// Pending request ids, and the index of the client request that each belongs to.
pub(crate) type Requests = BTreeMap<coordinator::RequestId, usize>;

#[derive(Debug, Default)]
pub(crate) struct Agenda {
    /// Time, sequence number and slot of every event.
    times: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<SimEvent>>,
    free: Vec<usize>,
    count: u64,
}

impl Agenda {
    pub(crate) fn put(&mut self, at: u64, event: SimEvent) {
        self.count += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(event);
        self.times.push(Reverse((at, self.count, slot)));
    }

    pub(crate) fn next(&mut self) -> Option<(u64, SimEvent)> {
        let Reverse((at, _, slot)) = self.times.pop()?;
        let event = self.slots[slot].take()?;
        self.free.push(slot);
        Some((at, event))
    }
}
