//! Why placement gives a job no workers: filled in by the table, shown as [`Shortage`].

use super::problem::Demand;
use proto::reason::{Constraint, Shortage};

/// The shortage of a demand, without any worker yet.
pub(super) fn shortage(demand: &Demand, constraint: Constraint) -> Shortage {
    Shortage {
        constraint,
        workers_min: demand.workers_min.max(1),
        devices_per_worker: demand.devices_per_worker,
        device: demand.device,
        team: demand.team.clone(),
        ready: Vec::new(),
        busy: Vec::new(),
        reserved: Vec::new(),
        drained: Vec::new(),
        too_small: Vec::new(),
        unreachable: Vec::new(),
    }
}
