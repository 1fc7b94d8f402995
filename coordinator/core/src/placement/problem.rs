//! The input of placement.

use crate::partitions::Partitions;
use proto::id::{JobId, WorkerId};
use proto::spec::DeviceKind;
use std::collections::BTreeMap;

/// A job that wants workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) job: JobId,
    /// Its position in submit order.
    pub(crate) number: u64,
    pub(crate) priority: i32,
    pub(crate) team: String,
    pub(crate) workers_min: u32,
    pub(crate) workers_max: u32,
    pub(crate) devices_per_worker: u32,
    pub(crate) device: DeviceKind,
    /// It still waits for `workers_max` before it starts with fewer.
    pub(crate) in_grace_period: bool,
    /// The workers of its running generation.
    pub(crate) holds: Vec<WorkerId>,
    /// While it waits: workers with survivors of its last generation, which hold the newest state.
    pub(crate) warm: Vec<WorkerId>,
    /// Workers in back-off, because its processes ended there. They are not assigned to it.
    pub(crate) avoid: Vec<WorkerId>,
    pub(crate) takes: Takes,
    /// Unreachable pairs, except between workers that it holds. It is never assigned both workers
    /// of a pair.
    pub(crate) partitions: Partitions,
}

/// Which workers a job may take, besides those that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Free ones, and those of others by the rules of placement.
    Any,
    /// Only free ones. It reserves none.
    Free,
    /// The same, or else those of this job beyond its minimum.
    FreeOrOf(JobId),
}

/// A worker that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeCapacity {
    pub(crate) worker: WorkerId,
    pub(crate) device: DeviceKind,
    pub(crate) devices: u32,
    pub(crate) access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Open,
    /// It is disconnected: jobs on it stay, and no job is added.
    CutOff,
    /// It is drained: jobs on it leave.
    Drained,
}

/// The complete input of the solver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Problem {
    /// In submit order.
    pub(crate) demands: Vec<Demand>,
    pub(crate) nodes: Vec<NodeCapacity>,
    /// Maximum number of devices per team. A team without an entry has no limit.
    pub(crate) quotas: BTreeMap<String, u32>,
}
