//! The output of placement.

use super::problem::Problem;
use proto::id::{JobId, WorkerId};
use proto::reason::Shortage;
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// One member on each of these workers, sorted by name.
    Run(Vec<WorkerId>),
    Wait(Box<Shortage>),
}

pub(crate) type Solution = BTreeMap<JobId, Decision>;

/// Devices by worker.
pub(crate) type Devices = BTreeMap<WorkerId, u32>;

/// The last problem and its solution.
pub(crate) type LastPlacement = Option<(Problem, Solution)>;
