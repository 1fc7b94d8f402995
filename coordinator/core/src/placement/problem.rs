//! What placement decides from.

use crate::partitions::Partitions;
use proto::id::{JobId, WorkerId};
use proto::spec::DeviceKind;
use std::collections::BTreeMap;

/// A job that wants workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) job: JobId,
    /// Its place in the queue.
    pub(crate) number: u64,
    pub(crate) priority: i32,
    pub(crate) team: String,
    pub(crate) workers_min: u32,
    pub(crate) workers_max: u32,
    pub(crate) devices_per_worker: u32,
    pub(crate) device: DeviceKind,
    /// It still waits for `workers_max` before it is content with fewer.
    pub(crate) in_grace_period: bool,
    /// The workers of its running generation.
    pub(crate) holds: Vec<WorkerId>,
    /// Where survivors of its last generation hold the newest state, while it waits.
    pub(crate) warm: Vec<WorkerId>,
    /// Workers that it is not given for now: its processes ended there.
    pub(crate) avoid: Vec<WorkerId>,
    /// It is given no two workers that do not reach each other, beside those that it holds.
    pub(crate) partitions: Partitions,
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
    /// It cannot be told anything now: whoever is there stays, and nobody comes.
    CutOff,
    /// Somebody drains it: whoever is there leaves.
    Drained,
}

/// Everything that decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Problem {
    /// In submit order.
    pub(crate) demands: Vec<Demand>,
    pub(crate) nodes: Vec<NodeCapacity>,
    /// Devices that a team may hold at one time; teams that are not named may hold any number.
    pub(crate) quotas: BTreeMap<String, u32>,
}
