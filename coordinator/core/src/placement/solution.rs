//! What placement decides.

use super::problem::Problem;
use super::shortage::Shortage;
use proto::id::{JobId, WorkerId};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// One member on each of these workers, in order of their names.
    Run(Vec<WorkerId>),
    Wait(Box<Shortage>),
}

pub(crate) type Solution = BTreeMap<JobId, Decision>;

/// Devices by worker.
pub(crate) type Devices = BTreeMap<WorkerId, u32>;

/// What was decided last, and on what.
pub(crate) type Solved = Option<(Problem, Solution)>;
